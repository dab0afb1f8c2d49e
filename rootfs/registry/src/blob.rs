use std::io;
use std::pin::pin;

use bytes::Bytes;
use futures_util::StreamExt;
use hafen_rootfs::store::{Part, StoreError};
use hafen_spec::image::Blob;
use oci_client::client::BlobResponse;
use oci_client::manifest::OciDescriptor;
use tokio::sync::mpsc;

use crate::retry::passes;
use crate::{Progress, PullError, Source};

/// Chunks on their way from the network to the disk.
const CHUNKS_WAITING: usize = 16;

/// Fetch a blob, unless somebody else has meanwhile. What is left of an earlier time may be torn, since nobody brought it
/// to the disk: then it is fetched once more from the beginning.
pub(crate) async fn fetch(source: &Source, blob: &Blob) -> Result<(), PullError> {
    let Some(part) = begin(source, blob).await? else { return Ok(()) };
    let kept = part.size();
    match go_on(source, blob, part).await {
        Err(PullError::Store(StoreError::Digest { .. })) if kept > 0 => {}
        answer => return answer,
    }
    (source.tell)(Progress::Lost(blob.size));
    match begin(source, blob).await? {
        Some(part) => go_on(source, blob, part).await,
        None => Ok(()),
    }
}

/// `None`: it is there.
async fn begin(source: &Source, blob: &Blob) -> Result<Option<Part>, PullError> {
    let (store, wanted) = (source.store.clone(), blob.clone());
    let part = blocking(move || store.part(&wanted)).await?;
    (source.tell)(Progress::Got(part.as_ref().map_or(blob.size, Part::size)));
    Ok(part)
}

async fn go_on(source: &Source, blob: &Blob, part: Part) -> Result<(), PullError> {
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
    let at = part.size();
    let writer = tokio::task::spawn_blocking(move || write(part, receiver));
    // A range behind the end would be refused.
    let sent = if at < blob.size { send(source, blob, at, &sender).await } else { Ok(()) };
    drop(sender);
    let part = writer.await.map_err(|e| ended(&e))??;
    sent?;
    blocking(move || part.finish()).await?;
    Ok(())
}

/// All that comes, in a thread of the store.
fn write(mut part: Part, mut chunks: mpsc::Receiver<Bytes>) -> Result<Part, StoreError> {
    while let Some(chunk) = chunks.blocking_recv() {
        part.add(&chunk)?;
    }
    Ok(part)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, PullError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|e| ended(&e))??)
}

fn ended(error: &tokio::task::JoinError) -> PullError {
    PullError::Refused(format!("a thread of the store has ended: {error}"))
}

/// From where it broke, as often as there is patience; what comes counts as patience anew.
async fn send(
    source: &Source,
    blob: &Blob,
    mut at: u64,
    to: &mpsc::Sender<Bytes>,
) -> Result<(), PullError> {
    let mut tried = 0;
    loop {
        let before = at;
        match send_from(source, blob, &mut at, to).await {
            Ok(()) => return Ok(()),
            Err(e) if !passes(&e) => return Err(source.failed(format!("blob {}", blob.digest), e)),
            Err(e) => {
                tried = if at > before { 0 } else { tried + 1 };
                if tried > source.patience.retries {
                    return Err(source.failed(format!("blob {}", blob.digest), e));
                }
                source.patience.pause(tried).await;
            }
        }
    }
}

async fn send_from(
    source: &Source,
    blob: &Blob,
    at: &mut u64,
    to: &mpsc::Sender<Bytes>,
) -> Result<(), oci_client::errors::OciDistributionError> {
    let layer = OciDescriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest.to_string(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    };
    let answer =
        source.client.pull_blob_stream_partial(&source.repository, &layer, *at, None).await?;
    // A registry that knows no ranges begins anew.
    let (stream, mut skip) = match answer {
        BlobResponse::Full(stream) => (stream.stream, *at),
        BlobResponse::Partial(stream) => (stream.stream, 0),
    };
    let mut stream = pin!(stream);
    while let Some(chunk) = stream.next().await {
        let mut chunk = chunk?;
        let known = skip.min(chunk.len() as u64);
        skip -= known;
        let chunk = chunk.split_off(usize::try_from(known).unwrap_or(usize::MAX));
        if chunk.is_empty() {
            continue;
        }
        *at += chunk.len() as u64;
        (source.tell)(Progress::Got(chunk.len() as u64));
        if to.send(chunk).await.is_err() {
            // The writer has given up, and says why.
            return Ok(());
        }
    }
    if *at < blob.size {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(())
}
