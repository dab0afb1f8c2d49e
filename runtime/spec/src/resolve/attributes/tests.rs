use serde_json::{Value, json};

use super::*;

fn resolve(process: &Value, linux: &Value, facts: &HostFacts) -> Result<Attributes, Vec<String>> {
    let mut document = json!({
        "ociVersion": "1.3.0",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/" },
        "linux": linux.clone(),
    });
    for (key, value) in process.as_object().unwrap() {
        document["process"][key] = value.clone();
    }
    let spec = crate::parse::parse(document.to_string().as_bytes()).unwrap();
    let mut problems = Problems::default();
    let found = attributes(&spec, spec.process().as_ref().unwrap(), facts, &mut problems);
    if problems.0.is_empty() {
        return Ok(found);
    }
    Err(problems.0.into_iter().map(|p| p.field).collect())
}

fn scheduler(value: &Value) -> Result<crate::resolved::Scheduler, Vec<String>> {
    let found = resolve(&json!({ "scheduler": value }), &json!({}), &HostFacts::default())?;
    Ok(found.scheduler.unwrap())
}

#[test]
fn a_scheduler_becomes_numbers() {
    let fifo = scheduler(&json!({ "policy": "SCHED_FIFO", "priority": 7, "nice": 3,
        "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_RECLAIM"] }))
    .unwrap();
    assert_eq!((fifo.policy, fifo.priority, fifo.nice, fifo.flags), (1, 7, Some(3), 7));
    let deadline = scheduler(&json!({ "policy": "SCHED_DEADLINE", "nice": 19, "priority": 0,
        "runtime": 42000, "deadline": 1_000_000, "period": 1_000_000 }))
    .unwrap();
    assert_eq!((deadline.policy, deadline.runtime, deadline.period), (6, 42000, 1_000_000));
}

#[test]
fn a_scheduler_that_the_kernel_would_refuse_is_named_by_field() {
    for (value, field) in [
        (json!({ "policy": "SCHED_OTHER", "nice": 20 }), "nice"),
        (json!({ "policy": "SCHED_OTHER", "priority": 1 }), "priority"),
        (json!({ "policy": "SCHED_RR" }), "priority"),
        (json!({ "policy": "SCHED_FIFO", "priority": 100 }), "priority"),
        (json!({ "policy": "SCHED_BATCH", "runtime": 5000 }), "runtime"),
        (json!({ "policy": "SCHED_DEADLINE", "runtime": 5, "deadline": 5000 }), "runtime"),
        (json!({ "policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 4000 }), "deadline"),
        (
            json!({ "policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 6000, "period": 5500 }),
            "period",
        ),
        (json!({ "policy": "SCHED_ISO" }), "policy"),
    ] {
        assert_eq!(scheduler(&value).unwrap_err(), [format!("process.scheduler.{field}")]);
    }
}

#[test]
fn io_priority_has_eight_levels() {
    let io = |class: &str, priority: i64| {
        let value = json!({ "ioPriority": { "class": class, "priority": priority } });
        resolve(&value, &json!({}), &HostFacts::default())
    };
    let found = io("IOPRIO_CLASS_RT", 3).unwrap().io_priority.unwrap();
    assert_eq!((found.class, found.level), (1, 3));
    assert_eq!(io("IOPRIO_CLASS_BE", 8).unwrap_err(), ["process.ioPriority.priority"]);
    assert_eq!(io("IOPRIO_CLASS_IDLE", -1).unwrap_err(), ["process.ioPriority.priority"]);
}

#[test]
fn affinity_becomes_bits() {
    let ask = |value: Value| {
        resolve(&json!({ "execCPUAffinity": value }), &json!({}), &HostFacts::default())
    };
    let found = ask(json!({ "initial": "0-2,65", "final": "" })).unwrap().exec_affinity;
    assert_eq!(found.initial.unwrap().bits, [0b111, 0b10]);
    assert_eq!(found.last, None);
    assert_eq!(ask(json!({ "final": "9000" })).unwrap_err(), ["process.execCPUAffinity.final"]);
    assert_eq!(ask(json!({ "initial": "3-1" })).unwrap_err(), ["process.execCPUAffinity.initial"]);
}

#[test]
fn labels_need_their_security_module() {
    let both = json!({ "apparmorProfile": "web", "selinuxLabel": "a:b:c:s0" });
    let with = HostFacts { apparmor: true, selinux: true, ..HostFacts::default() };
    let found = resolve(&both, &json!({}), &with).unwrap();
    assert_eq!(found.apparmor_profile.as_deref(), Some("web"));
    assert_eq!(found.selinux_label.as_deref(), Some("a:b:c:s0"));
    assert_eq!(
        resolve(&both, &json!({}), &HostFacts::default()).unwrap_err(),
        ["process.apparmorProfile", "process.selinuxLabel"]
    );
    let none = json!({ "apparmorProfile": "unconfined", "selinuxLabel": "" });
    assert_eq!(resolve(&none, &json!({}), &HostFacts::default()).unwrap(), Attributes::default());
}

#[test]
fn personality_takes_no_flags() {
    let ask =
        |value: Value| resolve(&json!({}), &json!({ "personality": value }), &HostFacts::default());
    assert_eq!(ask(json!({ "domain": "LINUX32" })).unwrap().personality, Some(8));
    assert_eq!(ask(json!({ "domain": "LINUX", "flags": [] })).unwrap().personality, Some(0));
    let flags = json!({ "domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"] });
    assert_eq!(ask(flags).unwrap_err(), ["linux.personality.flags"]);
}

#[test]
fn memory_policies_are_checked_as_the_kernel_does() {
    let ask = |value: Value| {
        resolve(&json!({}), &json!({ "memoryPolicy": value }), &HostFacts::default())
    };
    let policy = |value: Value| ask(value).map(|found| found.memory_policy.unwrap());
    let bind = policy(json!({ "mode": "MPOL_BIND", "nodes": "0-1,64",
        "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_NUMA_BALANCING"] }))
    .unwrap();
    assert_eq!((bind.mode, bind.nodes.bits), (0x8000 | 0x2000 | 2, vec![0b11, 1]));
    for mode in ["MPOL_DEFAULT", "MPOL_LOCAL", "MPOL_PREFERRED"] {
        assert!(policy(json!({ "mode": mode })).is_ok(), "{mode}");
    }
    let nodes = "linux.memoryPolicy.nodes";
    let flags = "linux.memoryPolicy.flags";
    for (value, field) in [
        (json!({ "mode": "MPOL_DEFAULT", "nodes": "0" }), nodes),
        (json!({ "mode": "MPOL_INTERLEAVE" }), nodes),
        (json!({ "mode": "MPOL_PREFERRED", "flags": ["MPOL_F_RELATIVE_NODES"] }), nodes),
        (json!({ "mode": "MPOL_BIND", "nodes": "0-" }), nodes),
        (json!({ "mode": "MPOL_BIND", "nodes": "2000" }), nodes),
        (json!({ "mode": "MPOL_LOCAL", "flags": ["MPOL_F_STATIC_NODES"] }), flags),
        (
            json!({ "mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"] }),
            flags,
        ),
        (
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"] }),
            flags,
        ),
    ] {
        let found = ask(value.clone()).unwrap_err();
        assert!(found.contains(&field.to_owned()), "{value}: {found:?}");
    }
}
