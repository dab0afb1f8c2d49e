//! An agent as far as the protocol goes, under the hand of a test.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use hafen_coordinator::service::{Address, Coordinator, Options};
use hafen_protocol::v1::cluster_client::ClusterClient;
use hafen_protocol::v1::from_agent::What as Up;
use hafen_protocol::v1::from_master::What as Down;
use hafen_protocol::v1::master_client::MasterClient;
use hafen_protocol::v1::{self, command};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// Long, but where its end is what a test is about: machines that test are busy.
pub(crate) const LEASE: Duration = Duration::from_secs(6);
const PING: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator with a folder of its own.
pub(crate) struct Hall {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) coordinator: Option<Coordinator>,
    pub(crate) address: SocketAddr,
    pub(crate) secure: SocketAddr,
}

pub(crate) fn options(folder: &std::path::Path) -> Options {
    Options {
        listen: ["http://127.0.0.1:0", "https://127.0.0.1:0"].map(|a| a.parse().unwrap()).into(),
        state: folder.join("state"),
        name: "test".into(),
        lease: LEASE,
        group: None,
        names: Vec::new(),
        insecure: false,
        etcd: None,
        url: None,
    }
}

impl Hall {
    pub(crate) async fn open() -> Self {
        Self::open_with(tempfile::tempdir().unwrap(), LEASE).await
    }

    pub(crate) async fn open_with(folder: tempfile::TempDir, lease: Duration) -> Self {
        let options = Options { lease, ..options(folder.path()) };
        let coordinator = Coordinator::start(options).await.unwrap();
        let [Address::Plain(address), Address::Tls(secure)] = coordinator.addresses[..] else {
            panic!("{:?}", coordinator.addresses)
        };
        Self { folder, coordinator: Some(coordinator), address, secure }
    }

    /// Stop it, and start another one on the same state.
    pub(crate) async fn again(mut self) -> Self {
        self.coordinator.take().unwrap().stop().await;
        Self::open_with(self.folder, LEASE).await
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect().await.unwrap()
    }

    pub(crate) async fn people(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel().await)
    }

    pub(crate) async fn view(&self) -> v1::ClusterView {
        let request = v1::GetClusterRequest::default();
        self.people().await.get_cluster(request).await.unwrap().into_inner()
    }

    /// Until something of the cluster holds.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&v1::ClusterView) -> bool) {
        let look = async {
            while !holds(&self.view().await) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, look).await.is_err() {
            panic!("never {what}: {:#?}", self.view().await);
        }
    }

    pub(crate) async fn until_presence(&self, node: &str, wanted: v1::cluster_node::Presence) {
        let is = |view: &v1::ClusterView| {
            view.nodes.iter().any(|one| one.name == node && one.presence() == wanted)
        };
        self.until(&format!("{node} {wanted:?}"), is).await;
    }

    /// A Hello and what came back first.
    pub(crate) async fn dial(&self, hello: v1::Hello) -> (Fake, v1::FromMaster) {
        Fake::dial(self.channel().await, hello).await
    }

    pub(crate) async fn node(&self, name: &str) -> Fake {
        self.node_again(name, 1, Vec::new()).await
    }

    pub(crate) async fn node_again(
        &self,
        name: &str,
        connection: u64,
        tasks: Vec<v1::HeldTask>,
    ) -> Fake {
        let (fake, first) = self.dial(v1::Hello { connection, tasks, ..hello(name) }).await;
        assert!(matches!(first.what, Some(Down::Welcome(_))), "{first:?}");
        fake
    }
}

pub(crate) fn hello(name: &str) -> v1::Hello {
    let amounts =
        v1::Amounts { cpu_milli: Some(4_000), memory: Some(4 << 30), ..v1::Amounts::default() };
    v1::Hello {
        version_least: 1,
        version_most: 1,
        node: name.to_owned(),
        instance: format!("disk-of-{name}"),
        incarnation: 1,
        connection: 1,
        boot_id: "boot".into(),
        features: ["fence", "pods", "channel"].map(String::from).into(),
        capacity: Some(v1::Capacity { allocatable: Some(amounts), ..v1::Capacity::default() }),
        ..v1::Hello::default()
    }
}

pub(crate) fn task() -> v1::TaskSpec {
    let root = v1::Root { kind: Some(v1::root::Kind::Host(true)), ..v1::Root::default() };
    let request = v1::Amounts { cpu_milli: Some(500), ..v1::Amounts::default() };
    v1::TaskSpec {
        root: Some(root),
        command: vec!["serve".into()],
        resources: Some(v1::Resources { request: Some(request), ..v1::Resources::default() }),
        ..v1::TaskSpec::default()
    }
}

pub(crate) fn job(name: &str, replicas: u32) -> v1::JobSpec {
    let short = |millis| pbjson_types::Duration { seconds: 0, nanos: millis * 1_000_000 };
    v1::JobSpec {
        name: name.to_owned(),
        what: Some(v1::job_spec::What::Task(task())),
        kind: Some(v1::job_spec::Kind::Replicas(replicas)),
        reschedule: Some(v1::BackOff { first: Some(short(50)), most: Some(short(100)) }),
        ..v1::JobSpec::default()
    }
}

pub(crate) fn submit(job: v1::JobSpec) -> v1::SubmitJobRequest {
    v1::SubmitJobRequest { job: Some(job), if_version: 0 }
}

/// One stream of an agent.
pub(crate) struct Fake {
    pub(crate) channel: Channel,
    up: mpsc::Sender<v1::FromAgent>,
    down: Streaming<v1::FromMaster>,
    pub(crate) number: u64,
    pub(crate) heard: u64,
    sequences: BTreeMap<String, u64>,
}

impl Fake {
    pub(crate) async fn dial(channel: Channel, hello: v1::Hello) -> (Self, v1::FromMaster) {
        let first = v1::FromAgent { number: 1, heard: 0, what: Some(Up::Hello(hello)) };
        let mut fake = Self::begin(channel, first).await.unwrap();
        let first = fake.next().await.expect("an answer");
        (fake, first)
    }

    pub(crate) async fn begin(channel: Channel, first: v1::FromAgent) -> Result<Self, Status> {
        let (up, said) = mpsc::channel(1024);
        up.send(first).await.unwrap();
        let connected = MasterClient::new(channel.clone()).connect(ReceiverStream::new(said)).await;
        let down = connected?.into_inner();
        Ok(Self { channel, up, down, number: 1, heard: 0, sequences: BTreeMap::new() })
    }

    pub(crate) async fn say(&mut self, what: Up) {
        self.number += 1;
        self.send(v1::FromAgent { number: self.number, heard: self.heard, what: Some(what) }).await;
    }

    /// Whatever its numbers are. Nobody may be there any more.
    pub(crate) async fn send(&mut self, message: v1::FromAgent) {
        let _ = self.up.send(message).await;
    }

    /// What comes next; `None` or an error at the end.
    pub(crate) async fn hear(&mut self) -> Result<Option<v1::FromMaster>, Status> {
        let message = timeout(PATIENCE, self.down.message()).await.expect("something in time")?;
        if let Some(message) = &message {
            assert_eq!(message.number, self.heard + 1);
            assert!(message.heard <= self.number);
            self.heard = message.number;
        }
        Ok(message)
    }

    pub(crate) async fn next(&mut self) -> Option<v1::FromMaster> {
        self.hear().await.ok().flatten()
    }

    /// Until a message is of a kind; meanwhile the lease is kept.
    pub(crate) async fn until<T>(&mut self, pick: impl Fn(&Down) -> Option<T>) -> T {
        let end = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < end {
            match timeout(PING, self.down.message()).await {
                Ok(message) => {
                    let message = message.expect("a stream").expect("more of it");
                    self.heard = message.number;
                    let what = message.what.expect("something");
                    if let Some(picked) = pick(&what) {
                        return picked;
                    }
                }
                Err(_) => self.say(Up::Ping(v1::Ping {})).await,
            }
        }
        panic!("it never came");
    }

    pub(crate) async fn command<T>(&mut self, pick: impl Fn(&command::What) -> Option<T>) -> T {
        self.until(|what| match what {
            Down::Command(command) => pick(command.what.as_ref()?),
            _ => None,
        })
        .await
    }

    /// The next task that it is to run.
    pub(crate) async fn run(&mut self) -> v1::TaskSpec {
        self.command(|what| match what {
            command::What::RunTask(run) => run.task.clone(),
            _ => None,
        })
        .await
    }

    pub(crate) async fn stop(&mut self) -> String {
        self.command(|what| match what {
            command::What::Stop(stop) => Some(stop.id.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn tell(&mut self, task: &str, state: v1::State, ready: bool) {
        let sequence = self.sequences.entry(task.to_owned()).or_default();
        *sequence += 1;
        let sequence = *sequence;
        self.tell_as(task, sequence, state, ready).await;
    }

    pub(crate) async fn tell_as(
        &mut self,
        task: &str,
        sequence: u64,
        state: v1::State,
        ready: bool,
    ) {
        let status = v1::TaskStatus { state: state.into(), ready, ..v1::TaskStatus::default() };
        let status = Some(status);
        let update = v1::TaskUpdate { task: task.to_owned(), sequence, status, epoch: 0 };
        self.say(Up::Update(update)).await;
    }

    pub(crate) async fn acknowledged(&mut self, task: &str) -> u64 {
        self.until(|what| match what {
            Down::Acknowledge(known) if known.task == task => Some(known.sequence),
            _ => None,
        })
        .await
    }

    /// Take a task on, and say that it runs.
    pub(crate) async fn run_ready(&mut self) -> String {
        let task = self.run().await.id;
        self.tell(&task, v1::State::Running, true).await;
        task
    }

    /// Do as it is told: what is to run runs, what is to stop stops.
    pub(crate) async fn obey(mut self) {
        loop {
            let message = match timeout(PING, self.down.message()).await {
                Ok(Ok(Some(message))) => message,
                Ok(_) => return,
                Err(_) => {
                    self.say(Up::Ping(v1::Ping {})).await;
                    continue;
                }
            };
            self.heard = message.number;
            let Some(Down::Command(v1::Command { id, what, .. })) = message.what else { continue };
            let result = v1::CommandResult { command: id, ..v1::CommandResult::default() };
            self.say(Up::Result(result)).await;
            match what {
                Some(command::What::RunTask(run)) => {
                    self.tell(&run.task.unwrap().id, v1::State::Running, true).await;
                }
                Some(command::What::Stop(stop)) => {
                    self.tell(&stop.id, v1::State::Killed, false).await;
                }
                _ => {}
            }
        }
    }
}

pub(crate) fn held(task: &str, state: v1::State) -> v1::HeldTask {
    v1::HeldTask {
        id: task.to_owned(),
        state: state.into(),
        ready: true,
        ..v1::HeldTask::default()
    }
}

pub(crate) fn refused(message: &v1::FromMaster) -> v1::refused::Kind {
    match &message.what {
        Some(Down::Refused(refused)) => refused.kind(),
        other => panic!("{other:?}"),
    }
}
