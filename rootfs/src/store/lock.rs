//! Two kinds of locks on one file, which the kernel keeps apart: flock(2) for the whole store, and a byte of it
//! (F_OFD_SETLKW, fcntl(2)) for each blob or layer that somebody makes. Nothing is left when a process dies.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hafen_spec::image::Digest;
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};

/// The store stays as it is, or nobody else is at work in it.
#[derive(Debug)]
pub struct Guard(#[expect(dead_code, reason = "held")] Flock<File>);

/// Whoever holds it makes this content, and nobody else does.
#[derive(Debug)]
pub(super) struct Maker(#[expect(dead_code, reason = "held")] File);

pub(super) const FILE: &str = "lock";
/// Between two tries of who does not wait for as long as it takes.
const PAUSE: Duration = Duration::from_millis(5);

fn open(root: &Path) -> Result<File, CallError> {
    let path = root.join(FILE);
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    options.call(|| format!("open {}", path.display()))
}

fn flock(root: &Path, kind: FlockArg) -> Result<Guard, CallError> {
    let lock = Flock::lock(open(root)?, kind);
    lock.map(Guard).map_err(|(_, e)| CallError::errno(format!("flock {}/lock", root.display()), e))
}

pub(crate) fn shared(root: &Path) -> Result<Guard, CallError> {
    flock(root, FlockArg::LockShared)
}

pub(crate) fn exclusive(root: &Path) -> Result<Guard, CallError> {
    flock(root, FlockArg::LockExclusive)
}

/// `None` where somebody is at work in the store for so long.
pub(super) fn exclusive_within(
    root: &Path,
    patience: Duration,
) -> Result<Option<Guard>, CallError> {
    let Some(deadline) = Instant::now().checked_add(patience) else {
        return exclusive(root).map(Some);
    };
    loop {
        match flock(root, FlockArg::LockExclusiveNonblock) {
            Err(e) if e.is(Errno::EWOULDBLOCK) && Instant::now() < deadline => sleep(PAUSE),
            Err(e) if e.is(Errno::EWOULDBLOCK) => return Ok(None),
            answer => return answer.map(Some),
        }
    }
}

/// Wait until nobody else makes this content.
pub(super) fn maker(root: &Path, digest: &Digest) -> Result<Maker, CallError> {
    let file = open(root)?;
    let byte = libc_lock(offset(digest));
    loop {
        match fcntl(&file, FcntlArg::F_OFD_SETLKW(&byte)) {
            Err(Errno::EINTR) => {}
            answer => {
                answer.call(|| format!("lock {digest} in {}", root.display()))?;
                return Ok(Maker(file));
            }
        }
    }
}

fn libc_lock(start: i64) -> nix::libc::flock {
    nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    }
}

/// Two digests with the same one would only wait for each other.
fn offset(digest: &Digest) -> i64 {
    const DIGITS: usize = 15;
    i64::from_str_radix(&digest.hex()[..DIGITS], 16).unwrap_or(0)
}
