//! `cargo deny`: licences, doubled and banned crates, and where crates come from.
//!
//! Installing it takes some minutes, so it is done beside the other steps, at the lowest priority.

use std::time::Duration;

use anyhow::Result;

use super::install::Install;
use super::session::Session;
use crate::command::limited;
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
    Deny { install: Install::unless_there("cargo-deny", VERSION) }
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
