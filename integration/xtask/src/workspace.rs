//! Where things are, and the programs that come with the repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The repository.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// Cargo's folder of `debug` and `release` for this machine's target: this program is in its `debug`.
pub(crate) fn target() -> Result<PathBuf> {
    let here = std::env::current_exe().context("read /proc/self/exe")?;
    let folder = here.ancestors().nth(2);
    folder.map(Path::to_owned).with_context(|| format!("no target folder above {}", here.display()))
}

/// The cargo that started this program.
pub(crate) fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// `integration/vm/vm-run`.
pub(crate) fn vm_run() -> PathBuf {
    root().join("integration/vm/vm-run")
}

/// What is delivered, built together: one alone has fewer features of what both stand on.
pub(crate) const PRODUCT: &[&str] = &["hafen", "hafen-oci"];

/// `cargo build --release` of one package or more.
pub(crate) fn build_release(packages: &[&str]) -> Result<()> {
    let mut command = Command::new(cargo());
    command.current_dir(root()).args(["build", "--release"]);
    command.args(packages.iter().flat_map(|package| ["-p", package]));
    let status = command.status().context("run cargo build")?;
    anyhow::ensure!(status.success(), "cargo build --release of {}: {status}", packages.join(", "));
    Ok(())
}
