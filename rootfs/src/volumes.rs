//! Named volumes: folders that outlive the containers that use them.
//!
//! | path | holds | comes about |
//! |---|---|---|
//! | `named/NAME/data` | what containers see | in `tmp`, with its first content, then renamed |
//! | `named/NAME/volume.json` | when it was made | with it |
//! | `uses/KEY.json` | the volumes of a container | before the container, removed with it |
//! | `tmp/` | what is being made or removed | emptied by whoever removes |
//! | `lock` | shared for all who make or use, exclusive for who removes | |

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use hafen_sys::file::{replace, sync_folder};
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, open, renameat2};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::release::remove_tree;
use crate::store::{Guard, key, lock, names, notes};

/// Where the volumes of this machine are.
pub const DEFAULT_ROOT: &str = "/var/lib/hafen/volumes";

/// A folder with volumes.
#[derive(Debug, Clone)]
pub struct Volumes {
    root: PathBuf,
}

/// A volume, as a person is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    pub name: String,
    /// RFC 3339.
    pub created: String,
    pub path: PathBuf,
    /// State folders of containers.
    pub used_by: Vec<PathBuf>,
}

/// The volumes of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeUse {
    /// No container outlives a reboot.
    pub boot_id: String,
    pub container: PathBuf,
    pub volumes: Vec<String>,
}

/// `volume.json`.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    created: String,
}

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("there is no volume {0:?}: make it with \"hafen volume create {0}\"")]
    Unknown(String),
    #[error("volume {name:?} is in use by {container}")]
    Used { name: String, container: String },
    #[error(
        "{0:?} is no name of a volume: letters, digits, '_', '.' and '-', at most 128, the first a letter or a digit"
    )]
    Name(String),
}

/// # Errors
/// [`VolumeError::Name`].
pub fn valid_name(name: &str) -> Result<(), VolumeError> {
    const LONGEST: usize = 128;
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.len() <= LONGEST && name.bytes().all(inner) {
        return Ok(());
    }
    Err(VolumeError::Name(name.to_owned()))
}

impl Volumes {
    #[must_use]
    pub const fn at(root: PathBuf) -> Self {
        Self { root }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What containers see of a volume.
    #[must_use]
    pub fn data(&self, name: &str) -> PathBuf {
        self.named(name).join("data")
    }

    fn named(&self, name: &str) -> PathBuf {
        self.root.join("named").join(name)
    }

    /// Where the use by a container is written down, under the guard under which its volumes were found.
    #[must_use]
    pub fn use_path(&self, container: &Path) -> PathBuf {
        self.root.join("uses").join(format!("{}.json", key(container)))
    }

    /// Make what is missing, and hold it: no volume is removed while the guard lives.
    ///
    /// # Errors
    /// Names the folder or the file.
    pub fn hold(&self) -> Result<Guard, CallError> {
        self.folders()?;
        lock::shared(&self.root)
    }

    fn folders(&self) -> Result<(), CallError> {
        ["named", "uses", "tmp"].iter().try_for_each(|folder| {
            let path = self.root.join(folder);
            let made = DirBuilder::new().recursive(true).mode(0o711).create(&path);
            made.call(|| format!("mkdir {}", path.display()))
        })
    }

    /// Make a volume and have `fill` give it its first content. `false`: it is there already, and keeps what it has.
    ///
    /// # Errors
    /// Of the name, of the file system, or of `fill`; there is no volume then.
    pub fn create(
        &self,
        name: &str,
        created: &str,
        fill: impl FnOnce(&OwnedFd) -> Result<(), CallError>,
    ) -> Result<bool, VolumeError> {
        valid_name(name)?;
        let _guard = self.hold()?;
        if self.named(name).exists() {
            return Ok(false);
        }
        let draft = self.root.join("tmp").join(format!("{name}.{}", std::process::id()));
        let made = self.draft(&draft, created, fill).and_then(|()| self.publish(&draft, name));
        if !matches!(made, Ok(true)) {
            remove_tree(&draft)?;
        }
        Ok(made?)
    }

    fn draft(
        &self,
        draft: &Path,
        created: &str,
        fill: impl FnOnce(&OwnedFd) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        // Of a process that had our number and died.
        remove_tree(draft)?;
        let data = draft.join("data");
        for (path, mode) in [(draft, 0o711), (data.as_path(), 0o755)] {
            let made = DirBuilder::new().mode(mode).create(path);
            made.call(|| format!("mkdir {}", path.display()))?;
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = open(&data, flags, Mode::empty()).call(|| format!("open {}", data.display()));
        fill(&folder?)?;
        let about = About { created: created.to_owned() };
        let text = serde_json::to_vec(&about).map_err(io::Error::from);
        let path = draft.join("volume.json");
        replace(&path, &text.call(|| format!("write {}", path.display()))?, true)
    }

    fn publish(&self, draft: &Path, name: &str) -> Result<bool, CallError> {
        let place = self.named(name);
        match renameat2(AT_FDCWD, draft, AT_FDCWD, &place, RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EEXIST) => return Ok(false),
            answer => answer.call(|| format!("rename to {}", place.display()))?,
        }
        sync_folder(&self.root.join("named"))?;
        Ok(true)
    }

    /// By name.
    ///
    /// # Errors
    /// Names the file.
    pub fn list(&self, boot_id: &str) -> Result<Vec<Volume>, VolumeError> {
        let uses = self.uses(boot_id)?;
        names(&self.root.join("named"))?.into_iter().map(|name| self.about(name, &uses)).collect()
    }

    /// # Errors
    /// [`VolumeError::Unknown`].
    pub fn find(&self, name: &str, boot_id: &str) -> Result<Volume, VolumeError> {
        valid_name(name)?;
        if !self.named(name).exists() {
            return Err(VolumeError::Unknown(name.to_owned()));
        }
        self.about(name.to_owned(), &self.uses(boot_id)?)
    }

    fn about(&self, name: String, uses: &[VolumeUse]) -> Result<Volume, VolumeError> {
        let path = self.named(&name).join("volume.json");
        let text = fs::read(&path).call(|| format!("read {}", path.display()))?;
        let about: About = serde_json::from_slice(&text)
            .map_err(io::Error::from)
            .call(|| format!("read {}", path.display()))?;
        let used_by =
            uses.iter().filter(|u| u.volumes.contains(&name)).map(|u| u.container.clone());
        Ok(Volume {
            created: about.created,
            path: self.data(&name),
            used_by: used_by.collect(),
            name,
        })
    }

    fn uses(&self, boot_id: &str) -> Result<Vec<VolumeUse>, CallError> {
        notes(&self.root.join("uses"), |usage: &VolumeUse| usage.boot_id == boot_id)
    }

    /// Remove a volume with all that is in it, never through a mount point.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`], [`VolumeError::Used`]; names what could not be removed.
    pub fn remove(&self, name: &str, boot_id: &str) -> Result<(), VolumeError> {
        self.folders()?;
        let _guard = lock::exclusive(&self.root)?;
        self.remove_held(&self.find(name, boot_id)?)?;
        self.empty_workshop()
    }

    /// Remove all that no container uses; their names.
    ///
    /// # Errors
    /// Names what could not be removed.
    pub fn prune(&self, boot_id: &str) -> Result<Vec<String>, VolumeError> {
        self.folders()?;
        let _guard = lock::exclusive(&self.root)?;
        let mut removed = Vec::new();
        for volume in self.list(boot_id)?.into_iter().filter(|v| v.used_by.is_empty()) {
            self.remove_held(&volume)?;
            removed.push(volume.name);
        }
        self.empty_workshop()?;
        Ok(removed)
    }

    /// Out of the way first, so that it is there as a whole or not at all.
    fn remove_held(&self, volume: &Volume) -> Result<(), VolumeError> {
        let name = volume.name.clone();
        if let Some(container) = volume.used_by.first() {
            return Err(VolumeError::Used { name, container: container.display().to_string() });
        }
        let (place, away) =
            (self.named(&name), self.root.join("tmp").join(format!("{name}.removed")));
        remove_tree(&away)?;
        fs::rename(&place, &away).call(|| format!("rename {}", place.display()))?;
        sync_folder(&self.root.join("named"))?;
        Ok(())
    }

    /// Nobody makes anything: the lock is held alone.
    fn empty_workshop(&self) -> Result<(), VolumeError> {
        let folder = self.root.join("tmp");
        names(&folder)?.iter().try_for_each(|name| remove_tree(&folder.join(name)))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "a boot";

    fn volumes() -> (tempfile::TempDir, Volumes) {
        let place = tempfile::tempdir().unwrap();
        let volumes = Volumes::at(place.path().join("volumes"));
        (place, volumes)
    }

    fn write(volumes: &Volumes, container: &str, names: &[&str], boot: &str) {
        let usage = VolumeUse {
            boot_id: boot.to_owned(),
            container: container.into(),
            volumes: names.iter().map(|n| (*n).to_owned()).collect(),
        };
        let text = serde_json::to_vec(&usage).unwrap();
        fs::write(volumes.use_path(Path::new(container)), text).unwrap();
    }

    #[test]
    fn names_are_plain() {
        for good in ["a", "data", "my-data_1.x", "0"] {
            assert!(valid_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "ä", &"a".repeat(129)] {
            assert!(valid_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_used_stays() {
        let (_place, volumes) = volumes();
        for name in ["one", "two", "three"] {
            assert!(volumes.create(name, "now", |_| Ok(())).unwrap());
        }
        write(&volumes, "/run/x", &["two"], BOOT);
        write(&volumes, "/run/y", &["three"], "an earlier boot");
        assert!(matches!(volumes.remove("two", BOOT), Err(VolumeError::Used { .. })));
        volumes.remove("one", BOOT).unwrap();
        assert!(matches!(volumes.remove("one", BOOT), Err(VolumeError::Unknown(_))));
        assert_eq!(volumes.prune(BOOT).unwrap(), ["three"]);
        let left: Vec<String> =
            volumes.list(BOOT).unwrap().into_iter().map(|volume| volume.name).collect();
        assert_eq!(left, ["two"]);
    }

    #[test]
    fn a_volume_is_filled_once_or_not_made() {
        let (_place, volumes) = volumes();
        let fails = |_: &OwnedFd| Err(CallError::errno("fill", Errno::ENOSPC));
        assert!(volumes.create("data", "now", fails).is_err());
        assert!(volumes.list(BOOT).unwrap().is_empty());
        let file = |name: &'static str| {
            move |folder: &OwnedFd| {
                let flags = OFlag::O_CREAT | OFlag::O_CLOEXEC;
                nix::fcntl::openat(folder, name, flags, Mode::S_IRUSR).call(String::new).map(drop)
            }
        };
        assert!(volumes.create("data", "now", file("first")).unwrap());
        assert!(!volumes.create("data", "later", file("second")).unwrap());
        assert!(volumes.data("data").join("first").exists());
        assert!(!volumes.data("data").join("second").exists());
        assert_eq!(names(&volumes.root.join("tmp")).unwrap(), [""; 0]);
    }
}
