//! What a layer takes over from the layers below it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use hafen_sys::{CallError, Context};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, futimens, mknodat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use rustix::fs::{SeekFrom, seek};

use super::error::shown;
use super::layer::too_large;
use super::tree::{self, FOLDER, Tree};
use super::{Bounds, UnpackError, Unpacked};

const BUFFER: usize = 128 << 10;
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// Finish a layer now that the layers below it (`below`, topmost first) are complete: implied folders take the
/// attributes of the folder that they merge with; pending links become copies of the lower file inside this
/// layer, linked, as a copy-up of both would be. What is copied counts as if the stream had it.
///
/// # Errors
/// Names the folder or the link. The layer is of no use then.
pub fn settle(
    folder: &OwnedFd,
    unpacked: &Unpacked,
    below: &[OwnedFd],
    bounds: Bounds,
) -> Result<Copied, UnpackError> {
    let mut layer = Settling {
        tree: Tree::new(folder),
        below,
        unpacked,
        bounds,
        copied: Copied::default(),
        reason: Path::new(""),
        implied: Vec::new(),
        times: BTreeMap::new(),
    };
    for path in &unpacked.implied {
        layer.implied.push(path.components().filter(|c| *c != Component::CurDir).collect());
    }
    for (link, target) in &unpacked.pending_links {
        layer.reason = link;
        layer.link(link, target)?;
    }
    for path in std::mem::take(&mut layer.implied) {
        layer.adopt(&path)?;
    }
    layer.drop_idle_whiteouts()?;
    layer.hide_root()?;
    layer.restore_times()?;
    Ok(layer.copied)
}

/// What was taken over for the sake of hard links.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    pub bytes: u64,
    pub entries: u64,
}

struct Settling<'a> {
    tree: Tree<'a>,
    below: &'a [OwnedFd],
    unpacked: &'a Unpacked,
    bounds: Bounds,
    copied: Copied,
    /// The link for whose sake something is copied.
    reason: &'a Path,
    implied: Vec<PathBuf>,
    /// Of folders, before anything was made in them.
    times: BTreeMap<PathBuf, TimeSpec>,
}

/// Something in a layer.
struct Found {
    folder: OwnedFd,
    name: OsString,
    stat: FileStat,
}

/// What one layer says of a path.
struct Seen {
    found: Option<Found>,
    /// Nothing further below counts.
    last: bool,
}

impl Settling<'_> {
    fn adopt(&mut self, path: &Path) -> Result<(), UnpackError> {
        let hidden = look(self.tree.top, path).call(|| says("look for", path))?.last;
        let Some(model) = self.find(path, hidden)? else { return Ok(()) };
        if tree::format(&model.stat) != SFlag::S_IFDIR {
            return Ok(());
        }
        let parent = self.tree.enter(tree::parent(path))?;
        describe_like(&model, &parent, tree::name(path)).call(|| says("describe", path))?;
        self.times.remove(path);
        Ok(())
    }

    /// What the layers below show there.
    fn find(&self, path: &Path, hidden: bool) -> Result<Option<Found>, CallError> {
        let below = if hidden { &[] } else { self.below };
        for layer in below {
            let seen = look(layer, path).call(|| says("look below for", path))?;
            if seen.found.is_some() || seen.last {
                return Ok(seen.found.filter(|found| !tree::is_whiteout(&found.stat)));
            }
        }
        Ok(None)
    }

    fn link(&mut self, link: &Path, target: &Path) -> Result<(), UnpackError> {
        let refused = |reason: &str| {
            let target = shown(target.as_os_str().as_encoded_bytes());
            UnpackError::at(link, format!("is a hard link to {target}, {reason}"))
        };
        let own = look(self.tree.top, target).call(|| says("look for", target))?;
        let kind = match own.found {
            Some(found) if tree::is_whiteout(&found.stat) => {
                return Err(refused("which the layer removes"));
            }
            Some(found) => tree::format(&found.stat),
            None => {
                let model = self.find(target, own.last)?;
                let model = model.ok_or_else(|| refused("which is in no layer below"))?;
                if tree::format(&model.stat) != SFlag::S_IFDIR {
                    self.copy(&model, target)?;
                }
                tree::format(&model.stat)
            }
        };
        if kind == SFlag::S_IFDIR {
            return Err(refused("a folder"));
        }
        let from = self.make_way(tree::parent(target))?;
        let to = self.make_way(tree::parent(link))?;
        self.keep_time(tree::parent(link), &to)?;
        linkat(&*from, tree::name(target), &*to, tree::name(link), AtFlags::empty())
            .call(|| says("link", link))?;
        Ok(())
    }

    /// Before it is made.
    fn count(&mut self, bytes: u64) -> Result<(), UnpackError> {
        let Copied { bytes: sum, entries } = &mut self.copied;
        *sum = sum.saturating_add(bytes);
        *entries += 1;
        let refused = |what, bound| Err(too_large(self.reason.as_os_str().as_bytes(), what, bound));
        let Bounds { bytes: most_bytes, entries: most_entries } = self.bounds;
        if self.unpacked.bytes.saturating_add(*sum) > most_bytes {
            return refused("bytes", most_bytes);
        }
        let implied = self.unpacked.implied.iter().filter(|path| **path != Path::new("."));
        let own = self.unpacked.entries + implied.count() as u64;
        match own + *entries > most_entries {
            true => refused("entries", most_entries),
            false => Ok(()),
        }
    }

    fn copy(&mut self, model: &Found, path: &Path) -> Result<(), UnpackError> {
        let parent = self.make_way(tree::parent(path))?;
        self.keep_time(tree::parent(path), &parent)?;
        let name = tree::name(path);
        let bytes = content_of(model).call(|| says("read from a layer below", path))?;
        self.count(bytes)?;
        make_like(model, &parent, name)
            .and_then(|()| describe_like(model, &parent, name))
            .call(|| says("copy from a layer below", path))?;
        Ok(())
    }

    /// The folder at `path`. Those that are missing will be as they are below.
    fn make_way(&mut self, path: &Path) -> Result<Rc<OwnedFd>, UnpackError> {
        match self.tree.enter(path) {
            Err(e) if e.is(Errno::ENOENT) => {}
            answer => return Ok(answer?),
        }
        let parent = self.make_way(tree::parent(path))?;
        self.keep_time(tree::parent(path), &parent)?;
        self.count(0)?;
        tree::make_folder(&*parent, tree::name(path)).call(|| says("make folder", path))?;
        self.implied.push(path.to_owned());
        Ok(self.tree.enter(path)?)
    }

    /// Overlayfs shows the whiteouts of a folder that merges with none below, as names that lead nowhere.
    fn drop_idle_whiteouts(&mut self) -> Result<(), UnpackError> {
        let mut open = vec![PathBuf::new()];
        while let Some(path) = open.pop() {
            let folder = self.tree.open(&path, OFlag::O_RDONLY)?;
            let listed = list(&folder).call(|| says("read folder", &path))?;
            let inner = listed.iter().filter(|(_, kind)| *kind == Type::Directory);
            open.extend(inner.map(|(name, _)| path.join(name)));
            let whiteouts = whiteouts(&folder, listed).call(|| says("read folder", &path))?;
            if whiteouts.is_empty() || self.merges(&path, &folder)? {
                continue;
            }
            self.keep_time(&path, &folder)?;
            for name in &whiteouts {
                unlinkat(&folder, name.as_os_str(), UnlinkatFlags::NoRemoveDir)
                    .call(|| says("remove an idle whiteout from", &path))?;
            }
        }
        Ok(())
    }

    fn merges(&self, path: &Path, folder: &OwnedFd) -> Result<bool, CallError> {
        let call = || says("look for", path);
        let hidden =
            tree::is_opaque(folder).call(call)? || look(self.tree.top, path).call(call)?.last;
        let below = self.find(path, hidden)?;
        Ok(below.is_some_and(|found| tree::format(&found.stat) == SFlag::S_IFDIR))
    }

    /// Overlayfs does not look whether the root of a lower layer is opaque: each name in it has to be.
    fn hide_root(&mut self) -> Result<(), UnpackError> {
        let root = Path::new("");
        let top = self.tree.open(root, OFlag::O_RDONLY)?;
        if !tree::is_opaque(&top).call(|| says("read the attributes of", root))? {
            return Ok(());
        }
        self.keep_time(root, &top)?;
        for layer in self.below {
            let listed = list(layer).call(|| "read the root of a layer below".to_owned())?;
            for (name, _) in &listed {
                hide(&top, name).call(|| says("hide what is below", Path::new(name)))?;
            }
        }
        Ok(())
    }

    /// Before something is made in the folder.
    fn keep_time(&mut self, path: &Path, folder: &OwnedFd) -> Result<(), UnpackError> {
        if !self.times.contains_key(path) {
            let stat = fstat(folder).call(|| says("stat", path))?;
            self.times.insert(path.to_owned(), modified(&stat));
        }
        Ok(())
    }

    fn restore_times(&self) -> Result<(), UnpackError> {
        for (path, time) in &self.times {
            let folder = self.tree.open(path, OFlag::O_RDONLY)?;
            futimens(&folder, time, time).call(|| says("set the times of", path))?;
        }
        Ok(())
    }
}

/// Walk one layer as overlayfs does: component by component, and no link is followed.
fn look(layer: &OwnedFd, path: &Path) -> io::Result<Seen> {
    let flags = FOLDER | OFlag::O_RDONLY;
    let mut folder = openat(layer, ".", flags, Mode::empty())?;
    let mut last = false;
    let mut parts = path.iter().peekable();
    let Some(mut name) = parts.next() else {
        let stat = fstat(&folder)?;
        return Ok(Seen { found: Some(Found { folder, name: ".".into(), stat }), last });
    };
    loop {
        last |= tree::is_opaque(&folder)?;
        let Some(stat) = tree::stat(&folder, name)? else {
            return Ok(Seen { found: None, last });
        };
        let Some(next) = parts.next() else {
            return Ok(Seen { found: Some(Found { folder, name: name.into(), stat }), last });
        };
        if tree::format(&stat) != SFlag::S_IFDIR {
            return Ok(Seen { found: None, last: true });
        }
        folder = openat(&folder, name, flags, Mode::empty())?;
        name = next;
    }
}

fn list(folder: &OwnedFd) -> nix::Result<Vec<(OsString, Type)>> {
    let mut listed = Vec::new();
    let mut entries = Dir::from_fd(openat(folder, ".", FOLDER, Mode::empty())?)?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            let kind = entry.file_type().map_or_else(|| kind(folder, name), Ok)?;
            listed.push((name.to_owned(), kind));
        }
    }
    Ok(listed)
}

/// Not every file system says it in its folders.
fn kind(folder: &OwnedFd, name: &OsStr) -> nix::Result<Type> {
    Ok(match tree::stat(folder, name)?.map(|stat| tree::format(&stat)) {
        Some(SFlag::S_IFDIR) => Type::Directory,
        Some(SFlag::S_IFCHR) => Type::CharacterDevice,
        // Nobody asks further.
        _ => Type::File,
    })
}

fn whiteouts(folder: &OwnedFd, listed: Vec<(OsString, Type)>) -> nix::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for (name, _) in listed.into_iter().filter(|(_, kind)| *kind == Type::CharacterDevice) {
        if tree::stat(folder, &name)?.is_some_and(|stat| tree::is_whiteout(&stat)) {
            names.push(name);
        }
    }
    Ok(names)
}

fn hide(folder: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    match tree::stat(folder, name)? {
        None => tree::make_whiteout(folder, name),
        Some(stat) if tree::format(&stat) == SFlag::S_IFDIR => tree::make_opaque(folder, name),
        Some(_) => Ok(()),
    }
}

/// The same content, still without its attributes.
fn make_like(model: &Found, folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    match tree::format(&model.stat) {
        SFlag::S_IFREG => {
            let from = open_file(model)?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let to = File::from(openat(folder, name, flags, mode)?);
            copy_content(&from, &to, model.stat.st_size.cast_unsigned())
        }
        SFlag::S_IFLNK => {
            let target = readlinkat(&model.folder, model.name.as_os_str())?;
            Ok(symlinkat(target.as_os_str(), folder, name)?)
        }
        kind => Ok(mknodat(folder, name, kind, mode, model.stat.st_rdev)?),
    }
}

/// A clone where the file system has them; else what is stored, and holes stay holes.
fn copy_content(from: &File, to: &File, size: u64) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(size)?;
    let mut buffer = vec![0; BUFFER];
    let mut done = 0;
    while let Some((mut at, end)) = next_piece(from, done)? {
        while at < end {
            let length = (end - at).min(BUFFER as u64) as usize;
            from.read_exact_at(&mut buffer[..length], at)?;
            to.write_all_at(&buffer[..length], at)?;
            at += length as u64;
        }
        done = end;
    }
    Ok(())
}

fn open_file(model: &Found) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(&model.folder, model.name.as_os_str(), flags, Mode::empty()).map(File::from)
}

/// Without its holes, whether it will be a clone or a copy.
fn content_of(model: &Found) -> io::Result<u64> {
    if tree::format(&model.stat) != SFlag::S_IFREG {
        return Ok(0);
    }
    let file = open_file(model)?;
    let (mut sum, mut done) = (0, 0);
    while let Some((at, end)) = next_piece(&file, done)? {
        sum += end - at;
        done = end;
    }
    Ok(sum)
}

/// Content from there on. `None`: nothing but a hole up to the end.
fn next_piece(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    match seek(file, SeekFrom::Data(from)) {
        Err(rustix::io::Errno::NXIO) => Ok(None),
        at => {
            let at = at?;
            Ok(Some((at, seek(file, SeekFrom::Hole(at))?)))
        }
    }
}

/// Owner, attributes, mode and times: a chown takes set-id bits and capabilities away.
fn describe_like(model: &Found, folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let stat = &model.stat;
    let mode = (tree::format(stat) != SFlag::S_IFLNK).then_some(stat.st_mode & 0o7777);
    tree::describe_by_name(folder, name, Some((stat.st_uid, stat.st_gid)), None)?;
    copy_attributes(
        &tree::by_descriptor(&model.folder, &model.name),
        &tree::by_descriptor(folder, name),
    )?;
    tree::describe_by_name(folder, name, None, mode)?;
    Ok(tree::date_by_name(folder, name, &modified(stat))?)
}

fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = tree::attribute_names(from)?;
    // Overlay's own marks are each layer's.
    names.retain(|name| !name.to_bytes().starts_with(b"trusted.overlay."));
    let mut value = vec![0; if names.is_empty() { 0 } else { tree::LARGEST_ATTRIBUTE }];
    for name in &names {
        let size = rustix::fs::lgetxattr(from, name.as_c_str(), &mut value[..])?;
        tree::set_attribute(to, name.to_bytes(), &value[..size])?;
    }
    // What was made in a folder with a default ACL has inherited it.
    for acl in ACLS.iter().filter(|acl| names.iter().all(|name| name.to_bytes() != **acl)) {
        use rustix::io::Errno;
        match rustix::fs::lremovexattr(to, *acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn modified(stat: &FileStat) -> TimeSpec {
    TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec)
}

fn says(verb: &str, path: &Path) -> String {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    format!("{verb} {}", shown(path.as_os_str().as_encoded_bytes()))
}
