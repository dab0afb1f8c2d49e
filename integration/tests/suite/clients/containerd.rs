//! containerd with its shim, through `ctr`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen_integration::{Call, Case, Need, Output, Running, Test, cgroup, wait_until};
use nix::sys::signal::Signal;

use super::{Peer, Runtime, image, in_terminal, scenario_of};

pub(super) fn trials() -> Vec<Case> {
    let peer = Peer::Passes("runc");
    let limits = hafen_integration::needs![Limit("memory"), Limit("cpu"), Limit("pids")];
    vec![
        case("exit_codes", vec![], peer, exit_codes),
        case("id_maps", hafen_integration::needs![UserNamespaces], peer, id_maps),
        case("folder_environment_mounts", vec![], peer, folder_environment_mounts),
        case("a_task_from_create_to_delete", vec![], peer, a_task_from_create_to_delete),
        case("limits_and_metrics", limits, peer, limits_and_metrics),
        case("exec", vec![], peer, exec),
        case("pause_and_resume", vec![], peer, pause_and_resume),
        case("terminals", hafen_integration::needs![Program("script")], peer, terminals),
    ]
}

type Scenario = fn(&Containerd<'_>);

const IN_VM: [&str; 2] = ["limits_and_metrics", "exec"];

fn case(name: &str, more: Vec<Need>, peer: Peer, scenario: Scenario) -> Case {
    let needs = hafen_integration::needs![Program("containerd"), Program("ctr")];
    scenario_of("containerd", (name, &IN_VM), &[needs, more], peer, move |t, runtime| {
        let containerd = Containerd::new(t, runtime.clone());
        containerd.import();
        scenario(&containerd);
    })
}

/// The image's name in containerd's store.
const BOX: &str = "docker.io/library/box:latest";

/// Where shims put their sockets; no option moves it.
const SOCKETS: &str = "/run/containerd";

/// containerd, started with folders of its own.
pub(super) struct Containerd<'t> {
    test: &'t Test,
    folder: PathBuf,
    runtime: Runtime,
    daemon: Option<Running>,
    had_sockets: bool,
    /// Folders of containerd's own in the cgroup tree, which runc makes and leaves.
    groups: Vec<PathBuf>,
}

impl<'t> Containerd<'t> {
    pub(super) fn new(test: &'t Test, runtime: Runtime) -> Self {
        let folder = test.dir().join(format!("containerd-{}", runtime.name));
        fs::create_dir_all(&folder).expect("mkdir for containerd");
        let file = folder.join("config.toml");
        fs::write(&file, settings(&folder)).expect("write config.toml");
        let had_sockets = Path::new(SOCKETS).exists();
        let groups = cgroup::hierarchies().into_iter().map(|one| one.mount.join("default"));
        let groups = groups.filter(|group| !group.exists()).collect();
        let daemon = test.program("containerd", ["--config".as_ref(), file.as_os_str()]).spawn();
        let containerd = Self { test, folder, runtime, daemon: Some(daemon), had_sockets, groups };
        let up = wait_until(Duration::from_secs(20), || {
            (containerd.ctr(["version"]).output().exit == Some(0)).then_some(())
        });
        let said = || containerd.daemon.as_ref().map(Running::stderr).unwrap_or_default();
        assert!(up.is_some(), "containerd does not answer: {}", said());
        containerd
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    fn import(&self) {
        let archive = image::archive(self.test).display().to_string();
        self.ok(["image", "import", "--index-name", BOX, &archive]);
    }

    fn ctr<I: IntoIterator<Item: AsRef<str>>>(&self, words: I) -> Call {
        let mut all = vec!["--address".to_owned(), self.socket().display().to_string()];
        all.extend(words.into_iter().map(|w| w.as_ref().to_owned()));
        self.test.program("ctr", all)
    }

    fn call<I: IntoIterator<Item: AsRef<str>>>(&self, words: I) -> Output {
        self.ctr(words).output()
    }

    /// Standard output of a call that must succeed.
    #[track_caller]
    fn ok<I: IntoIterator<Item: AsRef<str>>>(&self, words: I) -> String {
        self.call(words).ok().stdout
    }

    /// `VERB OPTIONS BOX ID WORDS`, where VERB takes the options that choose the runtime.
    fn with_runtime(
        &self,
        verb: &[&str],
        options: &[&str],
        id: &str,
        words: &[&str],
    ) -> Vec<String> {
        let root = self.folder.join("runc").display().to_string();
        let program = self.runtime.program.display().to_string();
        let runtime =
            ["--runtime", "io.containerd.runc.v2", "--runc-binary", &program, "--runc-root", &root];
        let all = [verb, &runtime, options, &[BOX, id], words].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    /// `run --rm OPTIONS BOX ID WORDS`.
    fn run(&self, options: &[&str], words: &[&str]) -> Output {
        self.call(self.with_runtime(&["run", "--rm"], options, &self.test.id(), words))
    }

    /// `run --detach OPTIONS BOX ID sh -c SCRIPT`, which must succeed. Gives the id.
    #[track_caller]
    fn start(&self, options: &[&str], script: &str) -> String {
        let id = self.test.id();
        let fifos = self.folder.join("fifo").display().to_string();
        let options = [&["--fifo-dir", &fifos], options].concat();
        self.ok(self.with_runtime(&["run", "--detach"], &options, &id, &["sh", "-c", script]));
        id
    }

    /// `task exec OPTIONS ID WORDS`.
    fn exec(&self, id: &str, options: &[&str], words: &[&str]) -> Output {
        let name = self.test.id();
        let fifos = self.folder.join("fifo").display().to_string();
        let own = ["task", "exec", "--exec-id", &name, "--fifo-dir", &fifos];
        self.call([&own, options, &[id], words].concat())
    }

    /// What `task ls` says of a task, and its process id.
    fn task(&self, id: &str) -> (String, i32) {
        let list = self.ok(["task", "ls"]);
        let line = list.lines().find(|line| line.starts_with(id));
        let mut words =
            line.unwrap_or_else(|| panic!("no {id} in {list}")).split_whitespace().skip(1);
        let pid = words.next().and_then(|w| w.parse().ok()).expect("a pid");
        (words.next().unwrap_or_default().to_owned(), pid)
    }

    #[track_caller]
    fn await_status(&self, id: &str, wanted: &str) {
        let mut status = String::new();
        let reached = wait_until(Duration::from_secs(10), || {
            status = self.task(id).0;
            (status == wanted).then_some(())
        });
        assert!(reached.is_some(), "{id} is {status}, not {wanted}");
    }

    /// The value of a line of `task metrics`.
    fn metric(&self, id: &str, name: &str) -> u64 {
        let metrics = self.ok(["task", "metrics", id]);
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {metrics}"))
    }
}

fn settings(folder: &Path) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    format!(
        r#"version = 2
root = "{}"
state = "{}"
disabled_plugins = ["io.containerd.grpc.v1.cri"]

[grpc]
  address = "{}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{}"
"#,
        path("root"),
        path("state"),
        path("socket"),
        path("opt")
    )
}

/// What is still there after this is found by the harness.
impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        for id in self.call(["container", "ls", "--quiet"]).stdout.lines() {
            self.call(["task", "kill", "--all", "--signal", "KILL", id]);
            self.call(["task", "delete", "--force", id]);
            self.call(["container", "delete", id]);
        }
        if let Some(daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGTERM);
            daemon.wait();
        }
        if !self.had_sockets {
            let _ = fs::remove_dir_all(SOCKETS);
        }
        for group in &self.groups {
            let _ = fs::remove_dir(group);
        }
    }
}

fn exit_codes(c: &Containerd<'_>) {
    let output = c.run(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]).code(7);
    assert_eq!((&*output.stdout, &*output.stderr), ("out\n", "err\n"));
    let missing = c.run(&[], &["/no/such/program"]).code(1);
    assert!(
        missing.stderr.contains("stat /no/such/program: no such file or directory"),
        "{missing}"
    );
    let missing = c.run(&[], &["no-such-program"]).code(1);
    assert!(missing.stderr.contains("executable file not found in $PATH"), "{missing}");
    let forbidden = c.run(&[], &["/script"]).code(1);
    assert!(forbidden.stderr.contains("permission denied"), "{forbidden}");
}

fn folder_environment_mounts(c: &Containerd<'_>) {
    let share = c.folder.join("share");
    fs::create_dir_all(&share).expect("mkdir share");
    fs::write(share.join("f"), "shared\n").expect("write share/f");
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:ro", share.display());
    let group = format!("/{}", c.test.id());
    let options =
        ["--cwd", "/tmp", "--env", "GIVEN=1", "--read-only", "--mount", &mount, "--cgroup", &group];
    let script =
        "pwd; echo $GIVEN $FROM_IMAGE; cat /mnt/f; touch /mnt/g /h 2>&1; cat /proc/self/cgroup";
    let seen = c.run(&options, &["sh", "-c", script]).stdout;
    assert!(seen.starts_with("/tmp\n1 yes\nshared\n"), "{seen}");
    assert_eq!(seen.matches("Read-only file system").count(), 2, "{seen}");
    let everything = c.run(
        &["--privileged", "--net-host", "--allow-new-privs"],
        &["sh", "-c", "grep Cap /proc/self/status"],
    );
    assert!(everything.ok().stdout.contains("CapEff"));
    let options = ["--seccomp", "--cap-drop", "CAP_CHOWN"];
    let output = c.run(&options, &["sh", "-c", "grep Seccomp: /proc/self/status; chown app /tmp"]);
    assert!(
        output.stdout.contains("Seccomp:\t2") && output.stderr.contains("not permitted"),
        "{output}"
    );
}

fn a_task_from_create_to_delete(c: &Containerd<'_>) {
    let id = c.start(&[], "trap 'exit 4' TERM; while :; do sleep 0.05; done");
    assert_eq!(c.task(&id).0, "RUNNING");
    let processes = c.ok(["task", "ps", &id]);
    assert!(processes.contains(&c.task(&id).1.to_string()), "{processes}");
    c.ok(["task", "kill", &id]);
    c.await_status(&id, "STOPPED");
    assert!(c.call(["task", "kill", &id]).exit != Some(0), "a stopped task was killed");
    let deleted = c.call(["task", "delete", &id]);
    assert!(deleted.stderr.contains("exit code 4"), "{deleted}");
    c.ok(["container", "delete", &id]);
    let id = c.start(&[], "sleep 60 & sleep 61");
    c.ok(["task", "kill", "--all", "--signal", "SIGKILL", &id]);
    c.await_status(&id, "STOPPED");
    c.ok(["task", "delete", "--force", &id]);
}

fn limits_and_metrics(c: &Containerd<'_>) {
    let limit = (32 << 20).to_string();
    c.run(&["--memory-limit", &limit], &["tail", "-n", "1", "/dev/zero"]).code(137);
    let id = c.start(&["--memory-limit", &limit, "--cpus", "0.2"], "while :; do :; done");
    let folder = cgroup::folder(c.task(&id).1, "cpu");
    std::thread::sleep(Duration::from_secs(1));
    let stat = cgroup::value(&folder, "cpu.stat");
    let throttled =
        stat.lines().find_map(|l| l.strip_prefix("nr_throttled ")).map(str::parse::<u64>);
    assert!(matches!(throttled, Some(Ok(3..))), "{stat}");
    if cgroup::v1("memory").is_some() {
        assert_eq!(c.metric(&id, "memory.limit_in_bytes"), 32 << 20);
        assert!(c.metric(&id, "cpuacct.usage ") > 0);
        let free = c.start(&[], "exec sleep 60");
        assert!(c.metric(&free, "memory.usage_in_bytes") < 8 << 20, "it is somebody else's");
    } else {
        assert!(c.metric(&id, "memory.usage ") > 0);
        assert!(c.metric(&id, "cpu.usage_usec") > 0);
    }
}

fn exec(c: &Containerd<'_>) {
    let id = c.start(&["--env", "FIRST=1"], "exec sleep 60");
    let output = c.exec(&id, &[], &["sh", "-c", "echo out; echo err >&2; exit 5"]).code(5);
    assert_eq!((&*output.stdout, &*output.stderr), ("out\n", "err\n"));
    let options = ["--user", "1000:2000", "--cwd", "/tmp"];
    let seen = c.exec(&id, &options, &["sh", "-c", "id -u; id -g; pwd; echo $FIRST"]).ok().stdout;
    assert_eq!(seen, "1000\n2000\n/tmp\n1\n");
    let missing = c.exec(&id, &[], &["no-such-program"]);
    assert!(missing.stderr.contains("executable file not found in $PATH"), "{missing}");
    c.exec(&id, &["--detach"], &["sleep", "61"]).ok();
    let processes = c.ok(["task", "ps", &id]);
    assert_eq!(processes.lines().count(), 3, "{processes}");
}

fn pause_and_resume(c: &Containerd<'_>) {
    let id = c.start(&[], "exec sleep 60");
    c.ok(["task", "pause", &id]);
    assert_eq!(c.task(&id).0, "PAUSED");
    let refused = c.exec(&id, &[], &["true"]);
    assert!(refused.exit != Some(0), "{refused}");
    c.ok(["task", "resume", &id]);
    assert_eq!(c.task(&id).0, "RUNNING");
    c.exec(&id, &[], &["true"]).ok();
}

fn terminals(c: &Containerd<'_>) {
    let (first, second) = (c.test.id(), c.test.id());
    let words = c.with_runtime(&["run", "--rm", "--tty"], &[], &first, &["size"]);
    let seen = in_terminal(c.test, &c.ctr(words)).output().ok().stdout;
    assert!(seen.contains("33 77"), "{seen}");
    let id = c.start(&[], "exec sleep 60");
    let words = ["task", "exec", "--tty", "--exec-id", &second, &id, "size"];
    let seen = in_terminal(c.test, &c.ctr(words)).output().ok().stdout;
    assert!(seen.contains("33 77"), "{seen}");
}

fn id_maps(c: &Containerd<'_>) {
    let options = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];
    let seen = c
        .run(&options, &["sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map; id -u; touch /x"]);
    let words: Vec<&str> = seen.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "200000", "65536", "0"], "{seen}");
}
