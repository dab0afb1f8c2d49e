//! A file system of a folder's own, in memory, which can be full.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// It is taken away when this is dropped.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// On a folder, with `options` as of a tmpfs.
    ///
    /// # Panics
    /// It cannot be mounted.
    #[must_use]
    pub fn mount(folder: &Path, options: &str) -> Self {
        fs::create_dir_all(folder).expect("mkdir");
        let kind = Some("tmpfs");
        mount(kind, folder, kind, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
            .unwrap_or_else(|e| panic!("mount a tmpfs on {}: {e}", folder.display()));
        Self(folder.to_owned())
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Take all the room that there is.
    ///
    /// # Panics
    /// It has more than a test may take.
    pub fn fill(&self) {
        const MOST: usize = 256 << 20;
        let mut filler = File::options().create(true).append(true).open(self.filler());
        let piece = vec![1; 64 << 10];
        // Page by page at the end, so that nothing is left.
        for size in [64 << 10, 4 << 10] {
            let Ok(file) = &mut filler else { return };
            let mut taken = 0;
            while file.write_all(&piece[..size]).is_ok() {
                taken += size;
                assert!(taken < MOST, "{} is never full", self.0.display());
            }
        }
    }

    /// Give it back.
    pub fn free(&self) {
        let _ = fs::remove_file(self.filler());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
