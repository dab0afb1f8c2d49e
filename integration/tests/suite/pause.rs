//! Containers that stand still, and what may be done to them meanwhile.

use std::fs;
use std::time::Duration;

use hafen_integration::{Bundle, Case, Oci, Test, cases, cgroup, wait_until};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        a_paused_container_does_nothing_until_resume(OwnCgroup, Busybox),
        a_created_container_can_be_paused(OwnCgroup, Busybox),
        refusals_about_paused_containers(OwnCgroup, Busybox),
        a_paused_container_can_be_killed(OwnCgroup, Busybox),
        signals_wait_for_resume(OwnCgroup, Busybox),
        delete_force_of_a_paused_container(OwnCgroup, Busybox),
        processes_of_sub_groups_stand_still_as_well(OwnCgroup, Busybox),
        checkpoint_and_restore_are_refused(),
        ps_takes_the_options_of_ps(OwnCgroup, Busybox, Program("ps")),
    ]
}

fn started(oci: &Oci, id: &str, bundle: &Bundle) -> i32 {
    let _ = oci.create(id, bundle).ok();
    let _ = oci.start(id).ok();
    oci.pid(id)
}

/// A container that counts as quickly as it can, and how much processor time it has used.
fn counting(t: &Test, oci: &Oci, id: &str) -> i32 {
    started(oci, id, &t.bundle().sh("while :; do :; done"))
}

fn used(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields: Vec<&str> =
        text.rsplit_once(')').expect("a name").1.split_ascii_whitespace().collect();
    fields[11].parse::<u64>().expect("ticks") + fields[12].parse::<u64>().expect("ticks")
}

fn moves(pid: i32) -> bool {
    let before = used(pid);
    wait_until(Duration::from_secs(1), || (used(pid) > before).then_some(())).is_some()
}

fn a_paused_container_does_nothing_until_resume(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let pid = counting(t, &oci, &id);
    assert!(moves(pid), "it does not run in the first place");
    let _ = oci.call(["pause", &id]).ok();
    assert_eq!(oci.status(&id).as_deref(), Some("paused"));
    let row = oci.call(["list", "--format", "json"]).ok().json();
    assert_eq!((&row[0]["status"], &row[0]["pid"]), (&"paused".into(), &pid.into()));
    let events = cgroup::value(&cgroup::folder(pid, ""), "cgroup.events");
    assert!(events.contains("frozen 1"), "{events}");
    assert!(!moves(pid), "it goes on");
    let _ = oci.call(["resume", &id]).ok();
    assert_eq!(oci.status(&id).as_deref(), Some("running"));
    assert!(moves(pid), "it stands still");
    let _ = oci.delete_force(&id).ok();
}

fn a_created_container_can_be_paused(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &t.bundle().sh("exit 0")).ok();
    let _ = oci.call(["pause", &id]).ok();
    assert_eq!(oci.status(&id).as_deref(), Some("paused"));
    let _ = oci.call(["resume", &id]).ok();
    assert_eq!(oci.status(&id).as_deref(), Some("created"));
    let _ = oci.start(&id).ok();
    oci.await_status(&id, "stopped");
    let _ = oci.delete(&id).ok();
}

fn refusals_about_paused_containers(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    oci.call(["pause", &id]).error_with(["does not exist"]);
    oci.call(["resume", &id]).error_with(["does not exist"]);
    let _ = oci.create(&id, &t.bundle().args(["/inside", "sleep", "600"])).ok();
    oci.call(["resume", &id]).error_with(["container not paused"]);
    let _ = oci.call(["pause", &id]).ok();
    oci.call(["pause", &id]).error_with(["container not running"]);
    oci.start(&id).error_with(["cannot start a container in the paused state"]);
    oci.delete(&id).error_with(["not stopped", "paused"]);
    let _ = oci.kill(&id, "KILL").ok();
    oci.await_status(&id, "stopped");
    oci.call(["pause", &id]).error_with(["container not running"]);
    oci.call(["resume", &id]).error_with(["container not paused"]);
    let _ = oci.delete(&id).ok();
}

fn a_paused_container_can_be_killed(t: &Test) {
    for words in [&["kill"][..], &["kill", "--all"]] {
        let (oci, id) = (t.oci(), t.id());
        let _ = counting(t, &oci, &id);
        let _ = oci.call(["pause", &id]).ok();
        let _ = oci.call(words.iter().copied().chain([id.as_str(), "KILL"])).ok();
        oci.await_status(&id, "stopped");
        let _ = oci.delete(&id).ok();
    }
}

fn signals_wait_for_resume(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = started(&oci, &id, &t.bundle().args(["/inside", "await", "10", "0"]));
    let _ = oci.call(["pause", &id]).ok();
    let _ = oci.kill(&id, "USR1").ok();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(oci.status(&id).as_deref(), Some("paused"));
    let _ = oci.call(["resume", &id]).ok();
    oci.await_status(&id, "stopped");
    let _ = oci.delete(&id).ok();
}

fn delete_force_of_a_paused_container(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let pid = counting(t, &oci, &id);
    let folder = cgroup::folder(pid, "");
    let _ = oci.call(["pause", &id]).ok();
    let _ = oci.delete_force(&id).ok();
    assert!(!folder.exists(), "{} remains", folder.display());
}

fn processes_of_sub_groups_stand_still_as_well(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = started(&oci, &id, &t.bundle().sh("while :; do :; done & wait"));
    let pids = || -> Vec<i32> {
        serde_json::from_value(oci.call(["ps", "--format", "json", &id]).ok().json()).expect("pids")
    };
    let both = wait_until(Duration::from_secs(10), || Some(pids()).filter(|p| p.len() == 2));
    let child = both.expect("two processes")[1];
    let below = cgroup::folder(child, "").join("below");
    fs::create_dir(&below).expect("make a cgroup");
    fs::write(below.join("cgroup.procs"), child.to_string()).expect("move");
    assert!(moves(child));
    let _ = oci.call(["pause", &id]).ok();
    assert!(!moves(child), "it goes on");
    let _ = oci.delete_force(&id).ok();
}

/// Podman takes an exit code of 0 of the help for "it is there".
fn checkpoint_and_restore_are_refused(t: &Test) {
    for verb in ["checkpoint", "restore"] {
        for words in [&["--help"][..], &["--image-path", "/tmp/x", "id"], &[]] {
            let all = [verb].into_iter().chain(words.iter().copied());
            t.oci().call(all).error_with([verb, "is not supported"]);
        }
    }
    let features = t.oci().bare(["features"]).output().ok().json().to_string();
    assert!(!features.contains("checkpoint"), "{features}");
}

fn ps_takes_the_options_of_ps(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let pid = counting(t, &oci, &id).to_string();
    let output = oci.call(["ps", &id, "-e", "-o", "comm,pid"]).ok();
    let lines: Vec<Vec<&str>> =
        output.stdout.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines, [vec!["COMMAND", "PID"], vec!["sh", &pid]], "{output}");
    oci.call(["ps", &id, "-e", "-o", "comm"]).error_with(["no column PID"]);
    oci.call(["ps", &id, "--nonsense"]).error_with(["ps --nonsense"]);
    let _ = oci.delete_force(&id).ok();
}
