//! Processes by descriptor: a pid may be somebody else's by now, a pidfd never is.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::{CallError, Context};

/// pidfd_open(2), Linux 5.3.
///
/// # Errors
/// ESRCH where there is no such process (any more).
pub fn open(pid: i32) -> Result<OwnedFd, CallError> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd).call(|| format!("pidfd_open {pid}"))?;
    let fd = i32::try_from(fd).unwrap_or(-1);
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// pidfd_send_signal(2), Linux 5.1.
///
/// # Errors
/// ESRCH once the process has been waited for.
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> Result<(), CallError> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo is allowed; the other arguments are integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd,
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result).call(|| format!("pidfd_send_signal {signal}"))?;
    Ok(())
}

/// How a process ended, and what it and the children it waited for used (wait4(2), getrusage(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Exit status, if it exited by itself.
    pub code: Option<i32>,
    /// Signal number, if a signal ended it.
    pub signal: Option<i32>,
    pub user_usec: u64,
    pub system_usec: u64,
    pub max_rss_bytes: u64,
}

/// Wait for a child of ours to end. Returns `None` if `block` is false and it still runs.
///
/// # Errors
/// ECHILD where it is no child of ours.
pub fn wait(pid: i32, block: bool) -> Result<Option<Ended>, CallError> {
    let mut status = 0;
    // SAFETY: rusage is plain integers; all zero is a value of it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let flags = if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: both pointers are to locals that live across the call.
        let result = unsafe { libc::wait4(pid, &raw mut status, flags, &raw mut usage) };
        match Errno::result(result) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(CallError::errno(format!("wait4 {pid}"), e)),
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(ended(status, &usage))),
        }
    }
}

/// The same, waiting, of a child that stays a zombie: whoever comes after us may still ask (WNOWAIT).
///
/// # Errors
/// ECHILD where it is no child of ours.
pub fn look_at_end(pid: i32) -> Result<Ended, CallError> {
    // SAFETY: all zero is a value of these plain integers.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOWAIT;
    loop {
        // SAFETY: both pointers are to locals that live across the call. The C library's waitid() has no rusage.
        let result = unsafe {
            libc::syscall(libc::SYS_waitid, libc::P_PID, pid, &raw mut info, flags, &raw mut usage)
        };
        match Errno::result(result) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(CallError::errno(format!("waitid {pid}"), e)),
            Ok(_) => break,
        }
    }
    // SAFETY: waitid has filled in what belongs to SIGCHLD.
    let status = unsafe { info.si_status() };
    let status =
        if info.si_code == libc::CLD_EXITED { (status & 0xff) << 8 } else { status & 0x7f };
    Ok(ended(status, &usage))
}

fn ended(status: i32, usage: &libc::rusage) -> Ended {
    let micros = |t: libc::timeval| u64::try_from(t.tv_sec * 1_000_000 + t.tv_usec).unwrap_or(0);
    Ended {
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        user_usec: micros(usage.ru_utime),
        system_usec: micros(usage.ru_stime),
        max_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    }
}

/// `struct pidfd_info` (linux/pidfd.h), its first version.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const INFO_EXIT: u64 = 1 << 3;
nix::ioctl_readwrite!(get_info, 0xff, 11, Info);

/// How a process ended that is no child of ours, once its parent has waited for it (PIDFD_INFO_EXIT, Linux 6.15). `None`:
/// this kernel does not tell.
#[must_use]
pub fn told_end(pidfd: impl AsFd) -> Option<Ended> {
    let mut info = Info { mask: INFO_EXIT, ..Info::default() };
    // SAFETY: the structure is plain integers and as long as the number of the call says; it lives across the call.
    unsafe { get_info(pidfd.as_fd().as_raw_fd(), &raw mut info) }.ok()?;
    (info.mask & INFO_EXIT != 0).then(|| end_of(info.exit_code))
}

/// What a status of wait(2) says, which tells nothing of what was used.
#[must_use]
pub fn end_of(status: i32) -> Ended {
    // SAFETY: all zero is a value of these plain integers.
    let usage: libc::rusage = unsafe { std::mem::zeroed() };
    ended(status, &usage)
}
