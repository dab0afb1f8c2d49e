//! `hafen ps` and `hafen inspect`.

use std::process::ExitCode;

use clap::Args;
use hafen_protocol::v1;

use super::{HostArgs, Whose, block_on, cluster, show};
use crate::Error;
use crate::cli::Format;

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Also those that have ended.
    #[arg(short, long)]
    all: bool,
    /// Only names.
    #[arg(short, long)]
    quiet: bool,
    /// Only those that fit all of these: label=NAME[=VALUE], state=STATE.
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    #[command(flatten)]
    whose: Whose,
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[arg(required = true, value_name = "TASK")]
    ids: Vec<String>,
}

/// What the node is asked, and the states that are picked out of its answer.
fn request(args: &PsArgs) -> Result<(v1::ListTasksRequest, Vec<String>), Error> {
    let mut request = v1::ListTasksRequest { all: args.all, ..Default::default() };
    let mut states = Vec::new();
    for filter in &args.filter {
        match filter.split_once('=') {
            Some(("label", label)) => {
                let (name, value) = label.split_once('=').unwrap_or((label, ""));
                request.labels.insert(name.to_owned(), value.to_owned());
            }
            Some(("state", state)) => {
                request.all = true;
                states.push(state.to_ascii_lowercase());
            }
            _ => {
                let what =
                    format!("--filter {filter}: is neither label=NAME[=VALUE] nor state=STATE");
                return Err(Error::Refused(what));
            }
        }
    }
    Ok((request, states))
}

pub(super) fn ps(host: &HostArgs, args: &PsArgs) -> Result<ExitCode, Error> {
    if args.whose.is_cluster(host) {
        if args.filter.is_empty() {
            return cluster::ps(host, args.all, args.quiet, args.format);
        }
        let what = "--filter is for one node: of a cluster, \"hafen tasks\" has --job and --node";
        return Err(Error::Refused(what.to_owned()));
    }
    let (request, states) = request(args)?;
    let mut tasks = block_on(async {
        Ok(host.connect().await?.list_tasks(request).await?.into_inner().tasks)
    })?;
    tasks.retain(|task| states.is_empty() || states.contains(&show::state(task.state)));
    if args.quiet {
        tasks.iter().try_for_each(|task| show::line(&task.id))?;
    } else if args.format == Format::Json {
        show::json(&tasks)?;
    } else {
        let header = ["TASK", "STATE", "IMAGE", "AGE", "STARTS", "PORTS", "WHY"];
        show::table(header, tasks.iter().map(row).collect())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(task: &v1::TaskStatus) -> [String; 7] {
    let mut state = show::state(task.state);
    if task.checks.iter().any(|check| !check.passing) && !show::has_ended(task.state) {
        state += " (failing)";
    } else if !task.checks.is_empty() && task.ready {
        state += " (ready)";
    }
    let since = if show::has_ended(task.state) { &task.ended } else { &task.started };
    let since = since.as_ref().or(task.created.as_ref());
    let why = task.reason.as_ref().map_or("", |reason| reason.sentence.as_str());
    let why = if task.quarantined.is_empty() { why } else { &task.quarantined };
    [
        task.id.clone(),
        state,
        show::root(task.spec.as_ref()),
        show::age(since),
        task.attempt.to_string(),
        show::ports(&task.ports),
        show::plain(why),
    ]
}

pub(super) fn inspect(host: &HostArgs, args: &InspectArgs) -> Result<ExitCode, Error> {
    block_on(async {
        let mut client = host.connect().await?;
        for id in &args.ids {
            let request = v1::GetTaskRequest { id: id.clone() };
            show::json(&client.get_task(request).await?.into_inner())?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
