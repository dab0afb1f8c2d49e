//! Making the process that runs a [`Script`], and hearing from it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::child::{self, Event, Report, Script};
use crate::{CallError, Context, heap, pidfd, raw};

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
    /// Namespaces to go into first (setns(2)), in this order, each with its `CLONE_NEW*` flag. We ourselves stay where we
    /// are: a process between us and the new one goes.
    pub joins: &'a [(BorrowedFd<'a>, u64)],
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
    let made = if birth.joins.is_empty() {
        // SAFETY: `enter` and the machine behind it keep to prepared memory and never return.
        unsafe { fork(birth, script, pipes, ours) }
    } else {
        // SAFETY: as above.
        unsafe { fork_through(birth, script, pipes, ours) }
    };
    heap::leave_behind();
    let (pid, pidfd) = made.map_err(|(call, errno)| CallError::errno(call.words(birth), errno))?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    let pidfd = pidfd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
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

/// What may fail on the way to a process.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Pipe,
    /// The process between us and the first one.
    Between,
    /// By its place in [`Birth::joins`].
    Join(usize),
    Clone,
}

impl Stage {
    fn words(self, birth: Birth<'_>) -> String {
        match self {
            Self::Pipe => "pipe2".to_owned(),
            Self::Between => "clone a process that joins namespaces".to_owned(),
            Self::Join(index) => {
                let flag = birth.joins.get(index).map_or(0, |(_, flag)| *flag);
                format!("setns with flag {flag:#x}")
            }
            Self::Clone => format!("clone3 with flags {:#x}", birth.namespaces),
        }
    }
}

type Forked = Result<(i32, Option<i32>), (Stage, Errno)>;

/// # Safety
/// The child is a copy of this process in which other threads have stopped wherever they were: [`enter`]
/// must neither allocate nor lock, and never return.
unsafe fn fork(
    birth: Birth<'_>,
    script: &Script,
    pipes: child::Pipes,
    parents: [i32; 2],
) -> Forked {
    // SAFETY: passed on to our caller.
    match unsafe { raw_fork(birth, 0) } {
        Ok((0, _)) => enter(script, pipes, parents),
        Ok(made) => Ok(made),
        Err(errno) => Err((Stage::Clone, Errno::from_raw(errno))),
    }
}

/// The pid (0 in the child), and the number of its pidfd in our table. With CLONE_PARENT in `flags` our parent gets the
/// child.
///
/// # Safety
/// As [`fork`].
unsafe fn raw_fork(birth: Birth<'_>, flags: u64) -> Result<(i32, Option<i32>), i32> {
    let mut pidfd: i32 = -1;
    // The kernel takes the signal of the process between us then, and wants no other here.
    let signal = if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
    let pid = if birth.classic {
        let flags = (birth.namespaces | flags | signal) as usize;
        // SAFETY: no stack and no pointers are given: this is fork(2) with namespaces.
        unsafe { raw::call(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]) }
    } else {
        let into = birth.cgroup.map_or(0, |_| CLONE_INTO_CGROUP);
        let arguments = CloneArgs {
            flags: birth.namespaces | into | CLONE_PIDFD | flags,
            pidfd: (&raw mut pidfd) as u64,
            exit_signal: signal,
            cgroup: birth.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
            ..CloneArgs::default()
        };
        let pointer = std::ptr::from_ref(&arguments) as usize;
        // SAFETY: a clone_args of the size given; no stack, so the child goes on with a copy of ours.
        unsafe { raw::call(libc::SYS_clone3, [pointer, size_of::<CloneArgs>(), 0, 0, 0, 0]) }
    }?;
    Ok((pid, (pid != 0 && pidfd >= 0).then_some(pidfd)))
}

/// What the process between us and the first one answers: the number of the join that failed (or how many there are),
/// errno, pid, pidfd.
type Answer = [i32; 4];

/// Send a process into the namespaces to be joined; the one that it makes there is our child (CLONE_PARENT), and its pidfd
/// is in our table (CLONE_FILES).
///
/// # Safety
/// As [`fork`].
unsafe fn fork_through(
    birth: Birth<'_>,
    script: &Script,
    pipes: child::Pipes,
    parents: [i32; 2],
) -> Forked {
    let (answer_read, answer_write) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| (Stage::Pipe, e))?;
    let flags = libc::CLONE_FILES as usize | libc::SIGCHLD as usize;
    let answer_pipe = answer_write.as_raw_fd();
    // SAFETY: fork(2) with a shared table of descriptors; `go_between` keeps to prepared memory and never returns.
    let between = match unsafe { raw::call(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]) } {
        Ok(0) => go_between(birth, script, pipes, parents, answer_pipe),
        answer => answer.map_err(|e| (Stage::Between, Errno::from_raw(e)))?,
    };
    let ended = pidfd::wait(between, true).map_err(|e| (Stage::Between, Errno::from_raw(e.raw())));
    drop(answer_write);
    let mut bytes = [0; size_of::<Answer>()];
    let read = File::from(answer_read).read_exact(&mut bytes);
    if ended.is_err() || read.is_err() {
        return Err((Stage::Between, Errno::ECHILD));
    }
    let word = |i: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[i * 4..i * 4 + 4]);
        i32::from_ne_bytes(word)
    };
    let joined = usize::try_from(word(0)).unwrap_or(0);
    match word(1) {
        0 => Ok((word(2), (word(3) >= 0).then_some(word(3)))),
        errno if joined < birth.joins.len() => Err((Stage::Join(joined), Errno::from_raw(errno))),
        errno => Err((Stage::Clone, Errno::from_raw(errno))),
    }
}

/// Allocates nothing, takes no lock, never returns.
fn go_between(
    birth: Birth<'_>,
    script: &Script,
    pipes: child::Pipes,
    parents: [i32; 2],
    answer_pipe: i32,
) -> ! {
    let mut joined: i32 = 0;
    // Whoever is in there already may not look into a process that holds the host's descriptors (ptrace(2)).
    let mut failure =
        raw::plain(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 0, 0, 0, 0, 0]).err();
    for (namespace, flag) in birth.joins {
        if failure.is_none() {
            let setns = [raw::reg(namespace.as_raw_fd()), *flag as usize, 0, 0, 0, 0];
            failure = raw::plain(libc::SYS_setns, setns).err();
            if failure.is_none() {
                joined = joined.wrapping_add(1);
            }
        }
    }
    let mut answer: Answer = [joined, failure.unwrap_or(0), 0, -1];
    if failure.is_none() {
        // SAFETY: as for our caller; the child goes on in `enter`.
        match unsafe { raw_fork(birth, libc::CLONE_PARENT as u64) } {
            Ok((0, _)) => {
                // Ours is a copy of the shared table: nothing of it is the parent's any more.
                let _ = raw::close(answer_pipe);
                enter(script, pipes, parents)
            }
            Ok((pid, pidfd)) => answer = [joined, 0, pid, pidfd.unwrap_or(-1)],
            Err(errno) => answer = [joined, errno, 0, -1],
        }
    }
    let pointer = answer.as_ptr() as usize;
    // SAFETY: the array lives across the call and has the length given.
    let _ = unsafe {
        raw::call(libc::SYS_write, [raw::reg(answer_pipe), pointer, size_of::<Answer>(), 0, 0, 0])
    };
    raw::exit(0)
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
                return Ok(Outcome::Failed(Box::new(report)));
            }
            Some(report) if report.event == Event::Refused => {
                return Ok(Outcome::Refused(Box::new(report)));
            }
            Some(report) if report.event == Event::Created => return Ok(Outcome::Created),
            Some(report) if report.event == Event::Ready => return Ok(Outcome::Ready),
            _ => executing = true,
        }
    }
}

/// The user namespace that a namespace belongs to (ioctl_ns(2), NS_GET_USERNS).
///
/// # Errors
/// EPERM where it lies outside of our own.
pub fn namespace_owner(namespace: &OwnedFd) -> Result<OwnedFd, CallError> {
    const NS_GET_USERNS: usize = 0xb701;
    let fd = namespace.as_raw_fd();
    let owner = raw::plain(libc::SYS_ioctl, [raw::reg(fd), NS_GET_USERNS, 0, 0, 0, 0])
        .map_err(|errno| CallError::errno("ioctl NS_GET_USERNS", Errno::from_raw(errno)))?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(owner) })
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
