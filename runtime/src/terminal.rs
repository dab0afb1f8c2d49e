//! Both ways that a terminal's master may go: to the caller through `--console-socket`, or to us, who relay it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hafen_sys::{CallError, Context, socket};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::sys::termios::{self, SetArg, Termios};

use crate::Error;

/// The socket for the master, and our end of it where we are the ones who want it.
#[derive(Debug)]
pub(crate) struct Console {
    theirs: Option<OwnedFd>,
    ours: Option<UnixStream>,
}

impl Console {
    /// # Errors
    /// Names the socket.
    pub(crate) fn connect(path: &Path) -> Result<Self, CallError> {
        let stream = socket::connect(path)
            .call(|| format!("connect --console-socket {}", path.display()))?;
        Ok(Self { theirs: Some(stream.into()), ours: None })
    }

    /// # Errors
    /// Names the call.
    pub(crate) fn own() -> Result<Self, CallError> {
        let (ours, theirs) = UnixStream::pair().call(|| "socketpair".to_owned())?;
        Ok(Self { theirs: Some(theirs.into()), ours: Some(ours) })
    }

    /// The master that was sent to a console of our own, which nobody waits for.
    ///
    /// # Errors
    /// Names the call.
    pub(crate) fn receive(self) -> Result<OwnedFd, CallError> {
        let ours =
            self.ours.ok_or_else(|| CallError::errno("receive the terminal", Errno::EBADF))?;
        let master = socket::receive(&ours).call(|| "receive the terminal".to_owned())?;
        let flags = fcntl(&master, FcntlArg::F_GETFL).call(|| "fcntl F_GETFL".to_owned())?;
        let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
        fcntl(&master, FcntlArg::F_SETFL(flags)).call(|| "fcntl F_SETFL".to_owned())?;
        Ok(master)
    }

    /// The end for the process, once: the other one notices when nobody holds it any more.
    pub(crate) const fn give(&mut self) -> Option<OwnedFd> {
        self.theirs.take()
    }
}

/// Which way the master goes.
///
/// # Errors
/// In runc's words where the two do not fit together.
pub(crate) fn console(
    wanted: bool,
    detached: bool,
    path: Option<&Path>,
) -> Result<Option<Console>, Error> {
    match (wanted, path) {
        (true, Some(path)) => Ok(Some(Console::connect(path)?)),
        (true, None) if detached => Err(Error::Refused(
            "cannot allocate tty if the runtime will detach without setting console socket"
                .to_owned(),
        )),
        (true, None) => Ok(Some(Console::own()?)),
        (false, Some(_)) => {
            Err(Error::Refused("cannot use console socket: process.terminal is false".to_owned()))
        }
        (false, None) => Ok(None),
    }
}

/// The foreground's side of a terminal: bytes both ways, and the size of our own window.
#[derive(Debug)]
pub(crate) struct Relay {
    master: File,
    /// How our own terminal was before.
    saved: Option<Termios>,
    /// Read from stdin, and not yet taken by the other side.
    pending: Vec<u8>,
    input: bool,
    output: bool,
}

const CHUNK: usize = 16 * 1024;

impl Relay {
    /// Take over the master that was sent to a console of our own; `None` if it goes to somebody else.
    ///
    /// # Errors
    /// Names the call.
    pub(crate) fn take(console: Console) -> Result<Option<Self>, CallError> {
        if console.ours.is_none() {
            return Ok(None);
        }
        let master = console.receive()?;
        let saved = make_raw().call(|| "tcsetattr".to_owned())?;
        let relay =
            Self { master: master.into(), saved, pending: Vec::new(), input: true, output: true };
        relay.resize();
        Ok(Some(relay))
    }

    /// The size of our window is the size of theirs.
    pub(crate) fn resize(&self) {
        if let Some(size) = hafen_sys::terminal::size(std::io::stdin()) {
            // Nothing is lost but looks.
            let _ = hafen_sys::terminal::set_size(&self.master, size);
        }
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> Vec<PollFd<'_>> {
        let mut master = PollFlags::empty();
        master.set(PollFlags::POLLIN, self.output);
        master.set(PollFlags::POLLOUT, !self.pending.is_empty());
        let input = if self.input && self.pending.is_empty() {
            PollFlags::POLLIN
        } else {
            PollFlags::empty()
        };
        let mut fds = Vec::new();
        if !master.is_empty() {
            fds.push(PollFd::new(self.master.as_fd(), master));
        }
        if !input.is_empty() {
            fds.push(PollFd::new(stdin(), input));
        }
        fds
    }

    /// Move what can be moved without waiting.
    ///
    /// # Errors
    /// Of reading or writing, but for the ends of both sides.
    pub(crate) fn turn(&mut self, input_ready: bool) -> Result<(), CallError> {
        self.pass_output().call(|| "relay the terminal's output".to_owned())?;
        if input_ready && self.pending.is_empty() {
            self.read_input().call(|| "read stdin".to_owned())?;
        }
        self.pass_input().call(|| "relay input to the terminal".to_owned())
    }

    fn pass_output(&mut self) -> io::Result<()> {
        let mut bytes = [0; CHUNK];
        while self.output {
            match self.master.read(&mut bytes) {
                Ok(0) => self.output = false,
                // Where nobody reads any more it is read all the same: the program must not get stuck.
                Ok(n) => drop(print(&bytes[..n])),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Nobody holds the other end any more (pty(7)).
                Err(e) if e.raw_os_error() == Some(libc::EIO) => self.output = false,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn read_input(&mut self) -> io::Result<()> {
        let mut bytes = [0; CHUNK];
        match nix::unistd::read(stdin(), &mut bytes) {
            Ok(0) | Err(Errno::EIO) => self.input = false,
            Ok(n) => self.pending.extend_from_slice(&bytes[..n]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn pass_input(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match self.master.write(&self.pending) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.raw_os_error() == Some(libc::EIO) => self.pending.clear(),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            let _ = termios::tcsetattr(stdin(), SetArg::TCSADRAIN, saved);
        }
    }
}

fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

pub(crate) fn stdin() -> BorrowedFd<'static> {
    // Open for as long as the program runs: the standard library sees to that at its start.
    static STDIN: std::sync::OnceLock<std::io::Stdin> = std::sync::OnceLock::new();
    STDIN.get_or_init(io::stdin).as_fd()
}

/// Keys are for the program inside; `None` where stdin is no terminal.
fn make_raw() -> nix::Result<Option<Termios>> {
    let saved = match termios::tcgetattr(stdin()) {
        Err(Errno::ENOTTY | Errno::EINVAL | Errno::ENODEV | Errno::EIO) => return Ok(None),
        answer => answer?,
    };
    let mut raw = saved.clone();
    termios::cfmakeraw(&mut raw);
    termios::tcsetattr(stdin(), SetArg::TCSANOW, &raw)?;
    Ok(Some(saved))
}
