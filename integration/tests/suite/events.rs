//! What containers take, as clients read it.

use hafen_integration::{Bundle, Case, Oci, Test, Value, cases, cgroup, json};

const MIB: u64 = 1 << 20;

pub(crate) fn trials() -> Vec<Case> {
    cases![
        stats_have_the_names_of_runc(OwnCgroup, Busybox, Program("runc")),
        stats_are_the_kernels_numbers(
            OwnCgroup,
            Busybox,
            Limit("memory"),
            Limit("pids"),
            Limit("cpu")
        ),
        statistics_come_again_and_again(OwnCgroup, Busybox),
        an_oom_kill_is_told(OwnCgroup, Busybox, Limit("memory")),
        what_does_not_run_has_no_events(OwnCgroup, Busybox),
    ]
}

fn started(oci: &Oci, id: &str, bundle: &Bundle) -> i32 {
    let _ = oci.create(id, bundle).ok();
    let _ = oci.start(id).ok();
    oci.pid(id)
}

fn stats(oci: &Oci, id: &str) -> Value {
    let output = oci.call(["events", "--stats", id]).ok();
    assert_eq!(output.stdout.lines().count(), 1, "{output}");
    let event = output.json();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(id)));
    event["data"].clone()
}

/// All names in a document but those of its lists.
fn names(value: &Value, prefix: &str, found: &mut Vec<String>) {
    if let Some(map) = value.as_object() {
        for (key, value) in map {
            let path = format!("{prefix}/{key}");
            names(value, &path, found);
            found.push(path);
        }
    }
}

fn stats_have_the_names_of_runc(t: &Test) {
    let bundle = t
        .bundle()
        .args(["/inside", "sleep", "600"])
        .set("/linux/resources/memory/limit", json!(64 * MIB))
        .set("/linux/resources/pids/limit", json!(32));
    let both = [t.oci(), t.peer("runc")].map(|oci| {
        let id = t.id();
        let _ = started(&oci, &id, &bundle);
        let stats = stats(&oci, &id);
        let _ = oci.delete_force(&id).ok();
        let mut found = Vec::new();
        names(&stats, "", &mut found);
        found
    });
    let [ours, runcs] = both;
    // Numbers of v1 folders that we do not make: processor time by processor, limits that nobody asked for. Names of
    // `memory.stat` come and go with the kernel and the moment.
    let own = |name: &&String| {
        !name.contains("percpu")
            && !name.starts_with("/memory/raw/")
            && !name.starts_with("/blkio/")
            && !name.starts_with("/cpuset/")
            && !name.starts_with("/hugetlb/")
    };
    for name in runcs.iter().filter(own) {
        let optional = [
            "/memory/cache",
            "/memory/usage/max",
            "/memory/swap/max",
            "/memory/swap/usage",
            "/memory/kernel/usage",
            "/memory/kernel/max",
        ];
        assert!(
            ours.contains(name) || optional.contains(&name.as_str()),
            "{name} is missing: {ours:?}"
        );
    }
}

fn stats_are_the_kernels_numbers(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t
        .bundle()
        .sh("sleep 600 & /inside burn 0.3 >/dev/null; /inside eat 33554432 600")
        .set("/linux/resources/memory/limit", json!(64 * MIB))
        .set("/linux/resources/cpu/quota", json!(50_000))
        .set("/linux/resources/pids/limit", json!(32));
    let pid = started(&oci, &id, &bundle);
    let mut seen = Value::Null;
    let found = hafen_integration::wait_until(std::time::Duration::from_secs(20), || {
        seen = stats(&oci, &id);
        seen["memory"]["usage"]["usage"].as_u64().is_some_and(|u| u > 32 * MIB).then_some(())
    });
    assert!(found.is_some(), "{seen}");
    assert_eq!(seen["memory"]["usage"]["limit"], 64 * MIB, "{seen}");
    assert_eq!(
        (&seen["pids"]["current"], &seen["pids"]["limit"]),
        (&json!(2), &json!(32)),
        "{seen}"
    );
    assert!(seen["cpu"]["usage"]["total"].as_u64().is_some_and(|n| n > 50_000_000), "{seen}");
    assert!(seen["cpu"]["throttling"]["periods"].as_u64().is_some_and(|n| n > 0), "{seen}");
    let raw = seen["memory"]["raw"].as_object().expect("raw numbers");
    let stat = cgroup::value(&cgroup::folder(pid, "memory"), "memory.stat");
    assert_eq!(raw.len(), stat.lines().count());
    assert_eq!(seen["network_interfaces"], json!([]), "{seen}");
    let _ = oci.delete_force(&id).ok();
}

fn statistics_come_again_and_again(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = started(&oci, &id, &t.bundle().args(["/inside", "sleep", "600"]));
    let mut events = oci.spawn(["events", "--interval", "100ms", &id]);
    let three = hafen_integration::wait_until(std::time::Duration::from_secs(10), || {
        (events.stdout().lines().count() >= 3).then_some(())
    });
    assert!(three.is_some() && !events.has_ended(), "{}", events.stdout());
    // No lock is held meanwhile, and the end of the container is the end of its events.
    let _ = oci.call(["pause", &id]).ok();
    let _ = oci.delete_force(&id).ok();
    let output = events.wait().ok();
    for line in output.stdout.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!(event["type"], "stats", "{line}");
    }
}

fn an_oom_kill_is_told(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t
        .bundle()
        .args(["/inside", "eat", "268435456"])
        .set("/linux/resources/memory/limit", json!(64 * MIB));
    let _ = oci.create(&id, &bundle).ok();
    let mut events = oci.spawn(["events", "--interval", "100ms", &id]);
    events.await_text("stats");
    let _ = oci.start(&id).ok();
    let output = events.wait().ok();
    let last = output.stdout.lines().last().unwrap_or_default();
    let ooms: Vec<&str> = output.stdout.lines().filter(|l| l.contains("\"oom\"")).collect();
    assert!(!ooms.is_empty(), "{output}");
    let oom: Value = serde_json::from_str(ooms[0]).expect("JSON");
    assert_eq!(oom, json!({ "type": "oom", "id": id }), "{last}");
    let _ = oci.delete(&id).ok();
}

fn what_does_not_run_has_no_events(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    oci.call(["events", &id]).error_with(["does not exist"]);
    let _ = oci.create(&id, &t.bundle().args(["/inside", "exit", "0"])).ok();
    let _ = oci.start(&id).ok();
    oci.await_status(&id, "stopped");
    oci.call(["events", "--stats", &id]).error_with(["is not running"]);
    let _ = oci.delete(&id).ok();
    oci.call(["events", "--interval", "0s", "x"]).error_with(["does not exist"]);
}
