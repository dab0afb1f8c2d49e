//! buildah, whose `run` goes through the runtime.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hafen_integration::{Case, Output, Test};
use nix::mount::umount;

use super::{Peer, QUICK, Runtime, image, remove_stray, tell_apart};

pub(super) fn trials() -> Vec<Case> {
    let needs = hafen_integration::needs![
        Root,
        Busybox,
        Program("buildah"),
        Program("umoci"),
        Program("runc")
    ];
    let needs = [needs, vec![QUICK]].concat();
    vec![Case::new("clients::buildah::from_run_copy_commit", needs, |t| {
        tell_apart(t, Peer::Passes("runc"), |runtime| {
            from_run_copy_commit(&Buildah::new(t, runtime.clone()));
        });
    })]
}

/// buildah with storage of its own.
struct Buildah<'t> {
    test: &'t Test,
    folder: PathBuf,
    runtime: Runtime,
    strays: Vec<PathBuf>,
}

const STRAYS: [&str; 5] =
    ["/var/lib/containers", "/run/hafen-oci", "/run/runc", "/run/crun", "/run/lock/netavark.lock"];

impl<'t> Buildah<'t> {
    fn new(test: &'t Test, runtime: Runtime) -> Self {
        let folder = test.dir().join(format!("buildah-{}", runtime.name));
        fs::create_dir_all(&folder).expect("mkdir for buildah");
        fs::write(
            folder.join("containers.conf"),
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n",
        )
        .expect("write containers.conf");
        let strays = STRAYS.iter().map(PathBuf::from).filter(|path| !path.exists()).collect();
        Self { test, folder, runtime, strays }
    }

    fn call(&self, words: &[&str]) -> Output {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let (storage, run) = (path("storage"), path("run"));
        let own = ["--root", &storage, "--runroot", &run, "--storage-driver=overlay"];
        let call = self.test.program("buildah", [&own, words].concat());
        let call = call.env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        call.time_limit(Duration::from_secs(60)).output()
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        self.call(words).ok().stdout
    }

    /// `run OPTIONS box WORDS`.
    fn run(&self, options: &[&str], words: &[&str]) -> Output {
        let program = self.runtime.program.display().to_string();
        let own = ["run", "--isolation=oci", "--network=none", "--runtime", &program];
        self.call(&[&own, options, &["box", "--"], words].concat())
    }
}

/// What is still there after this is found by the harness.
impl Drop for Buildah<'_> {
    fn drop(&mut self) {
        self.call(&["rm", "--all"]);
        let _ = umount(&self.folder.join("storage/overlay"));
        self.strays.iter().for_each(|stray| remove_stray(stray));
    }
}

fn from_run_copy_commit(b: &Buildah<'_>) {
    let layout = format!("oci:{}:box", image::layout(b.test).display());
    b.ok(&["from", "--name", "box", &layout]);
    b.run(&[], &["sh", "-c", "echo made >/made; exit 0"]).ok();
    b.run(&[], &["sh", "-c", "exit 3"]).code(3);
    let seen = b.run(
        &["--user", "app", "--workingdir", "/tmp", "--env", "A=1"],
        &["sh", "-c", "id -u; pwd; echo $A"],
    );
    assert_eq!(seen.ok().stdout, "1000\n/tmp\n1\n");
    let file = b.folder.join("file");
    fs::write(&file, "copied\n").expect("write a file");
    b.ok(&["copy", "box", &file.display().to_string(), "/copied"]);
    let seen = b.run(
        &["--volume", &format!("{}:/host:ro", b.folder.display())],
        &["cat", "/copied", "/made", "/host/file"],
    );
    assert_eq!(seen.ok().stdout, "copied\nmade\ncopied\n");
    let missing = b.run(&[], &["no-such-program"]);
    assert!(missing.exit != Some(0) && missing.stderr.contains("no-such-program"), "{missing}");
    b.ok(&["commit", "--quiet", "box", "made"]);
    b.ok(&["from", "--name", "again", "made"]);
}
