//! From a layer's archive to a folder that overlayfs takes as a lower layer.
//!
//! Layers may be unpacked side by side: [`unpack`] needs nothing but its stream. What depends on the layers below
//! is left over and done by [`settle`], from the lowest layer upwards.

mod archive;
mod error;
mod layer;
mod name;
mod number;
mod pax;
mod settle;
mod sparse;
#[cfg(test)]
mod tests;
pub(crate) mod tree;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use error::UnpackError;
pub use settle::{Copied, settle};

/// What a layer may cost at most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of content that is written, and of each file's size with its holes.
    pub bytes: u64,
    /// Of the stream, and the folders that they imply.
    pub entries: u64,
}

/// Enough for the largest images, and an end for what unpacks for ever.
impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: 32 << 30, entries: 4_000_000 }
    }
}

/// What is known after one layer's stream has been read; the rest is decided by the layers below it ([`settle`]).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Unpacked {
    pub bytes: u64,
    pub entries: u64,
    /// Folders that the stream did not describe but had entries in, relative, parents first.
    /// `.` is the layer's own folder, which is there without entries as well.
    pub implied: Vec<PathBuf>,
    /// Hard links whose target is in no earlier entry of this layer: (link, target), in order.
    pub pending_links: Vec<(PathBuf, PathBuf)>,
}

/// Write the stream of one layer (an uncompressed tar) into `folder`, an empty folder that becomes one lower layer
/// of an overlay. What follows the archive's end marker stays in the stream.
///
/// # Errors
/// Names the entry. The folder is of no use then.
pub fn unpack(
    stream: impl Read,
    folder: &OwnedFd,
    bounds: Bounds,
) -> Result<Unpacked, UnpackError> {
    layer::Layer::new(folder, bounds)?.read(stream)
}
