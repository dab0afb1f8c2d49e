//! From a folder to a layer's archive, the same for the same folder: what [`crate::unpack`] reads.

mod header;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use hafen_sys::file::{OpenHow, open_how, resolve};
use hafen_sys::{CallError, Context};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::unpack::tree::{self, FOLDER, Tree};

use header::{Described, What};

const WHITEOUT: &[u8] = b".wh.";
const CAPABILITY: &[u8] = b"security.capability";
const END: [u8; 1024] = [0; 1024];

/// A folder that cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}: {1}")]
    Entry(PathBuf, &'static str),
    #[error("write the archive")]
    Write(#[source] io::Error),
}

/// Something of the folder that is not in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// From the folder on.
    pub path: PathBuf,
    pub why: &'static str,
}

/// Write all that is in `folder`, but what is mounted there, as an uncompressed tar.
///
/// # Errors
/// Names the entry.
pub fn pack(folder: &Path, to: impl Write) -> Result<Vec<LeftOut>, PackError> {
    let call = || format!("open {}", folder.display());
    let top = open(folder, FOLDER & !OFlag::O_NOFOLLOW, Mode::empty()).call(call)?;
    let mut packing =
        Packing { tree: Tree::new(&top), to, linked: HashMap::new(), left_out: Vec::new() };
    packing.all()?;
    Ok(packing.left_out)
}

struct Packing<'a, W> {
    tree: Tree<'a>,
    to: W,
    /// Files with several names, by device and inode: the first name.
    linked: HashMap<(u64, u64), PathBuf>,
    left_out: Vec<LeftOut>,
}

/// An entry of the folder, held fast.
struct Entry {
    parent: Rc<OwnedFd>,
    path: PathBuf,
    stat: FileStat,
    mounted: bool,
}

impl Entry {
    fn name(&self) -> &OsStr {
        tree::name(&self.path)
    }

    fn says(&self, verb: &str) -> String {
        let path = if self.path.as_os_str().is_empty() { Path::new(".") } else { &self.path };
        format!("{verb} {}", path.display())
    }
}

impl<W: Write> Packing<'_, W> {
    /// From the top downwards, in the order of names.
    fn all(&mut self) -> Result<(), PackError> {
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            // It may go meanwhile.
            let Some(entry) = self.look(path)? else { continue };
            if self.entry(&entry)? {
                waiting.extend(self.below(&entry)?.into_iter().rev());
            }
        }
        self.write(&END)
    }

    fn look(&mut self, path: PathBuf) -> Result<Option<Entry>, PackError> {
        let parent = self.tree.enter(tree::parent(&path))?;
        let name = tree::name(&path);
        let (file, mounted) = match hold(&parent, name, resolve::NO_XDEV) {
            Err(e) if e.is(Errno::EXDEV) => (hold(&parent, name, 0), true),
            answer => (answer, false),
        };
        let file = match file {
            Err(e) if e.is(Errno::ENOENT) && !path.as_os_str().is_empty() => return Ok(None),
            answer => answer?,
        };
        let stat = fstat(&file).call(|| format!("stat {}", path.display()))?;
        Ok(Some(Entry { parent, path, stat, mounted }))
    }

    /// Whether there is more below it.
    fn entry(&mut self, entry: &Entry) -> Result<bool, PackError> {
        if entry.name().as_bytes().starts_with(WHITEOUT) {
            let why = "a layer would remove something by this name";
            return Err(PackError::Entry(entry.path.clone(), why));
        }
        match tree::format(&entry.stat) {
            SFlag::S_IFDIR => {
                if entry.mounted {
                    self.leave_out(entry, "what is mounted there");
                }
                self.describe(entry, What::Folder)?;
                return Ok(!entry.mounted);
            }
            _ if entry.mounted => self.leave_out(entry, "a mount"),
            SFlag::S_IFSOCK => self.leave_out(entry, "a socket"),
            kind => self.plain(entry, kind)?,
        }
        Ok(false)
    }

    fn leave_out(&mut self, entry: &Entry, why: &'static str) {
        self.left_out.push(LeftOut { path: entry.path.clone(), why });
    }

    fn plain(&mut self, entry: &Entry, kind: SFlag) -> Result<(), PackError> {
        if let Some(first) = self.first_name(entry) {
            return self.describe(entry, What::Link(first.as_os_str()));
        }
        match kind {
            SFlag::S_IFREG => self.file(entry),
            SFlag::S_IFLNK => {
                let target = readlinkat(&*entry.parent, entry.name());
                let target = target.call(|| entry.says("read the link"))?;
                self.describe(entry, What::Symlink(&target))
            }
            SFlag::S_IFIFO => self.describe(entry, What::Fifo),
            SFlag::S_IFCHR => self.describe(entry, What::Character(entry.stat.st_rdev)),
            SFlag::S_IFBLK => self.describe(entry, What::Block(entry.stat.st_rdev)),
            _ => {
                Err(PackError::Entry(entry.path.clone(), "is of a kind that archives do not know"))
            }
        }
    }

    fn first_name(&mut self, entry: &Entry) -> Option<PathBuf> {
        if entry.stat.st_nlink < 2 {
            return None;
        }
        let inode = (entry.stat.st_dev, entry.stat.st_ino);
        let known = self.linked.get(&inode).cloned();
        if known.is_none() {
            self.linked.insert(inode, entry.path.clone());
        }
        known
    }

    fn file(&mut self, entry: &Entry) -> Result<(), PackError> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(&*entry.parent, entry.name(), flags, Mode::empty());
        let file = File::from(file.call(|| entry.says("open"))?);
        let size = entry.stat.st_size.cast_unsigned();
        self.describe(entry, What::File(size))?;
        self.content(entry, file, size)?;
        self.write(&END[..header::padding(size)])
    }

    /// As many bytes as the header says, whoever writes to the file meanwhile.
    fn content(&mut self, entry: &Entry, mut file: File, size: u64) -> Result<(), PackError> {
        let mut buffer = vec![0; 256 << 10];
        let mut left = size;
        while left > 0 {
            let want = left.min(buffer.len() as u64) as usize;
            let read = file.read(&mut buffer[..want]).call(|| entry.says("read"))?;
            if read == 0 {
                let why = "has become shorter while it was read";
                return Err(PackError::Entry(entry.path.clone(), why));
            }
            self.write(&buffer[..read])?;
            left -= read as u64;
        }
        Ok(())
    }

    fn describe(&mut self, entry: &Entry, what: What<'_>) -> Result<(), PackError> {
        let attributes = match what {
            // The first name has them.
            What::Link(_) => Vec::new(),
            _ => attributes(entry).call(|| entry.says("read the attributes of"))?,
        };
        let described = Described { path: &entry.path, stat: &entry.stat, what, attributes };
        self.write(&described.blocks())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        self.to.write_all(bytes).map_err(PackError::Write)
    }

    fn below(&mut self, entry: &Entry) -> Result<Vec<PathBuf>, PackError> {
        let folder = self.tree.open(&entry.path, OFlag::O_RDONLY)?;
        let names = names(folder).call(|| entry.says("read folder"))?;
        Ok(names.into_iter().map(|name| entry.path.join(name)).collect())
    }
}

fn hold(parent: &OwnedFd, name: &OsStr, more: u64) -> Result<OwnedFd, CallError> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let how = OpenHow {
        flags: u64::from(flags.bits().cast_unsigned()),
        mode: 0,
        resolve: resolve::BENEATH | more,
    };
    open_how(parent, Path::new(name), how)
}

fn names(folder: OwnedFd) -> nix::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::from_fd(folder)?.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Labels of this machine's security modules mean nothing on another one.
fn is_kept(name: &[u8]) -> bool {
    name == CAPABILITY || !name.starts_with(b"security.")
}

fn attributes(entry: &Entry) -> io::Result<Vec<header::Attribute>> {
    let path = tree::by_descriptor(&*entry.parent, entry.name());
    let mut names = tree::attribute_names(&path)?;
    names.retain(|name| is_kept(name.to_bytes()));
    names.sort();
    let mut value = vec![0; if names.is_empty() { 0 } else { tree::LARGEST_ATTRIBUTE }];
    let mut all = Vec::new();
    for name in names {
        let size = rustix::fs::lgetxattr(&path, name.as_c_str(), &mut value[..])?;
        all.push((name.into_bytes(), value[..size].to_vec()));
    }
    Ok(all)
}
