//! Masters that are none of ours.

use std::path::Path;
use std::time::Duration;

use hafen_integration::cluster::{Cluster, Shape, lines};
use hafen_integration::person::of;
use hafen_integration::{Agent, Call, Case, Daemon, Test, cases, json, wait_until};

use crate::cluster::{Lab, names};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/masters/python");

pub(crate) fn trials() -> Vec<Case> {
    cases![
        the_python_master_keeps_to_the_protocol(PythonGrpc),
        python_reads_version_1_of_the_protocol(PythonGrpc),
        the_python_master_directs_a_node(Root, Busybox, PythonGrpc),
        older_and_newer_ones_get_on(Root, Busybox, PythonGrpc, Program("ip")),
    ]
}

fn python(t: &Test, script: &str) -> Call {
    let script = Path::new(FOLDER).join(script);
    // Nothing is written beside the sources; whoever is killed leaves files open, which is no matter.
    let words = ["-B", "-W", "ignore", &script.display().to_string()];
    t.program("/usr/bin/python3", words).time_limit(Duration::from_secs(300))
}

/// Against agents that are scripts.
fn the_python_master_keeps_to_the_protocol(t: &Test) {
    let _ = python(t, "test_master.py").output().ok();
}

/// What Rust wrote, with Google's own implementation.
fn python_reads_version_1_of_the_protocol(t: &Test) {
    let _ = python(t, "test_wire.py").output().ok();
}

/// A real one, which is also stopped.
fn the_python_master_directs_a_node(t: &Test) {
    let socket = t.dir().join("master");
    let url = format!("unix://{}", socket.display());
    let mut agent = Agent::new(t, "agent").variable("HAFEN_MASTER_URLS", url);
    agent.restart();
    let call = python(t, "test_agent.py")
        .env("HAFEN_TEST_SOCKET", &socket)
        .env("HAFEN_TEST_AGENT", agent.pid().to_string())
        .env("HAFEN_TEST_ROOTFS", t.bundle().rootfs());
    let output = call.output();
    assert_eq!(output.exit, Some(0), "{output}\n{}", agent.said());
}

/// Agents that look older and newer than their coordinator, and it to them, beside one that is as old.
fn older_and_newer_ones_get_on(t: &Test) {
    let mut lab = Lab::of(t, Cluster::start(t, Shape::new(1, Duration::from_secs(4))));
    let script = Path::new(FOLDER).join("between.py");
    let between = |kind: &str| {
        let socket = t.dir().join(format!("{kind}.sock"));
        let listen = format!("unix:{}", socket.display());
        let master = format!("unix:{}", lab.cluster.coordinators[0].socket().display());
        let words =
            ["/usr/bin/python3", "-B", &script.display().to_string(), kind, &listen, &master];
        let mut daemon = Daemon::new(words, t.dir().join(format!("{kind}.log")));
        daemon.begin();
        let ready = wait_until(Duration::from_secs(20), || {
            assert!(daemon.ended().is_none(), "{}", daemon.said());
            daemon.said().contains("ready").then_some(())
        });
        assert!(ready.is_some(), "{}", daemon.said());
        let url = format!("unix://{}", socket.display());
        let agent = Agent::new(t, kind).variable("HAFEN_NAME", kind);
        let mut agent = agent.variable("HAFEN_MASTER_URLS", url);
        agent.restart();
        (agent, daemon)
    };
    let mut all = ["older", "newer"].map(between);
    lab.cluster.hears(3);
    let mut job = lab.job("web", 3);
    job["mostPerNode"] = json!(1);
    lab.cluster.submit(&job);
    let before = lab.cluster.ready("web", 3);
    // What breaks and comes back is known on both sides.
    for (agent, _) in &mut all {
        agent.kill9();
        agent.restart();
    }
    lab.cluster.hears(3);
    lab.cluster.kill9();
    lab.cluster.restart();
    lab.cluster.hears(3);
    assert_eq!(names(&lab.cluster.ready("web", 3)), names(&before));
    assert_eq!(lines(&lab.told, "web"), 3, "none was started again");
    // What ends is told, and what is not wanted any more goes.
    lab.cluster.submit(&json!({ "name": "runs", "batch": { "runs": 6 },
                                "task": lab.task("echo done; exit 0") }));
    lab.cluster.wait("all runs have ended well", |view| {
        of(view, "jobs", |job| job["name"] == "runs" && job["finished"] == 6).len() == 1
    });
    for one in &before {
        let path = format!("/v1/instances/{}/logs", one["name"].as_str().expect("a name"));
        assert_eq!(lab.cluster.raw("GET", &path, "").status, 200, "{one:#}");
    }
    lab.cluster.scale("web", 0);
    for (agent, between) in all {
        let forgotten = wait_until(Duration::from_secs(20), || {
            let tasks = agent.http("GET", "/v1/tasks?all", "").expect(200);
            tasks["tasks"].as_array().is_none_or(Vec::is_empty).then_some(())
        });
        assert!(forgotten.is_some(), "{}", agent.said());
        // Only a newer one has asked.
        let said = between.said();
        assert!(!said.contains("future") || said.contains("future: KIND_UNSUPPORTED"), "{said}");
        assert!(!agent.said().contains("breaks a rule"), "{}", agent.said());
    }
    let said = lab.cluster.said();
    assert!(!said.contains("broke the protocol"), "{said}");
}
