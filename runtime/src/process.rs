//! A process that we started once, told from another one that got its pid later.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use hafen_sys::{CallError, Context, pidfd};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

/// A pid with the time at which its process started (proc_pid_stat(5), field 22): together they are never used twice
/// within one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    /// Clock ticks since boot.
    pub(crate) start_time: u64,
    /// Hooks are still at work on its container.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) creating: bool,
}

/// The processes of a container that has no cgroup: those of its pid namespace, by the first of them. One that ended, or
/// that may not be looked at, is none of them.
pub(crate) fn of_namespace(first: i32) -> Result<Vec<i32>, CallError> {
    let inode = |pid: &str| std::fs::metadata(format!("/proc/{pid}/ns/pid")).map(|m| m.ino());
    let Ok(wanted) = inode(&first.to_string()) else { return Ok(Vec::new()) };
    let entries = std::fs::read_dir("/proc").call(|| "read folder /proc".to_owned())?;
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let mut found: Vec<i32> = names
        .filter(|name| inode(name).is_ok_and(|i| i == wanted))
        .filter_map(|name| name.parse().ok())
        .collect();
    found.sort_unstable();
    Ok(found)
}

struct Stat {
    state: u8,
    start_time: u64,
    /// Only of a zombie, and only for who may trace it.
    exit_code: Option<i32>,
}

impl Identity {
    /// # Errors
    /// Names the file in `/proc`.
    pub(crate) fn of(pid: i32) -> Result<Self, CallError> {
        let stat = stat(pid)?;
        let gone = || CallError::errno(format!("stat process {pid}"), Errno::ESRCH);
        Ok(Self { pid, start_time: stat.ok_or_else(gone)?.start_time, creating: false })
    }

    /// When it began, since the boot of the machine.
    pub(crate) fn born(&self) -> Duration {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
        let ticks = ticks.and_then(|t| u64::try_from(t).ok()).filter(|t| *t > 0).unwrap_or(100);
        Duration::from_millis(self.start_time.saturating_mul(1000) / ticks)
    }

    /// How it ended, as long as nobody has waited for it: a status of wait(2).
    pub(crate) fn status_of_zombie(&self) -> Option<i32> {
        let stat = stat(self.pid).ok()??;
        (stat.start_time == self.start_time && stat.state == b'Z').then_some(stat.exit_code)?
    }

    /// Does it still run? A zombie does not.
    pub(crate) fn alive(&self) -> Result<bool, CallError> {
        Ok(stat(self.pid)?
            .is_some_and(|s| s.start_time == self.start_time && !b"ZXx".contains(&s.state)))
    }

    /// Kill it and wait for its end; it may have ended before.
    ///
    /// # Errors
    /// ETIMEDOUT where it does not end: it is stuck in the kernel.
    pub(crate) fn end(&self) -> Result<(), CallError> {
        const PATIENCE: u16 = 30_000;
        let Some(handle) = self.open()? else { return Ok(()) };
        match pidfd::send_signal(&handle, libc::SIGKILL) {
            Err(e) if !e.is(Errno::ESRCH) => return Err(e),
            _ => {}
        }
        let call = || format!("wait for the end of process {}", self.pid);
        match poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], PATIENCE).call(call)? {
            0 => Err(CallError::errno(call(), Errno::ETIMEDOUT)),
            _ => Ok(()),
        }
    }

    /// A handle on it; `None` if it has ended.
    pub(crate) fn open(&self) -> Result<Option<OwnedFd>, CallError> {
        let handle = match pidfd::open(self.pid) {
            Err(e) if e.is(Errno::ESRCH) => return Ok(None),
            answer => answer?,
        };
        // Compared after the handle was opened: from here on the pid cannot change hands.
        Ok(self.alive()?.then_some(handle))
    }
}

fn stat(pid: i32) -> Result<Option<Stat>, CallError> {
    let path = format!("/proc/{pid}/stat");
    let text = match std::fs::read_to_string(Path::new(&path)) {
        Err(e)
            if e.raw_os_error() == Some(Errno::ESRCH as i32)
                || e.kind() == std::io::ErrorKind::NotFound =>
        {
            return Ok(None);
        }
        answer => answer.call(|| format!("read {path}"))?,
    };
    // The name in parentheses may hold anything, also parentheses and blanks.
    let mut fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    let state = fields.next().and_then(|s| s.bytes().next()).unwrap_or(b'X');
    let start_time = fields.nth(18).and_then(|t| t.parse().ok()).unwrap_or(0);
    // Field 52; 22 is behind us.
    let exit_code = fields.nth(29).and_then(|code| code.parse().ok());
    Ok(Some(Stat { state, start_time, exit_code }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_is_alive_and_another_start_time_is_another_process() {
        let me = Identity::of(std::process::id().cast_signed()).unwrap();
        assert!(me.start_time > 0);
        assert!(me.alive().unwrap());
        assert!(me.open().unwrap().is_some());
        let other = Identity { start_time: me.start_time + 1, ..me };
        assert!(!other.alive().unwrap());
        assert!(other.open().unwrap().is_none());
    }
}
