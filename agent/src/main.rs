//! `hafen`: what a person does with a node.

mod cli;
mod commands;
mod fsck;
mod image;
mod volume;

use std::process::ExitCode;

use clap::Parser;
use hafen::api::ServeError;
use hafen::client::ConnectError;
use hafen::config::Problems;
use hafen::failure::{Failure, Kind, chain};

use cli::Cli;

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
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Coordinator(#[from] hafen_coordinator::service::Ended),
    /// The node said so.
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error("the configuration is wrong:\n{0}")]
    Config(Problems),
    #[error("{0}")]
    Unconfigured(String),
    /// Of the command line.
    #[error("{0}")]
    Options(hafen_spec::Problems),
    /// Of a file that was named.
    #[error("{0}")]
    Document(String),
    #[error("{0}")]
    Refused(String),
    /// Whoever read what we print has gone away: they have what they wanted.
    #[error("nobody reads what is printed")]
    Closed,
}

// Not by `from` of the derive: the problems would be the source as well, and told twice.
impl From<Problems> for Error {
    fn from(problems: Problems) -> Self {
        Self::Config(problems)
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Failure(status.into())
    }
}

impl Error {
    /// What a script can tell apart; `cli::EXIT_CODES` says it to people.
    const fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Unconfigured(_) | Self::Options(_) | Self::Document(_) => 2,
            Self::Connect(ConnectError::Denied(_)) => 5,
            Self::Connect(_) => 6,
            Self::Failure(failure) => match failure.kind {
                Kind::Invalid | Kind::OutOfRange => 2,
                Kind::NotFound => 3,
                Kind::Exists | Kind::State | Kind::Conflict => 4,
                Kind::Denied => 5,
                Kind::Unavailable => 6,
                Kind::Deadline => 7,
                Kind::Exhausted | Kind::Unsupported | Kind::Internal => 1,
            },
            _ => 1,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match commands::dispatch(&cli) {
        Ok(code) => code,
        Err(Error::Closed) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hafen: {}", chain(&error));
            ExitCode::from(cli.command.failure(&error))
        }
    }
}
