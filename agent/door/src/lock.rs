//! Files whose lock says that somebody is there. The kernel lets it go when they die, however they do.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A program that was being started when its parent was killed has the lock until its execve(2).
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// Take the lock; `None`: somebody else has it, and keeps it.
///
/// # Errors
/// Names the file.
pub fn take(path: &Path) -> Result<Option<Flock<File>>, CallError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let mut file = file.call(|| format!("open {}", path.display()))?;
    let end = Instant::now() + PATIENCE;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= end => return Ok(None),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, e)) => return Err(CallError::errno(format!("flock {}", path.display()), e)),
        };
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_let_go_in_time_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = take(&path).unwrap().unwrap();
        assert!(take(&path).unwrap().is_none());
        let holding = thread::spawn(move || {
            thread::sleep(PATIENCE / 4);
            drop(first);
        });
        assert!(take(&path).unwrap().is_some());
        holding.join().unwrap();
    }
}
