//! `hafen tasks`, `hafen task`, and `hafen ps` of a cluster.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hafen_protocol::v1;

use super::wait::is_alive;
use super::{HostArgs, ListArgs, block_on, show, view, word};
use crate::Error;
use crate::cli::Format;
use crate::commands::each;

#[derive(Debug, Args)]
pub(crate) struct TasksArgs {
    /// Of this job only.
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// On this node only.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Of this namespace only.
    #[arg(short, long, value_name = "NAME", default_value = "", hide_default_value = true)]
    namespace: String,
    /// Also those that have ended.
    #[arg(short, long)]
    all: bool,
    /// Only names.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// List the tasks that the cluster runs.
    Ls(TasksArgs),
    /// Print all that is known of tasks, as JSON.
    Inspect {
        /// Its name or the beginning of it, JOB:PLACE, or JOB if it has one only.
        #[arg(required = true, value_name = "TASK")]
        names: Vec<String>,
    },
    /// Stop tasks: others take their places.
    Stop {
        #[arg(required = true, value_name = "TASK")]
        names: Vec<String>,
    },
}

pub(super) fn tasks(host: &HostArgs, args: &TasksArgs) -> Result<ExitCode, Error> {
    let mut instances =
        block_on(async { Ok(view(&mut host.cluster().await?, &args.namespace).await?.instances) })?;
    instances.retain(|one| {
        (args.all || is_alive(one))
            && args.job.as_ref().is_none_or(|job| *job == one.job)
            && args.node.as_ref().is_none_or(|node| *node == one.node)
    });
    list(&instances, args.quiet, args.list.format)
}

/// Of all jobs, as `hafen ps` was asked.
pub(in crate::commands) fn ps(
    host: &HostArgs,
    all: bool,
    quiet: bool,
    format: Format,
) -> Result<ExitCode, Error> {
    let mut instances =
        block_on(async { Ok(view(&mut host.cluster().await?, "").await?.instances) })?;
    instances.retain(|one| all || is_alive(one));
    list(&instances, quiet, format)
}

fn list(instances: &[v1::Instance], quiet: bool, format: Format) -> Result<ExitCode, Error> {
    if quiet {
        // Who waits for a node has no name.
        let named = instances.iter().filter(|one| !one.name.is_empty());
        named.map(|one| &one.name).try_for_each(|name| show::line(name))?;
    } else if format == Format::Json {
        show::json(&instances)?;
    } else {
        table(instances)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn task(host: &HostArgs, command: &TaskCommand) -> Result<ExitCode, Error> {
    match command {
        TaskCommand::Ls(args) => tasks(host, args),
        TaskCommand::Inspect { names } => block_on(async {
            let mut client = host.cluster().await?;
            for name in names {
                let request = v1::GetInstanceRequest { name: name.clone() };
                show::json(&client.get_instance(request).await?.into_inner())?;
            }
            Ok(ExitCode::SUCCESS)
        }),
        TaskCommand::Stop { names } => block_on(async {
            let client = host.cluster().await?;
            each(names, |name| {
                let mut client = client.clone();
                async move {
                    let request = v1::StopInstanceRequest { name };
                    Ok(client.stop_instance(request).await?.into_inner().name)
                }
            })
            .await
        }),
    }
}

pub(super) fn table(instances: &[v1::Instance]) -> Result<(), Error> {
    show::table(HEADER, instances.iter().map(row).collect())
}

const HEADER: [&str; 7] = ["TASK", "JOB", "NODE", "STATE", "AGE", "PORTS", "WHY"];

pub(super) fn row(instance: &v1::Instance) -> [String; 7] {
    let or_none = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    [
        or_none(&instance.name),
        format!("{}:{}", instance.job, instance.slot),
        or_none(&instance.node),
        word(instance.phase().as_str_name(), "PHASE_"),
        show::age(instance.started.as_ref()),
        show::ports(&instance.ports),
        why(instance),
    ]
}

fn why(instance: &v1::Instance) -> String {
    let sentence = show::plain(&instance.sentence);
    match instance.failures {
        0 => sentence,
        1 => format!("failed once: {sentence}"),
        count => format!("failed {count} times: {sentence}"),
    }
}
