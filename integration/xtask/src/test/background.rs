//! What takes long and is needed late: done beside the other steps, at the lowest priority.

use std::fs::File;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{self, limited, on_path};
use crate::workspace;

/// It waits for everything else.
const LIMIT: Duration = Duration::from_secs(45 * 60);

/// On its way.
#[derive(Debug)]
pub(super) struct Background {
    thread: JoinHandle<Result<()>>,
}

impl Background {
    pub(super) fn begin(work: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self { thread: std::thread::spawn(work) }
    }

    pub(super) fn wait(self) -> Result<()> {
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// One of cargo's commands, to where it keeps them, unless it is there.
pub(super) fn install(name: &str, version: &str) -> Result<()> {
    if is_installed(name) {
        return Ok(());
    }
    // Optimising it takes three times as long and saves a second.
    let words = ["install", name, "--locked", "--debug", "--version", version];
    quietly(&format!("install-{name}"), |command| {
        // Elsewhere, since this repository's cargo settings are not for it.
        command.args(words).env("CARGO_PROFILE_DEV_DEBUG", "0").current_dir("/");
    })
}

/// cargo, with its output in a file that is named where it fails.
pub(super) fn quietly(name: &str, add: impl FnOnce(&mut Command)) -> Result<()> {
    let log = workspace::target()?.join(format!("{name}.log"));
    let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut command = limited(LIMIT, "nice");
    command.args(["-n", "19"]).arg(workspace::cargo());
    add(&mut command);
    command.stdout(file.try_clone().context("dup")?).stderr(file);
    let end = command::run(LIMIT, &mut command)?;
    if end.success() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let last = text.lines().last().unwrap_or_default();
    bail!("{}: {end}: {last} (more in {})", command::line(&command), log.display())
}

/// Cargo looks there for its commands, besides `PATH`.
fn is_installed(name: &str) -> bool {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    home.is_some_and(|home| home.join("bin").join(name).is_file()) || on_path(name).is_some()
}
