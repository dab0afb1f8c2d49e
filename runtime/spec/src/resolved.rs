//! The container as plain data: every default applied, every path absolute or relative
//! to a named root, every name turned into what the kernel takes.

mod attributes;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use attributes::{Attributes, ExecAffinity, IdList, IoPriority, MemoryPolicy, Scheduler};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Resolved {
    pub id: String,
    pub bundle: PathBuf,
    pub oci_version: String,
    pub annotations: BTreeMap<String, String>,
    pub root: Root,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub process: Process,
    pub hooks: Hooks,
    pub namespaces: Namespaces,
    /// Id maps of the user namespace: of a new one always, of a joined one where the bundle tells them.
    pub user: Option<IdMaps>,
    /// How it is done without being root of the machine.
    pub rootless: Option<Rootless>,
    /// Of a new time namespace.
    pub time_offsets: Vec<TimeOffset>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub intel_rdt: Option<IntelRdt>,
    pub net_devices: Vec<NetDevice>,
    pub sysctl: BTreeMap<String, String>,
    /// Folder name in the cgroup trees, relative to their roots, without a leading slash.
    pub cgroup: String,
    /// systemd is asked for that folder.
    pub scope: Option<Scope>,
    pub limits: Limits,
    /// Of the folder above the container's: several containers have them together.
    pub outer: Limits,
    pub device_rules: Vec<DeviceRule>,
    /// SELinux context of the file systems that are made for the container.
    pub mount_label: Option<String>,
    pub seccomp: Option<oci_spec::runtime::LinuxSeccomp>,
    /// What was clamped to what this host allows, in words.
    pub warnings: Vec<String>,
}

impl Resolved {
    /// Who sets the container up: root of its user namespace, or where that has none the user of its process.
    #[must_use]
    pub fn namespace_root(&self) -> (u32, u32) {
        let lacks = |map: &[IdMap]| !map.is_empty() && IdMaps::outside(map, 0).is_none();
        let Some(maps) = &self.user else { return (0, 0) };
        (
            if lacks(&maps.uids) { self.process.uid } else { 0 },
            if lacks(&maps.gids) { self.process.gid } else { 0 },
        )
    }

    /// Who is root of the container, outside of it.
    #[must_use]
    pub fn outer_root(&self) -> (u32, u32) {
        let outside = |map: &[IdMap]| IdMaps::outside(map, 0).unwrap_or(0);
        let mapped = self.user.as_ref().filter(|_| self.root.owners != Owners::Same);
        mapped.map_or((0, 0), |maps| (outside(&maps.uids), outside(&maps.gids)))
    }

    /// Does the runtime stand in the user namespace already when the container is born?
    #[must_use]
    pub fn born_inside(&self) -> bool {
        self.rootless.is_some_and(|r| r.enters)
    }

    /// Does it live in a user namespace other than the runtime's?
    #[must_use]
    pub fn in_user_namespace(&self) -> bool {
        self.namespaces.is_private(Namespace::User)
    }
}

/// A launch by a runtime that is not root of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rootless {
    /// The runtime itself goes into the user namespace, and the container is born there.
    pub enters: bool,
}

/// Which ids of a user namespace stand for which outside of it (user_namespaces(7)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    pub uids: Vec<IdMap>,
    pub gids: Vec<IdMap>,
}

impl IdMaps {
    /// What `id` inside is outside.
    #[must_use]
    pub fn outside(map: &[IdMap], id: u32) -> Option<u32> {
        map.iter().find_map(|m| {
            let offset = id.checked_sub(m.inside).filter(|offset| *offset < m.size)?;
            m.outside.checked_add(offset)
        })
    }
}

/// A line of `/proc/PID/uid_map` or `gid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    pub inside: u32,
    pub outside: u32,
    pub size: u32,
}

impl std::fmt::Display for IdMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.inside, self.outside, self.size)
    }
}

/// Clocks that a time namespace can set off (time_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    Monotonic,
    Boottime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TimeOffset {
    pub clock: Clock,
    pub seconds: i64,
    pub nanoseconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Root {
    /// Absolute path on the host of the root file system, or of the topmost lower layer of `overlay`.
    pub path: PathBuf,
    pub readonly: bool,
    /// Propagation of the container's own `/`, if the bundle names one.
    pub propagation: Option<Propagation>,
    /// Mount an overlay whose topmost lower layer is `path`.
    pub overlay: bool,
    /// The other lower layers, from the topmost.
    pub below: Vec<PathBuf>,
    /// Whose the files of an overlay are, as the container sees them.
    pub owners: Owners,
    /// Use pivot_root(2); without it the root is moved and changed with chroot(2) (`--no-pivot`).
    pub pivot: bool,
}

/// Of files on the disk, in a container's root file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Owners {
    /// Those that the disk says.
    #[default]
    Same,
    /// Those of a user namespace: each layer is shown through its maps.
    Mapped,
    /// The same, of copies, where the file system cannot map.
    Copied,
}

impl Root {
    /// The lower layers of its overlay, topmost first.
    #[must_use]
    pub fn layers(&self) -> Vec<PathBuf> {
        std::iter::once(&self.path).chain(&self.below).cloned().collect()
    }

    /// Propagation of all that comes from the host. Never shared: what the container mounts must not appear there. What
    /// the host mounts later appears in the container, unless the bundle wants nothing from there.
    #[must_use]
    pub const fn apart(&self) -> Propagation {
        match self.propagation {
            Some(Propagation::Private | Propagation::Unbindable) => Propagation::Private,
            _ => Propagation::Slave,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    Shared,
    Slave,
    Private,
    Unbindable,
}

/// Cache and memory bandwidth, through the resctrl file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IntelRdt {
    /// Name of the group; empty for the root of the file system.
    pub group: String,
    /// It is the container's own, made and removed with it.
    pub own: bool,
    /// Lines as `L3:0=ff`.
    pub schemata: Vec<String>,
    /// Name of a monitoring group of the container's own.
    pub monitoring: Option<String>,
}

/// A network interface of the host that moves into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetDevice {
    pub host: String,
    /// Its name there.
    pub inside: String,
}

/// Mount attributes of mount_setattr(2): bits to set and to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attrs {
    pub set: u64,
    pub clear: u64,
}

impl Attrs {
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.set == 0 && self.clear == 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Path inside the container, absolute.
    pub destination: String,
    /// A symlink at the destination is mounted on, not followed (`dest-nofollow`).
    pub on_link: bool,
    pub kind: MountKind,
    pub attrs: Attrs,
    /// The same for the whole tree below a bind (`rro`, `rnosuid`, ...).
    pub recursive_attrs: Attrs,
    /// Propagation and whether it holds for the whole tree.
    pub propagation: Vec<(Propagation, bool)>,
    /// Show other owners than the file system has.
    pub id_map: Option<MountIdMap>,
}

impl Mount {
    /// A plain bind of something of the host's.
    #[must_use]
    pub fn of(source: PathBuf, destination: &str) -> Self {
        Self {
            destination: destination.to_owned(),
            on_link: false,
            kind: MountKind::Bind { source, recursive: false, link: SourceLink::Follow },
            attrs: Attrs::default(),
            recursive_attrs: Attrs::default(),
            propagation: Vec::new(),
            id_map: None,
        }
    }

    /// A bind of the host's device of the same path.
    #[must_use]
    pub fn of_device(device: &Device) -> Self {
        Self::of(PathBuf::from(&device.path), &device.path)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum MountKind {
    /// A file system of its own: `options` are its parameters as fsconfig(2) takes them.
    New {
        fstype: String,
        source: String,
        options: Vec<(String, Option<String>)>,
        /// Begin with what the image has at the destination (`tmpcopyup`).
        copy_up: bool,
    },
    /// A folder or file of the host.
    Bind { source: PathBuf, recursive: bool, link: SourceLink },
    /// The container's own view of the cgroup trees; of the cgroup2 tree alone where `unified`.
    Cgroup { unified: bool },
    /// Change a file system that an earlier entry has mounted.
    Remount { options: Vec<(String, Option<String>)> },
}

/// What becomes of a symlink that is the source of a bind mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum SourceLink {
    #[default]
    Follow,
    /// The link itself is mounted (`src-nofollow`).
    Mount,
    /// A link to the same place is made at the destination (`copy-symlink`).
    Copy,
}

/// An id-mapped mount (mount_setattr(2), MOUNT_ATTR_IDMAP).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MountIdMap {
    pub source: IdMapSource,
    /// For all mounts below a bind as well (`ridmap`).
    pub recursive: bool,
}

/// Where the ids of a mount come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum IdMapSource {
    /// `inside` is an id of the file system, `outside` what it is shown as on the host.
    Maps(IdMaps),
    /// The user namespace that the container joins.
    Joined(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceType {
    Block,
    Char,
    Fifo,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    pub path: String,
    pub kind: DeviceType,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    /// Nobody may change groups in its user namespace (user_namespaces(7), `/proc/PID/setgroups`): they stay.
    pub keep_groups: bool,
    pub umask: u32,
    pub capabilities: Capabilities,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub oom_score_adj: Option<i32>,
    pub attributes: Attributes,
    /// Join a session keyring of the container's own (keyrings(7)).
    pub new_keyring: bool,
    /// Descriptors after the three standard ones that the container keeps.
    pub preserve_fds: u32,
    pub terminal: Option<Terminal>,
}

/// A pseudoterminal of the container's own devpts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Terminal {
    /// Rows and columns.
    pub size: Option<(u16, u16)>,
}

/// Programs to run at points of the container's life (runtime-spec, config, "POSIX-platform Hooks").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// In the runtime's namespaces, while the container's exist and its root is not changed yet.
    pub prestart: Vec<Hook>,
    /// As `prestart`, after it.
    pub create_runtime: Vec<Hook>,
    /// Programs of the host in the container's namespaces, before the root is changed.
    pub create_container: Vec<Hook>,
    /// Programs of the container, just before the user's.
    pub start_container: Vec<Hook>,
    /// In the runtime's namespaces, when the user's program runs.
    pub poststart: Vec<Hook>,
    /// In the runtime's namespaces, when nothing is left of the container.
    pub poststop: Vec<Hook>,
}

impl Hooks {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.none_before_root()
            && self.start_container.is_empty()
            && self.poststart.is_empty()
            && self.poststop.is_empty()
    }

    /// Is there nothing to run before the root is changed?
    #[must_use]
    pub fn none_before_root(&self) -> bool {
        self.prestart.is_empty()
            && self.create_runtime.is_empty()
            && self.create_container.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    pub path: PathBuf,
    /// With the name of the program itself.
    pub args: Vec<String>,
    /// `None` is not the same as empty: then a hook on the host has the environment of the runtime.
    pub env: Option<Vec<String>>,
    /// Seconds.
    pub timeout: Option<u64>,
}

/// Capability sets as bit masks (capabilities(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rlimit {
    /// As `RLIMIT_NOFILE`.
    pub name: String,
    /// The kernel's number of it, generic ABI.
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    Ipc,
    Uts,
    Network,
    Pid,
    Mount,
    Cgroup,
    User,
    Time,
}

impl Namespace {
    /// The `CLONE_NEW*` flag (namespaces(7)).
    #[must_use]
    pub const fn flag(self) -> u64 {
        match self {
            Self::Time => 0x80,
            Self::Mount => 0x0002_0000,
            Self::Cgroup => 0x0200_0000,
            Self::Uts => 0x0400_0000,
            Self::Ipc => 0x0800_0000,
            Self::User => 0x1000_0000,
            Self::Pid => 0x2000_0000,
            Self::Network => 0x4000_0000,
        }
    }

    /// The name of its file in `/proc/PID/ns`.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Mount => "mnt",
            Self::Cgroup => "cgroup",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Pid => "pid",
            Self::Network => "net",
            Self::User => "user",
            Self::Time => "time",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Namespaces {
    pub new: Vec<Namespace>,
    pub joined: Vec<(Namespace, PathBuf)>,
}

impl Namespaces {
    #[must_use]
    pub fn is_new(&self, ns: Namespace) -> bool {
        self.new.contains(&ns)
    }

    #[must_use]
    pub fn is_joined(&self, ns: Namespace) -> bool {
        self.joined.iter().any(|(n, _)| *n == ns)
    }

    #[must_use]
    pub fn is_private(&self, ns: Namespace) -> bool {
        self.is_new(ns) || self.is_joined(ns)
    }
}

/// Names of units of systemd's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Scope {
    pub unit: String,
    pub slice: String,
}

/// Limits as the kernel means them. `None` is "not asked for", which is not the same as "no limit".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    pub cpu: CpuLimits,
    pub memory: MemoryLimits,
    pub pids: Option<Amount>,
    /// Bytes by size of pages, as `2MB`.
    pub hugepages: BTreeMap<String, u64>,
    pub io: IoLimits,
    /// By device.
    pub rdma: BTreeMap<String, RdmaLimits>,
    pub network: NetworkLimits,
    /// cgroup2 files verbatim, in the order of their names.
    pub unified: BTreeMap<String, String>,
}

/// A number of bytes or of processes, or no bound at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    Max,
    Of(u64),
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Max => f.write_str("max"),
            Self::Of(n) => n.fmt(f),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CpuLimits {
    /// v1 shares, 2 to 262144.
    pub shares: Option<u64>,
    /// Microseconds of CPU time per period.
    pub quota: Option<Amount>,
    /// Microseconds.
    pub period: Option<u64>,
    /// Microseconds that may be saved up.
    pub burst: Option<u64>,
    pub idle: Option<bool>,
    /// Microseconds of realtime scheduling per period; v1 only.
    pub realtime_runtime: Option<i64>,
    /// Microseconds.
    pub realtime_period: Option<u64>,
    /// Lists as `0-3,7` (cpuset(7)).
    pub cpus: Option<String>,
    pub mems: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MemoryLimits {
    /// Bytes; beyond it the OOM killer acts.
    pub limit: Option<Amount>,
    /// Bytes that reclaim spares while others have more to give.
    pub reservation: Option<Amount>,
    /// Bytes of memory *and* swap together, as the runtime spec counts.
    pub swap: Option<Amount>,
    /// 0 to 100; v1 only.
    pub swappiness: Option<u64>,
    /// v1 only.
    pub disable_oom_killer: Option<bool>,
    /// Refuse an update to a limit below what is in use.
    pub check_before_update: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IoLimits {
    /// Share of a block device's time against others, 10 to 1000.
    pub weight: Option<u16>,
    pub device_weights: Vec<(BlockDevice, u16)>,
    pub throttles: Vec<Throttle>,
}

/// Major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BlockDevice(pub u32, pub u32);

impl std::fmt::Display for BlockDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

/// A bound on what is read from or written to a device within a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Throttle {
    pub device: BlockDevice,
    pub write: bool,
    /// Operations, not bytes.
    pub operations: bool,
    /// 0: none.
    pub rate: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RdmaLimits {
    pub handles: Option<u32>,
    pub objects: Option<u32>,
}

/// v1 only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NetworkLimits {
    pub class_id: Option<u32>,
    /// By interface.
    pub priorities: Vec<(String, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    pub allow: bool,
    /// `None` matches every type.
    pub kind: Option<DeviceType>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}
