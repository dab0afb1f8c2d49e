//! What programs write and read, between keepers and whoever asked.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use hafen_protocol::v1;
use hafen_rootfs::account;
use hafen_spec::keep::{Frame, Request, Told};
use hafen_sys::file::{OpenHow, open_how, resolve};
use hafen_sys::socket;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::failure::{Failure, Kind, chain};
use crate::keeper::{Connection, Content, Words};
use crate::node::Flow;
use crate::time::span;

/// Messages that wait for a slow client; then the program waits.
const WAITING: usize = 16;
const CHUNK: usize = 32 << 10;
/// What is written after the end of a program by those it left behind is not waited for longer.
const FAREWELL: Duration = Duration::from_secs(2);

fn unavailable(error: &dyn std::error::Error) -> Failure {
    Failure::new(Kind::Unavailable, chain(error))
}

/// What a container writes from now on, and input for it.
///
/// # Errors
/// Its keeper is not there.
pub async fn attach(
    folder: &Path,
    start: &v1::AttachStart,
    input: Flow<v1::AttachInput>,
) -> Result<Flow<v1::Output>, Failure> {
    // Whoever has just ended tells nobody any more.
    let gone = |_| Failure::new(Kind::State, "it has ended: its log has what it wrote");
    let Connection { mut words, mut news, .. } = Connection::open(folder).await.map_err(gone)?;
    let request = Request::Attach { replay: start.replay, lossless: true };
    words.ask(&request).await.map_err(|e| unavailable(&e))?;
    let feeding = tokio::spawn(feed(words, input));
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        while let Ok(Some(content)) = news.next().await {
            let (what, last) = match content {
                Content::Output(Frame::Stdout, bytes) => (v1::output::What::Stdout(bytes), false),
                Content::Output(_, bytes) => (v1::output::What::Stderr(bytes), false),
                Content::Told(told) => match *told {
                    Told::Exited(end) => (ended(end.exit_code, end.signal, end.wall_usec), true),
                    _ => continue,
                },
            };
            if sender.send(Ok(v1::Output { what: Some(what) })).await.is_err() || last {
                break;
            }
        }
        feeding.abort();
    });
    Ok(ReceiverStream::new(receiver).boxed())
}

fn ended(code: Option<i32>, signal: Option<i32>, usec: u64) -> v1::output::What {
    let ran = Some(span(Duration::from_micros(usec)));
    v1::output::What::Exit(v1::Exit { code, signal, ran, ..v1::Exit::default() })
}

async fn feed(mut words: Words, mut input: Flow<v1::AttachInput>) {
    use v1::attach_input::What;
    while let Some(Ok(message)) = input.next().await {
        let sent = match message.what {
            Some(What::Stdin(bytes)) => words.send(Frame::Stdin, &bytes).await,
            Some(What::End(true)) => words.ask(&Request::EndInput).await,
            Some(What::Size(size)) => words.ask(&resize(&size)).await,
            _ => Ok(()),
        };
        if sent.is_err() {
            return;
        }
    }
    // Whoever goes away without a word leaves the input open for the next one. The connection is the keeper's to end.
    std::future::pending::<()>().await;
}

fn resize(size: &v1::TerminalSize) -> Request {
    let small = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Request::Resize { rows: small(size.rows), columns: small(size.columns) }
}

/// Run a command in a container whose output nobody wants. The answer is its exit code; 128 and its number for a signal.
///
/// # Errors
/// It could not be run, or took too long, and was ended then.
pub async fn exec_quietly(
    folder: &Path,
    args: Vec<String>,
    patience: Duration,
) -> Result<i32, Failure> {
    let Connection { mut words, mut news, .. } =
        Connection::open(folder).await.map_err(|e| unavailable(&e))?;
    let request = Request::Exec { number: 1, process: json!({ "args": args }), console: None };
    words.ask(&request).await.map_err(|e| unavailable(&e))?;
    let wait = async {
        while let Ok(Some(content)) = news.next().await {
            let Content::Told(told) = content else { continue };
            match *told {
                Told::ExecEnded { code, signal, .. } => return Ok(status(code, signal)),
                Told::Failed { error } => return Err(Failure::new(Kind::Unavailable, error)),
                _ => {}
            }
        }
        Err(Failure::new(Kind::Unavailable, "its keeper is gone"))
    };
    match tokio::time::timeout(patience, wait).await {
        Ok(answer) => answer,
        Err(_) => {
            let _ = words.ask(&Request::SignalExec { number: 1, signal: nix::libc::SIGKILL }).await;
            Err(Failure::new(
                Kind::Deadline,
                format!("it took longer than {} s", patience.as_secs_f64()),
            ))
        }
    }
}

/// As shells count.
fn status(code: Option<i32>, signal: Option<i32>) -> i32 {
    code.or(signal.map(|signal| 128 + signal)).unwrap_or(255)
}

/// Our ends of a program's three.
struct Ends {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

/// Run a program in a container.
///
/// # Errors
/// It cannot be described, or its keeper is not there.
pub async fn exec(
    folder: &Path,
    run: &Path,
    start: v1::ExecStart,
    input: Flow<v1::ExecInput>,
) -> Result<Flow<v1::Output>, Failure> {
    if start.command.is_empty() {
        return Err(Failure::new(Kind::Invalid, "command is missing: what is to be run?"));
    }
    let Connection { status, mut words, news } =
        Connection::open(folder).await.map_err(|e| unavailable(&e))?;
    let process = process(&start, status.pid)?;
    let (sender, receiver) = mpsc::channel(WAITING);
    if start.terminal {
        let console = Console::new(run).map_err(|e| unavailable(&e))?;
        let request = Request::Exec { number: 1, process, console: Some(console.path.clone()) };
        words.ask(&request).await.map_err(|e| unavailable(&e))?;
        tokio::spawn(with_terminal(console, words, news, input, sender, start.size));
    } else {
        let (ends, theirs) = pipes(!start.no_stdin).map_err(|e| unavailable(&e))?;
        let request = Request::Exec { number: 1, process, console: None };
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        words.ask_with(&request, &fds).await.map_err(|e| unavailable(&e))?;
        drop(theirs);
        tokio::spawn(with_pipes(ends, words, news, input, sender));
    }
    Ok(ReceiverStream::new(receiver).boxed())
}

fn process(start: &v1::ExecStart, pid: i32) -> Result<Value, Failure> {
    let env: Vec<String> = start.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut process = json!({ "args": start.command, "env": env, "terminal": start.terminal });
    if !start.cwd.is_empty() {
        process["cwd"] = json!(start.cwd);
    }
    if !start.user.is_empty() {
        let text = |path: &str| read_inside(pid, path).unwrap_or_default();
        let found = account::find(&start.user, &text("etc/passwd"), &text("etc/group"));
        let account = found.map_err(|why| Failure::new(Kind::Invalid, format!("user: {why}")))?;
        process["user"] =
            json!({ "uid": account.uid, "gid": account.gid, "additionalGids": account.groups });
    }
    if let Some(size) = &start.size {
        process["consoleSize"] = json!({ "height": size.rows, "width": size.columns });
    }
    Ok(process)
}

/// A small file of a container, by a path that cannot lead out of it.
fn read_inside(pid: i32, path: &str) -> Option<String> {
    use std::io::Read;
    const LARGEST: u64 = 1 << 20;
    let root = std::fs::File::open(format!("/proc/{pid}/root")).ok()?;
    let how = OpenHow {
        flags: u64::from(nix::libc::O_NONBLOCK.cast_unsigned()),
        mode: 0,
        resolve: resolve::IN_ROOT | resolve::NO_MAGICLINKS,
    };
    let file = open_how(&root, Path::new(path), how).ok()?;
    let mut text = String::new();
    std::fs::File::from(file).take(LARGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

fn pipes(stdin: bool) -> io::Result<(Ends, Vec<OwnedFd>)> {
    let (out, stdout) = pipe::pipe()?;
    let (err, stderr) = pipe::pipe()?;
    let (input, ours) = match stdin {
        true => {
            let (ours, theirs) = pipe::pipe()?;
            (theirs.into_blocking_fd()?, Some(ours))
        }
        false => (std::fs::File::open("/dev/null")?.into(), None),
    };
    let theirs = vec![input, out.into_blocking_fd()?, err.into_blocking_fd()?];
    Ok((Ends { stdin: ours, stdout: Some(stdout), stderr: Some(stderr) }, theirs))
}

type Sender = mpsc::Sender<Result<v1::Output, Failure>>;

async fn with_pipes(
    ends: Ends,
    words: Words,
    news: crate::keeper::News,
    input: Flow<v1::ExecInput>,
    sender: Sender,
) {
    let feeding = tokio::spawn(feed_exec(words, Sink::Pipe(ends.stdin), input));
    let out =
        ends.stdout.map(|end| tokio::spawn(pump(end, sender.clone(), v1::output::What::Stdout)));
    let err =
        ends.stderr.map(|end| tokio::spawn(pump(end, sender.clone(), v1::output::What::Stderr)));
    finish(news, sender, out.into_iter().chain(err).collect()).await;
    feeding.abort();
}

/// Tell what the keeper tells, and the end when all output is there.
async fn finish(
    mut news: crate::keeper::News,
    sender: Sender,
    pumps: Vec<tokio::task::JoinHandle<()>>,
) {
    let mut last = Err(Failure::new(Kind::Unavailable, "its keeper is gone"));
    let mut has_started = false;
    while let Ok(Some(content)) = news.next().await {
        let Content::Told(told) = content else { continue };
        match *told {
            Told::ExecStarted { .. } => {
                has_started = true;
                let what = Some(v1::output::What::Started(true));
                if sender.send(Ok(v1::Output { what })).await.is_err() {
                    return;
                }
            }
            Told::ExecEnded { code, signal, .. } => {
                let code = code.map(|code| if has_started { code } else { not_run(code) });
                last = Ok(v1::Output { what: Some(ended(code, signal, 0)) });
                break;
            }
            Told::Failed { error } => {
                last = Err(Failure::new(Kind::Unavailable, error));
                break;
            }
            Told::Exited(_) => {
                last = Err(Failure::new(Kind::State, "the container has ended"));
                break;
            }
            _ => {}
        }
    }
    for mut pump in pumps {
        // What it left behind may hold its output open.
        if tokio::time::timeout(FAREWELL, &mut pump).await.is_err() {
            pump.abort();
        }
    }
    let _ = sender.send(last).await;
}

/// What the keeper tells of a program that it could not run, as people know it.
const fn not_run(code: i32) -> i32 {
    const FAILED: i32 = 255;
    if code == FAILED { 125 } else { code }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    to: Sender,
    wrap: fn(Vec<u8>) -> v1::output::What,
) {
    let mut bytes = vec![0; CHUNK];
    // EIO: nobody holds the other end of a terminal any more.
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        let what = Some(wrap(bytes[..n].to_vec()));
        if to.send(Ok(v1::Output { what })).await.is_err() {
            return;
        }
    }
}

/// Where input of a program goes.
enum Sink {
    Pipe(Option<pipe::Sender>),
    Terminal(tokio::fs::File),
}

impl Sink {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(Some(pipe)) => pipe.write_all(bytes).await,
            Self::Pipe(None) => Ok(()),
            Self::Terminal(file) => {
                file.write_all(bytes).await?;
                file.flush().await
            }
        }
    }

    fn end(&mut self) {
        if let Self::Pipe(pipe) = self {
            *pipe = None;
        }
    }

    fn resize(&self, size: &v1::TerminalSize) {
        if let Self::Terminal(file) = self {
            let small = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
            let size = hafen_sys::terminal::Size {
                rows: small(size.rows),
                columns: small(size.columns),
                ..hafen_sys::terminal::Size::default()
            };
            // Nothing is lost but looks.
            let _ = hafen_sys::terminal::set_size(file, size);
        }
    }
}

async fn feed_exec(mut words: Words, mut sink: Sink, mut input: Flow<v1::ExecInput>) {
    use v1::exec_input::What;
    while let Some(Ok(message)) = input.next().await {
        match message.what {
            // A program that does not read ends nothing else.
            Some(What::Stdin(bytes)) => drop(sink.write(&bytes).await),
            Some(What::End(true)) => sink.end(),
            Some(What::Size(size)) => sink.resize(&size),
            Some(What::Signal(signal)) => {
                drop(words.ask(&Request::SignalExec { number: 1, signal }).await);
            }
            _ => {}
        }
    }
    sink.end();
    // The connection is held: its end would leave nobody to tell of the program's.
    std::future::pending::<()>().await;
}

/// A socket that the master of a terminal comes to.
struct Console {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
}

impl Console {
    fn new(run: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("console-{}-{number}", std::process::id());
        let listener = socket::listen(run, &name)?;
        Ok(Self { listener, path: run.join(name) })
    }

    /// The master, once a program has it.
    fn receive(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        socket::receive(&stream)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        // Whoever waits in accept(2) is let go.
        let _ = std::os::unix::net::UnixStream::connect(&self.path);
    }
}

async fn with_terminal(
    console: Console,
    words: Words,
    news: crate::keeper::News,
    input: Flow<v1::ExecInput>,
    sender: Sender,
    size: Option<v1::TerminalSize>,
) {
    let (told, master) = tokio::sync::oneshot::channel();
    let waiting = std::sync::Arc::new(console);
    let accepting = waiting.clone();
    // A thread of its own: it waits for as long as nobody comes, and a program that cannot be run never does.
    let accept = move || drop(told.send(accepting.receive()));
    if let Err(e) = std::thread::Builder::new().name("console".to_owned()).spawn(accept) {
        let failure = Failure::new(Kind::Exhausted, format!("start a thread: {e}"));
        let _ = sender.send(Err(failure)).await;
        return;
    }
    let (feeds, feeding) = tokio::sync::oneshot::channel();
    let terminal = {
        let sender = sender.clone();
        async move {
            let Ok(Ok(master)) = master.await else { return };
            let Ok(copy) = master.try_clone() else { return };
            let sink = Sink::Terminal(tokio::fs::File::from_std(copy.into()));
            size.iter().for_each(|size| sink.resize(size));
            // It holds the connection, and a terminal may have ended before its program is told to have.
            let _ = feeds.send(tokio::spawn(feed_exec(words, sink, input)));
            let from = tokio::fs::File::from_std(master.into());
            pump(from, sender, v1::output::What::Stdout).await;
        }
    };
    let pump = tokio::spawn(terminal);
    finish(news, sender, vec![pump]).await;
    if let Ok(feeding) = feeding.await {
        feeding.abort();
    }
    // It is let go where it still waits.
    let _ = std::os::unix::net::UnixStream::connect(&waiting.path);
}
