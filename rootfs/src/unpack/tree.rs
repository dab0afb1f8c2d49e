//! Files below one folder, by descriptor and name: no symlink is followed, nothing outside is reached.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use hafen_sys::file::{OpenHow, open_how, resolve};
use hafen_sys::{CallError, Context};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstatat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, unlinkat};
use rustix::fs::XattrFlags;

pub(crate) const FOLDER: OFlag =
    OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const OPAQUE: &str = "trusted.overlay.opaque";

/// XATTR_SIZE_MAX and XATTR_LIST_MAX.
pub(crate) const LARGEST_ATTRIBUTE: usize = 65536;

/// A folder that may be opened again and again, since most entries stand in the folder of the one before them.
pub(crate) struct Tree<'a> {
    pub(crate) top: &'a OwnedFd,
    last: Option<(PathBuf, Rc<OwnedFd>)>,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(top: &'a OwnedFd) -> Self {
        Self { top, last: None }
    }

    /// The folder at `path`, the empty path for the top.
    pub(crate) fn open(&self, path: &Path, access: OFlag) -> Result<OwnedFd, CallError> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow {
            flags: u64::from((FOLDER | access).bits().cast_unsigned()),
            mode: 0,
            resolve: resolve::BENEATH | resolve::NO_SYMLINKS,
        };
        open_how(self.top, path, how)
    }

    /// The folder at `path`, to work in more than once.
    pub(crate) fn enter(&mut self, path: &Path) -> Result<Rc<OwnedFd>, CallError> {
        let folder = self.visit(path)?;
        if !self.is_last(path) {
            self.last = Some((path.to_owned(), folder.clone()));
        }
        Ok(folder)
    }

    /// The folder at `path`, in between.
    pub(crate) fn visit(&self, path: &Path) -> Result<Rc<OwnedFd>, CallError> {
        match &self.last {
            Some((_, folder)) if self.is_last(path) => Ok(folder.clone()),
            _ => Ok(Rc::new(self.open(path, OFlag::O_PATH)?)),
        }
    }

    /// Both are normal, so bytes can be compared.
    fn is_last(&self, path: &Path) -> bool {
        self.last.as_ref().is_some_and(|(last, _)| last.as_os_str() == path.as_os_str())
    }

    /// A folder may be gone.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }
}

pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

pub(crate) fn name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(OsStr::new("."))
}

/// What is there, if anything is.
pub(crate) fn stat(folder: impl AsFd, name: &OsStr) -> nix::Result<Option<FileStat>> {
    match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => Ok(None),
        answer => answer.map(Some),
    }
}

pub(crate) fn format(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Overlay's mark for a name that the layers below may have and the merged folder has not.
pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    format(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

pub(crate) fn make_whiteout(folder: impl AsFd, name: &OsStr) -> nix::Result<()> {
    mknodat(folder, name, SFlag::S_IFCHR, Mode::empty(), 0)
}

/// Nobody else can enter it before it is described.
pub(crate) fn make_folder(folder: impl AsFd, name: &OsStr) -> nix::Result<()> {
    mkdirat(folder, name, Mode::S_IRWXU)
}

/// A name for the calls on extended attributes, which took no folder before Linux 6.13. A program's first thread may
/// be gone, and `/proc/self` with it.
pub(crate) fn by_descriptor(folder: impl AsFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/thread-self/fd").join(folder.as_fd().as_raw_fd().to_string()).join(name)
}

/// Overlay's mark for a folder of which the layers below show nothing.
pub(crate) fn is_opaque(folder: impl AsFd) -> io::Result<bool> {
    let mut value = [0; 8];
    match rustix::fs::fgetxattr(folder, OPAQUE, &mut value) {
        Ok(size) => Ok(&value[..size] == b"y"),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

pub(crate) fn make_opaque(folder: impl AsFd, name: &OsStr) -> nix::Result<()> {
    set_attribute(&by_descriptor(folder, name), OPAQUE.as_bytes(), b"y")
}

pub(crate) fn set_attribute(path: &Path, name: &[u8], value: &[u8]) -> nix::Result<()> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).map_err(errno)
}

pub(crate) fn attribute_names(path: &Path) -> io::Result<Vec<CString>> {
    let mut list = vec![0; LARGEST_ATTRIBUTE];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        answer => answer?,
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(CString::new).collect::<Result<_, _>>()?)
}

pub(crate) fn errno(e: rustix::io::Errno) -> Errno {
    Errno::from_raw(e.raw_os_error())
}

/// Owner first: changing it takes set-id bits away. An owner of `None` is right already.
pub(crate) fn describe(
    file: impl AsFd,
    owner: Option<(u32, u32)>,
    mode: u32,
    time: Option<&TimeSpec>,
) -> nix::Result<()> {
    if let Some((uid, gid)) = owner {
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    fchmod(&file, Mode::from_bits_truncate(mode))?;
    time.map_or(Ok(()), |time| futimens(&file, time, time))
}

/// The owner of what cannot be opened, and for anything but a symlink its mode.
pub(crate) fn describe_by_name(
    folder: impl AsFd,
    name: &OsStr,
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
) -> nix::Result<()> {
    use nix::sys::stat::{FchmodatFlags, fchmodat};
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        fchownat(&folder, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    // Just made, and of no kind that is followed.
    mode.map_or(Ok(()), |mode| {
        let mode = Mode::from_bits_truncate(mode);
        fchmodat(&folder, name, mode, FchmodatFlags::FollowSymlink)
    })
}

pub(crate) fn date_by_name(folder: impl AsFd, name: &OsStr, time: &TimeSpec) -> nix::Result<()> {
    utimensat(folder, name, time, time, UtimensatFlags::NoFollowSymlink)
}

/// Remove a folder and all in it.
///
/// # Errors
/// Names the folder.
pub(crate) fn remove_folder(folder: &OwnedFd, path: &Path) -> Result<(), CallError> {
    empty(folder, name(path)).call(|| format!("remove {}", path.display()))
}

/// A level of the way down, and the folders on it that are not empty.
struct Level {
    name: CString,
    full: Vec<CString>,
}

/// One descriptor however deep it is: nobody else renames here, so `..` leads back.
fn empty(folder: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    let flags = FOLDER | OFlag::O_RDONLY;
    let mut at = openat(folder, name, flags, Mode::empty())?;
    let top = CString::new(name.as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
    let mut way = vec![Level { name: top, full: clear(&at)? }];
    while let Some(level) = way.last_mut() {
        if let Some(name) = level.full.pop() {
            at = openat(&at, name.as_c_str(), flags, Mode::empty())?;
            way.push(Level { name, full: clear(&at)? });
        } else {
            at = openat(&at, "..", FOLDER, Mode::empty())?;
            unlinkat(&at, level.name.as_c_str(), UnlinkatFlags::RemoveDir)?;
            way.pop();
        }
    }
    Ok(())
}

/// Remove what is no folder with something in it.
fn clear(folder: &OwnedFd) -> nix::Result<Vec<CString>> {
    let mut full = Vec::new();
    let mut entries = Dir::from_fd(openat(folder, ".", FOLDER, Mode::empty())?)?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let removed = match entry.file_type() {
            Some(Type::Directory) => unlinkat(folder, name, UnlinkatFlags::RemoveDir),
            _ => unlinkat(folder, name, UnlinkatFlags::NoRemoveDir),
        };
        match removed {
            Err(Errno::ENOTEMPTY | Errno::EISDIR) => full.push(name.to_owned()),
            answer => answer?,
        }
    }
    Ok(full)
}
