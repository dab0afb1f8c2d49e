//! Clusters to show, as the coordinator tells them.

use hafen_integration::{Value, json, with};

use super::coordinator::Coordinator;

pub(super) const NOW: &str = "2026-11-23T00:00:00Z";
const GIB: u64 = 1 << 30;

pub(super) fn view(revision: u64, nodes: Vec<Value>, jobs: Vec<Value>, tasks: Vec<Value>) -> Value {
    let count = nodes.len() as u64;
    json!({
        "revision": revision.to_string(), "coordinator": "harbour-1", "epoch": "7", "version": "0.1.0",
        "capacity": capacity(count, 5_200, 9 * GIB, 1_730, 4 * GIB + GIB / 3),
        "nodes": Value::from(nodes), "jobs": Value::from(jobs), "instances": Value::from(tasks),
        "time": NOW,
    })
}

fn capacity(nodes: u64, cpu: u64, memory: u64, cpu_used: u64, memory_used: u64) -> Value {
    let times = |amount: u64| (nodes * amount).to_string();
    let both = |cpu, memory| json!({ "cpuMilli": times(cpu), "memory": times(memory) });
    json!({
        "total": both(8_000, 16 * GIB), "reserved": both(500, GIB),
        "allocatable": both(7_500, 15 * GIB),
        "allocated": both(cpu, memory), "used": both(cpu_used, memory_used),
        "cpuPressure": 2.35, "memoryPressure": 0.0, "ioPressure": 11.8,
    })
}

pub(super) fn node(name: &str, presence: &str, tasks: u32) -> Value {
    json!({
        "name": name, "presence": presence, "instance": "5f0c9a3be27d41c8",
        "bootId": "8b1f0a52-1d9e-4f6e-9b7e-0d1f3f2c4a55", "software": "hafen 0.1.0",
        "incarnation": "12", "attributes": { "zone": "north", "rack": "r12", "disk": "ssd" },
        "features": ["fence", "cni"], "instances": tasks, "heard": "2026-11-22T23:59:58Z",
        "capacity": capacity(1, 5_200, 9 * GIB, 1_730, 4 * GIB + GIB / 3),
    })
}

pub(super) fn job(name: &str, ready: u32, wanted: u32) -> Value {
    json!({
        "name": name, "namespace": "default", "version": "4", "stable": "4", "rollout": "ROLLOUT_DONE",
        "wanted": wanted, "ready": ready, "kind": "replicas",
        "runs": "registry.example.net/shop/web:2.14.1",
    })
}

pub(super) fn task(name: &str, job: &str, slot: u32, node: &str) -> Value {
    json!({
        "name": name, "job": job, "namespace": "default", "version": "4",
        "slot": slot.to_string(), "node": node, "phase": "PHASE_READY", "state": "STATE_RUNNING",
        "started": "2026-11-22T20:12:00Z",
        "addresses": ["10.88.0.17"], "ports": [{ "host": 30_080, "container": 8_080 }],
    })
}

/// One with a little of everything.
pub(super) fn small(revision: u64) -> Value {
    let gone = json!({ "heard": "2026-11-22T23:41:00Z" });
    let nodes = vec![
        node("n1", "PRESENCE_HERE", 4),
        with(node("n2", "PRESENCE_HERE", 2), &json!({ "draining": true })),
        node("n3", "PRESENCE_AWAY", 3),
        with(node("n10", "PRESENCE_UNREACHABLE", 0), &gone),
    ];
    view(revision, nodes, small_jobs(), small_tasks())
}

const WAITS: &str = "no node has 4 CPUs free: n1 has 2.3, n2 is draining";

fn small_jobs() -> Vec<Value> {
    let updating =
        json!({ "rollout": "ROLLOUT_UNDER_WAY", "version": "9", "stable": "8", "starting": 2 });
    let waiting =
        json!({ "namespace": "billing", "waiting": 1, "sentence": WAITS, "priority": 50 });
    let stuck = json!({
        "rollout": "ROLLOUT_FAILED", "version": "3", "stable": "2",
        "sentence": "version 3 was not ready within 5 min",
    });
    vec![
        job("web", 3, 3),
        with(job("api", 2, 4), &updating),
        with(job("ledger", 1, 2), &waiting),
        with(job("search", 2, 2), &stuck),
        with(
            job("night-report", 0, 5),
            &json!({ "kind": "batch", "namespace": "billing", "finished": 5 }),
        ),
        with(job("old-shop", 0, 0), &json!({ "stopped": true })),
    ]
}

fn small_tasks() -> Vec<Value> {
    let starting =
        |state: &str| json!({ "phase": "PHASE_STARTING", "state": state, "version": "9" });
    let failed = json!({
        "phase": "PHASE_FAILED", "state": "STATE_FAILED", "failures": 4,
        "sentence": "the process exited with code 3",
    });
    vec![
        task("a1f40", "web", 0, "n1"),
        task("a1f41", "web", 1, "n2"),
        task("a1f42", "web", 2, "n3"),
        task("a2030", "api", 0, "n1"),
        task("a2031", "api", 1, "n3"),
        with(task("a2032", "api", 2, "n1"), &starting("STATE_STAGING")),
        with(task("a2033", "api", 3, "n3"), &starting("STATE_STARTING")),
        task("a3001", "ledger", 0, "n1"),
        json!({
            "job": "ledger", "namespace": "billing", "version": "4", "slot": "1",
            "phase": "PHASE_WAITING", "sentence": WAITS,
        }),
        with(task("a4000", "search", 0, "n2"), &failed),
    ]
}

/// With so many tasks, on a hundred nodes.
pub(super) fn large(revision: u64, tasks: u32) -> Value {
    let nodes = (0..100).map(|n| node(&format!("n{n}"), "PRESENCE_HERE", tasks / 100)).collect();
    let jobs = (0..tasks / 20).map(|n| job(&format!("job-{n}"), 20, 20)).collect();
    let one = |n: u32| {
        task(&format!("a{n:06x}"), &format!("job-{}", n / 20), n % 20, &format!("n{}", n % 100))
    };
    view(revision, nodes, jobs, (0..tasks).map(one).collect())
}

/// A coordinator of the small one, that knows more of one job and one task.
pub(super) fn small_with_more() -> Coordinator {
    let coordinator = Coordinator::start(small(1));
    let version = |number: u32, instances: u32| {
        let root = json!({ "image": format!("registry.example.net/shop/api:{number}.0") });
        let spec = json!({ "name": "api", "task": { "root": root } });
        json!({ "version": number.to_string(), "instances": instances, "spec": spec })
    };
    let exit = json!({
        "signal": 9, "usage": { "memoryPeak": "734003200" },
        "violations": [{ "kind": "KIND_MEMORY", "sentence": "memory: more than its 700 MiB" }],
    });
    let status = json!({
        "id": "a1f40", "attempt": 3,
        "reason": { "kind": "KIND_EXITED", "sentence": "killed for its memory", "exit": exit },
        "checks": [
            { "name": "alive", "passing": true },
            { "name": "ready", "message": "connection refused" },
        ],
    });
    coordinator.more(json!({
        "/v1/jobs/api": { "versions": [version(7, 0), version(8, 2), version(9, 2)] },
        "/v1/instances/a1f40": { "name": "a1f40", "tasks": [status] },
    }));
    coordinator.say("STREAM_STDOUT", b"\x1b[32mINFO\x1b[0m listening on 0.0.0.0:8080\n");
    coordinator.say("STREAM_STDERR", "no ledger: \u{201c}no route\u{201d}\n".as_bytes());
    coordinator
}
