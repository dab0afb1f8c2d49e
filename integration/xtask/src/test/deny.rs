//! `cargo deny`: licences, doubled and banned crates, and where crates come from.
//!
//! Installing it takes some minutes, so it is done beside the other steps, at the lowest priority.

use std::fs::File;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::session::Session;
use crate::command::{self, limited, on_path};
use crate::workspace;

/// What the configuration is written for.
const VERSION: &str = "^0.20";

const INSTALL: Duration = Duration::from_secs(20 * 60);
const CHECK: Duration = Duration::from_secs(2 * 60);

/// On the way to `cargo deny`.
#[derive(Debug)]
pub(super) struct Deny {
    install: Option<Result<Install>>,
}

#[derive(Debug)]
struct Install {
    child: Child,
    log: PathBuf,
}

/// Begins to install it where it is missing.
pub(super) fn prepare() -> Deny {
    Deny { install: (!is_installed()).then(Install::begin) }
}

impl Deny {
    /// Waits for the installation and checks the repository.
    pub(super) fn check(self, session: &mut Session) {
        if let Some(install) = self.install
            && !session.act("install cargo-deny", || install?.wait())
        {
            return;
        }
        let mut command = limited(CHECK, workspace::cargo());
        command.current_dir(workspace::root());
        command.args(["deny", "--log-level", "warn", "check", "licenses", "bans", "sources"]);
        session.step("deny", CHECK, command);
    }
}

impl Install {
    fn begin() -> Result<Self> {
        let log = workspace::target()?.join("cargo-deny.log");
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = limited(INSTALL, "nice");
        command.args(["-n", "19"]).arg(workspace::cargo());
        // Optimising it takes three times as long and saves a second.
        command.args(["install", "cargo-deny", "--locked", "--debug", "--version", VERSION]);
        command.env("CARGO_PROFILE_DEV_DEBUG", "0");
        // Elsewhere, since this repository's cargo settings are not for it.
        command.current_dir("/");
        let command = command.stdout(file.try_clone().context("dup")?).stderr(file);
        let child = command.spawn().with_context(|| format!("run {}", command::line(command)))?;
        Ok(Self { child, log })
    }

    fn wait(mut self) -> Result<()> {
        let status = self.child.wait().context("wait for cargo install")?;
        if status.success() {
            return Ok(());
        }
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = text.lines().last().unwrap_or_default();
        bail!("cargo install cargo-deny: {status}: {last} (more in {})", self.log.display())
    }
}

/// Cargo looks there for its commands, besides `PATH`.
fn is_installed() -> bool {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let in_home = home.is_some_and(|home| home.join("bin/cargo-deny").is_file());
    in_home || on_path("cargo-deny").is_some()
}
