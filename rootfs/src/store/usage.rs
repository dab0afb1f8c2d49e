use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hafen_spec::image::Digest;
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, names};

/// A container that stands on layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Use {
    /// No container outlives a reboot.
    pub boot_id: String,
    /// The folder of its state, which is its name on this machine.
    pub container: PathBuf,
    /// As it was asked for.
    pub image: String,
    /// Chain ids.
    pub layers: Vec<Digest>,
    /// Of the manifest.
    pub digest: Digest,
}

impl Store {
    /// Where the use of a container is written down, before it exists and under the guard under which its layers were
    /// found.
    #[must_use]
    pub fn use_path(&self, container: &Path) -> PathBuf {
        self.path("uses", &format!("{}.json", key(container)))
    }

    /// Of this boot, whose container has not been released.
    ///
    /// # Errors
    /// Names the file.
    pub fn uses(&self, boot_id: &str) -> Result<Vec<Use>, StoreError> {
        Ok(notes(&self.root.join("uses"), |usage: &Use| usage.boot_id == boot_id)?)
    }

    /// The container that stands on a layer, if one does.
    pub(super) fn user_of(
        &self,
        chain: &Digest,
        boot_id: &str,
    ) -> Result<Option<PathBuf>, StoreError> {
        let uses = self.uses(boot_id)?;
        let user = uses.into_iter().find(|usage| usage.layers.contains(chain));
        Ok(user.map(|usage| usage.container))
    }
}

/// A container takes the image of this name: the record's time says so, in one call.
///
/// # Errors
/// Names the file; a name that is gone needs no time.
pub fn taken(name: &Path) -> Result<(), CallError> {
    let now = &TimeSpec::UTIME_NOW;
    match utimensat(AT_FDCWD, name, now, now, UtimensatFlags::NoFollowSymlink) {
        Err(Errno::ENOENT) => Ok(()),
        answer => answer.call(|| format!("utimensat {}", name.display())),
    }
}

/// What containers have written down in a folder, as far as it counts in this boot; the rest is forgotten: of an earlier
/// boot, or torn by its end.
pub(crate) fn notes<T: DeserializeOwned>(
    folder: &Path,
    counts: impl Fn(&T) -> bool,
) -> Result<Vec<T>, CallError> {
    let mut all = Vec::new();
    for name in names(folder)?.iter().filter(|name| !name.starts_with('.')) {
        let path = folder.join(name);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            answer => answer.call(|| format!("read {}", path.display()))?,
        };
        match serde_json::from_slice(&bytes) {
            Ok(note) if counts(&note) => all.push(note),
            _ => forget(&path)?,
        }
    }
    Ok(all)
}

/// The name of a container in the store.
pub(crate) fn key(container: &Path) -> String {
    container
        .to_string_lossy()
        .trim_start_matches('/')
        .chars()
        .map(|c| if c == '/' { '%' } else { c })
        .collect()
}

/// What a container's end takes away; it may be gone already.
///
/// # Errors
/// Names the file.
pub fn forget(path: &Path) -> Result<(), CallError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer.call(|| format!("unlink {}", path.display())),
    }
}
