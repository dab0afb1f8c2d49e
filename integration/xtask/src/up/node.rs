//! A node of this run's own: an agent and a coordinator in one process, in a folder that goes with it.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command;

/// An agent begins in some milliseconds.
const BEGIN: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    pub(crate) hafen: PathBuf,
    /// Facts of this boot, in memory.
    run: PathBuf,
    pub(crate) images: PathBuf,
    log: PathBuf,
}

impl Node {
    /// Starts an agent, and waits until it answers.
    pub(crate) fn start(programs: &Path, scratch: &Path) -> Result<Self> {
        let run = PathBuf::from(format!("/run/hafen-up-{}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o711)
            .create(&run)
            .with_context(|| format!("mkdir {}", run.display()))?;
        let log = scratch.join("node.log");
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let images = scratch.join("images");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM"])
            .arg(programs.join("hafen"))
            .args(["up", "--listen", "http://127.0.0.1:0"])
            .env("HAFEN_STATE", scratch.join("state"))
            .env("HAFEN_RUN", &run)
            .env("HAFEN_SOCKET", run.join("agent.sock"))
            .env("HAFEN_IMAGES", &images)
            .env("HAFEN_VOLUMES", scratch.join("volumes"))
            .env("HAFEN_RUNTIME", programs.join("hafen-oci"))
            .env("HAFEN_INSTANCE", format!("up-{}", std::process::id()))
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("dup")?)
            .stderr(file)
            .spawn()
            .context("run hafen up")?;
        let mut node = Self { child, hafen: programs.join("hafen"), run, images, log };
        node.await_answer()?;
        Ok(node)
    }

    /// For `hafen --host`.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.run.join("agent.sock").display())
    }

    /// For `hafen --coordinator`.
    pub(crate) fn coordinator(&self) -> String {
        format!("unix://{}", self.run.join("coordinator.sock").display())
    }

    /// Where its page is, once it has said so.
    pub(crate) fn page(&self) -> Option<String> {
        let text = fs::read_to_string(&self.log).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("page"))?;
        Some(line.trim().to_owned())
    }

    fn await_answer(&mut self) -> Result<()> {
        let deadline = Instant::now() + BEGIN;
        loop {
            let asked = Command::new(&self.hafen)
                .args(["--host", &self.host(), "ps", "-q"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if asked.context("run hafen ps")?.success() && self.page().is_some() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().context("wait")? {
                bail!("hafen up: {status}: {}", self.words());
            }
            if Instant::now() > deadline {
                bail!("hafen up does not answer after {} s: {}", BEGIN.as_secs(), self.words());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The last that it said.
    fn words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().last().unwrap_or_default().to_owned()
    }

    /// Until somebody ends it.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.child.wait().context("wait for the agent")?;
        Ok(())
    }

    /// Ends the agent, and says what is left of its containers.
    pub(crate) fn stop(mut self) -> Result<Vec<String>> {
        let pid = self.child.id().to_string();
        let mut kill = command::limited(END, "kill");
        command::run(END, kill.args(["-TERM", &pid]))?;
        let deadline = Instant::now() + END;
        while self.child.try_wait().context("wait for the agent")?.is_none() {
            if Instant::now() > deadline {
                bail!("the agent does not end");
            }
            std::thread::sleep(PAUSE);
        }
        let containers = self.run.join("oci");
        let entries = fs::read_dir(&containers).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        // What begins so is no container.
        Ok(names.filter(|name| !name.starts_with('@')).collect())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Ended already, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.run);
    }
}
