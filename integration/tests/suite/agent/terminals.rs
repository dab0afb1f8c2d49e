//! Tasks and programs with a terminal, and the terminal of whoever sits before them.

use std::time::Duration;

use hafen_integration::{Case, Terminal, Test, cases, json, wait_until};
use nix::sys::signal::Signal;

use super::{Node, exit_code};

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_window_and_its_changes(Root, Busybox, Program("setsid")),
        keys_let_go_of_a_task(Root, Busybox, Program("setsid")),
        ctrl_c_is_for_the_task(Root, Busybox, Program("setsid")),
        a_program_beside_it_has_its_own(Root, Busybox, Program("setsid")),
        the_terminal_is_given_back(Root, Busybox, Program("setsid")),
        who_sits_there_goes_away(Root, Busybox, Program("setsid")),
    ]
}

const CTRL_C: &str = "\u{3}";
/// Ctrl-P, Ctrl-Q.
const LET_GO: &str = "\u{10}\u{11}";

/// Tells the size of its terminal, at the beginning and when it changes, and reads lines.
const SIZES: &str = "stty -echo; trap 'stty size' WINCH; trap 'echo interrupted; exit 9' INT; stty size; \
                     echo ready; while :; do read line && echo got $line; done";

/// `hafen run` of a task `a` at a terminal of 33 lines of 77.
fn run(node: &Node<'_>, options: &[&str], script: &str) -> Terminal {
    let words = node.run_words(&[&["--name", "a"], options].concat(), script);
    Terminal::start(&node.call(words), 33, 77)
}

fn a_window_and_its_changes(t: &Test) {
    let node = Node::new(t);
    let mut terminal = run(&node, &["-it"], SIZES);
    let before = terminal.modes();
    terminal.await_text("ready\n");
    terminal.await_text("33 77\n");
    terminal.await_raw();
    for (rows, columns) in [(40, 100), (10, 20)] {
        terminal.resize(rows, columns);
        terminal.await_text(&format!("{rows} {columns}\n"));
    }
    terminal.types("some words\r");
    terminal.await_text("got some words\n");
    terminal.types(CTRL_C);
    assert_eq!(terminal.ends(), 9, "{:?}", terminal.text());
    assert!(terminal.text().contains("interrupted\n"), "{:?}", terminal.text());
    assert!(terminal.modes() == before, "{:?}", terminal.modes());
    assert_eq!(exit_code(&node.wait("a")), Some(9));
}

fn keys_let_go_of_a_task(t: &Test) {
    let node = Node::new(t);
    let mut terminal = run(&node, &["-it"], SIZES);
    let before = terminal.modes();
    terminal.await_text("ready\n");
    terminal.await_raw();
    terminal.types(LET_GO);
    assert_eq!(terminal.ends(), 0, "{:?}", terminal.text());
    assert!(terminal.modes() == before);
    assert_eq!(node.task("a")["state"], "STATE_RUNNING");
    // Whoever comes next has another window.
    let mut next = Terminal::start(&node.call(["attach", "a"]), 50, 132);
    next.await_raw();
    next.await_text("50 132\n");
    next.types("again\r");
    next.await_text("got again\n");
    // The first key alone is for the task.
    next.types("\u{10}x\r");
    next.await_text("got \u{10}x\n");
    next.types(LET_GO);
    assert_eq!(next.ends(), 0, "{:?}", next.text());
    node.hafen(["kill", "a"]).ok();
    node.wait("a");
}

/// Also where the task has no terminal: then it is a signal to `hafen`, which passes it on.
fn ctrl_c_is_for_the_task(t: &Test) {
    let node = Node::new(t);
    let script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    for options in [&["-i"][..], &[]] {
        let mut terminal = run(&node, options, script);
        let before = terminal.modes();
        terminal.await_text("ready\n");
        terminal.types(CTRL_C);
        assert_eq!(terminal.ends(), 9, "{options:?}: {:?}", terminal.text());
        assert!(terminal.modes() == before);
        assert_eq!(exit_code(&node.wait("a")), Some(9));
        node.hafen(["rm", "a"]).ok();
    }
}

fn a_program_beside_it_has_its_own(t: &Test) {
    let node = Node::new(t);
    node.run(&node.sh("a", "exec sleep 1000"));
    node.wait_state("a", "STATE_RUNNING");
    let exec = node.call(["exec", "-it", "a", "/bin/sh", "-c", SIZES]);
    let mut terminal = Terminal::start(&exec, 33, 77);
    let before = terminal.modes();
    terminal.await_text("33 77\n");
    terminal.await_text("ready\n");
    terminal.resize(40, 100);
    terminal.await_text("40 100\n");
    terminal.types("some words\r");
    terminal.await_text("got some words\n");
    terminal.types(CTRL_C);
    assert_eq!(terminal.ends(), 9, "{:?}", terminal.text());
    assert!(terminal.modes() == before);
    assert_eq!(node.task("a")["state"], "STATE_RUNNING");
    let mut missing = Terminal::start(&node.call(["exec", "-it", "a", "/no/such"]), 33, 77);
    let before = missing.modes();
    assert_eq!(missing.ends(), 127, "{:?}", missing.text());
    assert!(missing.modes() == before);
    node.hafen(["kill", "a"]).ok();
    node.wait("a");
}

/// Whatever ends the session.
fn the_terminal_is_given_back(t: &Test) {
    let mut node = Node::new(t);
    let mut terminal = run(&node, &["-it"], SIZES);
    let before = terminal.modes();
    terminal.await_text("ready\n");
    terminal.await_raw();
    node.kill9();
    assert_ne!(terminal.ends(), 0, "{:?}", terminal.text());
    assert!(terminal.modes() == before, "{:?}", terminal.modes());
    assert!(terminal.text().contains("hafen: "), "it says why: {:?}", terminal.text());
    node.restart();
    // What the task stands on has not changed by that.
    let mut again = Terminal::start(&node.call(["attach", "a"]), 33, 77);
    let before = again.modes();
    again.await_raw();
    again.types("here\r");
    again.await_text("got here\n");
    node.hafen(["kill", "a"]).ok();
    assert_eq!(again.ends(), 137, "{:?}", again.text());
    assert!(again.modes() == before);
    let mut refused = Terminal::start(&node.call(["attach", "a"]), 33, 77);
    assert_ne!(refused.ends(), 0, "{:?}", refused.text());
    assert!(refused.modes() == before);
}

/// Its window is closed, or it is killed: the task goes on, and others may attach.
fn who_sits_there_goes_away(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.sh("a", SIZES);
    (spec["terminal"], spec["stdin"]) = (json!(true), json!(true));
    node.run(&spec);
    node.wait_state("a", "STATE_RUNNING");
    for _ in 0..2 {
        let mut terminal = Terminal::start(&node.call(["attach", "a"]), 33, 77);
        terminal.await_raw();
        terminal.types("here\r");
        terminal.await_text("got here\n");
        terminal.signal(Signal::SIGKILL);
        assert_eq!(terminal.ends(), 137);
    }
    let runs = wait_until(Duration::from_secs(5), || {
        (node.task("a")["state"] == "STATE_RUNNING").then_some(())
    });
    assert!(runs.is_some(), "{:#}", node.task("a"));
    node.hafen(["kill", "a"]).ok();
    node.wait("a");
}
