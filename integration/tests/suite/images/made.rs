//! Layouts made byte by byte, as no tool would make them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use hafen_integration::{Test, Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

pub(crate) const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An archive in the making.
pub(crate) struct Tar {
    builder: Builder<Vec<u8>>,
    /// Mode and owner of the next entry, if it has others than usual.
    next: Option<(u32, u64, u64)>,
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self { builder: Builder::new(Vec::new()), next: None }
    }

    /// Mode and owner of the next entry.
    pub(crate) fn of(self, mode: u32, uid: u64, gid: u64) -> Self {
        Self { next: Some((mode, uid, gid)), ..self }
    }

    /// Records before the next entry.
    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.builder.append_pax_extensions(records.iter().copied()).expect("in memory");
        self
    }

    pub(crate) fn null(self, name: &str) -> Self {
        self.entry(name, EntryType::Char, 0o666, "", &[])
    }

    pub(crate) fn file(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        self.entry(name, EntryType::Regular, 0o644, "", text.as_ref())
    }

    pub(crate) fn program(self, name: &str, bytes: &[u8]) -> Self {
        self.entry(name, EntryType::Regular, 0o755, "", bytes)
    }

    pub(crate) fn folder(self, name: &str) -> Self {
        self.entry(name, EntryType::Directory, 0o755, "", &[])
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name, EntryType::Symlink, 0o777, target, &[])
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.entry(name, EntryType::Link, 0o644, target, &[])
    }

    /// The name is written as it is, however bad.
    fn entry(mut self, name: &str, kind: EntryType, mode: u32, target: &str, bytes: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        let raw = header.as_gnu_mut().expect("a GNU header");
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        raw.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        let (mode, uid, gid) = self.next.take().unwrap_or((mode, 0, 0));
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        if kind == EntryType::Char {
            header.set_device_major(1).expect("a GNU header");
            header.set_device_minor(3).expect("a GNU header");
        }
        header.set_mtime(1_700_000_000);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        self.builder.append(&header, bytes).expect("in memory");
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.builder.into_inner().expect("in memory")
    }

    pub(crate) fn layer(self) -> Layer {
        Layer::plain(self.bytes())
    }
}

/// A layer as a manifest tells of it; a test may make it tell something else.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) packed: Vec<u8>,
    pub(crate) media_type: String,
    pub(crate) diff_id: String,
}

impl Layer {
    pub(crate) fn plain(tar: Vec<u8>) -> Self {
        Self { media_type: PLAIN.to_owned(), diff_id: digest(&tar), packed: tar }
    }

    pub(crate) fn gzip(self) -> Self {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&self.packed).expect("in memory");
        let packed = packed.finish().expect("in memory");
        Self { packed, media_type: GZIP.to_owned(), ..self }
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A layout with one image, whose tag is `made`. Its configuration has `config` in it.
pub(crate) fn layout(t: &Test, name: &str, layers: &[Layer], config: &Value) -> PathBuf {
    let folder = t.dir().join(name);
    fs::create_dir_all(folder.join("blobs/sha256")).expect("mkdir");
    let blob = |bytes: &[u8], media_type: &str| {
        let digest = digest(bytes);
        put(&folder, &digest, bytes);
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    };
    let ids: Vec<&String> = layers.iter().map(|layer| &layer.diff_id).collect();
    let config = json!({
        "architecture": architecture(), "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = blob(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<Value> = layers.iter().map(|l| blob(&l.packed, &l.media_type)).collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut manifest =
        blob(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "made" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(folder.join("index.json"), index.to_string()).expect("written");
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
    folder
}

pub(crate) fn put(layout: &Path, digest: &str, bytes: &[u8]) {
    fs::write(layout.join("blobs").join(digest.replace(':', "/")), bytes).expect("written");
}

pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// The lowest layer: busybox, with all of its programs that tests run.
pub(crate) fn busybox(t: &Test) -> Layer {
    let rootfs = t.bundle().rootfs();
    let program = fs::read(rootfs.join("bin/busybox")).expect("busybox");
    let mut tar = ["bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"]
        .into_iter()
        .fold(Tar::new(), Tar::folder)
        .program("bin/busybox", &program);
    for name in
        ["cat", "echo", "find", "grep", "id", "ls", "pwd", "sh", "sleep", "stat", "true", "wc"]
    {
        tar = tar.link(&format!("bin/{name}"), "bin/busybox");
    }
    let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n";
    tar.file("etc/passwd", passwd).file("etc/group", "root:x:0:\nlog:x:4:web\n").layer()
}
