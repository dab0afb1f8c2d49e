//! The coordinator at work: streams of nodes, calls of people, the disk and the clock around [`crate::cluster::Core`].

mod agenda;
mod board;
mod ca;
mod channel;
mod desk;
mod engine;
mod events;
mod grpc;
mod http;
mod join;
mod listen;
mod master;
mod metrics;
mod plan;
mod reign;
mod saver;
mod session;
mod tokens;
mod view;
mod who;
mod withdrawn;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hafen_door::DoorError;
use hafen_door::failure::{Failure, Kind, chain};
use hafen_protocol::v1;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

pub use ca::{Authority, CaError, Person};
pub use listen::Address;

use crate::cluster::{Effect, Settings};
use crate::model::Record;
use crate::state::etcd::{self, Etcd};
use crate::state::{Mandate, Save, Store};
use desk::Desk;
use engine::{Engine, Queues};
use http::Rooms;
use join::Gate;
use listen::{Listener, Reception};
use withdrawn::Withdrawn;

/// What is under way when we end may take so long.
const FAREWELL: Duration = Duration::from_secs(3);
const SHORTEST_LEASE: Duration = Duration::from_millis(100);
const LONGEST_LEASE: Duration = Duration::from_secs(600);

/// How a coordinator is to be.
#[derive(Debug, Clone)]
pub struct Options {
    pub listen: Vec<Address>,
    /// The folder of all that is kept.
    pub state: PathBuf,
    /// For people.
    pub name: String,
    /// How long a node may stay unheard.
    pub lease: Duration,
    /// Who may use the socket, beside root and our own user.
    pub group: Option<u32>,
    /// Names and addresses under which nodes reach us, beside those that we know.
    pub names: Vec<String>,
    /// Also plain HTTP on addresses that others can reach: whoever can, directs the cluster.
    pub insecure: bool,
    /// The state is there, and shared with other coordinators; else it is in a file of our own.
    pub etcd: Option<etcd::Options>,
    /// Where the other coordinators, nodes and people find this one; absent: the first address of TCP.
    pub url: Option<String>,
}

/// Why there is no coordinator, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error(transparent)]
    State(#[from] crate::state::Error),
    #[error("the cluster's authority")]
    Authority(#[from] CaError),
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error("listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(
        "http://{0} can be reached from elsewhere, and whoever does would direct the cluster: listen on https://, or say --insecure"
    )]
    Plain(SocketAddr),
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    #[error("set up TLS for callers")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("mkdir {path}")]
    Folder { path: PathBuf, source: io::Error },
    #[error("start a thread")]
    Thread(#[source] io::Error),
    #[error("a lease of {0:?}: 100 ms to 10 min are possible")]
    Lease(Duration),
    #[error("the coordinator's loop is gone")]
    Gone,
    #[error(
        "the authority of this coordinator ({ours}) is not that of the cluster in etcd ({theirs}), whose nodes and people it would refuse: copy STATE/ca of another coordinator here"
    )]
    OtherAuthority { ours: String, theirs: String },
    #[error("with --etcd others have to find this coordinator: listen on TCP, or say --url")]
    Nowhere,
}

impl From<etcd::EtcdError> for Ended {
    fn from(error: etcd::EtcdError) -> Self {
        Self::State(error.into())
    }
}

/// The loop behind the rooms, which has not begun.
#[derive(Debug)]
struct Work {
    engine: Engine,
    queues: Queues,
    begin: Vec<Effect>,
}

/// What people see of this coordinator itself.
#[derive(Debug)]
struct Card {
    name: String,
    /// Where it is called, with the ports that it was given.
    addresses: Vec<String>,
}

/// Where everybody is received while this coordinator directs.
fn open(
    records: Vec<Record>,
    keep: (Save, Mandate),
    settings: Settings,
    card: &Arc<Card>,
    authority: &Arc<Authority>,
    withdrawn: &Withdrawn,
) -> Result<(Rooms, Work), Ended> {
    withdrawn.read(&records);
    let opened = Engine::open(records, keep, settings, Arc::clone(card))?;
    let (engine, queues, inlet, begin, tokens) = opened;
    let gate = Arc::new(Gate::new(Arc::clone(authority), tokens, withdrawn.clone()));
    Ok((Rooms { desk: Desk { inlet }, gate }, Work { engine, queues, begin }))
}

fn router(rooms: &Rooms) -> Router {
    http::router(rooms.clone()).merge(grpc::router(rooms.clone()))
}

/// Where the state is.
enum Source {
    File(Store),
    Shared(Etcd),
}

impl Work {
    async fn run(self, stop: oneshot::Receiver<()>) -> Result<(), Ended> {
        self.engine.run(self.queues, self.begin, stop).await
    }
}

/// One that is at work.
#[derive(Debug)]
pub struct Coordinator {
    /// Where it is called, with the ports that were given to it.
    pub addresses: Vec<Address>,
    /// SHA-256 of the authority's certificate, in hexadecimal.
    pub authority: String,
    /// None while another one directs.
    rooms: watch::Receiver<Option<Rooms>>,
    engine: JoinHandle<Result<(), Ended>>,
    stop: Option<oneshot::Sender<()>>,
    end: watch::Sender<()>,
    serving: JoinSet<()>,
}

impl Coordinator {
    /// Go on where the state says, or begin. It answers when this returns.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub async fn start(options: Options) -> Result<Self, Ended> {
        let lease = options.lease;
        if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&lease) {
            return Err(Ended::Lease(lease));
        }
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&options.state);
        made.map_err(|source| Ended::Folder { path: options.state.clone(), source })?;
        // Its lock says that there is no other coordinator on this state.
        let source = match &options.etcd {
            None => Source::File(Store::open(&options.state.join("cluster"))?),
            Some(etcd) => Source::Shared(Etcd::new(etcd)?),
        };
        let authority = Arc::new(Authority::open(&options.state.join("ca"))?);
        let names = listen::own_names(&options.names, &options.listen);
        let tls = Arc::new(listen::tls(&authority, &names)?);
        let mut listeners = Vec::new();
        for address in &options.listen {
            let bound = Listener::bind(address, options.group, options.insecure, &tls);
            listeners.push(bound.await?);
        }
        let addresses: Vec<Address> = listeners.iter().map(Listener::address).collect();
        let settings = Settings { lease, ..Settings::default() };
        let card = Arc::new(Card {
            name: options.name,
            addresses: addresses.iter().map(ToString::to_string).collect(),
        });
        let withdrawn = Withdrawn::default();
        let (leader, who) = watch::channel(None);
        let (router, routed) = watch::channel(reign::waiting(who));
        let (opened, rooms) = watch::channel(None);
        let (stop, stopped) = oneshot::channel();
        let engine = match source {
            Source::File(store) => {
                let records = store.load()?;
                let save: Save = Box::new(move |changes| store.save(changes.iter().copied()));
                let keep = (save, Mandate::default());
                let (first, work) = open(records, keep, settings, &card, &authority, &withdrawn)?;
                drop(router.send_replace(self::router(&first)));
                opened.send_replace(Some(first));
                tokio::spawn(work.run(stopped))
            }
            Source::Shared(etcd) => {
                let url = options.url.or_else(|| public(&addresses)).ok_or(Ended::Nowhere)?;
                let authority = Arc::clone(&authority);
                let candidate = reign::Candidate {
                    etcd,
                    url,
                    settings,
                    card,
                    authority,
                    withdrawn: withdrawn.clone(),
                    rooms: opened,
                    router,
                    leader,
                };
                tokio::spawn(candidate.run(stopped))
            }
        };
        let (end, ending) = watch::channel(());
        let reception = Reception::new(routed, options.group, withdrawn, ending);
        let mut serving = JoinSet::new();
        for listener in listeners {
            serving.spawn(reception.clone().serve(listener));
        }
        let authority = authority.fingerprint();
        Ok(Self { addresses, authority, rooms, engine, stop: Some(stop), end, serving })
    }

    /// Something with which nodes may join.
    ///
    /// # Errors
    /// It cannot be written down.
    pub async fn token(&self, request: v1::CreateTokenRequest) -> Result<v1::JoinToken, Failure> {
        let rooms = self.rooms.borrow().clone();
        let waits = || Failure::new(Kind::Unavailable, "another coordinator directs: ask that one");
        let rooms = rooms.ok_or_else(waits)?;
        rooms.gate.token(&rooms.desk, request).await
    }

    /// Until it cannot go on: which is an error.
    ///
    /// # Errors
    /// Why.
    pub async fn failed(&mut self) -> Result<(), Ended> {
        let ended = (&mut self.engine).await;
        ended.unwrap_or(Err(Ended::Gone))
    }

    /// Let go of all streams; what was decided is written down when this returns.
    pub async fn stop(mut self) {
        self.serving.shutdown().await;
        drop(self.stop.take());
        if !self.engine.is_finished() {
            let _ = (&mut self.engine).await;
        }
        let _ = self.end.send(());
        let _ = timeout(FAREWELL, self.end.closed()).await;
    }
}

/// The first address that others can call.
fn public(addresses: &[Address]) -> Option<String> {
    let mut tcp = addresses.iter().filter(|address| !matches!(address, Address::Unix(_)));
    tcp.next().map(ToString::to_string)
}
