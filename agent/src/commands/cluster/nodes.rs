//! `hafen nodes`, `hafen node` and `hafen drain`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use hafen::amount;
use hafen::client::Cluster;
use hafen::failure::{Failure, Kind};
use hafen_protocol::v1;

use super::{HostArgs, ListArgs, block_on, show, view, wait, word};
use crate::Error;
use crate::cli::Format;
use crate::commands::control::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// List the nodes of the cluster.
    Ls(ListArgs),
    /// Print all that the coordinator knows of nodes, as JSON.
    Inspect {
        #[arg(required = true, value_name = "NODE")]
        names: Vec<String>,
    },
    /// Forget a machine that is gone for good: its tasks are replaced at once.
    Rm {
        #[arg(value_name = "NODE")]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// By its name, or the beginning of a name that only one has.
    node: String,
    /// It takes tasks again.
    #[arg(long)]
    off: bool,
    /// What has not moved away after that is stopped.
    #[arg(long, value_name = "TIME", conflicts_with = "off", value_parser = duration)]
    within: Option<Duration>,
    /// Until nothing runs there any more.
    #[arg(long, conflicts_with = "off")]
    wait: bool,
    /// Give up waiting after that: exit code 7.
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = duration)]
    timeout: Option<Duration>,
}

pub(super) fn list(host: &HostArgs, format: Format) -> Result<ExitCode, Error> {
    let nodes = block_on(async { Ok(view(&mut host.cluster().await?, "").await?.nodes) })?;
    match format {
        Format::Json => show::json(&nodes)?,
        Format::Table => show::table(HEADER, nodes.iter().map(row).collect())?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn node(host: &HostArgs, command: &MemberCommand) -> Result<ExitCode, Error> {
    match command {
        MemberCommand::Ls(args) => return list(host, args.format),
        MemberCommand::Inspect { names } => block_on(async {
            let nodes = view(&mut host.cluster().await?, "").await?.nodes;
            names.iter().try_for_each(|name| show::json(find(&nodes, name)?))
        })?,
        MemberCommand::Rm { name } => block_on(async {
            let request = v1::RemoveNodeRequest { node: name.clone() };
            host.cluster().await?.remove_node(request).await?;
            show::line(name)
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

/// By its name, or by its beginning.
fn find<'a>(nodes: &'a [v1::ClusterNode], name: &str) -> Result<&'a v1::ClusterNode, Error> {
    if let Some(node) = nodes.iter().find(|node| node.name == name) {
        return Ok(node);
    }
    let alike: Vec<_> = nodes.iter().filter(|node| node.name.starts_with(name)).collect();
    match alike[..] {
        [node] => Ok(node),
        [] => Err(Failure::new(Kind::NotFound, format!("there is no node {name:?}")).into()),
        _ => {
            let what = format!("{name:?} is the beginning of {} nodes' names", alike.len());
            Err(Failure::new(Kind::Invalid, what).into())
        }
    }
}

pub(super) fn drain(host: &HostArgs, args: &DrainArgs) -> Result<ExitCode, Error> {
    block_on(async {
        let mut client = host.cluster().await?;
        let request = v1::DrainNodeRequest {
            node: args.node.clone(),
            on: !args.off,
            within: args.within.map(Into::into),
        };
        let node = client.drain_node(request).await?.into_inner();
        if args.wait {
            emptied(&mut client, &node.name, args.timeout).await?;
        }
        show::line(&node.name)?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn emptied(client: &mut Cluster, name: &str, most: Option<Duration>) -> Result<(), Error> {
    let verdict = |view: &v1::ClusterView| match find(&view.nodes, name) {
        Err(_) => wait::Verdict::Done,
        Ok(node) if node.instances == 0 => wait::Verdict::Done,
        Ok(node) => wait::Verdict::Not(format!("{name}: {} tasks are there", node.instances)),
    };
    wait::until(client, most, verdict).await.map(drop)
}

const HEADER: [&str; 8] =
    ["NODE", "STATE", "TASKS", "CPU", "MEMORY", "PRESSURE", "HEARD", "SOFTWARE"];

pub(super) fn row(node: &v1::ClusterNode) -> [String; 8] {
    let capacity = node.capacity.unwrap_or_default();
    let (taken, there) =
        (capacity.allocated.unwrap_or_default(), capacity.allocatable.unwrap_or_default());
    let memory = |amounts: &v1::Amounts| amount::say_bytes(amounts.memory.unwrap_or_default());
    let heard = match node.presence() {
        v1::cluster_node::Presence::Here => String::new(),
        _ => show::age(node.heard.as_ref()),
    };
    [
        node.name.clone(),
        state(node),
        node.instances.to_string(),
        format!("{} / {}", cpus(&taken), cpus(&there)),
        format!("{} / {}", memory(&taken), memory(&there)),
        pressure(node),
        heard,
        show::plain(&node.software),
    ]
}

fn state(node: &v1::ClusterNode) -> String {
    let presence = word(node.presence().as_str_name(), "PRESENCE_");
    let mut more = Vec::new();
    if node.draining {
        more.push("draining".to_owned());
    }
    if node.drain_overdue {
        more.push("overdue".to_owned());
    }
    more.extend(node.pressure.iter().map(|one| format!("short of {}", show::plain(&one.of))));
    if more.is_empty() { presence } else { format!("{presence} ({})", more.join(", ")) }
}

/// Percent of the last 10 s in which something waited, where it is worth a word.
fn pressure(node: &v1::ClusterNode) -> String {
    let capacity = node.capacity.unwrap_or_default();
    let all = capacity.waits().map(|(of, some, _)| (of, some));
    if all.iter().all(|(_, percent)| percent.is_none()) {
        return if capacity.total.is_some() { "not counted" } else { "" }.to_owned();
    }
    let said = all.iter().filter_map(|(of, percent)| Some((of, percent.filter(|p| *p >= 0.5)?)));
    said.map(|(of, percent)| format!("{of} {percent:.0}%")).collect::<Vec<_>>().join(" ")
}

pub(super) fn cpus(amounts: &v1::Amounts) -> String {
    let milli = amounts.cpu_milli.unwrap_or_default();
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
