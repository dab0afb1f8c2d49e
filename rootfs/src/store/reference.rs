use std::fs;
use std::io;

use hafen_spec::image::{Blob, Digest, Reference};
use hafen_sys::file::{replace, sync_folder};
use hafen_sys::{CallError, Context};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, names};

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
}

const SUFFIX: &str = ".json";

/// `%` is in no reference.
fn file_name(reference: &Reference) -> String {
    reference.to_string().replace('/', "%") + SUFFIX
}

impl Store {
    /// Give a manifest a name, or another manifest a name that there is.
    ///
    /// # Errors
    /// Names the file; the name means what it meant then.
    pub fn tag(
        &self,
        reference: &Reference,
        target: Blob,
        updated: String,
    ) -> Result<(), StoreError> {
        let named = Named { reference: reference.to_string(), target, updated };
        let text = serde_json::to_vec_pretty(&named)
            .map_err(|e| StoreError::Refused(format!("{reference}: {e}")))?;
        Ok(replace(&self.path("refs", &file_name(reference)), &text, true)?)
    }

    /// `false`: there was no such name.
    ///
    /// # Errors
    /// Names the file.
    pub fn untag(&self, reference: &Reference) -> Result<bool, CallError> {
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
}
