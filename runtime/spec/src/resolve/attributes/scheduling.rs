use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    Scheduler as OciScheduler,
};

use crate::Problems;
use crate::resolved::{IoPriority, Scheduler};

/// The kernel's resolution of deadlines (sched(7), SCHED_DEADLINE): 1024 ns, and less than 2^63.
const SHORTEST: u64 = 1024;
const LONGEST: u64 = i64::MAX.unsigned_abs();

pub(super) fn scheduler(asked: &OciScheduler, problems: &mut Problems) -> Scheduler {
    let (name, policy) = policy(*asked.policy());
    let scheduler = Scheduler {
        name: name.to_owned(),
        policy,
        flags: asked.flags().iter().flatten().fold(0, |bits, flag| bits | bit(*flag)),
        nice: *asked.nice(),
        priority: asked.priority().map_or(0, i32::cast_unsigned),
        runtime: asked.runtime().unwrap_or(0),
        deadline: asked.deadline().unwrap_or(0),
        period: asked.period().unwrap_or(0),
    };
    if scheduler.name == "SCHED_ISO" {
        problems.add("process.scheduler.policy", "SCHED_ISO is in no released kernel");
    }
    if scheduler.nice.is_some_and(|nice| !(-20..=19).contains(&nice)) {
        problems.add("process.scheduler.nice", "must be between -20 and 19");
    }
    check_priority(&scheduler, asked.priority().unwrap_or(0), problems);
    check_deadline(&scheduler, problems);
    scheduler
}

fn check_priority(scheduler: &Scheduler, priority: i32, problems: &mut Problems) {
    let realtime = ["SCHED_FIFO", "SCHED_RR"].contains(&scheduler.name.as_str());
    if realtime && !(1..=99).contains(&priority) {
        problems.add(
            "process.scheduler.priority",
            format!("must be between 1 and 99 with {}", scheduler.name),
        );
    }
    if !realtime && priority != 0 {
        problems.add("process.scheduler.priority", "needs the policy SCHED_FIFO or SCHED_RR");
    }
}

fn check_deadline(scheduler: &Scheduler, problems: &mut Problems) {
    let times = [
        ("runtime", scheduler.runtime),
        ("deadline", scheduler.deadline),
        ("period", scheduler.period),
    ];
    if scheduler.name != "SCHED_DEADLINE" {
        for (field, _) in times.into_iter().filter(|(_, time)| *time != 0) {
            problems.add(format!("process.scheduler.{field}"), "needs the policy SCHED_DEADLINE");
        }
        return;
    }
    if !(SHORTEST..=LONGEST).contains(&scheduler.runtime) {
        problems.add("process.scheduler.runtime", "must be between 1024 and 2^63-1 nanoseconds");
    }
    if scheduler.deadline < scheduler.runtime || scheduler.deadline > LONGEST {
        problems.add("process.scheduler.deadline", "must not be below runtime (sched(7))");
    }
    // The kernel takes 0 for "the same as deadline".
    if scheduler.period != 0 && scheduler.period < scheduler.deadline {
        problems.add("process.scheduler.period", "must not be below deadline (sched(7))");
    }
}

const fn policy(policy: LinuxSchedulerPolicy) -> (&'static str, u32) {
    use LinuxSchedulerPolicy as P;
    match policy {
        P::SchedOther => ("SCHED_OTHER", 0),
        P::SchedFifo => ("SCHED_FIFO", 1),
        P::SchedRr => ("SCHED_RR", 2),
        P::SchedBatch => ("SCHED_BATCH", 3),
        P::SchedIso => ("SCHED_ISO", 4),
        P::SchedIdle => ("SCHED_IDLE", 5),
        P::SchedDeadline => ("SCHED_DEADLINE", 6),
    }
}

/// `SCHED_FLAG_*` (include/uapi/linux/sched.h).
const fn bit(flag: LinuxSchedulerFlag) -> u64 {
    use LinuxSchedulerFlag as F;
    match flag {
        F::SchedResetOnFork => 0x01,
        F::SchedFlagReclaim => 0x02,
        F::SchedFlagDLOverrun => 0x04,
        F::SchedFlagKeepPolicy => 0x08,
        F::SchedFlagKeepParams => 0x10,
        F::SchedFlagUtilClampMin => 0x20,
        F::SchedFlagUtilClampMax => 0x40,
    }
}

pub(super) fn io_priority(asked: LinuxIOPriority, problems: &mut Problems) -> IoPriority {
    let (name, class) = match asked.class() {
        IOPriorityClass::IoprioClassRt => ("IOPRIO_CLASS_RT", 1),
        IOPriorityClass::IoprioClassBe => ("IOPRIO_CLASS_BE", 2),
        IOPriorityClass::IoprioClassIdle => ("IOPRIO_CLASS_IDLE", 3),
    };
    let level = u8::try_from(asked.priority()).ok().filter(|level| *level <= 7);
    if level.is_none() {
        problems.add("process.ioPriority.priority", "must be between 0 and 7");
    }
    IoPriority { name: name.to_owned(), class, level: level.unwrap_or(0) }
}
