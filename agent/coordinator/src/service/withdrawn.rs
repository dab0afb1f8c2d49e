//! Certificates that count no more before their time is over: those of a holder below a number, which is one greater with each
//! withdrawal, and single ones by their serial number. So nothing has to be known of certificates that count, and no clock decides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use super::who::{Holder, Who};
use crate::cluster::Change;
use crate::model::{Record, Withdrawal};

/// Of single certificates of one holder. Whoever needs more withdraws all.
const MOST_SERIALS: usize = 1_000;

/// Of whoever directs, for all who let somebody in. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Withdrawn {
    all: Arc<watch::Sender<BTreeMap<String, Withdrawal>>>,
    /// Certificates of members that were shown here, by their serial number, for people: nothing depends on it.
    shown: Arc<Mutex<BTreeMap<String, Holder>>>,
}

impl Default for Withdrawn {
    fn default() -> Self {
        Self { all: Arc::new(watch::Sender::new(BTreeMap::new())), shown: Arc::default() }
    }
}

impl Withdrawal {
    fn none(holder: &str) -> Self {
        Self { holder: holder.to_owned(), least: 0, serials: Default::default() }
    }

    fn covers(&self, holder: &Holder) -> bool {
        holder.number < self.least || self.serials.contains(&holder.serial)
    }
}

impl Withdrawn {
    /// What was written down, in place of what is known here.
    pub(super) fn read(&self, records: &[Record]) {
        let all = records.iter().filter_map(|record| match record {
            Record::Withdrawal(one) => Some((one.holder.clone(), one.clone())),
            _ => None,
        });
        self.all.send_replace(all.collect());
    }

    fn of(&self, holder: &str) -> Withdrawal {
        self.all.borrow().get(holder).cloned().unwrap_or_else(|| Withdrawal::none(holder))
    }

    /// The least number of a holder's certificates that counts.
    pub(super) fn least(&self, holder: &str) -> u64 {
        self.of(holder).least
    }

    /// What is to be saved before [`Self::add`], so that no certificate of now counts any more. One with a greater number
    /// may be among the single ones: these stay.
    pub(super) fn next(&self, holder: &str) -> Withdrawal {
        let before = self.of(holder);
        Withdrawal { least: before.least + 1, ..before }
    }

    /// The same for one certificate; `None`: there are too many.
    pub(super) fn next_single(&self, holder: &str, serial: String) -> Option<Withdrawal> {
        let mut next = self.of(holder);
        next.serials.insert(serial);
        (next.serials.len() <= MOST_SERIALS).then_some(next)
    }

    pub(super) fn add(&self, one: Withdrawal) {
        self.all.send_modify(|all| {
            all.insert(one.holder.clone(), one);
        });
    }

    pub(super) fn all(&self) -> Vec<Withdrawal> {
        self.all.borrow().values().cloned().collect()
    }

    fn counts(&self, holder: &Holder) -> bool {
        !self.all.borrow().get(&holder.uri()).is_some_and(|one| one.covers(holder))
    }

    /// As whom somebody is heard now.
    pub(super) fn judge(&self, who: &Who) -> Who {
        match who.holder() {
            Some(holder) if !self.counts(holder) => Who::Withdrawn(holder.clone()),
            _ => who.clone(),
        }
    }

    fn shown_lock(&self) -> MutexGuard<'_, BTreeMap<String, Holder>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody has proved to hold this one. There are no more of them than the authority has signed.
    pub(super) fn note(&self, who: &Who) {
        let Some(holder) = who.holder() else { return };
        self.shown_lock().insert(holder.serial.clone(), holder.clone());
    }

    /// Those that were shown here and whose time is not over, each with whether it counts.
    pub(super) fn shown(&self) -> Vec<(Holder, bool)> {
        let now = SystemTime::now();
        let mut shown = self.shown_lock();
        shown.retain(|_, holder| holder.until > now);
        shown.values().map(|holder| (holder.clone(), self.counts(holder))).collect()
    }

    /// Until their certificate counts no more; never, if it did not at first, or if there is none.
    pub(super) async fn end(&self, who: &Who) {
        let Some(holder) = who.holder().filter(|holder| self.counts(holder)) else {
            return std::future::pending().await;
        };
        let (uri, mut changes) = (holder.uri(), self.all.subscribe());
        let is_over = |one: &Withdrawal| one.covers(holder);
        // The sender is ours.
        let _ = changes.wait_for(|all| all.get(&uri).is_some_and(is_over)).await;
    }
}

impl From<Withdrawal> for Change {
    fn from(one: Withdrawal) -> Self {
        Self::Put(Record::Withdrawal(one))
    }
}
