//! containerd with a shim for each container, through `ctr`, which is the client that comes with it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Ended, Ends, Error, Node, Program, Wanted, call, gate, image, says, wait_until};
use crate::host::Host;
use crate::images::layout::Made;
use crate::programs::ask_version;

pub const NAME: &str = "containerd";
/// Where shims put their sockets; no option moves it.
const SOCKETS: &str = "/run/containerd";

#[derive(Debug)]
pub struct Containerd {
    program: PathBuf,
    folder: PathBuf,
    gate: PathBuf,
    host: Host,
    daemon: Program,
    group: String,
    had_sockets: bool,
}

impl Containerd {
    pub fn new(
        program: &Path,
        folder: &Path,
        run: &Path,
        made: &Made,
        gate: &Path,
        host: &Host,
    ) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(says("mkdir", folder))?;
        let file = folder.join("config.toml");
        fs::write(&file, settings(folder, run)).map_err(says("write", &file))?;
        let had_sockets = Path::new(SOCKETS).exists();
        let log = fs::File::create(folder.join("log")).map_err(says("create", folder))?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&file).stdout(Stdio::null()).stderr(log);
        let daemon = Program::begin(&mut command).map_err(says("run", program))?;
        let this = Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            gate: gate.to_owned(),
            host: host.clone(),
            daemon,
            group: format!("bench-containerd-{}", std::process::id()),
            had_sockets,
        };
        wait_until("containerd answers", || call(this.ctr().arg("version")).is_ok())?;
        let mut import = this.ctr();
        call(import.args(["image", "import", "--index-name", image::NAME]).arg(&made.archive))?;
        Ok(this)
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.folder.join("socket"));
        command
    }
}

fn settings(folder: &Path, run: &Path) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\n\
         [grpc]\n  address = \"{}\"\n\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{}\"\n",
        path("root"),
        run.display(),
        path("socket"),
        path("opt")
    )
}

impl Node for Containerd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        ask_version(&self.program, &self.folder)
    }

    fn daemon(&self) -> Option<i32> {
        Some(self.daemon.pid())
    }

    fn start(&self, wanted: &Wanted) -> Result<(), Error> {
        let mount = format!(
            "type=bind,src={},dst={},options=rbind",
            self.gate.display(),
            gate::FOLDER_INSIDE
        );
        let group = format!("/{}/{}", self.group, wanted.name);
        let mut run = self.ctr();
        run.args(["run", "--detach", "--null-io", "--cgroup", &group, "--mount", &mount]);
        run.args([image::NAME, &wanted.name]).args(wanted.command());
        call(&mut run).map(drop)
    }

    fn destroy(&self, names: &[String]) -> Result<(), Error> {
        if names.is_empty() {
            return Ok(());
        }
        // It fails for those that have ended and are gone already; what it leaves, the next call tells.
        let ended = call(self.ctr().args(["task", "rm", "--force"]).args(names));
        call(self.ctr().args(["container", "rm"]).args(names)).map(drop).or(ended.map(drop))
    }

    fn ends(&self) -> Result<Ends, Error> {
        let mut command = self.ctr();
        command.arg("events").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut listener = Program::begin(&mut command)?;
        let lines = listener.child().stdout.take().ok_or("ctr events: no output")?;
        let (sender, told) = channel();
        thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let at = Instant::now();
                let Some((_, exit)) = line.split_once("/tasks/exit ") else { continue };
                let name =
                    exit.split_once("\"container_id\":\"").and_then(|(_, n)| n.split_once('"'));
                let Some((name, _)) = name else { continue };
                if sender.send(Ended { name: name.to_owned(), at }).is_err() {
                    return;
                }
            }
        });
        // It does not say when it listens.
        thread::sleep(Duration::from_millis(500));
        Ok(Ends { told, listener: Some(listener) })
    }

    fn stats(&self) -> Result<Option<usize>, Error> {
        Ok(None)
    }

    fn recover(&mut self, _count: usize) -> Result<Option<Duration>, Error> {
        Ok(None)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let list = call(self.ctr().args(["container", "ls", "--quiet"])).unwrap_or_default();
        let names: Vec<String> = list.lines().map(str::to_owned).collect();
        if let Err(e) = self.destroy(&names) {
            eprintln!("bench-agent: remove containers of containerd: {e}");
        }
        self.daemon.end(Signal::SIGTERM);
        self.host.sweep(&self.group);
        if !self.had_sockets {
            let _ = fs::remove_dir_all(SOCKETS);
        }
    }
}
