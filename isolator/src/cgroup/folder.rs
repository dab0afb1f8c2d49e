use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use hafen_sys::{CallError, Context};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{self, OFlag};
use nix::sys::stat::{self, Mode};
use nix::unistd;

/// An open cgroup folder: its files are reached without walking the path again, and never those of another folder
/// that has taken its name.
#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    pub(super) path: PathBuf,
}

const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);
const NEW_FOLDER: Mode = Mode::from_bits_truncate(0o755);

impl Folder {
    pub(super) fn open(path: &Path) -> nix::Result<Self> {
        let fd = fcntl::open(path, FOLDER | OFlag::O_PATH, Mode::empty())?;
        Ok(Self { fd, path: path.to_owned() })
    }

    pub(super) fn enter(&self, name: &Path) -> nix::Result<Self> {
        let fd = fcntl::openat(&self.fd, name, FOLDER | OFlag::O_PATH, Mode::empty())?;
        Ok(Self { fd, path: self.path.join(name) })
    }

    pub(super) fn make(&self, name: &Path) -> nix::Result<()> {
        stat::mkdirat(&self.fd, name, NEW_FOLDER)
    }

    /// A file that fits into one read.
    pub(super) fn read(&self, file: &str) -> nix::Result<String> {
        let fd = fcntl::openat(&self.fd, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut bytes = [0; 4096];
        let length = unistd::read(&fd, &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), CallError> {
        let write = || {
            let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let fd = fcntl::openat(&self.fd, file, flags, Mode::empty())?;
            unistd::write(&fd, value.as_bytes())
        };
        write().call(|| format!("write {value:?} to {}", self.path.join(file).display()))?;
        Ok(())
    }

    /// The pids of `cgroup.procs`, however many.
    pub(super) fn pids(fd: BorrowedFd<'_>) -> nix::Result<Vec<i32>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = fcntl::openat(fd, "cgroup.procs", flags, Mode::empty())?;
        let text = read_whole(&fd)?;
        let pids =
            text.split(|b| *b == b'\n').filter_map(|l| std::str::from_utf8(l).ok()?.parse().ok());
        // A process outside of our pid namespace is listed as 0.
        Ok(pids.filter(|pid| *pid > 0).collect())
    }
}

/// A file of any length, with as few calls as the kernel's own buffer allows.
pub(super) fn read_whole(fd: impl AsFd) -> nix::Result<Vec<u8>> {
    let (mut text, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        match unistd::read(&fd, &mut bytes)? {
            0 => return Ok(text),
            length => text.extend_from_slice(&bytes[..length]),
        }
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What [`walk`] comes by.
#[derive(Debug)]
pub(super) enum Visit<'a> {
    /// In a folder, before those below it.
    Inside(BorrowedFd<'a>),
    /// Back in a folder, after everything below `name` in it.
    Left { parent: BorrowedFd<'a>, name: &'a CStr },
}

/// Visit a folder and all below it. Goes from folder to folder by descriptor, because a container can nest cgroups
/// deeper than any path reaches; needs no more than two descriptors and no recursion for that.
pub(super) fn walk(
    top: &Path,
    mut visit: impl FnMut(Visit<'_>) -> nix::Result<()>,
) -> nix::Result<()> {
    let mut here = fcntl::open(top, FOLDER, Mode::empty())?;
    visit(Visit::Inside(here.as_fd()))?;
    let mut pending = vec![below(&here)?];
    let mut trail: Vec<CString> = Vec::new();
    loop {
        if let Some(name) = pending.last_mut().and_then(Vec::pop) {
            match fcntl::openat(&here, name.as_c_str(), FOLDER, Mode::empty()) {
                Ok(fd) => here = fd,
                Err(Errno::ENOENT) => continue,
                Err(e) => return Err(e),
            }
            visit(Visit::Inside(here.as_fd()))?;
            pending.push(below(&here)?);
            trail.push(name);
        } else {
            pending.pop();
            let Some(name) = trail.pop() else { return Ok(()) };
            here = fcntl::openat(&here, "..", FOLDER, Mode::empty())?;
            visit(Visit::Left { parent: here.as_fd(), name: &name })?;
        }
    }
}

/// Names of the folders in a folder.
fn below(folder: &OwnedFd) -> nix::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::openat(folder, ".", FOLDER, Mode::empty())? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == Some(Type::Directory) && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
