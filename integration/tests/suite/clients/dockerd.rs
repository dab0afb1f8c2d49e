//! dockerd with a containerd of the test's, through `docker`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen_integration::{Call, Case, Need, Output, Running, Test, cgroup, wait_until};
use nix::sys::signal::Signal;

use super::containerd::Containerd;
use super::{Peer, Runtime, await_log, image, in_terminal, remove_cgroup, scenario_of};

pub(super) fn trials() -> Vec<Case> {
    let peer = Peer::Passes("runc");
    let refuses = Peer::Fails("runc", "it dies of a capability that is not in the bounding set");
    let all = Need::Capability("CAP_SYS_RESOURCE").is_met();
    let limits = || hafen_integration::needs![Limit("memory"), Limit("cpu"), Limit("pids")];
    vec![
        case("exit_codes", vec![], peer, exit_codes),
        case("stop_start_restart_remove", vec![], peer, stop_start_restart_remove),
        case("memory_cpu_and_pids", limits(), peer, memory_cpu_and_pids),
        case("exec", vec![], peer, exec),
        case("terminals", hafen_integration::needs![Program("script")], peer, terminals),
        case("pause_top_stats_update", limits(), peer, pause_top_stats_update),
        case("volumes_and_options", vec![], peer, volumes_and_options),
        case("privileged", vec![], if all { peer } else { refuses }, privileged),
    ]
}

type Scenario = fn(&Docker<'_>);

const IN_VM: [&str; 2] = ["exit_codes", "pause_top_stats_update"];

fn case(name: &str, more: Vec<Need>, peer: Peer, scenario: Scenario) -> Case {
    let needs = hafen_integration::needs![Program("dockerd"), File(CLIENT), Program("containerd")];
    scenario_of("dockerd", (name, &IN_VM), &[needs, more], peer, move |t, runtime| {
        let containerd = Containerd::new(t, runtime.clone());
        let docker = Docker::new(t, runtime, &containerd);
        docker.import();
        scenario(&docker);
    })
}

/// The one of Debian: another that comes first on `PATH` may be too new for the daemon.
const CLIENT: &str = "/usr/bin/docker";

const BOX: &str = "box";

/// What dockerd makes outside of the folders that it is given.
const STRAYS: [&str; 2] = ["/run/docker", "/etc/docker/key.json"];

/// dockerd, started with folders of its own, and a default runtime.
struct Docker<'t> {
    test: &'t Test,
    folder: PathBuf,
    daemon: Option<Running>,
    /// Below which the containers' cgroups are.
    parent: String,
    strays: Vec<PathBuf>,
}

impl<'t> Docker<'t> {
    fn new(test: &'t Test, runtime: &Runtime, containerd: &Containerd<'_>) -> Self {
        let folder = test.dir().join(format!("docker-{}", runtime.name));
        fs::create_dir_all(&folder).expect("mkdir for dockerd");
        let parent = format!("/{}", test.id());
        let file = folder.join("daemon.json");
        let settings = settings(&folder, runtime, containerd, &parent);
        fs::write(&file, settings.to_string()).expect("write daemon.json");
        let strays =
            STRAYS.iter().map(PathBuf::from).filter(|path: &PathBuf| !path.exists()).collect();
        let daemon = test.program("dockerd", ["--config-file".as_ref(), file.as_os_str()]).spawn();
        let docker = Self { test, folder, daemon: Some(daemon), parent, strays };
        let up = wait_until(Duration::from_secs(30), || {
            (docker.call(["version"]).exit == Some(0)).then_some(())
        });
        let said = || docker.daemon.as_ref().map(Running::stderr).unwrap_or_default();
        assert!(up.is_some(), "dockerd does not answer: {}", said());
        docker
    }

    fn import(&self) {
        let root = image::rootfs(self.test).display().to_string();
        self.ok(["import", &root, BOX]);
    }

    fn command<I: IntoIterator<Item: AsRef<str>>>(&self, words: I) -> Call {
        let socket = format!("unix://{}", self.folder.join("socket").display());
        let mut all = vec!["--host".to_owned(), socket];
        all.extend(words.into_iter().map(|w| w.as_ref().to_owned()));
        let configuration = self.folder.join("client");
        self.test.program(CLIENT, all).env("DOCKER_CONFIG", configuration)
    }

    fn call<I: IntoIterator<Item: AsRef<str>>>(&self, words: I) -> Output {
        self.command(words).output()
    }

    /// Standard output of a call that must succeed.
    #[track_caller]
    fn ok<I: IntoIterator<Item: AsRef<str>>>(&self, words: I) -> String {
        self.call(words).ok().stdout
    }

    /// `run --rm --network none OPTIONS BOX WORDS`.
    fn run(&self, options: &[&str], words: &[&str]) -> Output {
        self.call([&["run", "--rm", "--network", "none"], options, &[BOX], words].concat())
    }

    /// `run --detach --name NAME --network none OPTIONS BOX sh -c SCRIPT`, which must succeed.
    #[track_caller]
    fn start(&self, name: &str, options: &[&str], script: &str) {
        let own = ["run", "--detach", "--name", name, "--network", "none"];
        self.ok([&own, options, &[BOX, "sh", "-c", script]].concat());
    }

    fn inspect(&self, name: &str, field: &str) -> String {
        let format = format!("{{{{.{field}}}}}");
        self.ok(["inspect", "--type", "container", "--format", &format, name]).trim().to_owned()
    }

    #[track_caller]
    fn await_log(&self, name: &str, text: &str) {
        await_log(name, text, || self.ok(["logs", name]));
    }

    /// The container's process id on the host.
    fn pid(&self, name: &str) -> i32 {
        self.inspect(name, "State.Pid").parse().expect("a pid")
    }
}

fn settings(
    folder: &Path,
    runtime: &Runtime,
    containerd: &Containerd<'_>,
    parent: &str,
) -> hafen_integration::Value {
    let path = |name: &str| folder.join(name).display().to_string();
    // `runc` is a name that dockerd keeps for itself.
    hafen_integration::json!({
        "containerd": containerd.socket(),
        "data-root": path("data"),
        "exec-root": path("exec"),
        "pidfile": path("pid"),
        "hosts": [format!("unix://{}", path("socket"))],
        "runtimes": { "chosen": { "path": runtime.program } },
        "default-runtime": "chosen",
        "cgroup-parent": parent,
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "storage-driver": "overlay2",
        "bridge": "none",
        "iptables": false,
        "ip6tables": false,
        "ip-forward": false,
        "userland-proxy": false,
    })
}

/// What is still there after this is found by the harness.
impl Drop for Docker<'_> {
    fn drop(&mut self) {
        let all = self.call(["ps", "--all", "--quiet"]).stdout;
        for id in all.lines() {
            self.call(["rm", "--force", "--volumes", id]);
        }
        if let Some(daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGTERM);
            daemon.wait();
        }
        for hierarchy in cgroup::hierarchies() {
            remove_cgroup(&hierarchy.mount.join(self.parent.trim_start_matches('/')));
        }
        for stray in &self.strays {
            let _ = if stray.is_dir() { fs::remove_dir_all(stray) } else { fs::remove_file(stray) };
        }
    }
}

fn exit_codes(d: &Docker<'_>) {
    let output = d.run(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]).code(7);
    assert_eq!((&*output.stdout, &*output.stderr), ("out\n", "err\n"));
    d.run(&[], &["/no/such/program"]).code(127);
    d.run(&[], &["no-such-program"]).code(127);
    d.run(&[], &["/script"]).code(126);
    d.run(&["--no-such-option"], &["true"]).code(125);
    d.run(&["--workdir", "relative"], &["true"]).code(125);
}

fn stop_start_restart_remove(d: &Docker<'_>) {
    d.start(
        "one",
        &[],
        "trap 'echo hup' HUP; trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done",
    );
    d.await_log("one", "ready");
    d.ok(["kill", "--signal", "HUP", "one"]);
    d.await_log("one", "hup");
    d.ok(["stop", "one"]);
    assert_eq!(d.inspect("one", "State.ExitCode"), "3");
    d.ok(["start", "one"]);
    let first = d.pid("one");
    d.ok(["restart", "--time", "0", "one"]);
    assert!(d.pid("one") != first, "it is the same process");
    d.ok(["kill", "one"]);
    assert_eq!(d.ok(["wait", "one"]), "137\n");
    assert!(d.call(["kill", "one"]).exit != Some(0), "a stopped container was killed");
    d.ok(["start", "one"]);
    assert!(d.call(["rm", "one"]).exit != Some(0), "a running container was removed");
    d.ok(["rm", "--force", "one"]);
    assert_eq!(d.ok(["ps", "--all", "--quiet"]), "");
}

fn memory_cpu_and_pids(d: &Docker<'_>) {
    d.call([
        "run",
        "--name",
        "eats",
        "--network",
        "none",
        "--memory",
        "32m",
        BOX,
        "tail",
        "-n",
        "1",
        "/dev/zero",
    ])
    .code(137);
    assert_eq!(d.inspect("eats", "State.OOMKilled"), "true");
    let forks = "i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done; wait";
    let forked = d.run(&["--pids-limit", "8"], &["sh", "-c", forks]);
    assert!(forked.stderr.contains("can't fork"), "{forked}");
    d.start("burns", &["--cpus", "0.2"], "while :; do :; done");
    let folder = cgroup::folder(d.pid("burns"), "cpu");
    std::thread::sleep(Duration::from_secs(1));
    let stat = cgroup::value(&folder, "cpu.stat");
    let throttled =
        stat.lines().find_map(|l| l.strip_prefix("nr_throttled ")).map(str::parse::<u64>);
    assert!(matches!(throttled, Some(Ok(3..))), "{stat}");
}

fn exec(d: &Docker<'_>) {
    d.start("one", &["--env", "FIRST=1"], "exec sleep 60");
    let output = d.call(["exec", "one", "sh", "-c", "echo out; echo err >&2; exit 5"]).code(5);
    assert_eq!((&*output.stdout, &*output.stderr), ("out\n", "err\n"));
    let options = ["exec", "--user", "app", "--workdir", "/tmp", "--env", "GIVEN=1", "one"];
    let seen =
        d.ok([&options[..], &["sh", "-c", "id -u; id -G; pwd; echo $GIVEN $FIRST"]].concat());
    assert_eq!(seen, "1000\n1000 2000\n/tmp\n1 1\n");
    let fed = d.command(["exec", "--interactive", "one", "cat"]).stdin("fed\n").output().ok();
    assert_eq!(fed.stdout, "fed\n");
    d.call(["exec", "one", "no-such-program"]).code(126);
    d.call(["exec", "one", "/script"]).code(126);
    d.ok(["exec", "--detach", "one", "sleep", "61"]);
    assert!(d.ok(["top", "one"]).contains("sleep 61"));
}

fn terminals(d: &Docker<'_>) {
    assert_eq!(d.run(&["--tty"], &["tty"]).ok().stdout, "/dev/pts/0\r\n");
    let words = ["run", "--rm", "--network", "none", "--tty", "--interactive", BOX, "size"];
    let seen = in_terminal(d.test, &d.command(words)).output().ok().stdout;
    assert!(seen.contains("33 77"), "{seen}");
    d.start("one", &[], "exec sleep 60");
    let words = ["exec", "--tty", "--interactive", "one", "size"];
    let seen = in_terminal(d.test, &d.command(words)).output().ok().stdout;
    assert!(seen.contains("33 77"), "{seen}");
}

fn pause_top_stats_update(d: &Docker<'_>) {
    d.start("one", &["--memory", "64m"], "sleep 60 & exec sleep 61");
    d.ok(["pause", "one"]);
    assert_eq!(d.inspect("one", "State.Status"), "paused");
    assert!(d.call(["exec", "one", "true"]).exit != Some(0), "exec in a paused container");
    d.ok(["unpause", "one"]);
    let top = d.ok(["top", "one"]);
    assert!(top.contains("sleep 60") && top.contains("sleep 61"), "{top}");
    let stats = d.ok(["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "one"]);
    assert!(stats.contains("/ 64MiB") && stats.trim().ends_with(" 2"), "{stats}");
    d.start("free", &[], "exec sleep 60");
    let free = d.ok(["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "free"]);
    assert!(!free.starts_with("0B") && free.trim().ends_with(" 1"), "{free}");
    let limits = ["--memory", "48m", "--memory-swap", "48m", "--cpus", "0.5", "--pids-limit", "20"];
    d.ok([&["update"], &limits[..], &["one"]].concat());
    let memory =
        if cgroup::v1("memory").is_some() { "memory.limit_in_bytes" } else { "memory.max" };
    let folder = |controller| cgroup::folder(d.pid("one"), controller);
    assert_eq!(cgroup::value(&folder("memory"), memory), (48 << 20).to_string());
    assert_eq!(cgroup::value(&folder("pids"), "pids.max"), "20");
}

fn volumes_and_options(d: &Docker<'_>) {
    let share = d.folder.join("share");
    fs::create_dir_all(&share).expect("mkdir share");
    let bind = format!("{}:/mnt", share.display());
    let options = [
        "--volume",
        &bind,
        "--volume",
        "kept:/data",
        "--tmpfs",
        "/scratch:size=1m",
        "--read-only",
        "--user",
        "app",
        "--workdir",
        "/scratch",
        "--hostname",
        "ship",
        "--env",
        "GIVEN=1",
        "--cap-drop",
        "all",
        "--security-opt",
        "no-new-privileges",
        "--init",
        "--ulimit",
        "nofile=100:200",
        "--shm-size",
        "1m",
        "--device",
        "/dev/fuse:/dev/copy:r",
    ];
    fs::set_permissions(&share, std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("chmod");
    let script = "id -u; pwd; hostname; echo $GIVEN $FROM_IMAGE; cat /data/seed; ulimit -n; touch /x 2>&1; \
        touch /scratch/x; echo new >/mnt/f; cut -d ' ' -f 2 /proc/1/stat; ls /dev/copy; \
        grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status";
    let seen = d.run(&options, &["sh", "-c", script]).ok().stdout;
    let wanted = "1000\n/scratch\nship\n1\nseed\n100\ntouch: /x: Read-only file system\n(docker-init)\n/dev/copy\n\
        CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
    assert_eq!(seen, wanted);
    assert_eq!(fs::read_to_string(share.join("f")).expect("written"), "new\n");
}

fn privileged(d: &Docker<'_>) {
    let everything = d.run(
        &["--privileged", "--pid", "host"],
        &["sh", "-c", "ls /dev/kmsg; grep CapEff /proc/self/status"],
    );
    assert!(everything.ok().stdout.starts_with("/dev/kmsg\n"));
}
