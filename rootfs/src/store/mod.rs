//! Images on disk, addressed by content, for many processes at once.
//!
//! | path | holds | comes about |
//! |---|---|---|
//! | `blobs/sha256/HEX` | manifests, configurations, packed layers | without a name, then fsync, then named |
//! | `refs/NAME.json` | which manifest or index a name means | replaced as a whole, with fsync |
//! | `layers/sha256-HEX/` | an unpacked layer by its chain id, and what is known of it | in `tmp`, then renamed |
//! | `uses/KEY.json` | the layers that a container stands on | before the container |
//! | `partial/sha256-HEX` | what has come of a blob from a registry | appended, without fsync; then named as a blob |
//! | `upper/BOOT/KEY/` | what a container with `--upper disk` writes | with the container |
//! | `stacks/CHAIN.json` | what a launch has found out about all layers of an image | written by launches; all go before any layer goes |
//! | `tmp/` | what is being made | removed by whoever collects |
//! | `lock` | shared for all who add or read, exclusive for who removes | |
//!
//! So a crash leaves a store that works, and at most something that nothing refers to.

mod blob;
mod collect;
mod content;
mod due;
mod fsck;
pub(crate) mod layer;
pub(crate) mod lock;
mod part;
mod reference;
mod stack;
mod upper;
mod usage;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use hafen_spec::Problems;
use hafen_spec::image::{Digest, Reference};
use hafen_sys::{CallError, Context};

use crate::pack::PackError;
use crate::unpack::UnpackError;

pub use blob::{Expected, Stored};
pub use collect::{Collected, Collecting};
pub use content::{Image, chain_ids};
pub use due::{
    Contents, Disk, Due, Garbage, Item, Policy, Reached, Root, Watermarks, due, garbage,
};
pub use fsck::{Fault, Report};
pub use layer::{LayerRecord, Unpacking};
pub use lock::Guard;
pub use part::Part;
pub use reference::Named;
pub use stack::Stack;
pub use usage::{Use, forget, taken};
pub(crate) use usage::{key, notes};

/// Where the store of this machine is.
pub const DEFAULT_ROOT: &str = "/var/lib/hafen/images";

/// A folder with images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("image {0} is not in the store {1}: fetch it with \"hafen image pull {0}\"")]
    NoImage(String, String),
    #[error("{0} of {1} is not in the store: fetch the image again with \"hafen image pull\"")]
    NoBlob(Digest, &'static str),
    #[error("{0} is pinned: take its pin away with \"hafen image unpin {0}\"")]
    Pinned(String),
    #[error("{what}: {source}")]
    Document { what: String, source: Problems },
    #[error("{what} has the digest {found}, and not {wanted}")]
    Digest { what: String, wanted: Digest, found: Digest },
    #[error("{what} has {found} bytes, and not {wanted}")]
    Size { what: String, wanted: u64, found: u64 },
    #[error("layer {layer}: {source}")]
    Unpack { layer: Digest, source: UnpackError },
    #[error("layer {0} is not whole, and the container {1} stands on it: delete that first")]
    Used(Digest, PathBuf),
    #[error("pack {folder}")]
    Pack { folder: String, source: PackError },
    #[error("{0}")]
    Refused(String),
}

const FOLDERS: [&str; 6] = ["blobs/sha256", "blobs/sha512", "refs", "layers", "uses", "tmp"];

impl Store {
    #[must_use]
    pub const fn at(root: PathBuf) -> Self {
        Self { root }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Make what is missing of the store, and hold it: nothing is removed while the guard lives.
    ///
    /// # Errors
    /// Names the folder or the file.
    pub fn hold(&self) -> Result<Guard, CallError> {
        // Made last of all.
        if self.root.join(lock::FILE).exists() {
            return lock::shared(&self.root);
        }
        for folder in FOLDERS {
            self.make_folder(folder)?;
        }
        lock::shared(&self.root)
    }

    fn make_folder(&self, name: &str) -> Result<(), CallError> {
        let path = self.root.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.call(|| format!("mkdir {}", path.display()))
    }

    fn path(&self, folder: &str, name: &str) -> PathBuf {
        self.root.join(folder).join(name)
    }

    fn no_image(&self, reference: &Reference) -> StoreError {
        StoreError::NoImage(reference.to_string(), self.root.display().to_string())
    }
}

/// Names in a folder; a folder that is not there has none.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, CallError> {
    let call = || format!("read folder {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        answer => answer.call(call)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.call(call)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
