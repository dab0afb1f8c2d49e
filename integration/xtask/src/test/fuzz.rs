//! `cargo fuzz`: import and resolve of bundles with bytes that nobody wrote, for half a minute each.
//!
//! The targets are a workspace of their own in `fuzz/`. libFuzzer's coverage is a matter of unstable flags: a stable
//! compiler takes them when it is told `RUSTC_BOOTSTRAP=1`. No sanitizer: there is no unsafe code in what is fuzzed, and
//! a stable toolchain has no library built for one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::background::{Background, install, quietly};
use super::session::Session;
use crate::command::limited;
use crate::workspace;

const VERSION: &str = "^0.13";
const TARGETS: [&str; 2] = ["import", "resolve"];
const SECONDS: u64 = 30;
const RUN: Duration = Duration::from_secs(SECONDS + 3 * 60);

/// On the way to built targets.
#[derive(Debug)]
pub(super) struct Fuzz {
    build: Background,
}

/// Begins to install `cargo fuzz` where it is missing, and to build the targets.
pub(super) fn prepare() -> Fuzz {
    Fuzz { build: Background::begin(build) }
}

fn build() -> Result<()> {
    install("cargo-fuzz", VERSION)?;
    let target = workspace::target()?;
    quietly("fuzz-build", |command| cargo_fuzz(command, "build", &target))
}

impl Fuzz {
    /// Waits for the targets and runs them. What they find by the way is kept in the target folder.
    pub(super) fn run(self, session: &mut Session) {
        if !session.act("build the fuzz targets", || self.build.wait()) {
            return;
        }
        for target in TARGETS {
            match run(target) {
                Ok(command) => drop(session.step(&format!("fuzz {target}"), RUN, command)),
                Err(error) => session.failed("fuzz", &format!("{error:#}")),
            }
        }
    }
}

fn run(name: &str) -> Result<Command> {
    let target = workspace::target()?;
    let corpus = target.join("fuzz/corpus").join(name);
    std::fs::create_dir_all(&corpus).with_context(|| format!("mkdir {}", corpus.display()))?;
    let mut command = limited(RUN, workspace::cargo());
    cargo_fuzz(&mut command, "run", &target);
    command.arg(name).arg(corpus).arg(folder().join("seeds").join(name)).arg("--");
    command.arg(format!("-max_total_time={SECONDS}"));
    command.args(["-timeout=10", "-max_len=8192", "-verbosity=0"]);
    Ok(command)
}

fn cargo_fuzz(command: &mut Command, verb: &str, target: &Path) {
    command.current_dir(folder()).env("RUSTC_BOOTSTRAP", "1");
    command.args(["fuzz", verb, "--dev", "--sanitizer", "none", "--fuzz-dir", "."]);
    command.arg("--target-dir").arg(target.join("fuzz"));
}

fn folder() -> PathBuf {
    workspace::root().join("fuzz")
}
