//! Archives of `docker save` and of what writes the same.

use std::io::{Cursor, Read};

use hafen_spec::image::{Blob, Compression, media_type};
use hafen_sys::Context;
use serde::Deserialize;
use serde_json::json;

use super::files::Files;
use super::{Found, put_document};
use crate::store::{Store, StoreError};

pub(super) const MANIFEST: &str = "manifest.json";
/// Enough to tell one kind of compression from another.
const BEGINNING: u64 = 4;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn images(store: &Store, files: &Files) -> Result<Vec<Found>, StoreError> {
    let bytes = files.read(MANIFEST)?;
    let entries: Vec<Entry> = serde_json::from_slice(&bytes)
        .map_err(|e| StoreError::Refused(format!("{MANIFEST}: {e}")))?;
    entries.into_iter().map(|entry| image(store, files, entry)).collect()
}

/// It has no manifest of the OCI's kind, so one is made.
fn image(store: &Store, files: &Files, entry: Entry) -> Result<Found, StoreError> {
    let config = store.put(files.find(&entry.config)?, None, &entry.config)?;
    let config =
        Blob { media_type: media_type::CONFIG.into(), digest: config.digest, size: config.size };
    let layers: Result<Vec<Blob>, StoreError> =
        entry.layers.iter().map(|path| layer(store, files, path)).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::MANIFEST,
        "config": config,
        "layers": layers?,
    });
    let target = put_document(store, &manifest, media_type::MANIFEST)?;
    Ok(Found { target, names: entry.repo_tags.unwrap_or_default() })
}

fn layer(store: &Store, files: &Files, path: &str) -> Result<Blob, StoreError> {
    let (compression, whole) = peek(files.find(path)?).call(|| format!("read {path}"))?;
    let stored = store.put(whole, None, path)?;
    let media_type = compression.media_type().to_owned();
    Ok(Blob { media_type, digest: stored.digest, size: stored.size })
}

/// How a file is packed, and the file from its beginning.
pub(super) fn peek(mut file: impl Read) -> std::io::Result<(Compression, impl Read)> {
    let mut beginning = Vec::new();
    file.by_ref().take(BEGINNING).read_to_end(&mut beginning)?;
    Ok((Compression::of(&beginning), Cursor::new(beginning).chain(file)))
}
