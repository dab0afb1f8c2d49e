//! What a person does with a cluster, through its coordinator.

mod cert;
mod changes;
mod events;
mod history;
mod job;
mod nodes;
mod plan;
mod publish;
mod quota;
mod tasks;
#[cfg(test)]
mod tests;
mod token;
mod top;
mod wait;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hafen::client::Cluster;
use hafen_protocol::v1;

pub(super) use events::events;
pub(super) use tasks::ps;
pub(super) use top::top;

use super::{HostArgs, block_on, show};
use crate::Error;
use crate::cli::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// List the nodes of the cluster.
    Nodes(ListArgs),
    /// One node of the cluster.
    #[command(subcommand)]
    Node(nodes::MemberCommand),
    /// Take the tasks of a node elsewhere, and give it no new ones.
    Drain(nodes::DrainArgs),
    /// List the jobs of the cluster.
    Jobs(JobsArgs),
    /// One job: what is to run somewhere in the cluster, and how often.
    #[command(subcommand)]
    Job(job::JobCommand),
    /// List the tasks that the cluster runs.
    Tasks(tasks::TasksArgs),
    /// One task of the cluster.
    #[command(subcommand)]
    Task(tasks::TaskCommand),
    /// Run an image somewhere in the cluster, and wait until it does.
    Publish(Box<publish::PublishArgs>),
    /// What a namespace may ask for.
    #[command(subcommand)]
    Quota(quota::QuotaCommand),
    /// What a machine needs to join the cluster.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Certificates that were given out and are to count no more.
    #[command(subcommand)]
    Cert(cert::CertCommand),
}

impl ClusterCommand {
    /// The exit code of our own failure.
    pub(crate) fn failure(&self, error: &Error) -> u8 {
        match self {
            Self::Job(job::JobCommand::Plan(args)) if args.detailed_exitcode => 1,
            _ => error.code(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// May be said, and means nothing.
    #[arg(value_name = "ls", value_parser = ["ls"], hide = true)]
    verb: Option<String>,
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Of this namespace only.
    #[arg(short, long, value_name = "NAME", default_value = "", hide_default_value = true)]
    namespace: String,
    #[command(flatten)]
    list: ListArgs,
}

pub(super) fn run(host: &HostArgs, command: &ClusterCommand) -> Result<ExitCode, Error> {
    match command {
        ClusterCommand::Nodes(args) => nodes::list(host, args.format),
        ClusterCommand::Node(command) => nodes::node(host, command),
        ClusterCommand::Drain(args) => nodes::drain(host, args),
        ClusterCommand::Jobs(args) => job::list(host, &args.namespace, args.list.format),
        ClusterCommand::Job(command) => job::job(host, command),
        ClusterCommand::Tasks(args) => tasks::tasks(host, args),
        ClusterCommand::Task(command) => tasks::task(host, command),
        ClusterCommand::Publish(args) => publish::publish(host, args),
        ClusterCommand::Quota(command) => quota::quota(host, command),
        ClusterCommand::Token(command) => token::token(host, command),
        ClusterCommand::Cert(command) => cert::cert(host, command),
    }
}

/// All of it, now.
async fn view(client: &mut Cluster, namespace: &str) -> Result<v1::ClusterView, Error> {
    let request = v1::GetClusterRequest { after: 0, namespace: namespace.to_owned() };
    Ok(client.get_cluster(request).await?.into_inner())
}

/// `PHASE_READY` is "ready".
fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase().replace('_', " ")
}
