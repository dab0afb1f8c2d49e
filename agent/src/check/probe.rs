//! One question to a task. A socket belongs to the network namespace in which it was made, whoever uses it afterwards: a
//! thread makes it there, and this process connects it like any other.

use std::error::Error;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hafen_protocol::v1::check::{Http, Probe};
use http_body_util::Empty;
use hyper::header::{HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::failure::{Failure, chain};
use crate::network::netns;

/// Where a task can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// File of its network namespace, which may be `/proc/PID/ns/net`.
    pub namespace: PathBuf,
    /// Its own; `None`: its loopback.
    pub address: Option<IpAddr>,
}

/// Whether a probe can be sent at all.
///
/// # Errors
/// The field, and what is wrong with it.
pub(super) fn validate(probe: &Probe) -> Result<(), (&'static str, String)> {
    match probe {
        Probe::Command(command) if command.args.is_empty() => {
            Err(("command.args", "is missing".to_owned()))
        }
        Probe::Command(_) => Ok(()),
        Probe::Tcp(tcp) => {
            port(tcp.port).map_err(|e| ("tcp.port", e))?;
            host(&tcp.host).map(drop).map_err(|e| ("tcp.host", e))
        }
        Probe::Http(http) => {
            port(http.port).map_err(|e| ("http.port", e))?;
            host(&http.host).map_err(|e| ("http.host", e))?;
            path(http).map_err(|e| ("http.path", e))?;
            let bad = http.statuses.iter().find(|status| !(100..600).contains(*status));
            if let Some(bad) = bad {
                return Err(("http.statuses", format!("{bad} is no status of HTTP")));
            }
            headers(http).map(drop).map_err(|e| ("http.headers", e))
        }
    }
}

fn port(port: u32) -> Result<u16, String> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0);
    port.ok_or_else(|| "must be from 1 to 65535".to_owned())
}

/// Names would be looked up by the node, which knows other ones than the task.
fn host(host: &str) -> Result<Option<IpAddr>, String> {
    match host {
        "" => Ok(None),
        "localhost" => Ok(Some(Ipv4Addr::LOCALHOST.into())),
        _ => host.parse().map(Some).map_err(|_| format!("{host:?} is no IP address")),
    }
}

fn path(http: &Http) -> Result<Uri, String> {
    let path = if http.path.is_empty() { "/" } else { http.path.as_str() };
    if !path.starts_with('/') {
        return Err(format!("{path:?} must begin with \"/\""));
    }
    path.parse().map_err(|e| format!("{path:?}: {e}"))
}

fn headers(http: &Http) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let header = |(name, value): (&String, &String)| {
        let parsed = HeaderName::try_from(name).map_err(|e| format!("{name:?}: {e}"))?;
        // The value may be a secret.
        let value = HeaderValue::try_from(value).map_err(|e| format!("value of {name:?}: {e}"))?;
        Ok((parsed, value))
    };
    http.headers.iter().map(header).collect()
}

/// Ask once. The caller sets the end: all of it can be dropped at any time.
///
/// # Errors
/// Why the answer is no, for people.
pub async fn ask<E, F>(
    probe: &Probe,
    target: &Target,
    exec: &E,
    timeout: Duration,
) -> Result<(), String>
where
    E: Fn(Vec<String>, Duration) -> F,
    F: Future<Output = Result<i32, Failure>>,
{
    match probe {
        Probe::Command(command) => match exec(command.args.clone(), timeout).await {
            Ok(0) => Ok(()),
            Ok(code) => Err(format!("the command ended with exit code {code}")),
            Err(failure) => Err(format!("the command could not be executed: {failure}")),
        },
        Probe::Tcp(tcp) => connect(target, address(target, &tcp.host, tcp.port)?).await.map(drop),
        Probe::Http(http) => get(target, http).await,
    }
}

fn address(target: &Target, named: &str, number: u32) -> Result<SocketAddr, String> {
    let own = target.address.unwrap_or(Ipv4Addr::LOCALHOST.into());
    Ok(SocketAddr::new(host(named)?.unwrap_or(own), port(number)?))
}

async fn connect(target: &Target, address: SocketAddr) -> Result<TcpStream, String> {
    let namespace = target.namespace.clone();
    let make = move || {
        netns::inside(&namespace, || match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        })
    };
    let socket =
        tokio::task::spawn_blocking(make).await.map_err(|e| explain("make a socket", &e))?;
    let socket = socket
        .map_err(|e| explain("enter the network of the task", &e))?
        .map_err(|e| explain("make a socket", &e))?;
    socket.connect(address).await.map_err(|e| explain(&format!("connect to {address}"), &e))
}

async fn get(target: &Target, http: &Http) -> Result<(), String> {
    let address = address(target, &http.host, http.port)?;
    let stream = connect(target, address).await?;
    let status = if http.tls {
        let config = Arc::new(without_verification().map_err(|e| explain("prepare TLS", &e))?);
        let connected =
            TlsConnector::from(config).connect(ServerName::from(address.ip()), stream).await;
        let stream = connected.map_err(|e| explain(&format!("TLS with {address}"), &e))?;
        status(stream, http, address).await?
    } else {
        status(stream, http, address).await?
    };
    let expected = match http.statuses.as_slice() {
        [] => (200..400).contains(&status),
        statuses => statuses.contains(&status),
    };
    if expected { Ok(()) } else { Err(format!("{address} answered with HTTP status {status}")) }
}

/// The first line and the headers: the rest is not waited for.
async fn status(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http: &Http,
    address: SocketAddr,
) -> Result<u32, String> {
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = path(http)?;
    let own = HeaderValue::try_from(address.to_string()).map_err(|e| explain("Host", &e))?;
    request.headers_mut().insert(HOST, own);
    let agent = concat!("hafen/", env!("CARGO_PKG_VERSION"));
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(agent));
    for (name, value) in headers(http)? {
        request.headers_mut().insert(name, value);
    }
    let failed = |e: hyper::Error| explain(&format!("HTTP with {address}"), &e);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let answer = async { sender.send_request(request).await.map_err(failed) };
    // The connection makes the progress, and both end with this function.
    tokio::pin!(connection);
    tokio::pin!(answer);
    let mut ended = false;
    loop {
        // Both are pinned and go on where they were.
        tokio::select! {
            answer = &mut answer => return Ok(answer?.status().as_u16().into()),
            _ = &mut connection, if !ended => ended = true,
        }
    }
}

/// With all that caused it.
fn explain(what: &str, error: &dyn Error) -> String {
    format!("{what}: {}", chain(error))
}

fn without_verification() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let any = Arc::new(AnyCertificate(Arc::clone(&provider)));
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(any)
        .with_no_client_auth())
}

/// The protocol says so: a task's certificate is for its clients, and rarely for its address.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use hafen_protocol::v1::check::{Command, Tcp};

    use super::*;

    fn http(path: &str, host: &str) -> Http {
        Http { port: 80, path: path.to_owned(), host: host.to_owned(), ..Http::default() }
    }

    #[test]
    fn what_cannot_be_sent_is_told_before() {
        let field = |probe: Probe| validate(&probe).unwrap_err().0;
        assert_eq!(field(Probe::Command(Command::default())), "command.args");
        assert_eq!(field(Probe::Tcp(Tcp { port: 0, host: String::new() })), "tcp.port");
        assert_eq!(field(Probe::Tcp(Tcp { port: 1, host: "db".to_owned() })), "tcp.host");
        assert_eq!(field(Probe::Http(http("x", ""))), "http.path");
        assert_eq!(field(Probe::Http(http("/", "example.org"))), "http.host");
        assert_eq!(
            field(Probe::Http(Http { statuses: vec![20], ..http("/", "") })),
            "http.statuses"
        );
        let headers = [("a b".to_owned(), "c".to_owned())].into();
        assert_eq!(field(Probe::Http(Http { headers, ..http("/", "") })), "http.headers");
        assert!(validate(&Probe::Http(http("", "::1"))).is_ok());
    }

    #[tokio::test]
    async fn a_command_succeeds_with_exit_code_0() {
        let target = Target { namespace: "/nowhere".into(), address: None };
        let probe = Probe::Command(Command { args: vec!["x".to_owned()] });
        for (code, answer) in
            [(0, Ok(())), (7, Err("the command ended with exit code 7".to_owned()))]
        {
            let exec = |args: Vec<String>, _: Duration| {
                assert_eq!(args, ["x"]);
                async move { Ok(code) }
            };
            assert_eq!(ask(&probe, &target, &exec, Duration::from_secs(1)).await, answer);
        }
    }
}
