//! Kernels that lack a call: each fallback of the table in `runtime/sys/src/feature.rs` does what the call does.
//!
//! The call is taken away by a seccomp filter that answers ENOSYS, around the runtime; it stays in force in the container.

use std::ffi::{OsStr, OsString};

use hafen_integration::needs;
use hafen_integration::{Bundle, Call, Case, Facts, Need, Oci, Program, Test, Value, cases, json};

/// Calls with a fallback.
const ALONE: [&str; 6] =
    ["clone3", "fsopen", "open_tree", "move_mount", "mount_setattr", "faccessat2"];
/// PR_SET_MM: then the program cannot be mapped anew, and is executed from its read-only copy.
const SET_MM: &str = "prctl=35";
/// As before Linux 5.2.
const MOUNTS: &str = "fsopen,fsconfig,fsmount,open_tree,move_mount,mount_setattr";
const ALL: &str = "clone3,fsopen,fsconfig,fsmount,open_tree,move_mount,mount_setattr,faccessat2";

/// Calls that the runtime refuses to go without.
const INDISPENSABLE: [&str; 3] = ["openat2", "close_range", "pidfd_open"];

pub(crate) fn trials() -> Vec<Case> {
    let mut cases = cases![
        recursive_attributes_are_refused_by_name(Root, Busybox),
        create_leaves_the_look_up_to_start(Root, Busybox),
        doctor_names_what_is_missing(Root),
    ];
    let name = |what: &str, calls: &str| {
        format!("without::{what}_without_{}", calls.replace([',', '='], "_"))
    };
    let common = || needs![Root, Busybox, Limit("memory"), Limit("pids")];
    for calls in ALONE.into_iter().chain([SET_MM, MOUNTS, ALL]) {
        cases.push(Case::new(name("bundle", calls), common(), |t| bundle_is_the_same(t, calls)));
    }
    for calls in ["clone3", MOUNTS, ALL] {
        let mut overlay = common();
        overlay.push(Need::FileSystem("overlay"));
        cases.push(Case::new(name("overlay", calls), overlay, |t| overlay_is_the_same(t, calls)));
        cases.push(Case::new(name("stages", calls), common(), |t| stages_are_the_same(t, calls)));
        cases.push(Case::new(name("root", calls), common(), |t| root_is_the_same(t, calls)));
    }
    for call in INDISPENSABLE {
        let name = format!("without::refused_without_{call}");
        cases.push(Case::new(name, needs![Root, Busybox], |t| is_refused(t, call)));
    }
    cases
}

/// `hafen-oci --root ROOT WORDS..` on a kernel that lacks `calls`.
fn without<I: IntoIterator<Item: AsRef<OsStr>>>(t: &Test, calls: &str, words: I) -> Call {
    let tool = Program::Without.find().unwrap_or_else(|e| panic!("{e}"));
    let oci = t.oci();
    let start =
        [calls.into(), "--".into(), oci.program().into(), "--root".into(), oci.root().into()];
    let words = words.into_iter().map(|w| w.as_ref().to_owned());
    let all: Vec<OsString> = start.into_iter().chain(words).collect();
    t.program(tool.to_str().expect("a path in UTF-8"), all)
}

fn run_words<'a>(bundle: &'a Bundle, id: &'a str) -> [&'a OsStr; 4] {
    ["run".as_ref(), "--bundle".as_ref(), bundle.path().as_os_str(), id.as_ref()]
}

/// Facts without what differs from one container to the next, and without the filter itself.
fn comparable(mut facts: Facts) -> Value {
    facts.status.seccomp = 0;
    facts.status.seccomp_filters = 0;
    for mount in &mut facts.mounts {
        (mount.id, mount.parent) = (0, 0);
        mount.device = mount.device.split(':').next().unwrap_or_default().to_owned();
        for peer in &mut mount.propagation {
            peer.truncate(peer.find(':').unwrap_or(peer.len()));
        }
    }
    // Mounts that are made before the process is born have smaller ids, which the kernel sorts by since Linux 6.8.
    facts.mounts.sort_by(|a, b| a.target.cmp(&b.target));
    facts.namespaces.values_mut().for_each(|inode| *inode = 0);
    facts.fds.values_mut().for_each(String::clear);
    serde_json::to_value(facts).expect("facts are JSON")
}

/// One line for each part that differs.
fn compare(name: &str, with: &Value, without: &Value, lines: &mut Vec<String>) {
    match (with, without) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                compare(&format!("{name}.{key}"), &with[key], &without[key], lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                let label = a["target"].as_str().map_or_else(|| i.to_string(), str::to_owned);
                compare(&format!("{name}[{label}]"), a, b, lines);
            }
        }
        _ if with == without => {}
        _ => lines.push(format!("{name}: with {with} without {without}")),
    }
}

#[track_caller]
fn assert_same(calls: &str, with: Facts, without: Facts) {
    assert!(without.status.seccomp_filters > with.status.seccomp_filters, "there was no filter");
    let mut lines = Vec::new();
    compare("facts", &comparable(with), &comparable(without), &mut lines);
    assert!(lines.is_empty(), "not the same without {calls}:\n  {}", lines.join("\n  "));
}

/// A bundle with every kind of mount, a user, and limits.
fn full(t: &Test) -> Bundle {
    let source = t.dir().join("source");
    std::fs::create_dir_all(source.join("folder/deeper")).expect("make a folder");
    std::fs::write(source.join("file"), "text").expect("write a file");
    let bind = |name: &str, at: &str, options: &[&str]| json!({ "destination": at, "source": source.join(name), "type": "bind", "options": options });
    let capabilities = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    t.bundle()
        .args([
            "/inside", "facts", "--probe", "/made/here", "--probe", "/bind/file", "--probe",
            "/proc/kcore", "--probe", "/etc/passwd", "--probe", "/var/tmp", "--probe", "/proc/sys/kernel",
            "--probe", "/mnt", "--list", "/bind", "--sysctl", "net.ipv4.ip_forward",
        ])
        .push("/mounts", bind("folder", "/bind/folder", &["rbind", "ro", "nosuid", "nodev"]))
        .push("/mounts", bind("folder", "/bind/plain", &["bind"]))
        .push("/mounts", bind("folder", "/bind/shared", &["rbind", "rshared"]))
        .push("/mounts", bind("folder", "/bind/private", &["bind", "rprivate", "noexec", "noatime"]))
        .push("/mounts", bind("file", "/bind/file", &["bind", "ro", "nosymfollow"]))
        .push("/mounts", bind("file", "/etc/new", &["bind", "noexec"]))
        .push(
            "/mounts",
            json!({ "destination": "/made/here", "type": "tmpfs", "source": "some",
                    "options": ["nodev", "nosuid", "size=1m", "mode=1750", "uid=7", "gid=8", "noatime"] }),
        )
        .push("/mounts", json!({ "destination": "/mnt", "type": "tmpfs", "source": "ro",
                    "options": ["ro", "nodiratime", "slave"] }))
        .push("/linux/maskedPaths", json!("/etc/passwd"))
        .push("/linux/maskedPaths", json!("/var/tmp"))
        .push("/linux/readonlyPaths", json!("/bind/plain"))
        .push("/linux/readonlyPaths", json!("/tmp"))
        .set("/linux/rootfsPropagation", json!("private"))
        .set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }))
        .set("/process/user", json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 77], "umask": 0o27 }))
        .set("/process/capabilities", json!({ "bounding": capabilities, "permitted": capabilities,
                    "effective": capabilities, "inheritable": capabilities, "ambient": capabilities }))
        .set("/process/cwd", json!("/tmp"))
        .set("/root/readonly", json!(false))
        .set("/linux/resources/memory/limit", json!(64 << 20))
        .set("/linux/resources/pids/limit", json!(32))
}

fn same_run(t: &Test, calls: &str, bundle: &Bundle) {
    let id = t.id();
    let with = t.oci().run(&id, bundle).ok().facts();
    let without = without(t, calls, run_words(bundle, &id)).output().ok().facts();
    assert_same(calls, with, without);
}

fn bundle_is_the_same(t: &Test, calls: &str) {
    same_run(t, calls, &full(t));
}

/// Root's, read-only, with what the host mounts later. A shared bind mount is left out: a copy that is made before the
/// host's mounts become slaves is the host's peer, and one that mount(2) makes afterwards cannot be.
fn root_is_the_same(t: &Test, calls: &str) {
    let no_shared = |config: &mut Value| {
        let mounts = config["mounts"].as_array_mut().expect("/mounts is an array");
        mounts.retain(|mount| mount["destination"] != "/bind/shared");
    };
    let bundle = full(t).edit(no_shared).remove("/linux/rootfsPropagation");
    let bundle = bundle.set("/process/user", json!({ "uid": 0, "gid": 0 }));
    let bundle = bundle.remove("/process/capabilities").set("/process/cwd", json!("/"));
    same_run(t, calls, &bundle.set("/root/readonly", json!(true)));
}

fn overlay_is_the_same(t: &Test, calls: &str) {
    let (oci, id) = (t.oci(), t.id());
    let lower = t.bundle().rootfs();
    let lower = lower.to_str().expect("a path in UTF-8");
    let words =
        ["run", "--rootfs", lower, "--id", &id, "--memory", "64M", "--", "/inside", "facts"];
    let with = oci.call(words).ok().facts();
    let without = without(t, calls, words).output().ok().facts();
    assert_same(calls, with, without);
}

/// `create`, `state`, `start`, `kill`, `delete`, all on the poorer kernel, with the container in its cgroup.
fn stages_are_the_same(t: &Test, calls: &str) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t
        .bundle()
        .args(["/inside", "sleep", "300"])
        .set("/linux/resources/memory/limit", json!(64 << 20))
        .set("/linux/resources/pids/limit", json!(32));
    let call = |words: &[&str]| without(t, calls, words).output();
    let with = cgroups(&oci, &id, || {
        let _ = oci.create(&id, &bundle).ok();
        let _ = oci.start(&id).ok();
    });
    let _ = oci.delete_force(&id).ok();
    let path = bundle.path().to_str().expect("a path in UTF-8");
    let without = cgroups(&oci, &id, || {
        let _ = call(&["create", "--bundle", path, &id]).ok();
        assert_eq!(call(&["state", &id]).ok().json()["status"], "created");
        let _ = call(&["start", &id]).ok();
    });
    assert_eq!(with, without);
    assert!(with.iter().any(|line| line.contains(&id)), "{with:?}");
    let _ = call(&["kill", &id, "KILL"]).ok();
    oci.await_status(&id, "stopped");
    let _ = call(&["delete", &id]).ok();
    assert_eq!(oci.status(&id), None);
}

/// The cgroups of a container's first process.
fn cgroups(oci: &Oci, id: &str, make: impl Fn()) -> Vec<String> {
    make();
    let path = format!("/proc/{}/cgroup", oci.pid(id));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.lines().map(str::to_owned).collect()
}

fn recursive_attributes_are_refused_by_name(t: &Test) {
    let id = t.id();
    let bundle = t.bundle().push(
        "/mounts",
        json!({ "destination": "/mnt", "source": t.dir(), "type": "bind", "options": ["rbind", "rro"] }),
    );
    let output = without(t, "mount_setattr", run_words(&bundle, &id)).output();
    output.error_with(["mount_setattr", "/mnt"]);
    assert_eq!(t.oci().status(&id), None);
}

/// The kernel itself finds the missing right, one stage later.
fn create_leaves_the_look_up_to_start(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t.bundle().file("/closed", "#!/bin/sh\n").args(["/closed"]);
    oci.create(&id, &bundle).error_with(["/closed", "permission denied"]);
    let path = bundle.path().to_str().expect("a path in UTF-8");
    let _ = without(t, "faccessat2", ["create", "--bundle", path, &id]).output().ok();
    let output = without(t, "faccessat2", ["start", &id]).output();
    let _ = output.error_line();
    let _ = oci.delete_force(&id).ok();
    let output = without(t, "faccessat2", run_words(&bundle, &id)).output();
    output.error_with(["/closed", "permission denied"]);
}

fn doctor_names_what_is_missing(t: &Test) {
    let output = without(t, "clone3,mount_setattr", ["doctor"]).output().ok();
    for words in ["clone3 (Linux 5.3)", "mount_setattr (Linux 5.12)"] {
        assert!(output.stdout.contains(words), "{words} is not named: {output}");
    }
    let output = t.oci().call(["doctor"]).ok();
    assert!(!output.stdout.contains("mount_setattr (Linux"), "{output}");
}

fn is_refused(t: &Test, call: &str) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t.bundle().args(["/inside", "exit", "0"]);
    let path = bundle.path().to_str().expect("a path in UTF-8");
    for words in [vec!["run", "--bundle", path, &id], vec!["create", "--bundle", path, &id]] {
        let output = without(t, call, words).output();
        output.error_with([&*format!("lacks {call} (Linux 5."), "needed for"]);
        assert_eq!(oci.status(&id), None);
    }
}
