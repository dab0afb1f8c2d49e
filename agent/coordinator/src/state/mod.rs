//! What is written down, in a file of its own (redb): a save is one transaction, on the disk when it returns.

pub mod etcd;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::cluster::Change;
use crate::model::{Key, Record};

/// The number is that of the form: another one is another table.
const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records-1");

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open the cluster's state {path}")]
    Open { path: PathBuf, source: Box<redb::Error> },
    #[error("save the cluster's state")]
    Save(#[source] Box<redb::Error>),
    #[error("load the cluster's state")]
    Load(#[source] Box<redb::Error>),
    #[error(transparent)]
    Etcd(#[from] etcd::EtcdError),
    #[error("record {key} of the cluster's state")]
    Record { key: String, source: serde_json::Error },
}

/// May whoever has it direct the cluster still? With a file of its own it may for good.
#[derive(Debug, Clone, Default)]
pub struct Mandate(Option<Arc<AtomicU64>>);

impl Mandate {
    fn until(moment: Duration) -> Self {
        let mandate = Self(Some(Arc::default()));
        mandate.extend(moment);
        mandate
    }

    fn extend(&self, until: Duration) {
        if let Some(ends) = &self.0 {
            let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
            ends.store(nanos, Ordering::Relaxed);
        }
    }

    /// It counts while the machine sleeps, too.
    #[must_use]
    pub fn holds(&self) -> bool {
        let ends = self.0.as_ref().map(|ends| Duration::from_nanos(ends.load(Ordering::Relaxed)));
        ends.is_none_or(|ends| now() < ends)
    }
}

/// Since the boot, with the time in which the machine slept.
fn now() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    // Without that clock (Linux has it since 2.6.39) nothing holds.
    now.map_or(Duration::MAX, Duration::from)
}

/// How a store takes a save: on the disk when it returns.
pub type Save = Box<dyn FnMut(&[&Change]) -> Result<(), Error> + Send>;

/// The only one that has the file open: a second one is refused.
#[derive(Debug)]
pub struct Store {
    database: Database,
}

impl Store {
    /// # Errors
    /// If there is something else, or somebody else has it open.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let open = || -> Result<Database, redb::Error> {
            let database = Database::create(path)?;
            let transaction = database.begin_write()?;
            transaction.open_table(RECORDS)?;
            transaction.commit()?;
            Ok(database)
        };
        let error = |source| Error::Open { path: path.to_owned(), source: Box::new(source) };
        Ok(Self { database: open().map_err(error)? })
    }

    /// All of it or nothing, and then for good. Several saves may be given as one.
    ///
    /// # Errors
    /// Then nothing of it is written; whoever depends on it must not go on.
    pub fn save<'a>(&self, changes: impl IntoIterator<Item = &'a Change>) -> Result<(), Error> {
        let changes: Vec<(String, Option<Vec<u8>>)> =
            changes.into_iter().map(to_bytes).collect::<Result<_, _>>()?;
        self.write(&changes).map_err(|source| Error::Save(Box::new(source)))
    }

    fn write(&self, changes: &[(String, Option<Vec<u8>>)]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for (key, value) in changes {
                match value {
                    Some(value) => records.insert(key.as_str(), value.as_slice())?,
                    None => records.remove(key.as_str())?,
                };
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Everything, for [`crate::cluster::Core::recover`].
    ///
    /// # Errors
    /// If one record cannot be read: to go on without it would run things twice.
    pub fn load(&self) -> Result<Vec<Record>, Error> {
        let read = || -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
            let records = self.database.begin_read()?.open_table(RECORDS)?;
            let all = records.iter()?.map(|one| {
                let (key, value) = one?;
                Ok((key.value().to_owned(), value.value().to_vec()))
            });
            all.collect()
        };
        let all = read().map_err(|source| Error::Load(Box::new(source)))?;
        all.into_iter().map(parse).collect()
    }
}

fn parse((key, value): (String, Vec<u8>)) -> Result<Record, Error> {
    serde_json::from_slice(&value).map_err(|source| Error::Record { key, source })
}

fn to_bytes(change: &Change) -> Result<(String, Option<Vec<u8>>), Error> {
    match change {
        Change::Erase(key) => Ok((name_of(key), None)),
        Change::Put(record) => {
            let key = name_of(&record.key());
            let value = serde_json::to_vec(record);
            let value = value.map_err(|source| Error::Record { key: key.clone(), source })?;
            Ok((key, Some(value)))
        }
    }
}

/// Records of one kind are beside each other.
fn name_of(key: &Key) -> String {
    match key {
        Key::Epoch => "epoch".to_owned(),
        Key::Node(node) => format!("node/{node}"),
        Key::Job(job) => format!("job/{job}"),
        Key::Allocation(id) => format!("allocation/{:016x}", id.0),
        Key::Quota(namespace) => format!("quota/{namespace}"),
        Key::Token(hash) => format!("token/{hash}"),
        Key::Withdrawal(holder) => format!("withdrawal/{holder}"),
    }
}
