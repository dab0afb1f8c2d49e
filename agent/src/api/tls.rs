//! Mutual TLS: both sides show a certificate, or there is no connection.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Files, in PEM.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    pub cert: &'a Path,
    pub key: &'a Path,
    /// Who signs the certificates of the other side.
    pub ca: &'a Path,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {file}")]
    File { file: String, source: rustls::pki_types::pem::Error },
    #[error("{0} holds no certificate")]
    Empty(String),
    #[error("{file}")]
    Rejected { file: String, source: rustls::Error },
    #[error("{file}")]
    Verifier { file: String, source: rustls::server::VerifierBuilderError },
    #[error("set up TLS")]
    Setup(#[from] rustls::Error),
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let name = file.display().to_string();
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let all: Vec<_> = read.map_err(|source| TlsError::File { file: name.clone(), source })?;
    if all.is_empty() { Err(TlsError::Empty(name)) } else { Ok(all) }
}

fn key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let read = PrivateKeyDer::from_pem_file(file);
    read.map_err(|source| TlsError::File { file: file.display().to_string(), source })
}

fn authorities(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(file)? {
        let added = store.add(certificate);
        added.map_err(|source| TlsError::Rejected { file: file.display().to_string(), source })?;
    }
    Ok(store)
}

/// # Errors
/// Names the file.
pub fn server(files: Files<'_>) -> Result<ServerConfig, TlsError> {
    let roots = Arc::new(authorities(files.ca)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
    let verifier = verifier
        .map_err(|source| TlsError::Verifier { file: files.ca.display().to_string(), source })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(files.cert)?, key(files.key)?)
        .map_err(|source| TlsError::Rejected { file: files.cert.display().to_string(), source })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// # Errors
/// Names the file.
pub fn client(files: Files<'_>) -> Result<ClientConfig, TlsError> {
    client_of(files, rustls::DEFAULT_VERSIONS)
}

/// # Errors
/// Names the file.
pub fn client_of(
    files: Files<'_>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .with_root_certificates(authorities(files.ca)?)
        .with_client_auth_cert(certificates(files.cert)?, key(files.key)?)
        .map_err(|source| TlsError::Rejected { file: files.cert.display().to_string(), source })?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
