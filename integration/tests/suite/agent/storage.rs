//! Folders that are full, or only read.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hafen_integration::{Agent, Case, Test, cases, wait_until};
use nix::mount::{MsFlags, mount};

use super::{Node, exit_code};

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_full_state_folder_refuses_tasks(Root, Busybox),
        a_task_ends_while_the_state_folder_is_full(Root, Busybox),
        a_full_log_folder_stops_nothing(Root, Busybox),
        a_state_folder_that_is_only_read(Root, Busybox),
        a_full_run_folder(Root, Busybox),
    ]
}

/// An agent whose state is on a tmpfs of that many bytes.
fn on_a_small_disk<'t>(t: &'t Test, bytes: u64) -> Node<'t> {
    let mut agent = Agent::new(t, "agent").state_on_a_disk(&format!("size={bytes},mode=0755"));
    agent.restart();
    Node { agent, rootfs: t.bundle().rootfs() }
}

fn a_full_state_folder_refuses_tasks(t: &Test) {
    let mut node = on_a_small_disk(t, 1 << 20);
    node.run(&node.sh("before", "exec sleep 1000"));
    let before = node.wait_state("before", "STATE_RUNNING");
    node.disk().fill();
    let answer = node.http("POST", "/v1/tasks", &node.sh("a", "exit 0").to_string());
    assert_eq!(answer.status, 429, "{answer:?}");
    assert!(
        answer.body.contains("No space left on device")
            && answer.body.contains("could not be written down"),
        "{answer:?}"
    );
    assert_eq!(node.http("GET", "/v1/tasks/a", "").status, 404);
    let words = node.run_words(&["-d", "--name", "b"], "exit 0");
    node.hafen(words).failed_with(125, ["No space left on device"]);
    assert_eq!(node.task("before")["pid"], before["pid"]);
    // Its keeper writes down what is to be run.
    node.hafen(["exec", "before", "/bin/echo"]).failed_with(125, ["No space left on device"]);
    // Also for one that comes back to a full disk.
    node.kill9();
    node.restart();
    assert_eq!(node.task("before")["pid"], before["pid"]);
    node.disk().free();
    node.run(&node.sh("a", "exit 3"));
    assert_eq!(exit_code(&node.wait("a")), Some(3));
}

/// What could not be written down is written when there is room, and told then.
fn a_task_ends_while_the_state_folder_is_full(t: &Test) {
    let node = on_a_small_disk(t, 1 << 20);
    let (spec, file) =
        node.with_file(node.sh("a", "until grep -q go /out; do sleep 0.02; done; exit 6"), "go");
    node.run(&spec);
    let running = node.wait_state("a", "STATE_RUNNING");
    node.disk().fill();
    fs::write(file, "go").expect("written");
    let process = format!("/proc/{}/root/bin", running["pid"]);
    let ended =
        wait_until(Duration::from_secs(10), || (!Path::new(&process).exists()).then_some(()));
    assert!(ended.is_some());
    assert_eq!(node.http("GET", "/healthz", "").status, 200);
    node.disk().free();
    let task = node.wait("a");
    assert_eq!(exit_code(&task), Some(6), "{task:#}\n{}", node.said());
}

fn a_full_log_folder_stops_nothing(t: &Test) {
    let node = on_a_small_disk(t, 2 << 20);
    let mut spec = node.sh("a", "yes 0123456789 | head -c 4000000; echo last; exit 8");
    spec["log"] = hafen_integration::json!({ "maxBytes": 100 << 20 });
    node.run(&spec);
    let task = node.wait("a");
    assert_eq!(exit_code(&task), Some(8), "{task:#}\n{}", node.said());
    assert!(node.hafen(["logs", "a"]).ok().stdout.starts_with("0123456789\n"));
    node.hafen(["rm", "a"]).ok();
    node.run(&node.sh("b", "echo fine"));
    node.wait("b");
    assert_eq!(node.logs("b"), "fine\n");
}

fn remount(folder: &Path, flags: MsFlags) {
    let none: Option<&str> = None;
    mount(none, folder, none, MsFlags::MS_REMOUNT | flags, none).expect("remount");
}

fn a_state_folder_that_is_only_read(t: &Test) {
    let mut node = on_a_small_disk(t, 4 << 20);
    node.run(&node.sh("before", "echo ready; exec sleep 1000"));
    let before = node.wait_state("before", "STATE_RUNNING");
    node.terminate();
    // The keeper has its log open for writing, which no remount passes over: nobody may hold it.
    node.restart();
    let state = node.state();
    bind_read_only(&state);
    let answer = node.http("POST", "/v1/tasks", &node.sh("a", "exit 0").to_string());
    assert!(answer.status == 429 && answer.body.contains("Read-only file system"), "{answer:?}");
    assert_eq!(node.task("before")["pid"], before["pid"]);
    nix::mount::umount2(&state, nix::mount::MntFlags::MNT_DETACH).expect("umount");
    node.run(&node.sh("a", "exit 3"));
    assert_eq!(exit_code(&node.wait("a")), Some(3));
    bind_read_only(&state);
    node.terminate();
    let refused = node.fails();
    assert!(
        refused.exit.is_some_and(|code| code != 0)
            && refused.stderr.contains("Read-only file system"),
        "{refused}"
    );
    nix::mount::umount2(&state, nix::mount::MntFlags::MNT_DETACH).expect("umount");
    node.restart();
    assert_eq!(node.task("before")["pid"], before["pid"]);
}

/// The same folder once more over itself: files that are open already stay writable.
fn bind_read_only(folder: &Path) {
    let none: Option<&str> = None;
    mount(Some(folder), folder, none, MsFlags::MS_BIND, none).expect("bind");
    remount(folder, MsFlags::MS_BIND | MsFlags::MS_RDONLY);
}

fn a_full_run_folder(t: &Test) {
    let node = Node::new(t);
    node.run_disk().fill();
    let answer = node.http("POST", "/v1/tasks", &node.sh("a", "exit 0").to_string());
    let said = if answer.status == 201 { node.wait("a").to_string() } else { answer.body };
    assert!(said.contains("No space left on device"), "{said}");
    node.run_disk().free();
    node.run(&node.sh("b", "exit 3"));
    assert_eq!(exit_code(&node.wait("b")), Some(3));
}
