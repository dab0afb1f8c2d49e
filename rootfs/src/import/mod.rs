//! Images from files: OCI layouts, as folder or tar, archives of `docker save`, and root file systems, as tar or folder.

mod docker;
mod files;
mod layout;
mod tree;

use std::path::Path;

use hafen_spec::image::{Blob, Reference};
use serde_json::Value;

use crate::pack::LeftOut;
use crate::store::{Store, StoreError, Unpacking};

use files::Files;

/// How an image is to be taken in.
#[derive(Debug)]
pub struct Import<'a> {
    /// Its name; without one it has the one that the file says.
    pub name: Option<&'a Reference>,
    /// RFC 3339.
    pub now: String,
    pub unpacking: Unpacking<'a>,
}

/// An image that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub reference: Reference,
    pub target: Blob,
}

/// What was taken in.
#[derive(Debug, Default)]
pub struct Taken {
    pub images: Vec<Imported>,
    /// Of a root file system.
    pub left_out: Vec<LeftOut>,
}

/// Take in all images of a file or folder, and unpack them. Each has its name when all of it is there.
///
/// # Errors
/// What it is not, or the part of it that is missing or wrong.
pub fn import(store: &Store, from: &Path, how: &Import<'_>) -> Result<Taken, StoreError> {
    let _guard = store.hold()?;
    // Of earlier calls: by now the kernel has mostly written them anyway.
    store.sync_layers(how.unpacking.boot_id)?;
    let files = Files::open(from)?;
    let (images, left_out) = match &files {
        Some(files) if files.has(docker::MANIFEST) => (docker::images(store, files)?, Vec::new()),
        Some(files) if files.has(layout::INDEX) || files.has(layout::MARK) => {
            (layout::images(store, files, from)?, Vec::new())
        }
        Some(Files::Folder(_)) => {
            let (image, left_out) = tree::of_folder(store, from, how)?;
            (vec![image], left_out)
        }
        _ => (vec![tree::image(store, from, how)?], Vec::new()),
    };
    let images = named(images, from, how)?;
    for Imported { target, .. } in &images {
        let image = store.image(target)?;
        store.layers_of(&image, &how.unpacking)?;
    }
    for Imported { reference, target } in &images {
        store.tag(reference, target.clone(), how.now.clone())?;
    }
    Ok(Taken { images, left_out })
}

/// An image, and the names that its file gives it.
struct Found {
    target: Blob,
    names: Vec<String>,
}

fn named(found: Vec<Found>, from: &Path, how: &Import<'_>) -> Result<Vec<Imported>, StoreError> {
    let refused = |why: &str| StoreError::Refused(format!("{}: {why}", from.display()));
    if let Some(name) = how.name {
        let [one] = <[Found; 1]>::try_from(found)
            .map_err(|all| refused(&format!("has {} images, and there is one name", all.len())))?;
        return Ok(vec![Imported { reference: name.clone(), target: one.target }]);
    }
    let mut all = Vec::new();
    for Found { target, names } in found {
        if names.is_empty() {
            return Err(refused("the image has no name: give it one with --name"));
        }
        for name in names {
            let reference = reference(&name, from).map_err(|why| refused(&why))?;
            all.push(Imported { reference, target: target.clone() });
        }
    }
    Ok(all)
}

/// A layout mostly says a tag only: the file itself names the image then.
fn reference(name: &str, from: &Path) -> Result<Reference, String> {
    if name.contains(['/', ':']) {
        return name.parse();
    }
    let stem = from.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    format!("localhost/{stem}:{name}")
        .parse()
        .map_err(|why| format!("{why}: give it a name with --name"))
}

/// Take in a document that was made here.
fn put_document(store: &Store, document: &Value, media_type: &str) -> Result<Blob, StoreError> {
    let stored = store.put(document.to_string().as_bytes(), None, media_type)?;
    Ok(Blob { media_type: media_type.to_owned(), digest: stored.digest, size: stored.size })
}
