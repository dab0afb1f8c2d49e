//! Limits as real processes meet them, and as the kernel's files hold them.

use std::path::PathBuf;

use hafen_integration::{Bundle, Case, Oci, Output, Running, Test, Value, cases, cgroup, json};

const MIB: u64 = 1 << 20;

pub(crate) fn trials() -> Vec<Case> {
    cases![
        memory_limit_kills_and_the_evidence_is_told(Root, Busybox, Limit("memory")),
        memory_below_the_limit_is_left_alone(Root, Busybox, Limit("memory")),
        memory_of_a_child_counts_and_its_parent_survives(Root, Busybox, Limit("memory")),
        memory_in_a_tmpfs_counts(Root, Busybox, Limit("memory")),
        memory_too_small_to_start_is_told(Root, Busybox, Limit("memory")),
        swap_limit_is_written(Root, Busybox, Unified, Limit("memory")),
        oom_group_ends_the_whole_container(Root, Busybox, Unified, Limit("memory")),
        unified_files_are_written_verbatim(Root, Busybox, Unified, Limit("memory")),
        unified_goes_before_the_other_fields(Root, Busybox, Unified, Limit("memory")),
        cpu_quota_is_the_share_that_is_got(Root, Busybox, Limit("cpu")),
        cpu_quota_throttles_and_the_evidence_is_told(Root, Busybox, Limit("cpu")),
        cpu_shares_divide_a_processor(Root, Busybox, Limit("cpu"), Limit("cpuset")),
        cpu_shares_are_the_kernels_weight(Root, Busybox, Limit("cpu")),
        cpu_burst_is_written(Root, Busybox, Limit("cpu")),
        cpu_idle_is_written(Root, Busybox, Limit("cpu")),
        cpuset_holds_inside(Root, Busybox, Limit("cpuset")),
        cpuset_that_the_machine_lacks_is_refused(Root, Busybox, Limit("cpuset")),
        pids_limit_stops_forks(Root, Busybox, Limit("pids")),
        pids_limit_of_minus_one_is_none(Root, Busybox, Limit("pids")),
        default_devices_can_be_used(Root, Busybox),
        a_denied_device_is_refused_with_eperm(Root, Busybox),
        device_rules_tell_access_apart(Root, Busybox),
        what_a_unified_host_cannot_enforce_is_refused(Root, Busybox, Unified),
        what_a_hybrid_host_cannot_enforce_is_refused(Root, Busybox, Hybrid),
        what_no_host_enforces_yet_is_refused(Root, Busybox),
        limits_that_contradict_themselves_are_refused(Root, Busybox),
        all_processes_are_in_the_limited_cgroups(Root, Busybox, Limit("memory"), Limit("pids")),
    ]
}

/// A container that was started and sleeps.
fn started(t: &Test, oci: &Oci, bundle: &Bundle) -> (String, i32) {
    let id = t.id();
    let bundle = bundle.clone().args(["/inside", "sleep", "600"]);
    let _ = oci.create(&id, &bundle).ok();
    let _ = oci.start(&id).ok();
    let pid = oci.pid(&id);
    (id, pid)
}

/// The value of a file in the container's folder of a controller.
fn held(pid: i32, controller: &str, file: &str) -> String {
    cgroup::value(&cgroup::folder(pid, controller), file)
}

fn unified(controller: &str) -> bool {
    cgroup::v1(controller).is_none()
}

/// The name of a file depends on the version of the controller's hierarchy.
fn file(controller: &str, v2: &'static str, v1: &'static str) -> &'static str {
    if unified(controller) { v2 } else { v1 }
}

fn eats(t: &Test, mebibytes: u64) -> Bundle {
    t.bundle()
        .args(["/inside".to_owned(), "eat".to_owned(), (mebibytes * MIB).to_string()])
        .set("/linux/resources/memory/limit", json!(64 * MIB))
}

fn number(record: &Value, name: &str) -> u64 {
    record["usage"][name].as_u64().unwrap_or_else(|| panic!("no number {name} in {record}"))
}

fn memory_limit_kills_and_the_evidence_is_told(t: &Test) {
    let (output, record) = t.oci().run_with_report(&t.id(), &eats(t, 256));
    let output = output.code(128 + 9);
    assert!(!output.stdout.contains("ate"), "{output}");
    assert_eq!((&record["signal"], &record["exit_code"]), (&json!(9), &Value::Null), "{record}");
    assert!(number(&record, "oom_kills") >= 1, "{record}");
    assert_eq!(number(&record, "memory_limit_bytes"), 64 * MIB, "{record}");
    if let Some(peak) = record["usage"]["memory_peak_bytes"].as_u64() {
        assert!((60 * MIB..=64 * MIB).contains(&peak), "{record}");
    }
}

fn memory_below_the_limit_is_left_alone(t: &Test) {
    let (output, record) = t.oci().run_with_report(&t.id(), &eats(t, 32));
    assert!(output.ok().stdout.contains("ate 33554432"));
    assert_eq!(number(&record, "oom_kills"), 0, "{record}");
    assert!(number(&record, "max_rss_bytes") >= 32 * MIB, "{record}");
    if let Some(peak) = record["usage"]["memory_peak_bytes"].as_u64() {
        assert!((32 * MIB..=64 * MIB).contains(&peak), "{record}");
    }
}

fn memory_of_a_child_counts_and_its_parent_survives(t: &Test) {
    let bundle = eats(t, 0).sh("/inside eat 268435456; echo survived $?");
    let (output, record) = t.oci().run_with_report(&t.id(), &bundle);
    assert!(output.clone().ok().stdout.contains("survived 137"), "{output}");
    assert!(number(&record, "oom_kills") >= 1, "{record}");
}

fn memory_in_a_tmpfs_counts(t: &Test) {
    let bundle = eats(t, 0)
        .push("/mounts", json!({ "destination": "/mnt", "type": "tmpfs", "source": "tmpfs" }))
        .sh("exec dd if=/dev/zero of=/mnt/big bs=1M count=256");
    let (_, record) = t.oci().run_with_report(&t.id(), &bundle);
    assert!(number(&record, "oom_kills") >= 1, "{record}");
}

fn memory_too_small_to_start_is_told(t: &Test) {
    let bundle = t.bundle().set("/linux/resources/memory/limit", json!(4096));
    let (oci, id) = (t.oci(), t.id());
    oci.create(&id, &bundle).error_with(["memory"]);
    assert_eq!(oci.status(&id), None);
}

fn swap_limit_is_written(t: &Test) {
    let oci = t.oci();
    let bundle = eats(t, 0).set("/linux/resources/memory/swap", json!(96 * MIB));
    let (id, pid) = started(t, &oci, &bundle);
    assert_eq!(held(pid, "memory", "memory.swap.max"), (32 * MIB).to_string());
    let _ = oci.delete_force(&id).ok();
}

fn oom_group_ends_the_whole_container(t: &Test) {
    let bundle = eats(t, 0)
        .set("/linux/resources/unified", json!({ "memory.oom.group": "1" }))
        .sh("/inside eat 268435456; echo survived");
    let (output, record) = t.oci().run_with_report(&t.id(), &bundle);
    assert!(!output.clone().code(128 + 9).stdout.contains("survived"), "{output}");
    assert!(number(&record, "oom_kills") >= 2, "{record}");
}

fn unified_files_are_written_verbatim(t: &Test) {
    let oci = t.oci();
    let files = json!({ "memory.high": "67108864", "memory.min": "1048576", "pids.max": "77", "cgroup.max.depth": "5" });
    let (id, pid) = started(t, &oci, &t.bundle().set("/linux/resources/unified", files.clone()));
    for (file, value) in files.as_object().expect("an object") {
        assert_eq!(held(pid, "", file), value.as_str().expect("text"), "{file}");
    }
    let _ = oci.delete_force(&id).ok();
}

fn unified_goes_before_the_other_fields(t: &Test) {
    let oci = t.oci();
    let bundle = eats(t, 0).set("/linux/resources/unified", json!({ "memory.max": "100663296" }));
    let (id, pid) = started(t, &oci, &bundle);
    assert_eq!(held(pid, "memory", "memory.max"), (96 * MIB).to_string());
    let _ = oci.delete_force(&id).ok();
}

/// Two threads burn for two seconds under a quota: the part of a processor that they got, and the record.
fn burn(t: &Test, quota: u64) -> (f64, Value) {
    let bundle = t
        .bundle()
        .args(["/inside", "burn", "2", "2"])
        .set("/linux/resources/cpu", json!({ "quota": quota, "period": 100_000 }));
    let (output, record) = t.oci().run_with_report(&t.id(), &bundle);
    let burnt = output.ok().json();
    let used = |name: &str| burnt[name].as_f64().expect("a number");
    (used("cpu_usec") / used("wall_usec"), record)
}

fn cpu_quota_is_the_share_that_is_got(t: &Test) {
    let (share, record) = burn(t, 50_000);
    assert!(share <= 0.7, "used {share} of a processor: {record}");
    // Less is the limit's doing only where it held the threads back; a busy or emulated machine does so, too.
    let held_back = number(&record, "cpu_throttled_periods") * 2 > number(&record, "cpu_periods");
    assert!(share >= 0.3 || !held_back, "used {share} of a processor: {record}");
}

/// With a small quota, so that it is used up on a machine that is busy with other things, too.
fn cpu_quota_throttles_and_the_evidence_is_told(t: &Test) {
    let (share, record) = burn(t, 10_000);
    assert!((0.03..=0.2).contains(&share), "used {share} of a processor: {record}");
    assert!(number(&record, "cpu_throttled_periods") >= 5, "{record}");
    assert!(number(&record, "cpu_periods") >= number(&record, "cpu_throttled_periods"), "{record}");
    assert!(number(&record, "cpu_throttled_usec") > 100_000, "{record}");
}

fn cpu_shares_divide_a_processor(t: &Test) {
    let oci = t.oci();
    let gate = t.dir().join("gate");
    std::fs::create_dir(&gate).expect("make a folder");
    let burn = |shares: u64| {
        let bundle = t
            .bundle()
            .push(
                "/mounts",
                json!({ "destination": "/mnt", "type": "bind", "source": gate, "options": ["bind"] }),
            )
            .sh("echo ready; until [ -e /mnt/open ]; do sleep 0.05; done; exec /inside burn 3")
            .set("/linux/resources/cpu", json!({ "shares": shares, "cpus": "0" }));
        oci.spawn(["run", "--bundle", &bundle.path().display().to_string(), &t.id()])
    };
    let mut both = [burn(8192), burn(256)];
    both.iter_mut().for_each(|run| run.await_text("ready"));
    std::fs::write(gate.join("open"), "").expect("open the gate");
    let cpu = both.map(|run: Running| {
        let output: Output = run.wait().ok();
        let line = output.stdout.lines().last().unwrap_or_default().to_owned();
        let burnt: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {output}"));
        burnt["cpu_usec"].as_f64().expect("a number")
    });
    assert!(cpu[0] > 2.0 * cpu[1], "microseconds with 8192 and with 256 shares: {cpu:?}");
}

fn cpu_shares_are_the_kernels_weight(t: &Test) {
    for (shares, weight) in [(2, "1"), (1024, "100"), (262_144, "10000")] {
        let oci = t.oci();
        let bundle = t.bundle().set("/linux/resources/cpu/shares", json!(shares));
        let (id, pid) = started(t, &oci, &bundle);
        let name = file("cpu", "cpu.weight", "cpu.shares");
        let wanted = if unified("cpu") { weight.to_owned() } else { shares.to_string() };
        assert_eq!(held(pid, "cpu", name), wanted, "{shares} shares");
        let _ = oci.delete_force(&id).ok();
    }
}

fn cpu_burst_is_written(t: &Test) {
    let oci = t.oci();
    let cpu = json!({ "quota": 50_000, "period": 100_000, "burst": 20_000 });
    let (id, pid) = started(t, &oci, &t.bundle().set("/linux/resources/cpu", cpu));
    assert_eq!(held(pid, "cpu", file("cpu", "cpu.max.burst", "cpu.cfs_burst_us")), "20000");
    let _ = oci.delete_force(&id).ok();
}

fn cpu_idle_is_written(t: &Test) {
    let oci = t.oci();
    let (id, pid) = started(t, &oci, &t.bundle().set("/linux/resources/cpu/idle", json!(1)));
    assert_eq!(held(pid, "cpu", "cpu.idle"), "1");
    let _ = oci.delete_force(&id).ok();
}

fn cpuset_holds_inside(t: &Test) {
    let bundle = t.bundle().set("/linux/resources/cpu", json!({ "cpus": "0", "mems": "0" }));
    let facts = t.oci().facts(&t.id(), &bundle);
    assert_eq!((&*facts.status.cpus_allowed, &*facts.status.mems_allowed), ("0", "0"));
}

fn cpuset_that_the_machine_lacks_is_refused(t: &Test) {
    let bundle = t.bundle().set("/linux/resources/cpu/cpus", json!("900"));
    t.oci().run(&t.id(), &bundle).error_with(["cpuset.cpus", "900"]);
}

fn pids_limit_stops_forks(t: &Test) {
    let bundle =
        t.bundle().args(["/inside", "fork", "100"]).set("/linux/resources/pids/limit", json!(16));
    let (output, record) = t.oci().run_with_report(&t.id(), &bundle);
    let forks = output.ok().json();
    let started = forks["started"].as_u64().expect("a number");
    assert!((1..16).contains(&started), "{forks}");
    assert!(forks["error"].as_str().is_some_and(|e| e.contains("os error 11")), "{forks}");
    assert_eq!(number(&record, "pids_limit"), 16, "{record}");
    assert!(number(&record, "pids_limit_hits") >= 1, "{record}");
}

fn pids_limit_of_minus_one_is_none(t: &Test) {
    let bundle =
        t.bundle().args(["/inside", "fork", "50"]).set("/linux/resources/pids/limit", json!(-1));
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().json()["started"], 50);
}

fn default_devices_can_be_used(t: &Test) {
    let bundle = t.bundle().sh(
        "set -e; echo x >/dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; \
         head -c 3 /dev/random | wc -c; if echo x >/dev/full; then exit 9; fi 2>/dev/null; \
         test -c /dev/tty; test -c /dev/ptmx; echo fine",
    );
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "3\n3\n3\nfine\n");
}

/// 240 is for experiments (Linux, Documentation/admin-guide/devices.txt): a node that may be opened answers ENXIO.
const NODE: &str = "mknod /dev/x c 240 77 && echo made;";

fn with_mknod(t: &Test) -> Bundle {
    let sets = ["bounding", "effective", "permitted"];
    sets.iter().fold(t.bundle(), |b, set| {
        b.push(&format!("/process/capabilities/{set}"), json!("CAP_MKNOD"))
    })
}

fn a_denied_device_is_refused_with_eperm(t: &Test) {
    let bundle = with_mknod(t).sh(&format!("{NODE} cat /dev/x"));
    let output = t.oci().run(&t.id(), &bundle).code(1);
    assert_eq!(output.stdout, "made\n", "{output}");
    assert!(output.stderr.contains("Operation not permitted"), "{output}");
}

fn device_rules_tell_access_apart(t: &Test) {
    let rule = json!({ "allow": true, "type": "c", "major": 240, "minor": 77, "access": "r" });
    let bundle = with_mknod(t)
        .push("/linux/resources/devices", rule)
        .sh(&format!("{NODE} cat /dev/x; echo y >/dev/x"));
    let output = t.oci().run(&t.id(), &bundle).code(1);
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{output}");
    assert!(lines[0].contains("No such device or address"), "{output}");
    assert!(lines[1].contains("Operation not permitted"), "{output}");
}

/// Each is refused by the name of its field, and nothing remains.
fn refused(t: &Test, table: &[(&str, Value, &str)]) {
    for (pointer, value, field) in table {
        let bundle = t.bundle().set(pointer, value.clone());
        t.oci().run(&t.id(), &bundle).error_with([*field]);
    }
}

fn what_a_unified_host_cannot_enforce_is_refused(t: &Test) {
    refused(
        t,
        &[
            ("/linux/resources/memory/swappiness", json!(10), "linux.resources.memory.swappiness"),
            (
                "/linux/resources/memory/disableOOMKiller",
                json!(true),
                "linux.resources.memory.disableOOMKiller",
            ),
            ("/linux/resources/unified", json!({ "cgroup.procs": "1" }), "cgroup.procs"),
            ("/linux/resources/unified", json!({ "../x.y": "1" }), "linux.resources.unified"),
            ("/linux/resources/unified", json!({ "memory.nonsense": "1" }), "memory.nonsense"),
            ("/linux/resources/unified", json!({ "memory.max": "much" }), "memory.max"),
        ],
    );
}

fn what_a_hybrid_host_cannot_enforce_is_refused(t: &Test) {
    let key = "linux.resources.unified[\"memory.high\"]";
    refused(t, &[("/linux/resources/unified", json!({ "memory.high": "1048576" }), key)]);
}

fn what_no_host_enforces_yet_is_refused(t: &Test) {
    let page = json!([{ "pageSize": "2MB", "limit": 2_097_152 }]);
    refused(
        t,
        &[
            ("/linux/resources/hugepageLimits", page, "linux.resources.hugepageLimits"),
            ("/linux/resources/blockIO/weight", json!(100), "linux.resources.blockIO.weight"),
            (
                "/linux/resources/cpu/realtimeRuntime",
                json!(950_000),
                "linux.resources.cpu.realtimeRuntime",
            ),
            ("/linux/resources/memory/kernel", json!(MIB), "linux.resources.memory.kernel"),
            (
                "/linux/resources/rdma",
                json!({ "mlx5_1": { "hcaHandles": 1 } }),
                "linux.resources.rdma",
            ),
            (
                "/linux/resources/network/classID",
                json!(1_048_577),
                "linux.resources.network.classID",
            ),
        ],
    );
}

fn limits_that_contradict_themselves_are_refused(t: &Test) {
    refused(
        t,
        &[
            (
                "/linux/resources/memory",
                json!({ "limit": 64 * MIB, "swap": 32 * MIB }),
                "linux.resources.memory.swap",
            ),
            ("/linux/resources/memory", json!({ "swap": 32 * MIB }), "linux.resources.memory.swap"),
            ("/linux/resources/cpu", json!({ "quota": 10 }), "linux.resources.cpu.quota"),
            ("/linux/resources/cpu", json!({ "period": 10 }), "linux.resources.cpu.period"),
            (
                "/linux/resources/cpu",
                json!({ "quota": 10_000, "burst": 20_000 }),
                "linux.resources.cpu.burst",
            ),
            ("/linux/resources/cpu", json!({ "cpus": "a-b" }), "linux.resources.cpu.cpus"),
            ("/linux/resources/cpu", json!({ "idle": 2 }), "linux.resources.cpu.idle"),
        ],
    );
}

fn all_processes_are_in_the_limited_cgroups(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t
        .bundle()
        .sh("sleep 600 & sleep 600 & (sleep 600; :) & echo ready; wait")
        .set("/linux/resources/memory/limit", json!(64 * MIB))
        .set("/linux/resources/pids/limit", json!(32));
    let _ = oci.create(&id, &bundle).ok();
    let _ = oci.start(&id).ok();
    let pids = || -> Vec<i32> {
        serde_json::from_value(oci.call(["ps", "--format", "json", &id]).ok().json()).expect("pids")
    };
    let enough = std::time::Duration::from_secs(10);
    let all = hafen_integration::wait_until(enough, || Some(pids()).filter(|p| p.len() == 5));
    let all = all.unwrap_or_else(|| panic!("not five processes: {:?}", pids()));
    for controller in ["", "memory", "pids"] {
        let folders: Vec<PathBuf> = all.iter().map(|p| cgroup::folder(*p, controller)).collect();
        assert!(folders.iter().all(|f| f.ends_with(format!("hafen/{id}"))), "{folders:?}");
    }
    let _ = oci.delete_force(&id).ok();
}
