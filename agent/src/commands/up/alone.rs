//! Coordinator, agent and page in one process: this machine as a cluster of one.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use hafen::client::{Coordinator as At, Host};
use hafen::config::Config;
use hafen_coordinator::service::{Address, Coordinator, Options};
use tokio::time::sleep;

use super::layout::Layout;
use super::{nodes_here, refused, show};
use crate::Error;
use crate::cli::Cli;
use crate::commands::agent;

/// Of the node, which is where we are: it is only silent when we are.
const LEASE: Duration = Duration::from_secs(5);
/// Between two looks whether the node is there.
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn up(cli: &Cli, mut layout: Layout) -> Result<ExitCode, Error> {
    let config = configure(cli, &mut layout)?;
    agent::start_log(&config.log)?;
    let options = options(&layout, &config)?;
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let threads = threads.map_err(|e| refused(format!("start threads: {e}")))?;
    let lived = threads.block_on(live(layout, &config, options));
    // A call that blocks must not keep us: what it was about is written down.
    threads.shutdown_background();
    lived.map(|()| ExitCode::SUCCESS)
}

/// As the agent would be, with our coordinator as its master, which is where the agent's own configuration says.
fn configure(cli: &Cli, layout: &mut Layout) -> Result<Config, Error> {
    let said = layout.members.iter().flat_map(|member| member.keys.iter().cloned());
    let mut flags: BTreeMap<&'static str, String> = said.collect();
    let (config, _) = agent::configured(cli, flags.clone(), None)?;
    layout.socket = config.run.join("coordinator.sock");
    layout.state.clone_from(&config.state);
    flags.insert("master.urls", format!("unix://{}", layout.socket.display()));
    let (config, strangers) = agent::configured(cli, flags, None)?;
    strangers.iter().for_each(|name| eprintln!("hafen: {name} is no variable of the agent"));
    layout.members.iter_mut().for_each(|member| member.socket.clone_from(&config.socket));
    Ok(config)
}

fn options(layout: &Layout, config: &Config) -> Result<Options, Error> {
    let url = format!("unix://{}", layout.socket.display());
    let listen: Result<Vec<Address>, String> =
        [&url, &layout.listen].into_iter().map(|address| address.parse()).collect();
    Ok(Options {
        listen: listen.map_err(refused)?,
        state: layout.state.join("coordinator"),
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
async fn live(mut layout: Layout, config: &Config, options: Options) -> Result<(), Error> {
    // Its socket is in there, and the agent comes later.
    std::fs::create_dir_all(&config.run)
        .map_err(|e| refused(format!("mkdir {}: {e}", config.run.display())))?;
    let mut coordinator = Coordinator::start(options).await?;
    // With the port that it was given.
    layout.listen = coordinator.addresses.last().map(ToString::to_string).unwrap_or_default();
    let greeting = tokio::spawn(greet(layout));
    let lived = tokio::select! {
        served = agent::serve(config) => served,
        failed = coordinator.failed() => failed.map_err(Error::from),
    };
    greeting.abort();
    coordinator.stop().await;
    lived
}

async fn greet(layout: Layout) {
    let at = At(Host::Unix(layout.socket.clone()));
    while nodes_here(&at).await.is_none_or(|count| count == 0) {
        sleep(LOOK).await;
    }
    // Whoever does not read it has lost nothing else.
    let _ = show::line(&layout.greeting());
}
