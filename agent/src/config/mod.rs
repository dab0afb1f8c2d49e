//! What an agent is told at its start: by flags, variables, a file, and by default, in this order.

mod gather;
mod keys;
mod resolve;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::address::Address;

pub use gather::{Given, Raw, Source, gather};
pub use keys::{KEYS, Key};
pub use resolve::find_runtime;

/// Where the file is if nobody says another.
pub const DEFAULT_FILE: &str = "/etc/hafen/agent.toml";
/// Where an agent listens if nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/hafen/agent.sock";

/// All of it, resolved. Written as TOML it is a file that says the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    pub state: PathBuf,
    pub run: PathBuf,
    pub socket: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    pub name: String,
    pub instance: String,
    pub runtime: PathBuf,
    pub images: PathBuf,
    pub volumes: PathBuf,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_pairs")]
    pub attributes: Vec<(String, String)>,
    /// Level and name, from the widest to the narrowest.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_pairs")]
    pub domains: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<String>,
    pub log: Log,
    pub task_log: TaskLog,
    pub cni: Cni,
    pub reserved: Reserved,
    pub gc: Gc,
    pub pressure: Pressure,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<Master>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
}

/// A group that may use the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub gid: u32,
}

impl Serialize for Group {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    Text,
    Json,
    Journald,
}

/// Of tasks that say nothing of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TaskLog {
    pub max_bytes: u64,
    pub max_files: u32,
    pub format: TaskLogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskLogFormat {
    Json,
    Plain,
    None,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cni {
    pub config: PathBuf,
    pub plugins: Vec<PathBuf>,
    /// Address and length of prefix.
    #[serde(serialize_with = "as_subnet")]
    pub subnet: (Ipv4Addr, u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reserved {
    #[serde(rename = "cpu", serialize_with = "as_cpus")]
    pub cpu_milli: u64,
    pub memory: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Gc {
    /// Percent.
    pub high: u8,
    pub low: u8,
    #[serde(serialize_with = "as_duration")]
    pub min_age: Duration,
    #[serde(serialize_with = "as_duration")]
    pub ended_tasks: Duration,
}

/// When it is told that a task is held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pressure {
    #[serde(serialize_with = "as_duration")]
    pub interval: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tcp {
    pub address: SocketAddr,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: PathBuf,
}

/// Whom the node obeys, and how they know each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Master {
    #[serde(serialize_with = "as_texts")]
    pub urls: Vec<Address>,
    #[serde(flatten)]
    pub files: Option<MasterFiles>,
    #[serde(flatten)]
    pub joining: Option<Joining>,
    /// Without TLS also with other machines.
    pub insecure: bool,
    /// Of a drain that is wished for at the node.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_some_duration")]
    pub drain_within: Option<Duration>,
}

/// In PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MasterFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

/// How to get a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Joining {
    #[serde(flatten)]
    pub token: Token,
    /// SHA-256 of the authority's certificate.
    #[serde(serialize_with = "as_hex")]
    pub authority: [u8; 32],
}

/// Never in a log.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub enum Token {
    #[serde(rename = "token")]
    Text(String),
    #[serde(rename = "token-file")]
    File(PathBuf),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "({} bytes)", text.len()),
            Self::File(path) => path.fmt(f),
        }
    }
}

fn as_texts<S: serde::Serializer>(addresses: &[Address], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(addresses.iter().map(ToString::to_string))
}

fn as_some_duration<S: serde::Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => as_duration(duration, serializer),
        None => serializer.serialize_none(),
    }
}

fn as_pairs<S: serde::Serializer>(
    pairs: &[(String, String)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(pairs.iter().map(|(name, value)| format!("{name}={value}")))
}

fn as_hex<S: serde::Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    serializer.serialize_str(&hex)
}

fn as_subnet<S: serde::Serializer>(
    (address, length): &(Ipv4Addr, u8),
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{address}/{length}"))
}

fn as_cpus<S: serde::Serializer>(milli: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{}.{:03}", milli / 1000, milli % 1000))
}

fn as_duration<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*time))
}

impl Config {
    /// # Errors
    /// All that is wrong with it, together.
    pub fn resolve(given: &Given) -> Result<Self, Problems> {
        resolve::resolve(given)
    }

    /// # Errors
    /// A path that is no UTF-8 cannot be written.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }
}

/// What is wrong with one key, and who said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub key: String,
    pub source: Source,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, source, what } = self;
        if key.is_empty() {
            write!(f, "{source}: {what}")
        } else {
            write!(f, "{key} ({source}): {what}")
        }
    }
}

/// Everything that is wrong, one to a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Problems {}
