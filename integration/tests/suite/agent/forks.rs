//! An agent that may have no more processes: in a cgroup of its own with its keepers, whose limit is reached.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hafen_integration::{Agent, Case, Test, Value, cases, cgroup, json, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Node, exit_code, sentence};

pub(super) fn trials() -> Vec<Case> {
    cases![
        no_process_more(Root, Busybox, Limit("pids")),
        some_processes_more(Root, Busybox, Limit("pids")),
    ]
}

/// The words of EAGAIN.
const REFUSED: &str = "Resource temporarily unavailable";

/// It goes when its processes have gone: it outlives the agent.
struct Cell(PathBuf);

impl Cell {
    fn new(t: &Test) -> Self {
        let tree = cgroup::v1("pids").or_else(cgroup::tree).expect("a tree");
        let folder = tree.join(t.id());
        fs::create_dir(&folder).expect("mkdir");
        Self(folder)
    }

    fn agent<'t>(&self, t: &'t Test) -> Node<'t> {
        let enter = format!("echo 0 > {}/cgroup.procs && exec \"$@\"", self.0.display());
        let mut agent = Agent::new(t, "agent").within(["sh", "-c", &enter, "sh"]);
        agent.restart();
        Node { agent, rootfs: t.bundle().rootfs() }
    }

    /// So many more than there are.
    fn leave(&self, more: u64) {
        let now: u64 = cgroup::value(&self.0, "pids.current").parse().expect("a number");
        fs::write(self.0.join("pids.max"), (now + more).to_string()).expect("written");
    }

    /// None at all, whoever ends.
    fn close(&self) {
        fs::write(self.0.join("pids.max"), "1").expect("written");
    }

    fn open(&self) {
        fs::write(self.0.join("pids.max"), "max").expect("written");
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let gone = wait_until(Duration::from_secs(10), || fs::remove_dir(&self.0).ok());
        if gone.is_none() && !std::thread::panicking() {
            panic!("{} remains", self.0.display());
        }
    }
}

/// Whatever happens to it: it ran to its end, or it was refused, and why.
fn try_one(node: &Node<'_>, id: &str) -> Option<Value> {
    let answer = node.http("POST", "/v1/tasks", &node.sh(id, "exit 3").to_string());
    if answer.status != 201 {
        assert!(answer.status == 429 || answer.status == 503, "{answer:?}");
        assert!(answer.body.contains(REFUSED), "{answer:?}");
        assert_eq!(node.http("GET", &format!("/v1/tasks/{id}"), "").status, 404);
        return None;
    }
    Some(node.wait(id))
}

/// A launch that failed leaves nothing.
fn nothing_is_half_made(node: &Node<'_>, id: &str) {
    let container = format!("{id}+1");
    let tree = cgroup::tree().expect("a tree").join("hafen").join(node.instance());
    let (state, cgroup) = (node.run_folder().join("oci").join(&container), tree.join(&container));
    let gone = wait_until(Duration::from_secs(20), || {
        (!state.exists() && !cgroup.exists() && node.keepers_of(id).is_empty()).then_some(())
    });
    assert!(gone.is_some(), "{id} is half made: {:#}\n{}", node.task(id), node.said());
}

fn no_process_more(t: &Test) {
    let cell = Cell::new(t);
    let node = cell.agent(t);
    node.run(&node.sh("before", "exec sleep 1000"));
    let before = node.wait_state("before", "STATE_RUNNING");
    let mut again = node.sh("again", "exit 5");
    again["restart"] = json!({ "when": "WHEN_ALWAYS", "backOff": "0.3s", "backOffMost": "0.3s" });
    node.run(&again);
    node.wait_for("again", "ran", |task| task["attempt"].as_u64() >= Some(2));
    // Nothing was done for so long that threads without work have ended.
    std::thread::sleep(Duration::from_secs(11));
    cell.close();
    let refused = try_one(&node, "a").expect("it is taken on");
    assert_eq!(refused["state"], "STATE_ERROR", "{refused:#}");
    assert!(sentence(&refused).starts_with("could not be started: "), "{refused:#}");
    assert!(sentence(&refused).contains(REFUSED), "{refused:#}");
    nothing_is_half_made(&node, "a");
    // All else is as it was.
    assert_eq!(node.http("GET", "/healthz", "").status, 200);
    assert_eq!(node.task("before")["pid"], before["pid"]);
    assert_eq!(node.http("GET", "/v1/stats?id=before", "").status, 200);
    let exec = node.hafen(["exec", "before", "/bin/true"]).code(125);
    assert!(exec.stderr.contains(REFUSED), "{exec}");
    node.wait_for("again", "could not be started", |task| sentence(task).contains(REFUSED));
    // A keeper that dies has no other one until there may be one.
    let keeper = node.keeper("before");
    kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("killed");
    let missed = wait_until(Duration::from_secs(10), || {
        let debug = node.http("GET", "/v1/debug", "").body;
        debug.contains(REFUSED).then_some(())
    });
    assert!(missed.is_some(), "{}", node.http("GET", "/v1/debug", "").body);
    assert_eq!(node.task("before")["state"], "STATE_RUNNING");

    cell.open();
    let taken_over = wait_until(Duration::from_secs(60), || node.keepers_of("before").pop());
    assert!(taken_over.is_some_and(|pid| pid != keeper), "{}", node.said());
    assert_eq!(node.task("before")["pid"], before["pid"]);
    let attempt = node.task("again")["attempt"].as_u64();
    node.wait_for("again", "runs again", |task| {
        task["attempt"].as_u64() > attempt && sentence(task).starts_with("exited with code 5")
    });
    assert_eq!(exit_code(&try_one(&node, "b").expect("taken on")), Some(3));
    node.hafen(["exec", "before", "/bin/true"]).ok();
}

/// Enough for a part of what a launch needs: it is done as a whole, or not at all.
fn some_processes_more(t: &Test) {
    let cell = Cell::new(t);
    let node = cell.agent(t);
    let mut refused = 0;
    for more in 0..6 {
        let id = format!("a{more}");
        cell.leave(more);
        if let Some(task) = try_one(&node, &id) {
            let is_refused = task["state"] == "STATE_ERROR" && sentence(&task).contains(REFUSED);
            assert!(is_refused || exit_code(&task) == Some(3), "{more}: {task:#}\n{}", node.said());
            refused += u32::from(is_refused);
            nothing_is_half_made(&node, &id);
        }
    }
    assert!(refused > 0, "no limit was reached");
    cell.open();
    assert_eq!(exit_code(&try_one(&node, "b").expect("taken on")), Some(3));
}
