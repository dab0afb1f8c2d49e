//! Containers whose runtime, or whose own first process, dies at the worst moment.
//!
//! A walk lets a command die (SIGKILL) before each of its steps in turn, `HAFEN_FAULT=0`, `1` and so on, until it
//! comes through. After each death `delete --force` must succeed and leave nothing.

mod outside;
mod records;
mod shared_cgroups;
mod storage;
mod walk;

use std::path::PathBuf;
use std::time::Duration;

use hafen_integration::{Bundle, Case, Oci, Output, Test, cgroup, json, wait_until};

pub(crate) fn trials() -> Vec<Case> {
    let modules = [
        walk::trials(),
        outside::trials(),
        records::trials(),
        shared_cgroups::trials(),
        storage::trials(),
    ];
    modules.into_iter().flatten().collect()
}

/// With something of everything that a container claims, and `script` as its program.
fn limited(t: &Test, script: &str) -> Bundle {
    let tmpfs = |folder: &str| json!({ "destination": folder, "type": "tmpfs", "source": "tmpfs" });
    t.bundle()
        .sh(script)
        .set("/linux/resources/memory/limit", json!(64 << 20))
        .set("/linux/resources/pids/limit", json!(32))
        .set("/linux/resources/cpu", json!({ "quota": 50_000, "period": 100_000 }))
        .push("/mounts", tmpfs("/mnt"))
        .push("/mounts", tmpfs("/tmp"))
}

/// Every folder of a container's in any cgroup hierarchy.
fn cgroups_of(id: &str) -> Vec<PathBuf> {
    let all = cgroup::hierarchies().into_iter().map(|h| h.mount.join("hafen").join(id));
    all.filter(|folder| folder.exists()).collect()
}

/// Pids in those folders, zombies not counted.
fn processes_of(id: &str) -> Vec<String> {
    let files = cgroups_of(id).into_iter().map(|folder| folder.join("cgroup.procs"));
    let lists = files.filter_map(|file| std::fs::read_to_string(file).ok());
    lists.flat_map(|list| list.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// What the container's record, cgroups and mounts have left at this very moment. The comparison of the host after the
/// test covers the rest, and forgives what goes a moment later.
#[track_caller]
pub(crate) fn assert_gone(oci: &Oci, id: &str, when: &str) {
    let folder = oci.root().join(id);
    assert!(!folder.exists(), "{when}: {} is still there", folder.display());
    let cgroups = cgroups_of(id);
    assert!(cgroups.is_empty(), "{when}: still there: {cgroups:?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<&str> = mounts.lines().filter(|line| line.contains(id)).collect();
    assert!(mounts.is_empty(), "{when}: still mounted: {mounts:?}");
}

#[track_caller]
fn delete_force(oci: &Oci, id: &str, when: &str) {
    let output = oci.delete_force(id);
    assert!(output.exit == Some(0), "{when}: {output}");
    assert_gone(oci, id, when);
}

/// A container whose program runs, sleeps, and is found running.
fn running(t: &Test, id: &str) -> Oci {
    let oci = t.oci();
    let _ = oci.create(id, &limited(t, "sleep 300")).ok();
    let _ = oci.start(id).ok();
    assert_eq!(oci.status(id).as_deref(), Some("running"));
    oci
}

/// A container whose program is over.
fn stopped(t: &Test, id: &str) -> Oci {
    let oci = running(t, id);
    let _ = oci.kill(id, "KILL").ok();
    oci.await_status(id, "stopped");
    oci
}

fn died(output: &Output) -> bool {
    output.signal == Some(9)
}

/// Whether something becomes true within some seconds.
fn soon(mut condition: impl FnMut() -> bool) -> bool {
    wait_until(Duration::from_secs(5), || condition().then_some(())).is_some()
}
