//! OCI image layouts (image-spec, image-layout).

use std::path::Path;

use hafen_spec::image::{Blob, Choice, Document, document, media_type};

use super::Found;
use super::files::Files;
use crate::store::{Expected, Store, StoreError};

pub(super) const INDEX: &str = "index.json";
pub(super) const MARK: &str = "oci-layout";
/// An index in an index in an index ... is nobody's image.
const DEEPEST: usize = 4;

/// The images of a layout, all their blobs taken in.
pub(super) fn images(store: &Store, files: &Files, from: &Path) -> Result<Vec<Found>, StoreError> {
    if !files.has(MARK) {
        return Err(StoreError::Refused(format!("{}: has no {MARK}", from.display())));
    }
    let bytes = files.read(INDEX)?;
    let wrong = |source| StoreError::Document { what: INDEX.to_owned(), source };
    let Document::Index(choices) = document(&bytes, Some(media_type::INDEX)).map_err(wrong)? else {
        return Err(StoreError::Refused(format!("{INDEX} is no index")));
    };
    let mut found: Vec<Found> = Vec::new();
    for Choice { blob, name, .. } in choices {
        take(store, files, &blob, DEEPEST)?;
        match found.iter_mut().find(|f| f.target == blob) {
            Some(known) => known.names.extend(name),
            None => found.push(Found { target: blob, names: name.into_iter().collect() }),
        }
    }
    Ok(found)
}

/// A manifest or an index with everything behind it. Of an index a layout may have some manifests only.
fn take(store: &Store, files: &Files, target: &Blob, depth: usize) -> Result<(), StoreError> {
    if depth == 0 {
        return Err(StoreError::Refused(format!(
            "index {}: indexes within indexes",
            target.digest
        )));
    }
    blob(store, files, target, "manifest")?;
    match store.document(target)? {
        Document::Manifest(manifest) => {
            blob(store, files, &manifest.config, "configuration")?;
            manifest.layers.iter().try_for_each(|layer| blob(store, files, &layer.blob, "layer"))
        }
        Document::Index(choices) => choices
            .iter()
            .filter(|choice| files.has(&path(&choice.blob)))
            .try_for_each(|choice| take(store, files, &choice.blob, depth - 1)),
    }
}

fn blob(store: &Store, files: &Files, blob: &Blob, what: &str) -> Result<(), StoreError> {
    let Some(_fetching) = store.fetching(&blob.digest)? else { return Ok(()) };
    let path = path(blob);
    let what = format!("{what} {path}");
    store.put(files.find(&path)?, Some(Expected::from(blob)), &what).map(drop)
}

fn path(blob: &Blob) -> String {
    format!("blobs/{}/{}", blob.digest.algorithm(), blob.digest.hex())
}
