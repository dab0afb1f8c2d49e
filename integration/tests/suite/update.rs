//! Other limits for containers that run, as their processes meet them and as the kernel's files hold them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hafen_integration::{Bundle, Case, Oci, Test, Value, cases, cgroup, json, wait_until};

const MIB: u64 = 1 << 20;

pub(crate) fn trials() -> Vec<Case> {
    cases![
        a_lower_memory_limit_is_met(OwnCgroup, Busybox, Limit("memory")),
        a_lower_pids_limit_is_met(OwnCgroup, Busybox, Limit("pids")),
        a_quota_is_met(OwnCgroup, Busybox, Limit("cpu")),
        documents_from_a_file_and_from_stdin(OwnCgroup, Busybox, Limit("pids")),
        each_option_is_written(
            OwnCgroup,
            Busybox,
            Limit("cpu"),
            Limit("memory"),
            Limit("pids"),
            Limit("cpuset")
        ),
        only_what_is_named_is_changed(
            OwnCgroup,
            Busybox,
            Limit("cpu"),
            Limit("memory"),
            Limit("pids")
        ),
        limits_go_up_and_down_together(OwnCgroup, Busybox, Limit("cpu"), Limit("memory")),
        a_failure_leaves_all_as_it_was(OwnCgroup, Busybox, Limit("cpuset"), Limit("pids")),
        a_new_folder_of_a_hybrid_host_takes_all_processes(Root, Busybox, Hybrid, Limit("cpuset")),
        a_new_folder_that_fails_is_gone(Root, Busybox, Hybrid, Limit("pids"), Limit("cpuset")),
        a_new_folder_of_somebody_else_is_refused(Root, Busybox, Hybrid, Limit("cpuset")),
        a_runtime_that_dies_on_the_way_leaves_nothing(Root, Busybox, Hybrid, Limit("cpuset")),
        a_controller_is_switched_on(OwnCgroup, Busybox, Unified, Limit("cpuset")),
        device_rules_are_replaced(Root, Busybox),
        unified_files_are_written(OwnCgroup, Busybox, Unified, Limit("memory")),
        a_limit_below_the_usage_can_be_refused(OwnCgroup, Busybox, Limit("memory")),
        what_cannot_be_is_refused(OwnCgroup, Busybox, Limit("memory")),
        states_that_can_be_updated(OwnCgroup, Busybox, Limit("pids")),
    ]
}

fn started(oci: &Oci, id: &str, bundle: &Bundle) -> i32 {
    let _ = oci.create(id, bundle).ok();
    let _ = oci.start(id).ok();
    oci.pid(id)
}

/// Started and asleep.
fn asleep(t: &Test, oci: &Oci) -> (String, i32) {
    let id = t.id();
    let pid = started(oci, &id, &t.bundle().args(["/inside", "sleep", "600"]));
    (id, pid)
}

fn update(oci: &Oci, id: &str, words: &[&str]) {
    let all = ["update"].into_iter().chain(words.iter().copied()).chain([id]);
    let _ = oci.call(all).ok();
}

fn held(pid: i32, controller: &str, v2: &str, v1: &str) -> String {
    let file = if cgroup::v1(controller).is_none() { v2 } else { v1 };
    cgroup::value(&cgroup::folder(pid, controller), file)
}

/// A bundle whose program waits until the file is there that is told as well, before `script` goes on.
fn gated(t: &Test, script: &str) -> (Bundle, PathBuf) {
    let gate = t.dir().join("gate");
    fs::create_dir_all(&gate).expect("make a folder");
    let mount =
        json!({ "destination": "/mnt", "type": "bind", "source": gate, "options": ["bind"] });
    let wait = "echo ready; until [ -e /mnt/open ]; do sleep 0.05; done;";
    (t.bundle().push("/mounts", mount).sh(&format!("{wait} {script}")), gate.join("open"))
}

/// Runs a script whose container is updated before it goes on.
fn after_update(t: &Test, script: &str, words: &[&str]) -> hafen_integration::Output {
    let (oci, id) = (t.oci(), t.id());
    let (bundle, gate) = gated(t, script);
    let mut run = oci.spawn(["run", "--bundle", &bundle.path().display().to_string(), &id]);
    run.await_text("ready");
    update(&oci, &id, words);
    fs::write(gate, "").expect("open the gate");
    run.wait()
}

fn a_lower_memory_limit_is_met(t: &Test) {
    let output = after_update(t, "exec /inside eat 268435456", &["--memory", "64M"]);
    let output = output.code(128 + 9);
    assert!(!output.stdout.contains("ate"), "{output}");
}

fn a_lower_pids_limit_is_met(t: &Test) {
    let output = after_update(t, "exec /inside fork 100", &["--pids-limit", "16"]).ok();
    let line = output.stdout.lines().last().unwrap_or_default();
    let forks: Value = serde_json::from_str(line).expect("JSON");
    assert!(forks["started"].as_u64().is_some_and(|n| (1..16).contains(&n)), "{forks}");
}

fn a_quota_is_met(t: &Test) {
    let output = after_update(t, "exec /inside burn 2", &["--cpu-quota", "10000"]).ok();
    let line = output.stdout.lines().last().unwrap_or_default();
    let burnt: Value = serde_json::from_str(line).expect("JSON");
    let share = burnt["cpu_usec"].as_f64().expect("a number")
        / burnt["wall_usec"].as_f64().expect("a number");
    assert!(share <= 0.25, "used {share} of a processor");
}

fn documents_from_a_file_and_from_stdin(t: &Test) {
    let oci = t.oci();
    let (id, pid) = asleep(t, &oci);
    let pids = || held(pid, "pids", "pids.max", "pids.max");
    let document = |limit: u64| json!({ "pids": { "limit": limit } }).to_string();
    let _ = oci.command(["update", "--resources", "-", &id]).stdin(document(20)).output().ok();
    assert_eq!(pids(), "20");
    let file = t.dir().join("resources.json");
    fs::write(&file, document(21)).expect("write a document");
    let _ = oci.call(["update", &format!("--resources={}", file.display()), &id]).ok();
    assert_eq!(pids(), "21");
    let _ = oci.command(["update", "-r", "-", &id]).stdin("{}").output().ok();
    assert_eq!(pids(), "21");
    let bad = |text: &str| oci.command(["update", "-r", "-", &id]).stdin(text).output();
    bad("{").error_with(["not JSON"]);
    bad(r#"{"pids":{"limit":"many"}}"#).error_with(["linux.resources.pids.limit"]);
    let both = oci.call(["update", "-r", &file.display().to_string(), "--pids-limit", "7", &id]);
    both.error_with(["--resources", "--pids-limit"]);
    assert_eq!(pids(), "21");
    let _ = oci.delete_force(&id).ok();
}

fn each_option_is_written(t: &Test) {
    let oci = t.oci();
    let (id, pid) = asleep(t, &oci);
    let v2 = |controller: &str| cgroup::v1(controller).is_none();
    let table: [(&str, &str, &str, &str, &str, &str); 10] = [
        ("--memory", "64M", "memory", "memory.max", "memory.limit_in_bytes", "67108864"),
        (
            "--memory-reservation",
            "32M",
            "memory",
            "memory.low",
            "memory.soft_limit_in_bytes",
            "33554432",
        ),
        ("--cpu-quota", "50000", "cpu", "cpu.max", "cpu.cfs_quota_us", "50000"),
        ("--cpu-period", "200000", "cpu", "cpu.max", "cpu.cfs_period_us", "200000"),
        ("--cpu-burst", "10000", "cpu", "cpu.max.burst", "cpu.cfs_burst_us", "10000"),
        ("--cpu-share", "512", "cpu", "cpu.weight", "cpu.shares", "512"),
        ("--cpu-shares", "1024", "cpu", "cpu.weight", "cpu.shares", "1024"),
        ("--cpuset-cpus", "0", "cpuset", "cpuset.cpus", "cpuset.cpus", "0"),
        ("--cpuset-mems", "0", "cpuset", "cpuset.mems", "cpuset.mems", "0"),
        ("--pids-limit", "33", "pids", "pids.max", "pids.max", "33"),
    ];
    for (option, value, controller, new, old, wanted) in table {
        update(&oci, &id, &[option, value]);
        let wanted = match (v2(controller), option) {
            (true, "--cpu-quota") => "50000 100000",
            (true, "--cpu-period") => "50000 200000",
            (true, "--cpu-share") => "59",
            (true, "--cpu-shares") => "100",
            _ => wanted,
        };
        assert_eq!(held(pid, controller, new, old), wanted, "{option}");
    }
    // Weight is locked while idle (Documentation/scheduler/sched-design-CFS.rst), and free again after.
    for (value, wanted) in [("1", "1"), ("0", "0")] {
        update(&oci, &id, &["--cpu-idle", value]);
        assert_eq!(held(pid, "cpu", "cpu.idle", "cpu.idle"), wanted);
    }
    update(&oci, &id, &["--pids-limit", "-1", "--cpu-quota", "-1", "--memory", "-1"]);
    assert_eq!(held(pid, "pids", "pids.max", "pids.max"), "max");
    assert_eq!(
        held(pid, "cpu", "cpu.max", "cpu.cfs_quota_us"),
        if v2("cpu") { "max 200000" } else { "-1" }
    );
    let _ = oci.delete_force(&id).ok();
}

fn only_what_is_named_is_changed(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t
        .bundle()
        .args(["/inside", "sleep", "600"])
        .set("/linux/resources/cpu", json!({ "quota": 50_000, "period": 200_000, "shares": 512 }))
        .set("/linux/resources/memory/limit", json!(64 * MIB))
        .set("/linux/resources/pids/limit", json!(32));
    let pid = started(&oci, &id, &bundle);
    let all = || {
        let files = [
            ("cpu", "cpu.weight", "cpu.shares"),
            ("cpu", "cpu.max", "cpu.cfs_quota_us"),
            ("cpu", "cpu.max", "cpu.cfs_period_us"),
            ("memory", "memory.max", "memory.limit_in_bytes"),
            ("pids", "pids.max", "pids.max"),
        ];
        files.map(|(controller, v2, v1)| held(pid, controller, v2, v1))
    };
    let before = all();
    update(&oci, &id, &["--memory", "96M"]);
    let mut wanted = before.clone();
    wanted[3] = (96 * MIB).to_string();
    assert_eq!(all(), wanted);
    update(&oci, &id, &["--memory", "64M"]);
    assert_eq!(all(), before);
    // One half of the pair keeps the other.
    update(&oci, &id, &["--cpu-quota", "60000"]);
    assert!(all()[1].starts_with("60000") && all()[2].ends_with("200000"), "{:?}", all());
    update(&oci, &id, &["--cpu-period", "100000"]);
    assert!(all()[1].starts_with("60000") && all()[2].ends_with("100000"), "{:?}", all());
    let _ = oci.delete_force(&id).ok();
}

/// The kernel checks memory against memory with swap, and burst against quota: up needs another order than down.
fn limits_go_up_and_down_together(t: &Test) {
    let oci = t.oci();
    let (id, pid) = asleep(t, &oci);
    let swap = cgroup::v1("memory").map_or_else(
        || cgroup::folder(pid, "").join("memory.swap.max").exists(),
        |mount| mount.join("memory.memsw.limit_in_bytes").exists(),
    );
    for factor in [1, 4, 2, 8, 1] {
        let (memory, both) = ((factor * 32 * MIB).to_string(), (factor * 48 * MIB).to_string());
        let (quota, burst) = ((factor * 10_000).to_string(), (factor * 9_000).to_string());
        let mut words = vec!["--memory", &memory, "--cpu-quota", &quota, "--cpu-burst", &burst];
        if swap {
            words.extend(["--memory-swap", &both]);
        }
        update(&oci, &id, &words);
        assert_eq!(held(pid, "memory", "memory.max", "memory.limit_in_bytes"), memory);
        assert_eq!(held(pid, "cpu", "cpu.max.burst", "cpu.cfs_burst_us"), burst);
        if swap {
            let wanted =
                if cgroup::v1("memory").is_some() { both } else { (factor * 16 * MIB).to_string() };
            assert_eq!(
                held(pid, "memory", "memory.swap.max", "memory.memsw.limit_in_bytes"),
                wanted
            );
        }
    }
    let _ = oci.delete_force(&id).ok();
}

fn a_failure_leaves_all_as_it_was(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t
        .bundle()
        .args(["/inside", "sleep", "600"])
        .set("/linux/resources/cpu/cpus", json!("0"))
        .set("/linux/resources/pids/limit", json!(32));
    let pid = started(&oci, &id, &bundle);
    let output = oci.call(["update", "--pids-limit", "16", "--cpuset-cpus", "900", &id]);
    output.error_with(["cpuset.cpus", "900", "the container is as it was before"]);
    assert_eq!(held(pid, "pids", "pids.max", "pids.max"), "32");
    assert_eq!(held(pid, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    let _ = oci.delete_force(&id).ok();
}

fn claims(oci: &Oci, id: &str) -> String {
    let plan = fs::read_to_string(oci.root().join(id).join("plan.json")).expect("a plan");
    let plan: Value = serde_json::from_str(&plan).expect("JSON");
    plan["claims"].to_string()
}

fn a_new_folder_of_a_hybrid_host_takes_all_processes(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = started(&oci, &id, &t.bundle().sh("sleep 600 & sleep 600 & (sleep 600; :) & wait"));
    let pids = || -> Vec<i32> {
        serde_json::from_value(oci.call(["ps", "--format", "json", &id]).ok().json()).expect("pids")
    };
    let all = wait_until(Duration::from_secs(10), || Some(pids()).filter(|p| p.len() == 5));
    let all = all.unwrap_or_else(|| panic!("not five processes: {:?}", pids()));
    assert!(!cgroup::folder(all[0], "cpuset").ends_with(&id));
    update(&oci, &id, &["--cpuset-cpus", "0"]);
    for pid in &all {
        let folder = cgroup::folder(*pid, "cpuset");
        assert!(folder.ends_with(format!("hafen/{id}")), "{}", folder.display());
    }
    let folder = cgroup::folder(all[0], "cpuset");
    assert_eq!(cgroup::value(&folder, "cgroup.procs").lines().count(), 5);
    assert!(claims(&oci, &id).contains(&folder.display().to_string()));
    // The second time there is nothing to be made.
    update(&oci, &id, &["--cpuset-mems", "0"]);
    assert_eq!(cgroup::value(&folder, "cpuset.mems"), "0");
    let _ = oci.delete_force(&id).ok();
    assert!(!folder.exists(), "{} remains", folder.display());
}

fn a_new_folder_that_fails_is_gone(t: &Test) {
    let oci = t.oci();
    let (id, pid) = asleep(t, &oci);
    let state = || {
        let pids = cgroup::folder(pid, "pids");
        (claims(&oci, &id), cgroup::value(&pids, "pids.max"), cgroup::folder(pid, "cpuset"))
    };
    let before = state();
    let output = oci.call(["update", "--pids-limit", "16", "--cpuset-cpus", "900", &id]);
    output.error_with(["cpuset.cpus", "900", "the container is as it was before"]);
    assert_eq!(state(), before);
    let folder = cgroup::v1("cpuset").expect("it is v1").join("hafen").join(&id);
    assert!(!folder.exists(), "{} remains", folder.display());
    let _ = oci.delete_force(&id).ok();
}

fn a_new_folder_of_somebody_else_is_refused(t: &Test) {
    let oci = t.oci();
    let (id, pid) = asleep(t, &oci);
    let top = cgroup::v1("cpuset").expect("it is v1");
    let folder = top.join("hafen").join(&id);
    // Nothing can enter before it has CPUs and memory nodes.
    for folder in [top.join("hafen"), folder.clone()] {
        fs::create_dir_all(&folder).expect("make a cgroup");
        for file in ["cpuset.cpus", "cpuset.mems"] {
            fs::write(folder.join(file), cgroup::value(&top, file)).expect("as above");
        }
    }
    let mut other = std::process::Command::new("sleep").arg("600").spawn().expect("sleep");
    fs::write(folder.join("cgroup.procs"), other.id().to_string()).expect("move");
    oci.call(["update", "--cpuset-cpus", "0", &id]).error_with(["in use by", "sleep"]);
    assert!(!claims(&oci, &id).contains(&folder.display().to_string()));
    assert!(!cgroup::folder(pid, "cpuset").ends_with(&id));
    let _ = oci.delete_force(&id).ok();
    assert!(matches!(other.try_wait(), Ok(None)), "the other process was killed");
    other.kill().and_then(|()| other.wait()).expect("end it");
    fs::remove_dir(&folder).expect("remove the cgroup");
    let _ = fs::remove_dir(folder.parent().expect("it has one"));
}

fn a_runtime_that_dies_on_the_way_leaves_nothing(t: &Test) {
    let oci = t.oci();
    for point in 0.. {
        let (id, _) = asleep(t, &oci);
        let fault = oci.clone().env("HAFEN_FAULT", point.to_string());
        let survived = fault.call(["update", "--cpuset-cpus", "0", &id]).exit == Some(0);
        let _ = oci.delete_force(&id).ok();
        let folder = cgroup::v1("cpuset").expect("it is v1").join("hafen").join(&id);
        assert!(!folder.exists(), "{} remains after a death at {point}", folder.display());
        if survived {
            assert!(point > 0, "there is nowhere to die");
            return;
        }
    }
}

fn a_controller_is_switched_on(t: &Test) {
    let oci = t.oci();
    let (id, pid) = asleep(t, &oci);
    let folder = cgroup::folder(pid, "");
    update(&oci, &id, &["--cpuset-cpus", "0"]);
    assert_eq!(cgroup::value(&folder, "cpuset.cpus"), "0");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    let _ = oci.delete_force(&id).ok();
}

/// 240 is for experiments (Linux, Documentation/admin-guide/devices.txt): a node that may be opened answers ENXIO.
fn device_rules_are_replaced(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let sets = ["bounding", "effective", "permitted"];
    let bundle = sets.iter().fold(
        t.bundle().sh("mknod /dev/x c 240 77; while :; do cat /dev/x 2>/dev/shm/said; mv /dev/shm/said /dev/shm/out; sleep 0.05; done"),
        |b, set| b.push(&format!("/process/capabilities/{set}"), json!("CAP_MKNOD")),
    );
    let bundle = bundle
        .push("/mounts", json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs" }));
    let pid = started(&oci, &id, &bundle);
    let says = |words: &str| {
        let file = format!("/proc/{pid}/root/dev/shm/out");
        let said = || fs::read_to_string(&file).unwrap_or_default();
        let found = wait_until(Duration::from_secs(10), || said().contains(words).then_some(()));
        assert!(found.is_some(), "wanted {words:?}: {:?}", said());
    };
    let rules = |rules: Value| {
        let document = json!({ "devices": rules }).to_string();
        let _ = oci.command(["update", "-r", "-", &id]).stdin(document).output().ok();
    };
    let nothing = json!({ "allow": false, "access": "rwm" });
    let this = json!({ "allow": true, "type": "c", "major": 240, "minor": 77, "access": "r" });
    says("Operation not permitted");
    rules(json!([nothing, this]));
    says("No such device or address");
    // A document that says nothing about devices leaves them alone.
    let _ = oci.command(["update", "-r", "-", &id]).stdin("{}").output().ok();
    says("No such device or address");
    rules(json!([nothing]));
    says("Operation not permitted");
    rules(json!([{ "allow": true, "access": "rwm" }]));
    says("No such device or address");
    rules(json!([nothing]));
    says("Operation not permitted");
    let _ = oci.delete_force(&id).ok();
}

fn unified_files_are_written(t: &Test) {
    let oci = t.oci();
    let (id, pid) = asleep(t, &oci);
    let files = json!({ "unified": { "memory.high": "67108864", "pids.max": "77" } });
    let _ = oci.command(["update", "-r", "-", &id]).stdin(files.to_string()).output().ok();
    let folder = cgroup::folder(pid, "");
    assert_eq!(cgroup::value(&folder, "memory.high"), "67108864");
    assert_eq!(cgroup::value(&folder, "pids.max"), "77");
    let _ = oci.delete_force(&id).ok();
}

fn a_limit_below_the_usage_can_be_refused(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t
        .bundle()
        .args(["/inside", "eat", &(64 * MIB).to_string(), "600"])
        .set("/linux/resources/memory/limit", json!(256 * MIB));
    let pid = started(&oci, &id, &bundle);
    let usage = || held(pid, "memory", "memory.current", "memory.usage_in_bytes");
    let eaten = wait_until(Duration::from_secs(10), || {
        usage().parse::<u64>().is_ok_and(|u| u > 60 * MIB).then_some(())
    });
    assert!(eaten.is_some(), "it holds {}", usage());
    let document =
        json!({ "memory": { "limit": 16 * MIB, "checkBeforeUpdate": true } }).to_string();
    let output = oci.command(["update", "-r", "-", &id]).stdin(document).output();
    output.error_with(["unable to set memory limit to 16777216 (current usage: "]);
    assert_eq!(oci.status(&id).as_deref(), Some("running"));
    assert_eq!(held(pid, "memory", "memory.max", "memory.limit_in_bytes"), (256 * MIB).to_string());
    let _ = oci.delete_force(&id).ok();
}

fn what_cannot_be_is_refused(t: &Test) {
    let oci = t.oci();
    let (id, _) = asleep(t, &oci);
    let table: [(&[&str], &str); 6] = [
        (&["--memory", "much"], "--memory"),
        (&["--memory-swap", "64M"], "linux.resources.memory.swap"),
        (&["--memory", "64M", "--memory-swap", "32M"], "linux.resources.memory.swap"),
        (&["--cpu-quota", "10"], "linux.resources.cpu.quota"),
        (&["--cpuset-cpus", "a-b"], "linux.resources.cpu.cpus"),
        (&["--kernel-memory", "64M"], "linux.resources.memory.kernel"),
    ];
    for (words, field) in table {
        let all = ["update"].into_iter().chain(words.iter().copied()).chain([id.as_str()]);
        oci.call(all).error_with([field]);
    }
    let _ = oci.delete_force(&id).ok();
}

fn states_that_can_be_updated(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    oci.call(["update", "--pids-limit", "7", &id]).error_with(["does not exist"]);
    let _ = oci.create(&id, &t.bundle().args(["/inside", "sleep", "600"])).ok();
    update(&oci, &id, &["--pids-limit", "7"]);
    let pid = oci.pid(&id);
    assert_eq!(held(pid, "pids", "pids.max", "pids.max"), "7");
    let _ = oci.start(&id).ok();
    let _ = oci.call(["pause", &id]).ok();
    update(&oci, &id, &["--pids-limit", "8"]);
    assert_eq!(held(pid, "pids", "pids.max", "pids.max"), "8");
    let _ = oci.kill(&id, "KILL").ok();
    oci.await_status(&id, "stopped");
    oci.call(["update", "--pids-limit", "7", &id]).error_with(["container not running"]);
    let _ = oci.delete(&id).ok();
}
