//! Both ends of the stream between an agent and a master, under the hand of a test.

use std::path::Path;
use std::time::Duration;

use hafen_protocol::v1;
use hafen_protocol::v1::from_agent::What as Up;
use hafen_protocol::v1::from_master::What as Down;
use hafen_protocol::v1::master_client::MasterClient;
use hafen_protocol::v1::master_server::{Master as Service, MasterServer};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads")
}

pub(super) async fn channel(socket: &Path) -> Channel {
    // The least that a window may be at first (RFC 9113, section 6.9.2): who does not read is soon seen.
    const WINDOW: u32 = 65_535;
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
    let endpoint = endpoint.expect("an address").initial_stream_window_size(WINDOW);
    endpoint.connect().await.expect("somebody listens")
}

/// Of a node with some room.
pub(super) fn hello(name: &str) -> v1::Hello {
    let room =
        v1::Amounts { cpu_milli: Some(4_000), memory: Some(4 << 30), ..v1::Amounts::default() };
    v1::Hello {
        version_least: 1,
        version_most: 1,
        node: name.to_owned(),
        instance: format!("disk-of-{name}"),
        incarnation: 1,
        connection: 1,
        boot_id: "boot".to_owned(),
        capacity: Some(v1::Capacity { allocatable: Some(room), ..v1::Capacity::default() }),
        // It is given nothing.
        draining: true,
        ..v1::Hello::default()
    }
}

/// A stream to the coordinator, as an agent has it.
pub(super) struct Node {
    up: mpsc::Sender<v1::FromAgent>,
    down: Streaming<v1::FromMaster>,
    number: u64,
    heard: u64,
}

impl Node {
    /// A Hello, and what came back first.
    pub(super) async fn dial(
        socket: &Path,
        hello: v1::Hello,
    ) -> Result<(Self, v1::FromMaster), Status> {
        let (up, said) = mpsc::channel(1);
        let mut client = MasterClient::new(channel(socket).await);
        let first = v1::FromAgent { number: 1, heard: 0, what: Some(Up::Hello(hello)) };
        up.send(first).await.expect("room for one");
        let down = client.connect(ReceiverStream::new(said)).await?.into_inner();
        let mut node = Self { up, down, number: 1, heard: 0 };
        let first = node.hear().await?.expect("an answer to a Hello");
        Ok((node, first))
    }

    /// One that is welcome.
    pub(super) async fn join(socket: &Path, name: &str) -> Self {
        let (node, first) = Self::dial(socket, hello(name)).await.expect("a stream");
        assert!(matches!(first.what, Some(Down::Welcome(_))), "{first:?}");
        node
    }

    /// `false`: nobody listens any more.
    pub(super) async fn say(&mut self, what: Up) -> bool {
        self.number += 1;
        let message = v1::FromAgent { number: self.number, heard: self.heard, what: Some(what) };
        matches!(timeout(PATIENCE, self.up.send(message)).await, Ok(Ok(())))
    }

    pub(super) async fn hear(&mut self) -> Result<Option<v1::FromMaster>, Status> {
        let message = timeout(PATIENCE, self.down.message()).await.expect("a word in time")?;
        if let Some(message) = &message {
            self.heard = message.number;
        }
        Ok(message)
    }

    /// The last message, or why there is none.
    pub(super) async fn last(&mut self) -> Result<Option<v1::FromMaster>, Status> {
        let mut last = None;
        while let Some(message) = self.hear().await? {
            last = Some(message);
        }
        Ok(last)
    }
}

/// Why a node is not taken.
pub(super) fn refused(message: &v1::FromMaster) -> (v1::refused::Kind, &str) {
    match &message.what {
        Some(Down::Refused(refused)) => (refused.kind(), &refused.sentence),
        other => panic!("not refused: {other:?}"),
    }
}

/// A master that an agent dials.
pub(super) struct Master {
    streams: mpsc::Receiver<Peer>,
}

struct Door {
    streams: mpsc::Sender<Peer>,
}

type Told<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Service for Door {
    type ConnectStream = Told<v1::FromMaster>;
    type ChannelStream = Told<v1::ChannelDown>;

    async fn join(
        &self,
        _: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        Err(Status::unimplemented("nobody joins"))
    }

    async fn connect(
        &self,
        request: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (down, told) = mpsc::channel(64);
        let peer = Peer { up: request.into_inner(), down, number: 0, heard: 0, epoch: 0 };
        self.streams.send(peer).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }

    async fn channel(
        &self,
        _: Request<Streaming<v1::ChannelUp>>,
    ) -> Result<Response<Self::ChannelStream>, Status> {
        Err(Status::unimplemented("no channels"))
    }
}

impl Master {
    /// It is called at a socket, within a runtime of tokio.
    pub(super) fn listen(socket: &Path) -> Self {
        let (streams, waiting) = mpsc::channel(8);
        let listener = UnixListenerStream::new(UnixListener::bind(socket).expect("bind"));
        let service = MasterServer::new(Door { streams });
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(listener));
        Self { streams: waiting }
    }

    /// The next stream, with its Hello, after a Welcome of a master of this epoch.
    pub(super) async fn welcome(&mut self, epoch: u64) -> (Peer, v1::Hello) {
        let peer = timeout(PATIENCE, self.streams.recv()).await.expect("somebody dials");
        let mut peer = Peer { epoch, ..peer.expect("it listens") };
        let Some(Up::Hello(hello)) = peer.hear().await else { panic!("no Hello") };
        let lease = Some(pbjson_types::Duration { seconds: 20, nanos: 0 });
        let known = hello
            .tasks
            .iter()
            .map(|held| v1::Acknowledge { task: held.id.clone(), sequence: held.sequence });
        let acknowledged = known.collect();
        let welcome = v1::Welcome { version: 1, lease, acknowledged, ..v1::Welcome::default() };
        peer.say(Down::Welcome(welcome)).await;
        (peer, hello)
    }
}

/// A stream of an agent, as a master has it.
pub(super) struct Peer {
    up: Streaming<v1::FromAgent>,
    down: mpsc::Sender<Result<v1::FromMaster, Status>>,
    number: u64,
    heard: u64,
    pub(super) epoch: u64,
}

impl Peer {
    pub(super) async fn say(&mut self, what: Down) -> bool {
        self.number += 1;
        let (number, heard, epoch) = (self.number, self.heard, self.epoch);
        let message = v1::FromMaster { number, heard, epoch, what: Some(what) };
        self.down.send(Ok(message)).await.is_ok()
    }

    /// So many messages are lost.
    pub(super) fn skip(&mut self, count: u64) {
        self.number += count;
    }

    /// `None`: the agent has ended the stream.
    pub(super) async fn hear(&mut self) -> Option<Up> {
        let message = timeout(PATIENCE, self.up.message()).await.expect("a word in time");
        let message = message.ok()??;
        self.heard = message.number;
        message.what
    }

    pub(super) async fn order(&mut self, id: &str, epoch: u64, what: v1::command::What) {
        let command = v1::Command { id: id.to_owned(), epoch, what: Some(what) };
        self.say(Down::Command(command)).await;
    }

    /// Of the command of that id, while all updates are acknowledged.
    pub(super) async fn result(&mut self, id: &str) -> v1::CommandResult {
        loop {
            match self.hear().await.expect("the stream goes on") {
                Up::Result(result) if result.command == id => return result,
                Up::Update(v1::TaskUpdate { task, sequence, .. }) => {
                    self.say(Down::Acknowledge(v1::Acknowledge { task, sequence })).await;
                }
                _ => {
                    self.say(Down::Ping(v1::Ping {})).await;
                }
            }
        }
    }

    /// The kind of failure of a command, and its sentence; `None`: it was done.
    pub(super) async fn ask(
        &mut self,
        id: &str,
        what: v1::command::What,
    ) -> Option<(v1::failure::Kind, String)> {
        let epoch = self.epoch;
        self.order(id, epoch, what).await;
        let failure = self.result(id).await.failure?;
        Some((failure.kind(), failure.sentence))
    }

    /// Of a task that has ended, when its last update has come.
    pub(super) async fn forget(&mut self, id: &str) {
        for n in 0.. {
            let order = v1::ForgetTask { id: id.to_owned(), keep_logs: false };
            let told = self.ask(&format!("forget{n}"), v1::command::What::Forget(order)).await;
            match told {
                None => return,
                Some((kind, sentence)) => {
                    assert!(kind == v1::failure::Kind::State && n < 100, "{kind:?}: {sentence}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}
