//! The image that the containers of `up` stand on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::rootfs;
use crate::command::{self, limited};

pub(crate) const NAME: &str = "localhost/hafen-up:latest";
const LIMIT: Duration = Duration::from_secs(60);

/// A store of its own, which goes with the scratch folder.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) store: PathBuf,
}

impl Image {
    /// Busybox, packed with tar and taken in.
    pub(crate) fn make(hafen: &Path, scratch: &Path) -> Result<Self> {
        let (folder, tar) = (scratch.join("rootfs"), scratch.join("rootfs.tar"));
        rootfs::make(&folder)?;
        succeed(limited(LIMIT, "tar").arg("-cf").arg(&tar).arg("-C").arg(&folder).arg("."))?;
        let store = scratch.join("images");
        let mut import = limited(LIMIT, hafen);
        succeed(
            import.arg("--images").arg(&store).args(["image", "import", "--name", NAME]).arg(&tar),
        )?;
        Ok(Self { store })
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let end = command::run(LIMIT, command)?;
    ensure!(end.success(), "{}: {end}", command::line(command));
    Ok(())
}
