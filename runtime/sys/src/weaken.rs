//! Defences that a test leaves out, to see its attack succeed without them.
//!
//! With the feature `weaken`, which no release can have, the variable `HAFEN_WEAKEN` names them, with commas between.
//! The program reads it once at its start; between clone and exec only the result is looked at.

#[cfg(all(feature = "weaken", not(debug_assertions)))]
compile_error!("the feature `weaken` leaves defences out: it is for debug builds only");

/// A defence with a test that proves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defence {
    /// The runtime runs from a copy of itself that cannot be written to.
    SelfExe,
    /// No descriptor but those asked for stays open.
    Descriptors,
    /// The working directory is found inside the root, and has a name there.
    WorkingDirectory,
    /// Paths of the container are resolved inside its root.
    ResolveInRoot,
    /// What covers masked files is the host's null device.
    MaskSource,
    /// The terminal goes over a file of its own.
    ConsoleTarget,
    /// Files of procfs are opened through the host's, and belong to it.
    ProcfsWrites,
    /// The inheritable set is what the bundle says.
    Inheritable,
    /// Nobody may look into the process before it is the user's program.
    Dumpable,
    /// Groups of the caller go.
    Setgroups,
    /// `root.path` is no symlink, and neither is the place of a proc or sysfs.
    RootSymlink,
    /// A cgroup is named without `..`.
    CgroupPath,
}

/// Was it left out?
#[cfg(not(feature = "weaken"))]
#[must_use]
pub const fn left_out(_: Defence) -> bool {
    false
}

/// Nothing can be left out of this program.
///
/// # Errors
/// None.
#[cfg(not(feature = "weaken"))]
pub const fn read_variable() -> Result<(), String> {
    Ok(())
}

#[cfg(feature = "weaken")]
pub use enabled::{left_out, read_variable};

#[cfg(feature = "weaken")]
mod enabled {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::Defence;

    const NAMES: [(&str, Defence); 12] = [
        ("self-exe", Defence::SelfExe),
        ("descriptors", Defence::Descriptors),
        ("cwd", Defence::WorkingDirectory),
        ("resolve-in-root", Defence::ResolveInRoot),
        ("mask-source", Defence::MaskSource),
        ("console-target", Defence::ConsoleTarget),
        ("procfs-writes", Defence::ProcfsWrites),
        ("inheritable", Defence::Inheritable),
        ("dumpable", Defence::Dumpable),
        ("setgroups", Defence::Setgroups),
        ("root-symlink", Defence::RootSymlink),
        ("cgroup-path", Defence::CgroupPath),
    ];

    static LEFT_OUT: AtomicU32 = AtomicU32::new(0);

    /// Was it left out? Neither allocates nor reads the environment.
    #[must_use]
    pub fn left_out(defence: Defence) -> bool {
        LEFT_OUT.load(Ordering::Relaxed) & bit(defence) != 0
    }

    const fn bit(defence: Defence) -> u32 {
        1 << defence as u32
    }

    /// Read `HAFEN_WEAKEN`.
    ///
    /// # Errors
    /// A name that is none, and all that are: a test with a slip of the pen must not pass.
    pub fn read_variable() -> Result<(), String> {
        let text = std::env::var("HAFEN_WEAKEN").unwrap_or_default();
        for name in text.split(',').filter(|name| !name.is_empty()) {
            let Some((_, defence)) = NAMES.iter().find(|(known, _)| *known == name) else {
                let known = NAMES.map(|(name, _)| name).join(", ");
                return Err(format!("HAFEN_WEAKEN={text}: {name:?} is none of {known}"));
            };
            LEFT_OUT.fetch_or(bit(*defence), Ordering::Relaxed);
        }
        Ok(())
    }
}
