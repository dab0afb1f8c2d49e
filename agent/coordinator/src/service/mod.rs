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
mod saver;
mod session;
mod tokens;
mod view;
mod who;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hafen_door::DoorError;
use hafen_door::failure::Failure;
use hafen_protocol::v1;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

pub use ca::{Authority, CaError, Person};
pub use listen::Address;

use crate::cluster::Settings;
use crate::state::{State, Store};
use desk::Desk;
use engine::Engine;
use http::Rooms;
use join::Gate;
use listen::{Listener, Reception};

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
}

/// What is told to nodes and people of ourselves.
#[derive(Debug)]
struct Names {
    name: String,
    masters: Vec<String>,
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
}

/// One that is at work.
#[derive(Debug)]
pub struct Coordinator {
    /// Where it is called, with the ports that were given to it.
    pub addresses: Vec<Address>,
    /// SHA-256 of the authority's certificate, in hexadecimal.
    pub authority: String,
    rooms: Rooms,
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
        let store = State::File(Store::open(&options.state.join("cluster"))?);
        let authority = Arc::new(Authority::open(&options.state.join("ca"))?);
        let names = listen::own_names(&options.names, &options.listen);
        let tls = Arc::new(listen::tls(&authority, &names)?);
        let mut listeners = Vec::new();
        for address in &options.listen {
            let bound = Listener::bind(address, options.group, options.insecure, &tls);
            listeners.push(bound.await?);
        }
        let settings = Settings { lease, ..Settings::default() };
        let names = Arc::new(Names { name: options.name, masters: Vec::new() });
        let (engine, queues, inlet, effects, tokens) = Engine::open(store, settings, names)?;
        let rooms = Rooms {
            desk: Desk { inlet },
            gate: Arc::new(Gate::new(Arc::clone(&authority), tokens)),
        };
        let (stop, stopped) = oneshot::channel();
        let engine = tokio::spawn(engine.run(queues, effects, stopped));
        let (end, ending) = watch::channel(());
        let router = http::router(rooms.clone()).merge(grpc::router(rooms.clone()));
        let reception = Reception::new(router, options.group, ending);
        let addresses = listeners.iter().map(Listener::address).collect();
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
        self.rooms.gate.token(&self.rooms.desk, request).await
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
