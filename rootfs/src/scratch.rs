//! The folder that holds the upper layer of an overlay, and what bounds it.

use std::fs::{self, DirBuilder};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use hafen_sys::{CallError, Context, quota};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC,
    OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, statfs,
};

use crate::release::{open_folder, remove_tree};

const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC).union(OFlag::O_RDONLY);
/// Projects that people number themselves are small ones.
const OURS: u32 = 1 << 30;
/// More than containers are likely to have numbers one after the other.
const TRIES: u32 = 4096;

/// # Errors
/// EEXIST where the folder is there. Names the folder.
pub fn make(path: &Path) -> Result<(), CallError> {
    if let Some(parent) = path.parent() {
        let make = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        make.call(|| format!("mkdir {}", parent.display()))?;
    }
    fs::create_dir(path).call(|| format!("mkdir {}", path.display()))
}

/// # Errors
/// Names the folder, or the link to a layer.
pub fn fill(path: &Path, layers: &[PathBuf], owner: (u32, u32)) -> Result<(), CallError> {
    for folder in ["upper", "work", "merged"].map(|name| path.join(name)) {
        fs::create_dir(&folder).call(|| format!("mkdir {}", folder.display()))?;
    }
    give(&path.join("upper"), owner)?;
    for (i, layer) in layers.iter().enumerate() {
        let link = path.join(i.to_string());
        symlink(layer, &link).call(|| format!("symlink {}", link.display()))?;
    }
    Ok(())
}

/// The top of the upper layer is what the container sees as `/`.
///
/// # Errors
/// Names the folder.
pub fn give(folder: &Path, owner: (u32, u32)) -> Result<(), CallError> {
    if owner == (0, 0) {
        return Ok(());
    }
    std::os::unix::fs::chown(folder, Some(owner.0), Some(owner.1))
        .call(|| format!("chown {}", folder.display()))
}

/// Bound what a folder, which is still empty, and everything in it may take.
///
/// # Errors
/// Names the call and the folder.
pub fn limit(path: &Path, bytes: u64) -> Result<(), CallError> {
    let folder = open(path, FOLDER, Mode::empty()).call(|| format!("open {}", path.display()))?;
    let project = take_project(&folder).map_err(|e| about(e, path))?;
    quota::limit(&folder, project, bytes).map_err(|e| about(e, path))
}

/// Of two who take the same free number at once each sees the other's folder counted, and at least one goes on.
fn take_project(folder: &OwnedFd) -> Result<u32, CallError> {
    let inode = fstat(folder).call(|| "stat".to_owned())?.st_ino;
    for project in candidates(inode) {
        if quota::usage(folder, project)? != quota::Usage::default() {
            continue;
        }
        quota::set_project(folder, project)?;
        let usage = quota::usage(folder, project)?;
        if usage.files == 1 && !usage.limited {
            return Ok(project);
        }
    }
    Err(CallError::errno("find a free project number", Errno::EAGAIN))
}

fn candidates(inode: u64) -> impl Iterator<Item = u32> {
    let first = u32::try_from(inode & u64::from(OURS - 1)).unwrap_or_default();
    (0..TRIES).map(move |n| OURS | (first.wrapping_add(n) & (OURS - 1)))
}

/// Remove the folder with all in it, and before that its limit: by its number a limit is found again, and the number is
/// the folder's.
///
/// # Errors
/// Names what could not be removed.
pub fn remove(path: &Path) -> Result<(), CallError> {
    if let Some(folder) = open_folder(path)? {
        lift(&folder).map_err(|e| about(e, path))?;
    }
    remove_tree(path)
}

fn about(e: CallError, path: &Path) -> CallError {
    CallError::new(format!("{} for {}", e.call, path.display()), e.source)
}

/// One that it has inherited is somebody else's, with all its limits.
fn own_project(folder: &OwnedFd) -> Result<Option<u32>, CallError> {
    let Some(project) = quota::project(folder)? else { return Ok(None) };
    let above = openat(folder, "..", FOLDER, Mode::empty()).call(|| "open ..".to_owned())?;
    Ok((quota::project(above)? != Some(project)).then_some(project))
}

fn lift(folder: &OwnedFd) -> Result<(), CallError> {
    let Some(project) = own_project(folder)? else { return Ok(()) };
    match quota::limit(folder, project, 0) {
        // Mounted without quotas since.
        Err(e) if e.is(Errno::ESRCH) || e.is(Errno::ENOSYS) => Ok(()),
        answer => answer,
    }
}

/// Can a folder at this path be bounded? What is not there yet will be on the file system of what is above it.
///
/// # Errors
/// Names the folder.
pub fn can_limit(path: &Path) -> Result<bool, CallError> {
    let folder = existing(path);
    let opened = open(folder, FOLDER, Mode::empty());
    opened.call(|| format!("open {}", folder.display())).map(quota::is_enforced)
}

/// The nearest folder of a path that is there.
#[must_use]
pub fn existing(path: &Path) -> &Path {
    path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"))
}

/// The type of the file system of what is there, as mount(8) calls it; its number where it is a rare one.
///
/// # Errors
/// Names the path.
pub fn file_system(path: &Path) -> Result<String, CallError> {
    let kind = statfs(path).call(|| format!("statfs {}", path.display()))?.filesystem_type();
    let known = FILE_SYSTEMS.iter().find(|(magic, _)| *magic == kind);
    Ok(known.map_or_else(|| format!("{:#x}", kind.0), |(_, name)| (*name).to_owned()))
}

const FILE_SYSTEMS: [(FsType, &str); 7] = [
    (EXT4_SUPER_MAGIC, "ext4"),
    (XFS_SUPER_MAGIC, "xfs"),
    (BTRFS_SUPER_MAGIC, "btrfs"),
    (TMPFS_MAGIC, "tmpfs"),
    (OVERLAYFS_SUPER_MAGIC, "overlay"),
    (NFS_SUPER_MAGIC, "nfs"),
    (F2FS_SUPER_MAGIC, "f2fs"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_projects_are_none_of_other_peoples() {
        let all = |inode| candidates(inode).collect::<Vec<_>>();
        assert_eq!(all(2)[..2], [OURS + 2, OURS + 3]);
        assert!(all(u64::MAX).iter().all(|p| (OURS..2 * OURS).contains(p)));
        assert_eq!(all(u64::from(OURS - 1))[..2], [2 * OURS - 1, OURS]);
    }

    #[test]
    fn a_folder_without_a_project_is_filled_and_removed() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("a/b");
        make(&path).unwrap();
        assert!(make(&path).is_err_and(|e| e.is(Errno::EEXIST)));
        fill(&path, &["/x".into(), "/y".into()], (0, 0)).unwrap();
        assert_eq!(fs::read_link(path.join("1")).unwrap(), Path::new("/y"));
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
        assert_eq!(existing(&path), above.path().join("a"));
    }
}
