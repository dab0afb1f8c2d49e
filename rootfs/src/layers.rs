//! Looking into a stack of layers without mounting it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use hafen_sys::file::{OpenHow, open_how, resolve};
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::unpack::tree;

/// Account files are small; more is no account file.
const LARGEST: u64 = 1 << 20;

/// A file as an overlay of these layers shows it, topmost first. Links are followed within one layer.
///
/// # Errors
/// Names the layer and the file.
pub fn read(layers: &[PathBuf], path: &str) -> Result<Option<Vec<u8>>, CallError> {
    for layer in layers {
        match look(layer, Path::new(path))? {
            Found::File(file) => {
                let mut bytes = Vec::new();
                let read = file.take(LARGEST).read_to_end(&mut bytes);
                read.call(|| format!("read {path} in {}", layer.display()))?;
                return Ok(Some(bytes));
            }
            Found::Nothing => {}
            Found::Hidden => break,
        }
    }
    Ok(None)
}

enum Found {
    File(File),
    /// Lower layers may have it.
    Nothing,
    /// They may, and it is not seen.
    Hidden,
}

fn look(layer: &Path, path: &Path) -> Result<Found, CallError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(layer, flags, Mode::empty()).call(|| format!("open {}", layer.display()))?;
    let mut hidden = false;
    for part in path.ancestors().collect::<Vec<_>>().into_iter().rev().skip(1) {
        let entry = match in_root(&root, part, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Err(e) if e.is(Errno::ENOENT) || e.is(Errno::ENOTDIR) => {
                return Ok(if hidden { Found::Hidden } else { Found::Nothing });
            }
            answer => answer?,
        };
        let stat = fstat(&entry).call(|| format!("stat {}", part.display()))?;
        if tree::is_whiteout(&stat) {
            return Ok(Found::Hidden);
        }
        let kind = tree::format(&stat);
        hidden |= kind == SFlag::S_IFDIR && is_opaque(&root, part)?;
        // A file in the place of a folder hides what is below that.
        hidden |= part != path && kind == SFlag::S_IFREG;
    }
    let how = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    match in_root(&root, path, how) {
        Err(e) if e.is(Errno::ENOENT) || e.is(Errno::ENOTDIR) => Ok(Found::Hidden),
        answer => Ok(Found::File(File::from(answer?))),
    }
}

fn in_root(root: &OwnedFd, path: &Path, flags: OFlag) -> Result<OwnedFd, CallError> {
    let how = OpenHow {
        flags: u64::from(flags.bits().cast_unsigned()),
        mode: 0,
        resolve: resolve::IN_ROOT | resolve::NO_MAGICLINKS,
    };
    open_how(root, path, how)
}

fn is_opaque(root: &OwnedFd, folder: &Path) -> Result<bool, CallError> {
    let opened = in_root(root, folder, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    tree::is_opaque(opened).call(|| format!("read the attributes of {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_topmost_file_is_read() {
        let stack = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = ["top", "middle", "low"].map(|n| stack.path().join(n)).into();
        for layer in &layers {
            fs::create_dir_all(layer.join("etc")).unwrap();
        }
        fs::write(layers[2].join("etc/passwd"), "low").unwrap();
        let passwd = || read(&layers, "etc/passwd").unwrap().map(|b| String::from_utf8(b).unwrap());
        assert_eq!(passwd().as_deref(), Some("low"));
        fs::write(layers[1].join("etc/passwd"), "middle").unwrap();
        assert_eq!(passwd().as_deref(), Some("middle"));
        let whiteout = layers[0].join("etc/passwd");
        nix::sys::stat::mknod(&whiteout, SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
        assert_eq!(passwd(), None);
        fs::remove_file(whiteout).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(layers[0].join("etc"), "trusted.overlay.opaque", b"y", flags).unwrap();
        assert_eq!(passwd(), None);
        assert_eq!(read(&layers, "etc/group").unwrap(), None);
    }

    #[test]
    fn links_lead_nowhere_else() {
        let layer = tempfile::tempdir().unwrap();
        fs::create_dir(layer.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", layer.path().join("etc/passwd")).unwrap();
        assert!(read(&[layer.path().to_owned()], "etc/passwd").is_err_and(|e| e.is(Errno::ELOOP)));
        std::os::unix::fs::symlink("/etc/shadow", layer.path().join("etc/group")).unwrap();
        assert_eq!(read(&[layer.path().to_owned()], "etc/group").unwrap(), None);
    }
}
