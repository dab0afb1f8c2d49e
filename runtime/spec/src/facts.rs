use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

/// What a resolution may know of the machine. Gathered once by the program, read-only after.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    pub cgroup: CgroupLayout,
    /// Effective user id of the runtime.
    pub euid: u32,
    /// Effective group id of the runtime.
    pub egid: u32,
    /// The runtime is not root of the machine: an ordinary user, or root of a user namespace only.
    pub rootless: bool,
    /// Capability bits of the bounding set: nothing outside it can be given.
    pub bounding: u64,
    /// Effective capability bits of the runtime itself.
    pub effective: u64,
    /// The highest capability that the kernel knows (`/proc/sys/kernel/cap_last_cap`).
    pub last_cap: u32,
    /// `oom_score_adj` of the runtime: without CAP_SYS_RESOURCE it cannot be lowered (proc(5)).
    pub oom_score_adj: i32,
    /// Hard limits of the runtime by resource name: without CAP_SYS_RESOURCE they cannot be raised (getrlimit(2)).
    pub hard_limits: BTreeMap<String, u64>,
    /// Calls of the kernel interface that are missing here; see the feature table of `hafen-sys`.
    pub missing_calls: Vec<String>,
    /// AppArmor is in force.
    pub apparmor: bool,
    /// SELinux is in force.
    pub selinux: bool,
    /// File systems that the kernel can mount (`/proc/filesystems`).
    pub filesystems: Vec<String>,
}

impl HostFacts {
    #[must_use]
    pub fn lacks(&self, call: &str) -> bool {
        self.missing_calls.iter().any(|c| c == call)
    }

    /// Every capability bit that the kernel knows: whoever enters a user namespace has them all in it.
    #[must_use]
    pub const fn all_capabilities(&self) -> u64 {
        if self.last_cap >= 63 { u64::MAX } else { (1 << (self.last_cap + 1)) - 1 }
    }

    /// The same machine as a process in a user namespace of its own finds it.
    #[must_use]
    pub fn in_user_namespace(self) -> Self {
        let all = self.all_capabilities();
        Self { bounding: all, effective: all, ..self }
    }

    /// It may not even mount: it has to go into the container's user namespace itself.
    #[must_use]
    pub fn enters(&self) -> bool {
        self.rootless && !self.has_capability(caps::Capability::CAP_SYS_ADMIN)
    }

    #[must_use]
    pub fn has_capability(&self, cap: caps::Capability) -> bool {
        self.effective & cap.bitmask() != 0
    }
}

/// Where each cgroup controller lives on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CgroupLayout {
    /// Mount point of the one cgroup2 tree that carries every process.
    pub tree: Option<PathBuf>,
    /// Controllers that the root of that tree offers.
    pub unified: Vec<String>,
    /// Controllers bound to a v1 hierarchy, with the mount point of that hierarchy.
    pub legacy: BTreeMap<String, PathBuf>,
    /// Those of them in which this process may make no folder.
    pub closed: BTreeSet<PathBuf>,
    /// Named v1 hierarchies without a controller (`name=systemd`).
    pub named: BTreeMap<String, PathBuf>,
    /// What a runtime that is not root of the machine may use of the tree.
    pub granted: Option<Granted>,
}

/// Folders of the cgroup2 tree, relative to its root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Granted {
    /// That of the runtime itself.
    pub own: PathBuf,
    /// The one in which it may make others (cgroups(7), "Cgroup delegation").
    pub base: Option<PathBuf>,
}

/// Where one controller's files are to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// In the cgroup2 tree, beside the processes.
    Unified,
    /// In a v1 hierarchy of its own.
    Legacy,
    /// Nowhere: the kernel lacks it, or it is mounted nowhere.
    Absent,
}

impl CgroupLayout {
    /// Containers have no cgroup of their own: the runtime may make none.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.granted.as_ref().is_some_and(|g| g.base.is_none())
    }

    /// It has a v1 hierarchy, in which this process may make no folder.
    #[must_use]
    pub fn is_closed(&self, controller: &str) -> bool {
        self.legacy.get(controller).is_some_and(|hierarchy| self.closed.contains(hierarchy))
    }

    #[must_use]
    pub fn home(&self, controller: &str) -> Home {
        if self.unified.iter().any(|c| c == controller) {
            Home::Unified
        } else if self.legacy.contains_key(controller) {
            Home::Legacy
        } else {
            Home::Absent
        }
    }
}
