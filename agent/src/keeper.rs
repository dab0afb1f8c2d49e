//! The keepers of containers, as the agent sees them: started as programs, spoken to on their sockets.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hafen_spec::keep::{self, Frame, HEAD, Request, SOCKET, Status, Told};
use hafen_sys::{CallError, Context, socket};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout_at};

/// Between two looks at what is not there yet: short at first, because it mostly is a matter of a moment.
const PAUSE: Duration = Duration::from_millis(1);
const PAUSE_MOST: Duration = Duration::from_millis(20);

/// The runtime, and where it keeps its state.
#[derive(Debug, Clone)]
pub struct Runtime {
    pub program: PathBuf,
    pub root: PathBuf,
}

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error(transparent)]
    Call(#[from] CallError),
    /// In the runtime's words.
    #[error("{why}")]
    Refused {
        why: String,
        /// Of the runtime.
        code: Option<i32>,
    },
    #[error("it took longer than {} s", .0.as_secs())]
    Late(Duration),
}

impl LaunchError {
    /// As shells count what they cannot run.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Refused { code: Some(code @ (126 | 127)), .. } => Some(*code),
            _ => None,
        }
    }
}

impl Runtime {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).stdin(Stdio::null());
        command
    }

    /// Run a command of the runtime to its end. The answer is what it printed.
    ///
    /// # Errors
    /// What it says.
    pub async fn call<I>(&self, words: I, patience: Duration) -> Result<String, LaunchError>
    where
        I: IntoIterator<Item: AsRef<std::ffi::OsStr>>,
    {
        let mut command = self.command();
        command.args(words).kill_on_drop(true);
        let output = tokio::time::timeout(patience, command.output());
        let output = output.await.map_err(|_| LaunchError::Late(patience))?;
        let output = output.call(|| format!("run {}", self.program.display()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(refused(&output))
    }

    /// Begin a keeper, and wait until its container runs. The keeper goes on whatever becomes of us.
    ///
    /// # Errors
    /// What the runtime says, or that it takes too long; nothing is left then but what a release finds.
    pub async fn keep<I>(&self, words: I, patience: Duration) -> Result<Child, LaunchError>
    where
        I: IntoIterator<Item: AsRef<std::ffi::OsStr>>,
    {
        let mut command = self.command();
        command.arg("keep").args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().call(|| format!("run {}", self.program.display()))?;
        let deadline = Instant::now() + patience;
        let mut ready = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut lines = BufReader::new(stdout);
            let read = timeout_at(deadline, lines.read_line(&mut ready)).await;
            let read = match read {
                Ok(read) => read,
                Err(_) => return late(child, patience).await,
            };
            read.call(|| "read from a keeper".to_owned())?;
        }
        if ready.is_empty() {
            let output = child.wait_with_output().await.call(|| "wait for a keeper".to_owned())?;
            return Err(refused(&output));
        }
        // What it says from here on, it says on its socket.
        child.stderr.take();
        Ok(child)
    }
}

async fn late(mut child: Child, patience: Duration) -> Result<Child, LaunchError> {
    // Not yet a parent of anything that runs, or about to tell: what is left is released.
    child.kill().await.call(|| "kill a keeper".to_owned())?;
    Err(LaunchError::Late(patience))
}

fn refused(output: &std::process::Output) -> LaunchError {
    let why = said(&output.stderr).unwrap_or_else(|| {
        // As somebody may have killed it.
        format!("hafen-oci ended without a word: {}", output.status)
    });
    LaunchError::Refused { why, code: output.status.code() }
}

/// The runtime's own words, without its name.
fn said(stderr: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().rfind(|line| !line.contains("warning:"))?;
    Some(line.strip_prefix("hafen-oci: ").unwrap_or(line).to_owned())
}

/// Is there a keeper of this folder?
///
/// # Errors
/// Names the file.
pub fn is_kept(folder: &Path) -> Result<bool, CallError> {
    let path = folder.join(keep::LOCK);
    let file = match std::fs::File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        answer => answer.call(|| format!("open {}", path.display()))?,
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, e)) => Err(CallError::errno(format!("flock {}", path.display()), e)),
    }
}

/// Wait until the keeper of a folder is gone.
///
/// # Errors
/// ETIMEDOUT; names the file.
pub async fn gone(folder: &Path, patience: Duration) -> Result<(), CallError> {
    let deadline = Instant::now() + patience;
    let mut pause = PAUSE;
    while is_kept(folder)? {
        if Instant::now() > deadline {
            let call = format!("wait for the keeper of {}", folder.display());
            return Err(CallError::errno(call, Errno::ETIMEDOUT));
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MOST);
    }
    Ok(())
}

/// How a container ended, if its keeper has written it down.
///
/// # Errors
/// Names the file: it is not there as a whole, or not readable.
pub fn read_end(folder: &Path) -> Result<Option<keep::ExitRecord>, CallError> {
    let end = keep::end(|name| std::fs::read(folder.join(name)));
    end.call(|| format!("read {}", folder.join(keep::EXIT).display()))
}

/// A connection to a keeper.
#[derive(Debug)]
pub struct Connection {
    pub status: Status,
    pub words: Words,
    pub news: News,
}

/// What it is told.
#[derive(Debug)]
pub struct Words(OwnedWriteHalf);

/// What it tells.
#[derive(Debug)]
pub struct News(BufReader<OwnedReadHalf>);

/// A frame with its content.
#[derive(Debug)]
pub enum Content {
    Told(Box<Told>),
    Output(Frame, Vec<u8>),
}

impl Connection {
    /// Connect to the keeper of a folder.
    ///
    /// # Errors
    /// Names the socket.
    pub async fn open(folder: &Path) -> Result<Self, CallError> {
        let path = folder.join(SOCKET);
        let named = || format!("connect {}", path.display());
        let stream = socket::connect(&path).call(named)?;
        stream.set_nonblocking(true).call(named)?;
        let (read, write) = UnixStream::from_std(stream).call(named)?.into_split();
        let mut news = News(BufReader::new(read));
        match news.next().await.call(named)? {
            Some(Content::Told(told)) => match *told {
                Told::Status(status) => Ok(Self { status: *status, words: Words(write), news }),
                _ => Err(CallError::errno(named(), Errno::EPROTO)),
            },
            _ => Err(CallError::errno(named(), Errno::EPROTO)),
        }
    }

    /// The same, as long as there is a keeper that may only not listen yet.
    ///
    /// # Errors
    /// Names the socket; nobody listened in time, or the keeper is gone.
    pub async fn open_within(folder: &Path, patience: Duration) -> Result<Self, CallError> {
        let deadline = Instant::now() + patience;
        let mut pause = PAUSE;
        loop {
            match Self::open(folder).await {
                Err(_) if Instant::now() < deadline && is_kept(folder)? => sleep(pause).await,
                answer => return answer,
            }
            pause = (pause * 2).min(PAUSE_MOST);
        }
    }
}

impl Words {
    /// # Errors
    /// Of writing: it is gone.
    pub async fn ask(&mut self, request: &Request) -> io::Result<()> {
        self.send(Frame::Word, &serde_json::to_vec(request)?).await
    }

    /// # Errors
    /// Of writing: it is gone.
    pub async fn send(&mut self, frame: Frame, content: &[u8]) -> io::Result<()> {
        for piece in content.chunks(keep::LONGEST).chain(content.is_empty().then_some(&[][..])) {
            self.0.write_all(&frame.head(piece.len())).await?;
            self.0.write_all(piece).await?;
        }
        Ok(())
    }

    /// With descriptors.
    ///
    /// # Errors
    /// Of writing: it is gone.
    pub async fn ask_with(
        &mut self,
        request: &Request,
        fds: &[std::os::fd::BorrowedFd<'_>],
    ) -> io::Result<()> {
        let text = serde_json::to_vec(request)?;
        let mut all = Frame::Word.head(text.len()).to_vec();
        all.extend(text);
        let taken = loop {
            self.0.writable().await?;
            match self.0.as_ref().try_io(tokio::io::Interest::WRITABLE, || {
                socket::send_some(self.0.as_ref().as_fd(), fds, &all)
            }) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                answer => break answer?,
            }
        };
        self.0.write_all(&all[taken..]).await
    }
}

impl News {
    /// The next frame; `None` when the keeper is gone. It may not be cancelled half-way: give it a task of its own.
    ///
    /// # Errors
    /// Of reading, or of what is not a frame.
    pub async fn next(&mut self) -> io::Result<Option<Content>> {
        let mut head = [0; HEAD];
        match self.0.read_exact(&mut head).await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            answer => answer?,
        };
        let (frame, length) = Frame::read_head(head).ok_or(io::ErrorKind::InvalidData)?;
        let mut content = vec![0; length];
        self.0.read_exact(&mut content).await?;
        Ok(Some(match frame {
            Frame::Word => Content::Told(Box::new(serde_json::from_slice(&content)?)),
            frame => Content::Output(frame, content),
        }))
    }
}
