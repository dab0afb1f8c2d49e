//! What a keeper takes.

use std::fs;
use std::time::Duration;

use hafen_integration::{Case, Kept, Program, Test, cases, wait_until};

use super::Place;

pub(super) fn trials() -> Vec<Case> {
    cases![a_keeper_has_one_thread_and_is_small(
        Root,
        Busybox,
        That("a release build of hafen-oci", is_shipped)
    ),]
}

fn is_shipped() -> bool {
    Program::Shipped.find().is_ok()
}

/// kB, as /proc/PID/smaps_rollup (proc(5)) has it.
fn rollup(kept: &Kept, field: &str) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", kept.pid());
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number.and_then(|n| n.trim().parse().ok()).unwrap_or_else(|| panic!("no {field} in {text}"))
}

/// Of a keeper that is alone, as it is given to people: the kernel maps as much around what is used as is together in its
/// cache, which of a debug build can be anything.
#[track_caller]
fn assert_rests(kept: &Kept) {
    const MOST: u64 = 1024;
    let mut last = 0;
    let found = wait_until(Duration::from_secs(5), || {
        last = rollup(kept, "Pss");
        (last <= MOST).then_some(())
    });
    assert!(found.is_some(), "{last} kB are its own while it waits");
}

fn a_keeper_has_one_thread_and_is_small(t: &Test) {
    let place = Place { oci: t.shipped(), ..Place::new(t) };
    let bundle = t.bundle().sh("seq 1 1000; read line; seq 1 1000; read line");
    let kept = place.keep(&bundle, &["--interactive"]);
    let mut client = kept.connect();
    let threads = fs::read_dir(format!("/proc/{}/task", kept.pid())).expect("threads").count();
    assert_eq!(threads, 1);
    assert_rests(&kept);
    client.input(b"\n");
    let mut client = client.attached(true, true);
    client.until_text("1000\n");
    // Also after work.
    assert_rests(&kept);
    client.input(b"\n");
    let _ = kept.end();
}
