//! Limits as real processes meet them, and as the kernel's files hold them.

use std::path::PathBuf;

use hafen_integration::{Bundle, Case, Oci, Output, Running, Test, Value, cases, cgroup, json};

const MIB: u64 = 1 << 20;

pub(crate) fn trials() -> Vec<Case> {
    cases![
        memory_limit_kills_and_the_evidence_is_told(Launcher, Busybox, Limit("memory")),
        memory_below_the_limit_is_left_alone(Launcher, Busybox, Limit("memory")),
        memory_of_a_child_counts_and_its_parent_survives(Launcher, Busybox, Limit("memory")),
        memory_in_a_tmpfs_counts(Launcher, Busybox, Limit("memory")),
        memory_too_small_to_start_is_told(Launcher, Busybox, Limit("memory")),
        swap_limit_is_written(Launcher, Busybox, Unified, Limit("memory")),
        oom_group_ends_the_whole_container(Launcher, Busybox, Unified, Limit("memory")),
        unified_files_are_written_verbatim(Launcher, Busybox, Unified, Limit("memory")),
        unified_goes_before_the_other_fields(Launcher, Busybox, Unified, Limit("memory")),
        cpu_quota_is_the_share_that_is_got(Launcher, Busybox, Limit("cpu")),
        cpu_quota_throttles_and_the_evidence_is_told(Launcher, Busybox, Limit("cpu")),
        cpu_shares_divide_a_processor(Launcher, Busybox, Limit("cpu"), Limit("cpuset")),
        cpu_shares_are_the_kernels_weight(Launcher, Busybox, Limit("cpu")),
        cpu_burst_is_written(Launcher, Busybox, Limit("cpu")),
        cpu_idle_is_written(Launcher, Busybox, Limit("cpu")),
        cpuset_holds_inside(Launcher, Busybox, Limit("cpuset")),
        cpuset_that_the_machine_lacks_is_refused(Launcher, Busybox, Limit("cpuset")),
        pids_limit_stops_forks(Launcher, Busybox, Limit("pids")),
        pids_limit_of_minus_one_is_none(Launcher, Busybox, Limit("pids")),
        default_devices_can_be_used(Launcher, Busybox),
        a_denied_device_is_refused_with_eperm(Root, Busybox),
        device_rules_tell_access_apart(Root, Busybox),
        device_rules_that_only_a_program_can_say(Root, Busybox),
        device_rules_are_shown_by_v1(Root, Busybox, That("v1 devices", has_v1_devices)),
        what_a_unified_host_cannot_enforce_is_refused(Launcher, Busybox, Unified),
        what_a_hybrid_host_cannot_enforce_is_refused(Root, Busybox, Hybrid),
        what_no_kernel_enforces_is_refused(Root, Busybox),
        huge_pages_are_bounded(
            Root,
            Busybox,
            Limit("hugetlb"),
            That("huge pages to reserve", has_huge_pages)
        ),
        huge_pages_of_a_size_that_is_not_there(Root, Busybox, Limit("hugetlb")),
        reading_a_disk_is_slowed_down(
            Root,
            Busybox,
            That("a disk and a controller for it", has_disk)
        ),
        a_limit_on_a_disk_can_be_updated(
            Root,
            Busybox,
            That("a disk and a controller for it", has_disk)
        ),
        io_max_through_unified(
            Root,
            Busybox,
            Cgroup2("io"),
            That("a disk and a controller for it", has_disk)
        ),
        io_weight_is_written(Root, Busybox, That("weights of block I/O", has_io_weight)),
        realtime_runtime_is_met(
            Root,
            Busybox,
            Hybrid,
            That("realtime groups", has_realtime_groups)
        ),
        rdma_limits_are_for_devices_that_are_there(Root, Busybox, Cgroup2("rdma")),
        network_class_and_priorities_are_written(
            Root,
            Busybox,
            That("v1 net_cls and net_prio", has_network_v1)
        ),
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
    let (_, record) = burn(t, 10_000);
    // Of its whole life: what a busy machine lets a thread use beyond its quota, the kernel takes back later.
    let share = number(&record, "cpu_usec") as f64
        / record["wall_usec"].as_f64().expect("a number").max(1.0);
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

/// The v1 controller knows no exception from an exception.
fn split_rules() -> Value {
    json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 240, "access": "rw" },
        { "allow": false, "type": "c", "major": 240, "minor": 78, "access": "w" }
    ])
}

fn device_rules_that_only_a_program_can_say(t: &Test) {
    let script = "mknod /dev/x c 240 77; mknod /dev/y c 240 78; cat /dev/x; cat /dev/y; echo n >/dev/x; echo n >/dev/y";
    let bundle = with_mknod(t).set("/linux/resources/devices", split_rules()).sh(script);
    let output = t.oci().run(&t.id(), &bundle).code(1);
    let denied: Vec<bool> =
        output.stderr.lines().map(|line| line.contains("Operation not permitted")).collect();
    assert_eq!(denied, [false, false, false, true], "{output}");
}

fn has_v1_devices() -> bool {
    cgroup::v1("devices").is_some()
}

fn device_rules_are_shown_by_v1(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let rules = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "b", "major": 240, "minor": 7, "access": "r" }
    ]);
    let bundle =
        t.bundle().set("/linux/resources/devices", rules).args(["/inside", "sleep", "600"]);
    let _ = oci.create(&id, &bundle).ok();
    let folder = cgroup::folder(oci.pid(&id), "devices");
    let list = || cgroup::value(&folder, "devices.list");
    assert_eq!(list().lines().next(), Some("b 240:7 r"), "{}", list());
    assert!(list().contains("\nc 1:3 rwm\n"), "{}", list());
    let update = |rules: Value| {
        let document = json!({ "devices": rules }).to_string();
        oci.command(["update", "-r", "-", &id]).stdin(document).output()
    };
    let other = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "b", "major": 240, "minor": 8, "access": "rw" }
    ]);
    let _ = update(other).ok();
    assert!(list().contains("b 240:8 rw") && !list().contains("240:7"), "{}", list());
    let before = list();
    update(split_rules()).error_with(["linux.resources.devices", "cannot except c 240:78 w"]);
    assert_eq!(list(), before);
    let _ = oci.delete_force(&id).ok();
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
            (
                "/linux/resources/cpu/realtimeRuntime",
                json!(950_000),
                "linux.resources.cpu.realtimeRuntime",
            ),
            (
                "/linux/resources/network/classID",
                json!(1_048_577),
                "linux.resources.network.classID",
            ),
            (
                "/linux/resources/network/priorities",
                json!([{ "name": "lo", "priority": 1 }]),
                "linux.resources.network.priorities",
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
    let rdma = json!({ "mlx5_1": { "hcaHandles": 1 } });
    if !cgroup::has("rdma") {
        refused(t, &[("/linux/resources/rdma", rdma, "linux.resources.rdma")]);
    }
    if !cgroup::has("net_cls") {
        let field = "linux.resources.network.classID";
        refused(t, &[("/linux/resources/network/classID", json!(1_048_577), field)]);
    }
}

fn what_no_kernel_enforces_is_refused(t: &Test) {
    let device = json!([{ "major": 8, "minor": 0, "leafWeight": 100 }]);
    refused(
        t,
        &[
            ("/linux/resources/memory/kernel", json!(MIB), "linux.resources.memory.kernel"),
            (
                "/linux/resources/blockIO/leafWeight",
                json!(100),
                "linux.resources.blockIO.leafWeight",
            ),
            (
                "/linux/resources/blockIO/weightDevice",
                device,
                "linux.resources.blockIO.weightDevice[0].leafWeight",
            ),
        ],
    );
}

/// Number of pages of 2 MiB, put back at the end.
struct Reserved(String);

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

impl Reserved {
    fn new(count: u64) -> Option<Self> {
        let before = std::fs::read_to_string(HUGE_PAGES).ok()?.trim().to_owned();
        let reserved = Self(before);
        let more = reserved.0.parse::<u64>().ok()? + count;
        // The kernel reserves as many as it finds, and finds more in compacted memory.
        let enough = hafen_integration::wait_until(std::time::Duration::from_secs(5), || {
            std::fs::write(HUGE_PAGES, more.to_string()).ok()?;
            let found = std::fs::read_to_string(HUGE_PAGES).ok()?;
            let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
            (found.trim() == more.to_string()).then_some(())
        });
        enough.map(|()| reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = std::fs::write(HUGE_PAGES, &self.0);
    }
}

fn has_huge_pages() -> bool {
    Reserved::new(4).is_some()
}

/// Controllers that the root of the cgroup2 tree gives to its children: the runtime switches on what it needs, for good.
struct Given {
    file: PathBuf,
    before: String,
}

impl Given {
    fn now() -> Option<Self> {
        let unified = cgroup::hierarchies().into_iter().find(cgroup::Hierarchy::is_unified)?;
        let file = unified.mount.join("cgroup.subtree_control");
        let before = std::fs::read_to_string(&file).ok()?;
        Some(Self { file, before })
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let now = std::fs::read_to_string(&self.file).unwrap_or_default();
        let had = |name: &str| self.before.split_whitespace().any(|before| before == name);
        for name in now.split_whitespace().filter(|name| !had(name)) {
            let _ = std::fs::write(&self.file, format!("-{name}"));
        }
    }
}

fn huge_pages_are_bounded(t: &Test) {
    let _given = Given::now();
    let _pages = Reserved::new(4).expect("pages");
    let mount = json!({ "destination": "/mnt", "type": "hugetlbfs", "source": "none", "options": ["pagesize=2M"] });
    let bundle = |limit: u64| {
        t.bundle()
            .push("/mounts", mount.clone())
            .set("/linux/resources/hugepageLimits", json!([{ "pageSize": "2MB", "limit": limit }]))
            .sh("fallocate -l 2097152 /mnt/one && echo one; fallocate -l 2097152 /mnt/two && echo two")
    };
    assert_eq!(t.oci().run(&t.id(), &bundle(8 * MIB)).ok().stdout, "one\ntwo\n");
    let output = t.oci().run(&t.id(), &bundle(2 * MIB)).code(1);
    assert_eq!(output.stdout, "one\n", "{output}");
    assert!(output.stderr.contains("No space left on device"), "{output}");
}

fn huge_pages_of_a_size_that_is_not_there(t: &Test) {
    let pages = |size: &str| json!([{ "pageSize": size, "limit": 0 }]);
    let field = "linux.resources.hugepageLimits";
    refused(
        t,
        &[
            ("/linux/resources/hugepageLimits", pages("3MB"), field),
            ("/linux/resources/hugepageLimits", pages("big"), field),
        ],
    );
}

/// Name, major and minor number of a disk that can be read.
fn disk() -> Option<(String, u64, u64)> {
    let disks = std::fs::read_dir("/sys/block").ok()?.flatten();
    let mut names: Vec<String> =
        disks.map(|d| d.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|n| ["vd", "sd", "nvme"].iter().any(|p| n.starts_with(p)));
    names.sort();
    names.into_iter().find_map(|name| {
        let number = std::fs::read_to_string(format!("/sys/block/{name}/dev")).ok()?;
        let (major, minor) = number.trim().split_once(':')?;
        let size = std::fs::read_to_string(format!("/sys/block/{name}/size")).ok()?;
        let big = size.trim().parse::<u64>().ok()? * 512 > 64 * MIB;
        big.then_some((name, major.parse().ok()?, minor.parse().ok()?))
    })
}

fn has_disk() -> bool {
    let readable =
        |name: &str| holds_files().is_some() || std::fs::File::open(format!("/dev/{name}")).is_ok();
    disk().is_some_and(|(name, ..)| readable(&name)) && (cgroup::has("io") || cgroup::has("blkio"))
}

/// The disk that tests have their files on, as device number; a machine may not let anybody read it directly.
fn holds_files() -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata("/var/tmp").ok()?.dev();
    let found = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    disk().filter(|(_, major, minor)| (*major, *minor) == found).map(|_| found)
}

/// Reads some mebibytes of the disk, past the page cache.
fn reading(t: &Test, mebibytes: u64) -> Bundle {
    let (_, major, minor) = disk().expect("a disk");
    let read = |path: &str| {
        format!("dd if={path} of=/dev/null bs=64k count={} iflag=direct 2>&1", mebibytes * 16)
    };
    if holds_files().is_some() {
        let bundle = t.bundle().sh(&read("/big"));
        let bytes = vec![7; usize::try_from(mebibytes * MIB).expect("a size")];
        let mut file = std::fs::File::create(bundle.rootfs().join("big")).expect("make a file");
        std::io::Write::write_all(&mut file, &bytes).and_then(|()| file.sync_all()).expect("write");
        return bundle;
    }
    let rule = json!({ "allow": true, "type": "b", "major": major, "minor": minor, "access": "r" });
    let node = json!({ "path": "/dev/disk", "type": "b", "major": major, "minor": minor });
    t.bundle()
        .push("/linux/resources/devices", rule)
        .set("/linux/devices", json!([node]))
        .sh(&read("/dev/disk"))
}

fn throttled(t: &Test, mebibytes: u64, name: &str, rate: u64) -> std::time::Duration {
    let (_, major, minor) = disk().expect("a disk");
    let limit = json!([{ "major": major, "minor": minor, "rate": rate }]);
    let bundle = reading(t, mebibytes).set(&format!("/linux/resources/blockIO/{name}"), limit);
    t.oci().run(&t.id(), &bundle).ok().wall
}

fn reading_a_disk_is_slowed_down(t: &Test) {
    let free = throttled(t, 3, "throttleReadBpsDevice", 0);
    // Three mebibytes at one in a second, the first of which may come at once; 48 reads at 16 in a second.
    for (name, rate) in [("throttleReadBpsDevice", MIB), ("throttleReadIOPSDevice", 16)] {
        let bound = throttled(t, 3, name, rate);
        assert!(
            bound.as_secs_f64() > 1.8 && bound > free,
            "{name}: {bound:?}, and {free:?} without"
        );
    }
}

fn a_limit_on_a_disk_can_be_updated(t: &Test) {
    let (_, major, minor) = disk().expect("a disk");
    let (oci, id) = (t.oci(), t.id());
    let (_, pid) = {
        let bundle = t.bundle().args(["/inside", "sleep", "600"]);
        let _ = oci.create(&id, &bundle).ok();
        (id.clone(), oci.pid(&id))
    };
    let set = |rate: u64| {
        let limit = json!([{ "major": major, "minor": minor, "rate": rate }]);
        let document = json!({ "blockIO": { "throttleReadBpsDevice": limit } }).to_string();
        let _ = oci.command(["update", "-r", "-", &id]).stdin(document).output().ok();
        let (controller, file) = if cgroup::v1("blkio").is_some() {
            ("blkio", "blkio.throttle.read_bps_device")
        } else {
            ("", "io.max")
        };
        held(pid, controller, file)
    };
    assert!(set(MIB).contains("1048576"));
    assert!(set(2 * MIB).contains("2097152"));
    assert!(!set(0).contains("2097152"));
    let _ = oci.delete_force(&id).ok();
}

fn io_max_through_unified(t: &Test) {
    let (_, major, minor) = disk().expect("a disk");
    let line = format!("{major}:{minor} rbps={MIB}");
    let bundle = reading(t, 3).set("/linux/resources/unified", json!({ "io.max": line }));
    let wall = t.oci().run(&t.id(), &bundle).ok().wall;
    assert!(wall.as_secs_f64() > 1.8, "{wall:?}");
}

fn has_io_weight() -> bool {
    cgroup::has("io") || cgroup::v1("blkio").is_some()
}

fn io_weight_is_written(t: &Test) {
    let oci = t.oci();
    let (id, pid) =
        started(t, &oci, &t.bundle().set("/linux/resources/blockIO/weight", json!(500)));
    let folder = cgroup::folder(pid, if cgroup::v1("blkio").is_some() { "blkio" } else { "" });
    let files = [
        ("io.bfq.weight", "default 500"),
        ("io.weight", "default 4950"),
        ("blkio.bfq.weight", "500"),
        ("blkio.weight", "500"),
    ];
    let (file, wanted) = files.iter().find(|(file, _)| folder.join(file).exists()).expect("a file");
    assert_eq!(cgroup::value(&folder, file), *wanted, "{file}");
    let _ = oci.delete_force(&id).ok();
    let field = "linux.resources.blockIO.weight";
    refused(
        t,
        &[
            ("/linux/resources/blockIO/weight", json!(5), field),
            ("/linux/resources/blockIO/weight", json!(1001), field),
        ],
    );
}

fn has_realtime_groups() -> bool {
    cgroup::v1("cpu").is_some_and(|mount| mount.join("cpu.rt_runtime_us").exists())
}

/// At the top: a group has no more than the one above it, and those of containers have none.
fn realtime_runtime_is_met(t: &Test) {
    let burn = |path: String| {
        t.bundle()
            .args(["/inside", "burn", "2"])
            .set("/linux/cgroupsPath", json!(path))
            .set("/process/scheduler", json!({ "policy": "SCHED_FIFO", "priority": 1 }))
            .set(
                "/linux/resources/cpu",
                json!({ "realtimeRuntime": 100_000, "realtimePeriod": 1_000_000 }),
            )
    };
    let id = t.id();
    let burnt = t.oci().run(&id, &burn(format!("/{id}"))).ok().json();
    let used = |name: &str| burnt[name].as_f64().expect("a number");
    assert!(used("cpu_usec") / used("wall_usec") < 0.3, "{burnt}");
    let id = t.id();
    t.oci().run(&id, &burn(format!("/hafen-none/{id}"))).error_with(["cpu.rt_runtime_us"]);
}

fn rdma_limits_are_for_devices_that_are_there(t: &Test) {
    let limit = json!({ "mlx5_99": { "hcaHandles": 1 } });
    refused(t, &[("/linux/resources/rdma", limit, "rdma.max")]);
}

fn has_network_v1() -> bool {
    cgroup::v1("net_cls").is_some() && cgroup::v1("net_prio").is_some()
}

fn network_class_and_priorities_are_written(t: &Test) {
    let oci = t.oci();
    let network = json!({ "classID": 1_048_577, "priorities": [{ "name": "lo", "priority": 7 }] });
    let (id, pid) = started(t, &oci, &t.bundle().set("/linux/resources/network", network));
    assert_eq!(held(pid, "net_cls", "net_cls.classid"), "1048577");
    let map = held(pid, "net_prio", "net_prio.ifpriomap");
    assert!(map.lines().any(|l| l == "lo 7"), "{map}");
    let _ = oci.delete_force(&id).ok();
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
