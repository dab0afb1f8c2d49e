//! Archives of artifacts: nothing is written outside of the folder, and nothing in it leads out.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{
    FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink,
};
use std::path::{Component, Path, PathBuf};

use hafen_rootfs::unpack::{settle, unpack};
use hafen_sys::{CallError, Context};
use nix::unistd::{getegid, geteuid};
use zip::ZipReadOptions;
use zip::read::{Config, ZipFile};
use zip::unstable::read::ZipIterable;

pub(super) use hafen_rootfs::unpack::Bounds;

/// PATH_MAX.
const LONGEST_LINK: u64 = 4096;
/// Whatever an archive says: no set-id bits.
const PERMISSIONS: u32 = 0o777;

/// An archive that is broken or hostile.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive says something that must not be done.
    #[error("{name:?}: {reason}")]
    Entry { name: String, reason: String },
    /// More than is allowed.
    #[error("it unpacks to more than {bound} {what}: raise max_bytes, or what the node allows")]
    TooLarge { bound: u64, what: &'static str },
    #[error("it is no tar that can be unpacked")]
    Tar(#[source] hafen_rootfs::unpack::UnpackError),
    #[error("it is no zip that can be unpacked")]
    Zip(#[from] zip::result::ZipError),
    #[error("read the archive")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Call(#[from] CallError),
}

fn entry(path: &Path, reason: impl Into<String>) -> UnpackError {
    UnpackError::Entry { name: path.to_string_lossy().into_owned(), reason: reason.into() }
}

/// A tar, also compressed with gzip or zstd: its first bytes say so.
pub(super) fn tar(mut packed: File, folder: &Path, bounds: Bounds) -> Result<(), UnpackError> {
    packed.rewind().map_err(UnpackError::Read)?;
    let mut packed = BufReader::new(packed);
    let magic = packed.fill_buf().map_err(UnpackError::Read)?;
    let stream: Box<dyn Read> = match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(packed).map_err(UnpackError::Read)?)
        }
        _ => Box::new(packed),
    };
    let top: OwnedFd = File::open(folder).call(|| format!("open {}", folder.display()))?.into();
    // A layer with nothing below it: what it would hide is not there, and is left out.
    let unpacked = unpack(stream, &top, bounds).map_err(of_layer)?;
    settle(&top, &unpacked, &[], bounds).map_err(of_layer)?;
    clean(folder)
}

/// It is told what to raise.
fn of_layer(e: hafen_rootfs::unpack::UnpackError) -> UnpackError {
    use hafen_rootfs::unpack::UnpackError as Layer;
    match e {
        Layer::TooLarge { what, bound, .. } => UnpackError::TooLarge { bound, what },
        other => UnpackError::Tar(other),
    }
}

/// What unpacking a layer takes over, and an artifact must not: owners, set-id bits, devices, links that lead out.
/// One folder is open at a time, however deep they are.
fn clean(top: &Path) -> Result<(), UnpackError> {
    let mut folders = vec![(top.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let read = || format!("read {}", folder.display());
        for found in fs::read_dir(&folder).call(read)? {
            let path = found.call(read)?.path();
            let shown = path.strip_prefix(top).unwrap_or(&path);
            if clean_one(&path, shown, depth)? {
                folders.push((path, depth + 1));
            }
        }
    }
    own(top, &about(top)?)
}

/// Whether it is a folder.
fn clean_one(path: &Path, shown: &Path, depth: usize) -> Result<bool, UnpackError> {
    let about = about(path)?;
    let kind = about.file_type();
    if kind.is_block_device() || kind.is_char_device() {
        return Err(entry(shown, "is a device, which an artifact cannot have"));
    }
    if kind.is_symlink() {
        let target = fs::read_link(path).call(|| format!("readlink {}", path.display()))?;
        stays_inside(&target, depth).map_err(|reason| entry(shown, reason))?;
    }
    own(path, &about)?;
    Ok(kind.is_dir())
}

fn about(path: &Path) -> Result<fs::Metadata, CallError> {
    fs::symlink_metadata(path).call(|| format!("stat {}", path.display()))
}

fn own(path: &Path, about: &fs::Metadata) -> Result<(), UnpackError> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    if (about.uid(), about.gid()) != (uid, gid) {
        lchown(path, Some(uid), Some(gid)).call(|| format!("chown {}", path.display()))?;
    }
    if !about.file_type().is_symlink() && about.mode() & 0o7777 & !PERMISSIONS != 0 {
        let mode = Permissions::from_mode(about.mode() & PERMISSIONS);
        fs::set_permissions(path, mode).call(|| format!("chmod {}", path.display()))?;
    }
    Ok(())
}

/// Of a link so many folders below the top. Where ".." comes first and nowhere else, what is counted is true: the link
/// itself stands in real folders, and any other link on the way is such a one.
fn stays_inside(target: &Path, depth: usize) -> Result<(), String> {
    let mut up = 0;
    let mut down = false;
    for part in target.components() {
        match part {
            Component::ParentDir if !down => up += 1,
            Component::ParentDir => {
                return Err(format!("links to {target:?}, with \"..\" after a name"));
            }
            Component::Normal(_) => down = true,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => up = usize::MAX,
        }
        if up > depth {
            return Err(format!("links to {target:?}, out of the artifact"));
        }
    }
    Ok(())
}

/// A zip. Links are made last: nothing is written through one.
pub(super) fn zip(packed: File, folder: &Path, bounds: Bounds) -> Result<(), UnpackError> {
    // The position is one for both, and either seeks before it reads.
    let contents = BufReader::new(packed.try_clone().map_err(UnpackError::Read)?);
    // Entry by entry: an index of all would cost many times their bytes.
    let mut archive = ZipIterable::try_new(BufReader::new(packed), Config::default())?;
    let mut files = archive.files_with_reader(contents, ZipReadOptions::default())?;
    let (mut left, mut links) = (bounds, Vec::new());
    while let Some(file) = files.next() {
        let mut file = file?;
        let name = name(&file)?;
        // With the folders on its way, which it may imply.
        left.entries = left
            .entries
            .checked_sub(name.components().count() as u64)
            .ok_or(UnpackError::TooLarge { bound: bounds.entries, what: "entries" })?;
        let path = folder.join(&name);
        let above = name.parent().unwrap_or(Path::new(""));
        make_folders(folder, if file.is_dir() { &name } else { above })?;
        if file.is_symlink() {
            links.push((read_link(&mut file).map_err(UnpackError::Read)?, name));
        } else if !file.is_dir() {
            let mode = file.unix_mode().map_or(0o644, |mode| mode & PERMISSIONS);
            let written = write(&mut file, &path, mode, left.bytes);
            left.bytes -= written.map_err(|e| e.of(bounds, &name))?;
        }
    }
    links.iter().try_for_each(|(target, name)| make_link(folder, name, target))
}

fn name(file: &ZipFile<'_, impl Read>) -> Result<PathBuf, UnpackError> {
    let name = file.enclosed_name().filter(|name| !name.as_os_str().is_empty());
    let raw = || PathBuf::from(String::from_utf8_lossy(file.name_raw()).into_owned());
    name.ok_or_else(|| entry(&raw(), "leads out of the artifact"))
}

fn read_link(file: &mut impl Read) -> io::Result<PathBuf> {
    let mut target = String::new();
    file.take(LONGEST_LINK).read_to_string(&mut target)?;
    Ok(target.into())
}

fn make_link(folder: &Path, name: &Path, target: &Path) -> Result<(), UnpackError> {
    stays_inside(target, name.components().count() - 1).map_err(|reason| entry(name, reason))?;
    let path = folder.join(name);
    Ok(symlink(target, &path).call(|| format!("make the link {}", path.display()))?)
}

/// No link is there yet. The mode is set whatever our umask is: the task may be any user.
fn make_folders(top: &Path, name: &Path) -> Result<(), UnpackError> {
    let mut at = top.to_owned();
    for part in name {
        at.push(part);
        let made = fs::create_dir(&at)
            .and_then(|()| fs::set_permissions(&at, Permissions::from_mode(0o755)));
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && at.is_dir() => {}
            answer => answer.call(|| format!("mkdir {}", at.display()))?,
        }
    }
    Ok(())
}

enum Unwritten {
    TooLarge,
    Read(io::Error),
    Call(CallError),
}

impl Unwritten {
    fn of(self, bounds: Bounds, name: &Path) -> UnpackError {
        match self {
            Self::TooLarge => UnpackError::TooLarge { bound: bounds.bytes, what: "bytes" },
            Self::Read(e) => entry(name, e.to_string()),
            Self::Call(e) => e.into(),
        }
    }
}

/// Headers may lie about the size: what comes is counted.
fn write(from: &mut impl Read, path: &Path, mode: u32, most: u64) -> Result<u64, Unwritten> {
    let call =
        |e: io::Error| Unwritten::Call(CallError::new(format!("write {}", path.display()), e));
    let mut to =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(call)?;
    let mut buffer = vec![0; super::BUFFER];
    let mut done = 0;
    loop {
        let length = from.read(&mut buffer).map_err(Unwritten::Read)?;
        if length == 0 {
            break;
        }
        done += length as u64;
        if done > most {
            return Err(Unwritten::TooLarge);
        }
        io::Write::write_all(&mut to, &buffer[..length]).map_err(call)?;
    }
    to.set_permissions(Permissions::from_mode(mode)).map_err(call)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside() {
        for (target, depth, inside) in [
            ("a", 0, true),
            ("../a", 1, true),
            ("../../a", 1, false),
            ("/etc", 3, false),
            ("a/../../..", 5, false),
            ("a/..", 0, false),
            ("./a", 0, true),
        ] {
            assert_eq!(stays_inside(Path::new(target), depth).is_ok(), inside, "{target}");
        }
    }
}
