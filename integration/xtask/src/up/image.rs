//! The image that the containers of `up` stand on.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::rootfs;
use crate::command::{self, limited};

pub(crate) const NAME: &str = "localhost/hafen-up:latest";
const LIMIT: Duration = Duration::from_secs(60);

/// Busybox, packed with tar and taken in to a store.
pub(crate) fn make(hafen: &Path, scratch: &Path, store: &Path) -> Result<()> {
    let (folder, tar) = (scratch.join("rootfs"), scratch.join("rootfs.tar"));
    rootfs::make(&folder)?;
    succeed(limited(LIMIT, "tar").arg("-cf").arg(&tar).arg("-C").arg(&folder).arg("."))?;
    let mut import = limited(LIMIT, hafen);
    succeed(import.arg("--images").arg(store).args(["image", "import", "--name", NAME]).arg(&tar))
}

fn succeed(command: &mut Command) -> Result<()> {
    let end = command::run(LIMIT, command)?;
    ensure!(end.success(), "{}: {end}", command::line(command));
    Ok(())
}
