//! The files of a folder or of a tar, by name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use hafen_sys::file::{OpenHow, open_how, resolve};
use hafen_sys::{CallError, Context};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::store::StoreError;

/// Documents are read into memory.
const LARGEST_DOCUMENT: u64 = 4 << 20;
/// `docker save` makes three entries for a layer.
const MOST_ENTRIES: usize = 100_000;
const MOST_LINKS: usize = 8;

#[derive(Debug)]
pub(super) enum Files {
    Folder(OwnedFd),
    Tar { path: PathBuf, entries: BTreeMap<String, Place> },
}

/// Where a file of a tar is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Bytes {
        offset: u64,
        size: u64,
    },
    /// From the folder that the link is in.
    Link(String),
    /// A hard link: from the top.
    Same(String),
}

impl Files {
    /// `None`: a file that is no plain tar.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        let call = || format!("open {}", path.display());
        let file = File::open(path).call(call)?;
        if file.metadata().call(call)?.is_dir() {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let folder = open(path, flags, Mode::empty()).call(call)?;
            return Ok(Some(Self::Folder(folder)));
        }
        Ok(entries(file)
            .call(|| format!("read {}", path.display()))?
            .map(|entries| Self::Tar { path: path.to_owned(), entries }))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        let file = self.find(name)?.take(LARGEST_DOCUMENT + 1).read_to_end(&mut bytes);
        file.call(|| format!("read {name}"))?;
        if bytes.len() as u64 > LARGEST_DOCUMENT {
            return Err(StoreError::Refused(format!("{name} is larger than 4 MiB")));
        }
        Ok(bytes)
    }

    /// A file by its name: none that leads out of the folder, and none that a link outside leads to.
    pub(super) fn find(&self, name: &str) -> Result<Box<dyn Read>, CallError> {
        match self {
            Self::Folder(folder) => {
                let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
                let how = OpenHow {
                    flags: u64::from(flags.bits().cast_unsigned()),
                    mode: 0,
                    resolve: resolve::BENEATH | resolve::NO_MAGICLINKS,
                };
                Ok(Box::new(File::from(open_how(folder, Path::new(name), how)?)))
            }
            Self::Tar { path, entries } => {
                let call = || format!("open {name} in {}", path.display());
                let missing = || io::Error::from(io::ErrorKind::NotFound);
                let (offset, size) = follow(entries, name).ok_or_else(missing).call(call)?;
                let mut file = File::open(path).call(call)?;
                file.seek(SeekFrom::Start(offset)).call(call)?;
                Ok(Box::new(file.take(size)))
            }
        }
    }
}

/// Old archives of Docker have one layer under several names.
fn follow(entries: &BTreeMap<String, Place>, name: &str) -> Option<(u64, u64)> {
    let mut name = name.to_owned();
    for _ in 0..MOST_LINKS {
        match entries.get(&name)? {
            Place::Bytes { offset, size } => return Some((*offset, *size)),
            Place::Same(target) => name.clone_from(target),
            Place::Link(target) => {
                let folder = Path::new(&name).parent().unwrap_or(Path::new(""));
                name = plain(&folder.join(target))?;
            }
        }
    }
    None
}

/// Without `.` and `..`; `None` where it leads out.
fn plain(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

fn entries(file: File) -> io::Result<Option<BTreeMap<String, Place>>> {
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut entries = BTreeMap::new();
    for entry in archive.entries_with_seek()? {
        // What begins like nothing of a tar is something else.
        let entry = match entry {
            Err(_) if entries.is_empty() => return Ok(None),
            answer => answer?,
        };
        let Some(name) = entry.path().ok().and_then(|path| plain(&path)) else { continue };
        let place = match entry.header().entry_type() {
            kind if kind.is_file() => {
                Place::Bytes { offset: entry.raw_file_position(), size: entry.size() }
            }
            kind if kind.is_symlink() => match entry.link_name().ok().flatten() {
                Some(target) => Place::Link(target.to_string_lossy().into_owned()),
                None => continue,
            },
            kind if kind.is_hard_link() => match entry.link_name().ok().flatten() {
                Some(target) => match plain(&target) {
                    Some(target) => Place::Same(target),
                    None => continue,
                },
                None => continue,
            },
            _ => continue,
        };
        entries.insert(name, place);
        // A root file system, which is read as a whole later.
        if entries.len() > MOST_ENTRIES {
            return Ok(None);
        }
    }
    Ok((!entries.is_empty()).then_some(entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_an_archive_stay_in_it() {
        let entries = BTreeMap::from([
            ("a/layer.tar".to_owned(), Place::Bytes { offset: 512, size: 7 }),
            ("b/layer.tar".to_owned(), Place::Link("../a/layer.tar".to_owned())),
            ("c".to_owned(), Place::Link("../../etc/passwd".to_owned())),
            ("d".to_owned(), Place::Link("d".to_owned())),
            ("e".to_owned(), Place::Link("/a/layer.tar".to_owned())),
        ]);
        assert_eq!(follow(&entries, "b/layer.tar"), Some((512, 7)));
        assert_eq!(follow(&entries, "c"), None);
        assert_eq!(follow(&entries, "d"), None);
        assert_eq!(follow(&entries, "e"), None);
        assert_eq!(follow(&entries, "f"), None);
    }
}
