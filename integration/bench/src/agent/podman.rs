//! Podman as root, with conmon for each container.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use super::{Ended, Ends, Error, Node, Program, Wanted, call, gate, image, says};
use crate::host::Host;
use crate::images::layout::Made;
use crate::programs::ask_version;

pub const NAME: &str = "podman";
/// crun refuses a hybrid host whose cgroup2 tree has controllers.
const RUNTIME: &str = "runc";
/// What no option moves.
const STRAYS: [&str; 4] =
    ["/var/lib/containers", "/dev/shm/libpod_lock", "/run/runc", "/run/libpod"];

#[derive(Debug)]
pub struct Podman {
    program: PathBuf,
    folder: PathBuf,
    run: PathBuf,
    gate: PathBuf,
    host: Host,
    group: String,
    strays: Vec<PathBuf>,
}

impl Podman {
    pub fn new(
        program: &Path,
        folder: &Path,
        run: &Path,
        made: &Made,
        gate: &Path,
        host: &Host,
    ) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(says("mkdir", folder))?;
        let file = folder.join("containers.conf");
        fs::write(&file, settings()).map_err(says("write", &file))?;
        let strays = STRAYS.iter().map(PathBuf::from).filter(|path| !path.exists()).collect();
        let this = Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            run: run.to_owned(),
            gate: gate.to_owned(),
            host: host.clone(),
            group: format!("bench-podman-{}", std::process::id()),
            strays,
        };
        let layout = format!("oci:{}:made", made.layout.display());
        let id = call(this.podman().args(["pull", "--quiet", &layout]))?;
        call(this.podman().args(["tag", id.trim(), image::NAME]))?;
        Ok(this)
    }

    fn podman(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.folder.join("storage")).arg("--runroot").arg(&self.run);
        command.arg("--tmpdir").arg(self.folder.join("tmp")).arg("--storage-driver=overlay");
        command.env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        command
    }
}

/// It asks for more open files and processes than a machine without CAP_SYS_RESOURCE may give, and runc fails then.
fn settings() -> String {
    format!(
        "[containers]\nnetns = \"none\"\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
         log_driver = \"k8s-file\"\n\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
         runtime = \"{RUNTIME}\"\n"
    )
}

impl Node for Podman {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        ask_version(&self.program, &self.folder)
    }

    fn daemon(&self) -> Option<i32> {
        None
    }

    fn start(&self, wanted: &Wanted) -> Result<(), Error> {
        let volume = format!("{}:{}", self.gate.display(), gate::FOLDER_INSIDE);
        let group = format!("/{}", self.group);
        let mut run = self.podman();
        run.args(["run", "--detach", "--network", "none", "--name", &wanted.name]);
        run.args(["--cgroup-parent", &group, "--volume", &volume, image::NAME]);
        call(run.args(wanted.command())).map(drop)
    }

    fn destroy(&self, names: &[String]) -> Result<(), Error> {
        if names.is_empty() {
            return Ok(());
        }
        call(self.podman().args(["rm", "--force", "--time", "0"]).args(names)).map(drop)
    }

    fn ends(&self) -> Result<Ends, Error> {
        let mut command = self.podman();
        command.args(["events", "--filter", "event=died", "--format", "{{.Name}}"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut listener = Program::begin(&mut command)?;
        let lines = listener.child().stdout.take().ok_or("podman events: no output")?;
        let (sender, told) = channel();
        thread::spawn(move || {
            for name in BufReader::new(lines).lines().map_while(Result::ok) {
                if sender.send(Ended { name, at: Instant::now() }).is_err() {
                    return;
                }
            }
        });
        // It does not say when it listens.
        thread::sleep(Duration::from_millis(1000));
        Ok(Ends { told, listener: Some(listener) })
    }

    fn stats(&self) -> Result<Option<usize>, Error> {
        let lines = call(self.podman().args(["stats", "--no-stream", "--format", "{{.Name}}"]))?;
        Ok(Some(lines.lines().count()))
    }

    fn recover(&mut self, _count: usize) -> Result<Option<Duration>, Error> {
        Ok(None)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(e) = call(self.podman().args(["rm", "--all", "--force", "--time", "0"])) {
            eprintln!("bench-agent: remove containers of Podman: {e}");
        }
        // It mounts its own storage and a folder for secrets.
        let _ = nix::mount::umount(&self.folder.join("storage/overlay"));
        self.host.sweep(&self.group);
        for path in &self.strays {
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}
