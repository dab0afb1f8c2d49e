//! `--upper`: what takes the changes of a container without a bundle.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hafen_rootfs::store::Store;
use hafen_rootfs::{Scratch, scratch};
use hafen_spec::plan::Tmpfs;
use hafen_sys::file::boot_id;
use hafen_sys::{CallError, Context};
use nix::sys::stat::stat;

use crate::{Error, size};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upper {
    pub medium: Medium,
    /// In bytes.
    pub size: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Memory of the container's own.
    Tmpfs,
    /// The file system of the image store.
    Disk,
}

impl FromStr for Upper {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (medium, size) = match text.split_once(':') {
            Some((medium, size)) => (medium, Some(size)),
            None => (text, None),
        };
        let medium = match medium {
            "tmpfs" => Medium::Tmpfs,
            "disk" => Medium::Disk,
            _ => return Err("must be tmpfs, tmpfs:SIZE, disk or disk:SIZE".to_owned()),
        };
        let bytes = |text: &str| size::bytes(text).and_then(|n| u64::try_from(n).ok());
        let known = |text| bytes(text).ok_or_else(|| format!("{text:?} is not a size as 64M"));
        Ok(Self { medium, size: size.map(known).transpose()? })
    }
}

impl fmt::Display for Upper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.medium {
            Medium::Tmpfs => "tmpfs",
            Medium::Disk => "disk",
        })?;
        self.size.map_or(Ok(()), |size| write!(f, ":{size}"))
    }
}

impl Upper {
    /// Is it held to its size by the number that its files carry?
    pub(crate) const fn has_quota(self) -> bool {
        matches!(self, Self { medium: Medium::Disk, size: Some(_) })
    }
}

/// What was asked for, and where the disk is.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) upper: Option<Upper>,
    pub(crate) store: Store,
}

impl Place {
    /// The folder of the upper layer over `lower`, for the container with this state folder. Only looks.
    ///
    /// # Errors
    /// What was asked for and this host, or this place, does not have.
    pub(crate) fn scratch(&self, state: &Path, lower: &Path) -> Result<Scratch, Error> {
        let own = state.join("scratch");
        let (path, limit, tmpfs) = match self.upper {
            None => {
                let inside = lies_inside(&own, lower)?;
                (own, None, inside.then(Tmpfs::default))
            }
            Some(Upper { medium: Medium::Tmpfs, size }) => (own, None, Some(Tmpfs { size })),
            Some(upper) => {
                let path = self.store.upper_path(&boot_id()?, state);
                check(upper, &path, lower)?;
                (path, upper.size, None)
            }
        };
        Ok(Scratch { path, limit, tmpfs, short_names: false })
    }
}

fn check(upper: Upper, path: &Path, lower: &Path) -> Result<(), Error> {
    let folder = scratch::existing(path);
    let place = folder.display();
    if lies_inside(&real(path)?, lower)? {
        return Err(Error::Refused(format!(
            "--upper {upper}: {place} lies inside the root file system {}, which an overlay only reads: \
             name a folder elsewhere with --images, or take --upper tmpfs",
            lower.display()
        )));
    }
    if upper.size.is_none() || scratch::can_limit(folder)? {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "--upper {upper}: {place} is on {}, which enforces no project quota here: \
         put it on ext4 or XFS mounted with prjquota (--images), or take --upper tmpfs:SIZE",
        scratch::file_system(folder)?
    )))
}

/// The path without links, as far as it is there.
fn real(path: &Path) -> Result<PathBuf, CallError> {
    let folder = scratch::existing(path);
    let known = std::fs::canonicalize(folder).call(|| format!("open {}", folder.display()))?;
    Ok(known.join(path.strip_prefix(folder).unwrap_or(Path::new(""))))
}

/// An overlay refuses an upper layer below its lower one on the same file system (ELOOP).
fn lies_inside(scratch: &Path, lower: &Path) -> Result<bool, CallError> {
    if !scratch.starts_with(lower) {
        return Ok(false);
    }
    let device =
        |path: &Path| stat(path).map(|s| s.st_dev).call(|| format!("stat {}", path.display()));
    Ok(device(scratch::existing(scratch))? == device(lower)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upper(text: &str) -> Result<Upper, String> {
        text.parse()
    }

    #[test]
    fn a_medium_with_or_without_a_size() {
        let of = |medium, size| Ok(Upper { medium, size });
        assert_eq!(upper("tmpfs"), of(Medium::Tmpfs, None));
        assert_eq!(upper("disk"), of(Medium::Disk, None));
        assert_eq!(upper("tmpfs:8M"), of(Medium::Tmpfs, Some(8 << 20)));
        assert_eq!(upper("disk:4096"), of(Medium::Disk, Some(4096)));
        assert_eq!(upper("disk:8M").unwrap().to_string(), "disk:8388608");
    }

    #[test]
    fn everything_else_is_refused_in_words() {
        for wrong in ["", "ram", "Disk", ":8M", "disk=8M"] {
            assert!(upper(wrong).unwrap_err().contains("must be tmpfs"), "{wrong}");
        }
        for wrong in ["tmpfs:", "disk:-1", "disk:0", "tmpfs:8X", "disk:8M:8M"] {
            assert!(upper(wrong).unwrap_err().contains("is not a size"), "{wrong}");
        }
    }

    #[test]
    fn the_upper_layer_leaves_the_lower_one() {
        let root = std::env::current_dir().unwrap();
        assert!(lies_inside(&root.join("a/b"), &root).unwrap());
        assert!(!lies_inside(Path::new("/proc/x"), Path::new("/")).unwrap());
        assert!(!lies_inside(&root, Path::new("/proc")).unwrap());
    }
}
