//! An image as an OCI layout in a folder, and as the tar of it.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tar::{Builder, EntryType};

use super::layer::{self, Layer, digest};
use super::recipe::{Entry, Recipe};
use super::says;

/// Tag of an image in its layout.
pub(crate) const TAG: &str = "made";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image that was made.
#[derive(Debug, Clone)]
pub struct Made {
    pub name: &'static str,
    pub layout: PathBuf,
    /// The layout as a tar.
    pub archive: PathBuf,
    pub layers: usize,
    pub files: usize,
    /// Of all layers as tars.
    pub unpacked: u64,
    /// Of all layers with gzip.
    pub packed: u64,
}

/// Makes the image in `below`. `program` is what containers run.
pub fn make(recipe: Recipe, program: &[u8], below: &Path) -> io::Result<Made> {
    let layout = below.join(recipe.name);
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(says("mkdir", &blobs))?;
    let (mut layers, mut files) = (Vec::new(), 0);
    for n in 0..recipe.layers {
        let entries = recipe.entries(n);
        files += entries.iter().filter(|e| matches!(e, Entry::File { .. })).count();
        layers.push(write_layer(&blobs, &entries, n.into(), program)?);
    }
    write_documents(&layout, &layers)?;
    let archive = below.join(format!("{}.tar", recipe.name));
    pack(&layout, &archive).map_err(says("pack", &archive))?;
    Ok(Made {
        name: recipe.name,
        layout,
        archive,
        layers: layers.len(),
        files,
        unpacked: layers.iter().map(|l| l.unpacked).sum(),
        packed: layers.iter().map(|l| l.size).sum(),
    })
}

fn write_layer(blobs: &Path, entries: &[Entry], seed: u64, program: &[u8]) -> io::Result<Layer> {
    let path = blobs.join("layer");
    let file = File::create(&path).map_err(says("create", &path))?;
    let layer = layer::write(entries, seed, program, BufWriter::new(file));
    let layer = layer.map_err(says("write", &path))?;
    fs::rename(&path, blobs.join(name(&layer.digest))).map_err(says("rename", &path))?;
    Ok(layer)
}

fn write_documents(layout: &Path, layers: &[Layer]) -> io::Result<()> {
    let ids: Vec<&String> = layers.iter().map(|l| &l.diff_id).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["/bin/true"] },
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    let config = put(layout, &config, CONFIG)?;
    let layer = |l: &Layer| json!({ "mediaType": LAYER, "digest": l.digest, "size": l.size });
    let layers: Vec<Value> = layers.iter().map(layer).collect();
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    let mut manifest = put(layout, &manifest, MANIFEST)?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": TAG });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    save(&layout.join("index.json"), &index.to_string())?;
    save(&layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
}

fn put(layout: &Path, document: &Value, media_type: &str) -> io::Result<Value> {
    let text = document.to_string();
    let digest = digest(text.as_bytes());
    save(&layout.join("blobs/sha256").join(name(&digest)), &text)?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": text.len() }))
}

fn save(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text).map_err(says("write", path))
}

/// The name of a blob's file.
fn name(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

/// In the order of names, so that the same layout is the same tar.
fn pack(layout: &Path, archive: &Path) -> io::Result<()> {
    let mut tar = Builder::new(BufWriter::new(File::create(archive)?));
    let blobs: io::Result<Vec<PathBuf>> = fs::read_dir(layout.join("blobs/sha256"))?
        .map(|entry| Ok(Path::new("blobs/sha256").join(entry?.file_name())))
        .collect();
    let mut names = blobs?;
    names.extend(["index.json", "oci-layout"].map(PathBuf::from));
    names.sort();
    for folder in ["blobs/", "blobs/sha256/"] {
        tar.append_data(&mut layer::header(EntryType::Directory, 0o755, 0), folder, &[][..])?;
    }
    for name in names {
        let file = File::open(layout.join(&name))?;
        let size = file.metadata()?.len() as usize;
        tar.append_data(&mut layer::header(EntryType::Regular, 0o644, size), name, file)?;
    }
    tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::recipe::recipes;
    use super::*;

    #[test]
    fn an_image_is_the_same_every_time() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let made = folders.each_ref().map(|f| make(recipes(true)[0], b"x", f.path()).unwrap());
        let [one, other] = made.each_ref().map(|m| fs::read(&m.archive).unwrap());
        assert!(one == other);
        assert_eq!((made[0].layers, made[0].files), (60, 60 * 5 + 2 * 59));
    }
}
