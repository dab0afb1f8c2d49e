//! Layers of archives that are written byte by byte, unpacked on a real file system. They need root.

mod entries;
mod hostile;
mod round_trip;
mod settling;
mod sparse;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tar::Header;
use tempfile::TempDir;

use super::{Bounds, UnpackError, Unpacked, unpack};

const PLENTY: Bounds = Bounds { bytes: 1 << 30, entries: 1 << 20 };

/// An archive; chain what is in it.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: u8, name: &str, content: &[u8], edit: impl Fn(&mut Header)) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkflag = [kind];
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1000);
        edit(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.bytes(content)
    }

    /// Padded to whole blocks.
    fn bytes(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(b'0', name, content.as_bytes(), |_| {})
    }

    fn folder(self, name: &str, mode: u32) -> Self {
        self.entry(b'5', name, b"", |header| header.set_mode(mode))
    }

    fn leading(self, kind: u8, name: &str, target: &str) -> Self {
        self.entry(kind, name, b"", |header| {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        })
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.leading(b'2', name, target)
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.leading(b'1', name, target)
    }

    fn device(self, kind: u8, name: &str, major: u32, minor: u32) -> Self {
        self.entry(kind, name, b"", |header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        })
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.records(b'x', records)
    }

    fn records(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let all: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.entry(kind, "PaxHeaders/0", &all, |_| {})
    }

    fn end(self) -> Self {
        self.bytes(&[0; 1024])
    }
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..8).map(|digits| rest + digits).find(|l| l.to_string().len() + rest == *l);
    [format!("{} {key}=", length.unwrap()).as_bytes(), value, b"\n"].concat()
}

struct Layer {
    place: TempDir,
    unpacked: Unpacked,
}

impl Layer {
    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn stat(&self, name: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn has(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path(name)).is_ok()
    }

    fn mode(&self, name: &str) -> u32 {
        self.stat(name).mode() & 0o7777
    }

    fn attribute(&self, name: &str, key: &str) -> Option<Vec<u8>> {
        let mut value = [0; 256];
        let size = rustix::fs::lgetxattr(self.path(name), key, &mut value).ok()?;
        Some(value[..size].to_vec())
    }

    fn is_opaque(&self, name: &str) -> bool {
        self.attribute(name, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }

    fn is_whiteout(&self, name: &str) -> bool {
        let stat = self.stat(name);
        (stat.mode(), stat.rdev()) == (0o20000, 0)
    }

    fn implied(&self) -> Vec<&str> {
        self.unpacked.implied.iter().map(|path| path.to_str().unwrap()).collect()
    }

    fn fd(&self) -> OwnedFd {
        open(self.place.path())
    }
}

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

fn place() -> TempDir {
    assert!(nix::unistd::geteuid().is_root(), "layers are unpacked by root");
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn try_bounded(archive: &[u8], bounds: Bounds) -> Result<Layer, UnpackError> {
    let place = place();
    let unpacked = unpack(archive, &open(place.path()), bounds)?;
    Ok(Layer { place, unpacked })
}

fn layer(tar: Tar) -> Layer {
    try_bounded(&tar.end().0, PLENTY).unwrap()
}

/// Why the archive is refused, with the kernel's answer.
fn refusal(tar: Tar) -> String {
    said(try_bounded(&tar.end().0, PLENTY))
}

fn said(answer: Result<Layer, UnpackError>) -> String {
    let error = answer.err().expect("the archive should have been refused");
    let source = std::error::Error::source(&error).map(ToString::to_string);
    [Some(error.to_string()), source].into_iter().flatten().collect::<Vec<_>>().join(": ")
}
