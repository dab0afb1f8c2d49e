//! Connections: taken in, bounded, and let go.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hafen_door::{Caller, Door, DoorError, FIRST_WORDS, Host, Seat, Seats, rest, words};
use hyper::body::Incoming;
use hyper::{Method, Request};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::tls::{self, TlsError};
use super::{grpc, http};
use crate::config::Config;
use crate::node::Node;

/// Connections of one user or host, and of all.
const EACH: usize = 64;
const ALL: usize = 512;
/// What is under way when we end may take so long.
const FAREWELL: Duration = Duration::from_secs(3);
/// Of one connection, each of which may hold a message of the longest.
const STREAMS: u32 = 32;

/// Where to serve, and whom.
#[derive(Debug, Clone)]
pub struct Options {
    pub socket: PathBuf,
    pub group: Option<u32>,
    pub tcp: Option<crate::config::Tcp>,
}

impl From<&Config> for Options {
    fn from(config: &Config) -> Self {
        Self {
            socket: config.socket.clone(),
            group: config.group.as_ref().map(|group| group.gid),
            tcp: config.tcp.clone(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error("serve on TCP")]
    Tls(#[from] TlsError),
    #[error("listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// Listens, and answers nobody yet.
#[derive(Debug)]
pub struct Api {
    door: Door,
    tcp: Option<Tcp>,
    group: Option<u32>,
}

struct Tcp {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tcp").field(&self.listener).finish()
    }
}

impl Api {
    /// # Errors
    /// Names what cannot be listened on, and why.
    pub async fn bind(options: &Options) -> Result<Self, ServeError> {
        let tcp = match &options.tcp {
            None => None,
            Some(tcp) => Some(Tcp::bind(tcp).await?),
        };
        Ok(Self { door: Door::open(&options.socket, options.group)?, tcp, group: options.group })
    }

    /// The address that was given to us, if TCP is served.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.listener.local_addr().ok()
    }

    /// Serve until `stop`, and then until what is under way has ended, or a little while.
    pub async fn serve(self, node: Node, stop: impl Future<Output = ()>) {
        let (end, ending) = watch::channel(());
        let host = Reception {
            router: http::router(node.clone()).merge(grpc::router(node)),
            host: Host::new(Seats::new(EACH, ALL), STREAMS, ending),
            group: self.group,
        };
        let mut stop = pin!(stop);
        loop {
            // Both accepts lose nothing when they are dropped (tokio, "Cancel safety"), and stop is kept.
            tokio::select! {
                () = &mut stop => break,
                came = self.door.listener.accept() => host.local(came.map(|(stream, _)| stream)).await,
                came = accept(self.tcp.as_ref()) => host.remote(came).await,
            }
        }
        drop((self, host));
        let _ = end.send(());
        let _ = timeout(FAREWELL, end.closed()).await;
    }
}

impl Tcp {
    async fn bind(config: &crate::config::Tcp) -> Result<Self, ServeError> {
        let files = tls::Files { cert: &config.cert, key: &config.key, ca: &config.client_ca };
        let server = Arc::new(tls::server(files)?);
        let listener = TcpListener::bind(config.address).await;
        let listener =
            listener.map_err(|source| ServeError::Listen { address: config.address, source })?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(server) })
    }
}

/// Of TCP; never, where it is not served.
async fn accept(tcp: Option<&Tcp>) -> io::Result<(TcpStream, SocketAddr, TlsAcceptor)> {
    match tcp {
        Some(tcp) => tcp.listener.accept().await.map(|(s, a)| (s, a, tcp.acceptor.clone())),
        None => std::future::pending().await,
    }
}

/// What each connection needs.
#[derive(Debug, Clone)]
struct Reception {
    router: Router,
    host: Host,
    group: Option<u32>,
}

impl Reception {
    async fn local(&self, came: io::Result<UnixStream>) {
        let known = came.and_then(|stream| Caller::local(&stream).map(|caller| (stream, caller)));
        let (stream, caller) = match known {
            Ok(known) => known,
            Err(e) => return rest(&e).await,
        };
        if let Some(seat) = self.host.seat(&caller) {
            let may = caller.may(self.group);
            tokio::spawn(self.clone().attend(stream, caller, may, seat));
        }
    }

    async fn remote(&self, came: io::Result<(TcpStream, SocketAddr, TlsAcceptor)>) {
        let (stream, address, acceptor) = match came {
            Ok(came) => came,
            Err(e) => return rest(&e).await,
        };
        let nobody =
            Caller::Remote { address: address.ip(), certificate: "no certificate yet".to_owned() };
        let Some(seat) = self.host.seat(&nobody) else { return };
        let host = self.clone();
        tokio::spawn(async move {
            match timeout(FIRST_WORDS, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let shown = stream.get_ref().1.peer_certificates().and_then(|all| all.first());
                    let certificate = shown.map_or_else(String::new, |c| fingerprint(c));
                    let caller = Caller::Remote { address: address.ip(), certificate };
                    host.attend(stream, caller, true, seat).await;
                }
                Ok(Err(e)) => tracing::warn!(%address, "TLS was refused: {e}"),
                Err(_) => tracing::debug!(%address, "no TLS in time"),
            }
        });
    }

    async fn attend<S>(self, stream: S, caller: Caller, may: bool, seat: Seat)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if may {
            tracing::debug!(%caller, "connected");
        } else {
            tracing::warn!(%caller, "denied");
        }
        let Self { router, host, .. } = self;
        let answer = move |request| answer(router.clone(), caller.clone(), may, request);
        host.attend(stream, seat, answer).await;
    }
}

/// The first half of the SHA-256: enough to tell clients apart in a log.
fn fingerprint(certificate: &[u8]) -> String {
    let digest = Sha256::digest(certificate);
    let half: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{half}")
}

/// Or does it only look?
fn changes(method: &Method, path: &str) -> bool {
    const LOOKS: [&str; 7] = ["Get", "List", "Stats", "Logs", "Events", "Wait", "Debug"];
    let call = path.strip_prefix("/hafen.v1.Node/").unwrap_or_default();
    let looks = LOOKS.iter().any(|word| call.starts_with(word)) || path.ends_with("/wait");
    method != Method::GET && !looks
}

async fn answer(
    router: Router,
    caller: Caller,
    may: bool,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (method, path) = (request.method(), request.uri().path());
    if changes(method, path) {
        tracing::info!(%caller, %method, path, "request");
    } else {
        tracing::debug!(%caller, %method, path, "request");
    }
    if !may {
        let is_grpc = words::is_grpc(request.headers());
        return Ok(if is_grpc { grpc::denied() } else { http::denied() });
    }
    request.extensions_mut().insert(caller);
    router.oneshot(request).await
}
