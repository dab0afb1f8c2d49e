use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use hafen_spec::image::{Blob, Digest, Reference};
use hafen_sys::file::{replace, sync_folder};
use hafen_sys::{CallError, Context};
use serde::{Deserialize, Serialize};

use super::blob::Hash;
use super::{Store, StoreError, lock, names};

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    /// With all that people leave out.
    pub reference: String,
    /// A manifest, or an index.
    pub target: Blob,
    /// RFC 3339.
    pub updated: String,
    /// The name stays, and with it what it leads to.
    #[serde(default)]
    pub pinned: bool,
}

const SUFFIX: &str = ".json";

/// `%` is in no reference.
fn file_name(reference: &impl ToString) -> String {
    reference.to_string().replace('/', "%") + SUFFIX
}

impl Store {
    /// Give a manifest a name, or another manifest a name that there is; a pin is the name's own and stays.
    ///
    /// # Errors
    /// Names the file; the name means what it meant then.
    pub fn tag(
        &self,
        reference: &Reference,
        target: Blob,
        updated: String,
    ) -> Result<(), StoreError> {
        let _naming = self.naming(reference)?;
        // What is torn is replaced, and says nothing of a pin.
        let before = self.read_named(&file_name(reference)).ok().flatten();
        let pinned = before.is_some_and(|named| named.pinned);
        self.write_named(&Named { reference: reference.to_string(), target, updated, pinned })
    }

    /// Pin a name, or take its pin away.
    ///
    /// # Errors
    /// [`StoreError::NoImage`]; names the file.
    pub fn pin(&self, reference: &Reference, pinned: bool) -> Result<(), StoreError> {
        let _naming = self.naming(reference)?;
        let named = self.read_named(&file_name(reference))?;
        self.write_named(&Named { pinned, ..named.ok_or_else(|| self.no_image(reference))? })
    }

    /// When a name got its meaning, its pin or lost that, or when a container took it: whoever launches one changes the
    /// time of the record.
    ///
    /// # Errors
    /// Names the file.
    pub fn last_use(&self, named: &Named) -> Result<SystemTime, CallError> {
        let path = self.named_path(named);
        fs::metadata(&path).and_then(|m| m.modified()).call(|| format!("stat {}", path.display()))
    }

    /// Where it is written down what a name means.
    #[must_use]
    pub fn named_path(&self, named: &Named) -> PathBuf {
        self.path("refs", &file_name(&named.reference))
    }

    /// Whoever collects takes a name away, holding the store alone.
    pub(super) fn remove_name(&self, name: &str) -> Result<(), CallError> {
        let path = self.path("refs", &file_name(&name));
        fs::remove_file(&path).call(|| format!("unlink {}", path.display()))?;
        sync_folder(&self.root.join("refs"))
    }

    /// Nobody else writes this name.
    fn naming(&self, reference: &Reference) -> Result<impl Sized + use<>, CallError> {
        let mut hash = Hash::new("sha256");
        hash.update(reference.to_string().as_bytes());
        lock::maker(&self.root, &hash.finish())
    }

    fn write_named(&self, named: &Named) -> Result<(), StoreError> {
        let name = &named.reference;
        let text = serde_json::to_vec_pretty(named)
            .map_err(|e| StoreError::Refused(format!("{name}: {e}")))?;
        Ok(replace(&self.path("refs", &file_name(name)), &text, true)?)
    }

    /// `false`: there was no such name.
    ///
    /// # Errors
    /// Names the file; a name that is pinned.
    pub fn untag(&self, reference: &Reference) -> Result<bool, StoreError> {
        let _naming = self.naming(reference)?;
        if let Some(named) = self.read_named(&file_name(reference))? {
            named.may_go()?;
        }
        let path = self.path("refs", &file_name(reference));
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            answer => answer.call(|| format!("unlink {}", path.display()))?,
        }
        sync_folder(&self.root.join("refs"))?;
        Ok(true)
    }

    /// What a name means: the name itself, or a digest that some name of the repository has.
    ///
    /// # Errors
    /// [`StoreError::NoImage`]; a file that cannot be read.
    pub fn named(&self, reference: &Reference) -> Result<Named, StoreError> {
        if let Some(named) = self.read_named(&file_name(reference))? {
            return Ok(named);
        }
        let same = |named: &Named| Some(&named.target.digest) == reference.digest.as_ref();
        let found = self.all_named()?.into_iter().find(same);
        found.ok_or_else(|| self.no_image(reference))
    }

    /// The image that a person means: a name, or the beginning of a digest that only one image has.
    ///
    /// # Errors
    /// What is no name; [`StoreError::NoImage`].
    pub fn find(&self, text: &str) -> Result<Named, StoreError> {
        const SHORTEST: usize = 6;
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let parsed = text.parse::<Reference>();
        let named = parsed.as_ref().ok().map(|reference| self.named(reference)).transpose();
        let unknown = match named {
            Ok(Some(named)) => return Ok(named),
            Err(e @ StoreError::NoImage(..)) => e,
            Err(e) => return Err(e),
            Ok(None) => StoreError::Refused(parsed.err().unwrap_or_default()),
        };
        if digits.len() < SHORTEST || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(unknown);
        }
        let mut found = self.all_named()?;
        found.retain(|named| named.target.digest.hex().starts_with(digits));
        found.dedup_by(|a, b| a.target.digest == b.target.digest);
        match (found.pop(), found.is_empty()) {
            (Some(named), true) => Ok(named),
            (None, _) => Err(unknown),
            (Some(_), false) => {
                Err(StoreError::Refused(format!("{text:?} is the beginning of several digests")))
            }
        }
    }

    /// # Errors
    /// A file that cannot be read or is torn.
    pub fn all_named(&self) -> Result<Vec<Named>, StoreError> {
        let files = names(&self.root.join("refs"))?;
        let read = |file: &String| self.read_named(file).transpose();
        files
            .iter()
            .filter(|f| f.ends_with(SUFFIX) && !f.starts_with('.'))
            .filter_map(read)
            .collect()
    }

    fn read_named(&self, file: &str) -> Result<Option<Named>, StoreError> {
        let path = self.path("refs", file);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            answer => answer.call(|| format!("read {}", path.display()))?,
        };
        let torn = |e| StoreError::Refused(format!("{}: {e}", path.display()));
        serde_json::from_slice(&bytes).map(Some).map_err(torn)
    }
}

impl Named {
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.target.digest
    }

    /// # Errors
    /// It is pinned.
    pub fn may_go(&self) -> Result<(), StoreError> {
        match self.pinned {
            true => Err(StoreError::Pinned(self.reference.clone())),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_the_names_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::at(folder.path().to_owned());
        let _guard = store.hold().expect("a store");
        let name: Reference = "box:1".parse().expect("a name");
        let target =
            |n| Blob { media_type: String::new(), digest: Digest::sha256([n; 32]), size: 1 };
        assert!(matches!(store.pin(&name, true), Err(StoreError::NoImage(..))));
        store.tag(&name, target(1), String::new()).expect("named");
        store.pin(&name, true).expect("pinned");
        assert!(store.untag(&name).expect_err("pinned").to_string().contains("hafen image unpin"));
        store.tag(&name, target(2), String::new()).expect("named");
        assert!(store.named(&name).expect("a name").pinned);
        store.pin(&name, false).expect("not pinned");
        assert!(store.untag(&name).expect("gone"));
    }

    #[test]
    fn records_from_before_pins_are_read() {
        let text = r#"{"reference":"x/y:1","target":{"mediaType":"m","digest":"DIGEST","size":1},"updated":"u"}"#;
        let digest = Digest::sha256([1; 32]).to_string();
        let named: Named =
            serde_json::from_str(&text.replace("DIGEST", &digest)).expect("a record");
        assert!(!named.pinned);
    }
}
