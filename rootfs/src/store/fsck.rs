use std::fmt;
use std::fs::File;
use std::path::PathBuf;

use hafen_spec::image::Digest;
use hafen_sys::{CallError, Context};

use super::blob::digest_of;
use super::{Named, Store, StoreError, lock};

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The content of a blob is not what its name says.
    Blob(Digest),
    /// A layer was not on the disk when the machine ended.
    Layer(Digest),
    /// The same, and this container stands on it: a repair leaves it as it is.
    Used(Digest, PathBuf),
    /// A name leads to something that is missing or wrong.
    Name { reference: String, why: String },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(digest) => write!(f, "blob {digest}: its content is another one"),
            Self::Layer(digest) => write!(f, "layer {digest}: not whole"),
            Self::Used(digest, by) => {
                write!(
                    f,
                    "layer {digest}: not whole, and in use by {}: left as it is",
                    by.display()
                )
            }
            Self::Name { reference, why } => write!(f, "{reference}: {why}"),
        }
    }
}

/// What a check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub blobs: usize,
    pub layers: usize,
    pub names: usize,
    pub faults: Vec<Fault>,
    /// Names whose images have to be fetched again.
    pub incomplete: Vec<Named>,
}

impl Store {
    /// Read everything, and compare it with what it should be. With `repair` what is wrong is removed, so that it can be
    /// fetched or unpacked again; but no layer that a container stands on.
    ///
    /// # Errors
    /// Of reading; what is wrong with the store is no error but in the report.
    pub fn check(&self, boot_id: &str, repair: bool) -> Result<Report, StoreError> {
        drop(self.hold()?);
        let _guard = lock::exclusive(&self.root)?;
        // Launches are to look for themselves again.
        self.forget_stacks()?;
        let mut report = Report::default();
        for digest in self.blobs()? {
            report.blobs += 1;
            if self.hash_of(&digest)? != digest {
                report.faults.push(Fault::Blob(digest.clone()));
                if repair {
                    self.remove_blob(&digest)?;
                }
            }
        }
        for chain in self.layers()? {
            report.layers += 1;
            let record = self.layer_record(&chain)?;
            if !record.is_some_and(|r| r.synced || r.boot_id == boot_id) {
                report.faults.push(self.torn(chain, boot_id, repair)?);
            }
        }
        for named in self.all_named()? {
            report.names += 1;
            if let Err(why) = self.is_complete(&named, &report.faults) {
                let fault = Fault::Name { reference: named.reference.clone(), why };
                report.faults.push(fault);
                report.incomplete.push(named);
            }
        }
        Ok(report)
    }

    fn torn(&self, chain: Digest, boot_id: &str, repair: bool) -> Result<Fault, StoreError> {
        if !repair {
            return Ok(Fault::Layer(chain));
        }
        if let Some(container) = self.user_of(&chain, boot_id)? {
            return Ok(Fault::Used(chain, container));
        }
        self.remove_layer(&chain)?;
        Ok(Fault::Layer(chain))
    }

    fn hash_of(&self, digest: &Digest) -> Result<Digest, CallError> {
        let path = self.blob_path(digest);
        let hash = File::open(&path).and_then(|file| digest_of(digest.algorithm(), file));
        hash.call(|| format!("read {}", path.display()))
    }

    /// Are all blobs of the image for this machine here and whole?
    fn is_complete(&self, named: &Named, faults: &[Fault]) -> Result<(), String> {
        let image = self.image(&named.target).map_err(|e| e.to_string())?;
        let config = std::iter::once(&image.manifest.config.digest);
        let layers = image.manifest.layers.iter().map(|layer| &layer.blob.digest);
        for digest in config.chain(layers) {
            if !self.has_blob(digest) || faults.contains(&Fault::Blob(digest.clone())) {
                return Err(format!("{digest} is missing"));
            }
        }
        Ok(())
    }
}
