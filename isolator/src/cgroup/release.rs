use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use hafen_spec::plan::Claim;
use hafen_sys::{CallError, Context, pidfd};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::systemd;

use super::folder::{Visit, walk};
use super::make::is_marked;
use super::processes::{kill, kill_listed, names_of, place_of, processes, wait_empty};

/// A killed process may have much memory to give back, or be stuck in the kernel on a slow disk.
const PATIENCE: Duration = Duration::from_secs(30);
const KILL_AGAIN: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Leave nothing of a cgroup claim: kill what is inside, remove the folder with all below it (also one that a client had
/// made beforehand, as runc does), then the folders above that it alone kept. What is gone already is released.
///
/// Release the claim of the cgroup2 tree before those of v1 hierarchies: it is the one that kills at once.
///
/// # Errors
/// Names the call, and who holds the folder when it stays in use. May be tried again.
pub fn release(claim: &Claim) -> Result<(), CallError> {
    let (path, parents) = match claim {
        Claim::Cgroup { path, parents, unit } => {
            if let Some(unit) = unit {
                end_unified(path, Instant::now() + PATIENCE)?;
                systemd::stop(unit, path, PATIENCE)?;
            }
            remove(path, end_unified)?;
            (path, parents)
        }
        Claim::LegacyCgroup { path, parents, .. } => {
            remove(path, end_legacy)?;
            (path, parents)
        }
        Claim::Scratch { .. } | Claim::Resctrl { .. } | Claim::Use { .. } => {
            return Err(CallError::errno(format!("release {claim} as a cgroup"), Errno::EINVAL));
        }
    };
    remove_parents(path, parents)
}

/// The usual case takes one call: the processes are gone, and rmdir(2) succeeds on an empty cgroup only.
fn remove(path: &Path, end: fn(&Path, Instant) -> Result<(), CallError>) -> Result<(), CallError> {
    if is_removed(rmdir(path), path)? {
        return Ok(());
    }
    let deadline = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    loop {
        end(path, deadline)?;
        if is_removed(remove_tree(path), path)? {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(held(path));
        }
        // The last process is gone, but the kernel has not let go of it yet: it announces nothing about that.
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn rmdir(path: &Path) -> nix::Result<()> {
    fs::remove_dir(path).map_err(|e| Errno::try_from(e).unwrap_or(Errno::EIO))
}

/// `false`: it is still in use.
fn is_removed(result: nix::Result<()>, path: &Path) -> Result<bool, CallError> {
    match result {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(false),
        Err(e) => Err(e).call(|| format!("remove cgroup {}", path.display())),
    }
}

fn remove_tree(path: &Path) -> nix::Result<()> {
    walk(path, |visit| match visit {
        Visit::Inside(_) => Ok(()),
        Visit::Left { parent, name } => match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            result => result,
        },
    })?;
    rmdir(path)
}

fn end_unified(path: &Path, deadline: Instant) -> Result<(), CallError> {
    loop {
        // Once is enough with `cgroup.kill`; without it, something may have been forked between freezing and killing.
        kill(path)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if wait_empty(path, left.min(KILL_AGAIN))? {
            return Ok(());
        }
        if let Some((pid, freezer)) = frozen_by_v1(path) {
            let call = format!(
                "remove cgroup {} (process {pid} is frozen by {}: write THAWED to it)",
                path.display(),
                freezer.display()
            );
            return Err(CallError::errno(call, Errno::EBUSY));
        }
        if left.is_zero() {
            return Err(held(path));
        }
    }
}

/// A process that the v1 freezer holds dies when it is let go, not before (Documentation/admin-guide/cgroup-v1); whoever
/// froze it has reasons. The file that says so.
fn frozen_by_v1(path: &Path) -> Option<(i32, PathBuf)> {
    let hierarchy = super::discover().ok()?.legacy.remove("freezer")?;
    processes(path).ok()?.into_iter().find_map(|pid| {
        let file = place_of(pid, "freezer", &hierarchy).ok()??.join("freezer.state");
        let state = fs::read_to_string(&file).ok()?;
        (state.trim() != "THAWED").then_some((pid, file))
    })
}

/// A v1 hierarchy neither kills nor tells when it is empty. What is still inside left the cgroup2 folder by itself, or
/// is on its way out.
fn end_legacy(path: &Path, deadline: Instant) -> Result<(), CallError> {
    if path.join("release_agent").exists() {
        // Only the root of a hierarchy has this file: that is never ours to empty.
        return Err(CallError::errno(format!("remove v1 cgroup {}", path.display()), Errno::EBUSY));
    }
    match kill_listed(path).and_then(|()| processes(path)) {
        Ok(pids) => pids.iter().try_for_each(|pid| wait_for(*pid, deadline)),
        Err(e) if e.is(Errno::ENOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

fn wait_for(pid: i32, deadline: Instant) -> Result<(), CallError> {
    let fd = match pidfd::open(pid) {
        Ok(fd) => fd,
        Err(e) if e.is(Errno::ESRCH) => return Ok(()),
        Err(e) => return Err(e),
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], left) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(e).call(|| format!("wait for process {pid}")),
    }
}

fn held(path: &Path) -> CallError {
    let pids = processes(path).unwrap_or_default();
    let call = format!("remove cgroup {} (held by {})", path.display(), names_of(&pids));
    CallError::errno(call, Errno::EBUSY)
}

/// Nearest first: those of the claim, and those that another container had made for itself and could not take away,
/// because of this one. One that somebody else uses stays, and so does everything above it.
pub(super) fn remove_parents(path: &Path, parents: &[PathBuf]) -> Result<(), CallError> {
    for folder in path.ancestors().skip(1) {
        let ours = parents.iter().any(|parent| parent == folder) || is_marked(folder);
        if !ours || !is_removed(rmdir(folder), folder)? {
            return Ok(());
        }
    }
    Ok(())
}
