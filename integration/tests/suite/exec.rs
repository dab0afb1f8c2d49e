//! A process more in a running container.

use std::ffi::OsStr;
use std::fs;

use hafen_integration::{Bundle, Case, Facts, Oci, Output, Test, Value, cases, cgroup, json};
use nix::sys::signal::Signal;

pub(crate) fn trials() -> Vec<Case> {
    cases![
        it_stands_where_the_container_stands(Root, Busybox),
        it_has_the_rights_of_the_containers_program(Root, Busybox),
        a_host_namespace_stays_the_hosts(Root, Busybox),
        options_change_the_process(Root, Busybox),
        a_capability_more(Root, Busybox),
        a_process_from_a_file(Root, Busybox),
        exit_codes(Root, Busybox),
        signals_are_passed_on(Root, Busybox),
        detached(Root, Busybox),
        the_containers_limits_hold(Root, Busybox, Limit("pids")),
        the_containers_filter_holds(Root, Busybox),
        a_folder_below_the_containers_cgroup(Root, Busybox),
        preserved_descriptors(Root, Busybox),
        no_descriptor_of_the_host_is_left(Root, Busybox),
        before_the_program_is_started(Root, Busybox),
        stopped_paused_and_unknown_containers(Root, Busybox),
        wrong_options_are_named(Root, Busybox),
        without_a_mount_namespace_of_its_own(Root, Busybox),
        many_at_once(Root, Busybox),
        in_a_user_namespace(Root, Busybox),
    ]
}

/// A container that sleeps; it is removed when this goes.
struct Sleeping {
    oci: Oci,
    id: String,
}

impl Sleeping {
    fn new(t: &Test, bundle: &Bundle) -> Self {
        let sleeping = Self { oci: t.oci(), id: t.id() };
        let bundle = bundle.clone().args(["/inside", "sleep", "600"]);
        let _ = sleeping.oci.create(&sleeping.id, &bundle).ok();
        let _ = sleeping.oci.start(&sleeping.id).ok();
        sleeping
    }

    fn exec<I: IntoIterator<Item: AsRef<OsStr>>>(&self, options: I, command: &[&str]) -> Output {
        self.oci.call(self.words(options, command))
    }

    fn words<I: IntoIterator<Item: AsRef<OsStr>>>(
        &self,
        options: I,
        command: &[&str],
    ) -> Vec<std::ffi::OsString> {
        let mut words = vec!["exec".into()];
        words.extend(options.into_iter().map(|o| o.as_ref().to_owned()));
        words.push(self.id.clone().into());
        words.extend(command.iter().map(Into::into));
        words
    }

    fn facts(&self, options: &[&str]) -> Facts {
        self.exec(options, &["/inside", "facts"]).ok().facts()
    }

    fn first_facts(t: &Test, bundle: &Bundle) -> Facts {
        t.oci().facts(&t.id(), bundle)
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        let _ = self.oci.delete_force(&self.id);
    }
}

const NONE: [&str; 0] = [];

fn it_stands_where_the_container_stands(t: &Test) {
    let bundle = t.bundle();
    let container = Sleeping::new(t, &bundle);
    let pid = container.oci.pid(&container.id);
    let script = "for n in mnt uts ipc net pid cgroup user; do readlink /proc/self/ns/$n; done";
    let inside = container.exec(NONE, &["sh", "-c", script]).ok();
    let names = ["mnt", "uts", "ipc", "net", "pid", "cgroup", "user"];
    let first = |name: &&str| fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a namespace");
    let wanted: Vec<String> = names.iter().map(|n| first(n).display().to_string()).collect();
    assert_eq!(inside.stdout.lines().collect::<Vec<_>>(), wanted);
    let own = container.exec(NONE, &["cat", "/proc/self/cgroup"]).ok();
    let theirs = container.exec(NONE, &["cat", "/proc/1/cgroup"]).ok();
    assert_eq!(own.stdout, theirs.stdout);
}

fn it_has_the_rights_of_the_containers_program(t: &Test) {
    let bundle = t
        .bundle()
        .set("/process/user", json!({ "uid": 1000, "gid": 1001, "additionalGids": [10, 20] }))
        .set("/process/rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]))
        .set("/process/noNewPrivileges", json!(true));
    let first = Sleeping::first_facts(t, &bundle);
    let joined = Sleeping::new(t, &bundle).facts(&[]);
    assert_eq!(joined.status, first.status);
    assert_eq!(joined.rlimits, first.rlimits);
    assert_eq!(joined.env, first.env);
    assert_eq!(joined.cwd, first.cwd);
}

fn a_host_namespace_stays_the_hosts(t: &Test) {
    let bundle = t.bundle().without_namespace("network").without_namespace("ipc");
    let container = Sleeping::new(t, &bundle);
    let own = fs::read_link("/proc/self/ns/net").expect("a namespace").display().to_string();
    let inside = container.exec(NONE, &["readlink", "/proc/self/ns/net"]).ok();
    assert_eq!(inside.stdout.trim(), own);
}

fn options_change_the_process(t: &Test) {
    let container = Sleeping::new(t, &t.bundle());
    let options = [
        "--cwd",
        "/tmp",
        "-e",
        "A=b c",
        "--env",
        "D=",
        "-e",
        "PATH=/sbin:/bin",
        "-u",
        "5:6",
        "-g",
        "7",
        "-g",
        "8",
    ];
    let script = "pwd; echo \"$A|$D|\"; xargs -0 -n 1 echo </proc/self/environ | grep ^PATH; id -u; id -g; id -G; grep NoNewPrivs /proc/self/status";
    let output = container.exec(options, &["sh", "-c", script]).ok();
    assert_eq!(output.stdout, "/tmp\nb c||\nPATH=/sbin:/bin\n5\n6\n6 7 8\nNoNewPrivs:\t1\n");
}

fn a_capability_more(t: &Test) {
    let bundle = t.bundle().set("/process/capabilities", json!({}));
    let container = Sleeping::new(t, &bundle);
    let sets = |options: &[&str]| {
        let output = container.exec(options, &["grep", "Cap", "/proc/self/status"]).ok();
        let set = |name: &str| {
            let line = output.stdout.lines().find(|l| l.starts_with(name)).expect("a set");
            u64::from_str_radix(line.split_whitespace().last().expect("a mask"), 16)
                .expect("a mask")
        };
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(set)
    };
    const NET_RAW: u64 = 1 << 13;
    assert_eq!(sets(&[]), [0; 5]);
    assert_eq!(sets(&["--cap", "CAP_NET_RAW"]), [0, NET_RAW, NET_RAW, NET_RAW, 0]);
}

fn a_process_from_a_file(t: &Test) {
    let container = Sleeping::new(t, &t.bundle());
    let process = json!({
        "args": ["sh", "-c", "echo $X; id -u; pwd"], "env": ["PATH=/bin", "X=y"], "cwd": "/tmp",
        "user": { "uid": 3, "gid": 4 }
    });
    let path = t.dir().join("process.json");
    fs::write(&path, process.to_string()).expect("write");
    let file = path.to_string_lossy().into_owned();
    let output = container.exec(["--process", &file], &[]).ok();
    assert_eq!(output.stdout, "y\n3\n/tmp\n");
    fs::write(
        &path,
        json!({ "args": [], "cwd": "tmp", "user": { "uid": 0, "gid": 0 } }).to_string(),
    )
    .expect("write");
    container.exec(["--process", &file], &[]).failed_with(255, ["process.args", "process.cwd"]);
    fs::write(&path, "{").expect("write");
    container.exec(["--process", &file], &[]).failed_with(255, ["--process"]);
}

fn exit_codes(t: &Test) {
    let bundle = t.bundle().file("not-a-program", "text");
    let container = Sleeping::new(t, &bundle);
    let _ = container.exec(NONE, &["/inside", "exit", "7"]).code(7);
    let _ = container.exec(NONE, &["sh", "-c", "kill -9 $$"]).code(128 + 9);
    container
        .exec(NONE, &["no-such-program"])
        .failed_with(127, ["executable file not found in $PATH"]);
    container.exec(NONE, &["/no/such/program"]).failed_with(127, ["no such file or directory"]);
    container.exec(NONE, &["/not-a-program"]).failed_with(126, ["permission denied"]);
}

fn signals_are_passed_on(t: &Test) {
    let container = Sleeping::new(t, &t.bundle());
    let mut running = container.oci.spawn(container.words(NONE, &["/inside", "await", "10", "5"]));
    running.await_text("ready");
    running.signal(Signal::SIGUSR1);
    let _ = running.wait().code(5);
}

fn detached(t: &Test) {
    let container = Sleeping::new(t, &t.bundle());
    let file = t.dir().join("pid");
    let options = ["--detach".as_ref(), "--pid-file".as_ref(), file.as_os_str()];
    let _ = container.exec(options, &["/inside", "sleep", "500"]).ok();
    let pid = fs::read_to_string(&file).expect("a pid");
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("a process");
    assert_eq!(line, "/inside\0sleep\x00500\0");
    let listed = container.oci.call(["ps", "--format", "json", &container.id]).ok().json();
    let pid: i64 = pid.parse().expect("a number");
    assert!(listed.as_array().expect("a list").contains(&json!(pid)), "{listed}");
}

fn the_containers_limits_hold(t: &Test) {
    let bundle = t.bundle().set("/linux/resources/pids", json!({ "limit": 10 }));
    let container = Sleeping::new(t, &bundle);
    let output = container.exec(NONE, &["/inside", "fork", "50"]).ok();
    let told: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert!(told["started"].as_u64() < Some(10), "{told}");
}

fn the_containers_filter_holds(t: &Test) {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }]
    });
    for user in [0, 1000] {
        let bundle = t
            .bundle()
            .set("/linux/seccomp", profile.clone())
            .set("/process/noNewPrivileges", json!(user == 0))
            .set("/process/user", json!({ "uid": user, "gid": user }));
        let output = Sleeping::new(t, &bundle).exec(NONE, &["mkdir", "/tmp/x"]).code(1);
        assert!(output.stderr.contains("Function not implemented"), "{output}");
    }
}

fn a_folder_below_the_containers_cgroup(t: &Test) {
    let container = Sleeping::new(t, &t.bundle());
    let folder = cgroup::folder(container.oci.pid(&container.id), "");
    fs::create_dir(folder.join("sub")).expect("mkdir");
    let script = "grep ^0:: /proc/self/cgroup";
    let inside = container.exec(["--cgroup", "sub"], &["sh", "-c", script]).ok();
    assert_eq!(inside.stdout, "0::/sub\n");
    container.exec(["--cgroup", "none"], &["true"]).failed_with(255, ["none"]);
    container.exec(["--cgroup", "../.."], &["true"]).failed_with(255, ["--cgroup"]);
}

fn preserved_descriptors(t: &Test) {
    let container = Sleeping::new(t, &t.bundle());
    let words = t.dir().join("words");
    fs::write(&words, "kept\n").expect("write");
    let (oci, id) = (&container.oci, &container.id);
    let script = format!(
        "exec 3< {}; exec {} --root {} exec --preserve-fds 1 {id} cat /proc/self/fd/3",
        words.display(),
        oci.program().display(),
        oci.root().display(),
    );
    assert_eq!(t.shell(&script).output().ok().stdout, "kept\n");
}

fn no_descriptor_of_the_host_is_left(t: &Test) {
    let container = Sleeping::new(t, &t.bundle());
    let output = container.exec(NONE, &["/inside", "fds"]).ok();
    let open = output.json();
    assert_eq!(open.as_object().map(serde_json::Map::len), Some(3), "{open}");
}

fn before_the_program_is_started(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &t.bundle().args(["/inside", "exit", "0"])).ok();
    assert_eq!(oci.call(["exec", &id, "echo", "early"]).ok().stdout, "early\n");
    let _ = oci.delete_force(&id).ok();
}

fn stopped_paused_and_unknown_containers(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    oci.call(["exec", &id, "true"]).failed_with(255, ["does not exist"]);
    let _ = oci.create(&id, &t.bundle().args(["/inside", "sleep", "600"])).ok();
    let _ = oci.start(&id).ok();
    let _ = oci.call(["pause", &id]).ok();
    oci.call(["exec", &id, "true"]).failed_with(255, ["paused container"]);
    let _ = oci.call(["resume", &id]).ok();
    let _ = oci.kill(&id, "KILL").ok();
    oci.await_status(&id, "stopped");
    oci.call(["exec", &id, "true"]).failed_with(255, ["cannot exec in a stopped container"]);
    let _ = oci.delete(&id).ok();
}

fn wrong_options_are_named(t: &Test) {
    let container = Sleeping::new(t, &t.bundle());
    container.exec(NONE, &[]).failed_with(255, ["COMMAND"]);
    container.exec(["-u", "root"], &["true"]).failed_with(255, ["--user"]);
    container.exec(["-e", "X"], &["true"]).failed_with(255, ["process.env"]);
    container.exec(["--cwd", "x"], &["true"]).failed_with(255, ["process.cwd"]);
    container.exec(["--cwd", "/nowhere"], &["true"]).failed_with(255, ["chdir to cwd"]);
    container.exec(["--tty", "--detach"], &["true"]).failed_with(255, ["console socket"]);
}

fn without_a_mount_namespace_of_its_own(t: &Test) {
    let bundle = t
        .bundle()
        .without_namespace("mount")
        .remove("/mounts")
        .remove("/linux/maskedPaths")
        .remove("/linux/readonlyPaths")
        .set("/root/readonly", json!(false))
        .file("here", "the container's\n");
    let container = Sleeping::new(t, &bundle);
    assert_eq!(container.exec(NONE, &["cat", "/here"]).ok().stdout, "the container's\n");
}

/// With a network namespace that belongs to the host's user namespace, as Podman makes it.
fn in_a_user_namespace(t: &Test) {
    let map = json!([{ "containerID": 0, "hostID": 200_000, "size": 65536 }]);
    let other = Sleeping::new(t, &t.bundle());
    let network = format!("/proc/{}/ns/net", other.oci.pid(&other.id));
    for joined in [None, Some(network.as_str())] {
        let bundle = t
            .bundle()
            .namespace("user", None)
            .namespace("network", joined)
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map.clone())
            .edit(|config| {
                let mounts = config["mounts"].as_array_mut().expect("mounts");
                mounts.retain(|m| joined.is_none() || m["type"] != json!("sysfs"));
            });
        let _ =
            t.shell(&format!("chown -R 200000:200000 {}", bundle.rootfs().display())).output().ok();
        let container = Sleeping::new(t, &bundle);
        let script = "cat /proc/self/uid_map; id -u; grep CapBnd /proc/self/status; ulimit -n";
        let output = container.exec(NONE, &["sh", "-c", script]).ok();
        let words: Vec<&str> = output.stdout.split_whitespace().collect();
        assert_eq!(words[..4], ["0", "200000", "65536", "0"], "{output}");
        assert_eq!(words[5..], ["0000000020000420", "1024"], "{output}");
        let as_user = container.exec(["-u", "1000:1000"], &["sh", "-c", "id -u; id -g"]).ok();
        assert_eq!(as_user.stdout, "1000\n1000\n");
    }
}

fn many_at_once(t: &Test) {
    let container = Sleeping::new(t, &t.bundle());
    let start =
        |n: i32| container.oci.spawn(container.words(NONE, &["/inside", "exit", &n.to_string()]));
    let running: Vec<_> = (0..20).map(start).collect();
    for (n, call) in running.into_iter().enumerate() {
        let _ = call.wait().code(i32::try_from(n).expect("a small number"));
    }
}
