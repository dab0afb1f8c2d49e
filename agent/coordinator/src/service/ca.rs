//! The cluster's own authority: who is a node, who is a person, and who is the coordinator.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::FromDer;

use super::tokens::{hash, hexadecimal};
use super::who::{NODE, USER};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Of the authority and of the coordinator itself.
const LONG: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Of nodes, and when they ask for the next one.
const NODE_VALID: Duration = Duration::from_secs(90 * 24 * 3600);
pub(super) const RENEW_AFTER: Duration = Duration::from_secs(60 * 24 * 3600);
/// `id-at-serialNumber` of a subject (RFC 4519, 2.31): not the certificate's own serial number.
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];
const USER_VALID: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("{call} {path}")]
    File { call: &'static str, path: PathBuf, source: io::Error },
    #[error("read {path}")]
    Pem { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("make a certificate")]
    Make(#[from] rcgen::Error),
    #[error("the certificate that was made cannot be read")]
    Unread,
}

/// Of a person: all that they need, in PEM.
#[derive(Debug, Clone)]
pub struct Person {
    pub certificate: String,
    pub key: String,
    pub authority: String,
    /// Of the certificate, in hexadecimal: by that it alone can be withdrawn.
    pub serial: String,
    pub until: SystemTime,
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl std::fmt::Debug for Authority {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Authority").field(&self.fingerprint()).finish()
    }
}

impl Authority {
    /// That of this folder; made, if there is none.
    ///
    /// # Errors
    /// Names the file.
    pub fn open(folder: &Path) -> Result<Self, CaError> {
        let (certificate, key) = (folder.join("ca.pem"), folder.join("ca.key"));
        if !certificate.exists() {
            make(folder, &certificate, &key)?;
        }
        Self::read(folder)
    }

    /// That of this folder.
    ///
    /// # Errors
    /// Names the file.
    pub fn read(folder: &Path) -> Result<Self, CaError> {
        let (path, key) = (folder.join("ca.pem"), folder.join("ca.key"));
        let pem = fs::read_to_string(&path).map_err(file("read", &path))?;
        let key = KeyPair::from_pem(&fs::read_to_string(&key).map_err(file("read", &key))?)?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|source| CaError::Pem { path, source })?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { issuer, certificate, pem })
    }

    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256, in hexadecimal: a node checks it before it says its token.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hash(&self.certificate)
    }

    /// Of the coordinator, for these names and addresses, with its key.
    pub(super) fn server(
        &self,
        names: &[String],
    ) -> Result<(CertificateDer<'static>, KeyPair), CaError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let params = leaf(params, "hafen coordinator", LONG - DAY);
        Ok((params.signed_by(&key, &self.issuer)?.der().clone(), key))
    }

    /// Of a node: of its request only the key counts, and that it has signed it.
    pub(super) fn node(
        &self,
        name: &str,
        number: u64,
        csr: &[u8],
    ) -> Result<CertificateDer<'static>, CaError> {
        let der = CertificateSigningRequestDer::from(csr);
        let asked = CertificateSigningRequestParams::from_der(&der)?;
        let params = client(&format!("{NODE}{name}"), name, number, NODE_VALID)?;
        let request = CertificateSigningRequestParams { params, ..asked };
        Ok(request.signed_by(&self.issuer)?.der().clone())
    }

    /// `number`: one that counts still, where some of theirs were withdrawn.
    ///
    /// # Errors
    /// A name that cannot be in a certificate.
    pub fn person(&self, name: &str, number: u64) -> Result<Person, CaError> {
        let key = KeyPair::generate()?;
        let params = client(&format!("{USER}{name}"), name, number, USER_VALID)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let paper = read(certificate.der()).ok_or(CaError::Unread)?;
        Ok(Person {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            authority: self.pem.clone(),
            serial: paper.serial,
            until: paper.until,
        })
    }
}

fn client(
    uri: &str,
    name: &str,
    number: u64,
    valid: Duration,
) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut params = leaf(params, name, valid);
    if number > 0 {
        params
            .distinguished_name
            .push(DnType::CustomDnType(SERIAL_NUMBER.into()), number.to_string());
    }
    Ok(params)
}

/// What is read from somebody's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Paper {
    /// All alternative names.
    pub(super) uris: Vec<String>,
    pub(super) number: u64,
    /// As [`plain_serial`] has it.
    pub(super) serial: String,
    pub(super) until: SystemTime,
}

/// Nothing, if it has alternative names that are no URIs.
pub(super) fn read(certificate: &CertificateDer<'_>) -> Option<Paper> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    let uris = names.value.general_names.iter().map(uri).collect::<Option<_>>()?;
    let serial = plain_serial(&hexadecimal(parsed.raw_serial()))?;
    let until = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
    let until = UNIX_EPOCH + Duration::from_secs(until);
    Some(Paper { uris, number: number(&parsed), serial, until })
}

/// A serial number in hexadecimal, however somebody writes it: with colons, capitals or zeros before it. An authority
/// gives 20 bytes at most (RFC 5280, 4.1.2.2).
pub(super) fn plain_serial(text: &str) -> Option<String> {
    const MOST: usize = 40;
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let plain = digits.trim_start_matches('0').to_ascii_lowercase();
    let is_one = (1..=MOST).contains(&plain.len()) && plain.chars().all(|c| c.is_ascii_hexdigit());
    is_one.then_some(plain)
}

/// Among the certificates of one name: the least that counts rises with each withdrawal. None is 0.
fn number(certificate: &X509Certificate<'_>) -> u64 {
    let mut numbers = certificate.subject().iter_by_oid(&OID_X509_SERIALNUMBER);
    let text = numbers.next().and_then(|attribute| attribute.as_str().ok());
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn leaf(params: CertificateParams, name: &str, valid: Duration) -> CertificateParams {
    let mut params = dated(params, name, valid);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

/// From yesterday on: clocks differ.
fn dated(mut params: CertificateParams, name: &str, valid: Duration) -> CertificateParams {
    let now = SystemTime::now();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::from(now - DAY);
    params.not_after = OffsetDateTime::from(now + valid);
    params
}

/// The key first: a certificate says that both are there.
fn make(folder: &Path, certificate: &Path, key: &Path) -> Result<(), CaError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(file("mkdir", folder))?;
    let pair = KeyPair::generate()?;
    let mut params = dated(CertificateParams::default(), "hafen cluster", LONG);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let own = params.self_signed(&pair)?;
    write(key, &pair.serialize_pem())?;
    write(certificate, &own.pem())
}

/// All of it, on the disk, and for our own user only; or nothing.
fn write(path: &Path, text: &str) -> Result<(), CaError> {
    let draft = path.with_extension("draft");
    let mut to = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&draft)
        .map_err(file("open", &draft))?;
    to.write_all(text.as_bytes()).and_then(|()| to.sync_all()).map_err(file("write", &draft))?;
    fs::rename(&draft, path).map_err(file("rename to", path))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(file("sync", folder))
}

fn file(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::File { call, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_authority_is_made_once_and_its_key_is_ours() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("ca");
        let first = Authority::open(&folder).unwrap().fingerprint();
        assert_eq!(Authority::open(&folder).unwrap().fingerprint(), first);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("ca.key"))), (0o700, 0o600));
    }

    #[test]
    fn a_request_must_be_signed_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::new(vec!["other".to_owned()]).unwrap();
        let mut csr = request.serialize_request(&key).unwrap().der().to_vec();
        let signed = authority.node("n1", 7, &csr).unwrap();
        assert_eq!(read(&signed).unwrap().number, 7);
        let last = csr.len() - 1;
        csr[last] ^= 1;
        assert!(authority.node("n1", 0, &csr).is_err());
        assert!(authority.node("n1", 0, b"nothing").is_err());
    }

    #[test]
    fn a_serial_number_is_one_however_it_is_written() {
        for text in ["0A:1b", "a1B", "00:00:0a:1b"] {
            assert_eq!(plain_serial(text).as_deref(), Some("a1b"), "{text}");
        }
        let long = "1".repeat(41);
        for text in ["", "0", "0x1", "g", "-1", long.as_str()] {
            assert_eq!(plain_serial(text), None, "{text}");
        }
    }
}
