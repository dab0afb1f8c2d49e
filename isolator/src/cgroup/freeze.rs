use std::path::Path;
use std::time::Duration;

use hafen_sys::{CallError, Context};
use nix::errno::Errno;

use super::folder::Folder;
use super::processes::{names_of, processes, wait_events};

const FILE: &str = "cgroup.freeze";

/// Tell the kernel to stop every process in a folder of the cgroup2 tree and below it (`true`), or to let them go on.
/// They stop in their own time: [`wait_frozen`].
///
/// # Errors
/// Names the value and the file.
pub fn freeze(path: &Path, frozen: bool) -> Result<(), CallError> {
    let folder = Folder::open(path).call(|| format!("open {}", path.display()))?;
    folder.write(FILE, if frozen { "1" } else { "0" })
}

/// Was the folder itself told to stop? One above it may be frozen as well, which is somebody else's business.
///
/// # Errors
/// Names the file. A folder that is gone is not frozen.
pub fn is_frozen(path: &Path) -> Result<bool, CallError> {
    match Folder::open(path).and_then(|folder| folder.read(FILE)) {
        Ok(text) => Ok(text.trim() == "1"),
        // Removed; or the root of the tree, which cannot be frozen.
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(false),
        Err(e) => Err(e).call(|| format!("read {}/{FILE}", path.display())),
    }
}

/// Wait until every process has stopped: the kernel announces it through `cgroup.events`.
///
/// # Errors
/// ETIMEDOUT, naming the processes: one that waits in the kernel for a disk or a network file system stops only after
/// that.
pub fn wait_frozen(path: &Path, patience: Duration) -> Result<(), CallError> {
    if wait_events(path, "frozen 1", patience)? {
        return Ok(());
    }
    let pids = processes(path).unwrap_or_default();
    let call = format!("freeze cgroup {} ({} in it)", path.display(), names_of(&pids));
    Err(CallError::errno(call, Errno::ETIMEDOUT))
}
