//! User namespaces that no process lives in: only their id maps matter, for id-mapped mounts.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;

use crate::{CallError, Context, file, pidfd, raw};

const CLONE_NEWUSER: usize = 0x1000_0000;

/// A user namespace with these maps, as lines of `uid_map` and `gid_map` (user_namespaces(7)). It lives as long as the
/// descriptor; the process that it was made with is gone.
///
/// # Errors
/// Names the call, or the map and the file.
pub fn with_maps(uids: &str, gids: &str) -> Result<OwnedFd, CallError> {
    let (wait, go) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).call(|| "pipe2".to_owned())?;
    let pid = hold(wait.as_raw_fd(), go.as_raw_fd())
        .map_err(|errno| CallError::errno("clone with CLONE_NEWUSER", Errno::from_raw(errno)))?;
    let namespace = map(pid, uids, gids);
    // End of file is the word to go.
    drop(go);
    pidfd::wait(pid, true)?;
    namespace
}

fn map(pid: i32, uids: &str, gids: &str) -> Result<OwnedFd, CallError> {
    let process = Path::new("/proc").join(pid.to_string());
    file::write_knob(&process.join("uid_map"), uids)?;
    file::write_knob(&process.join("gid_map"), gids)?;
    let path = process.join("ns/user");
    let namespace = File::open(&path).call(|| format!("open {}", path.display()))?;
    Ok(namespace.into())
}

/// A process in a new user namespace that does nothing until nobody holds the other end of the pipe.
fn hold(wait: i32, go: i32) -> raw::Answer {
    // SAFETY: no stack and no pointers are given: this is fork(2) with a namespace. The child makes raw calls only.
    match unsafe {
        raw::call(libc::SYS_clone, [CLONE_NEWUSER | libc::SIGCHLD as usize, 0, 0, 0, 0, 0])
    } {
        Ok(0) => sleep(wait, go),
        answer => answer,
    }
}

fn sleep(wait: i32, go: i32) -> ! {
    let _ = raw::close(go);
    let mut byte = [0_u8; 1];
    let pointer = byte.as_mut_ptr() as usize;
    loop {
        // SAFETY: one byte of buffer for one byte.
        let read = unsafe { raw::call(libc::SYS_read, [raw::reg(wait), pointer, 1, 0, 0, 0]) };
        if read != Err(libc::EINTR) {
            raw::exit(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root and limits"]
    fn a_namespace_outlives_its_process_and_maps_are_checked() {
        let namespace = with_maps("0 100000 65536\n", "0 200000 10\n20 300000 5\n").unwrap();
        let kind = crate::spawn::namespace_type(&namespace);
        assert_eq!(kind, Some(CLONE_NEWUSER as u64));
        let error = with_maps("0 1 0\n", "0 1 1\n").unwrap_err();
        assert!(error.call.contains("uid_map"), "{error}");
    }
}
