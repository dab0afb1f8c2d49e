//! One module per verb, or for a few that belong together: what was typed in, an exit code or one error out.

mod agent;
mod cluster;
mod completion;
mod control;
mod coordinator;
mod copy;
mod document;
mod events;
mod exec;
mod list;
mod logs;
mod pod;
mod run;
mod session;
mod show;
mod stats;
mod system;
mod up;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use hafen::address::Address;
use hafen::client::{self, Client, Cluster, ConnectError, Host, Tls};
use hafen::config::DEFAULT_SOCKET;

pub(crate) use cluster::ClusterCommand;

use crate::cli::{Cli, Command};
use crate::{Error, image, volume};

/// Where a coordinator listens that was told nothing else.
const COORDINATOR: &str = "/run/hafen/coordinator.sock";

/// How the agent is reached, or the coordinator.
#[derive(Debug, Args)]
#[command(next_help_heading = "Agent and coordinator")]
pub(crate) struct HostArgs {
    /// Where the agent is: unix:///PATH or https://HOST:PORT [default: unix:///run/hafen/agent.sock].
    #[arg(long, value_name = "ADDRESS", env = "HAFEN_HOST", global = true, hide_env_values = true)]
    host: Option<Host>,
    /// Where the coordinator is: unix:///PATH, http://HOST:PORT or https://HOST:PORT [default:
    /// unix:///run/hafen/coordinator.sock].
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "HAFEN_COORDINATOR",
        global = true,
        hide_env_values = true
    )]
    coordinator: Option<Address>,
    /// Who signs the certificates of agents and coordinators.
    #[arg(long, value_name = "FILE", env = "HAFEN_TLS_CA", global = true, hide_env_values = true)]
    tls_ca: Option<PathBuf>,
    /// Our certificate.
    #[arg(
        long,
        value_name = "FILE",
        env = "HAFEN_TLS_CERT",
        global = true,
        hide_env_values = true
    )]
    tls_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", env = "HAFEN_TLS_KEY", global = true, hide_env_values = true)]
    tls_key: Option<PathBuf>,
}

impl HostArgs {
    pub(crate) fn host(&self) -> Host {
        self.host.clone().unwrap_or_else(|| Host::unix(DEFAULT_SOCKET.into()))
    }

    pub(crate) async fn connect(&self) -> Result<Client, ConnectError> {
        client::connect(&self.host(), &self.files()).await
    }

    pub(crate) async fn cluster(&self) -> Result<Cluster, ConnectError> {
        let default = || Address::Unix(COORDINATOR.into());
        let at = self.coordinator.clone().unwrap_or_else(default);
        client::coordinator(&at, &self.files()).await
    }

    fn files(&self) -> Tls {
        let Self { tls_ca, tls_cert, tls_key, .. } = self;
        Tls { ca: tls_ca.clone(), cert: tls_cert.clone(), key: tls_key.clone() }
    }
}

/// Of commands that know both.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Whose {
    /// Of the whole cluster, in place of one node; so it is where --coordinator is said and --host is not.
    #[arg(long)]
    cluster: bool,
}

impl Whose {
    const fn is_cluster(self, host: &HostArgs) -> bool {
        self.cluster || host.coordinator.is_some() && host.host.is_none()
    }
}

/// What a person does with tasks, pods and the node.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Run a task: a container, and how it is kept.
    Run(Box<run::RunArgs>),
    /// List tasks.
    Ps(list::PsArgs),
    /// Print what a task has written.
    Logs(logs::LogsArgs),
    /// Run a program in a task.
    Exec(exec::ExecArgs),
    /// Connect to a task's input and output. Ctrl-P Ctrl-Q lets go of one with a terminal.
    Attach(exec::AttachArgs),
    /// Ask tasks to end, and kill them if they do not.
    Stop(control::StopArgs),
    /// Send a signal to tasks.
    Kill(control::KillArgs),
    /// Forget tasks that have ended, with their logs.
    Rm(control::RmArgs),
    /// Print all that is known of tasks, as JSON.
    Inspect(list::InspectArgs),
    /// Wait until tasks have ended, and print their exit codes.
    Wait(control::WaitArgs),
    /// Change the limits of a task while it runs.
    Update(control::UpdateArgs),
    /// Show what tasks take.
    Stats(stats::StatsArgs),
    /// Show those tasks first that take most.
    Top(stats::TopArgs),
    /// Show what happens.
    Events(events::EventsArgs),
    /// Copy files out of a task, or into it.
    Cp(copy::CpArgs),
    /// Pods: tasks that share a network and a limit.
    #[command(subcommand)]
    Pod(pod::PodCommand),
    /// The node: what it is, and what takes its disk.
    #[command(subcommand)]
    System(system::SystemCommand),
    /// Say what containers can and cannot have on this machine.
    Doctor {
        /// Passed on to "hafen-oci doctor".
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
        options: Vec<String>,
    },
    /// Show every operation of the agent that is under way, and since when.
    Debug(system::DebugArgs),
    /// Print the versions of this program and of the agent.
    Version(system::VersionArgs),
    /// Print what a shell needs to complete our commands.
    Completion(completion::CompletionArgs),
    /// Be the agent of this node.
    Agent(Box<agent::AgentArgs>),
    /// Be the coordinator of many nodes.
    Coordinator(Box<coordinator::CoordinatorArgs>),
    /// Be a cluster on this machine: a coordinator with its page, and one agent or more.
    Up(up::UpArgs),
}

/// Do what was asked for.
///
/// # Errors
/// One failure, for the caller to report.
pub(crate) fn dispatch(cli: &Cli) -> Result<ExitCode, Error> {
    let (host, command) = match &cli.command {
        Command::Image(command) => return image::run(&cli.images(), command),
        Command::Volume(command) => return volume::run(&cli.volumes(), command),
        Command::Cluster(command) => return cluster::run(&cli.host, command),
        Command::Node(command) => (&cli.host, command),
    };
    match command {
        NodeCommand::Run(args) => run::run(host, args),
        NodeCommand::Ps(args) => list::ps(host, args),
        NodeCommand::Logs(args) => logs::logs(host, args),
        NodeCommand::Exec(args) => exec::exec(host, args),
        NodeCommand::Attach(args) => exec::attach(host, args),
        NodeCommand::Stop(args) => control::stop(host, args),
        NodeCommand::Kill(args) => control::kill(host, args),
        NodeCommand::Rm(args) => control::rm(host, args),
        NodeCommand::Inspect(args) => list::inspect(host, args),
        NodeCommand::Wait(args) => control::wait(host, args),
        NodeCommand::Update(args) => control::update(host, args),
        NodeCommand::Stats(args) => stats::stats(host, args),
        NodeCommand::Top(args) => stats::top(host, args),
        NodeCommand::Events(args) => events::events(host, args),
        NodeCommand::Cp(args) => copy::cp(host, args),
        NodeCommand::Pod(command) => pod::pod(host, command),
        NodeCommand::System(command) => system::system(cli, command),
        NodeCommand::Doctor { options } => system::doctor(options),
        NodeCommand::Debug(args) => system::debug(host, args),
        NodeCommand::Version(args) => system::version(host, args),
        NodeCommand::Completion(args) => completion::print(args),
        NodeCommand::Agent(args) => agent::agent(cli, args),
        NodeCommand::Coordinator(args) => coordinator::coordinator(args),
        NodeCommand::Up(args) => up::up(cli, args),
    }
}

impl NodeCommand {
    /// The exit code of our own failure. That of `run` and `exec` must not be taken for the program's.
    pub(crate) fn failure(&self, error: &Error) -> u8 {
        const OURS: u8 = 125;
        match self {
            Self::Run(_) | Self::Exec(_) | Self::Attach(_) => OURS,
            _ => error.code(),
        }
    }
}

/// On this thread: a client waits most of the time.
fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Error::Refused(format!("start a runtime: {e}")))?.block_on(work)
}

/// On threads of its own, for as long as it takes.
fn serve<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let threads = threads.map_err(|e| Error::Refused(format!("start threads: {e}")))?;
    let served = threads.block_on(work);
    // A call that blocks must not keep us: what it was about is written down.
    threads.shutdown_background();
    served
}

/// One after the other; the first failure decides the exit code, and does not keep the others from their turn.
async fn each<F: Future<Output = Result<String, Error>>>(
    ids: &[String],
    mut work: impl FnMut(String) -> F,
) -> Result<ExitCode, Error> {
    let mut code = None;
    for id in ids {
        match work(id.clone()).await {
            Ok(line) => show::line(&line)?,
            Err(error) => {
                eprintln!("hafen: {id}: {}", crate::chain(&error));
                code = code.or_else(|| Some(error.code()));
            }
        }
    }
    Ok(code.map_or(ExitCode::SUCCESS, ExitCode::from))
}
