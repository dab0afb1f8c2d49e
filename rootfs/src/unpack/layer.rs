//! One layer while its stream is read.

mod entries;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, makedev};
use nix::unistd::{UnlinkatFlags, getegid, geteuid, unlinkat};
use rustix::fs::XattrFlags;

use super::archive::{Archive, Attributes, Entry, Kind};
use super::error::shown;
use super::name::{self, Name};
use super::tree::{self, FOLDER, Tree};
use super::{Bounds, UnpackError, Unpacked};

const BUFFER: usize = 256 << 10;
/// Of names and attributes that are kept in memory up to the end.
pub(super) const LARGEST_MEMORY: u64 = 128 << 20;
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Everything is made in folders of ours that only we can enter, and these are described in the end:
/// no owner, mode or ACL of theirs passes to what is made in them.
enum Folder {
    /// Had entries, and stands for what the layers below have there.
    Implied,
    /// Had entries, and what the layers below have there is hidden.
    Fresh,
    Described {
        attributes: Attributes,
        acl: Option<Vec<u8>>,
    },
}

struct PendingLink {
    order: usize,
    target: PathBuf,
}

pub(super) struct Layer<'a> {
    tree: Tree<'a>,
    bounds: Bounds,
    done: Unpacked,
    /// Of the entry that is being written.
    name: Vec<u8>,
    /// Every folder of the layer, and how it will look.
    folders: BTreeMap<PathBuf, Folder>,
    pending: BTreeMap<PathBuf, PendingLink>,
    /// Links that ever were pending.
    links: usize,
    implied: u64,
    /// What the folders and pending links take in memory.
    pub(super) held: u64,
    /// The owner that new files have.
    ours: Option<(u32, u32)>,
    buffer: Vec<u8>,
}

impl<'a> Layer<'a> {
    pub(super) fn new(folder: &'a OwnedFd, bounds: Bounds) -> Result<Self, CallError> {
        let top = fstat(folder).call(|| "stat the layer's folder".to_owned())?;
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        // Where files take the group of their folder, nothing is known of it.
        let inherits =
            top.st_mode & Mode::S_ISGID.bits() != 0 || (top.st_uid, top.st_gid) != (uid, gid);
        Ok(Self {
            tree: Tree::new(folder),
            bounds,
            done: Unpacked::default(),
            name: Vec::new(),
            folders: BTreeMap::from([(PathBuf::new(), Folder::Implied)]),
            pending: BTreeMap::new(),
            links: 0,
            implied: 0,
            held: 0,
            ours: (!inherits).then_some((uid, gid)),
            buffer: vec![0; BUFFER],
        })
    }

    pub(super) fn read(mut self, stream: impl Read) -> Result<Unpacked, UnpackError> {
        let mut archive = Archive::new(stream);
        while let Some(entry) = archive.next()? {
            self.done.entries += 1;
            self.name.clone_from(&entry.name);
            self.count()?;
            match name::meaning(&entry.name).map_err(|e| UnpackError::entry(&entry.name, e))? {
                Name::Internal => {}
                Name::Whiteout(path) => self.whiteout(&path)?,
                Name::Opaque(path) => self.opaque(&path)?,
                Name::Top if entry.kind == Kind::Folder => {
                    self.describe_folder(Path::new(""), &entry)?;
                }
                Name::Top => {
                    return Err(UnpackError::entry(&entry.name, "would replace the root folder"));
                }
                Name::Plain(path) => self.entry(&path, &entry, &mut archive)?,
            }
        }
        self.finish()
    }

    fn count(&self) -> Result<(), UnpackError> {
        match self.done.entries + self.implied > self.bounds.entries {
            true => Err(too_large(&self.name, "entries", self.bounds.entries)),
            false => Ok(()),
        }
    }

    /// Long names are quickly written: a name of 4 KiB can imply 2,000 folders.
    fn hold(&mut self, bytes: usize) -> Result<(), UnpackError> {
        self.held += bytes as u64;
        match self.held > LARGEST_MEMORY {
            true => Err(too_large(&self.name, "bytes of names of folders", LARGEST_MEMORY)),
            false => Ok(()),
        }
    }

    fn entry<R: Read>(
        &mut self,
        path: &Path,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        match entry.kind {
            Kind::File => self.file(path, entry, archive),
            Kind::Folder => self.folder(path, entry),
            Kind::Symlink => self.symlink(path, entry),
            Kind::HardLink => self.hard_link(path, entry),
            Kind::Character { major: 0, minor: 0 } => {
                Err(UnpackError::at(path, "is the device 0:0, which would be a whiteout"))
            }
            Kind::Character { major, minor } => {
                self.node(path, entry, SFlag::S_IFCHR, makedev(major.into(), minor.into()))
            }
            Kind::Block { major, minor } => {
                self.node(path, entry, SFlag::S_IFBLK, makedev(major.into(), minor.into()))
            }
            Kind::Fifo => self.node(path, entry, SFlag::S_IFIFO, 0),
        }
    }

    fn link_later(&mut self, path: &Path, target: PathBuf) -> Result<(), UnpackError> {
        let folder = self.enter(tree::parent(path))?;
        self.remove(&folder, path)?;
        self.hold(path.as_os_str().len() + target.as_os_str().len())?;
        self.links += 1;
        self.pending.insert(path.to_owned(), PendingLink { order: self.links, target });
        Ok(())
    }

    fn folder(&mut self, path: &Path, entry: &Entry) -> Result<(), UnpackError> {
        if !self.folders.contains_key(path) {
            self.hold(path.as_os_str().len())?;
            let (folder, (), replaced) =
                self.replace(path, "make folder", |folder, name| tree::make_folder(folder, name))?;
            if replaced {
                let opaque = tree::make_opaque(&folder, tree::name(path));
                opaque.call(|| says("make opaque", path))?;
            }
        }
        self.describe_folder(path, entry)
    }

    fn describe_folder(&mut self, path: &Path, entry: &Entry) -> Result<(), UnpackError> {
        let mut acl = None;
        let folder = self.enter(tree::parent(path))?;
        for (key, value) in entries::storable(path, entry)? {
            if key == DEFAULT_ACL {
                // Its children would inherit it.
                self.hold(value.len())?;
                acl = Some(value.to_owned());
                continue;
            }
            tree::set_attribute(&tree::by_descriptor(&folder, tree::name(path)), key, value)
                .call(|| says_attribute(key, path))?;
        }
        if let Some(Folder::Described { acl: former, .. }) = self.folders.remove(path) {
            acl = acl.or(former);
        }
        let described = Folder::Described { attributes: entry.attributes, acl };
        self.folders.insert(path.to_owned(), described);
        Ok(())
    }

    /// An entry of the same name wins over it, before or after it; a folder is then all that there is.
    fn whiteout(&mut self, path: &Path) -> Result<(), UnpackError> {
        let folder = self.enter(tree::parent(path))?;
        let name = tree::name(path);
        if let Some(described) = self.folders.get_mut(path) {
            if matches!(described, Folder::Implied) {
                *described = Folder::Fresh;
            }
            tree::make_opaque(&folder, name).call(|| says("make opaque", path))?;
        } else if !self.pending.contains_key(path) {
            match tree::make_whiteout(&folder, name) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(CallError::errno(says("make whiteout", path), e).into()),
            }
        }
        Ok(())
    }

    fn opaque(&mut self, path: &Path) -> Result<(), UnpackError> {
        let folder = self.enter(path)?;
        tree::make_opaque(&folder, OsStr::new(".")).call(|| says("make opaque", path))?;
        Ok(())
    }

    /// Make something; what had its name goes, as later entries replace earlier ones.
    /// Says in which folder, and whether something went.
    fn replace<T>(
        &mut self,
        path: &Path,
        verb: &str,
        make: impl Fn(&OwnedFd, &OsStr) -> nix::Result<T>,
    ) -> Result<(Rc<OwnedFd>, T, bool), UnpackError> {
        let folder = self.enter(tree::parent(path))?;
        let name = tree::name(path);
        let mut replaced = self.pending.remove(path).is_some();
        let mut made = make(&folder, name);
        if matches!(made, Err(Errno::EEXIST)) {
            self.remove(&folder, path)?;
            replaced = true;
            made = make(&folder, name);
        }
        let made = made.call(|| says(verb, path))?;
        Ok((folder, made, replaced))
    }

    fn remove(&mut self, folder: &OwnedFd, path: &Path) -> Result<(), UnpackError> {
        self.pending.remove(path);
        if !self.folders.contains_key(path) {
            return match unlinkat(folder, tree::name(path), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => Ok(()),
                Err(e) => Err(CallError::errno(says("remove", path), e).into()),
            };
        }
        tree::remove_folder(folder, path)?;
        self.tree.forget();
        remove_below(&mut self.folders, path);
        remove_below(&mut self.pending, path);
        Ok(())
    }

    /// The folder at `path`; what of it is missing is made.
    fn enter(&mut self, path: &Path) -> Result<Rc<OwnedFd>, UnpackError> {
        match self.tree.enter(path) {
            Err(e) if [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP].iter().any(|n| e.is(*n)) => {}
            answer => return Ok(answer?),
        }
        let mut at = PathBuf::new();
        let mut folder = self.tree.enter(&at)?;
        for part in path {
            at.push(part);
            let flags = FOLDER | OFlag::O_PATH;
            let next = match openat(&*folder, part, flags, Mode::empty()) {
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                    self.make_implied(&folder, &at)?;
                    openat(&*folder, part, flags, Mode::empty())
                }
                answer => answer,
            };
            folder = Rc::new(next.call(|| says("open", &at))?);
        }
        Ok(self.tree.enter(path)?)
    }

    fn make_implied(&mut self, folder: &OwnedFd, path: &Path) -> Result<(), UnpackError> {
        let through = |what: &str| {
            let reason = format!("leads through {what} {}", shown(path.as_os_str().as_bytes()));
            Err(UnpackError::entry(&self.name, reason))
        };
        let name = tree::name(path);
        if self.pending.contains_key(path) {
            return through("the hard link");
        }
        let hidden = match tree::stat(folder, name).call(|| says("stat", path))? {
            None => false,
            Some(stat) if tree::is_whiteout(&stat) => true,
            Some(stat) if tree::format(&stat) == SFlag::S_IFLNK => return through("the symlink"),
            Some(_) => return through("what is no folder:"),
        };
        self.implied += 1;
        self.count()?;
        self.hold(path.as_os_str().len())?;
        if hidden {
            unlinkat(folder, name, UnlinkatFlags::NoRemoveDir).call(|| says("remove", path))?;
        }
        tree::make_folder(folder, name).call(|| says("make folder", path))?;
        if hidden {
            tree::make_opaque(folder, name).call(|| says("make opaque", path))?;
        }
        let state = if hidden { Folder::Fresh } else { Folder::Implied };
        self.folders.insert(path.to_owned(), state);
        Ok(())
    }

    /// The owner that is to be set, where a new file has not got it already.
    fn owner(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        Some((uid, gid)).filter(|owner| Some(*owner) != self.ours)
    }

    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        for (path, folder) in &self.folders {
            self.finish_folder(path, folder)?;
        }
        for (path, folder) in self.folders {
            if matches!(folder, Folder::Implied) {
                let top = path.as_os_str().is_empty();
                self.done.implied.push(if top { PathBuf::from(".") } else { path });
            }
        }
        let mut links: Vec<_> = self.pending.into_iter().collect();
        links.sort_by_key(|(_, link)| link.order);
        self.done.pending_links =
            links.into_iter().map(|(path, link)| (path, link.target)).collect();
        Ok(self.done)
    }

    fn finish_folder(&self, path: &Path, folder: &Folder) -> Result<(), UnpackError> {
        let file = self.tree.open(path, OFlag::O_RDONLY)?;
        let Folder::Described { attributes, acl } = folder else {
            let described = tree::describe(&file, self.owner(0, 0), 0o755, None);
            return Ok(described.call(|| says("set the attributes of", path))?);
        };
        if let Some(acl) = acl {
            rustix::fs::fsetxattr(file.as_fd(), DEFAULT_ACL, acl, XattrFlags::empty())
                .map_err(tree::errno)
                .call(|| says_attribute(DEFAULT_ACL, path))?;
        }
        let Attributes { mode, uid, gid, modified } = attributes;
        tree::describe(&file, self.owner(*uid, *gid), *mode, Some(modified))
            .call(|| says("set the attributes of", path))?;
        Ok(())
    }
}

fn remove_below<T>(map: &mut BTreeMap<PathBuf, T>, path: &Path) {
    let below = map.range(path.to_owned()..).map(|(key, _)| key);
    let below: Vec<_> = below.take_while(|key| key.starts_with(path)).cloned().collect();
    for key in below {
        map.remove(&key);
    }
}

pub(super) fn too_large(name: &[u8], what: &'static str, bound: u64) -> UnpackError {
    UnpackError::TooLarge { name: shown(name), what, bound }
}

fn says(verb: &str, path: &Path) -> String {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    format!("{verb} {}", shown(path.as_os_str().as_bytes()))
}

fn says_attribute(name: &[u8], path: &Path) -> String {
    says(&format!("set {} of", shown(name)), path)
}
