//! Podman, as root, with conmon.

mod exec;
mod limits;
mod pods;
mod run;
mod security;
mod volumes;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hafen_integration::{Call, Case, Need, Output, Test, cgroup, wait_until};

use nix::mount::umount;

use super::{
    Peer, Runtime, await_log, await_the_end_of_processes, image, remove_stray, scenario_of,
};

pub(super) fn trials() -> Vec<Case> {
    let modules = [
        run::scenarios(),
        exec::scenarios(),
        limits::scenarios(),
        security::scenarios(),
        volumes::scenarios(),
        pods::scenarios(),
    ];
    modules.into_iter().flatten().collect()
}

type Scenario = fn(&Podman<'_>);

/// What is different on unified cgroups, and one of each kind.
const IN_VM: [&str; 7] = [
    "exit_codes",
    "exec",
    "terminals",
    "pause_unpause",
    "update",
    "memory_cpu_and_pids",
    "privileged_and_devices",
];

fn case(name: &str, more: Vec<Need>, peer: Peer, scenario: Scenario) -> Case {
    let needs = hafen_integration::needs![Program("podman"), Program("conmon")];
    scenario_of("podman", (name, &IN_VM), &[needs, more], peer, move |t, runtime| {
        scenario(&Podman::new(t, runtime.clone()));
    })
}

/// The image's name in Podman's storage.
const BOX: &str = "localhost/box:latest";

/// Podman with storage, state and configuration of its own, and one runtime.
struct Podman<'t> {
    test: &'t Test,
    folder: PathBuf,
    runtime: Runtime,
    /// What was not there before, and Podman makes outside of the folders that it is given.
    strays: Vec<PathBuf>,
}

/// What no option moves: where containers/image remembers what it copied, Podman's locks, and the folders that runtimes
/// keep, because Podman gives them no `--root`.
const STRAYS: [&str; 5] =
    ["/var/lib/containers", "/dev/shm/libpod_lock", "/run/hafen-oci", "/run/runc", "/run/crun"];

impl<'t> Podman<'t> {
    fn new(test: &'t Test, runtime: Runtime) -> Self {
        // Podman takes no run folder of more than 50 characters.
        let folder = test.dir().join(format!("p-{:.4}", runtime.name));
        fs::create_dir_all(&folder).expect("mkdir for Podman");
        let parents = cgroup::hierarchies().into_iter().map(|h| h.mount.join("libpod_parent"));
        let all = parents.chain(STRAYS.iter().map(PathBuf::from));
        let strays = all.filter(|path| !path.exists()).collect();
        let podman = Self { test, folder, runtime, strays };
        fs::write(podman.configuration(), podman.settings()).expect("write containers.conf");
        let layout = format!("oci:{}:box", image::layout(test).display());
        let id = podman.ok(["pull", "--quiet", &layout]);
        podman.ok(["tag", id.trim(), BOX]);
        podman
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("containers.conf")
    }

    fn settings(&self) -> String {
        let Runtime { name, program } = &self.runtime;
        // Podman asks for more open files and processes than a machine without CAP_SYS_RESOURCE may give, and
        // other runtimes fail then; `rlimits_are_clamped` leaves the lines out.
        format!(
            r#"[containers]
netns = "none"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "{name}"
runtime_supports_json = ["{name}"]

[engine.runtimes]
{name} = ["{}"]
"#,
            program.display()
        )
    }

    /// Replaces what `containers.conf` says.
    fn configure(&self, edit: impl FnOnce(String) -> String) {
        fs::write(self.configuration(), edit(self.settings())).expect("write containers.conf");
    }

    fn command<I: IntoIterator<Item: AsRef<str>>>(&self, words: I) -> Call {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut all =
            vec!["--root".to_owned(), path("storage"), "--runroot".to_owned(), path("run")];
        all.extend(["--tmpdir".to_owned(), path("tmp"), "--storage-driver=overlay".to_owned()]);
        all.extend(words.into_iter().map(|w| w.as_ref().to_owned()));
        let call = self.test.program("podman", all).env("CONTAINERS_CONF", self.configuration());
        call.time_limit(Duration::from_secs(60))
    }

    fn call<I: IntoIterator<Item: AsRef<str>>>(&self, words: I) -> Output {
        self.command(words).output()
    }

    /// Standard output of a call that must succeed.
    #[track_caller]
    fn ok<I: IntoIterator<Item: AsRef<str>>>(&self, words: I) -> String {
        self.call(words).ok().stdout
    }

    /// `run --rm OPTIONS BOX WORDS`.
    fn run(&self, options: &[&str], words: &[&str]) -> Output {
        self.call([&["run", "--rm"], options, &[BOX], words].concat())
    }

    /// Standard output of `run --rm OPTIONS BOX sh -c SCRIPT`, which must succeed.
    #[track_caller]
    fn sh(&self, options: &[&str], script: &str) -> String {
        self.run(options, &["sh", "-c", script]).ok().stdout
    }

    /// `run --detach --name NAME OPTIONS BOX sh -c SCRIPT`, which must succeed.
    #[track_caller]
    fn start(&self, name: &str, options: &[&str], script: &str) {
        let words = [&["run", "--detach", "--name", name], options, &[BOX, "sh", "-c", script]];
        self.ok(words.concat());
    }

    fn inspect(&self, name: &str, field: &str) -> String {
        let format = format!("{{{{.{field}}}}}");
        self.ok(["inspect", "--type", "container", "--format", &format, name]).trim().to_owned()
    }

    #[track_caller]
    fn await_status(&self, name: &str, wanted: &str) {
        let mut status = String::new();
        let reached = wait_until(Duration::from_secs(10), || {
            status = self.inspect(name, "State.Status");
            (status == wanted).then_some(())
        });
        assert!(reached.is_some(), "{name} is {status}, not {wanted}");
    }

    #[track_caller]
    fn await_log(&self, name: &str, text: &str) {
        await_log(name, text, || self.ok(["logs", name]));
    }

    /// The container's process id on the host.
    fn pid(&self, name: &str) -> i32 {
        self.inspect(name, "State.Pid").parse().expect("a pid")
    }

    /// The cgroup folder of the container's process, see [`cgroup::folder`].
    fn cgroup(&self, name: &str, controller: &str) -> PathBuf {
        cgroup::folder(self.pid(name), controller)
    }
}

/// What is still there after this is found by the harness.
impl Drop for Podman<'_> {
    fn drop(&mut self) {
        self.call(["pod", "rm", "--all", "--force", "--time", "0"]);
        self.call(["rm", "--all", "--force", "--time", "0", "--volumes"]);
        // conmon starts one more Podman when its container ends.
        await_the_end_of_processes(&self.folder);
        // The storage stays mounted on itself, privately, where the host's mounts are shared.
        let _ = umount(&self.folder.join("storage/overlay"));
        self.strays.iter().for_each(|stray| remove_stray(stray));
    }
}
