//! `hafen coordinator`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use hafen::config::{Log, LogFormat};
use hafen_coordinator::service::{Address, Authority, Coordinator, Options};
use hafen_coordinator::state::etcd;
use hafen_protocol::v1;
use nix::unistd::Group;
use tokio::signal::unix::{SignalKind, signal};

use super::agent::{notify, start_log};
use super::show;
use crate::Error;

const DEFAULT_STATE: &str = "/var/lib/hafen/coordinator";
const DEFAULT_ADDRESS: &str = "unix:///run/hafen/coordinator.sock";
/// Of the token in a --join-file, and for how many nodes.
const JOIN_VALID: Duration = Duration::from_secs(24 * 3600);
const JOIN_USES: u32 = 1_000;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct CoordinatorArgs {
    #[command(subcommand)]
    command: Option<CoordinatorCommand>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum CoordinatorCommand {
    /// Print a person's certificate, its key and the authority, in PEM: for calls over https.
    Cert {
        name: String,
        /// One that counts still, where some of this name were withdrawn: "hafen cert ls" says which.
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        number: u64,
        /// The coordinator's folder.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
    },
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Where to be called: unix:///PATH, http://ADDRESS:PORT (of this machine) or https://ADDRESS:PORT; as often as needed
    /// [default: unix:///run/hafen/coordinator.sock].
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Address>,
    /// Folder of all that the coordinator keeps.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
    state: PathBuf,
    /// What it is called, for people [default: the machine's name].
    #[arg(long)]
    name: Option<String>,
    /// How long a node may stay unheard before its tasks are replaced elsewhere.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    lease: Duration,
    /// A name or address under which nodes reach the coordinator, for its certificate; as often as needed.
    #[arg(long, value_name = "NAME")]
    cert_name: Vec<String>,
    /// Write a token for many nodes and the authority's SHA-256 to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    join_file: Option<PathBuf>,
    /// Members of this group may use the socket, too.
    #[arg(long, value_name = "NAME|GID")]
    group: Option<String>,
    /// Also plain HTTP on addresses that others reach. Whoever does directs the cluster.
    #[arg(long)]
    insecure: bool,
    /// A member of the etcd cluster that holds the state, shared with other coordinators of which one directs; as often as needed.
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// What all keys there begin with.
    #[arg(long, value_name = "KEY", default_value = "/hafen", requires = "etcd")]
    etcd_prefix: String,
    /// Who signs the certificates of its members, in PEM.
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_ca: Option<PathBuf>,
    /// Our certificate for it.
    #[arg(long, value_name = "FILE", requires = "etcd_key")]
    etcd_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
    /// Where the other coordinators, nodes and people find this one [default: the first --listen of TCP].
    #[arg(long, value_name = "URL", requires = "etcd")]
    url: Option<String>,
    /// error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Journald,
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Text => Self::Text,
            Format::Json => Self::Json,
            Format::Journald => Self::Journald,
        }
    }
}

pub(super) fn coordinator(args: &CoordinatorArgs) -> Result<ExitCode, Error> {
    if let Some(CoordinatorCommand::Cert { name, number, state }) = &args.command {
        return certificate(name, *number, state);
    }
    let args = &args.serve;
    start_log(&Log { level: args.log_level.clone(), format: args.log_format.into() })?;
    let options = options(args)?;
    super::serve(serve(options, args.join_file.as_deref())).map(|()| ExitCode::SUCCESS)
}

fn certificate(name: &str, number: u64, state: &Path) -> Result<ExitCode, Error> {
    let person =
        Authority::read(&state.join("ca")).and_then(|authority| authority.person(name, number));
    let person = person.map_err(|e| Error::Refused(crate::chain(&e)))?;
    let text = [person.certificate, person.key, person.authority].concat();
    show::bytes(text.as_bytes())?;
    // Beside what goes into a file.
    let until = humantime::format_rfc3339_seconds(person.until);
    eprintln!("hafen: certificate {} of {name}, until {until}", person.serial);
    Ok(ExitCode::SUCCESS)
}

fn options(args: &ServeArgs) -> Result<Options, Error> {
    let mut listen = args.listen.clone();
    if listen.is_empty() {
        let usual: Result<Address, String> = DEFAULT_ADDRESS.parse();
        listen.push(usual.map_err(Error::Refused)?);
    }
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = args.name.clone().unwrap_or_else(|| host().trim().to_owned());
    let group = args.group.as_deref().map(group).transpose()?;
    Ok(Options {
        listen,
        state: args.state.clone(),
        name,
        lease: args.lease,
        group,
        names: args.cert_name.clone(),
        insecure: args.insecure,
        etcd: etcd(args),
        url: args.url.clone(),
    })
}

fn etcd(args: &ServeArgs) -> Option<etcd::Options> {
    let urls = args.etcd.clone();
    (!urls.is_empty()).then(|| etcd::Options {
        urls,
        prefix: args.etcd_prefix.clone(),
        ca: args.etcd_ca.clone(),
        identity: args.etcd_cert.clone().zip(args.etcd_key.clone()),
    })
}

fn group(text: &str) -> Result<u32, Error> {
    if let Ok(gid) = text.parse() {
        return Ok(gid);
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        _ => Err(Error::Unconfigured(format!("--group: there is no group {text}"))),
    }
}

async fn serve(options: Options, join_file: Option<&Path>) -> Result<(), Error> {
    // Before anyone can talk to us: who asks us to end is heard.
    let handler = |kind| signal(kind).map_err(|e| Error::Refused(format!("sigaction: {e}")));
    let mut terminate = handler(SignalKind::terminate())?;
    let mut interrupt = handler(SignalKind::interrupt())?;
    let mut coordinator = Coordinator::start(options).await?;
    if let Some(file) = join_file {
        write_join(&coordinator, file).await?;
    }
    for address in &coordinator.addresses {
        tracing::info!(%address, "listens");
    }
    tracing::info!(authority = coordinator.authority, "ready");
    notify("READY=1");
    // The signals keep that they have come (tokio, "Cancel safety"); the loop goes on.
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = coordinator.failed() => return Ok(ended?),
    }
    notify("STOPPING=1");
    tracing::info!("ends; what runs on nodes goes on");
    coordinator.stop().await;
    Ok(())
}

/// For scripts: as JSON, whole or not at all, and for our own user only.
async fn write_join(coordinator: &Coordinator, file: &Path) -> Result<(), Error> {
    let valid = Some(hafen::time::span(JOIN_VALID));
    let token = coordinator.token(v1::CreateTokenRequest { valid, uses: JOIN_USES }).await?;
    let text = serde_json::to_string(&token).map_err(|e| Error::Refused(format!("output: {e}")))?;
    let draft = file.with_extension("draft");
    let mut open = std::fs::OpenOptions::new();
    let to = open.create(true).truncate(true).write(true).mode(0o600).open(&draft);
    let written = to.and_then(|mut to| to.write_all(text.as_bytes()));
    let written = written.and_then(|()| std::fs::rename(&draft, file));
    written.map_err(|e| Error::Refused(format!("write {}: {e}", file.display())))
}
