//! `hafen completion`.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::show;
use crate::Error;
use crate::cli::Cli;

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// As in: hafen completion bash > /usr/share/bash-completion/completions/hafen
    shell: Shell,
}

pub(super) fn print(args: &CompletionArgs) -> Result<ExitCode, Error> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "hafen", &mut script);
    show::bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}
