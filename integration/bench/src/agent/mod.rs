//! Nodes that run containers for somebody: ours, containerd and Podman, each asked to do the same.

pub mod containerd;
pub mod gate;
pub mod hafen;
pub mod image;
pub mod podman;
pub mod processes;
pub mod report;
pub mod round;

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// For one call of a peer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A container to be started.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub name: String,
    /// What it runs says its name at the gate first, then sleeps for this number of seconds: so its process is found.
    pub sleep: u64,
}

impl Wanted {
    pub fn command(&self) -> [String; 4] {
        let script = format!(
            "echo {} > {}; exec /bin/busybox sleep {}",
            self.name,
            gate::INSIDE,
            self.sleep
        );
        ["/bin/busybox".to_owned(), "sh".to_owned(), "-c".to_owned(), script]
    }
}

/// The end of a container was told.
#[derive(Debug)]
pub struct Ended {
    pub name: String,
    pub at: Instant,
}

/// Ends as they are told, for as long as this is held.
#[derive(Debug)]
pub struct Ends {
    pub told: Receiver<Ended>,
    pub(crate) listener: Option<Program>,
}

/// What is compared.
pub trait Node: Send + Sync {
    fn name(&self) -> &'static str;
    fn version(&self) -> String;
    /// The process that answers, where there is one.
    fn daemon(&self) -> Option<i32>;
    fn start(&self, wanted: &Wanted) -> Result<(), Error>;
    /// End them and leave nothing of them.
    fn destroy(&self, names: &[String]) -> Result<(), Error>;
    fn ends(&self) -> Result<Ends, Error>;
    /// Ask what all containers take, and how many answered. `None`: there is no one call for it.
    fn stats(&self) -> Result<Option<usize>, Error>;
    /// Kill what answers, start it anew, and wait until it knows of as many containers. `None`: nothing answers.
    fn recover(&mut self, count: usize) -> Result<Option<Duration>, Error>;
}

/// A program of ours that ends with us.
#[derive(Debug)]
pub struct Program(Child);

impl Program {
    pub(crate) fn begin(command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).spawn().map(Self)
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap_or_default()
    }

    pub(crate) const fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    pub(crate) fn end(&mut self, signal: Signal) {
        // Fails only if it has ended, which is what is wanted.
        let _ = kill(Pid::from_raw(self.pid()), signal);
        let _ = self.0.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.end(Signal::SIGTERM);
        }
    }
}

/// Run a program to its end; what it printed.
pub(crate) fn call(command: &mut Command) -> Result<String, Error> {
    let named = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("run {named}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{named}: {}: {}", output.status, said.trim()).into())
}

/// Until it is so; the error says what was awaited.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {} s", PATIENCE.as_secs()).into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

pub(crate) fn says(verb: &str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |e| format!("{verb} {}: {e}", path.display()).into()
}
