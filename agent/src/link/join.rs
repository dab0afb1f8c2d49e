//! First contact: a token for a certificate; and later, a certificate for the next one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hafen_protocol::v1::master_client::MasterClient;
use hafen_protocol::v1::{JoinRequest, JoinResponse};
use hafen_sys::file::replace;
use hafen_sys::{CallError, Context};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsFailure, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use tonic::transport::Channel;

use super::dial::{DialError, Files, dial};
use super::disk::Disk;
use crate::address::Address;
use crate::api::tls;
use crate::config::{Joining, Token};

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("make a key")]
    Key(#[from] rcgen::Error),
    #[error("set up TLS")]
    Setup(#[from] TlsFailure),
    #[error("the master does not let this node join: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("the master's answer to Join has {0}")]
    Answer(&'static str),
}

/// Where the files of a node that has joined are.
pub(super) fn files(folder: &Path) -> Files {
    let identity = folder.join("identity.pem");
    Files { cert: identity.clone(), key: identity, ca: folder.join("ca.pem") }
}

/// Get a certificate, and write it down with its key.
pub(super) async fn join(
    address: &Address,
    joining: &Joining,
    wished: &str,
    folder: &Path,
    disk: &Disk,
) -> Result<(), JoinError> {
    let token = read(&joining.token)?;
    let mut client = dial(address, Some(pinned(joining.authority)?)).await?;
    ask(&mut client, token, wished, folder, disk).await
}

/// The same over a connection that the certificate of before secures.
pub(super) async fn renew(
    client: &mut MasterClient<Channel>,
    node: &str,
    folder: &Path,
    disk: &Disk,
) -> Result<(), JoinError> {
    ask(client, String::new(), node, folder, disk).await
}

/// Is the time for another certificate there?
pub(super) fn is_due(disk: &Disk) -> bool {
    let renew_at = disk.known().renew_at;
    let renew_at = renew_at.and_then(|text| humantime::parse_rfc3339(&text).ok());
    renew_at.is_some_and(|at| at <= SystemTime::now())
}

fn read(token: &Token) -> Result<String, CallError> {
    match token {
        Token::Text(text) => Ok(text.clone()),
        Token::File(path) => {
            let text = std::fs::read_to_string(path).call(|| format!("read {}", path.display()))?;
            Ok(text.trim().to_owned())
        }
    }
}

async fn ask(
    client: &mut MasterClient<Channel>,
    token: String,
    node: &str,
    folder: &Path,
    disk: &Disk,
) -> Result<(), JoinError> {
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?;
    let csr = csr.der().to_vec();
    let request = JoinRequest { token, node: node.to_owned(), csr };
    let answer = tokio::time::timeout(PATIENCE, client.join(request)).await;
    let late = |_| JoinError::Answer("not come in time");
    let answer = answer.map_err(late)?.map_err(|status| JoinError::Refused(Box::new(status)))?;
    keep(&answer.into_inner(), &key, folder, disk)
}

fn keep(answer: &JoinResponse, key: &KeyPair, folder: &Path, disk: &Disk) -> Result<(), JoinError> {
    if answer.certificate.is_empty() || answer.authorities.is_empty() {
        return Err(JoinError::Answer("no certificate, or no authority"));
    }
    if crate::resolve::name(&answer.node).is_err() {
        return Err(JoinError::Answer("a name that no node can have"));
    }
    std::fs::create_dir_all(folder).call(|| format!("mkdir {}", folder.display()))?;
    let Files { cert, ca, .. } = files(folder);
    let authorities: String = answer.authorities.iter().map(|der| pem(der)).collect();
    // Certificate and key are one file: after a crash they fit.
    let identity = format!("{}{}", pem(&answer.certificate), key.serialize_pem());
    replace(&ca, authorities.as_bytes(), true)?;
    replace(&cert, identity.as_bytes(), true)?;
    let renew_after = answer.renew_after.as_ref().map(crate::time::duration);
    let renew_at = renew_after.and_then(|after| SystemTime::now().checked_add(after));
    disk.change(|known| {
        known.node = Some(answer.node.clone());
        known.renew_at = renew_at.map(|at| humantime::format_rfc3339_seconds(at).to_string());
    })?;
    tracing::info!(node = answer.node, "has a certificate of its master's authority");
    Ok(())
}

/// RFC 7468.
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Who shows a chain up to this authority, and nobody else, gets to see the token.
fn pinned(authority: [u8; 32]) -> Result<ClientConfig, TlsFailure> {
    let provider = tls::provider();
    let verifier = Pinned { authority, provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Trusts one authority, of which only the SHA-256 is known: the master shows it with its own certificate.
#[derive(Debug)]
struct Pinned {
    authority: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsFailure> {
        let is_it = |shown: &&CertificateDer<'_>| *Sha256::digest(shown) == self.authority;
        let unknown = TlsFailure::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = between.iter().find(is_it).ok_or(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone());
        let verifier = verifier.build().map_err(|e| TlsFailure::General(e.to_string()))?;
        verifier.verify_server_cert(own, between, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Where the files are below the agent's own folder.
pub(super) fn folder(state: &Path) -> PathBuf {
    state.join("agent").join("link")
}
