//! `hafen events`.

use std::process::ExitCode;

use clap::Args;
use hafen::{amount, time};
use hafen_protocol::v1::{self, event::What};

use super::{HostArgs, Whose, block_on, cluster, show};
use crate::Error;
use crate::cli::Format;

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Begin with this number; without it, with what comes from now on.
    #[arg(long, value_name = "N", default_value_t = 0)]
    since: u64,
    /// End with the last one that is known.
    #[arg(long, requires = "since")]
    no_follow: bool,
    /// Of this task only.
    #[arg(long, value_name = "TASK", default_value = "")]
    task: String,
    #[command(flatten)]
    whose: Whose,
    /// Of this job only; of a cluster.
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Of this node only; of a cluster.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

pub(super) fn events(host: &HostArgs, args: &EventsArgs) -> Result<ExitCode, Error> {
    if args.whose.is_cluster(host) {
        let request = v1::ClusterEventsRequest {
            since: args.since,
            follow: !args.no_follow,
            job: args.job.clone().unwrap_or_default(),
            node: args.node.clone().unwrap_or_default(),
        };
        return cluster::events(host, request, &args.task, args.format);
    }
    if args.job.is_some() || args.node.is_some() {
        let what = "--job and --node mean something with --cluster only";
        return Err(Error::Refused(what.to_owned()));
    }
    let request =
        v1::EventsRequest { since: args.since, follow: !args.no_follow, id: args.task.clone() };
    block_on(async {
        let mut events = host.connect().await?.events(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            match args.format {
                Format::Json => show::json_line(&event)?,
                Format::Table => show::line(&sentence(&event))?,
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn sentence(event: &v1::Event) -> String {
    let moment = show::moment(event.time.as_ref());
    let what = event.what.as_ref().map(what).unwrap_or_default();
    format!("{moment} {} {} {}", event.sequence, event.task, show::plain(&what))
}

fn what(what: &What) -> String {
    match what {
        What::State(change) => {
            let why = change.reason.as_ref().map_or("", |reason| reason.sentence.as_str());
            let sign = if why.is_empty() { "" } else { ": " };
            format!("{}{sign}{why}", show::state(change.state))
        }
        What::Check(check) => {
            let how = if check.passing { "passes" } else { "fails" };
            format!("check {} {how} {}", check.name, check.message)
        }
        What::Pressure(pressure) if pressure.ended => format!("{} pressure has ended", pressure.of),
        What::Pressure(pressure) => {
            let over = pressure.over.as_ref().map(time::duration).unwrap_or_default();
            format!(
                "{} pressure {:.0}% over {}",
                pressure.of,
                pressure.percent,
                amount::say_duration(over)
            )
        }
        What::Oom(violation) => format!("out of memory: {}", violation.sentence),
        What::Message(message) => message.clone(),
    }
}
