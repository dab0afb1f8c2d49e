//! Cgroups that systemd makes. It runs as the init of namespaces of its own: the machine's is left alone.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hafen_integration::{
    Bundle, Call, Case, Output, Running, Test, Value, cases, cgroup, json, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const MIB: u64 = 1 << 20;
const SYSTEMD: &str = "/lib/systemd/systemd";
/// The unit that is given out.
const AGENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/hafen-agent.service");

/// Only systemd itself is in the folder: with processes in it no controller could be passed on. The mount program of
/// busybox writes no file about what it mounts. Of units there are those that are written here: the machine's would do to
/// its files what they do at a boot.
const INIT: &str = r#"
if [ "$2" != again ]; then
    echo 0 >"$1/cgroup.procs"
    exec unshare --cgroup sh -e "$0" "$1" again
fi
mount() { /bin/busybox mount "$@"; }
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /run/dev /run/systemd/system
mount -t tmpfs dev /run/dev
for node in null zero full random urandom tty; do cp -a /dev/$node /run/dev/; done
mkdir /run/dev/shm /run/dev/pts
mount -o move /run/dev /dev
/bin/busybox umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup /sys/fs/cgroup
for name in hafen sysinit basic shutdown network local-fs; do
    printf '[Unit]\nDefaultDependencies=no\n' >/run/systemd/system/$name.target
done
mount -t tmpfs programs /usr/local/sbin
ln -s "$PROGRAMS/hafen" "$PROGRAMS/hafen-oci" /usr/local/sbin/
mount -t tmpfs state /var/lib
cp "$UNIT" /run/systemd/system/
echo ready
exec env -i container=hafen PATH="$PATH" SYSTEMD_UNIT_PATH=/run/systemd/system.control:/run/systemd/transient:/run/systemd/system /lib/systemd/systemd --system --unit=hafen.target --show-status=no --log-target=console
"#;

pub(crate) fn trials() -> Vec<Case> {
    let there = || {
        // systemd would load it, and the kernel make its node in `/dev` at that moment.
        let _ = std::process::Command::new("modprobe").args(["-q", "autofs4"]).status();
        Path::new(SYSTEMD).exists()
    };
    let absent = || !Path::new("/run/systemd/system").exists();
    cases![
        refused_where_systemd_does_not_run(Root, Busybox, That("no systemd as init", absent)),
        a_scope_in_a_slice(Root, Busybox, Program("nsenter"), That("systemd", there)),
        limits_are_known_to_systemd(
            Root,
            Busybox,
            Unified,
            Program("nsenter"),
            That("systemd", there)
        ),
        a_scope_of_one_process(Root, Busybox, Unified, Program("nsenter"), That("systemd", there)),
        what_a_killed_runtime_left_is_released(
            Root,
            Busybox,
            Program("nsenter"),
            That("systemd", there)
        ),
        a_scope_of_somebody_else_is_left_alone(
            Root,
            Busybox,
            Program("nsenter"),
            That("systemd", there)
        ),
        the_agents_unit_is_well(Root, Busybox, Program("nsenter"), That("systemd", there)),
        the_agent_is_a_service(Root, Busybox, Program("nsenter"), That("systemd", there)),
    ]
}

fn refused_where_systemd_does_not_run(t: &Test) {
    let (oci, bundle) = (t.oci(), t.bundle().sh("exit 0"));
    let root = format!("--root={}", oci.root().display());
    let path = bundle.path().display().to_string();
    let run =
        |id: &str| oci.bare([&root, "--systemd-cgroup", "run", "--bundle", &path, id]).output();
    run(&t.id()).error_with(["--systemd-cgroup", "/run/systemd/system", "leave the option out"]);
    let explain = oci.bare([&root, "--systemd-cgroup", "explain", &path]).output();
    explain.error_with(["--systemd-cgroup"]);
}

/// A systemd that sees the cgroup that it was started in as the root, and none of the machine's files in `/run`.
struct Manager<'t> {
    t: &'t Test,
    pid: i32,
    folder: PathBuf,
    outer: Option<Running>,
}

impl<'t> Manager<'t> {
    fn start(t: &'t Test) -> Self {
        let folder = cgroup::tree().expect("a cgroup2 tree").join(t.id());
        fs::create_dir(&folder).expect("make a cgroup");
        fs::create_dir(folder.join("callers")).expect("make a cgroup");
        let script = t.dir().join("init.sh");
        fs::write(&script, INIT).expect("write a script");
        let script = script.display().to_string();
        let folder_text = folder.display().to_string();
        let words = ["--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net"];
        let words =
            words.iter().copied().chain(["--mount-proc", "sh", "-e", &script, &folder_text]);
        let oci = t.oci();
        let programs = oci.program().parent().expect("a folder");
        let call = t.program("unshare", words).env("PROGRAMS", programs).env("UNIT", AGENT);
        let mut outer = call.time_limit(Duration::from_secs(300)).spawn();
        outer.await_text("ready");
        let child = || {
            let path = format!("/proc/{0}/task/{0}/children", outer.pid());
            let text = fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace().next().and_then(|pid| pid.parse().ok())
        };
        let pid: i32 = wait_until(Duration::from_secs(10), child).expect("systemd's pid");
        let manager = Self { t, pid, folder, outer: Some(outer) };
        let socket = format!("/proc/{pid}/root/run/systemd/private");
        let up = wait_until(Duration::from_secs(60), || {
            Path::new(&socket).exists().then_some(()).filter(|()| {
                manager.call(["systemctl", "is-system-running"]).output().exit.is_some()
                    && manager.show("-.slice", "ActiveState") == "active"
            })
        });
        assert!(up.is_some(), "systemd does not come up: {}", manager.said());
        manager
    }

    fn said(&self) -> String {
        self.outer.as_ref().map_or_else(String::new, |o| format!("{}{}", o.stdout(), o.stderr()))
    }

    /// A call in systemd's namespaces, from a cgroup that it can see.
    fn enter(&self, words: &[&str]) -> Call {
        let script = format!(
            "echo $$ >{}/callers/cgroup.procs && exec nsenter -t {} -p -m -C -u -i -n -- \"$@\"",
            self.folder.display(),
            self.pid
        );
        self.t.program("sh", ["-c", &script, "sh"].iter().chain(words))
    }

    fn call<const N: usize>(&self, words: [&str; N]) -> Call {
        self.enter(&words)
    }

    fn show(&self, unit: &str, property: &str) -> String {
        let output =
            self.call(["systemctl", "show", "--value", "-p", property, "--", unit]).output();
        output.stdout.trim().to_owned()
    }

    fn oci<const N: usize>(&self, words: [&str; N]) -> Call {
        let oci = self.t.oci();
        let program = oci.program().display().to_string();
        let root = format!("--root={}", oci.root().display());
        let head = [&*program, &*root, "--systemd-cgroup"];
        self.enter(&head.iter().chain(&words).copied().collect::<Vec<_>>())
    }

    fn create(&self, id: &str, bundle: &Bundle) -> Output {
        self.oci(["create", "--bundle", &bundle.path().display().to_string(), id]).output()
    }

    fn end(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(outer) = self.outer.take() else { return };
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = outer.wait();
        let empty = wait_until(Duration::from_secs(20), || remove(&self.folder).ok());
        assert!(empty.is_some(), "{} remains", self.folder.display());
    }
}

/// After a failure its end is not checked.
impl Drop for Manager<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
            drop(self.outer.take());
            wait_until(Duration::from_secs(20), || remove(&self.folder).ok());
        }
    }
}

fn remove(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten().filter(|e| e.path().is_dir()) {
        remove(&entry.path())?;
    }
    fs::remove_dir(folder)
}

fn sleeper(t: &Test, path: &str) -> Bundle {
    t.bundle().args(["/inside", "sleep", "600"]).set("/linux/cgroupsPath", json!(path))
}

fn a_scope_in_a_slice(t: &Test) {
    let manager = Manager::start(t);
    let id = t.id();
    let bundle = sleeper(t, &format!("hafen-test.slice:h:{id}"));
    let _ = manager.create(&id, &bundle).ok();
    let _ = manager.oci(["start", &id]).output().ok();
    let unit = format!("h-{id}.scope");
    let folder = manager.folder.join("hafen.slice/hafen-test.slice").join(&unit);
    let wanted = format!("/hafen.slice/hafen-test.slice/{unit}");
    assert_eq!(manager.show(&unit, "ControlGroup"), wanted);
    assert_eq!(manager.show(&unit, "ActiveState"), "active");
    assert_eq!(manager.show(&unit, "Delegate"), "yes");
    // The one that kept the place is gone.
    assert_eq!(cgroup::value(&folder, "cgroup.procs").lines().count(), 1);
    let state = manager.oci(["state", &id]).output().ok().json();
    assert_eq!(state["status"], "running", "{state}");
    let _ = manager.oci(["pause", &id]).output().ok();
    let _ = manager.oci(["resume", &id]).output().ok();
    let stats = manager.oci(["events", "--stats", &id]).output().ok().json();
    let used = stats["data"]["cpu"]["usage"]["total"].as_u64();
    assert!(used.is_some_and(|n| n > 0), "{stats}");
    let _ = manager.oci(["kill", &id, "KILL"]).output().ok();
    let stopped =
        || (manager.oci(["state", &id]).output().json()["status"] == "stopped").then_some(());
    assert!(wait_until(Duration::from_secs(20), stopped).is_some());
    let _ = manager.oci(["delete", &id]).output().ok();
    assert!(!folder.exists(), "{} remains", folder.display());
    assert_eq!(manager.show(&unit, "LoadState"), "not-found");
    // Without a path it is a scope of the system's slice.
    let id = t.id();
    let _ = manager
        .oci([
            "run",
            "--bundle",
            &t.bundle().args(["/inside", "exit", "3"]).path().display().to_string(),
            &id,
        ])
        .output()
        .code(3);
    assert_eq!(manager.show(&format!("hafen-{id}.scope"), "LoadState"), "not-found");
    // A path as without systemd is no name of a scope.
    let wrong = manager.create(&t.id(), &sleeper(t, "/some/where"));
    wrong.error_with(["linux.cgroupsPath", "slice:prefix:name"]);
    manager.end();
}

fn limits_are_known_to_systemd(t: &Test) {
    let manager = Manager::start(t);
    let id = t.id();
    let bundle = sleeper(t, &format!("system.slice:h:{id}"))
        .set("/linux/resources/memory/limit", json!(64 * MIB))
        .set("/linux/resources/cpu", json!({ "quota": 33_300, "period": 100_000, "cpus": "0" }))
        .set("/linux/resources/pids/limit", json!(32));
    let _ = manager.create(&id, &bundle).ok();
    let unit = format!("h-{id}.scope");
    let folder = manager.folder.join("system.slice").join(&unit);
    let check = |memory: u64, pids: &str| {
        assert_eq!(manager.show(&unit, "MemoryMax"), memory.to_string());
        assert_eq!(manager.show(&unit, "TasksMax"), pids);
        assert_eq!(cgroup::value(&folder, "memory.max"), memory.to_string());
        assert_eq!(cgroup::value(&folder, "pids.max"), pids);
    };
    check(64 * MIB, "32");
    assert_eq!(manager.show(&unit, "CPUQuotaPerSecUSec"), "340ms");
    assert_eq!(manager.show(&unit, "AllowedCPUs"), "0");
    assert_eq!(cgroup::value(&folder, "cpu.max"), "33300 100000");
    let _ = manager.oci(["update", "--memory", "96M", "--pids-limit", "33", &id]).output().ok();
    check(96 * MIB, "33");
    // It writes what it knows, which is what we said.
    let _ = manager.call(["systemctl", "daemon-reload"]).output().ok();
    check(96 * MIB, "33");
    let _ = manager.oci(["delete", "--force", &id]).output().ok();
    manager.end();
}

fn a_scope_of_one_process(t: &Test) {
    let manager = Manager::start(t);
    let id = t.id();
    let bundle = sleeper(t, &format!("system.slice:h:{id}"))
        .args(["/inside", "exit", "5"])
        .set("/linux/resources/pids/limit", json!(1));
    let path = bundle.path().display().to_string();
    let _ = manager.oci(["run", "--bundle", &path, &id]).output().code(5);
    manager.end();
}

fn what_a_killed_runtime_left_is_released(t: &Test) {
    let manager = Manager::start(t);
    let bundle = |id: &str| sleeper(t, &format!("system.slice:h:{id}"));
    for point in 0..40 {
        let id = t.id();
        let path = bundle(&id).path().display().to_string();
        let create = manager.oci(["create", "--bundle", &path, &id]);
        let survived = create.env("HAFEN_FAULT", point.to_string()).output().exit == Some(0);
        let _ = manager.oci(["delete", "--force", &id]).output().ok();
        let unit = format!("h-{id}.scope");
        let gone = wait_until(Duration::from_secs(10), || {
            (manager.show(&unit, "LoadState") == "not-found").then_some(())
        });
        assert!(gone.is_some(), "{unit} remains after a death at {point}");
        let folder = manager.folder.join("system.slice").join(&unit);
        assert!(!folder.exists(), "{} remains after a death at {point}", folder.display());
        if survived {
            assert!(point > 4, "only {point} points");
            return manager.end();
        }
    }
    panic!("create never came to its end");
}

fn a_scope_of_somebody_else_is_left_alone(t: &Test) {
    let manager = Manager::start(t);
    let id = t.id();
    let bundle = sleeper(t, &format!("system.slice:h:{id}"));
    let _ = manager.create(&id, &bundle).ok();
    let other = t.id();
    let output = manager.create(&other, &bundle);
    assert_eq!(output.exit, Some(1), "{output}");
    assert!(output.stderr.contains("in use by") || output.stderr.contains("already"), "{output}");
    let state: Value = manager.oci(["state", &id]).output().ok().json();
    assert_eq!(state["status"], "created", "{state}");
    let _ = manager.oci(["delete", "--force", &id]).output().ok();
    manager.end();
}

fn the_agents_unit_is_well(t: &Test) {
    let manager = Manager::start(t);
    let unit = "/run/systemd/system/hafen-agent.service";
    let verified = manager.call(["systemd-analyze", "verify", "--man=no", unit]).output().ok();
    assert!(!format!("{verified}").contains("hafen-agent.service:"), "{verified}");
    manager.end();
}

/// Stands where the journal listens: without one the unit's agent does not start, and one that does not read stops it.
struct Journal {
    path: PathBuf,
    reading: JoinHandle<Vec<String>>,
}

impl Journal {
    const END: &str = "no more";

    fn of(manager: &Manager<'_>) -> Self {
        let folder = PathBuf::from(format!("/proc/{}/root/run/systemd/journal", manager.pid));
        fs::create_dir_all(&folder).expect("mkdir");
        let path = folder.join("socket");
        let ours = UnixDatagram::bind(&path).expect("bind");
        let reading = thread::spawn(move || {
            let (mut told, mut bytes) = (Vec::new(), [0; 16384]);
            while let Ok(length) = ours.recv(&mut bytes) {
                told.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
                if told.last().is_some_and(|text| text == Self::END) {
                    break;
                }
            }
            told
        });
        Self { path, reading }
    }

    /// All that was told.
    fn end(self) -> Vec<String> {
        let to = UnixDatagram::unbound().expect("a socket");
        to.send_to(Self::END.as_bytes(), self.path).expect("sent");
        self.reading.join().expect("it reads")
    }
}

const UNIT: &str = "hafen-agent.service";

fn the_agent_is_a_service(t: &Test) {
    let manager = Manager::start(t);
    let journal = Journal::of(&manager);
    let hafen = |words: &[&str]| manager.enter(&[&["/usr/local/sbin/hafen"], words].concat());
    let pid = |name: &str| {
        let task = hafen(&["inspect", name]).output().ok().json();
        (task["state"].as_str().map(str::to_owned), task["pid"].as_i64())
    };
    // It is told to have been started when it answers.
    let _ = manager.call(["systemctl", "start", UNIT]).output().ok();
    assert_eq!(manager.show(UNIT, "ActiveState"), "active");
    assert_eq!(manager.show(UNIT, "Delegate"), "yes");
    let rootfs = t.bundle().rootfs().display().to_string();
    let run = ["run", "-d", "--name", "a", "--rootfs", &rootfs];
    let limit: &[&str] = if cgroup::v1("memory").is_none() { &["--memory", "64M"] } else { &[] };
    let words = [&run[..], limit, &["--", "/bin/sleep", "1000"]].concat();
    let _ = hafen(&words).output().ok();
    let runs = || pid("a").0.filter(|state| state == "STATE_RUNNING");
    assert!(wait_until(Duration::from_secs(30), runs).is_some(), "{}", manager.said());
    let _ = hafen(&["exec", "a", "/bin/true"]).output().ok();
    let first = pid("a");
    assert!(first.0.as_deref() == Some("STATE_RUNNING") && first.1 > Some(0), "{first:?}");
    let main = || manager.show(UNIT, "MainPID");
    let folder = manager.folder.join("hafen/hafen/a+1");
    let holds = || {
        assert_eq!(cgroup::value(&folder, "cgroup.procs").lines().count(), 1);
        if !limit.is_empty() {
            assert_eq!(cgroup::value(&folder, "memory.max"), (64 * MIB).to_string());
        }
    };
    holds();
    // systemd looks at everything again, and writes what it knows.
    let _ = manager.call(["systemctl", "daemon-reload"]).output().ok();
    holds();
    // Killed, it is started again.
    let before = main();
    let _ =
        manager.call(["systemctl", "kill", "-s", "KILL", "--kill-who=main", UNIT]).output().ok();
    let again = wait_until(Duration::from_secs(30), || {
        (manager.show(UNIT, "ActiveState") == "active" && main() != before).then_some(())
    });
    assert!(again.is_some(), "{}", manager.said());
    assert_eq!(pid("a"), first);
    // Started anew, as for another version.
    let _ = manager.call(["systemctl", "restart", UNIT]).output().ok();
    assert_eq!(pid("a"), first);
    holds();
    // While it is stopped, what runs goes on, and is kept.
    let _ = manager.call(["systemctl", "stop", UNIT]).output().ok();
    assert_eq!(manager.show(UNIT, "ActiveState"), "inactive");
    hafen(&["ps"]).output().failed_with(6, ["no agent listens"]);
    holds();
    let _ = manager.call(["systemctl", "start", UNIT]).output().ok();
    assert_eq!(pid("a"), first);
    let _ = hafen(&["kill", "a"]).output().ok();
    let ended = hafen(&["wait", "a"]).output().ok();
    assert_eq!(ended.stdout, "137\n");
    let _ = hafen(&["rm", "a"]).output().ok();
    assert!(!folder.exists(), "{} remains", folder.display());
    let _ = manager.call(["systemctl", "stop", UNIT]).output().ok();
    // What it logs goes to the journal.
    let told = journal.end();
    let ready = told.iter().filter(|text| text.contains("\0ready\n")).count();
    assert_eq!(ready, 4, "{told:#?}");
    manager.end();
}
