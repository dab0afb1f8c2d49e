//! What the agent must know of itself and its masters after a restart.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hafen_sys::file::{read_text, replace};
use hafen_sys::{CallError, Context};
use serde::{Deserialize, Serialize};

const FILE: &str = "link.json";
const FORMAT: u32 = 1;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Known {
    format: u32,
    /// Of this disk: two machines with one name are told apart by it.
    pub instance: String,
    /// Counts the starts of the agent.
    pub incarnation: u64,
    /// The greatest of a master that was seen.
    pub epoch: u64,
    pub draining: bool,
    /// That the last master has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Duration>,
    /// The name that came with the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// RFC 3339: another certificate is to be asked for then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_at: Option<String>,
}

/// Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    path: PathBuf,
    known: Arc<Mutex<Known>>,
}

impl Disk {
    /// Begin another incarnation: it is on the disk then.
    ///
    /// # Errors
    /// Names the file. One that cannot be read is not replaced: with another instance, or an earlier incarnation, a master
    /// takes this for another machine.
    pub(super) fn open(folder: &Path) -> Result<Self, CallError> {
        let path = folder.join(FILE);
        let named = || format!("read {}", path.display());
        let known = match fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Known::new()?,
            read => {
                let text = read.call(named)?;
                let known: Known =
                    serde_json::from_slice(&text).map_err(|e| CallError::new(named(), e.into()))?;
                if known.format != FORMAT {
                    let words = format!("format {} is not {FORMAT}", known.format);
                    return Err(CallError::new(named(), std::io::Error::other(words)));
                }
                known
            }
        };
        let disk = Self { path, known: Arc::new(Mutex::new(known)) };
        disk.change(|known| known.incarnation += 1)?;
        Ok(disk)
    }

    #[must_use]
    pub(super) fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It holds once it is on the disk.
    ///
    /// # Errors
    /// Names the file; nothing has changed then.
    pub(super) fn change(&self, change: impl FnOnce(&mut Known)) -> Result<(), CallError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = known.clone();
        change(&mut wanted);
        // A master says some things again on each stream.
        if wanted == *known {
            return Ok(());
        }
        let text = serde_json::to_vec(&wanted)
            .map_err(|e| CallError::new(format!("encode {}", self.path.display()), e.into()))?;
        replace(&self.path, &text, true)?;
        *known = wanted;
        Ok(())
    }
}

impl Known {
    fn new() -> Result<Self, CallError> {
        // 122 random bits of the kernel's (random(4)).
        let random = read_text(Path::new("/proc/sys/kernel/random/uuid"))?;
        Ok(Self {
            format: FORMAT,
            instance: random.trim().replace('-', ""),
            incarnation: 0,
            epoch: 0,
            draining: false,
            lease: None,
            node: None,
            renew_at: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_is_another_incarnation_of_the_same_instance() {
        let folder = tempfile::tempdir().unwrap();
        let first = Disk::open(folder.path()).unwrap();
        assert_eq!((first.known().instance.len(), first.known().incarnation), (32, 1));
        first.change(|known| (known.epoch, known.draining) = (7, true)).unwrap();
        let second = Disk::open(folder.path()).unwrap().known();
        assert_eq!(second, Known { incarnation: 2, ..first.known() });
        assert_eq!((second.epoch, second.draining), (7, true));
        assert_ne!(Known::new().unwrap().instance, second.instance);
    }

    #[test]
    fn only_a_change_is_written() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        // Each write is another file.
        let file = || fs::metadata(folder.path().join(FILE)).unwrap().ino();
        let before = file();
        disk.change(|known| known.draining = false).unwrap();
        assert_eq!(file(), before);
        disk.change(|known| known.draining = true).unwrap();
        assert_ne!(file(), before);
    }

    #[test]
    fn what_cannot_be_read_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(Disk::open(folder.path()).is_err());
        assert_eq!(fs::read(folder.path().join(FILE)).unwrap(), b"{");
    }
}
