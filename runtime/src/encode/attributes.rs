use std::io;

use hafen_spec::plan::Attribute;
use hafen_spec::resolved::Scheduler;
use hafen_sys::child::{self, Op, SchedulerAttributes};
use hafen_sys::{CallError, Context};

use super::c;

/// Give the process what it may not give itself: real-time policies and the like take rights in the first user namespace
/// (capabilities(7)).
///
/// # Errors
/// Names the attribute.
pub(crate) fn give(pid: i32, attribute: &Attribute) -> Result<(), CallError> {
    let give = || {
        for op in encode(attribute, -1)? {
            if let Op::Attribute(attribute) = op {
                child::give(pid, &attribute)?;
            }
        }
        Ok::<_, io::Error>(())
    };
    give().call(|| attribute.to_string())
}

/// `proc` is a verified procfs, for what is written there.
pub(super) fn encode(attribute: &Attribute, proc: i32) -> io::Result<Vec<Op>> {
    let ops = match attribute {
        Attribute::Scheduler(scheduler) => return Ok(encode_scheduler(scheduler)),
        Attribute::IoPriority(io) => {
            child::Attribute::IoPriority { class: io.class, level: io.level }
        }
        Attribute::Affinity(cpus) => child::Attribute::Affinity { processors: cpus.bits.clone() },
        Attribute::Personality(domain) => child::Attribute::Personality { domain: *domain },
        Attribute::MemoryPolicy(policy) => {
            child::Attribute::MemoryPolicy { mode: policy.mode, nodes: policy.nodes.bits.clone() }
        }
        Attribute::AppArmor(profile) => {
            let data = format!("exec {profile}");
            return Ok(vec![write_proc(proc, "thread-self/attr/apparmor/exec", &data)?]);
        }
        Attribute::SeLinux { file, label } => {
            return Ok(vec![write_proc(proc, &format!("thread-self/attr/{file}"), label)?]);
        }
    };
    Ok(vec![Op::Attribute(ops)])
}

fn encode_scheduler(scheduler: &Scheduler) -> Vec<Op> {
    let attributes = child::Attribute::Scheduler(SchedulerAttributes {
        policy: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice.unwrap_or(0),
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
        ..SchedulerAttributes::default()
    });
    let nice = scheduler.nice.map(child::Attribute::Nice);
    nice.into_iter().chain([attributes]).map(Op::Attribute).collect()
}

pub(super) fn write_proc(proc: i32, path: &str, data: &str) -> io::Result<Op> {
    Ok(Op::WriteProc { proc, path: c(path)?, data: data.as_bytes().to_vec() })
}
