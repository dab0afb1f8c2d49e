//! What is wrong is named, on one line, and nothing of a container remains.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hafen_integration::{Bundle, Case, Output, Running, Test, Value, cases, cgroup, json};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        config_is_missing(Launcher, Busybox),
        config_is_broken(Launcher, Busybox),
        each_of_several_wrong_fields_is_named(Launcher, Busybox),
        each_of_several_wrong_values_is_named(Launcher, Busybox),
        unknown_namespace(Root, Busybox),
        bundle_is_missing(Launcher, Busybox),
        root_is_a_file(Launcher, Busybox),
        root_is_missing(Launcher, Busybox),
        root_leads_out_of_the_bundle(Launcher, Busybox),
        root_section_is_missing(Launcher, Busybox),
        id_in_use(Launcher, Busybox),
        invalid_ids(Launcher, Busybox),
        command_lines_that_are_wrong(Launcher),
        fields_that_are_not_supported_yet(Launcher, Busybox),
        values_that_make_no_sense(Launcher, Busybox),
        versions(Launcher, Busybox),
        mount_option_that_does_not_exist(Launcher, Busybox),
        mount_source_is_missing(Launcher, Busybox),
        file_system_that_does_not_exist(Launcher, Busybox),
        mount_through_a_symlink_stays_inside(Launcher, Busybox),
        working_directory_leads_out(Launcher, Busybox),
        joined_namespace_is_wrong(Root, Busybox),
        seccomp_that_cannot_be_compiled(Launcher, Busybox),
        program_is_missing(Launcher, Busybox),
        program_is_not_executable(Launcher, Busybox),
        program_is_a_folder(Launcher, Busybox),
        program_is_no_program(Launcher, Busybox),
        cgroup_name_is_too_long(Launcher, Busybox),
        cgroup_folder_takes_no_more_folders(Root, Busybox),
        cgroup_below_a_process(Root, Busybox, Cgroup2("memory")),
        cgroup_of_somebody_else_is_left_alone(Root, Busybox),
        v1_cgroup_of_somebody_else_is_left_alone(Root, Busybox, Hybrid, Limit("memory")),
        disk_is_full(Root, Busybox, Program("unshare")),
        disk_is_full_for_the_pid_file(Root, Busybox, Program("unshare")),
        state_root_is_read_only(Root, Busybox, Program("unshare")),
        state_root_is_a_file(Launcher, Busybox),
        pid_file_in_no_folder(Launcher, Busybox),
        an_ordinary_user_gets_one_clear_line(Root, Busybox),
        a_user_who_may_not_read_the_bundle(Root, Busybox),
    ]
}

/// A call that must be refused, and nothing may remain at the moment when it returns: what other programs of this
/// machine do meanwhile does not count.
fn call_refused(t: &Test, id: &str, words: &[&OsStr]) -> Output {
    let oci = t.oci();
    let output = oci.call(words);
    assert!(!oci.root().join(id).exists(), "state remains after {output}");
    for hierarchy in cgroup::hierarchies() {
        let folder = hierarchy.mount.join("hafen").join(id);
        assert!(id.is_empty() || !folder.exists(), "{} remains after {output}", folder.display());
    }
    let me = std::process::id();
    let children = fs::read_to_string(format!("/proc/{me}/task/{me}/children")).unwrap_or_default();
    let alive = |pid: &&str| {
        let status = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        status.contains("hafen-oci") || status.contains("/inside")
    };
    let left: Vec<&str> = children.split_whitespace().filter(alive).collect();
    assert!(left.is_empty(), "processes {left:?} remain after {output}");
    output
}

/// `create` and `run` refuse it with a line that holds all of `texts`.
fn refused_as(t: &Test, id: &str, bundle: &Path, texts: &[&str]) {
    for verb in ["create", "run"] {
        let words = [verb.as_ref(), "--bundle".as_ref(), bundle.as_os_str(), id.as_ref()];
        call_refused(t, id, &words).error_with(texts.iter().copied());
    }
}

fn refused(t: &Test, bundle: &Bundle, texts: &[&str]) {
    refused_as(t, &t.id(), bundle.path(), texts);
}

/// For tables: all go through the same door, so one verb and one root file system serve for every line.
fn field_refused(t: &Test, bundle: &Bundle, texts: &[&str]) {
    let id = t.id();
    let words = ["create".as_ref(), "--bundle".as_ref(), bundle.path().as_os_str(), id.as_ref()];
    call_refused(t, &id, &words).error_with(texts.iter().copied());
}

fn config_is_missing(t: &Test) {
    let bundle = t.bundle();
    fs::remove_file(bundle.path().join("config.json")).expect("remove config.json");
    refused(t, &bundle, &["config.json", "No such file or directory"]);
}

fn config_is_broken(t: &Test) {
    let plain = t.bundle();
    for (text, words) in [
        ("", "config.json"),
        ("{", "line 1"),
        ("{\n \"ociVersion\": \"1.0.2\",\n \"process\": [\n}", "line 4"),
        ("[]", "config.json"),
        ("null", "config.json"),
        ("\0\u{1}\u{2}", "config.json"),
        ("{}", "ociVersion"),
        ("{\"ociVersion\": 5}", "ociVersion"),
    ] {
        field_refused(t, &plain.clone().raw(text), &[words]);
    }
}

fn each_of_several_wrong_fields_is_named(t: &Test) {
    let bundle = t
        .bundle()
        .set("/hostname", json!(5))
        .set("/process/cwd", json!(["/"]))
        .set("/process/user/uid", json!("root"))
        .set("/root/readonly", json!("yes"))
        .set("/linux/resources/memory/limit", json!("64M"))
        .set("/linux/resources/cpu/shares", json!(-5))
        .set("/mounts/1/options", json!("nosuid"));
    refused(
        t,
        &bundle,
        &[
            "hostname",
            "process.cwd",
            "process.user.uid",
            "root.readonly",
            "linux.resources.memory.limit",
            "linux.resources.cpu.shares",
            "mounts[1].options",
        ],
    );
}

fn each_of_several_wrong_values_is_named(t: &Test) {
    let bundle = t
        .bundle()
        .set("/process/cwd", json!("relative"))
        .set("/process/args", json!([]))
        .set("/process/env", json!(["NOVALUE"]))
        .set("/process/oomScoreAdj", json!(5000))
        .set("/linux/sysctl", json!({ "kernel.core_pattern": "x" }))
        .set("/linux/maskedPaths", json!(["proc/kcore"]))
        .set("/hooks", json!({ "poststop": [{ "path": "bin/true", "timeout": 0 }] }));
    refused(
        t,
        &bundle,
        &[
            "process.cwd",
            "process.args",
            "process.env[0]",
            "process.oomScoreAdj",
            "linux.sysctl[\"kernel.core_pattern\"]",
            "linux.maskedPaths[0]",
            "hooks.poststop[0].path",
            "hooks.poststop[0].timeout",
        ],
    );
}

fn unknown_namespace(t: &Test) {
    let bundle = t.bundle().push("/linux/namespaces", json!({ "type": "moon" }));
    refused(t, &bundle, &["linux.namespaces[6].type", "moon"]);
    let bundle = t.bundle().push("/linux/namespaces", json!({ "type": "pid" }));
    refused(t, &bundle, &["linux.namespaces[6].type", "twice"]);
    let bundle = t.bundle().push("/linux/namespaces", json!({}));
    refused(t, &bundle, &["linux.namespaces[6].type"]);
}

fn bundle_is_missing(t: &Test) {
    let path = t.dir().join("nowhere");
    refused_as(t, &t.id(), &path, &["nowhere", "No such file or directory"]);
}

fn root_is_a_file(t: &Test) {
    let bundle = t.bundle().set("/root/path", json!("config.json"));
    refused(t, &bundle, &["root.path", "config.json", "not a folder"]);
}

fn root_is_missing(t: &Test) {
    let bundle = t.bundle().set("/root/path", json!("nowhere"));
    refused(t, &bundle, &["root.path", "nowhere", "No such file or directory"]);
    refused(t, &t.bundle().set("/root/path", json!("")), &["root.path"]);
}

fn root_leads_out_of_the_bundle(t: &Test) {
    let outside = t.bundle();
    for path in ["../", "rootfs/../..", "../bundle-0/rootfs"] {
        refused(t, &t.bundle().set("/root/path", json!(path)), &["root.path", path]);
    }
    let bundle = t.bundle().set("/root/path", json!("link"));
    let link = bundle.path().join("link");
    for target in [outside.rootfs(), "/".into(), "../bundle-0/rootfs".into()] {
        symlink(&target, &link).expect("make a link");
        refused(t, &bundle, &["root.path"]);
        fs::remove_file(&link).expect("remove the link");
    }
    // A folder on the way may be a link as well.
    symlink(outside.path(), &link).expect("make a link");
    refused(t, &bundle.set("/root/path", json!("link/rootfs")), &["root.path", "link/rootfs"]);
}

fn root_section_is_missing(t: &Test) {
    refused(t, &t.bundle().remove("/root"), &["root"]);
    refused(t, &t.bundle().remove("/process"), &["process"]);
}

fn id_in_use(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t.bundle();
    let _ = oci.create(&id, &bundle).ok();
    for output in [oci.create(&id, &bundle), oci.run(&id, &t.bundle())] {
        output.error_with(["already exists", &id]);
    }
    assert_eq!(oci.status(&id).as_deref(), Some("created"));
    let _ = oci.delete_force(&id).ok();
}

fn invalid_ids(t: &Test) {
    let bundle = t.bundle();
    let long = "x".repeat(5000);
    let longer_than_a_name = "x".repeat(256);
    let path = bundle.path().as_os_str();
    let ids =
        ["", ".", "..", "a/b", "/", "../x", "a b", "a\nb", "ü", "*", &long, &longer_than_a_name];
    for id in ids {
        for verb in ["create", "run"] {
            let words = [verb.as_ref(), "--bundle".as_ref(), path, "--".as_ref(), id.as_ref()];
            assert!(!call_refused(t, "", &words).error_line().is_empty());
        }
        for verb in ["start", "state", "kill", "delete", "ps"] {
            assert!(!t.oci().call([verb, "--", id]).error_line().is_empty());
        }
    }
    assert!(!t.oci().root().exists(), "something was made for an invalid id");
}

fn command_lines_that_are_wrong(t: &Test) {
    let oci = t.oci();
    let lines: &[(&[&str], &str)] = &[
        (&["frobnicate"], "frobnicate"),
        (&["state"], "ID"),
        (&["state", "a", "b"], "b"),
        (&["--nonsense", "list"], "--nonsense"),
        (&["list", "--format", "xml"], "xml"),
        (&["run", "--preserve-fds", "many", "x"], "many"),
        (&["run", "--rootfs", "/nowhere", "--", "true"], "/nowhere"),
        (&["run", "--rootfs", "host", "--memory", "lots", "--", "true"], "--memory"),
        (&["run", "--rootfs", "host", "--cpus=-1", "--", "true"], "--cpus"),
        (&["run", "--rootfs", "host", "--pids", "0", "--", "true"], "--pids"),
        (&["run", "--rootfs", "host", "--user", "me", "--", "true"], "--user"),
        (&["run", "--rootfs", "host", "--env", "X", "--", "true"], "env"),
        (&["run", "--rootfs", "host"], "COMMAND"),
        (&["run", "--memory", "64M", "x"], "--memory"),
        (&["run", "--cpus", "1", "x"], "--cpus"),
        (&["explain", "--pids", "5", "/"], "--pids"),
    ];
    for (words, text) in lines {
        oci.call(*words).error_with([*text]);
    }
    assert!(!oci.root().exists(), "something was made");
}

fn fields_that_are_not_supported_yet(t: &Test) {
    let plain = t.bundle();
    let table: Vec<(&str, Value, &str)> = vec![
        ("/windows", json!({ "layerFolders": ["C:\\"] }), "windows"),
        ("/solaris", json!({ "milestone": "x" }), "solaris"),
        ("/vm", json!({ "kernel": { "path": "/vmlinuz" } }), "vm"),
    ];
    for (pointer, value, field) in table {
        field_refused(t, &plain.clone().set(pointer, value), &[field]);
    }
    let whole = t.bundle();
    let path = whole.path().as_os_str();
    let words =
        ["create".as_ref(), "--console-socket".as_ref(), "/x".as_ref(), "--bundle".as_ref(), path];
    let id = t.id();
    let words: Vec<&OsStr> = words.into_iter().chain([id.as_ref()]).collect();
    call_refused(t, &id, &words).error_with(["console socket", "process.terminal"]);
}

fn values_that_make_no_sense(t: &Test) {
    let plain = t.bundle();
    let limit =
        |soft: u64, hard: u64| json!({ "type": "RLIMIT_NOFILE", "soft": soft, "hard": hard });
    let node = |path: &str| json!({ "type": "c", "major": 1, "minor": 3, "path": path });
    let table: Vec<(&str, Value, &str)> = vec![
        ("/process/rlimits", json!([limit(1, 2), limit(3, 4)]), "process.rlimits[1].type"),
        ("/process/rlimits", json!([limit(5, 4)]), "process.rlimits[0].soft"),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_MOON", "soft": 1, "hard": 1 }]),
            "rlimits[0]",
        ),
        (
            "/process/capabilities/effective",
            json!(["CAP_SYS_ADMIN"]),
            "process.capabilities.effective",
        ),
        ("/process/capabilities/bounding", json!([7]), "process.capabilities.bounding"),
        ("/process/user/umask", json!(4096), "process.user.umask"),
        ("/process/args", json!([""]), "process.args"),
        ("/process/args", json!(["/inside\0", "x"]), "process.args[0]"),
        ("/process/env", json!(["=x"]), "process.env[0]"),
        ("/process/cwd", json!(""), "process.cwd"),
        ("/linux/devices", json!([node("dev/x")]), "linux.devices[0].path"),
        ("/linux/devices", json!([node("/dev/../../x")]), "linux.devices[0].path"),
        ("/linux/devices", json!([node("/dev/x"), node("/dev/x")]), "linux.devices[1].path"),
        ("/linux/devices", json!([{ "type": "x", "path": "/dev/x" }]), "linux.devices[0].type"),
        (
            "/linux/resources/devices",
            json!([{ "allow": true, "access": "xyz" }]),
            "linux.resources.devices[0].access",
        ),
        ("/linux/readonlyPaths", json!(["x"]), "linux.readonlyPaths[0]"),
        ("/linux/rootfsPropagation", json!("moon"), "linux.rootfsPropagation"),
        ("/linux/cgroupsPath", json!("/../x"), "linux.cgroupsPath"),
        ("/linux/cgroupsPath", json!("/"), "linux.cgroupsPath"),
        ("/linux/sysctl", json!({ "vm.swappiness": "1" }), "linux.sysctl[\"vm.swappiness\"]"),
        ("/linux/sysctl", json!({ "kernel.hostname": "x" }), "linux.sysctl[\"kernel.hostname\"]"),
        ("/linux/sysctl", json!({ "net.../../kernel.panic": "1" }), "linux.sysctl"),
        ("/hostname", json!("x".repeat(65)), "hostname"),
        ("/mounts/0/destination", json!("/a/../../b"), "mounts[0].destination"),
        ("/mounts/0/destination", json!("/"), "mounts[0].destination"),
        ("/annotations", json!({ "": "x" }), "annotations"),
        ("/annotations", json!({ "x": 5 }), "annotations"),
    ];
    for (pointer, value, field) in table {
        field_refused(t, &plain.clone().set(pointer, value), &[field]);
    }
    field_refused(t, &plain.clone().without_namespace("uts"), &["hostname", "uts"]);
    let shared = plain
        .clone()
        .without_namespace("network")
        .set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }));
    field_refused(t, &shared, &["linux.sysctl[\"net.ipv4.ip_forward\"]", "net namespace"]);
    let shared = plain.clone().without_namespace("mount");
    field_refused(
        t,
        &shared.set("/linux/maskedPaths", json!(["/proc/keys"])),
        &["linux.maskedPaths", "mount namespace"],
    );
}

fn versions(t: &Test) {
    let plain = t.bundle();
    for version in ["2.0.0", "0.9.0", "", "1", "one"] {
        field_refused(t, &plain.clone().set("/ociVersion", json!(version)), &["ociVersion"]);
    }
    for version in ["1.0.0", "1.0.2-dev", "1.2.1", "1.99.0"] {
        let bundle =
            plain.clone().args(["/inside", "exit", "0"]).set("/ociVersion", json!(version));
        let _ = t.oci().run(&t.id(), &bundle).ok();
    }
}

fn mount(destination: &str, fstype: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": fstype, "source": source, "options": options })
}

fn mount_option_that_does_not_exist(t: &Test) {
    let bundle = t.bundle().push("/mounts", mount("/mnt", "tmpfs", "tmpfs", &["moon=full"]));
    refused(t, &bundle, &["mount tmpfs on \"/mnt\"", "moon"]);
    let bundle = t.bundle().push("/mounts", mount("/mnt", "tmpfs", "tmpfs", &["size=much"]));
    refused(t, &bundle, &["mount tmpfs on \"/mnt\"", "size"]);
}

fn mount_source_is_missing(t: &Test) {
    let bundle = t.bundle().push("/mounts", mount("/mnt", "bind", "/no/such/place", &["rbind"]));
    refused(t, &bundle, &["/mnt", "/no/such/place", "no such file or directory"]);
    let bundle = t.bundle().push("/mounts", json!({ "destination": "/mnt", "options": ["bind"] }));
    refused(t, &bundle, &["mounts[7].source"]);
}

fn file_system_that_does_not_exist(t: &Test) {
    let bundle = t.bundle().push("/mounts", mount("/mnt", "moonfs", "none", &[]));
    refused(t, &bundle, &["moonfs", "/mnt", "No such device"]);
}

/// Whoever made the image must not choose what is mounted over on the host.
fn mount_through_a_symlink_stays_inside(t: &Test) {
    let victim = t.dir().join("victim");
    fs::create_dir(&victim).expect("make a folder");
    fs::write(victim.join("file"), "mine").expect("write a file");
    let bundle = t
        .bundle()
        .push("/mounts", mount("/trap", "tmpfs", "tmpfs", &[]))
        .sh("echo stolen >/trap/file");
    symlink(&victim, bundle.rootfs().join("trap")).expect("make a link");
    let output = t.oci().run(&t.id(), &bundle);
    assert_eq!(fs::read_to_string(victim.join("file")).expect("read"), "mine", "{output}");
    assert_eq!(fs::read_dir(&victim).expect("list").count(), 1, "{output}");
}

fn working_directory_leads_out(t: &Test) {
    let plain = t.bundle();
    let bundle = plain.clone().set("/process/cwd", json!("/bin/busybox"));
    field_refused(t, &bundle, &["cwd", "/bin/busybox"]);
    // CVE-2024-21626: a descriptor that was left open would lead to the host.
    for fd in 3..12 {
        let bundle = plain
            .clone()
            .set("/process/cwd", json!(format!("/proc/self/fd/{fd}")))
            .args(["/inside", "exit", "0"]);
        field_refused(t, &bundle, &[&format!("/proc/self/fd/{fd}")]);
    }
}

fn joined_namespace_is_wrong(t: &Test) {
    let plain = t.bundle();
    for (kind, path, words) in [
        ("network", "/no/such/ns", "No such file or directory"),
        ("network", "/proc/self/ns/uts", "not a namespace of that type"),
        ("network", "/etc/passwd", "not a namespace of that type"),
        ("network", "relative/ns", "must be absolute"),
        ("pid", "/proc/self/ns/net", "not a namespace of that type"),
    ] {
        field_refused(t, &plain.clone().namespace(kind, Some(path)), &[path, words]);
    }
}

fn seccomp_that_cannot_be_compiled(t: &Test) {
    let plain = t.bundle();
    let allow = json!("SCMP_ACT_ALLOW");
    let table = [
        (
            json!({ "defaultAction": allow, "architectures": ["SCMP_ARCH_MOON"] }),
            "linux.seccomp.architectures[0]",
        ),
        (json!({ "defaultAction": "SCMP_ACT_MOON" }), "linux.seccomp.defaultAction"),
        (json!({ "architectures": [] }), "linux.seccomp.defaultAction"),
        (
            json!({ "defaultAction": allow, "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_MOON" }] }),
            "linux.seccomp.syscalls[0].action",
        ),
        (json!({ "defaultAction": "SCMP_ACT_NOTIFY" }), "SCMP_ACT_NOTIFY"),
    ];
    for (profile, field) in table {
        field_refused(t, &plain.clone().set("/linux/seccomp", profile), &[field]);
    }
}

fn program_is_missing(t: &Test) {
    refused(t, &t.bundle().args(["nosuch"]), &["\"nosuch\"", "executable file not found in $PATH"]);
    let bundle = t.bundle().args(["/no/such"]);
    refused(t, &bundle, &["\"/no/such\"", "no such file or directory"]);
    let bundle = t.bundle().args(["inside"]).set("/process/env", json!(["PATH=/bin:/usr/bin"]));
    refused(t, &bundle, &["executable file not found in $PATH"]);
}

fn program_is_not_executable(t: &Test) {
    refused(t, &t.bundle().args(["/etc/passwd"]), &["/etc/passwd", "permission denied"]);
    let bundle =
        t.bundle().args(["/root/secret"]).set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let secret = bundle.rootfs().join("root");
    fs::copy(bundle.rootfs().join("bin/busybox"), secret.join("secret")).expect("copy busybox");
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("chmod");
    refused(t, &bundle, &["/root/secret", "permission denied"]);
}

fn program_is_a_folder(t: &Test) {
    // runc: "is a directory"; its clients take "permission denied" as well.
    refused(t, &t.bundle().args(["/bin"]), &["exec: \"/bin\""]);
}

/// Only execve(2) itself can tell, so `create` succeeds and `start` does not.
fn program_is_no_program(t: &Test) {
    let bundle =
        t.bundle().file("/bin/data", "\x01\x02\x03 neither ELF nor script").args(["/bin/data"]);
    let file = bundle.rootfs().join("bin/data");
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let id = t.id();
    let words = ["run".as_ref(), "--bundle".as_ref(), bundle.path().as_os_str(), id.as_ref()];
    call_refused(t, &id, &words).error_with(["/bin/data", "exec format error"]);
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &bundle).ok();
    let output = oci.start(&id);
    oci.await_status(&id, "stopped");
    let _ = oci.delete(&id).ok();
    output.error_with(["/bin/data", "exec format error"]);
}

fn cgroup_name_is_too_long(t: &Test) {
    let long = "x".repeat(256);
    for path in [format!("/hafen-long/{long}"), format!("/hafen-long/{}", "y/".repeat(3000))] {
        let bundle = t.bundle().set("/linux/cgroupsPath", json!(path));
        refused(t, &bundle, &["linux.cgroupsPath", "longer than"]);
    }
}

/// A cgroup folder of a test's own, removed at the end of the test.
struct Folder {
    path: PathBuf,
    /// As in `cgroupsPath`.
    name: String,
    process: Option<Running>,
}

impl Folder {
    fn new(t: &Test, hierarchy: &Path) -> Self {
        let name = format!("/other-{}", t.id());
        let path = hierarchy.join(&name[1..]);
        fs::create_dir(&path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
        Self { path, name, process: None }
    }

    fn write(&self, file: &str, value: &str) {
        let path = self.path.join(file);
        fs::write(&path, value).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Puts somebody else's process into it.
    fn occupy(&mut self, t: &Test) -> i32 {
        let process = t.program("sleep", ["600"]).spawn();
        self.write("cgroup.procs", &process.pid().to_string());
        let pid = process.pid();
        self.process = Some(process);
        pid
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.process = None;
        let removed = || fs::remove_dir(&self.path).is_ok().then_some(());
        let _ = hafen_integration::wait_until(std::time::Duration::from_secs(3), removed);
    }
}

fn tree() -> PathBuf {
    cgroup::tree().expect("a cgroup2 tree")
}

fn cgroup_folder_takes_no_more_folders(t: &Test) {
    let full = Folder::new(t, &tree());
    full.write("cgroup.max.descendants", "0");
    let bundle = t.bundle().set("/linux/cgroupsPath", json!(format!("{}/x", full.name)));
    refused(t, &bundle, &["make cgroup", &full.name]);
}

/// The rule of cgroup2: a folder with processes passes no controllers on.
fn cgroup_below_a_process(t: &Test) {
    let mut busy = Folder::new(t, &tree());
    let pid = busy.occupy(t);
    let bundle = t
        .bundle()
        .set("/linux/cgroupsPath", json!(format!("{}/x", busy.name)))
        .set("/linux/resources/memory/limit", json!(64 << 20));
    refused(t, &bundle, &["cgroup.subtree_control", &busy.name, &pid.to_string()]);
}

fn is_left_alone(t: &Test, mut theirs: Folder, bundle: &Bundle) {
    let pid = theirs.occupy(t);
    let bundle = bundle.clone().set("/linux/cgroupsPath", json!(theirs.name));
    refused(t, &bundle, &[&theirs.name, &pid.to_string()]);
    let run = theirs.process.as_mut().expect("a process");
    assert!(!run.has_ended(), "somebody else's process was killed");
    assert_eq!(cgroup::value(&theirs.path, "cgroup.procs"), pid.to_string());
}

fn cgroup_of_somebody_else_is_left_alone(t: &Test) {
    is_left_alone(t, Folder::new(t, &tree()), &t.bundle());
}

fn v1_cgroup_of_somebody_else_is_left_alone(t: &Test) {
    let memory = cgroup::v1("memory").expect("a v1 hierarchy");
    let bundle = t.bundle().set("/linux/resources/memory/limit", json!(64 << 20));
    is_left_alone(t, Folder::new(t, &memory), &bundle);
}

/// Runs a script in a mount namespace of its own, where the state root is a tmpfs with the given options. With
/// busybox's mount, because the other one writes to `/run/mount`.
fn with_small_root(t: &Test, options: &str, script: &str) -> Output {
    let root = t.oci().root().to_owned();
    fs::create_dir_all(&root).expect("make the state root");
    let root = root.display();
    let inner = format!("busybox mount -t tmpfs -o {options} none {root} && {{ {script}\n}}");
    t.shell("exec unshare -m --propagation private sh -c \"$INNER\"").env("INNER", inner).output()
}

/// The state root takes only so many files: each place where the disk may become full is hit, until there is room.
fn disk_is_full(t: &Test) {
    let bundle = t.bundle().args(["/inside", "exit", "0"]);
    let full = "No space left on device";
    for inodes in 1..20 {
        let id = t.id();
        let root = t.oci().root().display().to_string();
        let script = format!(
            "$OCI create --bundle {b} {id}; code=$?; \
             [ $code = 0 ] && {{ $OCI delete --force {id} || exit 8; exit 0; }}; \
             [ -e {root}/{id} ] && {{ ls -laR {root} >&2; exit 9; }}; exit $code",
            b = bundle.path().display()
        );
        let output = with_small_root(t, &format!("nr_inodes={inodes}"), &script);
        if output.exit == Some(0) {
            assert!(inodes > 2, "it needs no room: {output}");
            return;
        }
        output.error_with([full]);
    }
    panic!("it never succeeded");
}

fn disk_is_full_for_the_pid_file(t: &Test) {
    let bundle = t.bundle().args(["/inside", "exit", "0"]);
    let (id, root) = (t.id(), t.oci().root().display().to_string());
    // One file fills the other file system to its last byte.
    let script = format!(
        "mkdir {root}/small && busybox mount -t tmpfs -o size=4k none {root}/small && \
         head -c 4096 /dev/zero >{root}/small/big; \
         $OCI create --pid-file {root}/small/pid --bundle {b} {id}; code=$?; \
         [ -e {root}/{id} ] && exit 9; exit $code",
        b = bundle.path().display()
    );
    with_small_root(t, "size=1m", &script).error_with(["small", "No space left on device"]);
}

fn state_root_is_read_only(t: &Test) {
    let bundle = t.bundle();
    let script = format!("$OCI run --bundle {} {}", bundle.path().display(), t.id());
    with_small_root(t, "ro", &script).error_with(["Read-only file system"]);
}

fn state_root_is_a_file(t: &Test) {
    let bundle = t.bundle();
    let file = t.dir().join("file");
    fs::write(&file, "").expect("write a file");
    let id = t.id();
    let words = ["--root".as_ref(), file.as_os_str(), "run".as_ref(), "--bundle".as_ref()];
    let words = words.into_iter().chain([bundle.path().as_os_str(), id.as_ref()]);
    t.oci().bare(words).output().error_with(["file", "Not a directory"]);
}

fn pid_file_in_no_folder(t: &Test) {
    let (bundle, id) = (t.bundle(), t.id());
    let pid_file = t.dir().join("nowhere/pid");
    for verb in ["create", "run"] {
        let words = [verb.as_ref(), "--pid-file".as_ref(), pid_file.as_os_str()];
        let words = words.into_iter().chain(["--bundle".as_ref(), bundle.path().as_os_str()]);
        let words: Vec<&OsStr> = words.chain([id.as_ref()]).collect();
        call_refused(t, &id, &words).error_with(["nowhere/", "No such file or directory"]);
    }
}

fn an_ordinary_user_gets_one_clear_line(t: &Test) {
    let bundle = t.bundle();
    let id = t.id();
    // The program may be where others cannot reach it: it is opened by root, and run by its descriptor.
    for verb in ["create", "run"] {
        let script = format!(
            "exec 9<{p}; exec setpriv --reuid 65534 --regid 65534 --clear-groups /proc/self/fd/9 --root {r} {verb} --bundle {b} {id}",
            p = t.oci().program().display(),
            r = t.dir().join("users").display(),
            b = bundle.path().display()
        );
        let output = t.shell(&script).output();
        let line = output.error_line();
        let clear = ["root", "CAP_", "Permission denied", "Operation not permitted"];
        assert!(clear.iter().any(|words| line.contains(words)), "{output}");
    }
}

fn a_user_who_may_not_read_the_bundle(t: &Test) {
    let bundle = t.bundle();
    let config = bundle.path().join("config.json");
    fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("chmod");
    let script = format!(
        "exec 9<{p}; exec setpriv --reuid 65534 --regid 65534 --clear-groups /proc/self/fd/9 explain {b}",
        p = t.oci().program().display(),
        b = bundle.path().display()
    );
    t.shell(&script).output().error_with(["config.json", "Permission denied"]);
}
