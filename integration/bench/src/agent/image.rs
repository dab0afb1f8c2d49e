//! The image that all run: busybox, made on the spot.

use std::fs;
use std::path::Path;

use super::{Error, says};
use crate::images::layout::{self, Made};
use crate::images::recipe::Recipe;

/// Its name for all of them.
pub const NAME: &str = "docker.io/library/box:latest";

pub fn make(folder: &Path) -> Result<Made, Error> {
    const BUSYBOX: &str = "/bin/busybox";
    let program = fs::read(BUSYBOX).map_err(says("read", Path::new(BUSYBOX)))?;
    fs::create_dir_all(folder).map_err(says("mkdir", folder))?;
    Ok(layout::make(Recipe { name: "box", layers: 1, files: 0 }, &program, folder)?)
}
