//! `cargo deny`: licences, doubled and banned crates, and where crates come from.

use std::time::Duration;

use super::background::{Background, install};
use super::session::Session;
use crate::command::limited;
use crate::workspace;

/// What the configuration is written for.
const VERSION: &str = "^0.20";

const CHECK: Duration = Duration::from_secs(2 * 60);

/// On the way to `cargo deny`.
#[derive(Debug)]
pub(super) struct Deny {
    install: Background,
}

/// Begins to install it where it is missing, which takes some minutes.
pub(super) fn prepare() -> Deny {
    Deny { install: Background::begin(|| install("cargo-deny", VERSION)) }
}

impl Deny {
    /// Waits for the installation and checks the repository.
    pub(super) fn check(self, session: &mut Session) {
        if !session.act("install cargo-deny", || self.install.wait()) {
            return;
        }
        let mut command = limited(CHECK, workspace::cargo());
        command.current_dir(workspace::root());
        command.args(["deny", "--log-level", "warn", "check", "licenses", "bans", "sources"]);
        session.step("deny", CHECK, command);
    }
}
