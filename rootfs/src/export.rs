//! An image as the tar of an OCI layout (image-spec, image-layout).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use hafen_sys::Context;
use serde_json::json;
use tar::{Builder, Header};

use crate::store::{Named, Store, StoreError};

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Write an image with everything behind it. The file has its name when it is complete.
///
/// # Errors
/// A blob that is missing; of writing.
pub fn export(store: &Store, named: &Named, file: &Path) -> Result<(), StoreError> {
    let _guard = store.hold()?;
    let mut descriptor = json!(named.target);
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": named.reference });
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string();
    let draft = file.with_extension(format!("{}.tmp", std::process::id()));
    let written = write(store, named, &index, &draft).and_then(|()| {
        let call = || format!("rename {} to {}", draft.display(), file.display());
        Ok(std::fs::rename(&draft, file).call(call)?)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written
}

fn write(store: &Store, named: &Named, index: &str, draft: &Path) -> Result<(), StoreError> {
    let call = || format!("write {}", draft.display());
    let mut tar = Builder::new(BufWriter::new(File::create(draft).call(call)?));
    document(&mut tar, "oci-layout", LAYOUT).call(call)?;
    document(&mut tar, "index.json", index).call(call)?;
    let mut blobs = store.reachable(&named.target)?;
    blobs.sort();
    blobs.dedup();
    for digest in blobs {
        let mut blob = store.open_blob(&digest, "a blob")?;
        let size = blob.metadata().call(call)?.len();
        let name = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        entry(&mut tar, &name, size, &mut blob).call(call)?;
    }
    let finish = tar.into_inner().and_then(|mut buffer| {
        buffer.flush()?;
        buffer.get_ref().sync_all()
    });
    Ok(finish.call(call)?)
}

fn document(tar: &mut Builder<impl Write>, name: &str, text: &str) -> io::Result<()> {
    entry(tar, name, text.len() as u64, &mut text.as_bytes())
}

/// The same tar for the same image: no times, no owners.
fn entry(
    tar: &mut Builder<impl Write>,
    name: &str,
    size: u64,
    content: &mut dyn io::Read,
) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content)
}
