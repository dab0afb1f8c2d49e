//! Overlays that the runtime mounts itself, where nobody sees them.
//!
//! A container in a user namespace cannot mount the layers of an image: it would see the owners that the files have on
//! the disk, and overlayfs would not believe its marks. So the runtime shows each layer with mapped owners
//! (mount_setattr(2)), puts an overlay together from them in a mount namespace of its own, and hands the whole over as a
//! mount without a place. Overlayfs takes mapped layers since Linux 5.19.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use hafen_rootfs::copy_up::{self, Given};
use hafen_rootfs::{scratch, source};
use hafen_spec::plan::{ChildStep, Tmpfs};
use hafen_spec::resolved::{IdMaps, Owners};
use hafen_sys::mount::{attach, clone_tree, new_file_system, takes_layers_one_by_one};
use hafen_sys::{CallError, Context};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chroot, fchdir};

use crate::prepare::Prepared;

/// What a container writes over its layers goes with it, and need not come to the disk. Without this the end of each
/// waits until all that is unwritten on that disk, whoever wrote it, is there (`ovl_sync_fs`).
pub(crate) const VOLATILE: &str = "volatile";

/// The root file system of a container whose files have other owners than on the disk, as a mount without a place;
/// nothing for any other.
///
/// # Errors
/// Names the call, the layer or the file.
pub(crate) fn root(prepared: &Prepared) -> Result<Option<OwnedFd>, CallError> {
    let resolved = &prepared.resolved;
    let overlay = prepared.plan.child.iter().find_map(|step| match step {
        ChildStep::RootOverlay { scratch, tmpfs, .. } => Some((scratch, *tmpfs)),
        _ => None,
    });
    let (Some(owners), Some((scratch, tmpfs))) = (&resolved.user, overlay) else { return Ok(None) };
    let layers = resolved.root.layers();
    let parts = Parts { layers: &layers, scratch, tmpfs, owners, root: resolved.outer_root() };
    match resolved.root.owners {
        Owners::Same => Ok(None),
        Owners::Mapped => mapped(parts).map(Some),
        Owners::Copied => copied(parts).map(Some),
    }
}

/// What a root file system is put together from.
#[derive(Debug, Clone, Copy)]
struct Parts<'a> {
    /// Topmost first.
    layers: &'a [PathBuf],
    /// With `upper`, `work` and the empty `merged` in it.
    scratch: &'a Path,
    tmpfs: Option<Tmpfs>,
    owners: &'a IdMaps,
    /// Who is root inside.
    root: (u32, u32),
}

/// An overlay of layers whose owners are mapped.
fn mapped(parts: Parts<'_>) -> Result<OwnedFd, CallError> {
    elsewhere(|| {
        let staging = parts.scratch.join("merged");
        on_tmpfs(&staging, None)?;
        let namespace = source::namespace_of(parts.owners)?;
        let mut names = Vec::new();
        for (i, layer) in parts.layers.iter().enumerate() {
            let place = staging.join(i.to_string());
            make(&place)?;
            attach(&with_owners(layer, &namespace)?, &place)?;
            names.push(place);
        }
        let own = own_layer(parts)?;
        if takes_layers_one_by_one() {
            return one_by_one(&names, Some(&own));
        }
        let [upper, work] = own.map(|path| path.display().to_string());
        by_name(&names, &staging, &format!(",upperdir={upper},workdir={work},{VOLATILE}"))
    })
}

/// Upper and work folder, on a tmpfs over the scratch folder's own ones if that is wanted.
fn own_layer(parts: Parts<'_>) -> Result<[PathBuf; 2], CallError> {
    let Some(tmpfs) = parts.tmpfs else {
        return Ok(["upper", "work"].map(|name| parts.scratch.join(name)));
    };
    let top = parts.scratch.join("upper");
    on_tmpfs(&top, tmpfs.size)?;
    let own = ["upper", "work"].map(|name| top.join(name));
    own.iter().try_for_each(|folder| make(folder))?;
    scratch::give(&own[0], parts.root)?;
    Ok(own)
}

/// A copy of everything, with the owners that the maps give, as the scratch folder's upper layer.
fn copied(parts: Parts<'_>) -> Result<OwnedFd, CallError> {
    let all = merged(parts.layers, parts.scratch)?;
    let target = match parts.tmpfs {
        None => clone_tree(&parts.scratch.join("upper"), false, true)?,
        Some(tmpfs) => {
            let options: Result<Vec<_>, CallError> = tmpfs
                .size
                .map(|size| option(("size", size.to_string().into())))
                .into_iter()
                .collect();
            new_file_system(c"tmpfs", c"tmpfs", &options?, 0)?
        }
    };
    copy_up::fill(&target, &all, "/", Given::default(), Some(parts.owners))?;
    Ok(target)
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
            on_tmpfs(&staging, None)?;
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
    with_owners(layer, &source::namespace_of(owners)?).map(drop)
}

fn overlay_takes_mapped_layers() -> bool {
    const FIRST: (u32, u32) = (5, 19);
    let Ok(name) = nix::sys::utsname::uname() else { return false };
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= FIRST
}

fn with_owners(layer: &Path, namespace: &OwnedFd) -> Result<OwnedFd, CallError> {
    let tree = clone_tree(layer, false, true)?;
    let named =
        |e: CallError| CallError::new(format!("{} of {}", e.call, layer.display()), e.source);
    source::show_through(&tree, namespace, false).map_err(named)?;
    Ok(tree)
}

/// Since Linux 6.8.
fn one_by_one(layers: &[PathBuf], own: Option<&[PathBuf; 2]>) -> Result<OwnedFd, CallError> {
    let layers = layers.iter().map(|layer| option(("lowerdir+", layer.clone())));
    let own = own.into_iter().flat_map(|[upper, work]| {
        let folders = [("upperdir", upper), ("workdir", work)];
        let folders = folders.map(|(key, path)| option((key, path.clone())));
        folders.into_iter().chain([flag(VOLATILE)])
    });
    let options: Result<Vec<_>, CallError> = layers.chain(own).collect();
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
    Ok((text(key, key.as_bytes())?, Some(text(key, path.as_os_str().as_bytes())?)))
}

fn flag(key: &str) -> Result<(CString, Option<CString>), CallError> {
    Ok((text(key, key.as_bytes())?, None))
}

fn text(key: &str, bytes: &[u8]) -> Result<CString, CallError> {
    CString::new(bytes).map_err(std::io::Error::from).call(|| format!("overlay option {key}"))
}

fn on_tmpfs(place: &Path, size: Option<u64>) -> Result<(), CallError> {
    let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
    let data = format!("mode=700{size}");
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some(data.as_str()))
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
