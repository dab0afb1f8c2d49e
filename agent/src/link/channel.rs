//! Bytes for a master: what a task writes, a terminal in it. Each has a call of its own on the connection of the link.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use hafen_protocol::v1::master_client::MasterClient;
use hafen_protocol::v1::{self, channel_down, channel_up};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::clock::Heard;
use super::orders::{Answer, Gate};
use super::words;
use crate::failure::{Failure, Kind};
use crate::node::{Flow, Node};

/// Messages that wait for a slow master; then the task waits.
const WAITING: usize = 16;
/// Until the master has taken the call, and until it ends one of which it has heard the last.
const PATIENCE: Duration = Duration::from_secs(10);

/// The connection of a stream, for calls beside it.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) client: MasterClient<Channel>,
    pub(super) heard: Heard,
}

type Down = Streaming<v1::ChannelDown>;
type Up = mpsc::Sender<v1::ChannelUp>;

/// Open what a command asks for. It goes on by itself until one side ends it, or the stream of the command ends.
pub(super) async fn open(
    node: &Node,
    caller: &Caller,
    gate: Gate,
    command: String,
    open: v1::OpenChannel,
) -> Answer {
    use v1::open_channel::What;
    match open.what {
        Some(What::Logs(request)) => {
            let lines = node.logs(request).await?;
            let (up, down) = call(caller, command).await?;
            let none = |_| None::<()>;
            let (input, _) = mpsc::channel(1);
            spawn(gate, carry(lines, channel_up::What::Log, up, down, none, input));
        }
        Some(What::Exec(start)) => {
            let (input, receiver) = mpsc::channel(WAITING);
            let output = node.exec(start, flow(receiver)).await?;
            let (up, down) = call(caller, command).await?;
            let of = |what| match what {
                channel_down::What::Exec(input) => Some(Ok(input)),
                channel_down::What::Attach(_) => None,
            };
            spawn(gate, carry(output, channel_up::What::Output, up, down, of, input));
        }
        Some(What::Attach(start)) => {
            let (input, receiver) = mpsc::channel(WAITING);
            let output = node.attach(start, flow(receiver)).await?;
            let (up, down) = call(caller, command).await?;
            let of = |what| match what {
                channel_down::What::Attach(input) => Some(Ok(input)),
                channel_down::What::Exec(_) => None,
            };
            spawn(gate, carry(output, channel_up::What::Output, up, down, of, input));
        }
        None => {
            let words = "this node knows no such channel";
            return Err(words::failure(v1::failure::Kind::Unsupported, words));
        }
    }
    Ok(None)
}

fn flow<T: Send + 'static>(receiver: mpsc::Receiver<Result<T, Failure>>) -> Flow<T> {
    ReceiverStream::new(receiver).boxed()
}

/// The call, whose first message says which command it is for.
async fn call(caller: &Caller, command: String) -> Result<(Up, Down), Failure> {
    let (up, messages) = mpsc::channel(WAITING);
    let first = v1::ChannelUp { what: Some(channel_up::What::Command(command)) };
    // There is room.
    let _ = up.send(first).await;
    let mut client = caller.client.clone();
    let called = tokio::time::timeout(PATIENCE, client.channel(ReceiverStream::new(messages)));
    let late = |_| Failure::new(Kind::Unavailable, "the master does not take the channel");
    let down = called.await.map_err(late)??.into_inner();
    Ok((up, down))
}

fn spawn(gate: Gate, carrying: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        // What is dropped ends as if the other side had ended it.
        tokio::select! {
            () = carrying => {}
            () = gate.closed() => {}
        }
    });
}

/// Both ways, until one of them ends. An exec whose output nobody takes any more is ended by its keeper.
async fn carry<T, I>(
    output: impl Stream<Item = Result<T, Failure>> + Unpin,
    wrap: impl Fn(T) -> channel_up::What,
    up: Up,
    mut down: Down,
    of: impl Fn(channel_down::What) -> Option<I>,
    input: mpsc::Sender<I>,
) {
    let upwards = upwards(output, wrap, up);
    let downwards = async {
        while let Ok(Some(message)) = down.message().await {
            let Some(input_of) = message.what.and_then(&of) else { continue };
            // Nobody reads any more: the end comes from the other direction.
            let _ = input.send(input_of).await;
        }
    };
    let mut downwards = pin!(downwards);
    // Whichever is dropped has nothing to say any more.
    tokio::select! {
        () = upwards => {}
        () = &mut downwards => return,
    }
    // The master ends the call when it has heard the last.
    let _ = tokio::time::timeout(PATIENCE, downwards).await;
}

async fn upwards<T>(
    mut output: impl Stream<Item = Result<T, Failure>> + Unpin,
    wrap: impl Fn(T) -> channel_up::What,
    up: Up,
) {
    while let Some(item) = output.next().await {
        let (what, last) = match item {
            Ok(item) => (wrap(item), false),
            Err(failure) => (channel_up::What::Failure(failure.into()), true),
        };
        if up.send(v1::ChannelUp { what: Some(what) }).await.is_err() || last {
            return;
        }
    }
}
