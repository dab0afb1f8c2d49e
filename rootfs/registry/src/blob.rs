use std::io::{self, Read};
use std::pin::pin;

use bytes::Bytes;
use futures_util::StreamExt;
use hafen_rootfs::store::Expected;
use hafen_spec::image::Blob;
use oci_client::client::BlobResponse;
use oci_client::manifest::OciDescriptor;
use tokio::sync::mpsc;

use crate::retry::passes;
use crate::{Progress, PullError, Source};

/// Chunks on their way from the network to the disk.
const CHUNKS_WAITING: usize = 16;

/// Fetch a blob, unless somebody else has meanwhile.
pub(crate) async fn fetch(source: &Source, blob: &Blob) -> Result<(), PullError> {
    let (store, digest) = (source.store.clone(), blob.digest.clone());
    let lock = tokio::task::spawn_blocking(move || store.fetching(&digest)).await;
    let lock = lock.map_err(|e| ended(&e))?.map_err(hafen_rootfs::store::StoreError::from)?;
    let Some(_fetching) = lock else {
        (source.tell)(Progress::Got(blob.size));
        return Ok(());
    };
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
    let (store, wanted) = (source.store.clone(), blob.clone());
    let writer = tokio::task::spawn_blocking(move || {
        let chunks = Chunks { receiver, chunk: Bytes::new() };
        store.put(chunks, Some(Expected::from(&wanted)), &format!("blob {}", wanted.digest))
    });
    let sent = send(source, blob, &sender).await;
    if let Err(e) = &sent {
        // The writer must not take the end of the stream for the end of the blob.
        let _ = sender.send(Err(io::Error::other(e.to_string()))).await;
    }
    drop(sender);
    let written = writer.await.map_err(|e| ended(&e))?;
    sent?;
    written?;
    Ok(())
}

fn ended(error: &tokio::task::JoinError) -> PullError {
    PullError::Refused(format!("a thread of the store has ended: {error}"))
}

/// From where it broke, as often as there is patience; what comes counts as patience anew.
async fn send(
    source: &Source,
    blob: &Blob,
    to: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), PullError> {
    let (mut at, mut tried) = (0, 0);
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
    to: &mpsc::Sender<io::Result<Bytes>>,
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
        if to.send(Ok(chunk)).await.is_err() {
            // The writer has given up, and says why.
            return Ok(());
        }
    }
    if *at < blob.size {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(())
}

/// The other end, in a thread of the store.
struct Chunks {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.chunk = chunk?,
            }
        }
        let length = buffer.len().min(self.chunk.len());
        buffer[..length].copy_from_slice(&self.chunk.split_to(length));
        Ok(length)
    }
}
