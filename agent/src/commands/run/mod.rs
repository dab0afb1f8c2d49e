//! `hafen run`.

mod args;
pub(super) mod limits;
mod security;
mod spec;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::process::ExitCode;

use hafen::client::Client;
use hafen::failure::{Failure, Kind};
use hafen_protocol::v1;

pub(crate) use args::RunArgs;

use super::session::{self, End};
use super::{HostArgs, block_on, document, logs, show};
use crate::Error;

pub(super) fn run(host: &HostArgs, args: &RunArgs) -> Result<ExitCode, Error> {
    let spec = wanted(args)?;
    let (terminal, stdin) = (spec.terminal, spec.stdin);
    if terminal && stdin && !args.detach {
        session::must_be_terminal()?;
    }
    block_on(async {
        let mut client = host.connect().await?;
        let request = v1::RunRequest { task: Some(spec) };
        let status = client.run(request).await?.into_inner();
        let id = &status.id;
        if args.detach {
            show::line(id)?;
        }
        let code = match (args.detach, args.no_wait) {
            (true, true) => 0,
            (true, false) => background(&mut client, id).await?,
            (false, _) => foreground(&mut client, id, terminal, stdin).await?,
        };
        Ok(ExitCode::from(code))
    })
}

fn wanted(args: &RunArgs) -> Result<v1::TaskSpec, Error> {
    if args.is_said_twice() {
        let what = "with --file only --name and --detach can be said: all else is in the file";
        return Err(Error::Refused(what.to_owned()));
    }
    let mut spec = match &args.file {
        Some(path) => document::read(path, "TaskSpec")?,
        None => {
            let cwd = std::env::current_dir()
                .map_err(|e| Error::Refused(format!("the current folder: {e}")))?;
            let variable = |name: &str| std::env::var(name).ok();
            let read = |path: &Path| std::fs::read(path);
            let around = spec::Around { cwd: &cwd, variable: &variable, read: &read };
            spec::spec(&args.spec, &around).map_err(Error::Options)?
        }
    };
    if let Some(name) = &args.name {
        name.clone_into(&mut spec.id);
    }
    // Who stands by sees all of it.
    spec.wait_for_attach |= !args.detach;
    Ok(spec)
}

/// Until it has ended; the answer is its exit code.
async fn foreground(
    client: &mut Client,
    id: &str,
    terminal: bool,
    stdin: bool,
) -> Result<u8, Error> {
    let Some(status) = started(client, id).await? else { return ended(client, id).await };
    if show::has_ended(status.state) {
        return past(client, &status).await;
    }
    match session::attach(client, id, session::Wanted { terminal, stdin, replay: true }).await {
        Ok(End::Exit(code)) => Ok(code),
        Ok(End::Detached) => Ok(0),
        // The flow was cut: whether it runs, the node knows.
        Ok(End::Silence) => ended(client, id).await,
        Err(Error::Failure(Failure { kind: Kind::State | Kind::NotFound, .. })) => {
            past(client, &status).await
        }
        Err(error) => Err(error),
    }
}

/// Until it has begun, or could not; how it goes on is not ours.
async fn background(client: &mut Client, id: &str) -> Result<u8, Error> {
    use v1::reason::Kind::{NotLaunched, NotStaged};
    // Where a start that failed is to be tried again it waits for that.
    let states = [v1::State::Running, v1::State::Waiting];
    let status = match client.wait_task(until(id, &states)).await {
        Ok(status) => status.into_inner(),
        // It was quick, and removes itself.
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(0),
        Err(status) => return Err(status.into()),
    };
    let reason = status.reason.as_ref().map(v1::Reason::kind);
    let has_begun =
        !matches!(reason, Some(NotLaunched | NotStaged)) && status.state() != v1::State::Lost;
    Ok(if has_begun { 0 } else { complain(&status) })
}

/// Wait for its start. Ctrl-C stops it: `None`.
async fn started(client: &mut Client, id: &str) -> Result<Option<v1::TaskStatus>, Error> {
    let request = until(id, &[v1::State::Running]);
    let mut waiting = client.clone();
    // Both are given up when the other is first: nobody reads an answer that is not waited for.
    tokio::select! {
        status = waiting.wait_task(request) => Ok(Some(status?.into_inner())),
        _ = tokio::signal::ctrl_c() => {
            client.stop_task(v1::StopTaskRequest { id: id.to_owned(), grace: None }).await?;
            Ok(None)
        }
    }
}

/// One of these states, or its end.
fn until(id: &str, states: &[v1::State]) -> v1::WaitTaskRequest {
    let states = states.iter().map(|state| i32::from(*state)).collect();
    v1::WaitTaskRequest { id: id.to_owned(), states, timeout: None }
}

async fn ended(client: &mut Client, id: &str) -> Result<u8, Error> {
    let status = client.wait_task(until(id, &[])).await?.into_inner();
    Ok(complain(&status))
}

/// It was quicker than we: what it wrote is in its log.
async fn past(client: &mut Client, status: &v1::TaskStatus) -> Result<u8, Error> {
    let request = v1::LogsRequest { id: status.id.clone(), ..Default::default() };
    if let Ok(entries) = client.logs(request).await {
        let mut entries = entries.into_inner();
        while let Ok(Some(entry)) = entries.message().await {
            logs::print(&entry, false)?;
        }
    }
    let last = client.wait_task(until(&status.id, &[])).await.map(tonic::Response::into_inner);
    Ok(complain(&last.unwrap_or_else(|_| status.clone())))
}

/// Why it could not be started is known to nobody but its status.
fn complain(status: &v1::TaskStatus) -> u8 {
    use v1::State::{Error, Lost, Waiting};
    if matches!(status.state(), Error | Lost | Waiting) {
        let why = status.reason.as_ref().map_or("no reason is known", |r| r.sentence.as_str());
        eprintln!("hafen: {}: {}", status.id, show::plain(why));
    }
    show::end_code(status)
}
