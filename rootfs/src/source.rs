//! Opening what a container is made of, on the host, once.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use hafen_spec::resolved::{
    Device, DeviceType, IdMap, IdMapSource, IdMaps, Mount, MountIdMap, Propagation,
};
use hafen_sys::file::{OpenHow, open_how, resolve};
use hafen_sys::mount::{MOUNT_ATTR_IDMAP, MountAttr, clone_tree, set_attributes};
use hafen_sys::userns;
use hafen_sys::weaken::{Defence, left_out};
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat, makedev};

/// A source of a bind mount, as a mount that nobody sees yet.
#[derive(Debug)]
pub struct Source {
    pub tree: OwnedFd,
    pub is_folder: bool,
    /// Nothing is mounted: a symlink that leads there is made.
    pub link: Option<PathBuf>,
}

impl Source {
    fn new(tree: OwnedFd, mode: u32) -> Self {
        let is_folder = mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
        Self { tree, is_folder, link: None }
    }

    /// A file system that was made for the container.
    #[must_use]
    pub const fn made(tree: OwnedFd) -> Self {
        Self { tree, is_folder: true, link: None }
    }
}

/// The folder that `root.path` of a bundle names. A relative path must stay inside the bundle, and
/// neither kind may end in a symlink: whoever made the link would choose the root file system.
///
/// # Errors
/// Names the field and the path.
pub fn root_folder(bundle: &Path, path: &Path) -> Result<(PathBuf, OwnedFd), CallError> {
    let full = bundle.join(path);
    if left_out(Defence::RootSymlink) {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = open(&full, flags, Mode::empty()).call(|| format!("open {}", full.display()));
        return Ok((full, folder?));
    }
    let named = |e: CallError| {
        CallError::new(format!("root.path: open {}", full.display()), explain(e.source))
    };
    let folder = if path.is_absolute() {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        open(path, flags, Mode::empty()).call(String::new)
    } else {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let base = open(bundle, flags, Mode::empty())
            .call(|| format!("open bundle {}", bundle.display()))?;
        let how = OpenHow {
            flags: u64::from((flags | OFlag::O_NOFOLLOW).bits().cast_unsigned()),
            mode: 0,
            resolve: resolve::BENEATH | resolve::NO_MAGICLINKS,
        };
        open_how(&base, path, how)
    };
    Ok((full.clone(), folder.map_err(named)?))
}

/// The kernel's numbers for "not what a root may be", in words.
fn explain(error: std::io::Error) -> std::io::Error {
    let say = |text: &str| std::io::Error::new(error.kind(), text.to_owned());
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOTDIR) => say("not a folder (a symlink is not followed)"),
        Some(Errno::ELOOP) => say("a symlink is not followed"),
        Some(Errno::EXDEV) => say("leads out of the bundle"),
        _ => error,
    }
}

/// A detached copy of what a bind mount shows, with its attributes, owners and propagation set while nobody can see it.
/// `apart` is the propagation of everything that came from the host, unless the mount asks for another.
///
/// # Errors
/// Names the call and the path.
pub fn bind(
    path: &Path,
    recursive: bool,
    follow: bool,
    apart: Propagation,
    mount: &Mount,
) -> Result<Source, CallError> {
    let tree = clone_tree(path, recursive, follow)?;
    let kind = fstat(&tree).call(|| format!("stat {}", path.display()))?.st_mode;
    let named =
        |e: CallError| CallError::new(format!("{} of {}", e.call, path.display()), e.source);
    if let Some(id_map) = &mount.id_map {
        map_owners(&tree, id_map).map_err(named)?;
    }
    // A copy of a shared mount is its peer: what is mounted below it would appear on the host. Only
    // who asks for that gets it.
    let shares = mount.propagation.iter().any(|(p, _)| *p == Propagation::Shared);
    let keep_apart = if shares { 0 } else { number(apart) };
    let all = MountAttr {
        set: mount.recursive_attrs.set,
        clear: mount.recursive_attrs.clear,
        propagation: keep_apart,
        userns_fd: 0,
    };
    if !all.is_empty() {
        set_attributes(&tree, &all, true).map_err(named)?;
    }
    for (propagation, whole_tree) in mount.propagation.iter().filter(|(p, _)| !is_left(*p)) {
        let wanted = MountAttr { propagation: number(*propagation), ..MountAttr::default() };
        set_attributes(&tree, &wanted, *whole_tree).map_err(named)?;
    }
    let top = MountAttr { set: mount.attrs.set, clear: mount.attrs.clear, ..MountAttr::default() };
    if !top.is_empty() {
        set_attributes(&tree, &top, false).map_err(named)?;
    }
    Ok(Source::new(tree, kind))
}

/// What is unbindable cannot be copied any more, so it is made so when it is in its place.
#[must_use]
pub fn is_left(propagation: Propagation) -> bool {
    propagation == Propagation::Unbindable
}

/// Show other owners than the file system has (mount_setattr(2), MOUNT_ATTR_IDMAP).
fn map_owners(tree: &OwnedFd, id_map: &MountIdMap) -> Result<(), CallError> {
    let namespace = match &id_map.source {
        IdMapSource::Maps(maps) => namespace_of(maps)?,
        IdMapSource::Joined(path) => {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            open(path, flags, Mode::empty()).call(|| format!("open {}", path.display()))?
        }
    };
    show_through(tree, &namespace, id_map.recursive)
}

/// A user namespace for nothing but its maps.
///
/// # Errors
/// Names the map.
pub fn namespace_of(maps: &IdMaps) -> Result<OwnedFd, CallError> {
    userns::with_maps(&lines(&maps.uids), &lines(&maps.gids))
}

/// Show the files of a mount that nobody sees yet with the owners that they have in this user namespace.
///
/// # Errors
/// Says what may be the reason.
pub fn show_through(tree: &OwnedFd, namespace: &OwnedFd, recursive: bool) -> Result<(), CallError> {
    let userns_fd = u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX);
    let mapped = MountAttr { set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() };
    set_attributes(tree, &mapped, recursive).map_err(|e| {
        let hint = match e.is(Errno::EINVAL) {
            true => " (not every file system can, and none that is mapped already)",
            false => "",
        };
        CallError::new(format!("map the owners{hint}"), e.source)
    })
}

/// As `/proc/PID/uid_map` takes them.
fn lines(map: &[IdMap]) -> String {
    map.iter().map(|line| format!("{} {} {}\n", line.inside, line.outside, line.size)).collect()
}

/// A symlink as it is; nothing for anything else.
///
/// # Errors
/// Names the path.
pub fn link(path: &Path) -> Result<Option<Source>, CallError> {
    match std::fs::read_link(path) {
        Ok(target) => Ok(Some(Source { link: Some(target), ..look(path, false)? })),
        Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(None),
        Err(e) => Err(e).call(|| format!("readlink {}", path.display())),
    }
}

/// Is the opened device the one that the bundle describes?
///
/// # Errors
/// Names the device and what is at its path on the host.
pub fn check_device(source: &Source, device: &Device) -> Result<(), CallError> {
    let found = fstat(&source.tree).call(|| format!("stat {}", device.path))?;
    let kind = match device.kind {
        DeviceType::Block => SFlag::S_IFBLK,
        DeviceType::Char => SFlag::S_IFCHR,
        DeviceType::Fifo => SFlag::S_IFIFO,
    };
    let number = makedev(u64::from(device.major), u64::from(device.minor));
    if found.st_mode & SFlag::S_IFMT.bits() == kind.bits() && found.st_rdev == number {
        return Ok(());
    }
    let call = format!(
        "bind device {} ({:?} {}:{})",
        device.path, device.kind, device.major, device.minor
    );
    let words =
        "the host has another one there, and a user namespace can have no device of its own";
    Err(CallError::new(call, std::io::Error::other(words)))
}

/// The `MS_*` number of a propagation type (mount(2)).
#[must_use]
pub const fn number(propagation: Propagation) -> u64 {
    match propagation {
        Propagation::Unbindable => 1 << 17,
        Propagation::Private => 1 << 18,
        Propagation::Slave => 1 << 19,
        Propagation::Shared => 1 << 20,
    }
}

/// Only what kind of thing is at `path`, for hosts whose kernel has no open_tree(2).
///
/// # Errors
/// Names the path.
pub fn look(path: &Path, follow: bool) -> Result<Source, CallError> {
    let flags = if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    let tree = open(path, flags | OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open {}", path.display()))?;
    let kind = fstat(&tree).call(|| format!("stat {}", path.display()))?.st_mode;
    Ok(Source::new(tree, kind))
}

/// A detached copy of the folder behind a descriptor with everything mounted below it.
///
/// # Errors
/// Names the path that the folder was opened by.
pub fn copy_of(
    folder: &OwnedFd,
    path: &Path,
    propagation: Propagation,
) -> Result<OwnedFd, CallError> {
    let named = |e: CallError| {
        CallError::new(format!("{} of root file system {}", e.call, path.display()), e.source)
    };
    let tree = hafen_sys::mount::clone_tree_at(folder, true).map_err(named)?;
    let apart = MountAttr { propagation: number(propagation), ..MountAttr::default() };
    set_attributes(&tree, &apart, true).map_err(named)?;
    Ok(tree)
}
