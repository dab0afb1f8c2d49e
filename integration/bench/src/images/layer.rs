//! One layer as a tar, packed with gzip.

use std::io::{self, Write};

use fastrand::Rng;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::recipe::Entry;

/// 2023-11-14, whenever the image is made.
const MODIFIED: u64 = 1_700_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) digest: String,
    pub(crate) size: u64,
    /// Digest of the tar.
    pub(crate) diff_id: String,
    /// Length of the tar.
    pub(crate) unpacked: u64,
}

/// Writes the layer to `to`. `program` is what containers run.
pub(crate) fn write(
    entries: &[Entry],
    seed: u64,
    program: &[u8],
    to: impl Write,
) -> io::Result<Layer> {
    let packed = GzEncoder::new(Hashed::new(to), Compression::default());
    let mut tar = Builder::new(Hashed::new(packed));
    let mut rng = Rng::with_seed(seed);
    let words = vocabulary();
    for entry in entries {
        append(&mut tar, entry, program, &mut |size| content(size, &words, &mut rng))?;
    }
    let (packed, diff_id, unpacked) = tar.into_inner()?.finish();
    let (mut to, digest, size) = packed.finish()?.finish();
    to.flush()?;
    Ok(Layer { digest, size, diff_id, unpacked })
}

fn append(
    tar: &mut Builder<impl Write>,
    entry: &Entry,
    program: &[u8],
    content: &mut dyn FnMut(usize) -> Vec<u8>,
) -> io::Result<()> {
    match entry {
        Entry::Folder(name) => {
            tar.append_data(&mut header(EntryType::Directory, 0o755, 0), name, &[][..])
        }
        Entry::File { name, size } => {
            let mut header = header(EntryType::Regular, 0o644, *size);
            tar.append_data(&mut header, name, &*content(*size))
        }
        Entry::Program(name) => {
            let mut header = header(EntryType::Regular, 0o755, program.len());
            tar.append_data(&mut header, name, program)
        }
        Entry::Symlink { name, target } => {
            tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), name, target)
        }
        Entry::HardLink { name, target } => {
            tar.append_link(&mut header(EntryType::Link, 0o644, 0), name, target)
        }
    }
}

pub(super) fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MODIFIED);
    header.set_size(size as u64);
    header
}

fn vocabulary() -> Vec<Vec<u8>> {
    let mut rng = Rng::with_seed(0);
    (0..256)
        .map(|_| {
            let length = rng.usize(3..12);
            (0..length).map(|_| rng.lowercase() as u8).collect()
        })
        .collect()
}

/// Words, and noise between them, so that gzip makes a good third of it, as of programs and texts.
fn content(size: usize, words: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 16);
    while bytes.len() < size {
        if rng.u8(..) < 32 {
            bytes.extend(rng.u128(..).to_le_bytes());
        } else {
            bytes.extend_from_slice(&words[rng.usize(..words.len())]);
        }
    }
    bytes.truncate(size);
    bytes
}

/// Passes on what is written, and hashes and counts it.
struct Hashed<W> {
    to: W,
    hash: Sha256,
    length: u64,
}

impl<W> Hashed<W> {
    fn new(to: W) -> Self {
        Self { to, hash: Sha256::new(), length: 0 }
    }

    fn finish(self) -> (W, String, u64) {
        (self.to, hex(&self.hash.finalize()), self.length)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

pub(super) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::recipe::recipes;
    use super::*;

    fn made(layer: u32) -> (Layer, Vec<u8>) {
        let mut packed = Vec::new();
        let entries = recipes(true)[0].entries(layer);
        let layer = write(&entries, layer.into(), b"program", &mut packed).unwrap();
        (layer, packed)
    }

    #[test]
    fn a_layer_is_the_same_every_time() {
        assert_eq!(made(1), made(1));
        assert_ne!(made(1).0.diff_id, made(2).0.diff_id);
    }

    #[test]
    fn digests_and_lengths_are_those_of_the_bytes() {
        let (layer, packed) = made(0);
        assert_eq!((layer.size, layer.digest), (packed.len() as u64, digest(&packed)));
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&*packed).read_to_end(&mut tar).unwrap();
        assert_eq!((layer.unpacked, layer.diff_id), (tar.len() as u64, digest(&tar)));
    }

    #[test]
    fn content_can_be_packed_somewhat() {
        let tar = made(3);
        let share = tar.0.size as f64 / tar.0.unpacked as f64;
        assert!((0.2..0.6).contains(&share), "{share}");
    }
}
