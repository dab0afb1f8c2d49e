//! A root file system that somebody packed with tar.

use std::fs::File;
use std::path::Path;

use hafen_spec::image::{Blob, Config, Defaults, Platform, media_type};
use hafen_sys::Context;
use serde_json::json;

use super::docker::peek;
use super::{Found, Import, put_document};
use crate::store::layer::diff_id;
use crate::store::{Store, StoreError};

/// An image of one layer. It says nothing of what runs in it.
pub(super) fn image(store: &Store, from: &Path, how: &Import<'_>) -> Result<Found, StoreError> {
    let call = || format!("read {}", from.display());
    let (compression, whole) = peek(File::open(from).call(call)?).call(call)?;
    let stored = store.put(whole, None, &from.display().to_string())?;
    let packed = store.open_blob(&stored.digest, "a layer")?;
    let diff = diff_id(packed, compression, how.unpacking.bounds).call(call)?;
    let layer = Blob {
        media_type: compression.media_type().to_owned(),
        digest: stored.digest,
        size: stored.size,
    };
    let config = Config {
        platform: Platform::own(),
        created: Some(how.now.clone()),
        diff_ids: vec![diff],
        defaults: Defaults::default(),
    };
    let config = put_document(store, &config.document(), media_type::CONFIG)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::MANIFEST,
        "config": config,
        "layers": [layer],
    });
    let target = put_document(store, &manifest, media_type::MANIFEST)?;
    Ok(Found { target, names: Vec::new() })
}
