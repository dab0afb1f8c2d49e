use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::try_unfold;
use hafen_rootfs::store::{Named, Store};
use hafen_spec::image::{Blob, Document, Reference};
use oci_client::errors::OciDistributionError;
use tokio::task::JoinSet;

use crate::{DEEPEST, Options, Progress, PullError, Source, Tell};

/// What the library sends in one request: each has the patience of `Options::stall` for its answer.
const CHUNK: u64 = 4 << 20;

/// What is to be sent: contents first, then manifests, each after what it refers to.
#[derive(Debug, Default)]
struct Freight {
    blobs: Vec<Blob>,
    manifests: Vec<Blob>,
}

/// Send an image to a registry. Of an index that is not complete in the store it is the manifest for this machine, since
/// registries refuse an index without its manifests. The caller holds the store. Says what the name means there now.
///
/// # Errors
/// Of the registry; of the store.
pub async fn push(
    store: &Store,
    image: &Named,
    to: &Reference,
    options: &Options,
    tell: Tell,
) -> Result<Blob, PullError> {
    let target = sendable(store, &image.target)?;
    let mut freight = Freight::default();
    freight.load(store, &target, DEEPEST)?;
    let source = Source::new(store, to, &to.registry, options, tell)?;
    let registry = source.repository.resolve_registry();
    source.client.store_auth_if_needed(registry, &source.auth).await;
    source.send_blobs(freight.blobs, neighbour(&image.reference, to)).await?;
    for manifest in freight.manifests.iter().filter(|manifest| **manifest != target) {
        let name = source.repository.clone_with_digest(manifest.digest.to_string());
        source.send_manifest(&name, manifest).await?;
    }
    source.send_manifest(&source.repository, &target).await?;
    Ok(target)
}

/// Where the same registry may have the blobs already.
fn neighbour(known_as: &str, to: &Reference) -> Option<oci_client::Reference> {
    let from: Reference = known_as.parse().ok()?;
    let elsewhere = from.registry == to.registry && from.repository != to.repository;
    let name = format!("{}/{}", from.registry, from.repository);
    name.parse().ok().filter(|_| elsewhere)
}

fn sendable(store: &Store, target: &Blob) -> Result<Blob, PullError> {
    let Document::Index(choices) = store.document(target)? else { return Ok(target.clone()) };
    if choices.iter().all(|choice| store.has_blob(&choice.blob.digest)) {
        return Ok(target.clone());
    }
    let own = store.image(target)?.digest;
    let choice = choices.into_iter().find(|choice| choice.blob.digest == own);
    choice
        .map(|choice| choice.blob)
        .ok_or_else(|| PullError::Refused(format!("{} is an index of indexes", target.digest)))
}

impl Freight {
    fn load(&mut self, store: &Store, target: &Blob, depth: usize) -> Result<(), PullError> {
        if depth == 0 {
            return Err(PullError::Refused(format!("{}: indexes within indexes", target.digest)));
        }
        match store.document(target)? {
            Document::Manifest(manifest) => {
                self.add(manifest.config);
                manifest.layers.into_iter().for_each(|layer| self.add(layer.blob));
            }
            Document::Index(choices) => {
                for choice in choices {
                    self.load(store, &choice.blob, depth - 1)?;
                }
            }
        }
        self.manifests.push(target.clone());
        Ok(())
    }

    fn add(&mut self, blob: Blob) {
        if self.blobs.iter().all(|known| known.digest != blob.digest) {
            self.blobs.push(blob);
        }
    }
}

impl Source {
    async fn send_blobs(
        &self,
        blobs: Vec<Blob>,
        neighbour: Option<oci_client::Reference>,
    ) -> Result<(), PullError> {
        (self.tell)(Progress::Expect(blobs.iter().map(|blob| blob.size).sum()));
        let mut tasks = JoinSet::new();
        for blob in blobs {
            let (source, neighbour) = (self.clone(), neighbour.clone());
            tasks.spawn(async move {
                let permit = Arc::clone(&source.parallel).acquire_owned().await;
                let sent = source.send_blob(&blob, neighbour.as_ref()).await;
                drop(permit);
                sent
            });
        }
        while let Some(done) = tasks.join_next().await {
            // Dropping the set ends the others.
            done.map_err(|e| PullError::Refused(format!("a task that sends has ended: {e}")))??;
        }
        Ok(())
    }

    /// Unless the registry has it.
    async fn send_blob(
        &self,
        blob: &Blob,
        neighbour: Option<&oci_client::Reference>,
    ) -> Result<(), PullError> {
        let digest = blob.digest.to_string();
        let failed = |e| self.failed(format!("blob {digest}"), e);
        let ask = || self.client.blob_exists(&self.repository, &digest);
        let known = self.patience.call(ask).await.map_err(failed)?;
        if !known && !self.mount(neighbour, &digest).await {
            // Before the first byte: what the store has not is no trouble of the registry's.
            drop(self.store.open_blob(&blob.digest, "a blob")?);
            let path = self.store.blob_path(&blob.digest);
            let send = || async {
                let content = content(File::open(&path)?);
                let (to, size) = (&self.repository, Some(blob.size));
                self.client.push_blob_stream(to, content, &digest, size).await
            };
            self.patience.call(send).await.map_err(failed)?;
        }
        (self.tell)(Progress::Got(blob.size));
        Ok(())
    }

    /// Where that is refused or nothing is known of the blob, it is sent.
    async fn mount(&self, neighbour: Option<&oci_client::Reference>, digest: &str) -> bool {
        let Some(neighbour) = neighbour else { return false };
        self.client.mount_blob(&self.repository, neighbour, digest).await.is_ok()
    }

    async fn send_manifest(
        &self,
        name: &oci_client::Reference,
        manifest: &Blob,
    ) -> Result<(), PullError> {
        let bytes = Bytes::from(self.store.read_document(&manifest.digest, "a manifest")?);
        let send = || async {
            let media_type = manifest.media_type.parse();
            let media_type = media_type.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            self.client.push_manifest_raw(name, bytes.clone(), media_type).await
        };
        let sent = self.patience.call(send).await;
        sent.map_err(|e| self.failed(format!("manifest {}", manifest.digest), e)).map(drop)
    }
}

/// A file, piece by piece, read in a thread that may wait for the disk.
fn content(file: File) -> impl Stream<Item = Result<Bytes, OciDistributionError>> + Send + 'static {
    try_unfold(file, |mut file| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = Vec::new();
            file.by_ref().take(CHUNK).read_to_end(&mut chunk).map(|_| (chunk, file))
        });
        let (chunk, file) = read.await.map_err(io::Error::other)??;
        Ok((!chunk.is_empty()).then(|| (Bytes::from(chunk), file)))
    })
}
