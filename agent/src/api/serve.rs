//! Connections: taken in, bounded, and let go.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::caller::{Caller, Seat, Seats};
use super::door::{Door, DoorError};
use super::tls::{self, TlsError};
use super::{grpc, http};
use crate::config::Config;
use crate::node::Node;

/// Connections of one user or host, and of all.
const EACH: usize = 64;
const ALL: usize = 512;
/// A client that has said nothing whole by then is let go.
const FIRST_WORDS: Duration = Duration::from_secs(10);
/// Of a client that is there but does not answer.
const PING: Duration = Duration::from_secs(30);
/// What is under way when we end may take so long.
const FAREWELL: Duration = Duration::from_secs(3);
/// After accept has failed: most likely we have no more descriptors, and spinning gives none back.
const BREATH: Duration = Duration::from_millis(100);
const HEADER_BYTES: u32 = 32 << 10;
const HEADERS: usize = 64;
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
        let host = Host {
            router: http::router(node.clone()).merge(grpc::router(node)),
            seats: Seats::new(EACH, ALL),
            group: self.group,
            ending,
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
struct Host {
    router: Router,
    seats: Seats,
    group: Option<u32>,
    ending: watch::Receiver<()>,
}

impl Host {
    async fn local(&self, came: io::Result<UnixStream>) {
        let known = came.and_then(|stream| Caller::local(&stream).map(|caller| (stream, caller)));
        let (stream, caller) = match known {
            Ok(known) => known,
            Err(e) => return rest(&e).await,
        };
        if let Some(seat) = self.seat(&caller) {
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
        let Some(seat) = self.seat(&nobody) else { return };
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

    fn seat(&self, caller: &Caller) -> Option<Seat> {
        let seat = self.seats.take(caller.party());
        if seat.is_none() {
            tracing::debug!(%caller, "too many connections");
        }
        seat
    }

    async fn attend<S>(self, stream: S, caller: Caller, may: bool, _seat: Seat)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if may {
            tracing::debug!(%caller, "connected");
        } else {
            tracing::warn!(%caller, "denied");
        }
        let Self { router, mut ending, .. } = self;
        let said = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&said);
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            heard.store(true, Ordering::Relaxed);
            answer(router.clone(), caller.clone(), may, request)
        });
        let builder = builder();
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        // The connection is kept, and its end is what we wait for.
        let end = tokio::select! {
            end = connection.as_mut() => Some(end),
            () = silence(&said) => return,
            _ = ending.changed() => None,
        };
        let end = match end {
            Some(end) => end,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(e) = end {
            tracing::debug!("connection: {e}");
        }
    }
}

/// Returns only where nothing whole was said in time.
async fn silence(said: &AtomicBool) {
    sleep(FIRST_WORDS).await;
    if said.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

async fn rest(error: &io::Error) {
    tracing::warn!("accept: {error}");
    sleep(BREATH).await;
}

/// The first half of the SHA-256: enough to tell clients apart in a log.
fn fingerprint(certificate: &[u8]) -> String {
    let digest = Sha256::digest(certificate);
    let half: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{half}")
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(FIRST_WORDS)
        .max_headers(HEADERS)
        .max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES);
    builder
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
        let is_grpc = grpc::is(request.headers());
        return Ok(if is_grpc { grpc::denied() } else { http::denied() });
    }
    request.extensions_mut().insert(caller);
    router.oneshot(request).await
}
