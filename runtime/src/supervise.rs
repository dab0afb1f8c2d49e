//! Waiting for a container in the foreground, as `run` does: signals go through, the end is recorded.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use hafen_isolator::cgroup;
use hafen_spec::keep::{ExitRecord, Numbers};
use hafen_sys::clock::since_boot;
use hafen_sys::file::replace;
use hafen_sys::pidfd::{self, Ended};
use hafen_sys::spawn::Launched;
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::Error;
use crate::journal::{Entry, Record};
use crate::launch::Running;
use crate::notify::Notify;
use crate::terminal::Relay;

/// Shells report a death by signal as 128 and its number.
const SIGNAL_BASE: i32 = 128;

/// Signals that are ours to pass on. Blocked before the launch, so that none is lost on the way.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// # Errors
    /// Names the call.
    pub(crate) fn block() -> Result<Self, CallError> {
        // A child is noticed through its pidfd.
        Self::block_but(&[Signal::SIGCHLD])
    }

    /// The same for who does not know all children.
    ///
    /// # Errors
    /// Names the call.
    pub(crate) fn block_all() -> Result<Self, CallError> {
        Self::block_but(&[])
    }

    fn block_but(others: &[Signal]) -> Result<Self, CallError> {
        let mut set = SigSet::all();
        // Faults of our own must still end us.
        let own =
            [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT];
        for signal in own.iter().chain(others) {
            set.remove(*signal);
        }
        set.thread_block().call(|| "sigprocmask".to_owned())?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        SignalFd::with_flags(&set, flags).map(Self).call(|| "signalfd".to_owned())
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next that has come; nobody waits.
    ///
    /// # Errors
    /// Of reading.
    pub(crate) fn next(&self) -> Result<Option<i32>, CallError> {
        let info = self.0.read_signal().call(|| "read signalfd".to_owned())?;
        Ok(info.map(|info| info.ssi_signo.cast_signed()))
    }
}

/// Stand by a process until it ends: pass signals on, and what its terminal says.
///
/// # Errors
/// Names the call.
pub(crate) fn attend(
    process: &Launched,
    signals: &Signals,
    mut relay: Option<Relay>,
    notify: Option<&Notify>,
) -> Result<Ended, CallError> {
    let handle = process.pidfd.as_fd();
    loop {
        let ready = look(handle, signals.0.as_fd(), relay.as_ref(), notify)?;
        if let Some(relay) = &mut relay {
            relay.turn(ready.input)?;
        }
        if let Some(notify) = notify {
            // A service manager that is gone is no reason to leave the container alone.
            let _ = notify.pass(process.pid);
        }
        if ready.ended {
            break;
        }
        forward(signals, handle, relay.as_ref())?;
    }
    let end = pidfd::wait(process.pid, true)?;
    end.ok_or_else(|| CallError::errno(format!("wait4 {}", process.pid), Errno::ECHILD))
}

/// What poll(2) found.
struct Ready {
    ended: bool,
    input: bool,
}

/// A pidfd becomes readable when its process ends (pidfd_open(2)).
fn look(
    process: BorrowedFd<'_>,
    signals: BorrowedFd<'_>,
    relay: Option<&Relay>,
    notify: Option<&Notify>,
) -> Result<Ready, CallError> {
    let mut fds =
        vec![PollFd::new(process, PollFlags::POLLIN), PollFd::new(signals, PollFlags::POLLIN)];
    fds.extend(notify.map(|n| PollFd::new(n.handle(), PollFlags::POLLIN)));
    fds.extend(relay.iter().flat_map(|r| r.interest()));
    match poll(&mut fds, PollTimeout::NONE) {
        Err(Errno::EINTR) => return Ok(Ready { ended: false, input: false }),
        Err(e) => return Err(CallError::errno("poll", e)),
        Ok(_) => {}
    }
    let input = fds.iter().skip(2).any(|f| is_stdin(f) && f.any().unwrap_or(false));
    Ok(Ready { ended: fds[0].any().unwrap_or(false), input })
}

fn is_stdin(fd: &PollFd<'_>) -> bool {
    fd.as_fd().as_raw_fd() == libc::STDIN_FILENO
}

fn forward(
    signals: &Signals,
    process: BorrowedFd<'_>,
    relay: Option<&Relay>,
) -> Result<(), CallError> {
    while let Some(signal) = signals.next()? {
        if let Some(relay) = relay.filter(|_| signal == libc::SIGWINCH) {
            relay.resize();
            continue;
        }
        match pidfd::send_signal(process, signal) {
            Err(e) if !e.is(Errno::ESRCH) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// What is told of an end, before anything of the container is released.
pub(crate) fn record(running: &Running, end: &Ended) -> ExitRecord {
    let Began { at, born } = running.began;
    let ran = since_boot().saturating_sub(born);
    let life = Life { pid: running.process.pid, started: at, ran };
    life.end(&running.entry, &running.record, end)
}

/// When a first process was begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Began {
    pub(crate) at: SystemTime,
    /// Since the boot of the machine: nobody sets that clock.
    pub(crate) born: Duration,
}

impl Began {
    pub(crate) fn now() -> Self {
        Self { at: SystemTime::now(), born: since_boot() }
    }
}

/// Of the first process of a container.
pub(crate) struct Life {
    pub(crate) pid: i32,
    pub(crate) started: SystemTime,
    pub(crate) ran: Duration,
}

impl Life {
    pub(crate) fn end(&self, entry: &Entry, record: &Record, end: &Ended) -> ExitRecord {
        // An update may have added to what was claimed at first.
        let now = entry.record().ok().flatten();
        let claims = &now.as_ref().unwrap_or(record).claims;
        ExitRecord {
            id: record.id.clone(),
            pid: self.pid,
            exit_code: end.code,
            signal: end.signal,
            started_at: rfc3339(self.started),
            wall_usec: micros(self.ran),
            usage: Numbers {
                user_usec: end.user_usec,
                system_usec: end.system_usec,
                max_rss_bytes: end.max_rss_bytes,
                cgroup: cgroup::observe(claims),
            },
            oom: None,
            log_lost_bytes: 0,
            fenced_after_usec: None,
        }
    }
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// How long poll(2) waits for that moment: rounded up, so that the last round does not spin.
pub(crate) fn until(moment: Instant) -> PollTimeout {
    let left = moment.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

/// As shells count.
pub(crate) fn exit_code(code: Option<i32>, signal: Option<i32>) -> u8 {
    let code = code.or_else(|| signal.map(|s| SIGNAL_BASE + s)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// # Errors
/// Names the file.
pub(crate) fn save(record: &ExitRecord, path: &Path) -> Result<(), Error> {
    Ok(replace(path, &encode(record)?, true)?)
}

/// As it is written down.
pub(crate) fn encode(record: &ExitRecord) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(record).map_err(|e| Error::Refused(format!("exit record: {e}")))
}
