use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hafen_spec::image::Digest;
use hafen_sys::{CallError, Context};
use nix::sys::statvfs::statvfs;

use super::content::chain_ids;
use super::due::{Contents, Disk, Due, Garbage, Item, Policy, Reached, Root, bytes, due};
use super::{Named, Store, StoreError, Use, forget, lock, names};
use crate::release::remove_tree;

/// How somebody collects.
#[derive(Debug, Clone, Copy)]
pub struct Collecting<'a> {
    pub policy: Policy,
    pub now: SystemTime,
    pub boot_id: &'a str,
    /// How long to wait until nobody else is at work; [`Duration::MAX`]: for as long as it takes.
    pub patience: Duration,
    /// Only look.
    pub dry: bool,
}

/// What was removed, or would be.
#[derive(Debug, Default)]
pub struct Collected {
    pub names: Vec<String>,
    pub garbage: Garbage,
    pub bytes: u64,
    /// What stays because it could not be removed, as where something is mounted in it.
    pub failed: Vec<CallError>,
}

impl Store {
    /// Remove what is due, and what was left half-made. `None` where somebody is at work all the while.
    ///
    /// # Errors
    /// A name that leads to nothing: then nothing is removed. A name that could not be removed.
    pub fn collect(&self, how: &Collecting<'_>) -> Result<Option<Collected>, StoreError> {
        drop(self.hold()?);
        let Some(_guard) = lock::exclusive_within(&self.root, how.patience)? else {
            return Ok(None);
        };
        let contents = self.contents(how.boot_id)?;
        let due = due(&contents, self.disk()?, &how.policy, how.now);
        if how.dry {
            let Due { names, garbage, bytes } = due;
            return Ok(Some(Collected { names, garbage, bytes, failed: Vec::new() }));
        }
        Ok(Some(self.remove(&contents, due, how.boot_id)?))
    }

    /// Names first: what they lead to is nobody's then. Of the rest one that cannot be removed does not keep the others.
    fn remove(
        &self,
        contents: &Contents,
        due: Due,
        boot_id: &str,
    ) -> Result<Collected, StoreError> {
        for name in &due.names {
            self.remove_name(name)?;
        }
        let mut failed = self.empty_workshop()?;
        done(self.remove_old_uppers(boot_id), &mut failed);
        let mut garbage = due.garbage;
        garbage.layers.retain(|digest| done(self.remove_layer(digest), &mut failed));
        garbage.blobs.retain(|digest| done(self.remove_blob(digest), &mut failed));
        garbage.parts.retain(|digest| done(forget(&self.part_path(digest)), &mut failed));
        let bytes = bytes(contents, &garbage);
        Ok(Collected { names: due.names, garbage, bytes, failed })
    }

    /// # Errors
    /// A name whose documents are missing or wrong.
    pub fn contents(&self, boot_id: &str) -> Result<Contents, StoreError> {
        let uses = self.uses(boot_id)?;
        let named = self.all_named()?;
        let named: Result<Vec<Root>, StoreError> =
            named.iter().map(|named| self.root_of(named, &uses)).collect();
        let used = uses.into_iter().map(|u| Reached { blobs: Vec::new(), layers: u.layers });
        Ok(Contents {
            blobs: self.items(self.blobs()?, |digest| self.blob_path(digest))?,
            layers: self.layer_items()?,
            parts: self.items(self.parts()?, |digest| self.part_path(digest))?,
            named: named?,
            used: used.collect(),
        })
    }

    fn root_of(&self, named: &Named, uses: &[Use]) -> Result<Root, StoreError> {
        let blobs = self.reachable(&named.target)?;
        let image = self.image(&named.target).ok();
        let layers = image.as_ref().map(|image| chain_ids(&image.config.diff_ids));
        let is_used = |usage: &Use| blobs.contains(&usage.digest);
        Ok(Root {
            name: named.reference.clone(),
            last_use: self.last_use(named)?,
            pinned: named.pinned,
            used: uses.iter().any(is_used),
            reached: Reached { blobs, layers: layers.unwrap_or_default() },
        })
    }

    fn items<P: AsRef<Path>>(
        &self,
        digests: impl IntoIterator<Item = Digest>,
        path: impl Fn(&Digest) -> P,
    ) -> Result<BTreeMap<Digest, Item>, CallError> {
        let mut items = BTreeMap::new();
        for digest in digests {
            let path = path(&digest);
            let item = stat(path.as_ref())?.map(|(m, changed)| Item { bytes: m.len(), changed });
            items.extend(item.map(|item| (digest, item)));
        }
        Ok(items)
    }

    fn layer_items(&self) -> Result<BTreeMap<Digest, Item>, StoreError> {
        let mut items = BTreeMap::new();
        for digest in self.layers()? {
            let bytes = self.layer_record(&digest)?.map_or(0, |record| record.bytes);
            let (folder, record) = (self.layer_folder(&digest), self.record_path(&digest));
            let known = stat(&record)?.map_or_else(|| stat(&folder), |known| Ok(Some(known)))?;
            items.extend(known.map(|(_, changed)| (digest, Item { bytes, changed })));
        }
        Ok(items)
    }

    /// As df(1) counts: what only root may still take is no room.
    fn disk(&self) -> Result<Disk, CallError> {
        let stat = statvfs(&self.root).call(|| format!("statvfs {}", self.root.display()))?;
        let used = stat.blocks().saturating_sub(stat.blocks_free());
        let total = used.saturating_add(stat.blocks_available());
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        Ok(Disk { total: bytes(total), used: bytes(used) })
    }

    /// Nobody makes anything: the lock is held alone.
    fn empty_workshop(&self) -> Result<Vec<CallError>, CallError> {
        let folder = self.root.join("tmp");
        let mut failed = Vec::new();
        for name in names(&folder)? {
            done(remove_tree(&folder.join(name)), &mut failed);
        }
        Ok(failed)
    }
}

fn done(answer: Result<(), CallError>, failed: &mut Vec<CallError>) -> bool {
    answer.map_err(|e| failed.push(e)).is_ok()
}

fn stat(path: &Path) -> Result<Option<(Metadata, SystemTime)>, CallError> {
    let stat = fs::symlink_metadata(path).and_then(|stat| stat.modified().map(|time| (stat, time)));
    match stat {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        answer => answer.map(Some).call(|| format!("stat {}", path.display())),
    }
}
