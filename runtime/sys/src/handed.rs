//! Descriptors that the same program goes on with after it has executed itself.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::{CallError, Context};

/// The standard ones belong to the standard library.
const FIRST: RawFd = 3;
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Let a descriptor outlive an execve(2). The answer is its number.
///
/// # Errors
/// Of fcntl(2).
pub fn hand_over(fd: impl AsFd) -> Result<RawFd, CallError> {
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).call(|| "fcntl F_SETFD".to_owned())?;
    Ok(fd.as_fd().as_raw_fd())
}

/// Own a descriptor that was handed over: at the start of the program, before it opens anything, and each once.
///
/// # Errors
/// EBADF where it is not open, is a standard one, or was taken before.
pub fn take(number: RawFd) -> Result<OwnedFd, CallError> {
    let wrong = || CallError::errno(format!("take over descriptor {number}"), Errno::EBADF);
    let mut taken = TAKEN.lock().map_err(|_| wrong())?;
    if number < FIRST || !taken.insert(number) {
        return Err(wrong());
    }
    // SAFETY: asks about a number only; a wrong one is EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    Errno::result(flags).map_err(|_| wrong())?;
    // SAFETY: it is open, it was left to us by the caller's promise, and TAKEN sees to it that it is owned once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_open_cannot_be_taken() {
        assert!(take(1).is_err());
        assert!(take(1_000_000).is_err());
    }
}
