//! `hafen stop`, `kill`, `rm`, `wait` and `update`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hafen::amount;
use hafen_protocol::v1;
use hafen_spec::Problems;

use super::run::limits::LimitArgs;
use super::{HostArgs, block_on, each, show};
use crate::Error;

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// How long they have before they are killed, in seconds or as 2m.
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    #[arg(required = true, value_name = "TASK")]
    ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// To every process, not only to the first.
    #[arg(short, long)]
    all: bool,
    #[arg(required = true, value_name = "TASK")]
    ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Also those that run: stop them first.
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "TASK")]
    ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Give up after that: exit code 7.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    #[arg(required = true, value_name = "TASK")]
    ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    limits: LimitArgs,
    #[arg(required = true, value_name = "TASK")]
    ids: Vec<String>,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    amount::duration(text).ok_or_else(|| "is no duration, as 90, 90s or 2m".to_owned())
}

pub(super) fn stop(host: &HostArgs, args: &StopArgs) -> Result<ExitCode, Error> {
    block_on(async {
        let client = host.connect().await?;
        each(&args.ids, |id| {
            let mut client = client.clone();
            let grace = args.time.map(Into::into);
            async move {
                let stopped =
                    client.stop_task(v1::StopTaskRequest { id, grace }).await?.into_inner();
                // The answer to stop is that it is under way.
                let wait = v1::WaitTaskRequest { id: stopped.id.clone(), ..Default::default() };
                match client.wait_task(wait).await {
                    // It was to be forgotten as soon as it has ended.
                    Err(status) if status.code() != tonic::Code::NotFound => Err(status.into()),
                    _ => Ok(stopped.id),
                }
            }
        })
        .await
    })
}

pub(super) fn kill(host: &HostArgs, args: &KillArgs) -> Result<ExitCode, Error> {
    block_on(async {
        let client = host.connect().await?;
        each(&args.ids, |id| {
            let mut client = client.clone();
            let (signal, all) = (args.signal.clone(), args.all);
            async move {
                client.signal_task(v1::SignalTaskRequest { id: id.clone(), signal, all }).await?;
                Ok(id)
            }
        })
        .await
    })
}

pub(super) fn rm(host: &HostArgs, args: &RmArgs) -> Result<ExitCode, Error> {
    block_on(async {
        let client = host.connect().await?;
        each(&args.ids, |id| {
            let (mut client, force) = (client.clone(), args.force);
            async move {
                client.remove_task(v1::RemoveTaskRequest { id: id.clone(), force }).await?;
                Ok(id)
            }
        })
        .await
    })
}

pub(super) fn wait(host: &HostArgs, args: &WaitArgs) -> Result<ExitCode, Error> {
    block_on(async {
        let client = host.connect().await?;
        each(&args.ids, |id| {
            let mut client = client.clone();
            let timeout = args.timeout.map(Into::into);
            async move {
                let request = v1::WaitTaskRequest { id, timeout, ..Default::default() };
                let status = client.wait_task(request).await?.into_inner();
                Ok(show::end_code(&status).to_string())
            }
        })
        .await
    })
}

pub(super) fn update(host: &HostArgs, args: &UpdateArgs) -> Result<ExitCode, Error> {
    let mut problems = Problems::default();
    let resources = args.limits.resources(&mut problems);
    if resources.is_none() && problems.0.is_empty() {
        problems.add("update", "no limit is named: --memory, --cpus and --pids-limit are some");
    }
    problems.into_result(()).map_err(Error::Options)?;
    block_on(async {
        let client = host.connect().await?;
        each(&args.ids, |id| {
            let (mut client, resources) = (client.clone(), resources.clone());
            async move {
                let request = v1::UpdateTaskRequest { id, resources };
                Ok(client.update_task(request).await?.into_inner().id)
            }
        })
        .await
    })
}
