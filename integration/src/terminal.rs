//! A person at a terminal: a call whose standard streams are one, keys, and a window that changes.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{self, LocalFlags, Termios};
use nix::unistd::Pid;
use rustix::termios::{Winsize as Size, tcsetwinsize};

use crate::{Call, patience, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// A call in the foreground of a terminal of its own. When it is dropped, the call is killed.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    /// Held, so that what is written last can still be read, and the modes be looked at.
    slave: File,
    child: Child,
    said: String,
    text: Vec<u8>,
}

impl Terminal {
    /// # Panics
    /// There is no terminal, or no such program.
    #[must_use]
    pub fn start(call: &Call, rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).expect("a terminal");
        for fd in [&pair.master, &pair.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("close-on-exec");
        }
        fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("O_NONBLOCK");
        let slave = File::from(pair.slave);
        let stream = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let mut command = call.command(&["setsid", "--ctty"]);
        command.stdin(stream()).stdout(stream()).stderr(stream());
        let child = command.spawn().unwrap_or_else(|e| panic!("{call}: {e}"));
        drop(command);
        let master = File::from(pair.master);
        Self { master, slave, child, said: call.to_string(), text: Vec::new() }
    }

    /// As if they were typed.
    ///
    /// # Panics
    /// Nobody reads them.
    pub fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", self.said));
    }

    /// The window is changed: who is in the foreground gets SIGWINCH.
    ///
    /// # Panics
    /// It cannot be.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Size { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.master.as_fd(), size).expect("TIOCSWINSZ");
    }

    /// What was written so far, without carriage returns.
    pub fn text(&mut self) -> String {
        let mut bytes = [0; 4096];
        loop {
            match self.master.read(&mut bytes) {
                Ok(length @ 1..) => self.text.extend(&bytes[..length]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        String::from_utf8_lossy(&self.text).replace('\r', "")
    }

    /// # Panics
    /// It is never written.
    #[track_caller]
    pub fn await_text(&mut self, wanted: &str) {
        let found = wait_until(PATIENCE, || self.text().contains(wanted).then_some(()));
        let text = self.text();
        assert!(found.is_some(), "{}: never wrote {wanted:?}: {text:?}", self.said);
    }

    /// # Panics
    /// It has none.
    #[must_use]
    pub fn modes(&self) -> Termios {
        termios::tcgetattr(&self.slave).expect("tcgetattr")
    }

    /// Is each key given as it is typed?
    ///
    /// # Panics
    /// It is never so.
    #[track_caller]
    pub fn await_raw(&self) {
        let is_raw = || !self.modes().local_flags.contains(LocalFlags::ICANON);
        let found = wait_until(PATIENCE, || is_raw().then_some(()));
        assert!(found.is_some(), "{}: the terminal is never raw", self.said);
    }

    /// To the call itself.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.pid(), signal);
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"))
    }

    /// Waits for its end: the exit code, 128 and its number for a signal.
    ///
    /// # Panics
    /// It does not end.
    #[track_caller]
    pub fn ends(&mut self) -> i32 {
        let status = wait_until(PATIENCE, || {
            // Who writes to a terminal that nobody reads, waits.
            let _ = self.text();
            self.child.try_wait().expect("wait for the call")
        });
        let Some(status) = status else {
            let (within, text) = (patience(PATIENCE), self.text());
            panic!("{}: goes on after {within:?}: {text:?}", self.said)
        };
        status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
