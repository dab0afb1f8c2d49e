//! Control groups: what a container may take of the machine, and how much of it it took.
//!
//! Processes live in one folder of the cgroup2 tree, and so do the limits of every controller of that tree. A
//! controller that this host still binds to a v1 hierarchy gets a folder of the same relative name there, for its
//! limits only. [`share`] says all that beforehand, [`perform`] does it, [`observe`] reads the kernel's numbers,
//! [`release`] removes everything again.

mod folder;
mod freeze;
mod granted;
mod knobs;
mod layout;
mod make;
mod oom;
mod processes;
mod release;
mod share;
mod stats;
mod taken;
mod update;
mod usage;

use std::io;

use hafen_spec::plan::HostStep;
use hafen_sys::{CallError, Context, file};
use nix::errno::Errno;

pub use freeze::{freeze, is_frozen, wait_frozen};
pub use granted::{place, restrict};
pub use knobs::{Setting, knobs, weight_from_shares};
pub use layout::discover;
pub use make::Hold;
pub use oom::OomWatch;
pub use processes::{kill, processes, wait_empty};
pub use release::release;
pub use share::{Share, check_free, missing_parents, share};
pub use stats::{BlkioEntry, Pressure, Stats, stats};
pub use taken::{Taken, machine_pressure, memory_pressure, taken, throttling};
pub use update::{Change, Failure, apply, change, held};
pub use usage::observe;

/// Carry out one step of [`Share::before`] or [`Share::beside`]; the latter need the pid of the process.
///
/// A folder that was there when the plan was made is taken over if no process is in it by now. Otherwise the error is
/// EEXIST, and the folder must not be released: it belongs to somebody else. The answer keeps others away from a folder
/// that was made or taken over, to be let go when the process is in it.
///
/// # Errors
/// Names the call, the value and the file, and who is in the way.
pub fn perform(step: &HostStep, pid: Option<i32>) -> Result<Option<Hold>, CallError> {
    let done = match step {
        HostStep::MakeCgroup { tree, path, controllers, accounting, premade } => {
            let wanted = make::Wanted { controllers, accounting };
            return make::cgroup(tree, path, &wanted, *premade).map(Some);
        }
        HostStep::MakeScope { unit, slice, path, properties } => {
            let placeholder = crate::systemd::start(unit, slice, path, properties)?;
            return Hold::of_scope(path, placeholder).map(Some);
        }
        HostStep::MakeLegacyCgroup { controller, path } => {
            return make::legacy(controller, path).map(Some);
        }
        HostStep::Knob(knob) => write(knob),
        HostStep::DeviceProgram { cgroup, rules } => crate::device::confine(cgroup, rules),
        HostStep::Enter { cgroup } => match pid {
            Some(pid) => make::enter(cgroup, pid),
            None => Err(misplaced(step, "there is no process yet")),
        },
        _ => Err(misplaced(step, "not a step of the isolator")),
    };
    done.map(|()| None)
}

fn misplaced(step: &HostStep, why: &str) -> CallError {
    CallError::new(step.to_string(), io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()))
}

/// A file that is not there limits nothing, so lifting its limit is done already.
fn write(knob: &hafen_spec::plan::Knob) -> Result<(), CallError> {
    match file::write_knob(&knob.file, &knob.value) {
        Err(e) if e.is(Errno::ENOENT) && matches!(knob.value.as_str(), "max" | "-1") => Ok(()),
        Err(e) if e.is(Errno::ENOENT) && knob.instead.as_ref().is_some_and(|i| i.file.exists()) => {
            knob.instead.as_deref().map_or(Err(e), write)
        }
        Err(e) if e.is(Errno::ENOENT) => Err(e.source).call(|| format!("{}{}", e.call, lack(knob))),
        result => result,
    }
}

/// Why the kernel may lack a file of an enabled controller.
fn lack(knob: &hafen_spec::plan::Knob) -> &'static str {
    match knob.file.file_name().and_then(|n| n.to_str()) {
        Some("memory.swap.max" | "memory.memsw.limit_in_bytes") => {
            " (this kernel does not account for swap, so linux.resources.memory.swap cannot hold)"
        }
        Some("cpu.rt_period_us" | "cpu.rt_runtime_us") => {
            " (this kernel has no realtime groups, so linux.resources.cpu.realtimeRuntime and realtimePeriod cannot hold)"
        }
        Some("io.bfq.weight" | "blkio.bfq.weight" | "blkio.bfq.weight_device") => {
            " (this kernel has no weights of block I/O, so linux.resources.blockIO.weight and weightDevice cannot hold)"
        }
        Some(name) if name.starts_with("hugetlb.") => {
            " (this machine has no pages of this size, see linux.resources.hugepageLimits and /sys/kernel/mm/hugepages)"
        }
        _ => "",
    }
}
