//! `hafen up`: a coordinator and one or more agents on this machine, by one command.

mod alone;
mod cable;
mod layout;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use hafen::address::Address;
use hafen::client::{self, Host, Tls};
use hafen::lock;
use hafen::network::netns;
use hafen_protocol::v1::{self, cluster_node::Presence};
use nix::fcntl::Flock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::{block_on, show};
use crate::Error;
use crate::cli::Cli;
use layout::{Layout, Member};

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// So many nodes. One is this machine, as "hafen agent" has it; of several each has a network and folders of its own, and
    /// all that they run is removed at the end.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    nodes: u8,
    /// Where the page is, and what it asks.
    #[arg(long, value_name = "ADDRESS", default_value = "http://127.0.0.1:7600")]
    listen: String,
    /// Folder for everything, sockets included [default: /var/lib/hafen and /run/hafen, or "up" in both for several nodes].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// For a first word of everybody.
const PATIENCE: Duration = Duration::from_secs(60);
/// For the last one of each: what it runs may have to be killed.
const FAREWELL: Duration = Duration::from_secs(30);

fn refused(what: impl Into<String>) -> Error {
    Error::Refused(what.into())
}

pub(super) fn up(cli: &Cli, args: &UpArgs) -> Result<ExitCode, Error> {
    let dir = args.dir.as_deref();
    if args.nodes == 1 {
        return alone::up(cli, &args.listen, dir);
    }
    let layout = Layout::new(args.nodes, &args.listen, dir, cli.images.as_deref());
    block_on(async {
        // Before anything is there: who asks us to end is heard.
        let handler = |kind| signal(kind).map_err(|e| refused(format!("sigaction: {e}")));
        let mut terminate = handler(SignalKind::terminate())?;
        let mut interrupt = handler(SignalKind::interrupt())?;
        let mut village = Village::new(layout)?;
        // Whoever is first: what has begun is ended below.
        let lived = tokio::select! {
            lived = village.live() => lived,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
        let ended = village.end().await;
        lived.and(ended).map(|()| ExitCode::SUCCESS)
    })
}

/// All that was begun.
struct Village {
    layout: Layout,
    coordinator: Option<Child>,
    agents: Vec<(Member, Child)>,
    /// Goes with our process.
    _lock: Flock<File>,
}

impl Village {
    fn new(layout: Layout) -> Result<Self, Error> {
        for folder in [&layout.state, &layout.run] {
            std::fs::create_dir_all(folder)
                .map_err(|e| refused(format!("mkdir {}: {e}", folder.display())))?;
        }
        let lock = lock::take(&layout.run.join("up.lock"))?.ok_or_else(|| {
            refused(format!("\"hafen up\" is at work in {} already", layout.run.display()))
        })?;
        Ok(Self { layout, coordinator: None, agents: Vec::new(), _lock: lock })
    }

    /// Until something is wrong.
    async fn live(&mut self) -> Result<(), Error> {
        self.begin()?;
        self.greet().await?;
        loop {
            self.pause().await?;
        }
    }

    fn begin(&mut self) -> Result<(), Error> {
        self.coordinator = Some(spawn(&self.layout.coordinator, None)?);
        cable::remove(&self.layout);
        cable::lay(&self.layout).map_err(refused)?;
        for member in self.layout.members.clone() {
            let child = spawn(&member.words, Some(&member.namespace))?;
            self.agents.push((member, child));
        }
        Ok(())
    }

    /// Once all nodes are there.
    async fn greet(&mut self) -> Result<(), Error> {
        let at = Address::Unix(self.layout.socket.clone());
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = seen(&at).await;
            if let Some(view) = seen.filter(|view| nodes_here(view) >= self.layout.members.len()) {
                // With the port that it was given.
                let mut pages = view.addresses.iter().filter(|at| at.starts_with("http"));
                let page = pages.next().unwrap_or(&self.layout.listen);
                return show::line(&self.layout.greeting(page));
            }
            if Instant::now() > end {
                return Err(refused("the nodes have not come; what they say is above"));
            }
            self.pause().await?;
        }
    }

    /// The coordinator is not to end before we do. An agent may: to see that is what several are for.
    async fn pause(&mut self) -> Result<(), Error> {
        sleep(Duration::from_millis(300)).await;
        if let Some(child) = self.coordinator.as_mut()
            && let Some(words) = end_of(child)
        {
            return Err(refused(format!("the coordinator has ended: {words}")));
        }
        for (member, child) in &mut self.agents {
            if member.is_here
                && let Some(words) = end_of(child)
            {
                member.is_here = false;
                eprintln!("hafen: {} has ended: {words}", member.name);
            }
        }
        Ok(())
    }

    /// Who has ended before us comes back, for what runs there to be ended.
    fn call_back(&mut self) -> Result<(), Error> {
        for (member, child) in &mut self.agents {
            if end_of(child).is_some() {
                *child = spawn(&member.words, Some(&member.namespace))?;
            }
        }
        Ok(())
    }

    /// What runs first; then the agents, who say so to the coordinator; then that one.
    async fn end(mut self) -> Result<(), Error> {
        let mut left = Vec::new();
        let mut note = |who: &str, error: Option<Error>| {
            left.extend(error.map(|e| format!("{who}: {}", crate::chain(&e))));
        };
        note("an agent", self.call_back().err());
        let at = Address::Unix(self.layout.socket.clone());
        note("the coordinator", purge(&at).await.err());
        for (member, child) in &mut self.agents {
            note(&member.name, empty(&member.socket).await.err());
            finish(child).await;
        }
        if let Some(child) = self.coordinator.as_mut() {
            finish(child).await;
        }
        cable::remove(&self.layout);
        if !left.is_empty() {
            let at = self.layout.state.display();
            return Err(refused(format!("not all is gone, and {at} is kept: {}", left.join("; "))));
        }
        for folder in [&self.layout.state, &self.layout.run] {
            std::fs::remove_dir_all(folder)
                .map_err(|e| refused(format!("remove {}: {e}", folder.display())))?;
        }
        Ok(())
    }
}

/// `None`: nobody answers yet.
async fn seen(at: &Address) -> Option<v1::ClusterView> {
    let mut client = client::coordinator(at, &Tls::default()).await.ok()?;
    Some(client.get_cluster(v1::GetClusterRequest::default()).await.ok()?.into_inner())
}

fn nodes_here(view: &v1::ClusterView) -> usize {
    view.nodes.iter().filter(|node| node.presence() == Presence::Here).count()
}

/// Ourselves, with other words. Its own process group: Ctrl-C is ours, and they end in order.
fn spawn(words: &[String], namespace: Option<&Path>) -> Result<Child, Error> {
    let program = std::env::current_exe().map_err(|e| refused(format!("find ourselves: {e}")))?;
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    // What we were told about other agents and coordinators is not theirs.
    for name in ["HAFEN_HOST", "HAFEN_COORDINATOR", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    let told = |e: std::io::Error| refused(format!("start hafen {}: {e}", words[0]));
    match namespace {
        None => command.spawn().map_err(told),
        Some(path) => {
            let runtime = tokio::runtime::Handle::current();
            let spawned = netns::inside(path, || {
                let _entered = runtime.enter();
                command.spawn()
            });
            spawned?.map_err(told)
        }
    }
}

fn end_of(child: &mut Child) -> Option<String> {
    match child.try_wait() {
        Ok(None) => None,
        Ok(Some(status)) => Some(status.to_string()),
        Err(e) => Some(format!("wait: {e}")),
    }
}

async fn finish(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // Who has ended already needs no word.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if timeout(FAREWELL, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// No job is to be there any more, and nothing of one.
async fn purge(at: &Address) -> Result<(), Error> {
    let purged = async {
        let mut client = client::coordinator(at, &Tls::default()).await?;
        let view = client.get_cluster(v1::GetClusterRequest::default()).await?.into_inner();
        for job in view.jobs {
            client.stop_job(v1::StopJobRequest { name: job.name, purge: true }).await?;
        }
        loop {
            let view = client.get_cluster(v1::GetClusterRequest::default()).await?.into_inner();
            if view.jobs.is_empty() && view.instances.is_empty() {
                return Ok(());
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(FAREWELL, purged).await.unwrap_or_else(|_| Err(refused("its jobs do not end")))
}

/// Stop and forget all that an agent has of its own.
async fn empty(socket: &Path) -> Result<(), Error> {
    let emptied = async {
        let mut client = client::connect(&Host::unix(socket.to_owned()), &Tls::default()).await?;
        for pod in client.list_pods(v1::ListPodsRequest {}).await?.into_inner().pods {
            gone(client.remove_pod(v1::RemovePodRequest { id: pod.id, force: true }).await)?;
        }
        let all = v1::ListTasksRequest { all: true, ..Default::default() };
        for task in client.list_tasks(all).await?.into_inner().tasks {
            gone(client.remove_task(v1::RemoveTaskRequest { id: task.id, force: true }).await)?;
        }
        Ok(())
    };
    timeout(FAREWELL, emptied).await.unwrap_or_else(|_| Err(refused("what it runs does not end")))
}

/// It may have gone by itself meanwhile.
fn gone<T>(removed: Result<T, tonic::Status>) -> Result<(), Error> {
    match removed {
        Err(status) if status.code() != tonic::Code::NotFound => Err(status.into()),
        _ => Ok(()),
    }
}
