use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hafen_sys::file::read_text;
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{self, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill as signal};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use nix::unistd::Pid;

use super::folder::{Folder, Visit, walk};

/// The processes in a cgroup folder and in all below it, as pids of our pid namespace, in the order of their numbers.
///
/// # Errors
/// Names the folder; ENOENT where there is none.
pub fn processes(path: &Path) -> Result<Vec<i32>, CallError> {
    let mut pids = Vec::new();
    let mut collect = |visit: Visit<'_>| {
        let Visit::Inside(folder) = visit else { return Ok(()) };
        match Folder::pids(folder) {
            Ok(found) => pids.extend(found),
            // A threaded cgroup: its processes are listed above it (cgroups(7)). Or removed by now.
            Err(Errno::EOPNOTSUPP | Errno::ENODEV | Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    };
    walk(path, &mut collect).call(|| format!("list the processes of {}", path.display()))?;
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// The processes in this very folder.
pub(super) fn own(folder: &Folder) -> nix::Result<Vec<i32>> {
    Folder::pids(folder.as_fd())
}

/// Kill everything in a folder of the cgroup2 tree and below it, also what is being forked meanwhile. A folder that
/// is gone holds nothing.
///
/// # Errors
/// Names the call.
pub fn kill(path: &Path) -> Result<(), CallError> {
    let folder = match Folder::open(path) {
        Err(Errno::ENOENT) => return Ok(()),
        result => result.call(|| format!("open {}", path.display()))?,
    };
    match folder.write("cgroup.kill", "1") {
        Err(e) if e.is(Errno::ENODEV) => Ok(()),
        // Before Linux 5.14.
        Err(e) if e.is(Errno::ENOENT) => kill_each(&folder),
        result => result,
    }
}

/// Frozen, they cannot fork away while they are killed one by one; a frozen process still dies (cgroups(7)). The root of
/// a tree has no `cgroup.freeze`, so this can never be the end of the whole machine.
fn kill_each(folder: &Folder) -> Result<(), CallError> {
    match folder.write("cgroup.freeze", "1") {
        // Removed meanwhile.
        Err(e) if e.is(Errno::ENODEV) || (e.is(Errno::ENOENT) && !folder.path.exists()) => {
            return Ok(());
        }
        result => result?,
    }
    let result = settle(folder).and_then(|()| kill_listed(&folder.path));
    let thawed = folder
        .write("cgroup.freeze", "0")
        .or_else(|e| if e.is(Errno::ENODEV) { Ok(()) } else { Err(e) });
    result.and(thawed)
}

/// Freezing takes effect in its own time. What is stuck in the kernel does not fork either, so there is no need to
/// wait for it forever.
fn settle(folder: &Folder) -> Result<(), CallError> {
    const PATIENCE: Duration = Duration::from_millis(500);
    wait_events(&folder.path, "frozen 1", PATIENCE).map(|_| ())
}

pub(super) fn kill_listed(path: &Path) -> Result<(), CallError> {
    for pid in processes(path)? {
        match signal(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(e).call(|| format!("kill {pid}")),
        }
    }
    Ok(())
}

/// Wait until no process is left in a folder of the cgroup2 tree and below it; `false` when the time is up first. The
/// kernel announces it through `cgroup.events`, nothing is polled. A folder that is gone is empty.
///
/// # Errors
/// Names the file.
pub fn wait_empty(path: &Path, timeout: Duration) -> Result<bool, CallError> {
    wait_events(path, "populated 0", timeout)
}

pub(super) fn wait_events(path: &Path, line: &str, timeout: Duration) -> Result<bool, CallError> {
    let file = path.join("cgroup.events");
    let call = || format!("watch {}", file.display());
    let deadline = Instant::now().checked_add(timeout);
    let fd = match fcntl::open(&file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(true),
        result => result.call(call)?,
    };
    let mut bytes = [0; 256];
    loop {
        // What is read here is what the next change is measured by.
        let length = match pread(&fd, &mut bytes, 0) {
            Err(Errno::ENODEV) => return Ok(true),
            result => result.call(call)?,
        };
        if bytes[..length].split(|b| *b == b'\n').any(|l| l == line.as_bytes()) {
            return Ok(true);
        }
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(false);
        }
        // Rounded up, so that the last round does not spin.
        let left = left.map(|l| l + Duration::from_micros(999));
        let left = left
            .map_or(PollTimeout::NONE, |l| PollTimeout::try_from(l).unwrap_or(PollTimeout::MAX));
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLPRI)], left) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).call(call),
        }
    }
}

/// The folder of a process in the v1 hierarchy of a controller.
pub(super) fn place_of(
    pid: i32,
    controller: &str,
    hierarchy: &Path,
) -> Result<Option<PathBuf>, CallError> {
    let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let text = match read_text(&file) {
        Err(e) if e.is(Errno::ENOENT) || e.is(Errno::ESRCH) => return Ok(None),
        result => result?,
    };
    let folder = text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, folder) = (parts.next()?, parts.next()?);
        names.split(',').any(|n| n == controller).then(|| folder.trim_start_matches('/'))
    });
    Ok(folder.map(|folder| hierarchy.join(folder)))
}

/// Processes for a person to read: `process 12 (sh, uninterruptible sleep), 14 (cat)`.
pub(super) fn names_of(pids: &[i32]) -> String {
    const MOST: usize = 8;
    if pids.is_empty() {
        return "processes that are not visible from here".to_owned();
    }
    let named: Vec<String> = pids.iter().take(MOST).map(|pid| name_of(*pid)).collect();
    let noun = if pids.len() == 1 { "process" } else { "processes" };
    let more =
        if pids.len() > MOST { format!(" and {} more", pids.len() - MOST) } else { String::new() };
    format!("{noun} {}{more}", named.join(", "))
}

fn name_of(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything, also parentheses; the state follows the last one (proc_pid_stat(5)).
    let parts = status.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") "));
    match parts {
        Some((name, rest)) if rest.starts_with('D') => {
            format!("{pid} ({name}, uninterruptible sleep)")
        }
        Some((name, rest)) if rest.starts_with('Z') => {
            format!("{pid} ({name}, ended but with living threads)")
        }
        Some((name, _)) => format!("{pid} ({name})"),
        None => pid.to_string(),
    }
}
