use crate::raw::{self, Answer, call, plain, reg};

/// An attribute that the first process gives itself.
#[derive(Debug)]
pub enum Attribute {
    /// sched_setattr(2).
    Scheduler(SchedulerAttributes),
    /// setpriority(2): sched_setattr leaves the nice value alone where the policy does not use it.
    Nice(i32),
    /// ioprio_set(2): class and level.
    IoPriority {
        class: u8,
        level: u8,
    },
    /// sched_setaffinity(2): one bit for each processor.
    Affinity {
        processors: Vec<u64>,
    },
    Personality {
        domain: u32,
    },
    /// set_mempolicy(2): one bit for each node.
    MemoryPolicy {
        mode: u32,
        nodes: Vec<u64>,
    },
}

/// `struct sched_attr` of Linux 5.3, 56 bytes (sched_setattr(2)).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SchedulerAttributes {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    /// The runtime spec has flags for the clamps, but no values.
    pub clamps: [u32; 2],
}

impl Default for SchedulerAttributes {
    fn default() -> Self {
        Self {
            size: size_of::<Self>() as u32,
            policy: 0,
            flags: 0,
            nice: 0,
            priority: 0,
            runtime: 0,
            deadline: 0,
            period: 0,
            clamps: [0; 2],
        }
    }
}

/// Give an attribute to another process: of those that a process in a user namespace may not give itself.
///
/// # Errors
/// EINVAL for any other attribute.
pub fn give(pid: i32, attribute: &Attribute) -> std::io::Result<()> {
    let known = matches!(
        attribute,
        Attribute::Scheduler(_) | Attribute::Nice(_) | Attribute::IoPriority { .. }
    );
    let answer = if known { set(attribute, pid) } else { Err(libc::EINVAL) };
    answer.map_err(std::io::Error::from_raw_os_error)
}

/// `process` is 0 for ourselves; what has no such argument is about ourselves.
pub(super) fn set(attribute: &Attribute, process: i32) -> Result<(), i32> {
    let answer = match attribute {
        Attribute::Scheduler(attributes) => {
            let pointer = std::ptr::from_ref(attributes) as usize;
            // SAFETY: a struct sched_attr that says its own size, alive across the call.
            unsafe { call(libc::SYS_sched_setattr, [reg(process), pointer, 0, 0, 0, 0]) }
        }
        Attribute::Nice(nice) => {
            let which = libc::PRIO_PROCESS as usize;
            plain(libc::SYS_setpriority, [which, reg(process), reg(*nice), 0, 0, 0])
        }
        Attribute::IoPriority { class, level } => io_priority(process, *class, *level),
        Attribute::Affinity { processors } => {
            let (pointer, size) = (processors.as_ptr() as usize, size_of_val(&**processors));
            // SAFETY: a mask of the size given, alive across the call.
            unsafe { call(libc::SYS_sched_setaffinity, [0, size, pointer, 0, 0, 0]) }
        }
        Attribute::Personality { domain } => {
            plain(libc::SYS_personality, [*domain as usize, 0, 0, 0, 0, 0])
        }
        Attribute::MemoryPolicy { mode, nodes } => memory_policy(*mode, nodes),
    };
    answer.map(|_| ())
}

fn io_priority(process: i32, class: u8, level: u8) -> Answer {
    const WHO_PROCESS: usize = 1;
    const CLASS_SHIFT: usize = 13;
    let value = (class as usize) << CLASS_SHIFT | level as usize;
    plain(libc::SYS_ioprio_set, [WHO_PROCESS, reg(process), value, 0, 0, 0])
}

fn memory_policy(mode: u32, nodes: &[u64]) -> raw::Answer {
    // The kernel takes one bit less than it is told (set_mempolicy(2), BUGS of its interface).
    let (pointer, bits) = match nodes.len() {
        0 => (0, 0),
        words => (nodes.as_ptr() as usize, words.wrapping_mul(64).wrapping_add(1)),
    };
    // SAFETY: null, or a mask of the number of bits given, alive across the call.
    unsafe { call(libc::SYS_set_mempolicy, [mode as usize, pointer, bits, 0, 0, 0]) }
}
