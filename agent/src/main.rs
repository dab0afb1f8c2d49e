//! `hafen`: what a person does with a node.

mod cli;
mod fsck;
mod image;
mod volume;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

/// What went wrong, and nothing else.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Store(#[from] hafen_rootfs::store::StoreError),
    #[error(transparent)]
    Volume(#[from] hafen_rootfs::volumes::VolumeError),
    #[error(transparent)]
    Call(#[from] hafen_sys::CallError),
    #[error(transparent)]
    Pull(#[from] hafen_registry::PullError),
    #[error("{0}")]
    Refused(String),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Image(command) => image::run(&cli.images, command),
        Command::Volume(command) => volume::run(&cli.volumes, command),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hafen: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
