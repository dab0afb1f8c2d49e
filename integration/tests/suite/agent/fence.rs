//! Tasks that must end when no master is heard, while the agent that would say so cannot.

use std::fs;
use std::time::Duration;

use hafen_integration::{Agent, Case, Test, Value, cases, json, wait_until};
use hafen_spec::keep::Heard;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Node, ends_with, exit_code, sentence};

pub(super) fn trials() -> Vec<Case> {
    cases![
        the_agent_is_dead(Root, Busybox),
        the_agent_is_stopped(Root, Busybox),
        the_agent_was_dead_for_less(Root, Busybox),
    ]
}

/// As an agent writes it down when its master was heard.
fn hear(node: &Agent<'_>) {
    let uptime = fs::read_to_string("/proc/uptime").expect("the uptime");
    let seconds = uptime.split(' ').next().and_then(|n| n.parse().ok()).expect("seconds");
    let at = Duration::from_secs_f64(seconds);
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot's name");
    let text = Heard { boot_id: boot_id.trim().to_owned(), at }.to_string();
    let (draft, file) = (node.run_folder().join("heard.draft"), node.run_folder().join("heard"));
    fs::write(&draft, text).expect("written");
    fs::rename(draft, file).expect("replaced");
}

/// An agent whose master was heard a moment ago.
fn node(t: &Test) -> Node<'_> {
    let mut agent = Agent::new(t, "agent");
    hear(&agent);
    agent.restart();
    Node { agent, rootfs: t.bundle().rootfs() }
}

fn fenced(node: &Node<'_>, id: &str, after: &str) -> Value {
    let mut spec = node.sh(id, &ends_with(5));
    spec["stopAfterDisconnect"] = json!(after);
    spec["restart"] = json!({ "when": "WHEN_ALWAYS" });
    spec
}

fn run(node: &Node<'_>, spec: &Value) -> i32 {
    node.run(spec);
    let id = spec["id"].as_str().expect("a name");
    node.wait_for(id, "is ready", |_| node.hafen(["logs", id]).stdout.contains("ready"));
    i32::try_from(node.task(id)["pid"].as_i64().expect("a pid")).expect("it fits")
}

fn await_end(pid: i32) {
    let gone = || (!fs::exists(format!("/proc/{pid}")).expect("asked")).then_some(());
    assert!(wait_until(Duration::from_secs(20), gone).is_some(), "it ends");
}

#[track_caller]
fn assert_disconnected(node: &Node<'_>, id: &str) {
    let task = node.wait(id);
    assert_eq!(task["state"], "STATE_KILLED", "{task:#}");
    assert_eq!(task["reason"]["kind"], "KIND_DISCONNECTED", "{task:#}");
    assert!(sentence(&task).contains("no master was heard for "), "{task:#}");
}

fn the_agent_is_dead(t: &Test) {
    let mut node = node(t);
    let pid = run(&node, &fenced(&node, "a", "6s"));
    let other = run(&node, &node.sh("b", &ends_with(5)));
    node.kill9();
    await_end(pid);
    assert!(fs::exists(format!("/proc/{other}")).expect("asked"), "it has no such limit");
    node.restart();
    assert_disconnected(&node, "a");
    assert_eq!((exit_code(&node.task("a")), &node.task("a")["attempt"]), (Some(5), &json!(1)));
    node.wait_state("b", "STATE_RUNNING");
}

fn the_agent_is_stopped(t: &Test) {
    let node = node(t);
    let pid = run(&node, &fenced(&node, "a", "6s"));
    let agent = Pid::from_raw(node.pid());
    kill(agent, Signal::SIGSTOP).expect("stopped");
    await_end(pid);
    kill(agent, Signal::SIGCONT).expect("goes on");
    assert_disconnected(&node, "a");
}

/// Another agent that hears a master in time has it run on.
fn the_agent_was_dead_for_less(t: &Test) {
    let mut node = node(t);
    let pid = run(&node, &fenced(&node, "a", "8s"));
    node.kill9();
    for _ in 0..20 {
        hear(&node);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(fs::exists(format!("/proc/{pid}")).expect("asked"), "a master was heard");
    node.restart();
    assert_eq!(node.task("a")["state"], "STATE_RUNNING");
    await_end(pid);
    assert_disconnected(&node, "a");
}
