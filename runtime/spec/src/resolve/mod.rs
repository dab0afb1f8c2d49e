//! Spec and host facts to a [`Resolved`] container: defaults, validation, all problems at once.

mod attributes;
mod hooks;
mod limits;
mod linux;
mod mounts;
mod network;
mod options;
mod process;
mod rdt;
mod systemd;
mod time;
mod unsupported;
mod user;

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, Spec};

use crate::resolved::{Namespace, Owners, Process, Resolved, Root, Rootless};
use crate::{HostFacts, Problems};

pub use attributes::{MEMORY_FLAGS, MEMORY_MODES};
pub use limits::{Held, page_size, resolve_update};
pub use linux::{has_user_namespace, sysctl_path};
pub use options::{COPY_UP, FILE_SYSTEM_FLAGS, FLAG_OPTIONS, MountOptions, OWN_OPTIONS, attr};
pub use process::RLIMITS;

/// Longest name of a container: it becomes a file name (NAME_MAX) with a suffix.
const LONGEST_ID: usize = 200;

/// What the command line adds to the bundle.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub id: String,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub preserve_fds: u32,
    /// Have systemd make the cgroup: `linux.cgroupsPath` is `slice:prefix:name` (`--systemd-cgroup`).
    pub systemd_cgroup: bool,
    /// Stand on an overlay whose topmost lower layer is `root.path`.
    pub overlay: bool,
    /// The other lower layers, from the topmost.
    pub below: Vec<PathBuf>,
}

/// Resolve a specification for this host.
///
/// # Errors
/// Every problem found, each with its field.
pub fn resolve(spec: &Spec, facts: &HostFacts, options: &Options) -> Result<Resolved, Problems> {
    let mut problems = Problems::default();
    let mut warnings = Vec::new();
    check_id(&options.id, &mut problems);
    check_version(spec.version(), &mut problems);
    unsupported::check(spec, &mut problems);

    let namespaces = linux::namespaces(spec, &mut problems);
    let process = process::process(spec, facts, options, &mut problems, &mut warnings);
    let limits = limits::limits(spec, facts, &mut problems);
    let user = user::id_maps(spec, &namespaces, &mut problems);
    let around = mounts::Around { options, namespaces: &namespaces, user: user.as_ref() };
    let mounts = mounts::mounts(spec, &around, &mut problems, &mut warnings);
    let (cgroup, scope) = if options.systemd_cgroup {
        systemd::cgroup(spec, &options.id, &mut problems)
    } else {
        (linux::cgroup(spec, &options.id, &mut problems), None)
    };
    let mut resolved = Resolved {
        id: options.id.clone(),
        bundle: options.bundle.clone(),
        oci_version: spec.version().clone(),
        annotations: annotations(spec, &mut problems),
        root: root(spec, options, &mut problems),
        mounts,
        devices: linux::devices(spec, &mut problems),
        masked_paths: linux::paths(spec, "maskedPaths", &mut problems),
        readonly_paths: linux::paths(spec, "readonlyPaths", &mut problems),
        hostname: linux::uts_name(spec.hostname(), "hostname", &namespaces, &mut problems),
        domainname: linux::uts_name(spec.domainname(), "domainname", &namespaces, &mut problems),
        user,
        rootless: facts.rootless.then(|| Rootless { enters: facts.enters() }),
        time_offsets: time::offsets(spec, &namespaces, &mut problems),
        intel_rdt: rdt::intel_rdt(spec, &options.id, &mut problems),
        net_devices: network::devices(spec, &namespaces, &mut problems),
        sysctl: linux::sysctl(spec, &namespaces, &mut problems),
        cgroup,
        scope,
        device_rules: linux::device_rules(spec, &mut problems),
        mount_label: attributes::mount_label(spec, facts, &mut problems, &mut warnings),
        seccomp: linux::seccomp(spec, &mut problems),
        hooks: hooks::hooks(spec, &mut problems),
        process,
        namespaces,
        limits,
        outer: crate::resolved::Limits::default(),
        warnings,
    };
    check_mount_namespace(&mut resolved, &mut problems);
    user::check_ids(&resolved, &mut problems);
    problems.into_result(resolved)
}

/// A process that joins a container: what it is, and the filter that holds for it.
#[derive(Debug)]
pub struct Joining {
    pub process: Process,
    pub seccomp: Option<LinuxSeccomp>,
    pub warnings: Vec<String>,
}

/// Resolve `spec.process` for a container that runs already with the rest of `spec`.
///
/// # Errors
/// Every problem of the process.
pub fn resolve_joining(
    spec: &Spec,
    facts: &HostFacts,
    options: &Options,
) -> Result<Joining, Problems> {
    let mut problems = Problems::default();
    let mut warnings = Vec::new();
    unsupported::check(spec, &mut problems);
    let process = process::process(spec, facts, options, &mut problems, &mut warnings);
    let seccomp = linux::seccomp(spec, &mut problems);
    problems.into_result(Joining { process, seccomp, warnings })
}

/// Is this a name that a container may have?
///
/// # Errors
/// One sentence that says which names are allowed.
pub fn valid_id(id: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > LONGEST_ID || !id.chars().all(allowed) || id == "." || id == ".."
    {
        return Err(format!(
            "invalid container ID {id:?}: 1 to {LONGEST_ID} letters, digits, '_', '+', '-' and '.' are allowed"
        ));
    }
    Ok(())
}

fn check_id(id: &str, problems: &mut Problems) {
    if let Err(reason) = valid_id(id) {
        problems.add("id", reason);
    }
}

fn check_version(version: &str, problems: &mut Problems) {
    let numbers: Vec<&str> =
        version.split(['-', '+']).next().unwrap_or_default().split('.').collect();
    let well_formed = numbers.len() == 3 && numbers.iter().all(|n| n.parse::<u32>().is_ok());
    if !well_formed {
        problems.add("ociVersion", format!("{version:?} is not a version as 1.2.0"));
    } else if numbers[0] != "1" {
        problems.add("ociVersion", format!("{version:?} is not supported: any 1.x is"));
    }
}

fn annotations(spec: &Spec, problems: &mut Problems) -> BTreeMap<String, String> {
    let all: BTreeMap<String, String> =
        spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    if all.contains_key("") {
        problems.add("annotations", "a key must not be empty");
    }
    all
}

fn root(spec: &Spec, options: &Options, problems: &mut Problems) -> Root {
    let mut resolved = Root {
        path: PathBuf::new(),
        readonly: false,
        propagation: None,
        overlay: options.overlay,
        below: options.below.clone(),
        owners: Owners::Same,
        pivot: !options.no_pivot,
    };
    match spec.root() {
        None => problems.add("root", "is missing: a container needs a root file system"),
        Some(root) if root.path().as_os_str().is_empty() => {
            problems.add("root.path", "must not be empty");
        }
        Some(root) => {
            resolved.path.clone_from(root.path());
            resolved.readonly = root.readonly().unwrap_or(false);
        }
    }
    resolved.propagation = linux::rootfs_propagation(spec, problems);
    check_nul(&resolved.path.to_string_lossy(), "root.path", problems);
    resolved
}

/// Mounts belong into a mount namespace that the runtime makes; anywhere else they would be somebody else's.
///
/// runc and crun run a bundle with `mounts` all the same; here they are left out, with a warning. What protects, or makes
/// the root what it is, is not.
fn check_mount_namespace(resolved: &mut Resolved, problems: &mut Problems) {
    if resolved.namespaces.is_new(Namespace::Mount) {
        return;
    }
    let where_to =
        if resolved.namespaces.is_joined(Namespace::Mount) { "a joined" } else { "the host's" };
    if !resolved.mounts.is_empty() {
        resolved.mounts.clear();
        resolved.warnings.push(format!(
            "mounts: left out, since they would change {where_to} mount namespace: add a new one to linux.namespaces"
        ));
    }
    let wants = [
        ("linux.maskedPaths", !resolved.masked_paths.is_empty()),
        ("linux.readonlyPaths", !resolved.readonly_paths.is_empty()),
        ("linux.rootfsPropagation", resolved.root.propagation.is_some()),
        ("root.readonly", resolved.root.readonly),
        ("root.path", resolved.root.overlay),
    ];
    for (field, _) in wants.iter().filter(|(_, wanted)| *wanted) {
        problems.add(
            *field,
            format!("would change {where_to} mount namespace: add a new one to linux.namespaces"),
        );
    }
}

/// The kernel takes C strings.
fn check_nul(text: &str, field: &str, problems: &mut Problems) {
    if text.contains('\0') {
        problems.add(field, "must not contain a NUL byte");
    }
}
