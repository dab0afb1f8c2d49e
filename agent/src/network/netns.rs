//! Namespaces that last without a process: each is bound to a file (namespaces(7), "Namespace lifetime").
//!
//! A thread of its own makes or enters one and ends with it: nothing is forked, and no other thread notices.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use hafen_isolator::network::bring_up;
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::sys::statfs::{NSFS_MAGIC, statfs};

/// What tasks of a pod can share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Interfaces, routes, rules and ports.
    Network,
    /// System V objects and message queues.
    Ipc,
}

impl Kind {
    fn flag(self) -> CloneFlags {
        match self {
            Self::Network => CloneFlags::CLONE_NEWNET,
            Self::Ipc => CloneFlags::CLONE_NEWIPC,
        }
    }

    fn own(self) -> &'static Path {
        Path::new(match self {
            Self::Network => "/proc/thread-self/ns/net",
            Self::Ipc => "/proc/thread-self/ns/ipc",
        })
    }
}

/// Make a namespace and bind it to `path`, which must not exist yet. A new network has its loopback up.
///
/// # Errors
/// Names the call; nothing is left at `path` then.
pub fn create(kind: Kind, path: &Path) -> Result<(), CallError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
        .call(|| format!("create {}", path.display()))?;
    let made = on_a_thread(|| make(kind, path));
    if made.is_err() {
        // The first failure is the one to tell.
        let _ = remove(path);
    }
    made
}

fn make(kind: Kind, path: &Path) -> Result<(), CallError> {
    unshare(kind.flag()).call(|| format!("unshare({:?})", kind.flag()))?;
    if kind == Kind::Network {
        bring_up("lo")?;
    }
    mount(Some(kind.own()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .call(|| format!("bind {} to {}", kind.own().display(), path.display()))
}

/// Let go of a namespace: it ends with the last process in it. One that is gone is removed already.
///
/// # Errors
/// Names the call.
pub fn remove(path: &Path) -> Result<(), CallError> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Something may be bound over it.
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(e) => return Err(CallError::errno(format!("unmount {}", path.display()), e)),
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer.call(|| format!("unlink {}", path.display())),
    }
}

/// Whether a namespace is bound to this file.
#[must_use]
pub fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

/// Call something within the network namespace at `path`, which may also be `/proc/PID/ns/net`. Blocks.
///
/// # Errors
/// Names the call; the closure was not called then.
pub fn inside<T: Send>(path: &Path, act: impl FnOnce() -> T + Send) -> Result<T, CallError> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let namespace = open(path, flags, Mode::empty()).call(|| format!("open {}", path.display()))?;
    on_a_thread(|| {
        setns(&namespace, CloneFlags::CLONE_NEWNET)
            .call(|| format!("setns({})", path.display()))?;
        Ok(act())
    })
}

fn on_a_thread<T: Send>(act: impl FnOnce() -> Result<T, CallError> + Send) -> Result<T, CallError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("namespace".to_owned())
            .spawn_scoped(scope, act)
            .call(|| "start a thread".to_owned())?;
        match thread.join() {
            Ok(answer) => answer,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_namespace_is_removed_already() {
        let folder = tempfile::tempdir().unwrap();
        remove(&folder.path().join("none")).unwrap();
        assert!(!is_pinned(&folder.path().join("none")));
        let error = inside(&folder.path().join("none"), || ()).unwrap_err();
        assert!(error.to_string().starts_with("open "), "{error}");
    }

    #[test]
    fn what_is_there_is_not_overwritten() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "mine").unwrap();
        let error = create(Kind::Network, file.path()).unwrap_err();
        assert!(error.is(Errno::EEXIST), "{error}");
        assert_eq!(fs::read(file.path()).unwrap(), b"mine");
    }
}
