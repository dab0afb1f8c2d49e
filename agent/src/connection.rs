//! Connections that are made once: who loses one loses what went over it, and starts again.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::address::Address;

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn plain(host: &str, port: u16) -> io::Result<TcpStream> {
    in_time(tcp(host, port)).await
}

pub(crate) async fn secure(
    config: ClientConfig,
    name: ServerName<'static>,
    host: &str,
    port: u16,
) -> io::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(Arc::new(config));
    in_time(async { connector.connect(name, tcp(host, port).await?).await }).await
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

pub(crate) async fn channel<S>(
    address: &Address,
    stream: S,
) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Only a name for the header; TLS is ours.
    let endpoint = Endpoint::from_static("http://hafen");
    let stream = Mutex::new(Some(stream));
    let name = address.to_string();
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        let lost = || io::Error::new(io::ErrorKind::NotConnected, format!("{name} has gone away"));
        std::future::ready(stream.map(TokioIo::new).ok_or_else(lost))
    });
    endpoint.connect_with_connector(connector).await
}
