//! A connection to an agent or a coordinator: through its socket, or with mutual TLS.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hafen_protocol::v1::cluster_client::ClusterClient;
use hafen_protocol::v1::node_client::NodeClient;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;
use tonic::transport::Channel;

use crate::address::Address;
use crate::api::MOST_BYTES;
use crate::api::tls::{self, TlsError};
use crate::connection;

/// What calls go through.
pub type Client = NodeClient<Channel>;
pub type Cluster = ClusterClient<Channel>;

/// Where an agent is: over TCP it speaks mutual TLS only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(Address);

/// Files of a client for TLS, in PEM.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "no agent listens on {0}: start one with \"hafen agent\", as root, or say where it is with --host"
    )]
    Absent(PathBuf),
    #[error(
        "no coordinator answers at {0}: start one with \"hafen coordinator\", or name it with --coordinator"
    )]
    NoCoordinator(Address),
    #[error("you may not use {0}: be root, or a member of the socket's group")]
    Denied(PathBuf),
    #[error("connect to {host}")]
    Call { host: Address, source: io::Error },
    #[error(
        "--host {0} wants --tls-ca, --tls-cert and --tls-key: TCP is spoken with mutual TLS only"
    )]
    Files(Address),
    #[error("--coordinator {0} wants --tls-ca, --tls-cert and --tls-key")]
    CoordinatorFiles(Address),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0:?} is no name that a certificate could have")]
    Name(String),
    #[error("connect to {host}: it does not speak HTTP/2")]
    Channel { host: Address, source: tonic::transport::Error },
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(Address::Plain(..)) | Err(_) => {
                Err("is neither unix:///PATH nor https://HOST:PORT".to_owned())
            }
            Ok(address) => Ok(Self(address)),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Host {
    #[must_use]
    pub const fn unix(path: PathBuf) -> Self {
        Self(Address::Unix(path))
    }

    /// Does the agent run on this machine, as far as we can tell?
    #[must_use]
    pub const fn is_local(&self) -> bool {
        matches!(self.0, Address::Unix(_))
    }
}

/// # Errors
/// Says what is to be done so that it works.
pub async fn connect(host: &Host, files: &Tls) -> Result<Client, ConnectError> {
    Ok(NodeClient::new(reach(&host.0, files).await?).max_decoding_message_size(16 * MOST_BYTES))
}

/// # Errors
/// As [`connect`].
pub async fn coordinator(at: &Address, files: &Tls) -> Result<Cluster, ConnectError> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let told = |error| match error {
        ConnectError::Absent(_) => ConnectError::NoCoordinator(at.clone()),
        ConnectError::Call { source, .. }
            if [ConnectionRefused, NotFound].contains(&source.kind()) =>
        {
            ConnectError::NoCoordinator(at.clone())
        }
        ConnectError::Files(host) => ConnectError::CoordinatorFiles(host),
        other => other,
    };
    let channel = reach(at, files).await.map_err(told)?;
    Ok(ClusterClient::new(channel).max_decoding_message_size(16 * MOST_BYTES))
}

async fn reach(at: &Address, files: &Tls) -> Result<Channel, ConnectError> {
    let failed = |source| ConnectError::Call { host: at.clone(), source };
    let channel = match at {
        Address::Unix(path) => connection::channel(at, unix(path).await?).await,
        Address::Plain(host, port) => {
            let stream = connection::plain(host, *port).await.map_err(failed)?;
            connection::channel(at, stream).await
        }
        Address::Tls(host, port) => {
            connection::channel(at, secure(at, host, *port, files).await?).await
        }
    };
    channel.map_err(|source| ConnectError::Channel { host: at.clone(), source })
}

async fn unix(path: &Path) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(path).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ConnectError::Absent(path.to_owned())
        }
        io::ErrorKind::PermissionDenied => ConnectError::Denied(path.to_owned()),
        _ => ConnectError::Call { host: Address::Unix(path.to_owned()), source },
    })
}

async fn secure(
    at: &Address,
    host: &str,
    port: u16,
    files: &Tls,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let (Some(ca), Some(cert), Some(key)) = (&files.ca, &files.cert, &files.key) else {
        return Err(ConnectError::Files(at.clone()));
    };
    let config = tls::client(tls::Files { cert, key, ca })?;
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|_| ConnectError::Name(host.to_owned()))?;
    let stream = connection::secure(config, name, host, port).await;
    stream.map_err(|source| ConnectError::Call { host: at.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::Host;

    #[test]
    fn hosts_are_sockets_or_https() {
        for text in ["unix:///run/a.sock", "https://n1.example:7443", "https://[::1]:7443"] {
            let host: Host = text.parse().unwrap();
            assert_eq!(host.to_string(), text);
        }
        for wrong in [
            "",
            "/run/a.sock",
            "unix://a.sock",
            "http://a:1",
            "https://a",
            "https://:1",
            "tcp://a:1",
        ] {
            assert!(wrong.parse::<Host>().is_err(), "{wrong}");
        }
    }
}
