//! `hafen agent`.

use std::collections::BTreeMap;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use hafen::api::{Api, Options};
use hafen::config::{Config, DEFAULT_FILE, KEYS, Log, LogFormat, gather};
use hafen::link::Link;
use hafen::node::Node;
use hafen_protocol::v1;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::show;
use crate::Error;
use crate::cli::Cli;

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The file [default: /etc/hafen/agent.toml, if it is there].
    #[arg(long, value_name = "FILE", env = "HAFEN_CONFIG")]
    config: Option<PathBuf>,
    /// Print what the agent would go by, or all that is wrong with it, and end.
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    flags: Flags,
}

/// One flag for each key of the configuration, by the path of the key.
#[derive(Debug, Default)]
struct Flags(BTreeMap<&'static str, String>);

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let own = KEYS.iter().filter(|key| !key.is_global());
        own.fold(command.next_help_heading("Configuration"), |command, key| {
            let default = match key.default {
                "" => String::new(),
                default => format!(" [default: {default}]"),
            };
            let help = format!("{} [{}]{default}", key.about, key.variable());
            command.arg(Arg::new(key.path).long(key.flag()).value_name(key.value).help(help))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let own = KEYS.iter().filter(|key| !key.is_global());
        let said =
            own.filter_map(|key| Some((key.path, matches.get_one::<String>(key.path)?.clone())));
        Ok(Self(said.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

pub(super) fn agent(cli: &Cli, args: &AgentArgs) -> Result<ExitCode, Error> {
    let (config, strangers) = configuration(cli, args)?;
    let told = strangers.iter().map(|name| format!("{name} is no variable of the agent"));
    if args.check_config {
        told.for_each(|words| eprintln!("hafen: {words}"));
        let text = config.to_toml().map_err(|e| Error::Refused(format!("output: {e}")))?;
        show::bytes(text.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    start_log(&config.log)?;
    told.for_each(|words| tracing::warn!("{words}"));
    super::serve(serve(&config)).map(|()| ExitCode::SUCCESS)
}

/// With the variables that have our prefix and mean nothing.
fn configuration(cli: &Cli, args: &AgentArgs) -> Result<(Config, Vec<String>), Error> {
    configured(cli, args.flags.0.clone(), args.config.as_deref())
}

/// The same, where some keys are said by somebody else than a person.
pub(super) fn configured(
    cli: &Cli,
    mut flags: BTreeMap<&'static str, String>,
    file: Option<&Path>,
) -> Result<(Config, Vec<String>), Error> {
    for (key, said) in [("images", &cli.images), ("volumes", &cli.volumes)] {
        if let Some(path) = said {
            flags.insert(key, path.display().to_string());
        }
    }
    let file = read(file)?;
    let file = file.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
    let variables = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let given = gather(&flags, variables, file);
    Ok((Config::resolve(&given)?, given.strangers))
}

/// A file that was named must be there.
fn read(named: Option<&Path>) -> Result<Option<(PathBuf, String)>, Error> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(e) if e.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(e) => Err(Error::Unconfigured(format!("read {}: {e}", path.display()))),
    }
}

pub(super) fn start_log(log: &Log) -> Result<(), Error> {
    // Below that, the libraries tell of every frame: who wants it names them.
    let filter = match log.level.as_str() {
        level @ ("debug" | "trace") => format!("info,hafen={level},hafen_coordinator={level}"),
        level => level.to_owned(),
    };
    let filter = EnvFilter::builder().parse_lossy(filter);
    let lines = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false);
    let started = match log.format {
        LogFormat::Text => lines.with_env_filter(filter).try_init(),
        LogFormat::Json => lines.json().with_env_filter(filter).try_init(),
        LogFormat::Journald => {
            let layer = tracing_journald::layer();
            let layer = layer.map_err(|e| {
                Error::Refused(format!("log.format journald: there is none here: {e}"))
            })?;
            let layer = layer.with_syslog_identifier("hafen".to_owned());
            return tracing_subscriber::registry()
                .with(filter)
                .with(layer)
                .try_init()
                .map_err(|e| Error::Refused(format!("start the log: {e}")));
        }
    };
    started.map_err(|e| Error::Refused(format!("start the log: {e}")))
}

/// Until somebody asks us to end.
pub(super) async fn serve(config: &Config) -> Result<(), Error> {
    // Before anyone can talk to us: who asks us to end is heard.
    let handler = |kind| signal(kind).map_err(|e| Error::Refused(format!("sigaction: {e}")));
    let mut terminate = handler(SignalKind::terminate())?;
    let mut interrupt = handler(SignalKind::interrupt())?;
    let wishes = [handler(SignalKind::user_defined1())?, handler(SignalKind::user_defined2())?];
    // First the socket: its lock says that there is no other agent here.
    let api = Api::bind(&Options::from(config)).await?;
    let node = Node::open(config).await?;
    let link = Link::start(&node)?.map(Arc::new);
    let within = config.master.as_ref().and_then(|master| master.drain_within);
    let wishing = tokio::spawn(wish(link.clone(), wishes, within));
    tracing::info!(socket = %config.socket.display(), tcp = ?api.tcp_address(), "ready");
    notify("READY=1");
    let stop = async {
        // Both keep that a signal has come (tokio, "Cancel safety").
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        notify("STOPPING=1");
        tracing::info!("ends; what runs goes on");
    };
    api.serve(node.clone(), stop).await;
    wishing.abort();
    if let Some(link) = link {
        link.leave().await;
    }
    node.finish().await;
    Ok(())
}

/// Whoever works at the machine wants it to be empty, or not any more.
async fn wish(
    link: Option<Arc<Link>>,
    [mut empty, mut again]: [Signal; 2],
    within: Option<Duration>,
) {
    loop {
        // Both keep that a signal has come (tokio, "Cancel safety").
        let on = tokio::select! {
            _ = empty.recv() => true,
            _ = again.recv() => false,
        };
        match &link {
            Some(link) => {
                let within = within.filter(|_| on).map(hafen_protocol::time::span);
                link.wish_drain(v1::DrainWish { on, within });
            }
            None => tracing::warn!("there is no master that could empty this node"),
        }
    }
}

/// Tell whoever started us (sd_notify(3)). Nobody may be there to hear it.
pub(super) fn notify(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent =
        UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(state.as_bytes(), &address?));
    if let Err(e) = sent {
        tracing::warn!("NOTIFY_SOCKET: {e}");
    }
}
