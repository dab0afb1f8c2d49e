//! Giving folders back.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use hafen_sys::{CallError, Context};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

const FOLDER: OFlag =
    OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_RDONLY);

/// Remove a folder with all below it; a missing one is removed already. Never follows a symlink and
/// never crosses into another file system: something mounted inside is an error, and stays.
///
/// # Errors
/// Names the first entry that could not be removed.
pub fn remove_tree(path: &Path) -> Result<(), CallError> {
    let folder = match open(path, FOLDER, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        answer => answer.call(|| format!("open {}", path.display()))?,
    };
    let device = fstat(&folder).call(|| format!("stat {}", path.display()))?.st_dev;
    empty(folder, device, path)?;
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        answer => answer.call(|| format!("rmdir {}", path.display())),
    }
}

fn empty(folder: OwnedFd, device: u64, path: &Path) -> Result<(), CallError> {
    let mut entries = Dir::from_fd(folder).call(|| format!("read folder {}", path.display()))?;
    let handle = entries.as_fd().try_clone_to_owned().call(|| format!("dup {}", path.display()))?;
    for entry in entries.iter() {
        let entry = entry.call(|| format!("read folder {}", path.display()))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        remove_entry(&handle, name, entry.file_type(), device, path)?;
    }
    Ok(())
}

fn remove_entry(
    folder: &OwnedFd,
    name: &CStr,
    kind: Option<Type>,
    device: u64,
    path: &Path,
) -> Result<(), CallError> {
    let full = || path.join(name.to_string_lossy().as_ref());
    let is_folder = match kind {
        Some(kind) => kind == Type::Directory,
        None => {
            let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW);
            stat.call(|| format!("stat {}", full().display()))?.st_mode & SFlag::S_IFMT.bits()
                == SFlag::S_IFDIR.bits()
        }
    };
    if !is_folder {
        return unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)
            .call(|| format!("unlink {}", full().display()));
    }
    let inner = openat(folder, name, FOLDER, Mode::empty())
        .call(|| format!("open {}", full().display()))?;
    if fstat(&inner).call(|| format!("stat {}", full().display()))?.st_dev != device {
        return Err(CallError::errno(
            format!("remove {}: something is mounted there", full().display()),
            Errno::EBUSY,
        ));
    }
    empty(inner, device, &full())?;
    unlinkat(folder, name, UnlinkatFlags::RemoveDir).call(|| format!("rmdir {}", full().display()))
}
