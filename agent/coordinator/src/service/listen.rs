//! Where we are called, and who it is that calls.

use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, header};
use axum::response::IntoResponse;
use hafen_door::failure::{Failure, Kind};
use hafen_door::{Caller, Door, FIRST_WORDS, Host, Seats, files, rest, words};
use hyper::body::Incoming;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tower::ServiceExt;

use super::Ended;
use super::ca::Authority;
use super::who::{WITHDRAWN, Who};
use super::withdrawn::Withdrawn;

/// Connections of one user or host, and of all: nodes may be many behind one address.
const EACH: usize = 16_384;
const ALL: usize = 65_536;
/// Streams of one connection: one to the node, and its channels.
const STREAMS: u32 = 256;
/// Connections whose TLS is not made yet.
const STRANGERS: usize = 512;

/// Where to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    /// HTTP without TLS.
    Plain(SocketAddr),
    Tls(SocketAddr),
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WANTED: &str =
            "is none of unix:///PATH, http://ADDRESS:PORT and https://ADDRESS:PORT";
        if let Some(path) = text.strip_prefix("unix://") {
            let path = Path::new(path);
            return path.is_absolute().then(|| Self::Unix(path.into())).ok_or(WANTED.to_owned());
        }
        let (make, address): (fn(SocketAddr) -> Self, _) = match text.split_once("://") {
            Some(("http", address)) => (Self::Plain, address),
            Some(("https", address)) => (Self::Tls, address),
            _ => return Err(WANTED.to_owned()),
        };
        let address = address.trim_end_matches('/').replace("localhost:", "127.0.0.1:");
        address.parse().map(make).map_err(|_| WANTED.to_owned())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Plain(address) => write!(f, "http://{address}"),
            Self::Tls(address) => write!(f, "https://{address}"),
        }
    }
}

/// Listens, and answers nobody yet.
pub(super) enum Listener {
    Unix(Door, PathBuf),
    Plain(TcpListener, SocketAddr),
    Tls(TcpListener, SocketAddr, TlsAcceptor),
}

impl Listener {
    pub(super) async fn bind(
        address: &Address,
        group: Option<u32>,
        insecure: bool,
        tls: &Arc<ServerConfig>,
    ) -> Result<Self, Ended> {
        match address {
            Address::Unix(path) => Ok(Self::Unix(Door::open(path, group)?, path.clone())),
            Address::Plain(at) if !at.ip().is_loopback() && !insecure => Err(Ended::Plain(*at)),
            Address::Plain(at) => tcp(*at).await.map(|(l, at)| Self::Plain(l, at)),
            Address::Tls(at) => {
                let acceptor = TlsAcceptor::from(Arc::clone(tls));
                tcp(*at).await.map(|(l, at)| Self::Tls(l, at, acceptor))
            }
        }
    }

    /// With the port that was given to us.
    pub(super) fn address(&self) -> Address {
        match self {
            Self::Unix(_, path) => Address::Unix(path.clone()),
            Self::Plain(_, at) => Address::Plain(*at),
            Self::Tls(_, at, _) => Address::Tls(*at),
        }
    }
}

async fn tcp(at: SocketAddr) -> Result<(TcpListener, SocketAddr), Ended> {
    let failed = |source| Ended::Listen { address: at, source };
    let listener = TcpListener::bind(at).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Our certificate, and a wish for one of the caller's: calls say whether they need it.
pub(super) fn tls(authority: &Authority, names: &[String]) -> Result<ServerConfig, Ended> {
    let (certificate, key) = authority.server(names)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone())?;
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = verifier.allow_unauthenticated().build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate, authority.certificate().clone()], key)?;
    // Whoever comes again shows their certificate again: it may have ended.
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Under which names the coordinator is certainly reached.
pub(super) fn own_names(given: &[String], addresses: &[Address]) -> Vec<String> {
    let local = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let listened = addresses.iter().filter_map(|address| match address {
        Address::Tls(at) if !at.ip().is_unspecified() => Some(at.ip()),
        _ => None,
    });
    let mut names: Vec<String> = vec!["localhost".to_owned()];
    names.extend(local.into_iter().chain(listened).map(|ip| ip.to_string()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    names.extend(Some(host.trim().to_owned()).filter(|host| !host.is_empty()));
    names.extend(given.iter().cloned());
    names.sort();
    names.dedup();
    names
}

/// Of so many connections: those that are made, and those whose TLS is not. No host has all of them.
fn seats(room: usize) -> (Seats, Seats) {
    let strangers = STRANGERS.min(room / 4);
    let all = ALL.min(room - strangers);
    (Seats::new(EACH.min(all * 3 / 4), all), Seats::new(strangers * 3 / 4, strangers))
}

/// What each connection needs.
#[derive(Debug, Clone)]
pub(super) struct Reception {
    /// Of who directs, or of who waits for that.
    router: watch::Receiver<Router>,
    host: Host,
    handshakes: Seats,
    group: Option<u32>,
    withdrawn: Withdrawn,
}

impl Reception {
    pub(super) fn new(
        router: watch::Receiver<Router>,
        group: Option<u32>,
        withdrawn: Withdrawn,
        ending: watch::Receiver<()>,
    ) -> Self {
        let (connections, handshakes) = seats(files::most_connections());
        let host = Host::new(connections, STREAMS, ending);
        Self { router, host, handshakes, group, withdrawn }
    }

    /// Until this is dropped.
    pub(super) async fn serve(self, listener: Listener) {
        loop {
            match &listener {
                Listener::Unix(door, _) => match door.listener.accept().await {
                    Ok((stream, _)) => self.local(stream).await,
                    Err(e) => rest(&e).await,
                },
                Listener::Plain(listener, _) => match listener.accept().await {
                    Ok((stream, address)) => self.plain(stream, address),
                    Err(e) => rest(&e).await,
                },
                Listener::Tls(listener, _, acceptor) => match listener.accept().await {
                    Ok((stream, address)) => self.secure(stream, address, acceptor.clone()),
                    Err(e) => rest(&e).await,
                },
            }
        }
    }

    async fn local(&self, stream: UnixStream) {
        match Caller::local(&stream) {
            Ok(caller) => {
                let Some(seat) = self.host.seat(&caller) else { return };
                let who = Who::local(&caller, self.group);
                let answer = self.answer(who, false);
                tokio::spawn(self.host.clone().attend(stream, seat, answer));
            }
            Err(e) => rest(&e).await,
        }
    }

    fn plain(&self, stream: TcpStream, address: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let caller = stranger(address);
        let Some(seat) = self.host.seat(&caller) else { return };
        let answer = self.answer(Who::Trusted(address.ip().to_string()), true);
        tokio::spawn(self.host.clone().attend(stream, seat, answer));
    }

    fn secure(&self, stream: TcpStream, address: SocketAddr, acceptor: TlsAcceptor) {
        let _ = stream.set_nodelay(true);
        let caller = stranger(address);
        let Some(waits) = self.handshakes.take(caller.party()) else { return };
        let reception = self.clone();
        tokio::spawn(async move {
            match timeout(FIRST_WORDS, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let shown = stream.get_ref().1.peer_certificates().and_then(|all| all.first());
                    let paper = shown.and_then(super::ca::read);
                    let stranger = Who::Stranger(address.ip());
                    let who = paper.map_or(stranger, |paper| Who::remote(&paper, address.ip()));
                    reception.withdrawn.note(&who);
                    drop(waits);
                    let Some(seat) = reception.host.seat(&caller) else { return };
                    let answer = reception.answer(who.clone(), false);
                    // What goes on in a connection ends with it.
                    tokio::select! {
                        () = reception.host.clone().attend(stream, seat, answer) => {}
                        () = reception.withdrawn.end(&who) => {
                            tracing::warn!(%who, "the connection is cut: the certificate is withdrawn");
                        }
                    }
                }
                Ok(Err(e)) => tracing::warn!(%address, "TLS was refused: {e}"),
                Err(_) => tracing::debug!(%address, "no TLS in time"),
            }
        });
    }

    fn answer(
        &self,
        who: Who,
        plain: bool,
    ) -> impl Fn(Request<Incoming>) -> Answering + Send + Sync + 'static {
        let (router, withdrawn) = (self.router.clone(), self.withdrawn.clone());
        move |request| {
            let router = router.borrow().clone();
            Box::pin(answer(router, withdrawn.judge(&who), plain, request))
        }
    }
}

type Answering =
    std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send + 'static>>;

fn stranger(address: SocketAddr) -> Caller {
    Caller::Remote { address: address.ip(), certificate: "no certificate yet".to_owned() }
}

/// Paths for those without a certificate as well.
const OPEN: [&str; 2] = ["/hafen.v1.Master/Join", "/healthz"];

async fn answer(
    router: Router,
    who: Who,
    plain: bool,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (method, path) = (request.method(), request.uri().path());
    tracing::debug!(%who, %method, path, "request");
    let of_nodes = path.starts_with("/hafen.v1.Master/");
    let is_open = OPEN.contains(&path);
    if matches!(who, Who::Denied(_)) || !(is_open || of_nodes || who.is_person()) {
        tracing::warn!(%who, path, "denied");
        return Ok(denied(&who, request.headers()));
    }
    if plain && is_strange(method, request.headers()) {
        tracing::warn!(%who, path, "a page of somebody else asks");
        return Ok(denied(&who, request.headers()));
    }
    request.extensions_mut().insert(who);
    router.oneshot(request).await
}

fn denied(who: &Who, headers: &HeaderMap) -> Response<Body> {
    const WHY: &str =
        "you may not: be root, or a member of the socket's group, or have a user's certificate";
    let why = if matches!(who, Who::Withdrawn(_)) { WITHDRAWN } else { WHY };
    failed(headers, Failure::new(Kind::Denied, why))
}

/// In the words of whoever asks.
pub(super) fn failed(headers: &HeaderMap, failure: Failure) -> Response<Body> {
    match words::is_grpc(headers) {
        true => Status::from(failure).into_http(),
        false => failure.into_response(),
    }
}

/// On an address without TLS a browser may be made to ask for a page of somebody else: under a name that leads here, or
/// across origins.
fn is_strange(method: &Method, headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST);
    let is_ours = |host: &str| {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let name = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost" || name.parse::<IpAddr>().is_ok()
    };
    let same = |origin: &str| origin.split_once("://").map(|(_, host)| host) == host;
    let crosses = text(header::ORIGIN).is_some_and(|origin| !same(origin));
    host.is_some_and(|host| !is_ours(host)) || (*method != Method::GET && crosses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_told() {
        for text in ["unix:///run/c.sock", "http://127.0.0.1:7800", "https://[::]:7801"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for wrong in ["", "/run/c.sock", "unix://c.sock", "tcp://1.2.3.4:5", "http://a"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_host_cannot_take_all_seats() {
        let greedy = stranger("10.0.0.1:1".parse().unwrap());
        let other = stranger("10.0.0.2:1".parse().unwrap());
        for room in [128, 1_000, 1_000_000] {
            let (connections, handshakes) = seats(room);
            for seats in [connections, handshakes] {
                let held: Vec<_> = (0..room).map_while(|_| seats.take(greedy.party())).collect();
                assert!(held.len() > 20 && held.len() < room, "{room}: {}", held.len());
                assert!(seats.take(other.party()).is_some(), "{room}");
            }
        }
    }

    #[test]
    fn pages_of_others_are_strange() {
        let headers = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            headers
        };
        let post = |host, origin| is_strange(&Method::POST, &headers(host, origin));
        assert!(!post("127.0.0.1:7800", None));
        assert!(!post("localhost:7800", Some("http://localhost:7800")));
        assert!(!post("[::1]:7800", None));
        assert!(post("127.0.0.1:7800", Some("http://evil.example")));
        assert!(post("evil.example:7800", None));
        assert!(is_strange(&Method::GET, &headers("evil.example", None)));
    }
}
