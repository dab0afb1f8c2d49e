//! `cargo xtask vm`: a program in the virtual machine, see `integration/vm/README.md`.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::workspace;

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Options and command of vm-run (`--help` shows them)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Becomes `vm-run`, so the terminal, signals and the exit code are its own.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let program = workspace::vm_run();
    let error = Command::new(&program).args(&options.words).exec();
    Err(error).with_context(|| format!("run {}", program.display()))
}
