//! The plan: what will exist ([`Claim`]), what the runtime does ([`HostStep`]), what the
//! container's first process does before it becomes the user's program ([`ChildStep`]).
//!
//! Claims are saved before the first effect, so that clean-up needs nothing held in memory.
//! Steps are for running and for reading: `explain` prints them, nothing decides by them later.

mod attribute;
mod resctrl;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use attribute::Attribute;
pub use resctrl::Resctrl;

use crate::resolve::{FLAG_OPTIONS, attr};
use crate::resolved::{
    Attrs, Capabilities, Clock, Device, DeviceRule, IdMap, IdMapSource, IdMaps, Mount, MountIdMap,
    MountKind, Namespace, NetDevice, Owners, Propagation, Rlimit, SourceLink, TimeOffset,
};

/// Something of the host's that exists because of this container, named before it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Claim {
    /// The folder in the cgroup2 tree that carries the processes. Released by killing what is
    /// inside and removing the folder with all below it.
    #[serde(rename_all = "camelCase")]
    Cgroup {
        /// Absolute path of the folder.
        path: PathBuf,
        /// Folders above it, nearest first, that are removed with it if they are empty by then.
        parents: Vec<PathBuf>,
        /// The scope that systemd made it for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unit: Option<String>,
    },
    /// The folder of one controller in a v1 hierarchy. Released by removing it and all below it,
    /// after the processes are gone.
    #[serde(rename_all = "camelCase")]
    LegacyCgroup { controller: String, path: PathBuf, parents: Vec<PathBuf> },
    /// Upper layer and work folder of an overlay. Released by taking its limit away, and removing the tree, never through a
    /// mount point.
    Scratch { path: PathBuf },
    /// A group of the resctrl file system. Released by removing it, after the processes are gone.
    Resctrl { path: PathBuf },
    /// The note in a store that layers of an image, or volumes, are in use. Released by removing the file.
    Use { path: PathBuf },
}

impl Claim {
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Cgroup { path, .. }
            | Self::LegacyCgroup { path, .. }
            | Self::Scratch { path }
            | Self::Resctrl { path }
            | Self::Use { path } => path,
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup { path, unit: None, .. } => write!(f, "cgroup {}", path.display()),
            Self::Cgroup { path, unit: Some(unit), .. } => {
                write!(f, "cgroup {} of systemd's {unit}", path.display())
            }
            Self::LegacyCgroup { controller, path, .. } => {
                write!(f, "v1 cgroup {} ({controller})", path.display())
            }
            Self::Scratch { path } => write!(f, "scratch folder {}", path.display()),
            Self::Use { path } => write!(f, "use written down in {}", path.display()),
            Self::Resctrl { path } => write!(f, "resctrl group {}", path.display()),
        }
    }
}

/// A step of the runtime itself, on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "do")]
pub enum HostStep {
    /// Make a folder in the cgroup2 tree and have its controllers enabled from the root down.
    MakeCgroup {
        tree: PathBuf,
        path: PathBuf,
        /// Those with limits: the launch fails without them.
        controllers: Vec<String>,
        /// Those that only count: enabled where the folders above allow it.
        accounting: Vec<String>,
        /// The folder was there when the plan was made; otherwise it must be new, so that of two
        /// containers that ask for the same one only the first gets it.
        premade: bool,
    },
    /// Have systemd make a folder in the cgroup2 tree for a scope of its own.
    MakeScope {
        unit: String,
        slice: String,
        path: PathBuf,
        properties: Vec<Property>,
    },
    /// Make a folder in a v1 hierarchy.
    MakeLegacyCgroup {
        controller: String,
        path: PathBuf,
    },
    /// Write a value to a file of the kernel.
    Knob(Knob),
    /// Load the device rules as an eBPF program and attach it to the cgroup (cgroup v2).
    DeviceProgram {
        cgroup: PathBuf,
        rules: Vec<DeviceRule>,
    },
    /// Make the folder for an upper layer, and those above it.
    MakeScratch {
        path: PathBuf,
    },
    /// Make the files in a folder a project of their own, and bound what they take together.
    LimitScratch {
        path: PathBuf,
        bytes: u64,
    },
    /// Make what an overlay needs in it.
    FillScratch {
        path: PathBuf,
        /// Given short names in it, for kernels that take all layers of an overlay in one text of a page.
        layers: Vec<PathBuf>,
        /// Of the container's `/`: user and group.
        owner: (u32, u32),
    },
    /// Write down that layers of an image, or volumes, are in use.
    WriteUse {
        path: PathBuf,
        text: String,
        /// The record of the image's name, whose time says when it was last used.
        touched: Option<PathBuf>,
    },
    /// Make a named volume where there is none, with what the root file system has at its place.
    MakeVolume {
        /// The folder of all volumes.
        root: PathBuf,
        name: String,
        seed: Seed,
    },
    /// Make a folder that goes with the container, with what the root file system has at its place.
    SeedFolder {
        path: PathBuf,
        seed: Seed,
    },
    Resctrl(Resctrl),
    /// Give the process an attribute.
    Attribute(Attribute),
    /// Move a network interface into the process's network namespace, or into the one that it joins.
    MoveInterface {
        device: NetDevice,
        namespace: Option<PathBuf>,
    },
    /// Put the new process into a cgroup by writing its pid to `cgroup.procs`.
    Enter {
        cgroup: PathBuf,
    },
    /// Give the new user namespace its id maps, which the first process waits for.
    IdMaps(IdMaps),
    /// The user namespace that is joined must be the one that the bundle describes.
    CheckIdMaps(IdMaps),
    /// For a process in a user namespace: only the host's root may lower it.
    OomScoreAdj {
        value: i32,
    },
    /// Raise a hard limit of a process in a user namespace, which cannot do so itself.
    HardLimit(Rlimit),
}

/// Id maps as the kernel takes them, with commas for line ends.
fn lines(map: &[IdMap]) -> String {
    let lines: Vec<String> = map.iter().map(ToString::to_string).collect();
    lines.join(", ")
}

/// A property of a unit of systemd's (systemd.resource-control(5)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Property {
    pub name: String,
    pub value: PropertyValue,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum PropertyValue {
    /// The largest one is "no limit".
    Number(u64),
    /// A set of numbers as bits, the lowest first.
    Bytes(Vec<u8>),
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            PropertyValue::Number(u64::MAX) => write!(f, "{}=infinity", self.name),
            PropertyValue::Number(n) => write!(f, "{}={n}", self.name),
            PropertyValue::Bytes(bytes) => {
                write!(f, "{}=0x", self.name)?;
                bytes.iter().rev().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
    }
}

/// A kernel file and the value it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Knob {
    pub file: PathBuf,
    pub value: String,
    /// What is written where the kernel lacks that file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead: Option<Box<Knob>>,
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write {:?} to {}", self.value, self.file.display())?;
        match &self.instead {
            Some(other) => write!(f, " (where there is no such file, {other})"),
            None => Ok(()),
        }
    }
}

impl HostStep {
    /// The claimed folder that this step makes.
    #[must_use]
    pub fn makes(&self) -> Option<&Path> {
        match self {
            Self::MakeCgroup { path, .. }
            | Self::MakeScope { path, .. }
            | Self::MakeLegacyCgroup { path, .. }
            | Self::MakeScratch { path }
            | Self::WriteUse { path, .. } => Some(path),
            Self::Resctrl(step) => step.makes(),
            _ => None,
        }
    }
}

impl fmt::Display for HostStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeCgroup { path, controllers, accounting, premade, .. } => {
                let verb = if *premade { "take over" } else { "make" };
                write!(f, "{verb} cgroup {}", path.display())?;
                if !controllers.is_empty() {
                    write!(f, " with controllers {}", controllers.join(" "))?;
                }
                if !accounting.is_empty() {
                    write!(f, ", counting {}", accounting.join(" "))?;
                }
                Ok(())
            }
            Self::MakeScope { unit, slice, path, properties } => {
                write!(f, "have systemd make {} for {unit} in {slice}", path.display())?;
                for (i, property) in properties.iter().enumerate() {
                    write!(f, "{} {property}", if i == 0 { " with" } else { "" })?;
                }
                Ok(())
            }
            Self::MakeLegacyCgroup { controller, path } => {
                write!(f, "make v1 cgroup {} ({controller})", path.display())
            }
            Self::Knob(knob) => knob.fmt(f),
            Self::DeviceProgram { cgroup, rules } => {
                write!(
                    f,
                    "attach a device program of {} rules to {}",
                    rules.len(),
                    cgroup.display()
                )
            }
            Self::Resctrl(step) => step.fmt(f),
            Self::Attribute(attribute) => write!(f, "for the process: {attribute}"),
            Self::MoveInterface { device, .. } => {
                write!(f, "move interface {} into the container as {}", device.host, device.inside)
            }
            Self::MakeScratch { path } => write!(f, "make folder {}", path.display()),
            Self::LimitScratch { path, bytes } => {
                write!(f, "limit {} to {bytes} bytes (project quota)", path.display())
            }
            Self::FillScratch { path, layers, .. } => {
                write!(f, "make upper and work in {}", path.display())?;
                match layers.len() {
                    0 => Ok(()),
                    n => write!(f, ", and with links to {n} layers"),
                }
            }
            Self::WriteUse { path, .. } => write!(f, "write down the use in {}", path.display()),
            Self::MakeVolume { root, name, seed } => {
                write!(f, "make volume {name} in {} with {seed}, if it is missing", root.display())
            }
            Self::SeedFolder { path, seed } => write!(f, "make {} with {seed}", path.display()),
            Self::Enter { cgroup } => {
                write!(f, "write the pid to {}/cgroup.procs", cgroup.display())
            }
            Self::IdMaps(maps) => {
                write!(f, "map uids [{}] and gids [{}]", lines(&maps.uids), lines(&maps.gids))
            }
            Self::CheckIdMaps(maps) => write!(
                f,
                "compare uids [{}] and gids [{}] with the joined user namespace's",
                lines(&maps.uids),
                lines(&maps.gids)
            ),
            Self::OomScoreAdj { value } => {
                write!(f, "write \"{value}\" to the process's oom_score_adj")
            }
            Self::HardLimit(limit) => {
                write!(
                    f,
                    "raise the process's hard {} to {} if it is below",
                    limit.name, limit.hard
                )
            }
        }
    }
}

/// The first content of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seed {
    /// Of the root file system, topmost first.
    pub layers: Vec<PathBuf>,
    /// A folder of the container's, where they can be put together.
    pub scratch: PathBuf,
    /// The place in the container.
    pub inside: String,
    /// Whose the files become, where the folder is not shown with mapped owners.
    pub owners: Option<IdMaps>,
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what the image has at {}", self.inside)
    }
}

/// How the first process is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spawn {
    /// Namespaces that clone3(2) makes. The cgroup namespace is not among them: it is unshared
    /// once the process stands in its cgroup.
    pub namespaces: Vec<Namespace>,
    /// Folder of the cgroup2 tree that the process is born in (CLONE_INTO_CGROUP, Linux 5.7).
    pub cgroup: Option<PathBuf>,
    /// Namespaces of others that are joined first, while the runtime's rights on the host still hold: in a user
    /// namespace they are gone. The user namespace itself comes last.
    pub joins: Vec<(Namespace, PathBuf)>,
}

impl fmt::Display for Spawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (namespace, path) in &self.joins {
            write!(f, "join {} namespace {}, ", namespace.file(), path.display())?;
        }
        let names: Vec<&str> = self.namespaces.iter().map(|n| n.file()).collect();
        write!(f, "clone a process with new namespaces [{}]", names.join(" "))?;
        match &self.cgroup {
            Some(cgroup) => write!(f, ", born in {}", cgroup.display()),
            None => Ok(()),
        }
    }
}

/// A step of the container's first process, in its own namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "do")]
pub enum ChildStep {
    /// Default action for every signal, nothing blocked.
    ResetSignals,
    /// A session of its own (setsid(2)).
    NewSession,
    /// A session keyring of its own (keyrings(7)).
    NewKeyring {
        name: String,
    },
    /// Go into a folder of a v1 hierarchy. A process that moves itself, through `tasks`, waits for no grace period; whoever
    /// is moved through `cgroup.procs` does.
    EnterLegacy {
        cgroup: PathBuf,
    },
    OomScoreAdj {
        value: i32,
    },
    Join {
        namespace: Namespace,
        path: PathBuf,
    },
    /// Make a time namespace, set its clocks off, and go into it (time_namespaces(7)).
    TimeNamespace {
        offsets: Vec<TimeOffset>,
    },
    /// Wait until the runtime has written the id maps; end of file means abort.
    AwaitMaps,
    /// Become an id that the user namespace has, keeping all rights in it.
    NamespaceRoot {
        uid: u32,
        gid: u32,
        /// The namespace lets nobody change supplementary groups (user_namespaces(7)).
        keep_groups: bool,
    },
    /// Bring up `lo` in a new network namespace, so that 127.0.0.1 works without anybody's help.
    LoopbackUp,
    /// Set the propagation of every mount that the new namespace inherited.
    HostPropagation {
        propagation: Propagation,
    },
    /// Make a bind mount of the root file system, so that it can become `/`.
    RootBind {
        path: PathBuf,
        /// Attach it at `/` instead of at its own path, which the root of a user namespace may not reach.
        over_root: bool,
    },
    /// Stand on an overlay: `lower` and what is `below` it only read, changes in `scratch`.
    RootOverlay {
        lower: PathBuf,
        below: Vec<PathBuf>,
        scratch: PathBuf,
        /// Changes go to a file system of the container's own in memory, mounted in the scratch folder.
        tmpfs: Option<Tmpfs>,
        owners: Owners,
    },
    Mount(Mount),
    /// Change the attributes of the mount at `path`.
    SetAttributes {
        path: String,
        attrs: Attrs,
    },
    /// Give a folder a SELinux label.
    Label {
        path: String,
        label: String,
    },
    Device(Device),
    /// Show the host's device of the same path.
    BindDevice(Device),
    Symlink {
        path: String,
        target: String,
    },
    /// Make a folder inside the root if it is missing.
    Folder {
        path: String,
    },
    /// Hide a file behind /dev/null, a folder behind an empty read-only tmpfs.
    Mask {
        path: String,
    },
    ReadonlyPath {
        path: String,
    },
    Sysctl {
        key: String,
        value: String,
    },
    Hostname {
        name: String,
    },
    Domainname {
        name: String,
    },
    /// Stand on a pseudoterminal of the container's devpts, whose master goes to the caller.
    Terminal {
        size: Option<(u16, u16)>,
        uid: u32,
        /// Mount it on `/dev/console`.
        console: bool,
    },
    /// Give the standard descriptors to the user, who may open `/dev/stdout` again then.
    OwnStandard {
        uid: u32,
    },
    /// Nobody in a container that is joined may look into this process (prctl(2), PR_SET_DUMPABLE).
    NotDumpable,
    /// Close every descriptor of the host's before a container that is joined could reach it through us.
    CloseHost {
        preserved: u32,
    },
    /// Become a member of a running container: all of its namespaces at once (setns(2) with a pidfd, Linux 5.8).
    JoinContainer {
        namespaces: Vec<&'static str>,
    },
    /// The container has the host's mount namespace: its root is that of its first process.
    JoinRoot,
    /// Wait while the runtime runs hooks.
    AwaitHooks {
        kinds: Vec<&'static str>,
    },
    /// Wait until the runtime has finished everything on its side; end of file means abort.
    AwaitGo,
    UnshareCgroup,
    UnshareIpc,
    /// Make the root file system `/` and let go of the host's.
    ChangeRoot {
        how: ChangeRoot,
    },
    RootPropagation {
        propagation: Propagation,
    },
    RootReadonly,
    Umask {
        mask: u32,
    },
    Rlimit(Rlimit),
    Attribute(Attribute),
    NoNewPrivileges,
    /// Drop from the bounding set everything that is not kept.
    BoundingSet {
        keep: u64,
    },
    Ids {
        uid: u32,
        gid: u32,
        additional_gids: Vec<u32>,
        keep_groups: bool,
    },
    Capabilities(Capabilities),
    WorkingDirectory {
        path: String,
    },
    /// Close every descriptor but the standard three, `preserved` after them, and the launch's own pipes.
    CloseDescriptors {
        preserved: u32,
    },
    /// Find the program in the container, with the rights of its user.
    FindProgram {
        candidates: Vec<String>,
    },
    Seccomp {
        instructions: usize,
        /// Where an agent gets the listener of a filter that notifies.
        listener: Option<PathBuf>,
    },
    /// `create` ends here; wait for `start`.
    AwaitStart,
    Execute {
        program: String,
    },
}

/// A file system in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tmpfs {
    /// In bytes; the kernel's usual bound where there is none.
    pub size: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeRoot {
    /// pivot_root(2), and the old root is unmounted.
    Pivot,
    /// Move the root mount over `/` and chroot(2) into it (`--no-pivot`).
    Move,
    /// chroot(2) only: there is no mount namespace of the container's own.
    Chroot,
}

impl fmt::Display for ChildStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ResetSignals => f.write_str("reset signals"),
            Self::NewSession => f.write_str("start a session"),
            Self::NewKeyring { name } => write!(f, "join a new session keyring {name}"),
            Self::OomScoreAdj { value } => {
                write!(f, "write \"{value}\" to /proc/self/oom_score_adj")
            }
            Self::Join { namespace, path } => {
                write!(f, "join {} namespace {}", namespace.file(), path.display())
            }
            Self::TimeNamespace { offsets } => {
                f.write_str("enter a new time namespace")?;
                offsets.iter().try_for_each(|o| write!(f, ", {} {}", clock(o.clock), offset(*o)))
            }
            Self::AwaitMaps => f.write_str("wait for the id maps"),
            Self::NamespaceRoot { uid, gid, .. } => {
                write!(f, "become uid {uid} gid {gid} of the user namespace")
            }
            Self::EnterLegacy { cgroup } => write!(f, "write \"0\" to {}/tasks", cgroup.display()),
            Self::LoopbackUp => f.write_str("bring the loopback interface up"),
            Self::HostPropagation { propagation } => {
                write!(f, "make every inherited mount {propagation:?}")
            }
            Self::RootBind { path, over_root } => {
                let place = if *over_root { " over /" } else { "" };
                write!(f, "bind root file system {}{place}", path.display())
            }
            Self::RootOverlay { lower, below, scratch, tmpfs, owners } => {
                let what = if *owners == Owners::Copied { "a copy" } else { "overlay" };
                write!(f, "mount {what} on \"/\" (lower {}", lower.display())?;
                if !below.is_empty() {
                    write!(f, " and {} below it", below.len())?;
                }
                if *owners != Owners::Same {
                    f.write_str(", with mapped owners")?;
                }
                write!(f, ", upper in {}", scratch.display())?;
                match tmpfs {
                    None => {}
                    Some(Tmpfs { size: None }) => f.write_str(" (tmpfs)")?,
                    Some(Tmpfs { size: Some(size) }) => write!(f, " (tmpfs of {size} bytes)")?,
                }
                f.write_str(if *owners == Owners::Copied { ")" } else { ", volatile)" })
            }
            Self::Mount(mount) => write_mount(mount, f),
            Self::SetAttributes { path, attrs } => {
                write!(f, "make the mount at {path:?} {}", words(*attrs))
            }
            Self::Label { path, label } => write!(f, "give {path:?} the selinux label {label:?}"),
            Self::Device(d) => write!(
                f,
                "make device {} ({:?} {}:{}, mode {:o})",
                d.path, d.kind, d.major, d.minor, d.mode
            ),
            Self::BindDevice(d) => {
                write!(f, "bind device {} ({:?} {}:{})", d.path, d.kind, d.major, d.minor)
            }
            Self::Symlink { path, target } => write!(f, "make symlink {path} -> {target}"),
            Self::Folder { path } => write!(f, "make folder {path} if it is missing"),
            Self::Mask { path } => write!(f, "mask {path}"),
            Self::ReadonlyPath { path } => write!(f, "make {path} read-only"),
            Self::Sysctl { key, value } => write!(f, "write {value:?} to /proc/sys/{key}"),
            Self::Hostname { name } => write!(f, "set hostname {name:?}"),
            Self::Domainname { name } => write!(f, "set domainname {name:?}"),
            Self::Terminal { size, uid, console } => {
                f.write_str("open a terminal")?;
                if let Some((rows, columns)) = size {
                    write!(f, " of {rows} rows and {columns} columns")?;
                }
                write!(f, " for uid {uid}{}", if *console { ", also as /dev/console" } else { "" })
            }
            Self::OwnStandard { uid } => write!(f, "give standard descriptors to uid {uid}"),
            Self::NotDumpable => f.write_str("let no other process look into this one"),
            Self::JoinContainer { namespaces } => {
                write!(f, "join the container's namespaces [{}]", namespaces.join(" "))
            }
            Self::JoinRoot => f.write_str("chroot into the container's root file system"),
            Self::AwaitHooks { kinds } => write!(f, "wait for hooks: {}", kinds.join(", ")),
            Self::AwaitGo => f.write_str("wait for the runtime's part"),
            Self::UnshareIpc => f.write_str("unshare the ipc namespace"),
            Self::UnshareCgroup => f.write_str("unshare the cgroup namespace"),
            Self::ChangeRoot { how: ChangeRoot::Pivot } => {
                f.write_str("pivot_root and unmount the host's root")
            }
            Self::ChangeRoot { how: ChangeRoot::Move } => {
                f.write_str("move the root mount to / and chroot")
            }
            Self::ChangeRoot { how: ChangeRoot::Chroot } => {
                f.write_str("chroot into the root file system")
            }
            Self::RootPropagation { propagation } => write!(f, "make \"/\" {propagation:?}"),
            Self::RootReadonly => f.write_str("make \"/\" read-only"),
            _ => self.write_last_part(f),
        }
    }
}

impl ChildStep {
    /// The steps in which the process gives up rights and becomes the user's program.
    fn write_last_part(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Umask { mask } => write!(f, "set umask {mask:04o}"),
            Self::Rlimit(l) => write!(f, "set {} soft {} hard {}", l.name, l.soft, l.hard),
            Self::Attribute(attribute) => fmt::Display::fmt(attribute, f),
            Self::NoNewPrivileges => f.write_str("set no_new_privs"),
            Self::BoundingSet { keep } => {
                write!(f, "drop all capabilities but {keep:#x} from the bounding set")
            }
            Self::Ids { uid, gid, keep_groups: true, .. } => {
                write!(f, "become uid {uid} gid {gid}, with the groups it has")
            }
            Self::Ids { uid, gid, additional_gids, .. } => {
                write!(f, "become uid {uid} gid {gid} groups {additional_gids:?}")
            }
            Self::Capabilities(c) => write!(
                f,
                "set capabilities effective {:#x} permitted {:#x} inheritable {:#x} ambient {:#x}",
                c.effective, c.permitted, c.inheritable, c.ambient
            ),
            Self::WorkingDirectory { path } => write!(f, "chdir to cwd {path:?}"),
            Self::CloseHost { preserved } | Self::CloseDescriptors { preserved } => {
                write!(f, "close all descriptors from {}", 3 + preserved)
            }
            Self::FindProgram { candidates } => {
                write!(f, "find program {}", candidates.join(" or "))
            }
            Self::Seccomp { instructions, listener } => {
                write_filter(*instructions, listener.as_deref(), f)
            }
            Self::AwaitStart => f.write_str("wait for start"),
            Self::Execute { program } => write!(f, "exec {program:?}"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// As `/proc/PID/timens_offsets` takes it (time_namespaces(7)).
#[must_use]
pub const fn clock(clock: Clock) -> &'static str {
    match clock {
        Clock::Monotonic => "monotonic",
        Clock::Boottime => "boottime",
    }
}

/// Seconds and nanoseconds for `/proc/PID/timens_offsets`.
#[must_use]
pub fn offset(offset: TimeOffset) -> String {
    format!("{} {}", offset.seconds, offset.nanoseconds)
}

/// Attributes by the names that people write in `options`.
fn words(attrs: Attrs) -> String {
    let wanted = |(_, set, clear): &&(&str, u64, u64)| {
        let atime = clear & attr::ATIME == attr::ATIME;
        let value = attrs.set & attr::ATIME;
        match (atime, *set) {
            (true, set) => attrs.clear & attr::ATIME != 0 && value == set,
            (false, 0) => attrs.clear & clear != 0,
            (false, set) => attrs.set & set != 0,
        }
    };
    // Several names mean the same: the first is said.
    let mut seen = Vec::new();
    for (name, set, clear) in FLAG_OPTIONS.iter().filter(wanted) {
        if !seen.iter().any(|(_, s, c)| (s, c) == (&set, &clear)) {
            seen.push((*name, set, clear));
        }
    }
    seen.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(",")
}

fn write_filter(
    instructions: usize,
    listener: Option<&Path>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "install a seccomp filter of {instructions} instructions")?;
    match listener {
        Some(path) => write!(f, " and send its listener to {}", path.display()),
        None => Ok(()),
    }
}

fn write_mount(mount: &Mount, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let to = &mount.destination;
    match &mount.kind {
        MountKind::New { fstype, options, copy_up, .. } => {
            write!(f, "mount {fstype} on {to:?}")?;
            write_parameters(options, f)?;
            if *copy_up {
                f.write_str(" with a copy of what is there")?;
            }
        }
        MountKind::Bind { source, recursive, link } => {
            let kind = match (link, recursive) {
                (SourceLink::Copy, _) => "copy a symlink or bind",
                (_, true) => "rbind",
                (_, false) => "bind",
            };
            write!(f, "{kind} {} on {to:?}", source.display())?;
        }
        MountKind::Cgroup { .. } => write!(f, "mount cgroup on {to:?}")?,
        MountKind::Remount { options } => {
            write!(f, "remount {to:?}")?;
            write_parameters(options, f)?;
        }
    }
    if let Some(id_map) = &mount.id_map {
        write_id_map(id_map, f)?;
    }
    if !mount.attrs.is_empty() {
        write!(f, " {}", words(mount.attrs))?;
    }
    if !mount.recursive_attrs.is_empty() {
        write!(f, " with all below it {}", words(mount.recursive_attrs))?;
    }
    for (propagation, recursive) in &mount.propagation {
        write!(f, " {}{propagation:?}", if *recursive { "recursively " } else { "" })?;
    }
    Ok(())
}

fn write_parameters(
    options: &[(String, Option<String>)],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    for (i, (key, value)) in options.iter().enumerate() {
        let separator = if i == 0 { " (" } else { "," };
        write!(f, "{separator}{key}")?;
        if let Some(value) = value {
            write!(f, "={value}")?;
        }
    }
    if options.is_empty() { Ok(()) } else { f.write_str(")") }
}

fn write_id_map(id_map: &MountIdMap, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(if id_map.recursive { " with all below it mapped" } else { " mapped" })?;
    match &id_map.source {
        IdMapSource::Joined(path) => write!(f, " as in {}", path.display()),
        IdMapSource::Maps(maps) => {
            for (name, map) in [("uids", &maps.uids), ("gids", &maps.gids)] {
                for line in map {
                    write!(f, " {name} {}-{}-{}", line.inside, line.outside, line.size)?;
                }
            }
            Ok(())
        }
    }
}

/// Everything about one launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub claims: Vec<Claim>,
    /// Before the process exists.
    pub before: Vec<HostStep>,
    pub spawn: Spawn,
    /// While the process exists and waits at [`ChildStep::AwaitGo`] at the latest.
    pub beside: Vec<HostStep>,
    pub child: Vec<ChildStep>,
}
