//! The documents of an image (image-spec 1.1, and Docker's of schema 2, which differ in names only) as plain data.

mod config;
mod digest;
mod reference;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Problems;

pub use config::{Config, Defaults};
pub use digest::Digest;
pub use reference::Reference;

/// What a manifest or an index refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blob {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}

/// How the tar of a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub blob: Blob,
    pub compression: Compression,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub config: Blob,
    /// From the lowest to the topmost.
    pub layers: Vec<Layer>,
}

/// What an image was built for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// One manifest of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub blob: Blob,
    pub platform: Option<Platform>,
    /// `org.opencontainers.image.ref.name` of an OCI layout.
    pub name: Option<String>,
}

/// What a digest of an image may lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Vec<Choice>),
}

pub mod media_type {
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
}

/// Layers that this can unpack. What must not be distributed (a name of Docker's and of old OCI versions) is a layer
/// like any other.
const LAYERS: [(&str, Compression); 9] = [
    (media_type::LAYER, Compression::None),
    ("application/vnd.oci.image.layer.v1.tar+gzip", Compression::Gzip),
    ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", Compression::None),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Compression::Gzip),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Compression::Zstd),
    ("application/vnd.docker.image.rootfs.diff.tar", Compression::None),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Compression::Gzip),
];
const CONFIGS: [&str; 2] = [media_type::CONFIG, media_type::DOCKER_CONFIG];
/// Far more than any tool makes; an overlay takes 500 lower layers (Linux, `OVL_MAX_STACK`).
const MOST_LAYERS: usize = 500;

impl Compression {
    /// By the first bytes, for archives that do not say it.
    #[must_use]
    pub fn of(beginning: &[u8]) -> Self {
        const GZIP: [u8; 2] = [0x1f, 0x8b];
        const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
        match beginning {
            b if b.starts_with(&GZIP) => Self::Gzip,
            b if b.starts_with(&ZSTD) => Self::Zstd,
            _ => Self::None,
        }
    }

    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::None => LAYERS[0].0,
            Self::Gzip => LAYERS[1].0,
            Self::Zstd => LAYERS[2].0,
        }
    }
}

/// Read a manifest or an index. `media_type` is what its descriptor says it is, if it was reached through one.
///
/// # Errors
/// Names each field that is wrong, of a kind that is not known, or of a digest that is not understood.
pub fn document(bytes: &[u8], media_type: Option<&str>) -> Result<Document, Problems> {
    let value: Value = json(bytes, "manifest")?;
    let own = value["mediaType"].as_str();
    if let (Some(own), Some(told)) = (own, media_type)
        && own != told
    {
        return Err(problem("mediaType", format!("is {own}, and its descriptor says {told}")));
    }
    match own.or(media_type) {
        Some(media_type::INDEX | media_type::DOCKER_INDEX) => index(value),
        Some(media_type::MANIFEST | media_type::DOCKER_MANIFEST) => manifest(value),
        Some(other) => Err(problem("mediaType", format!("{other} is no image"))),
        None if value.get("manifests").is_some() => index(value),
        None => manifest(value),
    }
}

/// What a manifest or an index says that it is.
#[must_use]
pub fn own_media_type(bytes: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    value["mediaType"].as_str().map(str::to_owned)
}

fn manifest(value: Value) -> Result<Document, Problems> {
    let parsed: ImageManifest = typed(value, "manifest")?;
    let mut problems = Problems::default();
    let config = blob(parsed.config(), "config", &mut problems);
    if !CONFIGS.contains(&config.as_ref().map_or("", |c| c.media_type.as_str())) {
        let found = parsed.config().media_type();
        problems.add("config.mediaType", format!("{found} is not the configuration of an image"));
    }
    if parsed.layers().len() > MOST_LAYERS {
        problems.add("layers", format!("{} are more than {MOST_LAYERS}", parsed.layers().len()));
    }
    let layer = |(i, descriptor)| {
        let field = format!("layers[{i}]");
        let blob = blob(descriptor, &field, &mut problems)?;
        let known = LAYERS.iter().find(|(name, _)| *name == blob.media_type);
        if known.is_none() {
            problems.add(format!("{field}.mediaType"), format!("{} is no layer", blob.media_type));
        }
        known.map(|(_, compression)| Layer { blob, compression: *compression })
    };
    let layers: Vec<Layer> = parsed.layers().iter().enumerate().filter_map(layer).collect();
    match config {
        Some(config) => problems.into_result(Document::Manifest(Manifest { config, layers })),
        None => Err(problems),
    }
}

fn index(value: Value) -> Result<Document, Problems> {
    const NAME: &str = "org.opencontainers.image.ref.name";
    let parsed: ImageIndex = typed(value, "index")?;
    let mut problems = Problems::default();
    let choice = |(i, descriptor): (usize, &Descriptor)| {
        let platform = descriptor.platform().as_ref().map(|p| Platform {
            os: p.os().to_string(),
            architecture: p.architecture().to_string(),
            variant: p.variant().clone(),
        });
        let name = descriptor.annotations().as_ref().and_then(|a| a.get(NAME).cloned());
        let blob = blob(descriptor, &format!("manifests[{i}]"), &mut problems)?;
        Some(Choice { blob, platform, name })
    };
    let choices = parsed.manifests().iter().enumerate().filter_map(choice).collect();
    problems.into_result(Document::Index(choices))
}

fn blob(descriptor: &Descriptor, field: &str, problems: &mut Problems) -> Option<Blob> {
    match descriptor.digest().to_string().parse() {
        Ok(digest) => Some(Blob {
            media_type: descriptor.media_type().to_string(),
            digest,
            size: descriptor.size(),
        }),
        Err(reason) => {
            problems.add(format!("{field}.digest"), reason);
            None
        }
    }
}

impl Platform {
    /// Of the program that asks.
    #[must_use]
    pub fn own() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// Does an image for `self` run on `machine`? A variant that is not told fits.
    #[must_use]
    pub fn fits(&self, machine: &Self) -> bool {
        let variant = self.variant.is_none() || self.variant == machine.variant;
        self.os == machine.os && self.architecture == machine.architecture && variant
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// The manifest of an index that is for this machine.
///
/// # Errors
/// Names the platforms that there are.
pub fn choose<'a>(choices: &'a [Choice], machine: &Platform) -> Result<&'a Choice, Problems> {
    let fitting = choices.iter().find(|c| c.platform.as_ref().is_some_and(|p| p.fits(machine)));
    // An index without platforms, as in most OCI layouts, has one image.
    let only = match choices {
        [one] if one.platform.is_none() => Some(one),
        _ => None,
    };
    fitting.or(only).ok_or_else(|| {
        let there: Vec<String> =
            choices.iter().filter_map(|c| Some(c.platform.as_ref()?.to_string())).collect();
        problem("manifests", format!("none is for {machine}; there are: {}", there.join(", ")))
    })
}

fn json(bytes: &[u8], what: &str) -> Result<Value, Problems> {
    serde_json::from_slice(bytes).map_err(|e| problem(what, format!("not JSON: {e}")))
}

fn typed<T: serde::de::DeserializeOwned>(value: Value, what: &str) -> Result<T, Problems> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let (path, reason) = (e.path().to_string(), e.into_inner().to_string());
        problem(if path == "." { what } else { &path }, reason)
    })
}

fn problem(field: &str, reason: impl Into<String>) -> Problems {
    let mut problems = Problems::default();
    problems.add(field, reason);
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": DIGEST, "size": 7 })
    }

    fn read(value: &Value) -> Result<Document, Problems> {
        document(value.to_string().as_bytes(), None)
    }

    #[test]
    fn a_manifest_of_either_kind() {
        for (own, config, layer) in [
            (media_type::MANIFEST, media_type::CONFIG, LAYERS[2].0),
            (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG, LAYERS[7].0),
        ] {
            let value = json!({ "schemaVersion": 2, "mediaType": own,
                "config": descriptor(config), "layers": [descriptor(layer), descriptor(LAYERS[0].0)] });
            let Ok(Document::Manifest(manifest)) = read(&value) else { panic!("{value}") };
            assert_eq!(manifest.layers.len(), 2);
            assert_ne!(manifest.layers[0].compression, Compression::None);
            assert_eq!(manifest.config.size, 7);
        }
    }

    #[test]
    fn what_is_foreign_is_named() {
        let value = json!({ "schemaVersion": 2, "config": descriptor("text/plain"),
            "layers": [descriptor("application/zip")] });
        let problems = read(&value).unwrap_err().to_string();
        assert!(problems.contains("config.mediaType: text/plain"), "{problems}");
        assert!(problems.contains("layers[0].mediaType: application/zip"), "{problems}");
        let sums = json!({ "schemaVersion": 2, "config": descriptor(media_type::CONFIG),
            "layers": [{ "mediaType": LAYERS[0].0, "digest": "md5:00", "size": 1 }] });
        assert!(read(&sums).unwrap_err().to_string().contains("layers[0].digest"));
        let other = json!({ "schemaVersion": 2, "mediaType": "application/vnd.cncf.helm" });
        assert!(read(&other).is_err());
        assert!(document(b"{", None).is_err());
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type::MANIFEST,
            "config": descriptor(media_type::CONFIG), "layers": [] });
        assert!(document(manifest.to_string().as_bytes(), Some(media_type::INDEX)).is_err());
    }

    #[test]
    fn the_manifest_for_this_machine() {
        let of = |architecture: &str| {
            let mut descriptor = descriptor(media_type::MANIFEST);
            descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
            descriptor
        };
        let index = json!({ "schemaVersion": 2, "manifests": [of("riscv64"), of("amd64")] });
        let Ok(Document::Index(choices)) = read(&index) else { panic!("{index}") };
        let machine = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        assert_eq!(choose(&choices, &machine).unwrap(), &choices[1]);
        let other = Platform { architecture: "arm64".into(), ..machine };
        let told = choose(&choices, &other).unwrap_err().to_string();
        assert!(told.contains("linux/riscv64, linux/amd64"), "{told}");
    }

    #[test]
    fn kinds_of_archives() {
        assert_eq!(Compression::of(&[0x1f, 0x8b, 8]), Compression::Gzip);
        assert_eq!(Compression::of(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
        assert_eq!(Compression::of(b"./"), Compression::None);
        assert_eq!(Compression::of(b""), Compression::None);
    }
}
