//! The programs under test and beside it, and waiting.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A program of this workspace that the suite runs, never links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `hafen-oci`, the one under test.
    Oci,
    /// The same as it is given to people: the release build.
    Shipped,
    /// `hafen`, which a person uses.
    Hafen,
    /// `hafen-inside`, which runs in the containers.
    Inside,
    /// `hafen-reference`, the same bundles through another engine.
    Reference,
    /// `hafen-without`, which takes system calls away from another program.
    Without,
}

impl Program {
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Oci => ("HAFEN_OCI", "hafen-oci"),
            Self::Shipped => ("HAFEN_OCI_SHIPPED", "../release/hafen-oci"),
            Self::Hafen => ("HAFEN", "hafen"),
            Self::Inside => ("HAFEN_INSIDE", "hafen-inside"),
            Self::Reference => ("HAFEN_REFERENCE", "hafen-reference"),
            Self::Without => ("HAFEN_WITHOUT", "hafen-without"),
        }
    }

    /// Where the program is: its variable, or the target folder that the test program itself was built into.
    ///
    /// # Errors
    /// A sentence that says where it was looked for and how to make it.
    pub fn find(self) -> Result<PathBuf, String> {
        let (variable, name) = self.names();
        if let Some(path) = std::env::var_os(variable).map(PathBuf::from) {
            let path = std::path::absolute(&path).unwrap_or(path);
            return if path.is_file() {
                Ok(path)
            } else {
                Err(format!("{variable}={}: no such file", path.display()))
            };
        }
        let here = std::env::current_exe().map_err(|e| format!("/proc/self/exe: {e}"))?;
        // target/debug/deps/suite-HASH -> target/debug/NAME
        let folders = here.ancestors().skip(1).take(2);
        folders.map(|folder| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
            format!("no {name} beside {}: build it, or set {variable}", here.display())
        })
    }
}

/// A program on `PATH`, or in the folders of an administrator.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|folder| folder.join(name)).find(|p| p.is_file())
}

/// Debian's statically linked busybox.
pub(crate) fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|p| is_static(p))
}

/// No program header names an interpreter (`PT_INTERP`, `elf(5)`).
fn is_static(path: &Path) -> bool {
    std::fs::read(path)
        .is_ok_and(|bytes| !bytes[..bytes.len().min(4096)].windows(6).any(|w| w == b"/ld-li"))
}

/// A time limit, stretched for machines that are slow in a known way (an emulated one).
#[must_use]
pub fn patience(limit: Duration) -> Duration {
    let factor = match std::env::var("HAFEN_PATIENCE") {
        Ok(text) => text.parse().unwrap_or(1.0),
        Err(_) if std::env::var("NEEDS").is_ok_and(|n| n.starts_with("vm")) => 6.0,
        Err(_) => 1.0,
    };
    limit.mul_f64(factor)
}

/// Asks again and again until `found` gives a value; `None` after `limit` (stretched by [`patience`]).
pub fn wait_until<T>(limit: Duration, mut found: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patience(limit);
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = found() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
