//! Opening what a container is made of, on the host, once.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use hafen_spec::resolved::{Attrs, Device, DeviceType, Propagation};
use hafen_sys::file::{OpenHow, open_how, resolve};
use hafen_sys::mount::{MountAttr, clone_tree, set_attributes};
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

/// A detached copy of what is at `path`, with its attributes and propagation set while nobody can see it. `apart` is
/// the propagation of everything that came from the host, unless the mount asks for another.
///
/// # Errors
/// Names the call and the path.
pub fn bind(
    path: &Path,
    recursive: bool,
    apart: Propagation,
    attrs: Attrs,
    recursive_attrs: Attrs,
    propagation: &[(Propagation, bool)],
) -> Result<Source, CallError> {
    let tree = clone_tree(path, recursive)?;
    let kind = fstat(&tree).call(|| format!("stat {}", path.display()))?.st_mode;
    let named =
        |e: CallError| CallError::new(format!("{} of {}", e.call, path.display()), e.source);
    // A copy of a shared mount is its peer: what is mounted below it would appear on the host. Only
    // who asks for that gets it.
    let shares = propagation.iter().any(|(p, _)| *p == Propagation::Shared);
    let keep_apart = if shares { 0 } else { number(apart) };
    let all = MountAttr {
        set: recursive_attrs.set,
        clear: recursive_attrs.clear,
        propagation: keep_apart,
        userns_fd: 0,
    };
    if !all.is_empty() {
        set_attributes(&tree, &all, true).map_err(named)?;
    }
    for (propagation, whole_tree) in propagation {
        let wanted = MountAttr { propagation: number(*propagation), ..MountAttr::default() };
        set_attributes(&tree, &wanted, *whole_tree).map_err(named)?;
    }
    let top = MountAttr { set: attrs.set, clear: attrs.clear, ..MountAttr::default() };
    if !top.is_empty() {
        set_attributes(&tree, &top, false).map_err(named)?;
    }
    Ok(Source { tree, is_folder: kind & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() })
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
pub fn look(path: &Path) -> Result<Source, CallError> {
    let tree = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open {}", path.display()))?;
    let kind = fstat(&tree).call(|| format!("stat {}", path.display()))?.st_mode;
    Ok(Source { tree, is_folder: kind & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() })
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
