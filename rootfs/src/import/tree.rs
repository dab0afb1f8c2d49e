//! A root file system, packed with tar or as it lies there.

use std::fs::File;
use std::path::Path;

use hafen_spec::image::{Blob, Compression, Config, Defaults, Digest, Platform, media_type};
use hafen_sys::Context;
use serde_json::json;

use super::docker::peek;
use super::{Found, Import, put_document};
use crate::pack::{LeftOut, pack};
use crate::store::layer::diff_id;
use crate::store::{Store, StoreError, Stored};

/// An image of one layer. It says nothing of what runs in it.
pub(super) fn image(store: &Store, from: &Path, how: &Import<'_>) -> Result<Found, StoreError> {
    let call = || format!("read {}", from.display());
    let (compression, whole) = peek(File::open(from).call(call)?).call(call)?;
    let stored = store.put(whole, None, &from.display().to_string())?;
    let packed = store.open_blob(&stored.digest, "a layer")?;
    let diff = diff_id(packed, compression, how.unpacking.bounds).call(call)?;
    of_one_layer(store, stored, compression, diff, Some(how.now.clone()))
}

/// The same for the same folder, so it does not say when it was made.
pub(super) fn of_folder(
    store: &Store,
    from: &Path,
    how: &Import<'_>,
) -> Result<(Found, Vec<LeftOut>), StoreError> {
    let folder = from.display().to_string();
    if how.name.is_none() {
        return Err(StoreError::Refused(format!(
            "{folder}: a root file system has no name: give it one with --name"
        )));
    }
    let (stored, left_out) = store.put_written(&folder, |to| {
        let failed = |source| StoreError::Pack { folder: folder.clone(), source };
        pack(from, to).map_err(failed)
    })?;
    let diff = stored.digest.clone();
    Ok((of_one_layer(store, stored, Compression::None, diff, None)?, left_out))
}

fn of_one_layer(
    store: &Store,
    stored: Stored,
    compression: Compression,
    diff: Digest,
    created: Option<String>,
) -> Result<Found, StoreError> {
    let layer = Blob {
        media_type: compression.media_type().to_owned(),
        digest: stored.digest,
        size: stored.size,
    };
    let config = Config {
        platform: Platform::own(),
        created,
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
