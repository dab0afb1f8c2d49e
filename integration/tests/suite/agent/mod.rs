//! `hafen agent` and the commands that speak with it: what it does, what it tells, and what it outlives.

mod api;
mod clock;
mod ends;
mod faults;
mod forks;
mod functions;
mod hostile;
mod network;
mod oracle;
mod pods;
mod pressure;
mod recovery;
mod roots;
mod security;
mod storage;
mod terminals;

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

use hafen_integration::{Agent, Case, Test, Value, json};

pub(crate) fn trials() -> Vec<Case> {
    let modules = [
        functions::trials(),
        terminals::trials(),
        api::trials(),
        hostile::trials(),
        pods::trials(),
        ends::trials(),
        pressure::trials(),
        roots::trials(),
        security::trials(),
        network::trials(),
        recovery::trials(),
        clock::trials(),
        storage::trials(),
        oracle::trials(),
        faults::trials(),
        forks::trials(),
    ];
    modules.into_iter().flatten().collect()
}

/// An agent, and a root for its tasks.
struct Node<'t> {
    agent: Agent<'t>,
    rootfs: PathBuf,
}

impl<'t> Node<'t> {
    fn new(t: &'t Test) -> Self {
        Self { agent: Agent::start(t), rootfs: t.bundle().rootfs() }
    }

    /// A task that is `sh -c SCRIPT`.
    fn sh(&self, id: &str, script: &str) -> Value {
        self.task_of(id, &["/bin/sh", "-c", script])
    }

    fn task_of(&self, id: &str, command: &[&str]) -> Value {
        json!({ "id": id, "root": { "rootfs": self.rootfs }, "command": command })
    }

    /// `hafen run WORDS.. --rootfs ROOT sh -c SCRIPT`.
    fn run_words(&self, words: &[&str], script: &str) -> Vec<String> {
        let root = self.rootfs.display().to_string();
        let all = [&["run"], words, &["--rootfs", &root, "--", "/bin/sh", "-c", script]].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    /// Runs it with an empty file of the test's at `/out`, whose path is given.
    fn with_file(&self, mut spec: Value, name: &str) -> (Value, PathBuf) {
        let path = self.folder().join(name);
        std::fs::write(&path, "").expect("a file");
        let mounts = spec["mounts"].as_array().cloned().unwrap_or_default();
        let own = json!({ "host": path, "destination": "/out" });
        spec["mounts"] = mounts.into_iter().chain([own]).collect();
        (spec, path)
    }
}

impl<'t> Deref for Node<'t> {
    type Target = Agent<'t>;

    fn deref(&self) -> &Agent<'t> {
        &self.agent
    }
}

impl DerefMut for Node<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.agent
    }
}

/// The sentence of its reason.
fn sentence(task: &Value) -> &str {
    task["reason"]["sentence"].as_str().unwrap_or_default()
}

fn exit_code(task: &Value) -> Option<i64> {
    task["reason"]["exit"]["code"].as_i64()
}

/// A number of proto3's JSON, which writes those of 64 bits as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// Ends by SIGTERM, with this code.
fn ends_with(code: u8) -> String {
    format!("trap 'exit {code}' TERM; echo ready; while :; do sleep 0.05; done")
}
