//! Making the process that runs a [`Script`], and hearing from it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::child::{self, Event, Report, Script};
use crate::{CallError, Context, pidfd, raw};

/// Born inside this cgroup (Linux 5.7, clone3(2)).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_PIDFD: u64 = 0x1000;

/// `struct clone_args` up to `cgroup`, 88 bytes (clone3(2)).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which namespaces and cgroup the process is born into.
#[derive(Debug, Clone, Copy)]
pub struct Birth<'a> {
    /// `CLONE_NEW*` flags.
    pub namespaces: u64,
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Use clone(2): clone3(2) is missing here.
    pub classic: bool,
}

/// A process on its way through the script.
#[derive(Debug)]
pub struct Launched {
    pub pid: i32,
    pub pidfd: OwnedFd,
    reports: File,
    go: File,
}

/// What the parent hears at last.
#[derive(Debug)]
pub enum Outcome {
    /// It stands at [`child::Op::Pause`].
    Ready,
    /// It waits for `start`.
    Created,
    /// It is the user's program now.
    Executed,
    Failed(Box<Report>),
    /// Everything was done, but the kernel does not take the user's program (execve(2)).
    Refused(Box<Report>),
    /// It died without a word, somewhere before its program.
    Vanished,
}

/// Start a process that runs the script.
///
/// # Errors
/// Names the call; no process exists then.
pub fn launch(script: &Script, birth: Birth<'_>) -> Result<Launched, CallError> {
    let (report_read, report_write) = pipe()?;
    let (go_read, go_write) = pipe()?;
    let pipes = child::Pipes { report: report_write.as_raw_fd(), go: go_read.as_raw_fd() };
    let ours = [report_read.as_raw_fd(), go_write.as_raw_fd()];
    // SAFETY: `enter` and the machine behind it keep to prepared memory and never return.
    let (pid, pidfd) = unsafe { fork(birth, script, pipes, ours) }?;
    let pidfd = match pidfd {
        Some(fd) => fd,
        None => pidfd::open(pid)?,
    };
    Ok(Launched { pid, pidfd, reports: report_read.into(), go: go_write.into() })
}

/// The child: let go of the parent's ends, so that end of file means that the parent is gone.
fn enter(script: &Script, pipes: child::Pipes, parents: [i32; 2]) -> ! {
    for fd in parents {
        let _ = raw::close(fd);
    }
    child::run(script, pipes)
}

fn pipe() -> Result<(OwnedFd, OwnedFd), CallError> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).call(|| "pipe2".to_owned())
}

/// # Safety
/// The child is a copy of this process in which other threads have stopped wherever they were: [`enter`]
/// must neither allocate nor lock, and never return.
unsafe fn fork(
    birth: Birth<'_>,
    script: &Script,
    pipes: child::Pipes,
    parents: [i32; 2],
) -> Result<(i32, Option<OwnedFd>), CallError> {
    let mut pidfd: i32 = -1;
    let answer = if birth.classic {
        let flags = birth.namespaces as usize | libc::SIGCHLD as usize;
        // SAFETY: no stack and no pointers are given: this is fork(2) with namespaces.
        unsafe { raw::call(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]) }
    } else {
        let into = birth.cgroup.map_or(0, |_| CLONE_INTO_CGROUP);
        let arguments = CloneArgs {
            flags: birth.namespaces | into | CLONE_PIDFD,
            pidfd: (&raw mut pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            cgroup: birth.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
            ..CloneArgs::default()
        };
        let pointer = std::ptr::from_ref(&arguments) as usize;
        // SAFETY: a clone_args of the size given; no stack, so the child goes on with a copy of ours.
        unsafe { raw::call(libc::SYS_clone3, [pointer, size_of::<CloneArgs>(), 0, 0, 0, 0]) }
    };
    match answer.map_err(Errno::from_raw) {
        Ok(0) => enter(script, pipes, parents),
        Ok(pid) if pidfd >= 0 => {
            // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((pid, Some(pidfd)))
        }
        Ok(pid) => Ok((pid, None)),
        Err(e) => Err(CallError::errno(format!("clone3 with flags {:#x}", birth.namespaces), e)),
    }
}

impl Launched {
    /// Let the process go on from the [`child::Op::Pause`] or [`child::Op::AwaitGo`] that comes next.
    ///
    /// # Errors
    /// EPIPE where it died before.
    pub fn go(&mut self) -> io::Result<()> {
        self.go.write_all(b"g")
    }

    /// Wait until the process is created, executed, or has failed.
    ///
    /// # Errors
    /// Of reading the pipe.
    pub fn outcome(&mut self) -> Result<Outcome, CallError> {
        read_outcome(&mut self.reports).call(|| "read the report of the first process".to_owned())
    }
}

/// Read reports until one decides, or the other side has closed.
///
/// # Errors
/// Of reading.
pub fn read_outcome(reports: &mut impl Read) -> io::Result<Outcome> {
    let mut executing = false;
    let mut bytes = [0; Report::SIZE];
    loop {
        match reports.read_exact(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(if executing { Outcome::Executed } else { Outcome::Vanished });
            }
            Err(e) => return Err(e),
            Ok(()) => {}
        }
        match Report::decode(&bytes) {
            Some(report) if report.event == Event::Failed => {
                let report = Box::new(report);
                return Ok(if executing {
                    Outcome::Refused(report)
                } else {
                    Outcome::Failed(report)
                });
            }
            Some(report) if report.event == Event::Created => return Ok(Outcome::Created),
            Some(report) if report.event == Event::Ready => return Ok(Outcome::Ready),
            _ => executing = true,
        }
    }
}

/// Which `CLONE_NEW*` flag belongs to the namespace behind a descriptor (ioctl_ns(2), NS_GET_NSTYPE);
/// `None` if it is no namespace.
#[must_use]
pub fn namespace_type(file: &OwnedFd) -> Option<u64> {
    const NS_GET_NSTYPE: usize = 0xb703;
    let kind = raw::plain(libc::SYS_ioctl, [raw::reg(file.as_raw_fd()), NS_GET_NSTYPE, 0, 0, 0, 0])
        .ok()?;
    u64::try_from(kind).ok()
}
