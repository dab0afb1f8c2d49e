//! A person at a task's input and output: keys, signals, the size of the window, and what comes back.

use std::future::Future;
use std::io::{self, IsTerminal, Read};
use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use hafen::client::{Client, Cluster};
use hafen_protocol::v1::{self, attach_input, exec_input, output};
use hafen_sys::terminal;
use nix::sys::termios::{self, SetArg, Termios};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::show;
use crate::Error;

/// What is to be done with our input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) terminal: bool,
    pub(super) stdin: bool,
    pub(super) replay: bool,
}

/// How a session ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// With the code that a shell would have.
    Exit(u8),
    Detached,
    /// Without a word.
    Silence,
}

/// What we send.
#[derive(Debug)]
enum Input {
    Stdin(Vec<u8>),
    End,
    Size(v1::TerminalSize),
    Signal(i32),
}

/// Messages that wait for the node: who reads stdin waits then, too.
const WAITING: usize = 16;
/// Ctrl-P, Ctrl-Q.
const DETACH: [u8; 2] = [0x10, 0x11];

/// Our terminal gives each key as it is typed, until this is gone.
struct Raw(Termios);

impl Raw {
    fn set() -> Option<Self> {
        let before = termios::tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

/// # Errors
/// A terminal inside wants one outside.
pub(super) fn must_be_terminal() -> Result<(), Error> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Error::Refused("-t with -i wants a terminal, and stdin is none: leave out -t".to_owned()))
}

pub(super) fn size() -> Option<v1::TerminalSize> {
    let size = terminal::size(io::stdout()).or_else(|| terminal::size(io::stdin()))?;
    Some(v1::TerminalSize { rows: size.rows.into(), columns: size.columns.into() })
}

/// To a task of a node.
pub(super) async fn attach(client: &Client, id: &str, wanted: Wanted) -> Result<End, Error> {
    let (mut caller, to, name) = (client.clone(), client.clone(), id.to_owned());
    let signal = move |number: i32| -> Sending {
        let (mut to, request) = (to.clone(), signal_of(&name, number));
        Box::pin(async move { drop(to.signal_task(request).await) })
    };
    let call = |input| async move { caller.attach(input).await };
    attach_by(id, wanted, call, &signal).await
}

/// To a task wherever it is.
pub(super) async fn attach_far(client: &Cluster, id: &str, wanted: Wanted) -> Result<End, Error> {
    let (mut caller, to, name) = (client.clone(), client.clone(), id.to_owned());
    let signal = move |number: i32| -> Sending {
        let (mut to, request) = (to.clone(), signal_of(&name, number));
        Box::pin(async move { drop(to.signal_instance(request).await) })
    };
    let call = |input| async move { caller.attach(input).await };
    attach_by(id, wanted, call, &signal).await
}

fn signal_of(id: &str, number: i32) -> v1::SignalTaskRequest {
    v1::SignalTaskRequest { id: id.to_owned(), signal: number.to_string(), all: false }
}

/// Signals go beside the input.
async fn attach_by<F>(
    id: &str,
    wanted: Wanted,
    call: impl FnOnce(Pin<Box<dyn Stream<Item = v1::AttachInput> + Send>>) -> F,
    signal: Beside<'_>,
) -> Result<End, Error>
where
    F: Future<Output = Result<Response<Streaming<v1::Output>>, Status>>,
{
    let start = v1::AttachStart { id: id.to_owned(), replay: wanted.replay };
    let first = v1::AttachInput { what: Some(attach_input::What::Start(start)) };
    let (inputs, queue) = mpsc::channel(WAITING);
    let rest =
        ReceiverStream::new(queue).filter_map(|input| std::future::ready(attach_message(input)));
    let messages = tokio_stream::once(first).chain(rest);
    let outputs = call(Box::pin(messages)).await?.into_inner();
    relay(outputs, inputs, wanted, Some(signal)).await
}

/// What becomes of a signal nobody asks: a task that has ended meanwhile needs none.
type Sending = Pin<Box<dyn Future<Output = ()> + Send>>;

fn attach_message(input: Input) -> Option<v1::AttachInput> {
    use attach_input::What;
    let what = match input {
        Input::Stdin(bytes) => What::Stdin(bytes),
        Input::End => What::End(true),
        Input::Size(size) => What::Size(size),
        Input::Signal(_) => return None,
    };
    Some(v1::AttachInput { what: Some(what) })
}

/// To whoever knows the task: its node, or a coordinator.
pub(super) async fn exec<F>(
    start: v1::ExecStart,
    call: impl FnOnce(Pin<Box<dyn Stream<Item = v1::ExecInput> + Send>>) -> F,
) -> Result<End, Error>
where
    F: Future<Output = Result<Response<Streaming<v1::Output>>, Status>>,
{
    let wanted = Wanted { terminal: start.terminal, stdin: !start.no_stdin, replay: false };
    let first = v1::ExecInput { what: Some(exec_input::What::Start(start)) };
    let (inputs, queue) = mpsc::channel(WAITING);
    let messages = tokio_stream::once(first).chain(exec_messages(ReceiverStream::new(queue)));
    let outputs = call(Box::pin(messages)).await?.into_inner();
    relay(outputs, inputs, wanted, None).await
}

fn exec_messages(inputs: impl Stream<Item = Input>) -> impl Stream<Item = v1::ExecInput> {
    use exec_input::What;
    inputs.map(|input| {
        let what = match input {
            Input::Stdin(bytes) => What::Stdin(bytes),
            Input::End => What::End(true),
            Input::Size(size) => What::Size(size),
            Input::Signal(number) => What::Signal(number),
        };
        v1::ExecInput { what: Some(what) }
    })
}

/// A way for signals beside the stream of input.
type Beside<'a> = &'a (dyn Fn(i32) -> Sending + Send + Sync);

async fn relay(
    mut outputs: Streaming<v1::Output>,
    inputs: mpsc::Sender<Input>,
    wanted: Wanted,
    beside: Option<Beside<'_>>,
) -> Result<End, Error> {
    let is_terminal = wanted.terminal && wanted.stdin && io::stdin().is_terminal();
    let _raw = if is_terminal { Raw::set() } else { None };
    let (letting_go, mut let_go) = mpsc::channel(1);
    if wanted.stdin {
        let inputs = inputs.clone();
        // A thread of its own: nothing interrupts a read of stdin, and the end of the program need not wait for it.
        std::thread::spawn(move || read_keys(&inputs, is_terminal, &letting_go));
    }
    let mut signals = Signals::new()?;
    if wanted.terminal {
        send_size(&inputs);
    }
    loop {
        // Each arm keeps in its own value what has come and was not told, so all may be dropped at any time.
        tokio::select! {
            message = outputs.message() => {
                let Some(message) = message? else { return Ok(End::Silence) };
                if let Some(code) = tell(message)? {
                    return Ok(End::Exit(code));
                }
            }
            Some(()) = let_go.recv() => return Ok(End::Detached),
            number = signals.next() => match (number, beside) {
                (SIZE, _) if wanted.terminal => send_size(&inputs),
                (SIZE, _) => {}
                (number, Some(send)) => drop(tokio::spawn(send(number))),
                // A full queue is a program that reads nothing: signals are then lost with the rest.
                (number, None) => drop(inputs.try_send(Input::Signal(number))),
            },
        }
    }
}

fn send_size(inputs: &mpsc::Sender<Input>) {
    if let Some(size) = size() {
        // The next change tells it again.
        let _ = inputs.try_send(Input::Size(size));
    }
}

/// The exit code of the program, if this was its end.
fn tell(message: v1::Output) -> Result<Option<u8>, Error> {
    match message.what {
        Some(output::What::Stdout(bytes)) => show::bytes(&bytes)?,
        Some(output::What::Stderr(bytes)) => show::errors(&bytes)?,
        Some(output::What::Exit(exit)) => return Ok(Some(show::exit_code(&exit))),
        Some(output::What::Started(_)) | None => {}
    }
    Ok(None)
}

fn read_keys(inputs: &mpsc::Sender<Input>, is_terminal: bool, let_go: &mpsc::Sender<()>) {
    const CHUNK: usize = 32 << 10;
    let mut buffer = vec![0; CHUNK];
    let mut last = 0;
    loop {
        match io::stdin().lock().read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => {
                let _ = inputs.blocking_send(Input::End);
                return;
            }
            Ok(count) => {
                let bytes = buffer[..count].to_vec();
                if is_terminal && lets_go(&mut last, &bytes) {
                    let _ = let_go.blocking_send(());
                    return;
                }
                if inputs.blocking_send(Input::Stdin(bytes)).is_err() {
                    return;
                }
            }
        }
    }
}

/// Are the two keys among these, or the second after the first of an earlier read?
fn lets_go(last: &mut u8, bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| std::mem::replace(last, *byte) == DETACH[0] && *byte == DETACH[1])
}

/// What is passed on, and the window's change.
struct Signals(Vec<(i32, Signal)>);

const SIZE: i32 = nix::libc::SIGWINCH;

impl Signals {
    fn new() -> Result<Self, Error> {
        use nix::libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
        let all = [SIZE, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2]
            .map(|number| signal(SignalKind::from_raw(number)).map(|signal| (number, signal)));
        let all: Result<Vec<_>, _> = all.into_iter().collect();
        all.map(Self).map_err(|e| Error::Refused(format!("sigaction: {e}")))
    }

    /// Loses nothing when it is dropped: each signal keeps that it has come (tokio, "Cancel safety").
    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::lets_go;

    #[test]
    fn two_keys_let_go_also_when_they_come_apart() {
        let mut last = 0;
        assert!(!lets_go(&mut last, b"a\x10"));
        assert!(lets_go(&mut last, b"\x11"));
        assert!(lets_go(&mut 0, b"x\x10\x11"));
        assert!(!lets_go(&mut 0, b"\x10x\x11"));
    }
}
