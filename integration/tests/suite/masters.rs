//! Masters that are none of ours.

use std::path::Path;
use std::time::Duration;

use hafen_integration::{Agent, Call, Case, Test, cases};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/masters/python");

pub(crate) fn trials() -> Vec<Case> {
    cases![
        the_python_master_keeps_to_the_protocol(PythonGrpc),
        python_reads_version_1_of_the_protocol(PythonGrpc),
        the_python_master_directs_a_node(Root, Busybox, PythonGrpc),
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
