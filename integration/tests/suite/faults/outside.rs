//! Interference from outside: signals, and two at work on one container.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hafen_integration::{Bundle, Case, Test, cases};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{assert_gone, cgroups_of, delete_force, died, limited, running, soon};

pub(super) fn trials() -> Vec<Case> {
    cases![
        run_is_killed_while_the_container_goes_on(Root, Busybox),
        first_process_is_killed_from_outside(Root, Busybox),
        first_process_of_run_is_killed_from_outside(Root, Busybox),
        two_deletes_at_once(Root, Busybox),
        a_run_that_lost_its_container_leaves_the_next_one_alone(Root, Busybox),
        sub_cgroups_and_daemons_go_with_run(Root, Busybox),
        sub_cgroups_and_daemons_go_with_delete(Root, Busybox),
        random_deaths(Root, Busybox),
    ]
}

fn run_words<'a>(bundle: &'a Bundle, id: &'a str) -> [&'a str; 4] {
    ["run", "--bundle", bundle.path().to_str().expect("a path in UTF-8"), id]
}

fn run_is_killed_while_the_container_goes_on(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = limited(t, "echo ready; sleep 300");
    let mut call = oci.spawn(run_words(&bundle, &id));
    call.await_text("ready");
    call.signal(Signal::SIGKILL);
    assert!(died(&call.wait()));
    assert_eq!(oci.status(&id).as_deref(), Some("running"));
    oci.delete(&id).error_with(["not stopped", "running"]);
    assert_eq!(oci.status(&id).as_deref(), Some("running"));
    delete_force(&oci, &id, "after the death of run");
}

fn first_process_is_killed_from_outside(t: &Test) {
    let id = t.id();
    let oci = running(t, &id);
    kill(Pid::from_raw(oci.pid(&id)), Signal::SIGKILL).expect("kill the first process");
    oci.await_status(&id, "stopped");
    assert!(oci.state(&id)["pid"].is_null(), "{}", oci.state(&id));
    oci.kill(&id, "TERM").error_with(["container not running"]);
    let _ = oci.delete(&id).ok();
    assert_gone(&oci, &id, "delete");
}

fn first_process_of_run_is_killed_from_outside(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = limited(t, "echo ready; sleep 300");
    let mut call = oci.spawn(run_words(&bundle, &id));
    call.await_text("ready");
    kill(Pid::from_raw(oci.pid(&id)), Signal::SIGKILL).expect("kill the first process");
    call.wait().code(128 + 9);
    assert_gone(&oci, &id, "run");
}

/// One does it; the other waits, and finds nothing left to do.
fn two_deletes_at_once(t: &Test) {
    for round in 0..10 {
        let id = t.id();
        let oci = running(t, &id);
        let calls = [0, 1].map(|_| oci.spawn(["delete", "--force", &id]));
        let outputs = calls.map(hafen_integration::Running::wait);
        for output in outputs {
            assert!(output.exit == Some(0), "round {round}: {output}");
        }
        assert_gone(&oci, &id, "two deletes");
    }
}

/// `run` still waits to be scheduled when its container is deleted and another one gets the id.
fn a_run_that_lost_its_container_leaves_the_next_one_alone(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = limited(t, "echo ready; sleep 300");
    let mut first = oci.spawn(run_words(&bundle, &id));
    first.await_text("ready");
    first.signal(Signal::SIGSTOP);
    delete_force(&oci, &id, "under a stopped run");
    let _ = oci.create(&id, &bundle).ok();
    let _ = oci.start(&id).ok();
    first.signal(Signal::SIGCONT);
    let _ = first.wait();
    let status = oci.status(&id);
    assert_eq!(status.as_deref(), Some("running"), "the first run took the second one's container");
    delete_force(&oci, &id, "the second container");
}

/// Shares the host's pid namespace, so that nothing ends with the first process, and may make cgroups.
fn untidy(t: &Test, last: &str) -> Bundle {
    let script = format!(
        "for c in /sys/fs/cgroup /sys/fs/cgroup/*; do
            [ -e $c/cgroup.procs ] || continue
            mkdir -p $c/a/b $c/c && echo 0 > $c/a/b/cgroup.procs
            (echo 0 > $c/c/cgroup.procs; setsid sleep 300 & setsid sh -c 'sleep 300 & sleep 300' &)
        done
        echo ready; {last}"
    );
    let writable = |config: &mut hafen_integration::Value| {
        let mounts = config["mounts"].as_array_mut().expect("/mounts is an array");
        let cgroup = mounts.iter_mut().find(|m| m["type"] == "cgroup").expect("a cgroup mount");
        let options = cgroup["options"].as_array_mut().expect("options are an array");
        options.retain(|option| option != "ro");
    };
    limited(t, &script).without_namespace("pid").edit(writable)
}

fn sub_cgroups_and_daemons_go_with_run(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let output = oci.run(&id, &untidy(t, "exit 5"));
    assert_eq!((output.exit, &*output.stdout, &*output.stderr), (Some(5), "ready\n", ""));
    assert_gone(&oci, &id, "run");
}

fn sub_cgroups_and_daemons_go_with_delete(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &untidy(t, "exit 5")).ok();
    let _ = oci.start(&id).ok();
    oci.await_status(&id, "stopped");
    for folder in cgroups_of(&id) {
        assert!(folder.join("a/b").is_dir(), "{} has no folders inside", folder.display());
    }
    let _ = oci.delete(&id).ok();
    assert_gone(&oci, &id, "delete");
}

/// The runtime is killed at any moment at all, not only between its steps. The seed is in every message; give it in
/// `HAFEN_SEED` to have the same delays again.
fn random_deaths(t: &Test) {
    const CYCLES: u32 = 30;
    let seed = std::env::var("HAFEN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |d| u64::from(d.subsec_nanos()) | 1)
    });
    eprintln!("{}: HAFEN_SEED={seed}", t.name());
    let oci = t.oci();
    let bundle = limited(t, "true");
    let whole = oci.run(&t.id(), &bundle).ok().wall;
    let mut state = seed;
    for cycle in 0..CYCLES {
        // Numerical Recipes' linear congruential generator; the upper bits are the good ones.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let fraction = f64::from(u32::try_from(state >> 32).unwrap_or(0)) / f64::from(u32::MAX);
        let delay = whole.mul_f64(1.2 * fraction);
        let (id, when) = (t.id(), format!("seed {seed} cycle {cycle} after {delay:?}"));
        let verb = if cycle % 2 == 0 { "run" } else { "create" };
        let call =
            oci.spawn([verb, "--bundle", bundle.path().to_str().expect("a path in UTF-8"), &id]);
        std::thread::sleep(delay);
        call.signal(Signal::SIGKILL);
        let _ = call.wait_at_most(Duration::from_secs(10));
        let output = oci.delete_force(&id);
        assert!(output.exit == Some(0), "{when}: {output}");
        assert!(soon(|| cgroups_of(&id).is_empty()), "{when}: {:?}", cgroups_of(&id));
        assert_gone(&oci, &id, &when);
    }
}
