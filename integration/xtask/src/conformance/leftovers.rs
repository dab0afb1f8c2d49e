//! What the suite leaves behind: it deletes few of its containers, and no folder above their cgroups.

use std::collections::BTreeSet;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const CGROUPS: &str = "/sys/fs/cgroup";
/// The outermost folders of the `cgroupsPath`s in the suite (its `cgroups.go`).
const SUITE_CGROUPS: [&str; 2] = ["cgrouptest", "testdir"];
/// Processes that were killed leave their cgroup a little later.
const ATTEMPTS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// Cgroups that carry the suite's names and are not ours.
#[derive(Debug)]
pub(super) struct Foreign(BTreeSet<PathBuf>);

impl Foreign {
    pub(super) fn find() -> Self {
        Self(found(&BTreeSet::new()).into_iter().collect())
    }

    /// Removes the cgroups that have the suite's names or those of its containers, and were not there before.
    pub(super) fn remove_cgroups(&self, containers: &BTreeSet<String>) -> Result<()> {
        // crun gives its standard descriptors to the container's user, and here they are the null device of the host.
        chown("/dev/null", Some(0), Some(0)).context("chown /dev/null")?;
        for cgroup in found(containers).iter().filter(|path| !self.0.contains(*path)) {
            remove(cgroup)?;
        }
        Ok(())
    }
}

/// Outermost folders of these names, in every hierarchy.
fn found(containers: &BTreeSet<String>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new(CGROUPS), &mut |path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ours = SUITE_CGROUPS.contains(&&*name) || containers.iter().any(|id| name.contains(id));
        if ours {
            found.push(path.to_owned());
        }
        !ours
    });
    found
}

/// Visits the folders below, outermost first; `enter` says whether to go on inside.
fn walk(folder: &Path, enter: &mut dyn FnMut(&Path) -> bool) {
    // A cgroup may disappear meanwhile.
    for entry in std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && enter(&entry.path()) {
            walk(&entry.path(), enter);
        }
    }
}

fn remove(cgroup: &Path) -> Result<()> {
    let mut folders = vec![cgroup.to_owned()];
    walk(cgroup, &mut |path| {
        folders.push(path.to_owned());
        true
    });
    for folder in folders.iter().rev() {
        remove_one(folder)?;
    }
    Ok(())
}

fn remove_one(folder: &Path) -> Result<()> {
    for _ in 0..ATTEMPTS {
        kill_members(folder)?;
        match std::fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
    bail!("cgroup {} cannot be removed", folder.display())
}

/// Only containers of the suite are in its cgroups.
fn kill_members(folder: &Path) -> Result<()> {
    let members = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines() {
        let mut kill = Command::new("kill");
        kill.args(["-KILL", pid]).stderr(Stdio::null());
        kill.status().context("run kill")?;
    }
    Ok(())
}
