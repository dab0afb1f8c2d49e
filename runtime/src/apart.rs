//! Overlays that the runtime mounts itself, where nobody sees them.
//!
//! A container in a user namespace cannot mount the layers of an image: it would see the owners that the files have on
//! the disk, and overlayfs would not believe its marks. So the runtime shows each layer with mapped owners
//! (mount_setattr(2)), puts an overlay together from them in a mount namespace of its own, and hands the whole over as a
//! mount without a place. Overlayfs takes mapped layers since Linux 5.19.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use hafen_rootfs::copy_up::{self, Given};
use hafen_rootfs::source;
use hafen_spec::resolved::IdMaps;
use hafen_sys::mount::{
    MOUNT_ATTR_IDMAP, MountAttr, attach, clone_tree, new_file_system, set_attributes,
    takes_layers_one_by_one,
};
use hafen_sys::userns;
use hafen_sys::{CallError, Context};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chroot, fchdir};

/// What a root file system is put together from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    /// Topmost first.
    pub(crate) layers: &'a [PathBuf],
    /// With `upper`, `work` and the empty `merged` in it.
    pub(crate) scratch: &'a Path,
    pub(crate) owners: &'a IdMaps,
}

/// An overlay of layers whose owners are mapped.
///
/// # Errors
/// Names the call and the layer.
pub(crate) fn mapped(parts: Parts<'_>) -> Result<OwnedFd, CallError> {
    elsewhere(|| {
        let staging = parts.scratch.join("merged");
        on_tmpfs(&staging)?;
        let namespace = namespace(parts.owners)?;
        let mut names = Vec::new();
        for (i, layer) in parts.layers.iter().enumerate() {
            let place = staging.join(i.to_string());
            make(&place)?;
            attach(&with_owners(layer, &namespace)?, &place)?;
            names.push(place);
        }
        if takes_layers_one_by_one() {
            return one_by_one(&names, Some(parts.scratch));
        }
        by_name(&names, &staging, ",upperdir=../upper,workdir=../work")
    })
}

/// A copy of everything, with the owners that the mapping gives, in the scratch folder.
///
/// # Errors
/// Names the call and the file.
pub(crate) fn copied(parts: Parts<'_>) -> Result<OwnedFd, CallError> {
    let all = merged(parts.layers, parts.scratch)?;
    let target = parts.scratch.join("upper");
    let folder = folder(&target)?;
    copy_up::fill(&folder, &all, "/", Given::default(), Some(parts.owners))?;
    clone_tree(&target, false, true)
}

/// All layers as one, to be read only. `scratch` is a folder with an empty folder `merged`.
///
/// # Errors
/// Names the call.
pub(crate) fn merged(layers: &[PathBuf], scratch: &Path) -> Result<OwnedFd, CallError> {
    match layers {
        [only] => folder(only),
        _ if takes_layers_one_by_one() => one_by_one(layers, None),
        _ => elsewhere(|| {
            let staging = scratch.join("merged");
            on_tmpfs(&staging)?;
            by_name(layers, &staging, "")
        }),
    }
}

/// Can the layer be shown with other owners? Looks, changes nothing.
///
/// # Errors
/// The kernel's answer, or why it is not asked.
pub(crate) fn takes_owners(layer: &Path, owners: &IdMaps) -> Result<(), CallError> {
    if !overlay_takes_mapped_layers() {
        return Err(CallError::errno(
            "overlayfs on mapped layers (Linux 5.19)",
            nix::errno::Errno::ENOSYS,
        ));
    }
    with_owners(layer, &namespace(owners)?).map(drop)
}

fn overlay_takes_mapped_layers() -> bool {
    const FIRST: (u32, u32) = (5, 19);
    let Ok(name) = nix::sys::utsname::uname() else { return false };
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= FIRST
}

fn namespace(owners: &IdMaps) -> Result<OwnedFd, CallError> {
    userns::with_maps(&source::lines(&owners.uids), &source::lines(&owners.gids))
}

fn with_owners(layer: &Path, namespace: &OwnedFd) -> Result<OwnedFd, CallError> {
    let tree = clone_tree(layer, false, true)?;
    let userns_fd = u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX);
    let mapped = MountAttr { set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() };
    let named = |e: CallError| {
        CallError::new(format!("map the owners of {}: {}", layer.display(), e.call), e.source)
    };
    set_attributes(&tree, &mapped, false).map_err(named)?;
    Ok(tree)
}

/// Since Linux 6.8.
fn one_by_one(layers: &[PathBuf], scratch: Option<&Path>) -> Result<OwnedFd, CallError> {
    let own = |name| scratch.map(|scratch| scratch.join(name));
    let own = [("upperdir", own("upper")), ("workdir", own("work"))];
    let own = own.into_iter().filter_map(|(key, path)| Some((key, path?)));
    let layers = layers.iter().map(|layer| ("lowerdir+", layer.clone()));
    let options: Result<Vec<_>, CallError> = layers.chain(own).map(option).collect();
    new_file_system(c"overlay", c"overlay", &options?, 0)
}

/// All in one text of a page: each layer has a short name in `staging`.
fn by_name(layers: &[PathBuf], staging: &Path, own: &str) -> Result<OwnedFd, CallError> {
    for (i, layer) in layers.iter().enumerate().filter(|(_, layer)| !layer.starts_with(staging)) {
        let link = staging.join(i.to_string());
        std::os::unix::fs::symlink(layer, &link).call(|| format!("symlink {}", link.display()))?;
    }
    let root = staging.join("root");
    make(&root)?;
    std::env::set_current_dir(staging).call(|| format!("chdir {}", staging.display()))?;
    let names: Vec<String> = (0..layers.len()).map(|i| i.to_string()).collect();
    let data = format!("lowerdir={}{own}", names.join(":"));
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        .call(|| format!("mount an overlay of {} layers", layers.len()))?;
    clone_tree(&root, false, true)
}

fn option((key, path): (&str, PathBuf)) -> Result<(CString, Option<CString>), CallError> {
    use std::os::unix::ffi::OsStrExt;
    let text = |bytes: &[u8]| {
        CString::new(bytes).map_err(std::io::Error::from).call(|| format!("overlay option {key}"))
    };
    Ok((text(key.as_bytes())?, Some(text(path.as_os_str().as_bytes())?)))
}

fn on_tmpfs(place: &Path) -> Result<(), CallError> {
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=700"))
        .call(|| format!("mount tmpfs on {}", place.display()))
}

fn make(folder: &Path) -> Result<(), CallError> {
    fs::create_dir(folder).call(|| format!("mkdir {}", folder.display()))
}

fn folder(path: &Path) -> Result<OwnedFd, CallError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).call(|| format!("open {}", path.display()))
}

/// Do something in a mount namespace that nobody else sees, and come back.
fn elsewhere<T>(act: impl FnOnce() -> Result<T, CallError>) -> Result<T, CallError> {
    let way_back = WayBack::new()?;
    unshare(CloneFlags::CLONE_NEWNS).call(|| "unshare the mount namespace".to_owned())?;
    let apart = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let done = mount(None::<&str>, "/", None::<&str>, apart, None::<&str>)
        .call(|| "make / private".to_owned())
        .and_then(|()| act());
    way_back.go()?;
    done
}

/// Joining a mount namespace changes root and working directory to its own (setns(2)): the caller's may be others.
struct WayBack {
    namespace: OwnedFd,
    root: OwnedFd,
    here: OwnedFd,
}

impl WayBack {
    fn new() -> Result<Self, CallError> {
        const OWN: &str = "/proc/self/ns/mnt";
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let namespace = open(OWN, flags, Mode::empty()).call(|| format!("open {OWN}"))?;
        Ok(Self { namespace, root: folder(Path::new("/"))?, here: folder(Path::new("."))? })
    }

    fn go(self) -> Result<(), CallError> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNS)
            .call(|| "go back to the own mount namespace".to_owned())?;
        fchdir(&self.root)
            .and_then(|()| chroot("."))
            .call(|| "chroot to the own root".to_owned())?;
        fchdir(&self.here).call(|| "go back to the working directory".to_owned())
    }
}
