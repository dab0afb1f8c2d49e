//! A connection to a master.

use std::io;
use std::path::PathBuf;

use hafen_protocol::v1::master_client::MasterClient;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::UnixStream;
use tonic::transport::Channel;

use super::session::MOST_MESSAGE;
use crate::address::Address;
use crate::api::tls::{self, TlsError};
use crate::connection;

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
            connection::channel(address, stream).await
        }
        Address::Plain(host, port) => {
            let stream = connection::plain(host, *port).await.map_err(failed)?;
            connection::channel(address, stream).await
        }
        Address::Tls(host, port) => {
            let config = tls.ok_or_else(|| DialError::Stranger(address.clone()))?;
            let name = ServerName::try_from(host.clone());
            let name = name.map_err(|_| DialError::Name(host.clone()))?;
            let stream = connection::secure(config, name, host, *port).await.map_err(failed)?;
            connection::channel(address, stream).await
        }
    };
    let channel =
        channel.map_err(|source| DialError::Channel { address: address.clone(), source })?;
    let client = MasterClient::new(channel);
    Ok(client.max_decoding_message_size(MOST_MESSAGE).max_encoding_message_size(usize::MAX))
}
