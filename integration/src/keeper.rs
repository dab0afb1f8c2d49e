//! A container with a keeper, and a client of the keeper's socket.

use std::fs::{self, File};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen_spec::keep::{self, ExitRecord, Frame, HEAD, Request, SOCKET, Status, Told};
use nix::sys::signal::Signal;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::{Oci, Output, Running, patience};

const WAIT: Duration = Duration::from_secs(20);

/// `hafen-oci keep`, which goes on.
#[derive(Debug)]
pub struct Kept {
    dir: PathBuf,
    call: Running,
}

impl Kept {
    /// `keep --dir DIR WORDS..`, up to where the container runs.
    ///
    /// # Panics
    /// Where it does not.
    pub fn begin<S: AsRef<str>>(oci: &Oci, dir: &Path, words: impl IntoIterator<Item = S>) -> Self {
        let mut kept = Self::spawn(oci, dir, words);
        kept.call.await_text("\"pid\"");
        kept
    }

    /// The same without waiting for anything.
    pub fn spawn<S: AsRef<str>>(oci: &Oci, dir: &Path, words: impl IntoIterator<Item = S>) -> Self {
        let head = ["keep".to_owned(), "--dir".to_owned(), dir.display().to_string()];
        let words = words.into_iter().map(|word| word.as_ref().to_owned());
        Self { dir: dir.to_owned(), call: oci.spawn(head.into_iter().chain(words)) }
    }

    /// Of the keeper.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.call.pid()
    }

    /// Whether the keeper has ended.
    pub fn has_ended(&mut self) -> bool {
        self.call.has_ended()
    }

    pub fn signal(&self, signal: Signal) {
        self.call.signal(signal);
    }

    /// As by SIGKILL.
    pub fn kill(self) {
        self.call.signal(Signal::SIGKILL);
        assert_eq!(self.call.wait().signal, Some(9));
    }

    /// # Panics
    /// Where nobody listens.
    #[must_use]
    pub fn connect(&self) -> Client {
        Client::connect(&self.dir)
    }

    /// Its end, whatever that is.
    #[must_use]
    pub fn wait(self) -> Output {
        self.call.wait_at_most(Duration::from_secs(60))
    }

    /// Its end, and what it wrote down.
    #[must_use]
    pub fn end(self) -> ExitRecord {
        let dir = self.dir.clone();
        let _ = self.wait().ok();
        exit(&dir)
    }
}

/// What a keeper wrote down last.
///
/// # Panics
/// Where it did not.
#[must_use]
pub fn exit(dir: &Path) -> ExitRecord {
    let end = keep::end(|name| fs::read(dir.join(name)));
    let end = end.unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    end.unwrap_or_else(|| panic!("{}: no end is written down", dir.display()))
}

/// What a keeper says.
#[derive(Debug)]
pub enum Heard {
    Told(Told),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// The first that it was told.
    pub status: Status,
    /// All that came meanwhile.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub told: Vec<Told>,
}

impl Client {
    /// # Panics
    /// Where nobody listens, or says something else than how it is.
    #[must_use]
    pub fn connect(dir: &Path) -> Self {
        let path = dir.join(SOCKET);
        let stream =
            UnixStream::connect(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        stream.set_read_timeout(Some(patience(WAIT))).expect("a time limit");
        let Some(Heard::Told(Told::Status(status))) = hear(&stream) else {
            panic!("{}: no status first", path.display())
        };
        let (stdout, stderr, told) = (Vec::new(), Vec::new(), Vec::new());
        Self { stream, status: *status, stdout, stderr, told }
    }

    /// Ask for what the program writes.
    #[must_use]
    pub fn attached(mut self, replay: bool, lossless: bool) -> Self {
        self.ask(&Request::Attach { replay, lossless });
        self
    }

    pub fn ask(&mut self, request: &Request) {
        self.ask_with(request, &[]);
    }

    /// With descriptors.
    ///
    /// # Panics
    /// Where it cannot be sent.
    pub fn ask_with(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) {
        let text = serde_json::to_vec(request).expect("a request is JSON");
        let bytes = [Frame::Word.head(text.len()).to_vec(), text].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "room for descriptors");
        }
        let sent =
            sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
        let sent = sent.expect("send a request");
        self.raw(&bytes[sent..]);
    }

    /// For the program.
    pub fn input(&mut self, bytes: &[u8]) {
        let frame = [&Frame::Stdin.head(bytes.len())[..], bytes].concat();
        self.raw(&frame);
    }

    /// As much of it as is taken within a moment.
    pub fn input_as_taken(&mut self, bytes: &[u8]) {
        let frame = [&Frame::Stdin.head(bytes.len())[..], bytes].concat();
        self.stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a time limit");
        let _ = self.stream.write_all(&frame);
    }

    /// Whatever it is.
    ///
    /// # Panics
    /// Where it cannot be sent.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("send");
    }

    /// No more is sent.
    pub fn shut(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next; `None` at the end.
    pub fn hear(&mut self) -> bool {
        match hear(&self.stream) {
            None => return false,
            Some(Heard::Told(told)) => self.told.push(told),
            Some(Heard::Stdout(bytes)) => self.stdout.extend(bytes),
            Some(Heard::Stderr(bytes)) => self.stderr.extend(bytes),
        }
        true
    }

    /// Listen until this is so.
    ///
    /// # Panics
    /// Where the keeper goes before.
    #[track_caller]
    pub fn until<T>(&mut self, found: impl Fn(&Self) -> Option<T>) -> T {
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            assert!(self.hear(), "the end came first: {:?} {:?}", self.text(), self.told);
        }
    }

    /// Listen until it is told something, which is taken.
    #[track_caller]
    pub fn until_told<T>(&mut self, found: impl Fn(&Told) -> Option<T>) -> T {
        let (at, answer) =
            self.until(|c| c.told.iter().enumerate().find_map(|(at, t)| Some((at, found(t)?))));
        self.told.remove(at);
        answer
    }

    /// Listen until the program has written this to its stdout.
    #[track_caller]
    pub fn until_text(&mut self, text: &str) {
        self.until(|c| c.text().contains(text).then_some(()));
    }

    /// Listen until it is told of the end.
    #[track_caller]
    pub fn until_exit(&mut self) -> ExitRecord {
        self.until_told(|t| match t {
            Told::Exited(exit) => Some(*exit.clone()),
            _ => None,
        })
    }

    /// Listen until it is told that something did not work.
    #[track_caller]
    pub fn until_failed(&mut self) -> String {
        self.until_told(|t| match t {
            Told::Failed { error } => Some(error.clone()),
            _ => None,
        })
    }

    /// Listen to the last.
    pub fn to_the_end(&mut self) {
        while self.hear() {}
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).replace('\r', "")
    }
}

/// Nothing that comes in time is a failure, and no end.
fn hear(mut stream: &UnixStream) -> Option<Heard> {
    let mut head = [0; HEAD];
    match stream.read(&mut head[..1]) {
        Ok(0) => return None,
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
        answer => answer.expect("a keeper says something in time"),
    };
    stream.read_exact(&mut head[1..]).expect("a whole head");
    let (frame, length) = Frame::read_head(head).expect("a head of a frame");
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("a whole frame");
    Some(match frame {
        Frame::Word => Heard::Told(serde_json::from_slice(&bytes).expect("words that are known")),
        Frame::Stdout => Heard::Stdout(bytes),
        Frame::Stderr => Heard::Stderr(bytes),
        Frame::Stdin => panic!("a keeper has no input for its clients"),
    })
}

/// A line of a log in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub time: String,
    pub stream: String,
    pub bytes: Vec<u8>,
}

/// All lines of a log, the oldest first, also of the files before the newest.
///
/// # Panics
/// Where a file cannot be read, or holds something else.
#[must_use]
pub fn lines(log: &Path) -> Vec<Line> {
    let bytes = whole(log);
    let text = String::from_utf8(bytes).expect("a log in JSON is UTF-8");
    text.lines().map(line).collect()
}

fn line(text: &str) -> Line {
    let value: serde_json::Value =
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in the line {text:?}"));
    let field = |name: &str| value[name].as_str().map(str::to_owned);
    let bytes = field("log").map(String::into_bytes);
    let bytes = bytes.or_else(|| Some(decode(&field("base64")?)));
    Line {
        time: field("time").expect("a time"),
        stream: field("stream").expect("a stream"),
        bytes: bytes.unwrap_or_else(|| panic!("a line without content: {text}")),
    }
}

fn decode(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> = text.bytes().filter(|b| *b != b'=').map(digit).collect();
    fn digit(byte: u8) -> u32 {
        let at = DIGITS.iter().position(|d| *d == byte).expect("a digit of base64");
        u32::try_from(at).expect("a digit")
    }
    let group = |group: &[u32]| {
        let all = group.iter().enumerate().fold(0, |all, (at, digit)| all | digit << (18 - 6 * at));
        let [_, a, b, c] = all.to_be_bytes();
        [a, b, c][..group.len() - 1].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

/// The files of a log, the oldest first.
#[must_use]
pub fn files(log: &Path) -> Vec<PathBuf> {
    let numbered = |n: usize| PathBuf::from(format!("{}.{n}", log.display()));
    let count = (1..).take_while(|n| numbered(*n).exists()).count();
    (1..=count).rev().map(numbered).chain([log.to_owned()]).collect()
}

/// All that is in them.
///
/// # Panics
/// Where one cannot be read.
#[must_use]
pub fn whole(log: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for path in files(log) {
        let file = File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes));
        file.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    bytes
}

/// Descriptors of files, as a request sends them.
#[must_use]
pub fn borrowed(files: &[File]) -> Vec<BorrowedFd<'_>> {
    files.iter().map(AsFd::as_fd).collect()
}
