use std::collections::BTreeSet;

use hafen_spec::image::Digest;
use hafen_sys::CallError;

use super::content::chain_ids;
use super::{Store, StoreError, forget, lock, names};
use crate::release::remove_tree;

/// What there is, and what refers to what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    pub blobs: BTreeSet<Digest>,
    /// By chain id.
    pub layers: BTreeSet<Digest>,
    /// What each name leads to: blobs and chain ids.
    pub named: Vec<Reached>,
    /// The same for each container.
    pub used: Vec<Reached>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reached {
    pub blobs: Vec<Digest>,
    pub layers: Vec<Digest>,
}

/// What nothing refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Garbage {
    pub blobs: Vec<Digest>,
    pub layers: Vec<Digest>,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    pub garbage: Garbage,
    pub bytes: u64,
}

/// What may go: everything that neither a name nor a container leads to. Pure.
#[must_use]
pub fn garbage(contents: &Contents) -> Garbage {
    let roots = || contents.named.iter().chain(&contents.used);
    let blobs: BTreeSet<&Digest> = roots().flat_map(|r| &r.blobs).collect();
    let layers: BTreeSet<&Digest> = roots().flat_map(|r| &r.layers).collect();
    Garbage {
        blobs: contents.blobs.iter().filter(|d| !blobs.contains(d)).cloned().collect(),
        layers: contents.layers.iter().filter(|d| !layers.contains(d)).cloned().collect(),
    }
}

impl Store {
    /// Remove what nothing refers to, and what was left half-made. Waits until nobody else is at work; `None` with
    /// `wait` false where somebody is.
    ///
    /// # Errors
    /// A name that leads to nothing: then nothing is removed. Names what could not be removed.
    pub fn collect(&self, boot_id: &str, wait: bool) -> Result<Option<Collected>, StoreError> {
        drop(self.hold()?);
        let guard = match wait {
            true => Some(lock::exclusive(&self.root)?),
            false => lock::try_exclusive(&self.root)?,
        };
        let Some(_guard) = guard else { return Ok(None) };
        let garbage = garbage(&self.contents(boot_id)?);
        let mut bytes = 0;
        for digest in &garbage.layers {
            bytes += self.layer_record(digest)?.map_or(0, |record| record.bytes);
            self.remove_layer(digest)?;
        }
        for digest in &garbage.blobs {
            bytes += std::fs::metadata(self.blob_path(digest)).map_or(0, |m| m.len());
            self.remove_blob(digest)?;
        }
        self.empty_workshop()?;
        Ok(Some(Collected { garbage, bytes }))
    }

    /// # Errors
    /// A name whose documents are missing or wrong.
    pub fn contents(&self, boot_id: &str) -> Result<Contents, StoreError> {
        let mut contents =
            Contents { blobs: self.blobs()?, layers: self.layers()?, ..Contents::default() };
        for named in self.all_named()? {
            let blobs = self.reachable(&named.target)?;
            let layers = self.image(&named.target).map(|image| chain_ids(&image.config.diff_ids));
            contents.named.push(Reached { blobs, layers: layers.unwrap_or_default() });
        }
        for usage in self.uses(boot_id)? {
            contents.used.push(Reached { blobs: Vec::new(), layers: usage.layers });
        }
        Ok(contents)
    }

    pub(super) fn blobs(&self) -> Result<BTreeSet<Digest>, CallError> {
        let mut blobs = BTreeSet::new();
        for algorithm in ["sha256", "sha512"] {
            let names = names(&self.root.join("blobs").join(algorithm))?;
            blobs.extend(names.iter().filter_map(|hex| format!("{algorithm}:{hex}").parse().ok()));
        }
        Ok(blobs)
    }

    /// Nobody makes anything: the lock is held alone.
    fn empty_workshop(&self) -> Result<(), CallError> {
        let parts = self.root.join("partial");
        names(&parts)?.iter().try_for_each(|name| forget(&parts.join(name)))?;
        let folder = self.root.join("tmp");
        names(&folder)?.iter().try_for_each(|name| remove_tree(&folder.join(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::sha256([n; 32])
    }

    #[test]
    fn what_is_named_or_used_stays() {
        let contents = Contents {
            blobs: (1..6).map(digest).collect(),
            layers: (10..14).map(digest).collect(),
            named: vec![Reached { blobs: vec![digest(1), digest(2)], layers: vec![digest(10)] }],
            used: vec![Reached { blobs: vec![digest(3)], layers: vec![digest(11), digest(10)] }],
        };
        let garbage = garbage(&contents);
        assert_eq!(garbage.blobs, [digest(4), digest(5)]);
        assert_eq!(garbage.layers, [digest(12), digest(13)]);
    }
}
