//! Masters that are none of ours.

use std::path::Path;
use std::time::Duration;

use hafen_integration::{Case, Test, cases};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/masters/python");

pub(crate) fn trials() -> Vec<Case> {
    cases![
        the_python_master_keeps_to_the_protocol(PythonGrpc),
        python_reads_version_1_of_the_protocol(PythonGrpc),
    ]
}

fn python(t: &Test, script: &str) {
    let script = Path::new(FOLDER).join(script);
    // Nothing is written beside the sources; whoever is killed leaves files open, which is no matter.
    let words = ["-B", "-W", "ignore", &script.display().to_string()];
    let call = t.program("/usr/bin/python3", words);
    let _ = call.time_limit(Duration::from_secs(300)).output().ok();
}

/// Against agents that are scripts.
fn the_python_master_keeps_to_the_protocol(t: &Test) {
    python(t, "test_master.py");
}

/// What Rust wrote, with Google's own implementation.
fn python_reads_version_1_of_the_protocol(t: &Test) {
    python(t, "test_wire.py");
}
