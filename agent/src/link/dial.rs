//! A connection to a master.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hafen_protocol::v1::master_client::MasterClient;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::address::Address;
use super::session::MOST_MESSAGE;
use crate::api::tls::{self, TlsError};

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("connect to {address}")]
    Call { address: Address, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0:?} is no name that a certificate could have")]
    Name(String),
    #[error(
        "{0}: there is no certificate: say master.cert, master.key and master.ca, or join with master.token"
    )]
    Stranger(Address),
    #[error("{address} does not speak HTTP/2")]
    Channel { address: Address, source: tonic::transport::Error },
}

/// Files of a node, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

impl Files {
    /// Read anew for each connection: who renews a certificate need not tell us.
    pub(super) fn read(&self) -> Result<ClientConfig, TlsError> {
        let files = tls::Files { cert: &self.cert, key: &self.key, ca: &self.ca };
        tls::client_of(files, &[&rustls::version::TLS13])
    }
}

/// One connection: when it is lost, so is all that went over it.
pub(super) async fn dial(
    address: &Address,
    tls: Option<ClientConfig>,
) -> Result<MasterClient<Channel>, DialError> {
    let failed = |source| DialError::Call { address: address.clone(), source };
    let channel = match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(failed)?;
            channel(address, stream).await?
        }
        Address::Plain(host, port) => {
            channel(address, in_time(tcp(host, *port)).await.map_err(failed)?).await?
        }
        Address::Tls(host, port) => {
            let config = tls.ok_or_else(|| DialError::Stranger(address.clone()))?;
            let name = ServerName::try_from(host.clone());
            let name = name.map_err(|_| DialError::Name(host.clone()))?;
            let meet = async {
                let stream = tcp(host, *port).await?;
                TlsConnector::from(Arc::new(config)).connect(name, stream).await
            };
            channel(address, in_time(meet).await.map_err(failed)?).await?
        }
    };
    let client = MasterClient::new(channel);
    Ok(client.max_decoding_message_size(MOST_MESSAGE).max_encoding_message_size(usize::MAX))
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn in_time<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let connected = tokio::time::timeout(PATIENCE, connecting).await;
    connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
}

async fn channel<S>(address: &Address, stream: S) -> Result<Channel, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Only a name for the header; TLS is ours.
    let endpoint = Endpoint::from_static("http://hafen");
    let stream = Mutex::new(Some(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        let lost = || io::Error::new(io::ErrorKind::NotConnected, "the master has gone away");
        std::future::ready(stream.map(TokioIo::new).ok_or_else(lost))
    });
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map_err(|source| DialError::Channel { address: address.clone(), source })
}
