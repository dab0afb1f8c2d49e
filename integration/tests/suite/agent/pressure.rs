//! Tasks that are held back for long, by real load.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use hafen_integration::{Agent, Case, Test, Value, cases, cgroup, json, patience, wait_until};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::{Node, number};

pub(super) fn trials() -> Vec<Case> {
    cases![
        one_that_is_throttled(Root, Busybox, Limit("cpu")),
        one_that_is_short_of_memory(
            Root,
            Busybox,
            Limit("memory"),
            That("PSI of cgroups", has_pressure)
        ),
    ]
}

fn has_pressure() -> bool {
    cgroup::tree().is_some_and(|tree| {
        std::fs::read_to_string(tree.join("memory.pressure")).is_ok_and(|text| !text.is_empty())
    })
}

/// An agent that looks every second.
fn watchful(t: &Test) -> Node<'_> {
    let mut agent = Agent::new(t, "agent").variable("HAFEN_PRESSURE_INTERVAL", "1s");
    agent.restart();
    Node { agent, rootfs: t.bundle().rootfs() }
}

/// What was told of it: whether it is over, and the percentage.
fn told(node: &Node<'_>, of: &str) -> Vec<(bool, f64)> {
    let text =
        node.hafen(["events", "--since", "1", "--no-follow", "--format", "json"]).ok().stdout;
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let pressures = events.map(|event| event["pressure"].clone()).filter(|p| p["of"] == of);
    pressures.map(|p| (p["ended"] == true, p["percent"].as_f64().unwrap_or_default())).collect()
}

#[track_caller]
fn await_told(node: &Node<'_>, of: &str, count: usize, within: Duration) -> Vec<(bool, f64)> {
    let found = wait_until(within, || {
        let told = told(node, of);
        (told.len() >= count).then_some(told)
    });
    found.unwrap_or_else(|| {
        let stats = node.http("GET", "/v1/stats", "").body;
        panic!("{of}: {:?} is told after {:?}: {stats}", told(node, of), patience(within))
    })
}

fn one_that_is_throttled(t: &Test) {
    let node = watchful(t);
    let mut spec = node.task_of("a", &["/inside", "burn", "1000"]);
    spec["resources"] = json!({ "limit": { "cpuMilli": 100 } });
    spec["kill"] = json!({ "grace": "0.1s" });
    node.run(&spec);
    let told = await_told(&node, "cpu", 1, Duration::from_secs(20));
    assert!(!told[0].0 && told[0].1 >= 25.0, "{told:?}");
    let said = node.hafen(["events", "--since", "1", "--no-follow"]).ok().stdout;
    assert!(
        said.lines().any(|line| line.contains(" a cpu pressure ") && line.ends_with("% over 2s")),
        "{said}"
    );
    let usage = node.http("GET", "/v1/stats?id=a", "").expect(200)["tasks"][0]["usage"].clone();
    assert!(number(&usage["cpuThrottledPeriods"]) > Some(2), "{usage:#}");
    let metrics = node.http("GET", "/metrics", "").body;
    let throttled = metrics.lines().find_map(|line| {
        line.strip_prefix("hafen_task_cpu_throttled_seconds{task=\"a\"} ")?.parse::<f64>().ok()
    });
    assert!(throttled > Some(0.1), "{metrics}");
    // With more than it takes it is over, and told once.
    node.hafen(["update", "--cpus", "4", "a"]).ok();
    let told = await_told(&node, "cpu", 2, Duration::from_secs(20));
    assert!(told.len() == 2 && told[1].0, "{told:?}");
    let said = node.hafen(["events", "--since", "1", "--no-follow"]).ok().stdout;
    assert!(said.contains(" a cpu pressure has ended"), "{said}");
}

/// It reads a file that is larger than its limit, over and over: what it has read is thrown out for what it reads next.
fn one_that_is_short_of_memory(t: &Test) {
    const LIMIT: u64 = 12 << 20;
    let node = watchful(t);
    let large = large(t, LIMIT * 8);
    let script = "trap 'exit 0' TERM; until [ -e /tmp/enough ]; do cat /large > /dev/null; done; \
                  while :; do sleep 0.1; done";
    let mut spec = node.sh("a", script);
    spec["mounts"] = json!([{ "host": large, "destination": "/large", "options": ["ro"] }]);
    spec["resources"] = json!({ "limit": { "memory": LIMIT } });
    node.run(&spec);
    let told = await_told(&node, "memory", 1, Duration::from_secs(60));
    assert!(!told[0].0 && told[0].1 >= 10.0, "{told:?}");
    let usage = node.http("GET", "/v1/stats?id=a", "").expect(200)["tasks"][0]["usage"].clone();
    assert!(usage["memoryPressure"].as_f64() > Some(0.0), "{usage:#}");
    node.hafen(["exec", "a", "/bin/touch", "/tmp/enough"]).ok();
    // It is of the last minute.
    let told = await_told(&node, "memory", 2, Duration::from_secs(120));
    assert!(told.len() == 2 && told[1].0, "{told:?}");
    node.hafen(["stop", "a"]).ok();
}

/// A file that is read through the page cache. What is on a tmpfs is in memory anyhow: then it is our own program.
fn large(t: &Test, bytes: u64) -> PathBuf {
    let about = statfs(t.dir()).expect("statfs");
    if about.filesystem_type() == TMPFS_MAGIC {
        return std::env::current_exe().expect("a path");
    }
    let path = t.dir().join("large");
    // Of holes, which take no disk, and are pages all the same.
    let file = File::create(&path).expect("a file");
    file.set_len(bytes).expect("a length");
    path
}
