//! User namespaces with id maps, and time namespaces with offsets, from inside and from outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use hafen_integration::{Bundle, Case, Oci, Test, Value, cases, json};

/// The host's id that stands for root of the namespace, and how many ids it has.
const FIRST: u32 = 100_000;
const COUNT: u32 = 65_536;

pub(crate) fn trials() -> Vec<Case> {
    let time = || std::path::Path::new("/proc/self/ns/time").exists();
    cases![
        root_of_a_user_namespace(Root, Busybox, UserNamespaces),
        user_in_a_user_namespace(Root, Busybox, UserNamespaces),
        files_belong_to_the_mapped_owner(Root, Busybox, UserNamespaces),
        maps_of_several_lines(Root, Busybox, UserNamespaces),
        a_namespace_without_a_root(Root, Busybox, UserNamespaces),
        a_bundle_that_its_root_cannot_reach(Root, Busybox, UserNamespaces),
        without_pivot_root_in_a_user_namespace(Root, Busybox, UserNamespaces),
        devices_are_the_hosts(Root, Busybox, UserNamespaces),
        devices_that_the_host_has_not(Root, Busybox, UserNamespaces),
        masks_and_readonly_paths_in_a_user_namespace(Root, Busybox, UserNamespaces),
        all_capabilities_are_bound_to_the_namespace(Root, Busybox, UserNamespaces),
        sysctl_of_its_own_network(Root, Busybox, UserNamespaces),
        limits_hold_in_a_user_namespace(
            Root,
            Busybox,
            UserNamespaces,
            Limit("memory"),
            Limit("pids")
        ),
        what_only_the_host_may_raise(Root, Busybox, UserNamespaces),
        joined_user_namespace(Root, Busybox, UserNamespaces),
        joined_user_namespace_has_other_maps(Root, Busybox, UserNamespaces),
        new_user_namespace_beside_joined_ones(Root, Busybox, UserNamespaces),
        maps_that_make_no_sense(Root, Busybox),
        ids_outside_the_maps(Root, Busybox),
        time_offsets(Root, Busybox, That("time namespaces", time)),
        time_offsets_in_a_user_namespace(
            Root,
            Busybox,
            UserNamespaces,
            That("time namespaces", time)
        ),
        joined_time_namespace(Root, Busybox, That("time namespaces", time)),
        time_offsets_that_make_no_sense(Root, Busybox),
    ]
}

fn mapped(t: &Test) -> Bundle {
    t.bundle().user_namespace(FIRST, COUNT).set("/root/readonly", json!(false))
}

fn output(t: &Test, bundle: Bundle, script: &str) -> String {
    t.oci().run(&t.id(), &bundle.sh(script)).ok().stdout
}

/// A container that was started.
fn started(oci: &Oci, id: &str, bundle: Bundle) -> i32 {
    let _ = oci.create(id, &bundle.args(["/inside", "sleep", "600"])).ok();
    let _ = oci.start(id).ok();
    oci.pid(id)
}

fn map_of(text: &str) -> Vec<Vec<u32>> {
    let numbers =
        |line: &str| line.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    text.lines().map(numbers).collect()
}

fn inode(pid: i32, namespace: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/{namespace}")).expect("a namespace").ino()
}

fn root_of_a_user_namespace(t: &Test) {
    let facts = t.oci().facts(&t.id(), &mapped(t));
    assert_eq!((facts.status.uid, facts.status.gid), (vec![0; 4], vec![0; 4]));
    assert_eq!(facts.status.groups, [] as [u32; 0]);
    let own = i32::try_from(std::process::id()).expect("a pid fits");
    for namespace in ["user", "net", "ipc", "uts", "mnt", "pid", "cgroup"] {
        assert_ne!(facts.namespaces[namespace], inode(own, namespace), "{namespace}");
    }
    let maps =
        output(t, mapped(t), "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups");
    let (maps, setgroups) = maps.trim_end().rsplit_once('\n').expect("several lines");
    assert_eq!(map_of(maps), [[0, FIRST, COUNT], [0, FIRST, COUNT]]);
    assert_eq!(setgroups, "allow");
    // From outside it is an ordinary user.
    let (oci, id) = (t.oci(), t.id());
    let pid = started(&oci, &id, mapped(t));
    assert_eq!(fs::metadata(format!("/proc/{pid}")).expect("a process").uid(), FIRST);
    oci.kill(&id, "KILL").ok();
    oci.await_status(&id, "stopped");
    let _ = oci.delete(&id).ok();
}

fn user_in_a_user_namespace(t: &Test) {
    let user = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 1002] });
    let facts = t.oci().facts(&t.id(), &mapped(t).set("/process/user", user));
    assert_eq!((facts.status.uid, facts.status.gid), (vec![1000; 4], vec![1001; 4]));
    assert_eq!(facts.status.groups, [5, 1002]);
}

fn files_belong_to_the_mapped_owner(t: &Test) {
    let bundle = mapped(t);
    let made = bundle.rootfs().join("tmp");
    let script =
        "touch /tmp/roots; touch /tmp/users; chown 7:8 /tmp/users; stat -c %u:%g /tmp/users";
    let bundle = bundle.set("/process/capabilities", every_capability());
    assert_eq!(output(t, bundle, script), "7:8\n");
    let owner = |name: &str| {
        let found = fs::metadata(made.join(name)).expect("the file is there");
        (found.uid(), found.gid())
    };
    assert_eq!(owner("roots"), (FIRST, FIRST));
    assert_eq!(owner("users"), (FIRST + 7, FIRST + 8));
}

fn maps_of_several_lines(t: &Test) {
    let lines = json!([
        { "containerID": 0, "hostID": FIRST, "size": 1000 },
        { "containerID": 1000, "hostID": 1000, "size": 1 },
        { "containerID": 1001, "hostID": FIRST + 1001, "size": 60_000 }
    ]);
    let bundle = mapped(t)
        .set("/linux/uidMappings", lines)
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let made = bundle.rootfs().join("tmp/mine");
    let maps = output(t, bundle, "touch /tmp/mine; cat /proc/self/uid_map");
    assert_eq!(map_of(&maps), [[0, FIRST, 1000], [1000, 1000, 1], [1001, FIRST + 1001, 60_000]]);
    let found = fs::metadata(made).expect("the file is there");
    assert_eq!((found.uid(), found.gid()), (1000, FIRST + 1000));
}

/// Nothing asks for a uid 0: whoever is there sets the container up.
fn a_namespace_without_a_root(t: &Test) {
    let map = json!([{ "containerID": 1000, "hostID": FIRST, "size": 10 }]);
    let bundle = mapped(t)
        .without_mount("/dev/pts")
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .set("/process/user", json!({ "uid": 1000, "gid": 1003 }));
    let facts = t.oci().facts(&t.id(), &bundle);
    assert_eq!((facts.status.uid[0], facts.status.gid[0]), (1000, 1003));
}

/// The way to the root filesystem is the runtime's to go.
fn a_bundle_that_its_root_cannot_reach(t: &Test) {
    let bundle = mapped(t);
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
    assert_eq!(output(t, bundle, "id -u"), "0\n");
}

fn without_pivot_root_in_a_user_namespace(t: &Test) {
    let (id, bundle) = (t.id(), mapped(t).sh("ls -d /proc/1; test ! -e /var/tmp/hafen*; id -u"));
    let path = bundle.path().display().to_string();
    let output = t.oci().call(["run", "--no-pivot", "--bundle", &path, &id]).ok();
    assert_eq!(output.stdout, "/proc/1\n0\n");
}

fn devices_are_the_hosts(t: &Test) {
    let node = json!([{ "type": "c", "path": "/dev/zero", "major": 1, "minor": 5 },
                      { "type": "p", "path": "/dev/pipe", "major": 0, "minor": 0, "uid": 3 }]);
    let script = "set -e; echo x >/dev/null; head -c 4 /dev/zero | od -An -tx1; test -c /dev/urandom; test -c /dev/tty; \
                  stat -c '%F %u' /dev/pipe; ls -l /dev/full | cut -c1; mknod /tmp/null c 1 3 || echo refused";
    let found = output(t, mapped(t).set("/linux/devices", node), script);
    assert_eq!(found, " 00 00 00 00\nfifo 3\nc\nrefused\n");
    let same = |path: &str| fs::metadata(path).expect("a device").rdev();
    assert_eq!(same("/dev/null"), 259);
}

fn devices_that_the_host_has_not(t: &Test) {
    let device = |path: &str, minor: u32| {
        mapped(t).set(
            "/linux/devices",
            json!([{ "type": "c", "path": path, "major": 1, "minor": minor }]),
        )
    };
    t.oci()
        .run(&t.id(), &device("/dev/zero", 3))
        .error_with(["/dev/zero", "the host has another one"]);
    t.oci().run(&t.id(), &device("/dev/nosuch", 3)).error_with(["/dev/nosuch"]);
}

fn masks_and_readonly_paths_in_a_user_namespace(t: &Test) {
    let bundle = mapped(t)
        .file("/etc/secret", "secret\n")
        .file("/etc/secrets/one", "secret\n")
        .set("/linux/maskedPaths", json!(["/proc/keys", "/etc/secret", "/etc/secrets"]))
        .set("/linux/readonlyPaths", json!(["/proc/sys", "/tmp"]));
    let script = "cat /etc/secret; ls /etc/secrets; cat /proc/keys; touch /tmp/x; echo 1 >/proc/sys/net/ipv4/ip_forward; \
                  umount /etc/secret; id -u";
    assert_eq!(output(t, bundle, script), "0\n");
}

fn every_capability() -> Value {
    let all = json!([
        "CAP_SYS_ADMIN",
        "CAP_SYS_RESOURCE",
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_NET_ADMIN",
        "CAP_MKNOD"
    ]);
    json!({ "bounding": all, "effective": all, "permitted": all })
}

/// More than the runtime itself may have, and none of it counts outside.
fn all_capabilities_are_bound_to_the_namespace(t: &Test) {
    let bundle = mapped(t).set("/process/capabilities", every_capability());
    let facts = t.oci().facts(&t.id(), &bundle.clone());
    let names: Vec<&str> = facts.status.bounding.iter().map(String::as_str).collect();
    assert_eq!(names.len(), 6, "{names:?}");
    assert!(names.contains(&"CAP_SYS_RESOURCE"), "{names:?}");
    let script = "mount -t tmpfs none /mnt && echo mounted; hostname other && hostname; \
                  echo -900 >/proc/self/oom_score_adj || echo refused; \
                  dmesg -c >/dev/null 2>&1 || echo refused";
    let found = output(t, bundle, script);
    assert_eq!(found, "mounted\nother\nrefused\nrefused\n");
}

fn sysctl_of_its_own_network(t: &Test) {
    let bundle = mapped(t).set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }));
    assert_eq!(output(t, bundle, "cat /proc/sys/net/ipv4/ip_forward"), "1\n");
}

fn limits_hold_in_a_user_namespace(t: &Test) {
    let eater = mapped(t)
        .args(["/inside", "eat", "268435456"])
        .set("/linux/resources/memory", json!({ "limit": 64 << 20, "swap": 64 << 20 }));
    let _ = t.oci().run(&t.id(), &eater).code(137);
    let forks = mapped(t)
        .args(["/inside", "fork", "100"])
        .set("/linux/resources/pids", json!({ "limit": 16 }));
    assert!(t.oci().run(&t.id(), &forks).ok().json()["started"].as_u64() < Some(16));
}

/// In the namespace nobody may, but the caller could, and asked for it.
fn what_only_the_host_may_raise(t: &Test) {
    let own = rlimit_nofile();
    let bundle = mapped(t)
        .set("/process/oomScoreAdj", json!(321))
        .set("/process/rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": own }]));
    let words = "ulimit -Sn 10; ulimit -Hn 50; exec $OCI run --bundle";
    let facts = t.oci().facts(&t.id(), &bundle);
    assert_eq!(facts.oom_score_adj, Some(321));
    assert_eq!(facts.rlimits["RLIMIT_NOFILE"].0, "77");
    // With its own limits lowered the runtime either raises them, or says that it cannot and clamps.
    let id = t.id();
    let script = format!("{words} {} {id}", bundle.path().display())
        .replace("ulimit -Sn 10", "ulimit -Sn 40");
    let seen = t.shell(&script).output().ok().facts().rlimits["RLIMIT_NOFILE"].clone();
    let raised = hafen_integration::Need::Capability("CAP_SYS_RESOURCE").is_met();
    let wanted = if raised {
        ("77".to_owned(), own.to_string())
    } else {
        ("50".to_owned(), "50".to_owned())
    };
    assert_eq!(seen, wanted);
}

fn rlimit_nofile() -> u64 {
    let limits = fs::read_to_string("/proc/self/limits").expect("/proc is there");
    let line = limits.lines().find(|l| l.starts_with("Max open files")).expect("the limit");
    line.split_whitespace().nth(4).and_then(|n| n.parse().ok()).expect("a number")
}

fn joined_to(bundle: Bundle, pid: i32, kinds: &[(&str, &str)]) -> Bundle {
    kinds
        .iter()
        .fold(bundle, |b, (kind, file)| b.namespace(kind, Some(&format!("/proc/{pid}/ns/{file}"))))
}

const SANDBOX: [(&str, &str); 4] =
    [("user", "user"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")];

/// As the containers of a pod: the maps may be told again.
fn joined_user_namespace(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let pid = started(&oci, &id, mapped(t).set("/hostname", json!("first")));
    let told = || joined_to(mapped(t).remove("/hostname"), pid, &SANDBOX);
    let untold = || told().remove("/linux/uidMappings").remove("/linux/gidMappings");
    let with_pid = || joined_to(told(), pid, &[("pid", "pid")]);
    let all: [(&dyn Fn() -> Bundle, bool); 3] =
        [(&told, true), (&untold, true), (&with_pid, false)];
    for (bundle, own_pid) in all {
        let bundle = bundle();
        let facts = oci.facts(&t.id(), &bundle);
        for (_, file) in SANDBOX {
            assert_eq!(facts.namespaces[file], inode(pid, file), "{file}");
        }
        assert_eq!(facts.namespaces["pid"] != inode(pid, "pid"), own_pid);
        assert_eq!(facts.pid == 1, own_pid);
        assert_eq!((facts.status.uid[0], facts.hostname.as_str()), (0, "first"));
        assert!(facts.mounts.iter().any(|m| m.target == "/proc"));
    }
    let _ = oci.delete_force(&id).ok();
}

fn joined_user_namespace_has_other_maps(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let pid = started(&oci, &id, mapped(t));
    let other = joined_to(mapped(t).user_namespace(FIRST + 1, 1000), pid, &[("user", "user")]);
    let other = other.without_mount("/dev/pts");
    oci.run(&t.id(), &other).error_with(["linux.uidMappings", "0 100000 65536"]);
    let half = joined_to(mapped(t), pid, &[("user", "user")]).remove("/linux/gidMappings");
    oci.run(&t.id(), &half).error_with(["linux.uidMappings", "linux.gidMappings"]);
    let _ = oci.delete_force(&id).ok();
}

/// They are the host's, and may be joined by its root only: before the new one is entered.
fn new_user_namespace_beside_joined_ones(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let pid = started(&oci, &id, t.bundle());
    let kinds = [("network", "net"), ("uts", "uts")];
    let bundle =
        joined_to(mapped(t).remove("/hostname"), pid, &kinds).without_mount("/sys/fs/cgroup");
    // A sysfs of a foreign network namespace cannot be mounted.
    let facts = oci.facts(&t.id(), &bundle.without_mount("/sys"));
    for (_, file) in kinds {
        assert_eq!(facts.namespaces[file], inode(pid, file), "{file}");
    }
    assert_ne!(facts.namespaces["user"], inode(pid, "user"));
    let _ = oci.delete_force(&id).ok();
}

fn maps_that_make_no_sense(t: &Test) {
    let line = |inside: u32, outside: u32, size: u32| json!({ "containerID": inside, "hostID": outside, "size": size });
    let refused = |bundle: &Bundle, words: &[&str]| {
        t.oci().run(&t.id(), bundle).error_with(words.iter().copied());
    };
    let uids = |map: Value| mapped(t).set("/linux/uidMappings", map);
    refused(&uids(json!([line(0, 0, 0)])), &["linux.uidMappings[0].size"]);
    refused(
        &uids(json!([line(0, 100, 10), line(5, 200, 10)])),
        &["linux.uidMappings[1]", "overlaps"],
    );
    refused(
        &uids(json!([line(0, 100, 10), line(10, 105, 10)])),
        &["linux.uidMappings[1]", "overlaps"],
    );
    refused(&uids(json!([line(0, u32::MAX - 5, 10)])), &["linux.uidMappings[0].hostID"]);
    refused(&uids(json!([])), &["linux.uidMappings", "is missing"]);
    refused(&mapped(t).remove("/linux/gidMappings"), &["linux.gidMappings", "is missing"]);
    refused(
        &mapped(t).without_namespace("user"),
        &["linux.uidMappings", "linux.gidMappings", "linux.namespaces"],
    );
}

fn ids_outside_the_maps(t: &Test) {
    let small = || t.bundle().user_namespace(FIRST, 5);
    let device =
        json!([{ "type": "c", "path": "/dev/null", "major": 1, "minor": 3, "uid": 6, "gid": 7 }]);
    let user = json!({ "uid": 5, "gid": 6, "additionalGids": [1, 7] });
    let bundle = small().set("/process/user", user).set("/linux/devices", device);
    t.oci().run(&t.id(), &bundle).error_with([
        "process.user.uid: 5",
        "process.user.gid: 6",
        "process.user.additionalGids[1]: 7",
        "linux.devices[0].uid: 6",
        "linux.devices[0].gid: 7",
        // devpts wants the group of terminals.
        "mounts[2].options: gid: 5",
    ]);
}

/// Seconds since the boot, and of the monotonic clock, which `/proc/uptime` and the kernel's timers show.
fn uptime(text: &str) -> f64 {
    text.split_whitespace().next().and_then(|n| n.parse().ok()).expect("/proc/uptime")
}

const DAY: f64 = 86_400.0;

fn offsets(bundle: Bundle) -> Bundle {
    let offsets =
        json!({ "boottime": { "secs": 864_000, "nanosecs": 5 }, "monotonic": { "secs": 3600 } });
    bundle.namespace("time", None).set("/linux/timeOffsets", offsets)
}

fn check_offsets(t: &Test, bundle: Bundle) {
    let own = uptime(&fs::read_to_string("/proc/uptime").expect("/proc is there"));
    let seen = output(t, offsets(bundle), "cat /proc/uptime /proc/self/timens_offsets");
    let ahead = uptime(&seen) - own;
    assert!((10.0 * DAY..10.1 * DAY).contains(&ahead), "{ahead}: {seen}");
    let words: Vec<&str> = seen.split_whitespace().skip(2).collect();
    assert_eq!(words, ["monotonic", "3600", "0", "boottime", "864000", "5"]);
}

fn time_offsets(t: &Test) {
    check_offsets(t, t.bundle());
    // The first process is in it, and not only its children.
    let facts = t.oci().facts(&t.id(), &offsets(t.bundle()));
    assert_eq!(facts.namespaces["time"], facts.namespaces["time_for_children"]);
    let own = i32::try_from(std::process::id()).expect("a pid fits");
    assert_ne!(facts.namespaces["time"], inode(own, "time"));
    // Without an offset it is a namespace of its own all the same.
    let facts = t.oci().facts(&t.id(), &t.bundle().namespace("time", None));
    assert_ne!(facts.namespaces["time"], inode(own, "time"));
}

fn time_offsets_in_a_user_namespace(t: &Test) {
    check_offsets(t, mapped(t));
}

fn joined_time_namespace(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let pid = started(&oci, &id, offsets(t.bundle()));
    let bundle = || t.bundle().namespace("time", Some(&format!("/proc/{pid}/ns/time")));
    let seen = output(t, bundle(), "cat /proc/uptime");
    assert!(uptime(&seen) > 10.0 * DAY, "{seen}");
    assert_eq!(oci.facts(&t.id(), &bundle()).namespaces["time"], inode(pid, "time"));
    let _ = oci.delete_force(&id).ok();
}

fn time_offsets_that_make_no_sense(t: &Test) {
    let timed = || t.bundle().namespace("time", None);
    let refused = |bundle: &Bundle, words: &[&str]| {
        t.oci().run(&t.id(), bundle).error_with(words.iter().copied());
    };
    let set = |value: Value| timed().set("/linux/timeOffsets", value);
    refused(
        &set(json!({ "realtime": { "secs": 1 } })),
        &["linux.timeOffsets", "realtime", "monotonic, boottime"],
    );
    let much = json!({ "boottime": { "nanosecs": 1_000_000_000 } });
    refused(&set(much), &["linux.timeOffsets", "boottime", "nanosecs"]);
    refused(
        &offsets(t.bundle()).without_namespace("time"),
        &["linux.timeOffsets", "linux.namespaces"],
    );
    // Clocks must not go below zero: the kernel's own refusal names the step.
    refused(
        &set(json!({ "boottime": { "secs": -1_000_000_000_i64 } })),
        &["time namespace", "boottime -1000000000"],
    );
}
