use std::fmt;

use serde::Serialize;

use crate::resolved::{IdList, IoPriority, MemoryPolicy, Scheduler};

/// One attribute that a process gives itself before it becomes the user's program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Attribute {
    Scheduler(Scheduler),
    IoPriority(IoPriority),
    /// Processors to run on (sched_setaffinity(2)).
    Affinity(IdList),
    /// Execution domain (personality(2)).
    Personality(u32),
    MemoryPolicy(MemoryPolicy),
    /// The AppArmor profile that execve(2) enters.
    AppArmor(String),
    /// The SELinux context that execve(2) enters (`exec`) or that new keys get (`keycreate`).
    SeLinux {
        file: String,
        label: String,
    },
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheduler(scheduler) => write_scheduler(scheduler, f),
            Self::IoPriority(io) => write!(f, "set I/O priority {} level {}", io.name, io.level),
            Self::Affinity(cpus) => write!(f, "run on processors {}", cpus.text),
            Self::Personality(domain) => write!(f, "set personality {domain:#x}"),
            Self::MemoryPolicy(policy) => {
                write!(f, "set memory policy {} nodes {:?}", policy.name, policy.nodes.text)
            }
            Self::AppArmor(profile) => {
                write!(f, "apply apparmor profile {profile:?} on exec")
            }
            Self::SeLinux { file, label } => {
                write!(f, "write selinux label {label:?} to /proc/thread-self/attr/{file}")
            }
        }
    }
}

fn write_scheduler(scheduler: &Scheduler, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "set scheduler {}", scheduler.name)?;
    if let Some(nice) = scheduler.nice {
        write!(f, " nice {nice}")?;
    }
    let numbers = [
        ("priority", u64::from(scheduler.priority)),
        ("runtime", scheduler.runtime),
        ("deadline", scheduler.deadline),
        ("period", scheduler.period),
    ];
    for (name, value) in numbers.into_iter().filter(|(_, value)| *value != 0) {
        write!(f, " {name} {value}")?;
    }
    if scheduler.flags == 0 { Ok(()) } else { write!(f, " flags {:#x}", scheduler.flags) }
}
