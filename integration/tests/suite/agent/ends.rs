//! Limits, and the sentences that tell of them; checks, and restarts.

use std::fs;
use std::time::{Duration, Instant};

use hafen_integration::{Case, Test, Value, cases, cgroup, json, wait_until};

use super::{Node, exit_code, number, sentence};

pub(super) fn trials() -> Vec<Case> {
    cases![
        memory_is_explained(Root, Busybox, Limit("memory")),
        memory_of_a_child_is_explained(Root, Busybox, Limit("memory")),
        pids_are_explained(Root, Busybox, Limit("pids")),
        throttling_is_counted(Root, Busybox, Limit("cpu")),
        what_is_revocable_lets_others_go_first(Root, Busybox, Limit("cpu"), Limit("memory")),
        the_longest_run(Root, Busybox),
        a_command_finds_it_unhealthy(Root, Busybox),
        tcp_and_http_ask_inside(Root, Busybox),
        readiness_comes_and_goes(Root, Busybox),
        restarts_have_longer_and_longer_pauses(Root, Busybox),
        restarts_have_an_end(Root, Busybox),
        success_is_not_restarted_on_failure(Root, Busybox),
        one_that_waits_for_its_restart_is_stopped(Root, Busybox),
    ]
}

fn memory_is_explained(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.task_of("a", &["/inside", "eat", "268435456", "60"]);
    spec["resources"] = json!({ "limit": { "memory": 64 << 20, "swap": 0 } });
    node.run(&spec);
    let task = node.wait("a");
    assert_eq!(task["state"], "STATE_FAILED", "{task:#}");
    let said = sentence(&task);
    assert!(said.starts_with("killed: memory limit 64 MiB reached, peak "), "{said}");
    assert!(said.contains(" OOM event") && said.contains("largest process \"inside\" "), "{said}");
    let exit = &task["reason"]["exit"];
    assert_eq!(exit["signal"], 9);
    let violation = &exit["violations"][0];
    assert_eq!(violation["kind"], "KIND_MEMORY", "{task:#}");
    assert_eq!(number(&violation["limit"]), Some(64 << 20));
    assert!((60 << 20..=64 << 20).contains(&number(&violation["peak"]).unwrap_or(0)), "{task:#}");
    assert!(number(&violation["events"]) >= Some(1));
    assert_eq!(violation["largest"], "inside");
    assert!(number(&violation["largestAmount"]) > Some(32 << 20), "{task:#}");
    let events = node.http("GET", "/v1/events?since=1&id=a", "").body;
    assert!(events.lines().any(|line| line.contains("\"oom\"")), "{events}");
    // A shell's code is 128 and the signal.
    assert_eq!(node.hafen(["wait", "a"]).ok().stdout, "137\n");
}

/// The first process goes on, and ends by itself: its sentence tells of the limit all the same.
fn memory_of_a_child_is_explained(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.sh("a", "/inside eat 268435456 60; exit 4");
    spec["resources"] = json!({ "limit": { "memory": 64 << 20, "swap": 0 } });
    node.run(&spec);
    let task = node.wait("a");
    // In cgroup v2 the whole container may be ended together.
    if exit_code(&task).is_some() {
        assert_eq!(exit_code(&task), Some(4), "{task:#}");
        assert!(sentence(&task).starts_with("exited with code 4, after "), "{task:#}");
    }
    assert!(sentence(&task).contains("memory limit 64 MiB reached"), "{task:#}");
    assert_eq!(task["reason"]["exit"]["violations"][0]["largest"], "inside", "{task:#}");
}

fn pids_are_explained(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.task_of("a", &["/inside", "fork", "40"]);
    spec["resources"] = json!({ "limit": { "pids": 16 } });
    node.run(&spec);
    let task = node.wait("a");
    assert!(sentence(&task).contains("limit of 16 processes reached, "), "{task:#}");
    let violation = &task["reason"]["exit"]["violations"][0];
    assert_eq!(violation["kind"], "KIND_PIDS", "{task:#}");
    assert_eq!(number(&violation["limit"]), Some(16));
    assert!(number(&violation["events"]) >= Some(1), "{task:#}");
}

fn throttling_is_counted(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.task_of("a", &["/inside", "burn", "1"]);
    spec["resources"] = json!({ "limit": { "cpuMilli": 100 } });
    node.run(&spec);
    let task = node.wait("a");
    assert_eq!(exit_code(&task), Some(0), "{task:#}");
    let usage = &task["reason"]["exit"]["usage"];
    let (periods, throttled) =
        (number(&usage["cpuPeriods"]), number(&usage["cpuThrottledPeriods"]));
    assert!(periods >= Some(5) && throttled >= Some(3) && throttled <= periods, "{usage:#}");
    assert!(seconds(&usage["cpuThrottled"]) > 0.2, "{usage:#}");
    assert!((0.01..0.5).contains(&seconds(&usage["cpu"])), "{usage:#}");
}

fn what_is_revocable_lets_others_go_first(t: &Test) {
    let node = Node::new(t);
    let idle = |id| cgroup::value(&node.cgroup(id, "cpu"), "cpu.idle");
    let protected = |id| {
        let is_legacy = cgroup::v1("memory").is_some();
        let file = if is_legacy { "memory.soft_limit_in_bytes" } else { "memory.low" };
        cgroup::value(&node.cgroup(id, "memory"), file)
    };
    let score = |id| {
        let words = ["exec", id, "cat", "/proc/1/oom_score_adj"];
        node.hafen(words).ok().stdout.trim().to_owned()
    };
    let usual = fs::read_to_string("/proc/self/oom_score_adj").expect("read");
    let facts = |idle: &str, protected: &str, score: &str| {
        (idle.to_owned(), protected.to_owned(), score.trim().to_owned())
    };
    for (id, revocable) in [("idle", true), ("firm", false)] {
        let mut spec = node.sh(id, "exec sleep 1000");
        spec["resources"] = json!({ "request": { "memory": 8 << 20, "cpuMilli": 100 },
                                    "limit": { "cpuMilli": 500 }, "revocable": revocable });
        node.run(&spec);
        node.wait_state(id, "STATE_RUNNING");
    }
    assert_eq!((idle("idle"), protected("idle"), score("idle")), facts("1", "0", "1000"));
    let firm = (8 << 20).to_string();
    assert_eq!((idle("firm"), protected("firm"), score("firm")), facts("0", &firm, &usual));
    assert_eq!(node.json(["inspect", "idle"])["spec"]["resources"]["revocable"], true);
    // Other limits change as ever, and so does what it is.
    node.hafen(["update", "--cpus", "0.25", "idle"]).ok();
    assert_eq!(idle("idle"), "1");
    let change = json!({ "resources": { "revocable": true } });
    let _ = node.http("POST", "/v1/tasks/firm/update", &change.to_string()).expect(200);
    assert_eq!((idle("firm"), protected("firm"), score("firm")), facts("1", "0", &usual));
}

/// `"1.5s"`.
pub(super) fn seconds(value: &Value) -> f64 {
    value.as_str().and_then(|text| text.strip_suffix('s')?.parse().ok()).unwrap_or(0.0)
}

fn the_longest_run(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.sh("a", "exec sleep 1000");
    spec["maxRunTime"] = json!("0.5s");
    spec["kill"] = json!({ "grace": "0.2s" });
    node.run(&spec);
    let task = node.wait("a");
    assert_eq!(task["reason"]["kind"], "KIND_TOO_LONG", "{task:#}");
    assert!(
        sentence(&task).starts_with("stopped: ran longer than 0.5 s: killed by signal 9"),
        "{task:#}"
    );
    assert!(seconds(&task["reason"]["exit"]["ran"]) >= 0.5, "{task:#}");
}

fn a_command_finds_it_unhealthy(t: &Test) {
    let node = Node::new(t);
    let spec = node.sh("a", "echo start >> /out; trap 'exit 0' TERM; touch /tmp/well; sleep 0.4; rm /tmp/well; while :; do sleep 0.05; done");
    let (mut spec, file) = node.with_file(spec, "starts");
    spec["checks"] = json!([{ "name": "well", "kind": "KIND_HEALTH", "command": { "args": ["/bin/test", "-e", "/tmp/well"] },
                              "interval": "0.1s", "failures": 2, "initialDelay": "0.1s" }]);
    spec["restart"] = json!({ "when": "WHEN_ON_FAILURE", "most": 1, "backOff": "0.05s" });
    node.run(&spec);
    let task = node.wait("a");
    assert_eq!(fs::read_to_string(file).expect("read"), "start\nstart\n", "one restart: {task:#}");
    assert_eq!(task["attempt"], 2);
    assert_eq!(task["reason"]["kind"], "KIND_UNHEALTHY", "{task:#}");
    assert!(sentence(&task).starts_with("stopped: unhealthy: well: "), "{task:#}");
    let events = node.http("GET", "/v1/events?since=1&id=a", "").body;
    assert!(
        events.lines().any(|line| line.contains("\"check\"") && line.contains("well")),
        "{events}"
    );
}

/// A server on the loopback of its own network namespace, which nobody else reaches.
fn tcp_and_http_ask_inside(t: &Test) {
    let node = Node::new(t);
    let script = "mkdir -p /tmp/w; echo fine > /tmp/w/ok; ip link set lo up 2>/dev/null; httpd -f -p 8123 -h /tmp/w & \
                  until grep -q go /out; do sleep 0.05; done; kill $!; while :; do sleep 0.05; done";
    let (mut spec, file) = node.with_file(node.sh("a", script), "go");
    let check = |name: &str, probe: &str, what: Value| json!({ "name": name, "kind": "KIND_READINESS", probe: what, "interval": "0.1s", "failures": 1 });
    spec["checks"] = json!([
        check("http", "http", json!({ "port": 8123, "path": "/ok", "host": "127.0.0.1" })),
        check(
            "missing",
            "http",
            json!({ "port": 8123, "path": "/none", "host": "127.0.0.1", "statuses": [404] })
        ),
        check("tcp", "tcp", json!({ "port": 8123, "host": "127.0.0.1" })),
    ]);
    spec["kill"] = json!({ "grace": "0.1s" });
    node.run(&spec);
    node.wait_for("a", "became ready", |task| task["ready"] == true);
    assert!(std::net::TcpStream::connect("127.0.0.1:8123").is_err(), "it is not on the node's own");
    fs::write(file, "go").expect("written");
    let task = node.wait_for("a", "stopped being ready", |task| {
        task["checks"]
            .as_array()
            .is_some_and(|all| all.iter().all(|check| check["passing"] != true))
    });
    assert_eq!(task["state"], "STATE_RUNNING", "readiness stops nothing: {task:#}");
    for check in task["checks"].as_array().expect("checks") {
        assert!(!check["message"].as_str().unwrap_or_default().is_empty(), "{task:#}");
    }
}

fn readiness_comes_and_goes(t: &Test) {
    let node = Node::new(t);
    let (mut spec, file) = node.with_file(node.sh("a", "exec sleep 1000"), "ready");
    spec["checks"] = json!([{ "name": "r", "kind": "KIND_READINESS", "interval": "0.1s", "failures": 1,
                              "command": { "args": ["/bin/grep", "-q", "yes", "/out"] } }]);
    spec["kill"] = json!({ "grace": "0.1s" });
    node.run(&spec);
    let task = node.wait_for("a", "had its first answer", |task| {
        number(&task["checks"][0]["failures"]) >= Some(1)
    });
    assert!(task["ready"] != true, "{task:#}");
    fs::write(&file, "yes").expect("written");
    node.wait_for("a", "became ready", |task| task["ready"] == true);
    assert!(node.hafen(["ps"]).ok().stdout.contains("running (ready)"));
    fs::write(&file, "no").expect("written");
    node.wait_for("a", "stopped being ready", |task| task["ready"] != true);
    assert!(node.hafen(["ps"]).ok().stdout.contains("running (failing)"));
}

fn restarts_have_longer_and_longer_pauses(t: &Test) {
    let node = Node::new(t);
    // In hundredths of a second since the boot.
    let spec = node.sh("a", "cut -d' ' -f1 /proc/uptime >> /out; exit 1");
    let (mut spec, file) = node.with_file(spec, "times");
    spec["restart"] =
        json!({ "when": "WHEN_ON_FAILURE", "most": 3, "backOff": "0.2s", "backOffMost": "0.4s" });
    node.run(&spec);
    let task = node.wait("a");
    assert_eq!(
        (task["attempt"].as_u64(), task["failures"].as_u64()),
        (Some(4), Some(4)),
        "{task:#}"
    );
    let text = fs::read_to_string(file).expect("read");
    let times: Vec<f64> = text.lines().map(|line| line.parse().expect("a number")).collect();
    let pauses: Vec<f64> = times.windows(2).map(|two| two[1] - two[0]).collect();
    assert_eq!(pauses.len(), 3, "{times:?}");
    for (pause, least) in pauses.iter().zip([0.19, 0.39, 0.39]) {
        assert!(*pause >= least, "{pauses:?}");
    }
}

fn restarts_have_an_end(t: &Test) {
    let node = Node::new(t);
    let (mut spec, file) = node.with_file(node.sh("a", "echo x >> /out; exit 3"), "starts");
    spec["restart"] = json!({ "when": "WHEN_ON_FAILURE", "most": 2, "backOff": "0.01s" });
    node.run(&spec);
    let task = node.wait("a");
    assert_eq!(
        (task["state"].as_str(), exit_code(&task)),
        (Some("STATE_FAILED"), Some(3)),
        "{task:#}"
    );
    assert_eq!(fs::read_to_string(&file).expect("read"), "x\nx\nx\n");
    // Nothing follows.
    let more = wait_until(Duration::from_millis(500), || {
        (fs::read_to_string(&file).expect("read").lines().count() > 3).then_some(())
    });
    assert!(more.is_none());
}

fn success_is_not_restarted_on_failure(t: &Test) {
    let node = Node::new(t);
    let script = "echo x >> /out; test $(wc -l < /out) -ge 3";
    let (mut spec, file) = node.with_file(node.sh("a", script), "starts");
    spec["restart"] = json!({ "when": "WHEN_ON_FAILURE", "backOff": "0.01s" });
    node.run(&spec);
    let task = node.wait("a");
    assert_eq!(
        (task["state"].as_str(), task["attempt"].as_u64()),
        (Some("STATE_FINISHED"), Some(3)),
        "{task:#}"
    );
    assert_eq!(fs::read_to_string(file).expect("read").lines().count(), 3);
    let (mut spec, file) = node.with_file(node.sh("b", "echo x >> /out; exit 0"), "always");
    spec["restart"] = json!({ "when": "WHEN_ALWAYS", "backOff": "0.01s", "backOffMost": "0.01s" });
    node.run(&spec);
    node.wait_for("b", "ran three times", |task| task["attempt"].as_u64() >= Some(3));
    assert!(fs::read_to_string(&file).expect("read").lines().count() >= 2);
    node.hafen(["stop", "b"]).ok();
    assert_eq!(node.task("b")["state"], "STATE_KILLED");
    let starts = fs::read_to_string(&file).expect("read");
    let more = wait_until(Duration::from_millis(300), || {
        (fs::read_to_string(&file).expect("read") != starts).then_some(())
    });
    assert!(more.is_none(), "it was stopped for good");
}

fn one_that_waits_for_its_restart_is_stopped(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.sh("a", "exit 3");
    spec["restart"] = json!({ "when": "WHEN_ALWAYS", "backOff": "600s", "backOffMost": "600s" });
    node.run(&spec);
    let task = node.wait_state("a", "STATE_WAITING");
    assert!(sentence(&task).starts_with("exited with code 3"), "{task:#}");
    let began = Instant::now();
    node.hafen(["stop", "a"]).ok();
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(node.task("a")["state"], "STATE_KILLED");
    assert!(
        cgroup::tree().is_none_or(|tree| !tree
            .join("hafen")
            .join(node.instance())
            .join("a+1")
            .exists())
    );
}
