//! Deaths at every point of a command.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen_integration::{Bundle, Case, Oci, Output, Running, Test, cases, wait_until};

use super::{assert_gone, delete_force, died, limited, processes_of, running, soon, stopped};

pub(super) fn trials() -> Vec<Case> {
    cases![
        run_of_a_bundle(Root, Busybox),
        run_on_an_overlay(Root, Busybox, FileSystem("overlay")),
        run_with_an_upper_layer_on_disk(Root, Busybox, FileSystem("overlay")),
        run_of_a_program_that_goes_on(Root, Busybox),
        create(Root, Busybox),
        start(Root, Busybox),
        delete_of_a_created_container(Root, Busybox),
        delete_of_a_running_container(Root, Busybox),
        delete_of_a_stopped_container(Root, Busybox),
        delete_of_a_container_on_an_overlay(Root, Busybox, FileSystem("overlay")),
        delete_dies_twice(Root, Busybox),
        first_process_of_run(Root, Busybox),
        first_process_of_run_on_an_overlay(Root, Busybox, FileSystem("overlay")),
        first_process_of_create(Root, Busybox),
    ]
}

/// The walk is at an end when the command comes through.
const LONGEST_WALK: usize = 400;

/// Dies before each point in turn. Gives how many points there were: with none, the program was built without them.
fn walk(oci: &Oci, least: usize, mut attempt: impl FnMut(&Oci, usize) -> bool) {
    for point in 0..LONGEST_WALK {
        if !attempt(&oci.clone().env("HAFEN_FAULT", point.to_string()), point) {
            assert!(
                point >= least,
                "only {point} fault points, wanted {least}: built with --features fault-points?"
            );
            return;
        }
    }
    panic!("the command still died at point {LONGEST_WALK}");
}

fn words<const N: usize>(fixed: [&str; N], path: &Path, rest: &[&str]) -> Vec<OsString> {
    let path = std::iter::once(path.into());
    fixed.iter().map(OsString::from).chain(path).chain(rest.iter().map(OsString::from)).collect()
}

fn run_words(bundle: &Bundle, id: &str) -> Vec<OsString> {
    words(["run", "--bundle"], bundle.path(), &[id])
}

fn overlay_words(lower: &Bundle, id: &str, script: &str) -> Vec<OsString> {
    let rest =
        ["--id", id, "--memory", "64M", "--pids", "32", "--cpus", "0.5", "--", "sh", "-c", script];
    words(["run", "--rootfs"], &lower.rootfs(), &rest)
}

fn await_end(call: &mut Running) {
    assert!(
        wait_until(Duration::from_secs(30), || call.has_ended().then_some(())).is_some(),
        "did not end; stdout {:?} stderr {:?}",
        call.stdout(),
        call.stderr()
    );
}

/// Kills `run` at every point. Up to the one before the go signal, whose sign is that the process is recorded, the
/// user's program must never run, and the first process must go by itself.
fn run_dies(t: &Test, least: usize, words: impl Fn(&str) -> Vec<OsString>) {
    let plain = t.oci();
    let mut recorded = None;
    let mut ran = false;
    walk(&plain, least, |oci, point| {
        let (id, when) = (t.id(), format!("run died at point {point}"));
        let mut call = oci.spawn(words(&id));
        await_end(&mut call);
        if plain.root().join(&id).join("state.json").exists() {
            recorded.get_or_insert(point);
        }
        let may_run = recorded.is_some_and(|first| point > first);
        if !may_run {
            assert!(soon(|| processes_of(&id).is_empty()), "{when}: its first process stayed");
        }
        delete_force(&plain, &id, &when);
        ran = !call.stdout().is_empty();
        assert!(may_run || !ran, "{when}: the program ran before the go signal");
        let output = call.wait();
        if died(&output) {
            return true;
        }
        assert_eq!(output.ok().stdout, "ran\n", "{when}");
        false
    });
    assert!(recorded.is_some() && ran, "recorded at {recorded:?}, ran: {ran}");
}

fn run_of_a_bundle(t: &Test) {
    let bundle = limited(t, "echo ran");
    run_dies(t, 12, |id| run_words(&bundle, id));
}

fn run_on_an_overlay(t: &Test) {
    let lower = t.bundle();
    run_dies(t, 12, |id| overlay_words(&lower, id, "echo ran; echo x > /new; mkdir -p /a/b"));
}

fn run_with_an_upper_layer_on_disk(t: &Test) {
    let (lower, images) = (t.bundle().rootfs(), t.images());
    let images = images.to_str().expect("a path in UTF-8");
    run_dies(t, 12, |id| {
        let rest =
            ["--images", images, "--upper", "disk", "--id", id, "--", "sh", "-c", "echo ran"];
        words(["run", "--rootfs"], &lower, &rest)
    });
    let folders = |path: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).expect("a folder").map(|e| e.expect("an entry"));
        entries.map(|entry| entry.path()).collect()
    };
    let left: Vec<_> =
        folders(&t.images().join("upper")).iter().flat_map(|boot| folders(boot)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Here the container is alive when the runtime dies, or is deleted under a runtime that waits for it.
fn run_of_a_program_that_goes_on(t: &Test) {
    let plain = t.oci();
    let bundle = limited(t, "echo ran; sleep 300");
    let mut waited = 0;
    walk(&plain, 12, |oci, point| {
        let (id, when) = (t.id(), format!("run died at point {point}"));
        let mut call = oci.spawn(run_words(&bundle, &id));
        let ended = wait_until(Duration::from_secs(30), || {
            let ended = call.has_ended();
            (ended || call.stdout().contains("ran")).then_some(ended)
        });
        // The runtime may be just about to die with the program already at work.
        let ended = ended.expect("the runtime ends or the program runs")
            || wait_until(Duration::from_millis(300), || call.has_ended().then_some(())).is_some();
        if !ended {
            waited += 1;
            assert_eq!(plain.status(&id).as_deref(), Some("running"), "{when}");
            let _ = plain.kill(&id, "KILL").ok();
            await_end(&mut call);
        }
        delete_force(&plain, &id, &when);
        let output = call.wait();
        let died = died(&output);
        if !died {
            output.code(128 + 9);
        }
        died
    });
    assert!(waited > 0, "no runtime ever waited for its container");
}

fn create(t: &Test) {
    let plain = t.oci();
    let bundle = limited(t, "echo ran");
    let mut recorded = None;
    walk(&plain, 10, |oci, point| {
        let (id, when) = (t.id(), format!("create died at point {point}"));
        let mut call = oci.spawn(words(["create", "--bundle"], bundle.path(), &[id.as_str()]));
        await_end(&mut call);
        if plain.root().join(&id).join("state.json").exists() {
            recorded.get_or_insert(point);
        }
        if recorded.is_none_or(|first| point == first) {
            assert!(soon(|| processes_of(&id).is_empty()), "{when}: its first process stayed");
        }
        delete_force(&plain, &id, &when);
        assert_eq!(call.stdout(), "", "{when}: the program ran without `start`");
        died(&call.wait())
    });
    assert!(recorded.is_some());
}

/// `start` that dies leaves a container that is created or running, never a broken one.
fn start(t: &Test) {
    let plain = t.oci();
    let bundle = limited(t, "sleep 300");
    walk(&plain, 4, |oci, point| {
        let (id, when) = (t.id(), format!("start died at point {point}"));
        let _ = plain.create(&id, &bundle).ok();
        let output = oci.start(&id);
        let status = plain.status(&id);
        match status.as_deref() {
            Some("created") if died(&output) => {
                let _ = plain.start(&id).ok();
                assert_eq!(plain.status(&id).as_deref(), Some("running"), "{when}");
            }
            Some("running") => {}
            other => panic!("{when}: status {other:?}"),
        }
        delete_force(&plain, &id, &when);
        died(&output)
    });
}

/// What a client does after a `delete` that died.
#[derive(Debug, Clone, Copy)]
enum Again {
    Delete,
    Force,
}

fn delete_dies(t: &Test, first: &[&str], again: Again, make: impl Fn(&str)) {
    let plain = t.oci();
    walk(&plain, 2, |oci, point| {
        let (id, when) = (t.id(), format!("delete died at point {point}"));
        make(&id);
        let output = oci.call(first.iter().copied().chain([id.as_str()]));
        if !died(&output) {
            let _ = output.ok();
            assert_gone(&plain, &id, &when);
            return false;
        }
        assert!(plain.status(&id).is_some(), "{when}: it cannot be asked for any more");
        let output = match again {
            Again::Delete => plain.delete(&id),
            Again::Force => plain.delete_force(&id),
        };
        assert!(output.exit == Some(0), "{when}, then: {output}");
        assert_gone(&plain, &id, &when);
        true
    });
}

fn delete_of_a_created_container(t: &Test) {
    let bundle = limited(t, "echo ran");
    delete_dies(t, &["delete", "--force"], Again::Force, |id| {
        let _ = t.oci().create(id, &bundle).ok();
    });
}

fn delete_of_a_running_container(t: &Test) {
    delete_dies(t, &["delete", "--force"], Again::Force, |id| {
        let _ = running(t, id);
    });
}

fn delete_of_a_stopped_container(t: &Test) {
    delete_dies(t, &["delete"], Again::Delete, |id| {
        let _ = stopped(t, id);
    });
}

/// `run` died while the container was alive, so there is a scratch folder to remove as well.
fn delete_of_a_container_on_an_overlay(t: &Test) {
    let lower = t.bundle();
    delete_dies(t, &["delete", "--force"], Again::Force, |id| {
        let script = "mkdir -p /a/b/c; echo x > /a/b/c/d; echo ready; sleep 300";
        let mut call = t.oci().spawn(overlay_words(&lower, id, script));
        call.await_text("ready");
        call.signal(nix::sys::signal::Signal::SIGKILL);
        call.wait();
    });
}

/// The second `delete` dies as well, at every point that it has after each point of the first.
fn delete_dies_twice(t: &Test) {
    let plain = t.oci();
    let dying = |point: usize| plain.clone().env("HAFEN_FAULT", point.to_string());
    walk(&plain, 2, |first, point| {
        let mut first_died = true;
        walk(&plain, 0, |second, again| {
            let (id, when) = (t.id(), format!("delete died at point {point}, then {again}"));
            let _ = stopped(t, &id);
            first_died = died(&first.delete(&id));
            let second_died = first_died && died(&second.delete(&id));
            delete_force(&plain, &id, &when);
            second_died
        });
        first_died
    });
    // Three deaths in a row.
    let id = t.id();
    let _ = stopped(t, &id);
    for point in [0, 1, 1] {
        assert!(died(&dying(point).delete(&id)));
    }
    delete_force(&plain, &id, "after three deaths");
}

/// The first process dies before each of its operations: one clear line, and nothing is left without any help.
fn first_process_dies(
    t: &Test,
    least: usize,
    words: impl Fn(&str) -> Vec<OsString>,
    success: impl Fn(&Oci, &str, Output),
) {
    let plain = t.oci();
    for point in (0..LONGEST_WALK).step_by(stride()) {
        let (id, when) = (t.id(), format!("first process died before operation {point}"));
        let output = plain.clone().env("HAFEN_FAULT", format!("c{point}")).call(words(&id));
        if output.exit == Some(0) {
            assert!(point >= least, "only {point} operations, wanted {least}");
            success(&plain, &id, output);
            return;
        }
        output.error_with(["first process"]);
        assert!(!output.stdout.contains("ran"), "{when}: {output}");
        assert_gone(&plain, &id, &when);
    }
    panic!("the first process still died before operation {LONGEST_WALK}");
}

/// All of them where a launch takes no second. In the virtual machine `create` still goes through all.
fn stride() -> usize {
    if std::env::var("NEEDS").is_ok_and(|needs| needs.starts_with("vm")) { 4 } else { 1 }
}

fn first_process_of_run(t: &Test) {
    let bundle = limited(t, "echo ran");
    first_process_dies(
        t,
        40,
        |id| run_words(&bundle, id),
        |_, _, output| assert_eq!(output.stdout, "ran\n"),
    );
}

fn first_process_of_run_on_an_overlay(t: &Test) {
    let lower = t.bundle();
    first_process_dies(
        t,
        40,
        |id| overlay_words(&lower, id, "echo ran"),
        |_, _, output| assert_eq!(output.stdout, "ran\n"),
    );
}

/// Before the container waits for `start` it is as in `run`; after that `start` must tell.
fn first_process_of_create(t: &Test) {
    let bundle = limited(t, "echo ran");
    let mut deaths_after_create = 0;
    let plain = t.oci();
    for point in 0..LONGEST_WALK {
        let (id, when) = (t.id(), format!("first process died before operation {point}"));
        let fault = format!("c{point}");
        let create = words(["create", "--bundle"], bundle.path(), &[id.as_str()]);
        let output = plain.clone().env("HAFEN_FAULT", fault).call(create);
        if output.exit != Some(0) {
            assert_eq!(deaths_after_create, 0, "{when}: {output}");
            output.error_with(["first process"]);
            assert_gone(&plain, &id, &when);
            continue;
        }
        let started = plain.start(&id);
        if started.exit == Some(0) {
            delete_force(&plain, &id, &when);
            assert!(point >= 40 && deaths_after_create > 0, "{point} {deaths_after_create}");
            return;
        }
        deaths_after_create += 1;
        let _ = started.error_line();
        plain.await_status(&id, "stopped");
        let _ = plain.delete(&id).ok();
        assert_gone(&plain, &id, &when);
    }
    panic!("the first process still died before operation {LONGEST_WALK}");
}
