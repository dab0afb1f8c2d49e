//! A node with no runtime, and masters that do what the protocol says, or the opposite. Its tasks have an image that is not
//! there, and end; or one that a registry never hands out, and go on.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hafen::config::{Config, gather};
use hafen::link::Link;
use hafen::node::Node;
use hafen_protocol::v1::master_server::{Master, MasterServer};
use hafen_protocol::v1::{self, command, failure, from_agent, from_master};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData, SanType,
    SignatureAlgorithm,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);
const EPOCH: u64 = 7;

/// Hands every call to the test.
struct Door {
    streams: mpsc::Sender<Peer>,
    channels: mpsc::Sender<Streaming<v1::ChannelUp>>,
    authority: Option<Authority>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Vec<u8>,
}

/// Of a request for a certificate.
struct Theirs(Vec<u8>);

impl PublicKeyData for Theirs {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// The key is a point on P-256: a bit string of 65 bytes, which begins with 4 (RFC 5480).
    fn sign(&self, csr: &[u8], name: &str) -> Vec<u8> {
        let at = csr.windows(4).position(|bytes| bytes == [3, 0x42, 0, 4]).unwrap() + 3;
        let key = Theirs(csr[at..at + 65].to_vec());
        let mut params = CertificateParams::default();
        let uri = format!("hafen:node:{name}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }
}

type Told<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Master for Door {
    type ConnectStream = Told<v1::FromMaster>;
    type ChannelStream = Told<v1::ChannelDown>;

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        let authority = self.authority.as_ref().ok_or_else(|| Status::unimplemented("no"))?;
        if request.token != "the token" {
            return Err(Status::unauthenticated("the token is not known"));
        }
        let node = format!("{}-1", request.node);
        Ok(Response::new(v1::JoinResponse {
            certificate: authority.sign(&request.csr, &node).into(),
            authorities: vec![authority.certificate.clone().into()],
            node,
            renew_after: None,
        }))
    }

    async fn connect(
        &self,
        request: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (outgoing, messages) = mpsc::channel(64);
        let peer =
            Peer { incoming: request.into_inner(), outgoing, number: 0, taken: 0, epoch: EPOCH };
        self.streams.send(peer).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn channel(
        &self,
        request: Request<Streaming<v1::ChannelUp>>,
    ) -> Result<Response<Self::ChannelStream>, Status> {
        let _ = self.channels.send(request.into_inner()).await;
        let open = tokio_stream::pending();
        Ok(Response::new(Box::pin(open)))
    }
}

/// One stream, as a master has it.
struct Peer {
    incoming: Streaming<v1::FromAgent>,
    outgoing: mpsc::Sender<Result<v1::FromMaster, Status>>,
    number: u64,
    taken: u64,
    epoch: u64,
}

impl Peer {
    async fn say(&mut self, what: from_master::What) {
        self.number += 1;
        let (number, heard, epoch) = (self.number, self.taken, self.epoch);
        let message = v1::FromMaster { number, heard, epoch, what: Some(what) };
        let _ = self.outgoing.send(Ok(message)).await;
    }

    /// The next message, without an answer. `None`: the agent has ended the stream.
    async fn hear(&mut self) -> Option<from_agent::What> {
        let message =
            timeout(PATIENCE, self.incoming.message()).await.expect("a message").ok()??;
        assert_eq!(message.number, self.taken + 1);
        self.taken = message.number;
        message.what
    }

    async fn hello(&mut self) -> v1::Hello {
        match self.hear().await {
            Some(from_agent::What::Hello(hello)) => hello,
            other => panic!("{other:?}"),
        }
    }

    async fn welcome(&mut self, lease_seconds: i64, acknowledged: &[(&str, u64)]) -> v1::Hello {
        let hello = self.hello().await;
        let acknowledged = acknowledged.iter().map(|(task, sequence)| acknowledge(task, *sequence));
        let lease = pbjson_types::Duration { seconds: lease_seconds, nanos: 0 };
        let welcome = v1::Welcome {
            version: 1,
            lease: Some(lease),
            acknowledged: acknowledged.collect(),
            ..v1::Welcome::default()
        };
        self.say(from_master::What::Welcome(welcome)).await;
        hello
    }

    /// The next message that is no report and no ping; all are answered.
    async fn next(&mut self) -> from_agent::What {
        loop {
            let what = self.hear().await.expect("the stream goes on");
            self.say(from_master::What::Ping(v1::Ping {})).await;
            if !matches!(what, from_agent::What::Ping(_) | from_agent::What::Report(_)) {
                return what;
            }
        }
    }

    async fn order(&mut self, id: &str, what: command::What) {
        let command = v1::Command { id: id.to_owned(), epoch: self.epoch, what: Some(what) };
        self.say(from_master::What::Command(command)).await;
    }

    async fn result(&mut self) -> v1::CommandResult {
        match self.next().await {
            from_agent::What::Result(result) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Its result, as the kind of a failure.
    async fn ask(&mut self, id: &str, what: command::What) -> Option<failure::Kind> {
        self.order(id, what).await;
        let result = self.result().await;
        assert_eq!(result.command, id);
        result.failure.map(|failure| failure.kind())
    }

    async fn update(&mut self) -> (String, u64, v1::State) {
        match self.next().await {
            from_agent::What::Update(update) => {
                (update.task, update.sequence, update.status.unwrap().state())
            }
            other => panic!("{other:?}"),
        }
    }

    /// So many updates and results, in whichever order they come between each other.
    async fn sorted(&mut self, count: usize) -> (Vec<(String, u64, v1::State)>, Vec<String>) {
        let (mut updates, mut results) = (Vec::new(), Vec::new());
        for _ in 0..count {
            match self.next().await {
                from_agent::What::Update(update) => {
                    updates.push((update.task, update.sequence, update.status.unwrap().state()));
                }
                from_agent::What::Result(result) => {
                    assert_eq!(result.failure, None);
                    results.push(result.command);
                }
                other => panic!("{other:?}"),
            }
        }
        (updates, results)
    }

    async fn acknowledge(&mut self, task: &str, sequence: u64) {
        self.say(from_master::What::Acknowledge(acknowledge(task, sequence))).await;
    }
}

fn acknowledge(task: &str, sequence: u64) -> v1::Acknowledge {
    v1::Acknowledge { task: task.to_owned(), sequence }
}

struct World {
    folder: tempfile::TempDir,
    address: SocketAddr,
    streams: mpsc::Receiver<Peer>,
    channels: mpsc::Receiver<Streaming<v1::ChannelUp>>,
    /// Of a registry that takes calls and says nothing.
    registry: TcpListener,
}

impl World {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (streams, peers) = mpsc::channel(1);
        let (opened, channels) = mpsc::channel(1);
        let door = Door { streams, channels: opened, authority: None };
        let server = tonic::transport::Server::builder().add_service(MasterServer::new(door));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self {
            folder: tempfile::tempdir().unwrap(),
            address,
            streams: peers,
            channels,
            registry: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    fn config(&self, more: &[(&'static str, &str)]) -> Config {
        let url = format!("http://{}", self.address);
        let mut flags = vec![("master.urls", url.as_str()), ("name", "n1"), ("domains", "zone=z")];
        flags.extend(more);
        config(self.folder.path(), &flags)
    }

    async fn peer(&mut self) -> Peer {
        timeout(PATIENCE, self.streams.recv()).await.expect("a call").unwrap()
    }

    /// A task that stays in staging.
    fn waiting(&self, id: &str) -> v1::TaskSpec {
        let image = format!("{}/none:1", self.registry.local_addr().unwrap());
        spec(id, &image, v1::Pull::Unspecified)
    }
}

fn config(folder: &Path, more: &[(&'static str, &str)]) -> Config {
    let own = |name: &str| folder.join(name).display().to_string();
    let flags =
        [("runtime", "/bin/false".to_owned()), ("state", own("state")), ("run", own("run"))];
    let more = more.iter().map(|(key, value)| (*key, (*value).to_owned()));
    let flags: BTreeMap<_, _> = flags.into_iter().chain(more).collect();
    Config::resolve(&gather(&flags, [], None)).unwrap()
}

fn spec(id: &str, image: &str, pull: v1::Pull) -> v1::TaskSpec {
    let kind = Some(v1::root::Kind::Image(image.to_owned()));
    let root = v1::Root { kind, pull: pull.into(), ..v1::Root::default() };
    let (id, root) = (id.to_owned(), Some(root));
    v1::TaskSpec { id, root, command: vec!["true".to_owned()], ..v1::TaskSpec::default() }
}

/// A task that ends for want of an image.
fn failing(id: &str) -> v1::TaskSpec {
    spec(id, "localhost/none:1", v1::Pull::Never)
}

fn run(task: v1::TaskSpec, epoch: u64) -> command::What {
    let grant = Some(v1::TaskGrant { epoch, digest: vec![1, 2].into() });
    command::What::RunTask(v1::RunTask { task: Some(task), grant })
}

fn stop(id: &str, epoch: u64) -> command::What {
    command::What::Stop(v1::StopTask { id: id.to_owned(), epoch, ..v1::StopTask::default() })
}

fn forget(id: &str) -> command::What {
    command::What::Forget(v1::ForgetTask { id: id.to_owned(), keep_logs: false })
}

fn seen(id: &str, sequence: u64, state: v1::State) -> (String, u64, v1::State) {
    (id.to_owned(), sequence, state)
}

/// Start a node with its link.
async fn start(config: &Config) -> (Node, Link) {
    let node = Node::open(config).await.unwrap();
    let link = Link::start(&node).unwrap().expect("a master");
    (node, link)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_comes_ends_and_is_forgotten() {
    let mut world = World::new().await;
    let config = world.config(&[("attributes", "disk=ssd")]);
    let (_node, link) = start(&config).await;
    let mut peer = world.peer().await;
    let hello = peer.welcome(5, &[]).await;
    assert_eq!((hello.version_least, hello.version_most), (1, 1));
    assert_eq!((hello.node.as_str(), hello.instance.len()), ("n1", 32));
    assert_eq!((hello.incarnation, hello.connection, hello.epoch_seen), (1, 1, 0));
    assert_eq!(
        (hello.attributes["disk"].as_str(), hello.attributes["os"].as_str()),
        ("ssd", "linux")
    );
    assert_eq!((hello.domains[0].name.as_str(), hello.tasks.len()), ("z", 0));
    assert!(hello.capacity.unwrap().allocatable.unwrap().memory > Some(0));

    peer.order("c1", run(failing("a1"), 31)).await;
    let (updates, results) = peer.sorted(3).await;
    assert_eq!(updates, [seen("a1", 1, v1::State::Staging), seen("a1", 2, v1::State::Error)]);
    assert_eq!(results, ["c1"]);
    // A result is remembered; a task that has ended is told once more, and not run again.
    assert_eq!(peer.ask("c1", run(failing("a1"), 31)).await, None);
    peer.order("c2", run(failing("a1"), 31)).await;
    let (updates, _) = peer.sorted(2).await;
    assert_eq!(updates, [seen("a1", 2, v1::State::Error)]);
    use failure::Kind;
    assert_eq!(peer.ask("c3", run(failing("a1"), 32)).await, Some(Kind::Exists));
    assert_eq!(peer.ask("c4", forget("a1")).await, Some(Kind::State));
    peer.acknowledge("a1", 2).await;
    let expected = ["a1", "a2"].map(|id| v1::HeldTask { id: id.to_owned(), ..Default::default() });
    let reconcile = || command::What::Reconcile(v1::Reconcile { expected: expected.to_vec() });
    peer.order("c5", reconcile()).await;
    let tasks = peer.result().await.tasks.unwrap();
    let held = &tasks.tasks[0];
    assert_eq!((held.id.as_str(), held.epoch, held.state()), ("a1", 31, v1::State::Error));
    assert_eq!((held.sequence, held.acknowledged, &held.digest[..]), (2, 2, &[1, 2][..]));
    assert_eq!(tasks.missing, ["a2"]);
    assert_eq!(peer.ask("c6", forget("a1")).await, None);
    assert_eq!(peer.ask("c7", forget("a1")).await, None);
    peer.order("c8", reconcile()).await;
    assert_eq!(peer.result().await.tasks.unwrap().missing, ["a1", "a2"]);

    tokio::join!(link.leave(), async {
        assert!(matches!(peer.next().await, from_agent::What::Leaving(_)));
        assert_eq!(peer.hear().await, None);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_acknowledged_comes_again() {
    let mut world = World::new().await;
    let (_node, _link) = start(&world.config(&[])).await;
    let mut peer = world.peer().await;
    let first = peer.welcome(5, &[]).await;
    peer.order("c1", run(failing("a1"), 1)).await;
    peer.order("c2", run(failing("a2"), 2)).await;
    peer.sorted(6).await;
    peer.acknowledge("a2", 1).await;
    drop(peer);
    // A master that has applied more than it could say, and one that has lost what it had acknowledged.
    for (applied, wanted) in [
        (vec![("a1", 1)], vec![("a1", 2), ("a2", 2)]),
        (vec![("a1", 9)], vec![("a2", 2)]),
        (vec![], vec![("a2", 2)]),
    ] {
        let mut peer = world.peer().await;
        let hello = peer.welcome(5, &applied).await;
        assert_eq!((&hello.instance, hello.incarnation), (&first.instance, first.incarnation));
        assert_eq!((hello.tasks.len(), hello.epoch_seen), (2, EPOCH));
        for (task, sequence) in wanted {
            assert_eq!(peer.update().await, seen(task, sequence, v1::State::Error));
        }
        // Nothing else comes between.
        assert_eq!(peer.ask("c1", run(failing("a1"), 1)).await, None);
    }
}

/// The agent is another process then: only what is on the disk is left.
#[test]
fn the_next_agent_goes_on() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let masters = runtime();
    let mut world = masters.block_on(World::new());
    let config = world.config(&[]);
    let agent = runtime();
    let _started = agent.block_on(start(&config));
    let first = masters.block_on(async {
        let mut peer = world.peer().await;
        let first = peer.welcome(5, &[]).await;
        peer.order("c1", run(failing("a1"), 1)).await;
        peer.sorted(3).await;
        let drain = v1::Drain { on: true, sentence: String::new() };
        assert_eq!(peer.ask("c2", command::What::Drain(drain)).await, None);
        first
    });
    drop(_started);
    agent.shutdown_timeout(Duration::from_secs(5));
    let agent = runtime();
    let _started = agent.block_on(start(&config));
    masters.block_on(async {
        let mut peer = world.peer().await;
        let hello = peer.welcome(5, &[]).await;
        assert_eq!((hello.instance, hello.incarnation, hello.connection), (first.instance, 2, 1));
        assert_eq!((hello.epoch_seen, hello.draining), (EPOCH, true));
        let held = &hello.tasks[0];
        assert_eq!((held.id.as_str(), held.sequence, held.acknowledged), ("a1", 2, 0));
        for (sequence, state) in [(1, v1::State::Staging), (2, v1::State::Error)] {
            assert_eq!(peer.update().await, seen("a1", sequence, state));
        }
        let refused = peer.ask("c3", run(failing("a2"), 2)).await;
        assert_eq!(refused, Some(failure::Kind::Draining));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said() {
    use failure::Kind;
    let mut world = World::new().await;
    let (_node, _link) = start(&world.config(&[])).await;
    let mut peer = world.peer().await;
    peer.welcome(5, &[]).await;
    let request = |memory| {
        let request = Some(v1::Amounts { memory: Some(memory), ..v1::Amounts::default() });
        Some(v1::Resources { request, ..v1::Resources::default() })
    };
    let large = v1::TaskSpec { resources: request(1 << 60), ..failing("a1") };
    let mut group = v1::PodSpec { id: "p".to_owned(), ..v1::PodSpec::default() };
    group.tasks = vec![failing("x"), v1::TaskSpec { resources: request(1 << 60), ..failing("y") }];
    let pod = |pod| command::What::RunPod(v1::RunPod { pod: Some(pod), grant: None });
    let update = v1::UpdateResources { id: "a9".to_owned(), resources: None };
    let signal = v1::SignalTaskRequest { id: "a9".to_owned(), ..Default::default() };
    let logs = v1::LogsRequest { id: "a9".to_owned(), ..Default::default() };
    let open = v1::OpenChannel { what: Some(v1::open_channel::What::Logs(logs)) };
    let digest = vec![0; 65].into();
    let long =
        v1::RunTask { task: Some(failing("a1")), grant: Some(v1::TaskGrant { epoch: 1, digest }) };
    let cases = [
        (run(large, 1), Some(Kind::Capacity)),
        (run(v1::TaskSpec::default(), 1), Some(Kind::Invalid)),
        (run(v1::TaskSpec { id: "a/1".to_owned(), ..failing("") }, 1), Some(Kind::Invalid)),
        (command::What::RunTask(long), Some(Kind::Invalid)),
        (pod(v1::PodSpec::default()), Some(Kind::Invalid)),
        (stop("a9", 0), None),
        (forget("a9"), None),
        (command::What::Update(update), Some(Kind::Unknown)),
        (command::What::Signal(signal), Some(Kind::Unknown)),
        (command::What::Open(open), Some(Kind::Unknown)),
        (command::What::Open(v1::OpenChannel::default()), Some(Kind::Unsupported)),
    ];
    for (number, (what, wanted)) in cases.into_iter().enumerate() {
        assert_eq!(peer.ask(&format!("c{number}"), what.clone()).await, wanted, "{what:?}");
    }
    // As a whole, or not at all: what was begun of it may be told before it is taken back.
    peer.order("pod", pod(group)).await;
    let result = loop {
        match peer.next().await {
            from_agent::What::Result(result) => break result,
            from_agent::What::Update(update) => assert_eq!(update.task, "p.x"),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(result.failure.unwrap().kind(), Kind::Capacity);
    peer.order("r", command::What::Reconcile(v1::Reconcile::default())).await;
    while let from_agent::What::Result(result) = peer.next().await {
        assert_eq!(result.tasks.unwrap().tasks, []);
        break;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_people_are_not_told() {
    let mut world = World::new().await;
    let (node, _link) = start(&world.config(&[])).await;
    let own = node.run(world.waiting("own")).await.unwrap();
    assert_eq!(own.state(), v1::State::Staging);
    let mut peer = world.peer().await;
    assert_eq!(peer.welcome(5, &[]).await.tasks, []);
    assert_eq!(peer.ask("c1", stop("own", 0)).await, None);
    assert_eq!(peer.ask("c2", run(world.waiting("own"), 1)).await, Some(failure::Kind::Exists));
    let state = node.get("own").await.unwrap().state();
    assert_eq!(state, v1::State::Staging);
    // And those of a master are not removed by people.
    peer.order("c3", run(world.waiting("theirs"), 3)).await;
    peer.sorted(2).await;
    let request = v1::RemoveTaskRequest { id: "theirs".to_owned(), force: true };
    let refused = node.remove(request).await.unwrap_err();
    assert!(refused.message.contains("is a master's"), "{refused}");
    assert_eq!(peer.ask("c4", stop("theirs", 2)).await, Some(failure::Kind::Fenced));
    peer.order("c5", stop("theirs", 3)).await;
    let (updates, _) = peer.sorted(2).await;
    assert_eq!(updates, [seen("theirs", 2, v1::State::Killed)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_hear_us_is_left() {
    let mut world = World::new().await;
    let (_node, _link) = start(&world.config(&[])).await;
    // Only one direction works: nothing of ours is ever heard again.
    let mut deaf = world.peer().await;
    deaf.welcome(1, &[]).await;
    let talking = async {
        for _ in 0..40 {
            deaf.say(from_master::What::Ping(v1::Ping {})).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ended = async {
        let mut peer = world.peer().await;
        peer.hello().await
    };
    let (_, hello) = tokio::join!(talking, ended);
    assert_eq!(hello.connection, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_of_before_is_not_obeyed() {
    let mut world = World::new().await;
    let (node, _link) = start(&world.config(&[])).await;
    let mut peer = world.peer().await;
    peer.welcome(5, &[]).await;
    assert_eq!(peer.ask("c1", stop("a1", 0)).await, None);
    drop(peer);
    let mut old = world.peer().await;
    old.epoch = EPOCH - 1;
    let hello = old.welcome(5, &[]).await;
    old.order("c2", run(failing("a1"), 1)).await;
    assert_eq!((hello.epoch_seen, old.hear().await), (EPOCH, None));
    assert!(node.get("a1").await.is_err());
    let mut next = world.peer().await;
    next.epoch = EPOCH + 1;
    next.welcome(5, &[]).await;
    assert_eq!(next.ask("c3", stop("a1", 0)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_run_twice_is_stopped_when_nobody_hears_us() {
    let mut world = World::new().await;
    let (node, _link) = start(&world.config(&[])).await;
    let mut peer = world.peer().await;
    peer.welcome(1, &[]).await;
    let short = pbjson_types::Duration { seconds: 2, nanos: 0 };
    let bound = v1::TaskSpec { stop_after_disconnect: Some(short), ..world.waiting("bound") };
    peer.order("c1", run(bound, 1)).await;
    peer.order("c2", run(world.waiting("free"), 2)).await;
    peer.sorted(4).await;
    drop(peer);
    // Whoever takes the call and says nothing does not keep it alive.
    let silent = world.peer().await;
    let wait = v1::WaitTaskRequest { id: "bound".to_owned(), ..Default::default() };
    let status = timeout(PATIENCE, node.wait(wait)).await.unwrap().unwrap();
    let kind = status.reason.as_ref().unwrap().kind();
    assert_eq!((status.state(), kind), (v1::State::Killed, v1::reason::Kind::Disconnected));
    assert_eq!(node.get("free").await.unwrap().state(), v1::State::Staging);
    drop(silent);
    let mut peer = world.peer().await;
    peer.welcome(1, &[("bound", 1), ("free", 1)]).await;
    assert_eq!(peer.update().await, seen("bound", 2, v1::State::Killed));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_over_a_call_of_their_own() {
    let mut world = World::new().await;
    let (_node, _link) = start(&world.config(&[])).await;
    let mut peer = world.peer().await;
    peer.welcome(5, &[]).await;
    peer.order("c1", run(failing("a1"), 1)).await;
    peer.sorted(3).await;
    let log = world.folder.path().join("state/agent/tasks/a1/log");
    let line = r#"{"time":"2026-01-01T00:00:00Z","stream":"stdout","log":"hello\n"}"#;
    std::fs::write(log, format!("{line}\n")).unwrap();
    let logs = v1::LogsRequest { id: "a1".to_owned(), ..Default::default() };
    let open = v1::OpenChannel { what: Some(v1::open_channel::What::Logs(logs)) };
    assert_eq!(peer.ask("c2", command::What::Open(open)).await, None);
    let mut channel = timeout(PATIENCE, world.channels.recv()).await.unwrap().unwrap();
    let first = channel.message().await.unwrap().unwrap().what;
    assert_eq!(first, Some(v1::channel_up::What::Command("c2".to_owned())));
    let Some(v1::channel_up::What::Log(entry)) = channel.message().await.unwrap().unwrap().what
    else {
        panic!("no line")
    };
    assert_eq!(&entry.line[..], b"hello\n");
    assert_eq!(channel.message().await.unwrap(), None);
}

/// A connection under TLS, for tonic, which has none of its own here.
struct Secure(tokio_rustls::server::TlsStream<TcpStream>);

impl tonic::transport::server::Connected for Secure {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Secure {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Secure {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A master that shows its authority's certificate with its own, and tells who came with a certificate.
async fn secure(authority: Authority) -> (SocketAddr, mpsc::Receiver<Peer>, mpsc::Receiver<bool>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate.clone().into()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    );
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let own = own.signed_by(&key, &authority.issuer).unwrap().der().to_vec();
    let chain = vec![own.into(), authority.certificate.clone().into()];
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_single_cert(chain, key.into())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shown, came) = mpsc::channel(64);
    let (accepted, incoming) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let _ = shown.send(stream.get_ref().1.peer_certificates().is_some()).await;
            let _ = accepted.send(Ok::<_, io::Error>(Secure(stream))).await;
        }
    });
    let ((streams, peers), (channels, _)) = (mpsc::channel(1), mpsc::channel(1));
    let door = Door { streams, channels, authority: Some(authority) };
    let server = tonic::transport::Server::builder().add_service(MasterServer::new(door));
    tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
    (address, peers, came)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_gives_a_certificate_and_a_name() {
    use sha2::{Digest, Sha256};
    let authority = Authority::new();
    let digest = Sha256::digest(&authority.certificate);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let (address, mut peers, mut came) = secure(authority).await;
    let url = format!("https://localhost:{}", address.port());
    let folder = tempfile::tempdir().unwrap();
    let join = |authority| {
        [("master.urls", url.as_str()), ("name", "n"), ("master.token", "the token"), authority]
    };
    // Of somebody else: the token is not shown to this one.
    let other = "0".repeat(64);
    let (node, link) = start(&config(folder.path(), &join(("master.authority", &other)))).await;
    assert!(timeout(Duration::from_secs(2), came.recv()).await.is_err());
    link.leave().await;
    drop(node);
    let folder = tempfile::tempdir().unwrap();
    let (_node, _link) = start(&config(folder.path(), &join(("master.authority", &digest)))).await;
    let mut peer = timeout(PATIENCE, peers.recv()).await.unwrap().unwrap();
    assert_eq!(peer.welcome(5, &[]).await.node, "n-1");
    assert_eq!((came.recv().await, came.recv().await), (Some(false), Some(true)));
    let known = std::fs::read_to_string(folder.path().join("state/agent/link.json")).unwrap();
    assert!(known.contains(r#""node":"n-1""#) && !known.contains("the token"), "{known}");
}

#[tokio::test]
async fn without_a_certificate_and_a_token_there_is_no_link() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &[("master.urls", "https://localhost:1")]);
    let node = Node::open(&config).await.unwrap();
    let refused = Link::start(&node).unwrap_err();
    assert!(refused.message.contains("there is no certificate"), "{refused}");
}
