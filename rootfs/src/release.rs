//! Giving folders back.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use hafen_sys::file::{OpenHow, open_how, resolve};
use hafen_sys::{CallError, Context};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

const FOLDER: OFlag =
    OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_RDONLY);
const PARENT: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC).union(OFlag::O_PATH);

/// Remove a folder with all below it; a missing one is removed already. Never follows a symlink and
/// never crosses a mount point, whatever is mounted there: that is an error, and stays.
///
/// # Errors
/// Names the first entry that could not be removed.
pub fn remove_tree(path: &Path) -> Result<(), CallError> {
    let Some(folder) = open_folder(path)? else { return Ok(()) };
    empty(folder, path)?;
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        answer => answer.call(|| format!("rmdir {}", path.display())),
    }
}

/// A folder that is no mount point; `None` where there is none.
pub(crate) fn open_folder(path: &Path) -> Result<Option<OwnedFd>, CallError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(CallError::errno(format!("remove {}", path.display()), Errno::EINVAL));
    };
    let opened = open(parent, PARENT, Mode::empty())
        .call(|| format!("open {}", parent.display()))
        .and_then(|parent| enter(&parent, Path::new(name), path));
    match opened {
        Err(e) if e.is(Errno::ENOENT) => Ok(None),
        answer => answer.map(Some),
    }
}

/// A bind mount of the same file system has the same device number, so only the kernel can tell (RESOLVE_NO_XDEV).
fn enter(parent: &OwnedFd, name: &Path, path: &Path) -> Result<OwnedFd, CallError> {
    let flags = u64::from(FOLDER.bits().cast_unsigned());
    let how = OpenHow { flags, mode: 0, resolve: resolve::NO_XDEV };
    match open_how(parent, name, how) {
        Err(e) if e.is(Errno::EXDEV) => Err(CallError::errno(
            format!("remove {}: something is mounted there", path.display()),
            Errno::EBUSY,
        )),
        Err(e) => Err(CallError::new(format!("open {}", path.display()), e.source)),
        answer => answer,
    }
}

fn empty(folder: OwnedFd, path: &Path) -> Result<(), CallError> {
    let mut entries = Dir::from_fd(folder).call(|| format!("read folder {}", path.display()))?;
    let handle = entries.as_fd().try_clone_to_owned().call(|| format!("dup {}", path.display()))?;
    for entry in entries.iter() {
        let entry = entry.call(|| format!("read folder {}", path.display()))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        remove_entry(&handle, name, entry.file_type(), path)?;
    }
    Ok(())
}

fn remove_entry(
    folder: &OwnedFd,
    name: &CStr,
    kind: Option<Type>,
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
    let inner = enter(folder, Path::new(OsStr::from_bytes(name.to_bytes())), &full())?;
    empty(inner, &full())?;
    unlinkat(folder, name, UnlinkatFlags::RemoveDir).call(|| format!("rmdir {}", full().display()))
}
