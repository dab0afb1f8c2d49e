//! `cargo deny`: licences, doubled and banned crates, and where crates come from.
//!
//! Installing it takes some minutes, so it is done beside the other steps, at the lowest priority.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::install::Install;
use super::session::Session;
use crate::command::{limited, on_path};
use crate::workspace;

/// What the configuration is written for.
const VERSION: &str = "^0.20";

const CHECK: Duration = Duration::from_secs(2 * 60);

/// On the way to `cargo deny`.
#[derive(Debug)]
pub(super) struct Deny {
    install: Option<Result<Install>>,
}

/// Begins to install it where it is missing.
pub(super) fn prepare() -> Deny {
    Deny { install: (!is_installed()).then(|| Install::begin("cargo-deny", VERSION, None)) }
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

/// Cargo looks there for its commands, besides `PATH`.
fn is_installed() -> bool {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let in_home = home.is_some_and(|home| home.join("bin/cargo-deny").is_file());
    in_home || on_path("cargo-deny").is_some()
}
