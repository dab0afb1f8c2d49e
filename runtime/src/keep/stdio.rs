//! The ends of a program's stdin, stdout and stderr.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, tee};
use nix::sys::stat::Mode;
use nix::unistd::{dup, dup2_stderr, dup2_stdin, dup2_stdout, mkfifo, pipe2};

pub(super) const FIFOS: [&str; 3] = ["stdin", "stdout", "stderr"];

/// The keeper's ends.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// In place of the three.
    pub(crate) terminal: Option<OwnedFd>,
}

/// The program's ends.
#[derive(Debug)]
pub(crate) struct Ends {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// A pipe of our own, through which a fifo is looked at before anything is taken out of it (tee(2)): what a keeper has
/// not yet written down is still there when it dies.
#[derive(Debug)]
pub(crate) struct Glass {
    read: OwnedFd,
    write: OwnedFd,
}

impl Glass {
    /// # Errors
    /// Of pipe2(2).
    pub(crate) fn new() -> Result<Self, CallError> {
        let (read, write) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).call(|| "pipe2".to_owned())?;
        Ok(Self { read, write })
    }

    /// The first bytes of a fifo, which stay there; 0 is its end.
    ///
    /// # Errors
    /// EAGAIN: nothing is there.
    pub(crate) fn look(&self, fifo: &OwnedFd, bytes: &mut [u8]) -> io::Result<usize> {
        let there = tee(fifo, &self.write, bytes.len(), SpliceFFlags::SPLICE_F_NONBLOCK)?;
        take(&self.read, &mut bytes[..there])?;
        Ok(there)
    }
}

/// Take so many bytes that are there.
///
/// # Errors
/// Of read(2).
pub(crate) fn take(from: &OwnedFd, bytes: &mut [u8]) -> io::Result<()> {
    let mut taken = 0;
    while taken < bytes.len() {
        match nix::unistd::read(from, &mut bytes[taken..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => taken += n,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// What the keeper's own three were.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Make the fifos of a program, and open both ends. Those of its output it holds for reading as well: so nothing that it
/// writes gets lost, and it does not end, while there is no keeper.
///
/// # Errors
/// Names the file.
pub(crate) fn make(folder: &Path, stdin: bool) -> Result<(Streams, Ends), CallError> {
    let (ours_out, stdout) = output(&folder.join("stdout"))?;
    let (ours_err, stderr) = output(&folder.join("stderr"))?;
    let (ours_in, stdin) = match stdin {
        true => {
            let (ours, theirs) = input(&folder.join("stdin"))?;
            (Some(ours), theirs)
        }
        false => (None, nothing()?),
    };
    let streams =
        Streams { stdin: ours_in, stdout: Some(ours_out), stderr: Some(ours_err), terminal: None };
    Ok((streams, Ends { stdin, stdout, stderr }))
}

fn output(path: &Path) -> Result<(OwnedFd, OwnedFd), CallError> {
    make_fifo(path)?;
    let both = open(path, true, true, false)?;
    Ok((open(path, true, false, true)?, both))
}

/// Its end is for reading only: when the keeper closes the other one, input ends.
fn input(path: &Path) -> Result<(OwnedFd, OwnedFd), CallError> {
    make_fifo(path)?;
    // Neither end waits for the other where somebody has both.
    let _both = open(path, true, true, false)?;
    let ours = open(path, false, true, true)?;
    Ok((ours, open(path, true, false, false)?))
}

fn make_fifo(path: &Path) -> Result<(), CallError> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).call(|| format!("mkfifo {}", path.display()))
}

fn open(path: &Path, read: bool, write: bool, nonblocking: bool) -> Result<OwnedFd, CallError> {
    let flags = if nonblocking { OFlag::O_NONBLOCK } else { OFlag::empty() };
    let mut options = OpenOptions::new();
    options.read(read).write(write).custom_flags((flags | OFlag::O_CLOEXEC).bits());
    Ok(options.open(path).call(|| format!("open {}", path.display()))?.into())
}

fn nothing() -> Result<OwnedFd, CallError> {
    open(Path::new("/dev/null"), true, true, false)
}

/// The keeper's ends once more, from their fifos.
///
/// # Errors
/// Names the file.
pub(crate) fn open_again(folder: &Path) -> Result<Streams, CallError> {
    let again = |name: &str, read: bool| match open(&folder.join(name), read, !read, true) {
        Ok(end) => Ok(Some(end)),
        // Nobody reads it, or there never was one.
        Err(e) if e.is(Errno::ENXIO) || e.source.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    };
    Ok(Streams {
        stdin: again("stdin", false)?,
        stdout: again("stdout", true)?,
        stderr: again("stderr", true)?,
        terminal: None,
    })
}

/// # Errors
/// Names the file.
pub(crate) fn remove(folder: &Path) -> Result<(), CallError> {
    for name in FIFOS {
        let path = folder.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).call(|| format!("unlink {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Ends {
    /// Make them our own standard ones, which the program is born with.
    ///
    /// # Errors
    /// Of dup(2).
    pub(crate) fn put_on(self) -> Result<Own, CallError> {
        let keep = |fd: std::os::fd::BorrowedFd<'_>| -> Result<OwnedFd, CallError> {
            let copy = dup(fd).call(|| "dup".to_owned())?;
            set_close_on_exec(&copy)?;
            Ok(copy)
        };
        let own = Own {
            stdout: keep(std::io::stdout().as_fd())?,
            stderr: keep(std::io::stderr().as_fd())?,
        };
        let put = || {
            dup2_stdin(&self.stdin)?;
            dup2_stdout(&self.stdout)?;
            dup2_stderr(&self.stderr)
        };
        put().call(|| "dup2".to_owned())?;
        Ok(own)
    }
}

impl Own {
    /// What goes wrong is told where it was before.
    pub(crate) fn put_back(&self) {
        let _ = dup2_stderr(&self.stderr);
        let _ = dup2_stdout(&self.stdout);
    }
}

fn set_close_on_exec(fd: &OwnedFd) -> Result<(), CallError> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).call(|| "fcntl F_SETFD".to_owned())?;
    Ok(())
}

/// From here on nobody is told anything but through the socket.
///
/// # Errors
/// Of dup(2).
pub(crate) fn put_off() -> Result<(), CallError> {
    let nothing = File::from(nothing()?);
    let put = || {
        dup2_stdin(&nothing)?;
        dup2_stdout(&nothing)?;
        dup2_stderr(&nothing)
    };
    put().call(|| "dup2".to_owned())
}

impl Streams {
    /// Those that there are, by name.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &OwnedFd)> {
        let all = [
            ("stdin", &self.stdin),
            ("stdout", &self.stdout),
            ("stderr", &self.stderr),
            ("terminal", &self.terminal),
        ];
        all.into_iter().filter_map(|(name, end)| Some((name, end.as_ref()?)))
    }

    /// # Errors
    /// Of `find`.
    pub(crate) fn of<E>(find: impl Fn(&str) -> Result<Option<OwnedFd>, E>) -> Result<Self, E> {
        Ok(Self {
            stdin: find("stdin")?,
            stdout: find("stdout")?,
            stderr: find("stderr")?,
            terminal: find("terminal")?,
        })
    }
}
