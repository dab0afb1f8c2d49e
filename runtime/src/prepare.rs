//! From a bundle to a plan, without an effect on the machine. `explain` stops here.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use hafen_isolator::seccomp::Filter;
use hafen_isolator::{cgroup, resctrl, systemd};
use hafen_rootfs::store::{Guard, Image, Named, Stack, Store, Use};
use hafen_rootfs::{CgroupView, account, source};
use hafen_spec::facts::Home;
use hafen_spec::image::Digest;
use hafen_spec::plan::{Claim, HostStep, Plan};
use hafen_spec::resolve::{Held, Options, resolve, resolve_update};
use hafen_spec::resolved::{Namespace, Owners, Process};
use hafen_spec::{HostFacts, Problems, Resolved, parse};
use hafen_sys::weaken::{Defence, left_out};
use hafen_sys::{CallError, Context};
use oci_spec::runtime::{LinuxResources, Spec};
use serde::Serialize;

use crate::encode::takes_layers_one_by_one;
use crate::filters::{self, Compiled};
use crate::upper::Place;
use crate::volumes::VolumeBase;
use crate::{Error, activation, apart, facts, notify, plan, rootless};
use hafen_sys::file::boot_id;

/// Everything that is decided before the first effect.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) resolved: Resolved,
    pub(crate) facts: HostFacts,
    pub(crate) plan: Plan,
    pub(crate) compiled: Option<Compiled>,
    /// The specification as it was read.
    pub(crate) config: Vec<u8>,
    /// The root file system, seen and opened.
    pub(crate) root: Option<OwnedFd>,
    /// Until the use of its layers and volumes is written down, nobody removes them.
    pub(crate) stores: Vec<Guard>,
}

impl Prepared {
    pub(crate) fn filter(&self) -> Option<&Filter> {
        self.compiled.as_ref().map(|compiled| &compiled.filter)
    }
}

/// What the caller adds to the specification.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) options: Options,
    /// The state folder of the container.
    pub(crate) state: PathBuf,
    /// The container waits for `start`.
    pub(crate) waits: bool,
    /// The container will be made: a runtime without rights of its own enters the user namespace now.
    pub(crate) real: bool,
    /// It is not to run without a cgroup (`--rootless=false`).
    pub(crate) needs_cgroup: bool,
}

impl Request {
    /// The folder of all containers.
    fn root(&self) -> &Path {
        self.state.parent().unwrap_or(&self.state)
    }
}

/// A specification, and where it came from.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) path: PathBuf,
    /// The specification's own path.
    pub(crate) file: PathBuf,
    /// What of it was passed over, in words.
    pub(crate) warnings: Vec<String>,
    pub(crate) spec: Spec,
    pub(crate) bytes: Vec<u8>,
    /// The image that it was made from.
    pub(crate) image: Option<ImageBase>,
    /// Where the changes of a container go that stands on an overlay.
    pub(crate) place: Option<Place>,
    pub(crate) volumes: Option<VolumeBase>,
    /// Limits of the folder above that of its cgroup.
    pub(crate) outer: Option<LinuxResources>,
}

/// An image as the root file system of a container.
#[derive(Debug)]
pub(crate) struct ImageBase {
    pub(crate) store: Store,
    pub(crate) named: Named,
    pub(crate) image: Image,
    /// Chain ids, from below; not empty.
    pub(crate) chain: Vec<Digest>,
    /// The folders of the layers, topmost first.
    pub(crate) layers: Vec<PathBuf>,
    /// What they show of accounts.
    pub(crate) stack: Stack,
    /// The layers stay until their use is written down.
    pub(crate) guard: Guard,
}

impl Bundle {
    /// The layers below the topmost one.
    pub(crate) fn below(&self) -> Vec<PathBuf> {
        self.image.as_ref().map(|image| image.layers[1..].to_vec()).unwrap_or_default()
    }
}

impl ImageBase {
    /// The topmost layer.
    pub(crate) fn top(&self) -> &Path {
        &self.layers[0]
    }

    /// What is written down before the container is made.
    fn usage(&self, container: &Path) -> Result<(Claim, HostStep), Error> {
        let usage = Use {
            boot_id: boot_id()?,
            container: container.to_owned(),
            image: self.named.reference.clone(),
            layers: self.chain.clone(),
            digest: self.image.digest.clone(),
        };
        let name = self.store.named_path(&self.named);
        write_down(self.store.use_path(container), &usage, Some(name))
    }
}

/// The note of a use in a store, as a claim and the step that makes it.
pub(crate) fn write_down(
    path: PathBuf,
    usage: &impl Serialize,
    touched: Option<PathBuf>,
) -> Result<(Claim, HostStep), Error> {
    let text = serde_json::to_string(usage).map_err(|e| Error::Refused(e.to_string()))?;
    Ok((Claim::Use { path: path.clone() }, HostStep::WriteUse { path, text, touched }))
}

/// Read `config.json` of a bundle, or another file: its path is one from the bundle.
///
/// # Errors
/// Names the file, or every field that is wrong.
pub(crate) fn read_bundle(bundle: &Path, file: &Path) -> Result<Bundle, Error> {
    let bundle = fs::canonicalize(bundle).call(|| format!("open bundle {}", bundle.display()))?;
    let path = bundle.join(file);
    let bytes = match fs::read(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let words = format!("JSON specification file {} not found", file.display());
            return Err(CallError::new(format!("{words}: open {}", path.display()), e).into());
        }
        answer => answer.call(|| format!("read {}", path.display()))?,
    };
    let mut warnings = Vec::new();
    let wrong = |source| Error::Bundle { path: path.clone(), source };
    let spec = parse::parse_noting(&bytes, &mut warnings).map_err(wrong)?;
    Ok(Bundle {
        path: bundle,
        file: path,
        warnings,
        spec,
        bytes,
        image: None,
        place: None,
        volumes: None,
        outer: None,
    })
}

const NOT_ROOT: &str =
    "--systemd-cgroup: only root may ask systemd, a user's own is not asked: leave the option out";
const NO_SYSTEMD: &str = "--systemd-cgroup: systemd is not running as this machine's init \
    (there is no /run/systemd/system): leave the option out, and cgroups are made directly";

/// Resolve and plan. Only looks: nothing on the machine is changed.
///
/// # Errors
/// Every problem of the bundle, or the call that failed.
pub(crate) fn prepare(bundle: Bundle, request: &Request) -> Result<Prepared, Error> {
    let Bundle { file, warnings, spec, bytes, image, place, volumes, outer, .. } = bundle;
    if request.options.systemd_cgroup && !systemd::is_running() {
        return Err(Error::Refused(NO_SYSTEMD.to_owned()));
    }
    if request.options.systemd_cgroup && !nix::unistd::geteuid().is_root() {
        return Err(Error::Refused(NOT_ROOT.to_owned()));
    }
    let facts = facts::gather()?;
    let wrong = |source| Error::Bundle { path: file.clone(), source };
    let mut resolved = if left_out(Defence::CgroupPath) {
        resolve_any_cgroup(&spec, &facts, &request.options).map_err(wrong)?
    } else {
        resolve(&spec, &facts, &request.options).map_err(wrong)?
    };
    if let Some(outer) = &outer {
        let held = Held::default();
        (resolved.outer, _) = resolve_update(outer, &facts, &held).map_err(wrong)?;
    }
    resolved.warnings.extend(warnings);
    resolved.cgroup = cgroup::place(&resolved.cgroup, &facts.cgroup);
    if resolved.rootless.is_some() {
        rootless::check(&mut resolved, &facts, request).map_err(wrong)?;
    }
    if request.real && resolved.born_inside() {
        rootless::enter(&resolved)?;
    }
    notify::add_to(&mut resolved, &request.state);
    activation::add_to(&mut resolved);
    let root = open_root(&mut resolved)?;
    choose_owners(&mut resolved);
    give_home(&mut resolved.process, root.as_ref());
    let missing = cgroup::missing_parents(&resolved, &facts);
    cgroup::check_free(&resolved, &facts, &missing)?;
    let mut cgroup = cgroup::share(&resolved, &facts, &missing).map_err(wrong)?;
    if let Some(rdt) = &resolved.intel_rdt {
        resctrl::add(&mut cgroup, rdt, resctrl::mount_point().as_deref()).map_err(wrong)?;
    }
    let view = cgroup_view(&facts, &resolved, &cgroup.claims);
    let scratch = place.map(|place| place.scratch(&request.state, &resolved.root.path));
    let mut scratch = scratch.transpose()?.unwrap_or_default();
    scratch.short_names = !resolved.root.below.is_empty() && !takes_layers_one_by_one(&facts);
    if let Some(volumes) = &volumes {
        volumes.add_mounts(&mut resolved, &scratch);
    }
    let mut rootfs = hafen_rootfs::share(&resolved, &view, &scratch, facts.rootless);
    if let Some(volumes) = &volumes {
        volumes.add_steps(&mut rootfs, &resolved, &scratch, &request.state)?;
    }
    if let Some(image) = &image {
        let (claim, step) = image.usage(&request.state)?;
        rootfs.claims.insert(0, claim);
        rootfs.before.insert(0, step);
    }
    let compiled = resolved
        .seccomp
        .as_ref()
        .map(|profile| filters::compile(profile, request.root()))
        .transpose()
        .map_err(wrong)?;
    let instructions = compiled.as_ref().map(|c| c.filter.len());
    let plan = plan::order(&resolved, cgroup, rootfs, instructions, request.waits);
    let facts = if resolved.in_user_namespace() { facts.in_user_namespace() } else { facts };
    let stores = image.map(|image| image.guard).into_iter().chain(volumes.and_then(|v| v.guard));
    let stores = stores.collect();
    Ok(Prepared { resolved, facts, plan, compiled, root, config: bytes, stores })
}

/// With the cgroup's path as it is written (tests only).
fn resolve_any_cgroup(
    spec: &Spec,
    facts: &HostFacts,
    options: &Options,
) -> Result<Resolved, Problems> {
    let mut spec = spec.clone();
    let mut linux = spec.linux().clone().unwrap_or_default();
    let path = linux.cgroups_path().clone().unwrap_or_default();
    linux.set_cgroups_path(None);
    spec.set_linux(Some(linux));
    let mut resolved = resolve(&spec, facts, options)?;
    resolved.cgroup = path.to_string_lossy().trim_start_matches('/').to_owned();
    Ok(resolved)
}

/// Where the bundle's root stands now. In a joined mount namespace it is looked up there, later.
fn open_root(resolved: &mut Resolved) -> Result<Option<OwnedFd>, Error> {
    if resolved.namespaces.is_joined(Namespace::Mount) {
        resolved.root.path = resolved.bundle.join(&resolved.root.path);
        return Ok(None);
    }
    let (path, folder) = source::root_folder(&resolved.bundle, &resolved.root.path)?;
    resolved.root.path = path;
    Ok(Some(folder))
}

/// A container of root's in a user namespace is to own what root owns in its layers.
fn choose_owners(resolved: &mut Resolved) {
    let Some(maps) = resolved.user.clone().filter(|_| resolved.rootless.is_none()) else { return };
    if !resolved.root.overlay || !resolved.in_user_namespace() {
        return;
    }
    resolved.root.owners = match apart::takes_owners(&resolved.root.path, &maps) {
        Ok(()) => Owners::Mapped,
        Err(why) => {
            let why =
                format!("the root file system is copied, since its owners cannot be mapped: {why}");
            resolved.warnings.push(why);
            Owners::Copied
        }
    };
}

/// A program that was given no HOME gets the one of its user, as other runtimes do.
pub(crate) fn give_home(process: &mut Process, root: Option<&OwnedFd>) {
    if let Some(root) = root
        && !process.env.iter().any(|e| e.starts_with("HOME="))
    {
        process.env.push(format!("HOME={}", account::home(root, process.uid)));
    }
}

fn cgroup_view(facts: &HostFacts, resolved: &Resolved, claims: &[Claim]) -> CgroupView {
    const USUAL: [&str; 3] = ["cpu", "memory", "pids"];
    let layout = &facts.cgroup;
    let folder = match &layout.granted {
        // It stays in the cgroup of the runtime.
        Some(granted) if granted.base.is_none() => granted.own.clone(),
        _ => PathBuf::from(&resolved.cgroup),
    };
    let whole = layout.tree.clone().unwrap_or_default();
    let tree = if folder.as_os_str().is_empty() { PathBuf::new() } else { whole.join(folder) };
    let legacy = claims.iter().filter_map(|claim| match claim {
        Claim::LegacyCgroup { controller, path, .. } => Some((controller.clone(), path.clone())),
        _ => None,
    });
    let hybrid = USUAL.iter().any(|c| facts.cgroup.home(c) == Home::Legacy);
    CgroupView { tree, legacy: legacy.collect(), hybrid }
}
