//! Copies of a folder: for `tmpcopyup`, where a new tmpfs begins with what the image has at its mount point, for new
//! volumes, and for root file systems whose owners cannot be mapped.
//!
//! What is copied to is seen by nobody else, so nothing in it changes meanwhile. What is copied may be anybody's: every
//! step goes by descriptor and name, and no symlink is followed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hafen_spec::resolved::{IdMap, IdMaps};
use hafen_sys::file::{OpenHow, open_how, resolve};
use hafen_sys::{CallError, Context};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat,
    futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};

const FOLDER: OFlag =
    OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_RDONLY);
/// Each level holds descriptors: a deeper tree would need more than a process usually may have.
const DEEPEST: usize = 200;
const LARGEST_ATTRIBUTE: usize = 65536;

/// What of the mount point's own folder the tmpfs takes over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Given {
    /// The mount's options name a mode, an owner or a group.
    pub mode: bool,
    pub uid: bool,
    pub gid: bool,
}

/// Copy the folder at `path` inside `root` into an empty one, with the owners that `owners` gives them outside of a user
/// namespace. A place where no folder is gives nothing.
///
/// # Errors
/// Names the call and the file.
pub fn fill(
    target: &OwnedFd,
    root: impl AsFd,
    path: &str,
    given: Given,
    owners: Option<&IdMaps>,
) -> Result<(), CallError> {
    let how = OpenHow {
        flags: u64::from((OFlag::O_DIRECTORY | OFlag::O_RDONLY).bits().cast_unsigned()),
        mode: 0,
        resolve: resolve::IN_ROOT | resolve::NO_MAGICLINKS,
    };
    let place = Path::new(".").join(path.trim_start_matches('/'));
    let from = match open_how(root, &place, how) {
        Err(e) if e.is(Errno::ENOENT) || e.is(Errno::ENOTDIR) => return Ok(()),
        answer => answer?,
    };
    let to = reopen(target).call(|| format!("open the copy of {path}"))?;
    let top = to.try_clone().call(|| "dup".to_owned())?;
    let mut copy = Copy { top, links: BTreeMap::new(), path: PathBuf::from(path), owners };
    let stat = fstat(&from).call(|| copy.says("stat"))?;
    let own = from.try_clone().call(|| copy.says("dup"))?;
    copy.folder(from, &to, 0)?;
    copy.describe_top(&own, &to, &stat, given)
}

/// The mount's descriptor is a path only (fsmount(2)).
fn reopen(target: &OwnedFd) -> nix::Result<OwnedFd> {
    openat(target, ".", FOLDER, Mode::empty())
}

struct Copy<'a> {
    top: OwnedFd,
    owners: Option<&'a IdMaps>,
    /// Files with more than one name, and where the first one was copied to.
    links: BTreeMap<(u64, u64), PathBuf>,
    /// Of what is being copied, as the container will see it.
    path: PathBuf,
}

/// Something in a folder, and the folder that it is copied to.
struct Entry<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    name: &'a CStr,
    stat: FileStat,
    /// Below the top.
    place: PathBuf,
}

impl Copy<'_> {
    fn says(&self, verb: &str) -> String {
        format!("{verb} {}", self.path.display())
    }

    fn folder(&mut self, from: OwnedFd, to: &OwnedFd, depth: usize) -> Result<(), CallError> {
        if depth > DEEPEST {
            return Err(CallError::errno(self.says("copy"), Errno::ENAMETOOLONG));
        }
        let handle = from.try_clone().call(|| self.says("dup"))?;
        let mut entries = Dir::from_fd(from).call(|| self.says("read folder"))?;
        for entry in entries.iter() {
            let entry = entry.call(|| self.says("read folder"))?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.path.push(OsStr::from_bytes(name.to_bytes()));
                self.entry(&handle, to, name, depth)?;
                self.path.pop();
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        depth: usize,
    ) -> Result<(), CallError> {
        let stat = match fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            // It went while we were on the way to it.
            Err(Errno::ENOENT) => return Ok(()),
            answer => answer.call(|| self.says("stat"))?,
        };
        let depth_path = self.path.iter().rev().take(depth + 1).collect::<Vec<_>>();
        let place = depth_path.into_iter().rev().collect();
        let entry = Entry { from, to, name, stat, place };
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => self.inner_folder(&entry, depth),
            SFlag::S_IFREG => self.file(&entry),
            SFlag::S_IFLNK => self.symlink(&entry),
            kind => self.node(&entry, kind),
        }
    }

    fn inner_folder(&mut self, entry: &Entry<'_>, depth: usize) -> Result<(), CallError> {
        let open = |at: &OwnedFd| openat(at, entry.name, FOLDER, Mode::empty());
        let from = open(entry.from).call(|| self.says("open"))?;
        mkdirat(entry.to, entry.name, Mode::S_IRWXU).call(|| self.says("make folder"))?;
        let to = open(entry.to).call(|| self.says("open the copy of"))?;
        let own = from.try_clone().call(|| self.says("dup"))?;
        self.folder(from, &to, depth + 1)?;
        self.describe(&own, &to, &entry.stat)
    }

    fn file(&mut self, entry: &Entry<'_>) -> Result<(), CallError> {
        let key = (entry.stat.st_dev, entry.stat.st_ino);
        if let Some(first) = self.links.get(&key).filter(|_| entry.stat.st_nlink > 1) {
            let linked = linkat(&self.top, first, entry.to, entry.name, AtFlags::empty());
            return linked.call(|| self.says("link"));
        }
        // Not blocking, should it have become a fifo.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let from = openat(entry.from, entry.name, flags, Mode::empty());
        let mut from = File::from(from.call(|| self.says("open"))?);
        let stat = fstat(&from).call(|| self.says("stat"))?;
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            return Err(CallError::new(
                self.says("copy"),
                io::Error::other("was exchanged meanwhile"),
            ));
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let to = openat(entry.to, entry.name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut to = File::from(to.call(|| self.says("make file"))?);
        io::copy(&mut from, &mut to).call(|| self.says("copy"))?;
        self.describe(&from, &to, &stat)?;
        self.links.insert(key, entry.place.clone());
        Ok(())
    }

    fn symlink(&self, entry: &Entry<'_>) -> Result<(), CallError> {
        let target = readlinkat(entry.from, entry.name).call(|| self.says("read link"))?;
        symlinkat(target.as_os_str(), entry.to, entry.name).call(|| self.says("make link"))?;
        self.own(entry)?;
        self.date(entry)
    }

    /// Devices, fifos and sockets.
    fn node(&self, entry: &Entry<'_>, kind: SFlag) -> Result<(), CallError> {
        let mode = Mode::from_bits_truncate(entry.stat.st_mode);
        mknodat(entry.to, entry.name, kind, mode, entry.stat.st_rdev)
            .call(|| self.says("make node"))?;
        self.own(entry)?;
        fchmodat(entry.to, entry.name, mode, FchmodatFlags::FollowSymlink)
            .call(|| self.says("chmod the copy of"))?;
        self.date(entry)
    }

    /// Whom nobody is mapped to belongs to nobody there.
    fn owner(&self, stat: &FileStat) -> (Uid, Gid) {
        const NOBODY: u32 = 65534;
        let map = |map: &[IdMap], id| IdMaps::outside(map, id).unwrap_or(NOBODY);
        let (uid, gid) = match self.owners {
            Some(owners) => (map(&owners.uids, stat.st_uid), map(&owners.gids, stat.st_gid)),
            None => (stat.st_uid, stat.st_gid),
        };
        (Uid::from_raw(uid), Gid::from_raw(gid))
    }

    fn own(&self, entry: &Entry<'_>) -> Result<(), CallError> {
        let (uid, gid) = self.owner(&entry.stat);
        fchownat(entry.to, entry.name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .call(|| self.says("chown the copy of"))
    }

    fn date(&self, entry: &Entry<'_>) -> Result<(), CallError> {
        let (accessed, modified) = times(&entry.stat);
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(entry.to, entry.name, &accessed, &modified, flags)
            .call(|| self.says("set the times of the copy of"))
    }

    /// Owner first: changing it takes set-id bits and file capabilities away.
    fn describe(&self, from: impl AsFd, to: impl AsFd, stat: &FileStat) -> Result<(), CallError> {
        let (uid, gid) = self.owner(stat);
        fchown(&to, Some(uid), Some(gid)).call(|| self.says("chown the copy of"))?;
        fchmod(&to, Mode::from_bits_truncate(stat.st_mode))
            .call(|| self.says("chmod the copy of"))?;
        self.attributes(from.as_fd(), to.as_fd())
            .call(|| self.says("set attributes of the copy of"))?;
        let (accessed, modified) = times(stat);
        futimens(&to, &accessed, &modified).call(|| self.says("set the times of the copy of"))
    }

    /// What the mount's options say of the top stays.
    fn describe_top(
        &self,
        from: &OwnedFd,
        to: &OwnedFd,
        stat: &FileStat,
        given: Given,
    ) -> Result<(), CallError> {
        let (uid, gid) = self.owner(stat);
        fchown(to, (!given.uid).then_some(uid), (!given.gid).then_some(gid))
            .call(|| self.says("chown the copy of"))?;
        if !given.mode {
            fchmod(to, Mode::from_bits_truncate(stat.st_mode))
                .call(|| self.says("chmod the copy of"))?;
        }
        self.attributes(from.as_fd(), to.as_fd())
            .call(|| self.says("set attributes of the copy of"))
    }

    /// Extended attributes, but those that a tmpfs does not take (user.* before Linux 6.6).
    fn attributes(
        &self,
        from: std::os::fd::BorrowedFd<'_>,
        to: std::os::fd::BorrowedFd<'_>,
    ) -> io::Result<()> {
        use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
        let unsupported = rustix::io::Errno::OPNOTSUPP;
        let mut names = vec![0; LARGEST_ATTRIBUTE];
        let length = match flistxattr(from, &mut names) {
            Err(e) if e == unsupported => return Ok(()),
            answer => answer?,
        };
        let mut value = vec![0; if length > 0 { LARGEST_ATTRIBUTE } else { 0 }];
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let size = fgetxattr(from, name, &mut value)?;
            match fsetxattr(to, name, &self.shifted(name, &value[..size]), XattrFlags::empty()) {
                Err(e) if e == unsupported => {}
                answer => answer?,
            }
        }
        Ok(())
    }

    /// The root of the namespace has the capabilities that a file gives: version 3 of the attribute names it
    /// (capabilities(7)).
    fn shifted<'v>(&self, name: &[u8], value: &'v [u8]) -> Cow<'v, [u8]> {
        const VERSION_2: u8 = 2;
        const VERSION_3: u8 = 3;
        const LENGTH: usize = 20;
        let root = self.owners.and_then(|owners| IdMaps::outside(&owners.uids, 0));
        match root {
            Some(root)
                if name == b"security.capability"
                    && value.len() == LENGTH
                    && value[3] == VERSION_2 =>
            {
                let mut shifted = value.to_vec();
                shifted[3] = VERSION_3;
                shifted.extend_from_slice(&root.to_le_bytes());
                Cow::Owned(shifted)
            }
            _ => Cow::Borrowed(value),
        }
    }
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (
        TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
        TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use hafen_sys::mount::new_file_system;
    use nix::fcntl::open;
    use rustix::fs::XattrFlags;

    use super::*;

    fn folder(path: &Path) -> OwnedFd {
        open(path, FOLDER, Mode::empty()).unwrap()
    }

    fn read(tmpfs: &OwnedFd, name: &str) -> File {
        File::from(openat(tmpfs, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW, Mode::empty()).unwrap())
    }

    fn example() -> tempfile::TempDir {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let data = place.path().join("image/data");
        fs::create_dir_all(data.join("deep/deeper")).unwrap();
        fs::write(data.join("deep/deeper/file"), "content").unwrap();
        fs::hard_link(data.join("deep/deeper/file"), data.join("deep/same")).unwrap();
        symlink("deep/deeper/file", data.join("link")).unwrap();
        symlink("/image/data", place.path().join("image/alias")).unwrap();
        let file = File::open(data.join("deep/deeper/file")).unwrap();
        // What setcap(8) writes: CAP_NET_RAW, version 2.
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let flags = XattrFlags::empty();
        rustix::fs::fsetxattr(&file, "security.capability", &capability, flags).unwrap();
        place
    }

    #[test]
    #[ignore = "needs root and limits"]
    fn attributes_links_and_times_are_kept() {
        let place = example();
        let tmpfs = new_file_system(c"tmpfs", c"tmpfs", &[], 0).unwrap();
        fill(&tmpfs, folder(&place.path().join("image")), "/data", Given::default(), None).unwrap();
        let (file, same) = (read(&tmpfs, "deep/deeper/file"), read(&tmpfs, "deep/same"));
        let was = fs::metadata(place.path().join("image/data/deep/same")).unwrap();
        let is = file.metadata().unwrap();
        assert_eq!((is.nlink(), is.ino()), (2, same.metadata().unwrap().ino()));
        assert_eq!((is.mtime(), is.mtime_nsec()), (was.mtime(), was.mtime_nsec()));
        let mut value = [0; 64];
        assert_eq!(rustix::fs::fgetxattr(&file, "security.capability", &mut value).unwrap(), 20);
        let target = readlinkat(&tmpfs, "link").unwrap();
        assert_eq!(target.to_str(), Some("deep/deeper/file"));
    }

    #[test]
    #[ignore = "needs root and limits"]
    fn no_link_leads_out_of_the_root() {
        let place = example();
        fs::create_dir(place.path().join("data")).unwrap();
        fs::write(place.path().join("data/secret"), "").unwrap();
        let inner = place.path().join("image");
        symlink("../data", inner.join("out")).unwrap();
        let tmpfs = new_file_system(c"tmpfs", c"tmpfs", &[], 0).unwrap();
        fill(&tmpfs, folder(&inner), "/out", Given::default(), None).unwrap();
        // The root's own `data`.
        assert!(fstatat(&tmpfs, "deep", AtFlags::empty()).is_ok());
        assert!(fstatat(&tmpfs, "secret", AtFlags::empty()).is_err());
    }

    #[test]
    #[ignore = "needs root and limits"]
    fn a_place_that_is_no_folder_gives_nothing() {
        let place = example();
        let tmpfs = new_file_system(c"tmpfs", c"tmpfs", &[], 0).unwrap();
        for path in ["/missing", "/data/deep/same"] {
            fill(&tmpfs, folder(&place.path().join("image")), path, Given::default(), None)
                .unwrap();
        }
        assert!(fstatat(&tmpfs, "deep", AtFlags::empty()).is_err());
    }
}
