//! `cargo fuzz`: import and resolve of bundles with bytes that nobody wrote, for half a minute each.
//!
//! The targets are a workspace of their own in `fuzz/`. libFuzzer's coverage is a matter of unstable flags: a stable
//! compiler takes them when it is told `RUSTC_BOOTSTRAP=1`. No sanitizer: there is no unsafe code in what is fuzzed, and
//! a stable toolchain has no library built for one.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::install::Install;
use super::session::Session;
use crate::command::limited;
use crate::workspace;

const VERSION: &str = "^0.13";
const TARGETS: [&str; 2] = ["import", "resolve"];
const SECONDS: u64 = 30;
const BUILD: Duration = Duration::from_secs(15 * 60);
const RUN: Duration = Duration::from_secs(SECONDS + 3 * 60);

/// On the way to `cargo fuzz`.
#[derive(Debug)]
pub(super) struct Fuzz {
    install: Option<Result<Install>>,
}

/// Begins to install it where it is missing.
pub(super) fn prepare() -> Fuzz {
    Fuzz { install: Install::unless_there("cargo-fuzz", VERSION) }
}

impl Fuzz {
    /// Waits for the installation, builds and runs the targets. What they find by the way is kept in the target folder.
    pub(super) fn run(self, session: &mut Session) {
        if let Some(install) = self.install
            && !session.act("install cargo-fuzz", || install?.wait())
        {
            return;
        }
        let built = match cargo_fuzz(BUILD, "build") {
            Ok(command) => session.step("build the fuzz targets", BUILD, command),
            Err(error) => return session.failed("fuzz", &format!("{error:#}")),
        };
        for target in TARGETS.into_iter().filter(|_| built) {
            match run(target) {
                Ok(command) => drop(session.step(&format!("fuzz {target}"), RUN, command)),
                Err(error) => session.failed("fuzz", &format!("{error:#}")),
            }
        }
    }
}

fn run(target: &str) -> Result<Command> {
    let corpus = workspace::target()?.join("fuzz/corpus").join(target);
    std::fs::create_dir_all(&corpus).with_context(|| format!("mkdir {}", corpus.display()))?;
    let mut command = cargo_fuzz(RUN, "run")?;
    command.arg(target).arg(corpus).arg(folder().join("seeds").join(target)).arg("--");
    command.arg(format!("-max_total_time={SECONDS}"));
    command.args(["-timeout=10", "-max_len=8192", "-verbosity=0"]);
    Ok(command)
}

fn cargo_fuzz(limit: Duration, verb: &str) -> Result<Command> {
    let mut command = limited(limit, workspace::cargo());
    command.current_dir(folder()).env("RUSTC_BOOTSTRAP", "1");
    command.args(["fuzz", verb, "--dev", "--sanitizer", "none", "--fuzz-dir", "."]);
    command.arg("--target-dir").arg(workspace::target()?.join("fuzz"));
    Ok(command)
}

fn folder() -> PathBuf {
    workspace::root().join("fuzz")
}
