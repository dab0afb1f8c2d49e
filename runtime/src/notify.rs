//! Readiness that the container tells (sd_notify(3)). The service manager believes our own cgroup only, so the container
//! gets a socket of ours, and what it says is passed on.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use hafen_spec::resolved::{Mount, Namespace, Resolved};
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const VARIABLE: &str = "NOTIFY_SOCKET";
const INSIDE: &str = "/run/notify";
const NAME: &str = "notify.sock";
/// A message is some lines; more than this is none.
const LONGEST: usize = 4096;

/// The socket of whoever started us, if there is one.
pub(crate) fn wanted() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|v| !v.is_empty())
}

/// The folder of the container's own socket.
pub(crate) fn folder(state: &Path) -> PathBuf {
    state.join("notify")
}

/// Show the folder to the container, and tell it where.
pub(crate) fn add_to(resolved: &mut Resolved, state: &Path) {
    if wanted().is_none() || !resolved.namespaces.is_new(Namespace::Mount) {
        return;
    }
    resolved.mounts.push(Mount::of(folder(state), INSIDE));
    resolved.process.env.retain(|e| !e.starts_with("NOTIFY_SOCKET="));
    resolved.process.env.push(format!("{VARIABLE}={INSIDE}/{NAME}"));
}

/// Make the folder that [`add_to`] promised.
///
/// # Errors
/// Names the folder.
pub(crate) fn make_folder(state: &Path) -> Result<(), CallError> {
    if wanted().is_none() {
        return Ok(());
    }
    let path = folder(state);
    fs::create_dir(&path).call(|| format!("mkdir {}", path.display()))
}

/// Our end of the container's socket, and the way to the service manager.
#[derive(Debug)]
pub(crate) struct Notify {
    socket: UnixDatagram,
    host: SocketAddr,
}

impl Notify {
    /// `None` where nobody wants to hear, or the container was made without.
    ///
    /// # Errors
    /// Names the socket.
    pub(crate) fn listen(state: &Path) -> Result<Option<Self>, CallError> {
        let Some(host) = wanted().filter(|_| folder(state).exists()) else { return Ok(None) };
        let path = folder(state).join(NAME);
        let call = || format!("bind {}", path.display());
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            answer => answer.call(call)?,
        }
        let socket = UnixDatagram::bind(&path).call(call)?;
        socket.set_nonblocking(true).call(call)?;
        // Whatever user the program runs as may tell.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).call(call)?;
        let host = address(&host).call(|| format!("{VARIABLE}={}", host.display()))?;
        Ok(Some(Self { socket, host }))
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Pass on what there is; `true` once the container has said that it is ready.
    ///
    /// # Errors
    /// Of the service manager's socket.
    pub(crate) fn pass(&self, pid: i32) -> Result<bool, CallError> {
        let mut ready = false;
        let mut bytes = [0; LONGEST];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            let (message, says_ready) = translate(&bytes[..length], pid);
            ready |= says_ready;
            if message.is_empty() {
                continue;
            }
            let sent = UnixDatagram::unbound().and_then(|s| s.send_to_addr(&message, &self.host));
            sent.call(|| format!("send to {VARIABLE}"))?;
        }
        Ok(ready)
    }

    /// Wait until the container is ready, or its first process has ended.
    ///
    /// # Errors
    /// Names the call.
    pub(crate) fn await_ready(&self, pid: i32, process: BorrowedFd<'_>) -> Result<(), CallError> {
        loop {
            let mut fds = [
                PollFd::new(process, PollFlags::POLLIN),
                PollFd::new(self.handle(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                answer => answer.call(|| "poll".to_owned())?,
            };
            let ended = fds[0].any().unwrap_or(false);
            if self.pass(pid)? || ended {
                return Ok(());
            }
        }
    }
}

/// Of its own processes the container knows no pids that mean anything outside: the first one is named instead.
fn translate(message: &[u8], pid: i32) -> (Vec<u8>, bool) {
    let lines =
        message.split(|b| *b == b'\n').filter(|l| !l.is_empty() && !l.starts_with(b"MAINPID="));
    let mut kept: Vec<u8> = lines.flat_map(|l| l.iter().copied().chain([b'\n'])).collect();
    let ready = message.split(|b| *b == b'\n').any(|l| l == b"READY=1");
    if ready {
        kept.extend(format!("MAINPID={pid}\n").bytes());
    }
    (kept, ready)
}

/// A path, or an abstract name after `@` (unix(7)).
fn address(text: &OsStr) -> io::Result<SocketAddr> {
    match text.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(text),
    }
}

#[cfg(test)]
mod tests {
    use super::translate;

    #[test]
    fn the_pid_is_the_one_that_means_something_outside() {
        assert_eq!(translate(b"STATUS=x\nMAINPID=1", 77), (b"STATUS=x\n".to_vec(), false));
        assert_eq!(translate(b"READY=1", 77), (b"READY=1\nMAINPID=77\n".to_vec(), true));
    }
}
