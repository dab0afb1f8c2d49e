use serde::Serialize;

/// What else the kernel keeps about a process: scheduling, memory policy, labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Attributes {
    pub scheduler: Option<Scheduler>,
    pub io_priority: Option<IoPriority>,
    /// For processes that join the container later; the first one's are its cgroup's (runtime-spec, `execCPUAffinity`).
    pub exec_affinity: ExecAffinity,
    /// Execution domain (personality(2)).
    pub personality: Option<u32>,
    pub memory_policy: Option<MemoryPolicy>,
    pub apparmor_profile: Option<String>,
    pub selinux_label: Option<String>,
}

/// sched_setattr(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Scheduler {
    /// As `SCHED_FIFO`.
    pub name: String,
    pub policy: u32,
    /// `SCHED_FLAG_*` bits.
    pub flags: u64,
    pub nice: Option<i32>,
    /// 1 to 99 with SCHED_FIFO and SCHED_RR, otherwise 0.
    pub priority: u32,
    /// Nanoseconds, with SCHED_DEADLINE.
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// ioprio_set(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IoPriority {
    /// As `IOPRIO_CLASS_BE`.
    pub name: String,
    pub class: u8,
    /// 0 (first) to 7.
    pub level: u8,
}

/// Processors of a process that is added to a container: before and after it stands in the container's cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ExecAffinity {
    pub initial: Option<IdList>,
    pub last: Option<IdList>,
}

/// Processors or memory nodes: the list as it was written (`0-3,7`) and as bits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IdList {
    pub text: String,
    pub bits: Vec<u64>,
}

/// set_mempolicy(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryPolicy {
    /// As `MPOL_BIND`, with its flags.
    pub name: String,
    /// Mode and `MPOL_F_*` bits.
    pub mode: u32,
    pub nodes: IdList,
}
