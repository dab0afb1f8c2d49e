//! `hafen logs`.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use hafen::{amount, time};
use hafen_protocol::v1;

use super::{HostArgs, Whose, block_on, show};
use crate::Error;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    task: String,
    #[command(flatten)]
    whose: Whose,
    /// Go on with what comes.
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines; "all" for all.
    #[arg(short = 'n', long, value_name = "N", value_parser = tail, default_value = "all")]
    tail: Tail,
    /// Only what was written since: RFC 3339, or how long ago, as 10m.
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<SystemTime>,
    /// With the time of each line.
    #[arg(short, long)]
    timestamps: bool,
}

/// Of its own type: clap would take an option in it for one of the argument.
#[derive(Debug, Clone, Copy)]
struct Tail(Option<u64>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        _ => text.parse().map(|n| Tail(Some(n))).map_err(|_| "is no number of lines".to_owned()),
    }
}

fn since(text: &str) -> Result<SystemTime, String> {
    let ago = amount::duration(text).and_then(|ago| SystemTime::now().checked_sub(ago));
    let time = ago.or_else(|| humantime::parse_rfc3339_weak(text).ok());
    time.ok_or_else(|| {
        "is neither a time, as 2026-01-31T12:00:00Z, nor a duration, as 10m".to_owned()
    })
}

pub(super) fn logs(host: &HostArgs, args: &LogsArgs) -> Result<ExitCode, Error> {
    let request = v1::LogsRequest {
        id: args.task.clone(),
        follow: args.follow,
        tail: args.tail.0,
        since: args.since.map(time::stamp),
    };
    block_on(async {
        let entries = if args.whose.is_cluster(host) {
            host.cluster().await?.logs(request).await?
        } else {
            host.connect().await?.logs(request).await?
        };
        let mut entries = entries.into_inner();
        while let Some(entry) = entries.message().await? {
            print(&entry, args.timestamps)?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn print(entry: &v1::LogEntry, timestamps: bool) -> Result<(), Error> {
    let mut line = Vec::new();
    if timestamps {
        line.extend_from_slice(show::moment(entry.time.as_ref()).as_bytes());
        line.push(b' ');
    }
    line.extend_from_slice(&entry.line);
    if entry.stream() == v1::Stream::Stderr { show::errors(&line) } else { show::bytes(&line) }
}
