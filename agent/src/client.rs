//! A connection to an agent or a coordinator: through its socket, or with mutual TLS.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hafen_protocol::v1::cluster_client::ClusterClient;
use hafen_protocol::v1::node_client::NodeClient;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::api::MOST_BYTES;
use crate::api::tls::{self, TlsError};

/// What calls go through.
pub type Client = NodeClient<Channel>;
pub type Cluster = ClusterClient<Channel>;

/// Where an agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Unix(PathBuf),
    /// Host and port.
    Tls(String, u16),
    /// Of coordinators only.
    Plain(String, u16),
}

/// Where a coordinator is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinator(pub Host);

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
    NoCoordinator(Host),
    #[error("you may not use {0}: be root, or a member of the socket's group")]
    Denied(PathBuf),
    #[error("connect to {host}")]
    Call { host: Host, source: io::Error },
    #[error(
        "--host {0} wants --tls-ca, --tls-cert and --tls-key: TCP is spoken with mutual TLS only"
    )]
    Files(Host),
    #[error("--coordinator {0} wants --tls-ca, --tls-cert and --tls-key")]
    CoordinatorFiles(Host),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0:?} is no name that a certificate could have")]
    Name(String),
    #[error("connect to {host}: it does not speak HTTP/2")]
    Channel { host: Host, source: tonic::transport::Error },
}

impl std::str::FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WANTED: &str = "is neither unix:///PATH nor https://HOST:PORT";
        if let Some(path) = text.strip_prefix("unix://") {
            let path = Path::new(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path.to_owned()))
            } else {
                Err(WANTED.to_owned())
            };
        }
        let address = text.strip_prefix("https://").ok_or(WANTED)?;
        let (host, port) = host_and_port(address).ok_or(WANTED)?;
        Ok(Self::Tls(host, port))
    }
}

fn host_and_port(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.trim_end_matches('/').rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), port.parse().ok()?)).filter(|_| !host.is_empty())
}

impl std::str::FromStr for Coordinator {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WANTED: &str = "is none of unix:///PATH, http://HOST:PORT and https://HOST:PORT";
        if let Some(address) = text.strip_prefix("http://") {
            let (host, port) = host_and_port(address).ok_or(WANTED)?;
            return Ok(Self(Host::Plain(host, port)));
        }
        text.parse().map(Self).map_err(|_: String| WANTED.to_owned())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tls(host, port) if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Tls(host, port) => write!(f, "https://{host}:{port}"),
            Self::Plain(host, port) if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Plain(host, port) => write!(f, "http://{host}:{port}"),
        }
    }
}

impl Host {
    /// Does the agent run on this machine, as far as we can tell?
    #[must_use]
    pub const fn is_local(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}

/// # Errors
/// Says what is to be done so that it works.
pub async fn connect(host: &Host, files: &Tls) -> Result<Client, ConnectError> {
    Ok(NodeClient::new(reach(host, files).await?).max_decoding_message_size(16 * MOST_BYTES))
}

/// # Errors
/// As [`connect`].
pub async fn coordinator(at: &Coordinator, files: &Tls) -> Result<Cluster, ConnectError> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let told = |error| match error {
        ConnectError::Absent(_) => ConnectError::NoCoordinator(at.0.clone()),
        ConnectError::Call { source, .. }
            if [ConnectionRefused, NotFound].contains(&source.kind()) =>
        {
            ConnectError::NoCoordinator(at.0.clone())
        }
        ConnectError::Files(host) => ConnectError::CoordinatorFiles(host),
        other => other,
    };
    let channel = reach(&at.0, files).await.map_err(told)?;
    Ok(ClusterClient::new(channel).max_decoding_message_size(16 * MOST_BYTES))
}

async fn reach(host: &Host, files: &Tls) -> Result<Channel, ConnectError> {
    match host {
        Host::Unix(path) => channel(host, unix(path).await?).await,
        Host::Tls(name, port) => channel(host, secure(host, name, *port, files).await?).await,
        Host::Plain(name, port) => channel(host, plain(host, name, *port).await?).await,
    }
}

async fn unix(path: &Path) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(path).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ConnectError::Absent(path.to_owned())
        }
        io::ErrorKind::PermissionDenied => ConnectError::Denied(path.to_owned()),
        _ => ConnectError::Call { host: Host::Unix(path.to_owned()), source },
    })
}

/// For a connection.
const PATIENCE: Duration = Duration::from_secs(10);

async fn plain(host: &Host, name: &str, port: u16) -> Result<TcpStream, ConnectError> {
    in_time(host, tcp(name, port)).await
}

async fn tcp(name: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((name, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn in_time<T>(
    host: &Host,
    meet: impl Future<Output = io::Result<T>>,
) -> Result<T, ConnectError> {
    let met = tokio::time::timeout(PATIENCE, meet).await;
    let met = met.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
    met.map_err(|source| ConnectError::Call { host: host.clone(), source })
}

async fn secure(
    host: &Host,
    name: &str,
    port: u16,
    files: &Tls,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ConnectError> {
    let (Some(ca), Some(cert), Some(key)) = (&files.ca, &files.cert, &files.key) else {
        return Err(ConnectError::Files(host.clone()));
    };
    let config = tls::client(tls::Files { cert, key, ca })?;
    let server =
        ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::Name(name.to_owned()))?;
    let connector = TlsConnector::from(Arc::new(config));
    in_time(host, async { connector.connect(server, tcp(name, port).await?).await }).await
}

/// One connection, made already: whoever loses it starts again.
async fn channel<S>(host: &Host, stream: S) -> Result<Channel, ConnectError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    // Only a name for the header; TLS is ours.
    let endpoint = Endpoint::from_static("http://hafen");
    let stream = Mutex::new(Some(stream));
    let name = host.to_string();
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        let lost = || io::Error::new(io::ErrorKind::NotConnected, format!("{name} has gone away"));
        std::future::ready(stream.map(TokioIo::new).ok_or_else(lost))
    });
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map_err(|source| ConnectError::Channel { host: host.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::{Coordinator, Host};

    #[test]
    fn coordinators_may_be_at_a_port_without_tls() {
        let cases = [
            ("unix:///run/c.sock", Host::Unix("/run/c.sock".into())),
            ("https://c.example:7443", Host::Tls("c.example".to_owned(), 7443)),
            ("http://127.0.0.1:7070", Host::Plain("127.0.0.1".to_owned(), 7070)),
            ("http://[::1]:7070", Host::Plain("::1".to_owned(), 7070)),
        ];
        for (text, wanted) in cases {
            let Coordinator(host) = text.parse().unwrap();
            assert_eq!(host, wanted);
            assert_eq!(host.to_string(), text);
        }
        for wrong in ["", "http://a", "http://:1", "c.sock", "tcp://a:1"] {
            assert!(wrong.parse::<Coordinator>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_are_sockets_or_https() {
        let cases = [
            ("unix:///run/a.sock", Host::Unix("/run/a.sock".into())),
            ("https://n1.example:7443", Host::Tls("n1.example".to_owned(), 7443)),
            ("https://[::1]:7443", Host::Tls("::1".to_owned(), 7443)),
        ];
        for (text, wanted) in cases {
            let host: Host = text.parse().unwrap();
            assert_eq!(host, wanted);
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
