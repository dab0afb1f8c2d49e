//! The socket in the file system: one agent at a time, and only those come in who may.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hafen_sys::{CallError, Context};
use nix::fcntl::Flock;
use tokio::net::UnixListener;

/// A socket that we listen on. Dropped, its file is gone.
#[derive(Debug)]
pub struct Door {
    pub listener: UnixListener,
    path: PathBuf,
    /// Held for as long as we listen: the kernel lets it go when we die, however we do.
    _lock: Flock<fs::File>,
}

#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}: a program of ours listens there already: stop it first, or choose another place")]
    Taken(PathBuf),
    #[error("{0} is there, and is no socket: remove it, or choose another place")]
    Other(PathBuf),
}

impl Door {
    /// Listen, in place of an agent that is dead; within a runtime of tokio.
    ///
    /// # Errors
    /// An agent that lives, or the call that failed.
    pub fn open(path: &Path, group: Option<u32>) -> Result<Self, DoorError> {
        const OF_GROUP: u32 = 0o660;
        const OF_OWNER: u32 = 0o600;
        if let Some(folder) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o711).create(folder);
            made.call(|| format!("mkdir {}", folder.display()))?;
        }
        let lock = lock(path)?;
        clear(path)?;
        // Nobody comes in between bind and chmod: it is another name until it is as it must be.
        let draft = draft(path);
        clear(&draft)?;
        let listener = UnixListener::bind(&draft).call(|| format!("bind {}", draft.display()))?;
        if let Some(gid) = group {
            let given = std::os::unix::fs::chown(&draft, None, Some(gid));
            given.call(|| format!("chown {} to group {gid}", draft.display()))?;
        }
        let mode = if group.is_some() { OF_GROUP } else { OF_OWNER };
        fs::set_permissions(&draft, fs::Permissions::from_mode(mode))
            .call(|| format!("chmod {}", draft.display()))?;
        fs::rename(&draft, path)
            .call(|| format!("rename {} to {}", draft.display(), path.display()))?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Whoever comes next clears it as well.
        let _ = fs::remove_file(&self.path);
    }
}

/// Ours alone, and short: the address of a socket has 107 bytes.
fn draft(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}", std::process::id()))
}

fn lock(socket: &Path) -> Result<Flock<fs::File>, DoorError> {
    let mut name = socket.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let taken = crate::lock::take(&socket.with_file_name(name))?;
    taken.ok_or_else(|| DoorError::Taken(socket.to_owned()))
}

fn clear(path: &Path) -> Result<(), DoorError> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.file_type().is_socket() => {
            Ok(fs::remove_file(path).call(|| format!("remove {}", path.display()))?)
        }
        Ok(_) => Err(DoorError::Other(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(CallError::new(format!("stat {}", path.display()), e).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_and_a_live_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        let door = Door::open(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Door::open(&path, None), Err(DoorError::Taken(_))));
        drop(door);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Door::open(&path, None), Err(DoorError::Other(_))));
    }
}
