//! What a case needs of the machine. Decided before it runs: a lack is shown, never passed over.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use crate::{Program, cgroup, program};

/// A file of Debian's package python3-grpcio.
const PYTHON_GRPC: &str = "/usr/lib/python3/dist-packages/grpc/__init__.py";

/// Something that a machine may lack. Written through [`needs!`](crate::needs) or [`cases!`](crate::cases).
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// Effective user 0.
    Root,
    /// Somebody who can run containers: root, or a user with user namespaces, whose bundles have one (see
    /// [`Bundle`](crate::Bundle)).
    Launcher,
    /// An effective user other than 0.
    Unprivileged,
    /// Containers get a cgroup of their own: root, or a user with a delegated one.
    OwnCgroup,
    /// Subordinate ids of this user, and the programs to map them.
    SubordinateIds,
    /// The cgroup2 tree alone carries all controllers.
    Unified,
    /// A cgroup2 tree, and controllers bound to version 1.
    Hybrid,
    /// The cgroup2 tree has this controller.
    Cgroup2(&'static str),
    /// Limits of this controller can be set, in either version: an ordinary user has a delegated cgroup.
    Limit(&'static str),
    /// Debian's statically linked busybox.
    Busybox,
    /// A program on `PATH`.
    Program(&'static str),
    /// Debian's CNI plugins, where the agent looks for them.
    Cni,
    /// Debian's Python has gRPC, and there is a compiler for `.proto` files.
    PythonGrpc,
    /// The reference engine was built.
    Reference,
    /// `hafen-oci` was built with the feature `weaken`.
    Weaken,
    /// A path that must exist.
    File(&'static str),
    /// A file system type that the kernel has or can load.
    FileSystem(&'static str),
    /// A file system, `ext4` or `xfs`, that can be made, mounted, and bound what a project takes.
    ProjectQuota(&'static str),
    /// Links that are slow and lose packets (tc-netem(8)).
    Netem,
    /// At least this kernel (major, minor).
    Kernel(u32, u32),
    /// At least this many processors.
    Cpus(usize),
    /// A capability in the permitted set, such as `CAP_SYS_RESOURCE`.
    Capability(&'static str),
    /// User namespaces can be made.
    UserNamespaces,
    /// Anything else: what it is called, and whether it is there.
    That(&'static str, fn() -> bool),
}

/// Where the suite runs, which says what may not be missing. From the variable `NEEDS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// Nothing is promised.
    Unknown,
    /// `native`: root on a machine with hybrid cgroups, Debian's peers installed.
    Native,
    /// `vm`: root in the virtual machine, cgroup v2 only.
    Vm,
    /// `vm-user`: an ordinary user with a delegated cgroup in the virtual machine.
    VmUser,
    /// `all`: nothing may be missing.
    All,
}

impl Environment {
    /// # Errors
    /// A value of `NEEDS` that is none of the known ones.
    pub fn from_variable() -> Result<Self, String> {
        match std::env::var("NEEDS").as_deref() {
            Err(_) | Ok("") => Ok(Self::Unknown),
            Ok("native") => Ok(Self::Native),
            Ok("vm") => Ok(Self::Vm),
            Ok("vm-user") => Ok(Self::VmUser),
            Ok("all") => Ok(Self::All),
            Ok(other) => Err(format!("NEEDS={other}: must be native, vm, vm-user or all")),
        }
    }
}

impl Need {
    /// Whether this machine has it.
    #[must_use]
    pub fn is_met(self) -> bool {
        match self {
            Self::Root => nix::unistd::geteuid().is_root(),
            Self::Launcher => Self::Root.is_met() || Self::UserNamespaces.is_met(),
            Self::OwnCgroup => cgroup::is_ours(),
            Self::SubordinateIds => crate::bundle::subordinate("/etc/subuid").is_some(),
            Self::Unprivileged => !nix::unistd::geteuid().is_root(),
            Self::Unified => cgroup::tree().is_some() && !has_v1_controllers(),
            Self::Hybrid => cgroup::tree().is_some() && has_v1_controllers(),
            Self::Cgroup2(controller) => cgroup::v2_controllers().iter().any(|c| c == controller),
            Self::Limit(controller) => cgroup::has(controller) && cgroup::is_ours(),
            Self::Busybox => program::busybox().is_some(),
            Self::Program(name) => program::on_path(name).is_some(),
            Self::Cni => has_cni_plugins(),
            Self::PythonGrpc => {
                Path::new(PYTHON_GRPC).exists() && program::on_path("protoc").is_some()
            }
            Self::Reference => Program::Reference.find().is_ok(),
            Self::Weaken => can_be_weakened(),
            Self::File(path) => Path::new(path).exists(),
            Self::FileSystem(name) => has_file_system(name),
            Self::ProjectQuota(name) => has_project_quota(name),
            Self::Netem => has_netem(),
            Self::Kernel(major, minor) => kernel().is_some_and(|found| found >= (major, minor)),
            Self::Cpus(count) => {
                std::thread::available_parallelism().is_ok_and(|n| n.get() >= count)
            }
            Self::Capability(name) => has_capability(name),
            Self::UserNamespaces => std::fs::read_to_string("/proc/sys/user/max_user_namespaces")
                .is_ok_and(|t| t.trim() != "0"),
            Self::That(_, check) => check(),
        }
    }

    /// Whether an environment promises to have it, so that a lack is a failure of the set-up.
    #[must_use]
    pub const fn promised_by(self, environment: Environment) -> bool {
        match environment {
            Environment::Unknown => false,
            Environment::All => true,
            Environment::Native => matches!(
                self,
                Self::Root
                    | Self::Launcher
                    | Self::OwnCgroup
                    | Self::Hybrid
                    | Self::Limit(_)
                    | Self::Busybox
                    | Self::Program(_)
                    | Self::Cni
                    | Self::PythonGrpc
                    | Self::Reference
                    | Self::Weaken
                    | Self::FileSystem(_)
                    | Self::UserNamespaces
            ),
            Environment::Vm => matches!(
                self,
                Self::Root
                    | Self::Launcher
                    | Self::OwnCgroup
                    | Self::Unified
                    | Self::Cgroup2(_)
                    | Self::Limit(_)
                    | Self::Busybox
                    | Self::Program(_)
                    | Self::Cni
                    | Self::Reference
                    | Self::Weaken
                    | Self::FileSystem(_)
                    | Self::ProjectQuota(_)
                    | Self::Netem
                    | Self::Cpus(..=2)
                    | Self::Capability(_)
                    | Self::UserNamespaces
            ),
            Environment::VmUser => {
                matches!(
                    self,
                    Self::Launcher
                        | Self::SubordinateIds
                        | Self::Unprivileged
                        | Self::Unified
                        | Self::Busybox
                        | Self::UserNamespaces
                )
            }
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::Launcher => f.write_str("root or user namespaces"),
            Self::OwnCgroup => f.write_str("a delegated cgroup"),
            Self::SubordinateIds => f.write_str("subordinate ids with newuidmap"),
            Self::Unprivileged => f.write_str("an ordinary user"),
            Self::Unified => f.write_str("unified cgroups"),
            Self::Hybrid => f.write_str("hybrid cgroups"),
            Self::Cgroup2(controller) => write!(f, "cgroup2 controller {controller}"),
            Self::Limit(controller) => write!(f, "cgroup controller {controller}"),
            Self::Busybox => f.write_str("busybox-static"),
            Self::Program(name) => write!(f, "program {name}"),
            Self::Cni => f.write_str("containernetworking-plugins"),
            Self::PythonGrpc => f.write_str("python3-grpcio and protobuf-compiler"),
            Self::Reference => f.write_str("program hafen-reference"),
            Self::Weaken => f.write_str("hafen-oci with the feature weaken"),
            Self::File(path) => write!(f, "file {path}"),
            Self::FileSystem(name) => write!(f, "file system {name}"),
            Self::Netem => f.write_str("the kernel's sch_netem, with tc"),
            Self::ProjectQuota(name) => write!(f, "project quotas of {name} (kernel, mkfs.{name})"),
            Self::Kernel(major, minor) => write!(f, "Linux {major}.{minor}"),
            Self::Cpus(count) => write!(f, "{count} processors"),
            Self::Capability(name) => f.write_str(name),
            Self::UserNamespaces => f.write_str("user namespaces"),
            Self::That(name, _) => f.write_str(name),
        }
    }
}

fn has_cni_plugins() -> bool {
    let plugins = ["bridge", "host-local", "loopback", "portmap"];
    plugins.iter().all(|name| Path::new("/usr/lib/cni").join(name).is_file())
}

/// With the feature the program refuses a name that is no defence.
fn can_be_weakened() -> bool {
    let Ok(program) = Program::Oci.find() else { return false };
    let mut call = std::process::Command::new(program);
    let answer = call.arg("--version").env("HAFEN_WEAKEN", "nothing-of-that-name").output();
    answer.is_ok_and(|output| !output.status.success())
}

fn has_v1_controllers() -> bool {
    cgroup::hierarchies().iter().any(|h| h.controllers.iter().any(|c| !c.starts_with("name=")))
}

fn has_file_system(name: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim_start_matches("nodev").trim() == name) {
        return true;
    }
    let Some(modprobe) = program::on_path("modprobe") else { return false };
    std::process::Command::new(modprobe)
        .args(["-n", "-q", name])
        .status()
        .is_ok_and(|s| s.success())
}

/// Only a mount tells. Its namespace takes it along, and the loop device with it.
fn has_project_quota(name: &str) -> bool {
    const SCRIPT: &str = "mkdir \"$1\" && cd \"$1\" && mkdir to && truncate -s 320M disk || exit 1
        case $0 in ext4) set -- -O project,quota -E quotatype=prjquota ;; *) set -- ;; esac
        mkfs.$0 -q \"$@\" disk && unshare -m mount -n -t $0 -o loop,prjquota disk to";
    static KNOWN: Mutex<BTreeMap<String, bool>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry(name.to_owned()).or_insert_with(|| {
        let folder = std::env::temp_dir().join(format!("hafen-suite-quota.{}", std::process::id()));
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", SCRIPT, name]).arg(&folder).stderr(Stdio::null());
        let done = shell.status().is_ok_and(|status| status.success());
        let _ = std::fs::remove_dir_all(&folder);
        done
    })
}

/// In a network namespace that goes with it.
fn has_netem() -> bool {
    const WORDS: [&str; 11] =
        ["--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms", "loss"];
    let mut add = std::process::Command::new("unshare");
    add.args(WORDS).arg("1%").stderr(Stdio::null());
    add.status().is_ok_and(|status| status.success())
}

fn kernel() -> Option<(u32, u32)> {
    let name = nix::sys::utsname::uname().ok()?;
    let mut numbers = name.release().to_str()?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn has_capability(name: &str) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask =
        status.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap_or_default().trim();
    hafen_inside::capability_names(mask).contains(name)
}
