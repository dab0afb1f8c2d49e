//! Coordinator, agent and page in one process: this machine as a cluster of one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use hafen::address::Address as At;
use hafen::config::Config;
use hafen_coordinator::service::{Address, Coordinator, Options};
use tokio::time::sleep;

use super::layout::greeting;
use super::{nodes_here, refused, seen, show};
use crate::Error;
use crate::cli::Cli;
use crate::commands::{self, agent};

/// Of the node, which is where we are: it is only silent when we are.
const LEASE: Duration = Duration::from_secs(5);
/// Between two looks whether the node is there.
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn up(cli: &Cli, listen: &str, dir: Option<&Path>) -> Result<ExitCode, Error> {
    let (config, socket) = configure(cli, dir)?;
    agent::start_log(&config.log)?;
    let options = options(&config, &socket, listen)?;
    commands::serve(live(&config, socket, options)).map(|()| ExitCode::SUCCESS)
}

/// As the agent would be, with our coordinator as its master, whose socket is beside the agent's own.
fn configure(cli: &Cli, dir: Option<&Path>) -> Result<(Config, PathBuf), Error> {
    let mut flags = folders(dir);
    let (config, _) = agent::configured(cli, flags.clone(), None)?;
    let socket = config.run.join("coordinator.sock");
    flags.insert("master.urls", format!("unix://{}", socket.display()));
    let (config, strangers) = agent::configured(cli, flags, None)?;
    strangers.iter().for_each(|name| eprintln!("hafen: {name} is no variable of the agent"));
    Ok((config, socket))
}

/// Of the agent's configuration, if it is not to be where an agent usually is.
fn folders(dir: Option<&Path>) -> BTreeMap<&'static str, String> {
    let Some(dir) = dir else { return BTreeMap::new() };
    let of = |name| dir.join(name).display().to_string();
    [("state", of("state")), ("run", of("run")), ("instance", "up".to_owned())].into()
}

fn options(config: &Config, socket: &Path, listen: &str) -> Result<Options, Error> {
    let url = format!("unix://{}", socket.display());
    let listen: Result<Vec<Address>, String> =
        [url.as_str(), listen].into_iter().map(str::parse).collect();
    Ok(Options {
        listen: listen.map_err(refused)?,
        state: config.state.join("coordinator"),
        name: config.name.clone(),
        lease: LEASE,
        group: config.group.as_ref().map(|group| group.gid),
        names: Vec::new(),
        insecure: false,
        etcd: None,
        url: None,
    })
}

/// Until somebody asks us to end, or one of the two cannot go on. What runs goes on.
async fn live(config: &Config, socket: PathBuf, options: Options) -> Result<(), Error> {
    // The socket is in there, and the agent comes later.
    std::fs::create_dir_all(&config.run)
        .map_err(|e| refused(format!("mkdir {}: {e}", config.run.display())))?;
    let mut coordinator = Coordinator::start(options).await?;
    // With the port that it was given.
    let page = coordinator.addresses.last().map(ToString::to_string).unwrap_or_default();
    let node = format!("node  --host unix://{}", config.socket.display());
    let greeting = tokio::spawn(greet(page, node, socket));
    let lived = tokio::select! {
        served = agent::serve(config) => served,
        failed = coordinator.failed() => failed.map_err(Error::from),
    };
    greeting.abort();
    coordinator.stop().await;
    lived
}

async fn greet(page: String, node: String, socket: PathBuf) {
    let at = At::Unix(socket.clone());
    while seen(&at).await.is_none_or(|view| nodes_here(&view) == 0) {
        sleep(LOOK).await;
    }
    // Whoever does not read it has lost nothing else.
    let _ = show::line(&greeting(&page, [node], &socket));
}
