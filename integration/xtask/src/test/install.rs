//! `cargo install` beside the other steps, at the lowest priority.

use std::fs::File;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{self, limited, on_path};
use crate::workspace;

const INSTALL: Duration = Duration::from_secs(20 * 60);

/// On its way.
#[derive(Debug)]
pub(super) struct Install {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Install {
    /// One of cargo's commands, to where it keeps them.
    pub(super) fn unless_there(name: &'static str, version: &str) -> Option<Result<Self>> {
        (!is_installed(name)).then(|| Self::begin(name, version))
    }

    fn begin(name: &'static str, version: &str) -> Result<Self> {
        let log = workspace::target()?.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = limited(INSTALL, "nice");
        command.args(["-n", "19"]).arg(workspace::cargo());
        // Optimising it takes three times as long and saves a second.
        command.args(["install", name, "--locked", "--debug", "--version", version]);
        command.env("CARGO_PROFILE_DEV_DEBUG", "0");
        // Elsewhere, since this repository's cargo settings are not for it.
        command.current_dir("/");
        let command = command.stdout(file.try_clone().context("dup")?).stderr(file);
        let child = command.spawn().with_context(|| format!("run {}", command::line(command)))?;
        Ok(Self { name, child, log })
    }

    pub(super) fn wait(mut self) -> Result<()> {
        let status = self.child.wait().context("wait for cargo install")?;
        if status.success() {
            return Ok(());
        }
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = text.lines().last().unwrap_or_default();
        bail!("cargo install {}: {status}: {last} (more in {})", self.name, self.log.display())
    }
}

/// Cargo looks there for its commands, besides `PATH`.
fn is_installed(name: &str) -> bool {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    home.is_some_and(|home| home.join("bin").join(name).is_file()) || on_path(name).is_some()
}
