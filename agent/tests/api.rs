//! A server with a node that can nothing yet, and clients of all kinds.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen::api::{Api, MOST_BYTES, Options};
use hafen::client::{self, Host, Tls};
use hafen::config::{Config, Tcp, gather};
use hafen::node::Node;
use hafen_protocol::v1;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Code;

struct Server {
    folder: tempfile::TempDir,
    address: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl Server {
    async fn start(folder: tempfile::TempDir, tcp: Option<Tcp>) -> Self {
        let socket = folder.path().join("agent.sock");
        let api = Api::bind(&Options { socket, group: None, tcp }).await.unwrap();
        let address = api.tcp_address();
        let own = |name: &str| folder.path().join(name).display().to_string();
        let flags = [("runtime", "/proc/self/exe".to_owned()), ("state", own("state"))];
        let flags = flags.into_iter().chain([("run", own("run"))]).collect();
        let config = Config::resolve(&gather(&flags, [], None)).unwrap();
        let node = Node::open(&config).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(api.serve(node, async move {
            let _ = stopped.await;
        }));
        Self { folder, address, stop: Some(stop), served }
    }

    async fn local() -> Self {
        Self::start(tempfile::tempdir().unwrap(), None).await
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    async fn client(&self) -> client::Client {
        client::connect(&Host::unix(self.socket()), &Tls::default()).await.unwrap()
    }

    /// Status and body.
    async fn http(&self, request: &str, body: &[u8]) -> (u16, String) {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        let head = format!(
            "{request} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The answer may come before the end of a body that is too long.
        let _ = stream.write_all(body).await;
        answer(&mut stream).await
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.http(&format!("GET {path}"), b"").await
    }
}

async fn answer(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> (u16, String) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(Ok(count @ 1..)) = timeout(Duration::from_secs(5), stream.read(&mut chunk)).await {
        bytes.extend_from_slice(&chunk[..count]);
    }
    let text = String::from_utf8_lossy(&bytes);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
}

#[tokio::test]
async fn one_socket_speaks_both() {
    let server = Server::local().await;
    let node = server.client().await.get_node(v1::GetNodeRequest {}).await.unwrap().into_inner();
    let (status, body) = server.get("/v1/node").await;
    assert_eq!(status, 200);
    assert!(body.contains(&node.boot_id), "{body}");
    assert_eq!(server.get("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(server.get("/metrics").await.0, 200);
    let (status, body) = server.http("POST /v1/tasks", br#"{"root": {"rootfs": "/"}}"#).await;
    assert_eq!(status, 400, "{body}");
    assert_eq!(server.http("POST /v1/tasks/a/stop", b"").await.0, 404);
    assert_eq!(server.http("DELETE /v1/tasks/a?force", b"").await.0, 404);
    assert_eq!(server.get("/v1/tasks?all=1&label=a=b&label=c").await.0, 200);
    assert_eq!(server.get("/v1/tasks/a/logs?tail=3&since=2026-01-01T00:00:00Z").await.0, 404);
}

#[tokio::test]
async fn what_is_wrong_is_said_in_json() {
    let server = Server::local().await;
    let cases: [(&str, &[u8], u16, &str); 7] = [
        ("GET /nowhere", b"", 404, "not_found"),
        ("PUT /v1/tasks", b"", 405, "invalid_argument"),
        ("GET /v1/tasks?al=1", b"", 400, "?al: is not known here"),
        ("GET /v1/tasks?all=maybe", b"", 400, "invalid_argument"),
        ("GET /v1/events?since=now", b"", 400, "invalid_argument"),
        ("POST /v1/tasks", b"{", 400, "body: "),
        ("POST /v1/tasks", br#"{"imagee": 1}"#, 400, "imagee"),
    ];
    for (request, body, wanted, part) in cases {
        let (status, answer) = server.http(request, body).await;
        assert_eq!(status, wanted, "{request}: {answer}");
        assert!(answer.contains(part), "{request}: {answer}");
        assert!(answer.starts_with('{'), "{request}: {answer}");
    }
}

#[tokio::test]
async fn the_first_message_of_a_session_says_what_is_wanted() {
    let server = Server::local().await;
    let input = v1::ExecInput { what: Some(v1::exec_input::What::End(true)) };
    let status = server.client().await.exec(tokio_stream::once(input)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let input = v1::ExecInput { what: Some(v1::exec_input::What::Start(v1::ExecStart::default())) };
    let status = server.client().await.exec(tokio_stream::once(input)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let server = Server::local().await;
    let body = vec![b' '; MOST_BYTES + 1];
    let (status, answer) = server.http("POST /v1/tasks", &body).await;
    assert_eq!(status, 429, "{answer}");
    let id = "x".repeat(MOST_BYTES + 1);
    let status = server.client().await.get_task(v1::GetTaskRequest { id }).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let header = format!("GET /healthz HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let mut stream = UnixStream::connect(server.socket()).await.unwrap();
    let _ = stream.write_all(header.as_bytes()).await;
    let (status, _) = answer_or_nothing(&mut stream).await;
    assert_ne!(status, 200);
    assert_eq!(server.get("/healthz").await.0, 200, "others are served");
}

async fn answer_or_nothing(stream: &mut UnixStream) -> (u16, String) {
    timeout(Duration::from_secs(5), answer(stream)).await.unwrap_or_default()
}

#[tokio::test]
async fn those_who_say_nothing_or_nonsense_keep_nobody_out() {
    let server = Server::local().await;
    let mut held = Vec::new();
    for words in [&b""[..], b"PRI * HT", b"\x16\x03\x01garbage\0\0", b"GET /healthz HTTP/1.1\r\nx:"]
    {
        let mut stream = UnixStream::connect(server.socket()).await.unwrap();
        stream.write_all(words).await.unwrap();
        held.push(stream);
    }
    assert_eq!(server.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn an_agent_that_ends_lets_go_of_its_socket() {
    let mut server = Server::local().await;
    let _idle = server.client().await;
    let taken = Api::bind(&Options { socket: server.socket(), group: None, tcp: None }).await;
    assert!(taken.unwrap_err().to_string().contains("already"));
    server.stop.take().unwrap().send(()).unwrap();
    timeout(Duration::from_secs(10), &mut server.served).await.unwrap().unwrap();
    assert!(!server.socket().exists());
    let gone = client::connect(&Host::unix(server.socket()), &Tls::default()).await.unwrap_err();
    assert!(gone.to_string().contains("hafen agent"), "{gone}");
}

/// An authority, and what it signs.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Files of a certificate and its key.
    fn sign(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        let files = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        fs::write(&files.0, signed.pem()).unwrap();
        fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }
}

struct Secure {
    server: Server,
    host: Host,
    ca: PathBuf,
    own: Authority,
}

impl Secure {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = Authority::new();
        let ca = folder.path().join("ca.pem");
        fs::write(&ca, &own.pem).unwrap();
        let (cert, key) = own.sign(folder.path(), "server");
        let address = "127.0.0.1:0".parse().unwrap();
        let tcp = Tcp { address, cert, key, client_ca: ca.clone() };
        let server = Server::start(folder, Some(tcp)).await;
        let port = server.address.unwrap().port();
        let host: Host = format!("https://localhost:{port}").parse().unwrap();
        Self { server, host, ca, own }
    }

    /// What a client that shows this certificate gets.
    async fn ask(&self, files: (PathBuf, PathBuf), ca: &Path) -> Result<Code, String> {
        let tls = Tls { ca: Some(ca.to_owned()), cert: Some(files.0), key: Some(files.1) };
        let mut client = client::connect(&self.host, &tls).await.map_err(|e| format!("{e:?}"))?;
        let answer = client.get_node(v1::GetNodeRequest {}).await;
        Ok(answer.map_or_else(|status| status.code(), |_| Code::Ok))
    }
}

#[tokio::test]
async fn tcp_answers_whom_its_authority_has_signed() {
    let secure = Secure::start().await;
    let folder = secure.server.folder.path();
    let known = secure.own.sign(folder, "client");
    assert_eq!(secure.ask(known.clone(), &secure.ca).await, Ok(Code::Ok));

    let other = Authority::new();
    let stranger = other.sign(folder, "stranger");
    let refused = secure.ask(stranger, &secure.ca).await;
    assert_ne!(refused, Ok(Code::Ok), "a client of another authority");

    let ca = folder.join("other.pem");
    fs::write(&ca, &other.pem).unwrap();
    let refused = secure.ask(known, &ca).await.unwrap_err();
    assert!(refused.contains("InvalidCertificate"), "a server of another authority: {refused}");
}

#[tokio::test]
async fn tcp_answers_nobody_without_a_certificate() {
    use std::sync::Arc;
    let secure = Secure::start().await;
    let address = secure.server.address.unwrap();

    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let (status, _) = answer(&mut plain).await;
    assert_eq!(status, 0, "plain HTTP");

    let files = secure.own.sign(secure.server.folder.path(), "x");
    let parts = hafen::api::tls::Files { cert: &files.0, key: &files.1, ca: &secure.ca };
    let known = hafen::api::tls::client(parts).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let pem = rustls::pki_types::pem::PemObject::from_pem_file(&secure.ca).unwrap();
    roots.add(pem).unwrap();
    let nameless = rustls::ClientConfig::builder_with_provider(Arc::clone(known.crypto_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(nameless));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    // With TLS 1.3 the client hears of it only when it reads.
    if let Ok(mut stream) = connector.connect(name, stream).await {
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n").await;
        assert_eq!(answer(&mut stream).await.0, 0);
    }

    let refused = client::connect(&secure.host, &Tls::default()).await.unwrap_err();
    assert!(refused.to_string().contains("--tls-cert"), "{refused}");
}
