//! Images from registries (distribution-spec) into the store, and back.
//!
//! The library speaks the protocol; this decides what is fetched, from where, how often it is tried again, and that
//! nothing enters the store that is not what was asked for. Blobs stream through a thread that hashes and writes them;
//! a connection that breaks is taken up again where it ended, by another process as well.

mod auth;
mod blob;
mod push;
mod retry;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hafen_rootfs::store::{Expected, Store, StoreError};
use hafen_spec::image::{Blob, Choice, Digest, Document, Platform, Reference, choose, media_type};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use retry::Patience;

pub use push::push;

/// How registries are to be asked.
#[derive(Debug, Clone)]
pub struct Options {
    /// Registries that speak HTTP without TLS; none does that is not named.
    pub plain_http: Vec<String>,
    /// Certificates to trust beside those of the system, in PEM.
    pub authorities: Vec<PathBuf>,
    /// Hosts to ask before the registry itself.
    pub mirrors: Vec<(String, String)>,
    /// Blobs at the same time.
    pub parallel: usize,
    /// How often something is tried again.
    pub retries: u32,
    /// Without a byte.
    pub stall: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            authorities: Vec::new(),
            mirrors: Vec::new(),
            parallel: 4,
            retries: 5,
            stall: Duration::from_secs(30),
        }
    }
}

/// What is told meanwhile.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// So many bytes will come.
    Expect(u64),
    /// So many have come, or were here already.
    Got(u64),
    /// So many were not what they should be, and come again.
    Lost(u64),
}

pub type Tell = Arc<dyn Fn(Progress) + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("{0}")]
    Options(String),
    #[error("ask {host} for {what}")]
    Registry { host: String, what: String, source: Box<OciDistributionError> },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Refused(String),
}

const ACCEPTED: [&str; 4] = [
    media_type::INDEX,
    media_type::MANIFEST,
    media_type::DOCKER_INDEX,
    media_type::DOCKER_MANIFEST,
];
const CONNECT: Duration = Duration::from_secs(10);
/// An index in an index in an index ... is nobody's image.
const DEEPEST: usize = 4;

/// Fetch an image with all that this machine needs of it. The caller holds the store, and gives it its name.
///
/// # Errors
/// Of the last host that was asked; of the store; a digest that is wrong.
pub async fn pull(
    store: &Store,
    reference: &Reference,
    options: &Options,
    tell: Tell,
) -> Result<Blob, PullError> {
    let mut hosts: Vec<&str> = options
        .mirrors
        .iter()
        .filter(|(registry, _)| *registry == reference.registry)
        .map(|(_, mirror)| mirror.as_str())
        .collect();
    hosts.push(&reference.registry);
    let mut last = None;
    for host in hosts {
        let source = Source::new(store, reference, host, options, Arc::clone(&tell))?;
        match source.pull(reference).await {
            Ok(target) => return Ok(target),
            // A mirror that has it not, or is not there, is no reason to give up.
            Err(e @ PullError::Registry { .. }) => last = Some(e),
            Err(e) => return Err(e),
        }
    }
    Err(last.unwrap_or_else(|| PullError::Refused(format!("{reference}: no host to ask"))))
}

/// One repository at one host.
#[derive(Clone)]
struct Source {
    client: oci_client::Client,
    auth: oci_client::secrets::RegistryAuth,
    repository: oci_client::Reference,
    host: String,
    store: Store,
    patience: Patience,
    parallel: Arc<Semaphore>,
    tell: Tell,
}

impl Source {
    fn new(
        store: &Store,
        reference: &Reference,
        host: &str,
        options: &Options,
        tell: Tell,
    ) -> Result<Self, PullError> {
        let client =
            oci_client::Client::try_from(config(options)?).map_err(|e| PullError::Registry {
                host: host.to_owned(),
                what: "a connection".to_owned(),
                source: Box::new(e),
            })?;
        let version = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => format!("@{digest}"),
            (None, Some(tag)) => format!(":{tag}"),
            (None, None) => String::new(),
        };
        let name = format!("{host}/{}{version}", reference.repository);
        let repository = name.parse().map_err(|e| PullError::Refused(format!("{name}: {e}")))?;
        Ok(Self {
            client,
            auth: auth::find(host)?,
            repository,
            host: host.to_owned(),
            store: store.clone(),
            patience: Patience { retries: options.retries },
            parallel: Arc::new(Semaphore::new(options.parallel.max(1))),
            tell,
        })
    }

    async fn pull(&self, reference: &Reference) -> Result<Blob, PullError> {
        let target = self.document(&self.repository, reference.digest.as_ref()).await?;
        let mut manifest = target.clone();
        for _ in 0..DEEPEST {
            match self.store.document(&manifest)? {
                Document::Manifest(parsed) => {
                    let layers = parsed.layers.into_iter().map(|layer| layer.blob);
                    let blobs: Vec<Blob> = std::iter::once(parsed.config).chain(layers).collect();
                    self.blobs(blobs).await?;
                    return Ok(target);
                }
                Document::Index(choices) => {
                    let Choice { blob, .. } = choose(&choices, &Platform::own())
                        .map_err(|e| PullError::Refused(format!("{reference}: {e}")))?;
                    let name = self.repository.clone_with_digest(blob.digest.to_string());
                    manifest = self.document(&name, Some(&blob.digest)).await?;
                }
            }
        }
        Err(PullError::Refused(format!("{reference}: indexes within indexes")))
    }

    /// A manifest or an index; with a digest it must be that one, and may be here already.
    async fn document(
        &self,
        name: &oci_client::Reference,
        digest: Option<&Digest>,
    ) -> Result<Blob, PullError> {
        let fetch = || self.client.pull_manifest_raw(name, &self.auth, &ACCEPTED);
        let (bytes, _) = self.patience.call(fetch).await.map_err(|e| self.failed("manifest", e))?;
        let expected = digest.map(|digest| Expected { digest, size: None });
        let stored = self.store.put(&bytes[..], expected, &format!("manifest of {name}"))?;
        let media_type = kind(&bytes);
        Ok(Blob { media_type, digest: stored.digest, size: stored.size })
    }

    async fn blobs(&self, blobs: Vec<Blob>) -> Result<(), PullError> {
        let mut wanted: Vec<Blob> = Vec::new();
        for blob in blobs {
            if !self.store.has_blob(&blob.digest) && wanted.iter().all(|b| b.digest != blob.digest)
            {
                wanted.push(blob);
            }
        }
        (self.tell)(Progress::Expect(wanted.iter().map(|blob| blob.size).sum()));
        let mut tasks = JoinSet::new();
        for blob in wanted {
            let source = self.clone();
            tasks.spawn(async move {
                let permit = Arc::clone(&source.parallel).acquire_owned().await;
                let fetched = blob::fetch(&source, &blob).await;
                drop(permit);
                fetched
            });
        }
        while let Some(done) = tasks.join_next().await {
            // Dropping the set ends the others.
            done.map_err(|e| PullError::Refused(format!("a task that fetches has ended: {e}")))??;
        }
        Ok(())
    }

    fn failed(&self, what: impl Into<String>, source: OciDistributionError) -> PullError {
        PullError::Registry { host: self.host.clone(), what: what.into(), source: Box::new(source) }
    }
}

/// What a document says of itself; without a word it is known by its fields.
fn kind(bytes: &[u8]) -> String {
    let document = hafen_spec::image::document(bytes, None);
    let own = hafen_spec::image::own_media_type(bytes);
    own.unwrap_or_else(|| match document {
        Ok(Document::Index(_)) => media_type::INDEX.to_owned(),
        _ => media_type::MANIFEST.to_owned(),
    })
}

/// Without any the library panics when it makes a client, for a registry without TLS and with an authority of our own as
/// well (oci-client 0.18, `Client::default`).
fn need_authorities() -> Result<(), PullError> {
    match rustls_native_certs::load_native_certs().certs.is_empty() {
        true => Err(PullError::Options(
            "this machine has no certificate of an authority, and without one nothing is asked of a registry: install \
             ca-certificates, or name a file in PEM with SSL_CERT_FILE"
                .to_owned(),
        )),
        false => Ok(()),
    }
}

fn config(options: &Options) -> Result<ClientConfig, PullError> {
    need_authorities()?;
    // One program has one provider; a second call finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let read = |path: &PathBuf| {
        let data = std::fs::read(path)
            .map_err(|e| PullError::Options(format!("read {}: {e}", path.display())))?;
        Ok(Certificate { encoding: CertificateEncoding::Pem, data })
    };
    let extra: Result<Vec<Certificate>, PullError> = options.authorities.iter().map(read).collect();
    Ok(ClientConfig {
        protocol: ClientProtocol::HttpsExcept(options.plain_http.clone()),
        extra_root_certificates: extra?,
        platform_resolver: None,
        read_timeout: Some(options.stall),
        connect_timeout: Some(CONNECT),
        user_agent: concat!("hafen/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}
