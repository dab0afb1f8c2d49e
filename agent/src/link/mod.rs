//! The agent's side of docs/protocol.md: it dials a master, keeps one stream, tells what becomes of the master's tasks and does
//! what the master orders. What is counted and when it ends is decided by [`session`], which has neither clock nor socket.

mod channel;
mod clock;
mod dial;
mod disk;
mod join;
mod ledger;
mod orders;
mod pause;
mod report;
mod session;
mod tasks;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hafen_protocol::v1::master_client::MasterClient;
use hafen_protocol::v1::{self, from_agent, refused};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

pub use clock::{BootTime, Heard};
pub use report::attributes;
pub use session::{Act, End, Session, Terms};

use crate::address::Address;
use crate::config::{Config, Master};
use crate::failure::{Failure, Kind, chain};
use crate::node::Node;
use crate::stats;
use channel::Caller;
use dial::{Files, dial};
use disk::Disk;
use ledger::{Known, Ledger};
use orders::{Finished, Gate, Orders};
use pause::{BackOff, Masters};
use report::Meter;

/// Messages that wait for the network; then the agent waits.
const WAITING: usize = 16;
/// Addresses in a row that are asked without a pause, whatever masters say.
const IN_A_ROW: u32 = 8;
/// Where only a person can help.
const FOR_A_PERSON: Duration = Duration::from_secs(60);
/// For the last words.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between two looks at tasks that are stopped when no master hears us.
const LOOK: Duration = Duration::from_millis(500);

/// A node's connection to its masters, for as long as the node runs.
#[derive(Debug)]
pub struct Link {
    said: watch::Sender<Said>,
    running: JoinHandle<()>,
}

/// What the node itself wants to say to its master.
#[derive(Debug, Clone, Default)]
struct Said {
    leaving: bool,
    drain: Option<v1::DrainWish>,
}

impl Link {
    /// `None`: the node has no master.
    ///
    /// # Errors
    /// What is known of before cannot be read, or there is no way to have a certificate.
    pub fn start(node: &Node) -> Result<Option<Self>, Failure> {
        let Some(master) = node.config().master.clone() else { return Ok(None) };
        let internal = |e: &dyn std::error::Error| Failure::of(Kind::Internal, e);
        let disk = Disk::open(&node.config().state.join("agent")).map_err(|e| internal(&e))?;
        let lease = disk.known().lease;
        let identity = Identity::of(node.config(), &master);
        identity.check(&master)?;
        if v1::Capacity::WAITS.iter().all(|of| stats::pressure(of) == (None, None)) {
            tracing::warn!("the kernel counts no pressure (PSI): the master hears of none");
        }
        let (said, heard) = watch::channel(Said::default());
        let (finished, results) = mpsc::unbounded_channel();
        let agent = Agent {
            node: node.clone(),
            disk,
            masters: Masters::new(master.urls, master.insecure),
            identity,
            back_off: BackOff::new(lease),
            ledger: Ledger::default(),
            meter: Arc::default(),
            connection: 0,
            said: heard,
            finished,
            results,
        };
        Ok(Some(Self { said, running: tokio::spawn(agent.run()) }))
    }

    /// Ask the master to move what runs here elsewhere, or no more.
    pub fn wish_drain(&self, wish: v1::DrainWish) {
        self.said.send_modify(|said| said.drain = Some(wish));
    }

    /// Say that the agent ends and what runs here runs on.
    pub async fn leave(&self) {
        self.said.send_modify(|said| said.leaving = true);
        // The agent drops what it is heard with when it ends.
        if tokio::time::timeout(FAREWELL, self.said.closed()).await.is_err() {
            self.running.abort();
        }
    }
}

/// Stop what must not go on when no master hears this node; whether there is a link or not.
pub(crate) async fn stop_unheard(node: Node) {
    loop {
        let Ok(next) = node.ask(|driver| driver.stop_unheard(BootTime::now())).await else {
            return;
        };
        tokio::time::sleep(next.map_or(LOOK, |next| next.min(LOOK))).await;
    }
}

/// Who we are.
#[derive(Debug)]
struct Identity {
    files: Files,
    joining: Option<crate::config::Joining>,
    /// Where what joining brings is kept. `None`: a person looks after the certificate.
    folder: Option<PathBuf>,
}

impl Identity {
    fn of(config: &Config, master: &Master) -> Self {
        let folder = join::folder(&config.state);
        match &master.files {
            Some(files) => Self {
                files: Files {
                    cert: files.cert.clone(),
                    key: files.key.clone(),
                    ca: files.ca.clone(),
                },
                joining: None,
                folder: None,
            },
            None => Self {
                files: join::files(&folder),
                joining: master.joining.clone(),
                folder: Some(folder),
            },
        }
    }

    /// Whoever starts the agent is told at once what can never work.
    fn check(&self, master: &Master) -> Result<(), Failure> {
        let needed = master.urls.iter().find(|url| matches!(url, Address::Tls(..)));
        let Some(url) = needed else { return Ok(()) };
        if self.folder.is_some() && !self.files.cert.exists() {
            return match self.joining {
                Some(_) => Ok(()),
                None => Err(Failure::of(Kind::Invalid, &dial::DialError::Stranger(url.clone()))),
            };
        }
        self.files.read().map(drop).map_err(|e| Failure::of(Kind::Invalid, &e))
    }

    fn has_joined(&self) -> bool {
        self.folder.is_some() && self.files.cert.exists()
    }
}

struct Agent {
    node: Node,
    disk: Disk,
    masters: Masters,
    identity: Identity,
    back_off: BackOff,
    ledger: Ledger,
    meter: Arc<Mutex<Meter>>,
    /// Counts the dials of this incarnation; streams are told apart by it.
    connection: u64,
    said: watch::Receiver<Said>,
    finished: mpsc::UnboundedSender<Finished>,
    results: mpsc::UnboundedReceiver<Finished>,
}

impl Agent {
    async fn run(mut self) {
        let mut in_a_row = 0;
        while !self.said.borrow().leaving {
            let address = self.masters.next().filter(|_| in_a_row < IN_A_ROW);
            let at_least = match address {
                None => Duration::ZERO,
                Some(address) => {
                    in_a_row += 1;
                    let began = BootTime::now();
                    let (welcomed, end) = self.attend(&address).await;
                    let lived = BootTime::now().since(began);
                    tracing::warn!(master = %address, lived = lived.as_secs(), "{end}");
                    let at_least = self.consider(&end);
                    if welcomed {
                        self.back_off.lived(lived);
                    } else if at_least.is_zero() {
                        continue;
                    }
                    at_least
                }
            };
            in_a_row = 0;
            let pause = self.back_off.pause(random()).max(at_least);
            self.rest(pause).await;
        }
    }

    async fn rest(&mut self, pause: Duration) {
        let leaving = self.said.wait_for(|said| said.leaving);
        // Nothing is lost with either.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = leaving => {}
        }
    }

    /// What the end of a stream says about the next one: how long to wait for it at least.
    fn consider(&mut self, end: &End) -> Duration {
        use refused::Kind;
        match end {
            End::Redirected(masters) => {
                self.masters.redirected(masters);
                Duration::ZERO
            }
            End::Refused(refused) => {
                let said = refused.retry_after.as_ref().map(crate::time::duration);
                said.unwrap_or(match refused.kind() {
                    Kind::Version | Kind::Identity | Kind::Taken => FOR_A_PERSON,
                    // Another machine answers to our name.
                    Kind::Stale => FOR_A_PERSON,
                    Kind::Unspecified | Kind::Epoch | Kind::Busy | Kind::Protocol => Duration::ZERO,
                })
            }
            _ => Duration::ZERO,
        }
    }

    /// One stream, from the dial to its end; were we welcome?
    async fn attend(&mut self, address: &Address) -> (bool, End) {
        let reached = tokio::time::timeout(self.back_off.patience(), self.reach(address)).await;
        let late = || Err(End::Lost("does not answer in time".to_owned()));
        let client = match reached.unwrap_or_else(|_| late()) {
            Ok(client) => client,
            Err(end) => return (false, end),
        };
        let mut stream = match self.open(client).await {
            Ok(stream) => stream,
            Err(end) => return (false, end),
        };
        let end = self.converse(&mut stream, address).await.err();
        let end = end.unwrap_or_else(|| End::Lost("the agent ends".to_owned()));
        self.node.tell(|driver| driver.master = None);
        let welcomed = stream.session.terms().is_some();
        // Before the next Hello: nothing of this one is begun any more.
        stream.close().await;
        (welcomed, end)
    }

    async fn reach(&self, address: &Address) -> Result<MasterClient<Channel>, End> {
        let lost = |e: &dyn std::error::Error| End::Lost(chain(e));
        if !matches!(address, Address::Tls(..)) {
            return dial(address, None).await.map_err(|e| lost(&e));
        }
        if let (Some(folder), Some(joining)) = (&self.identity.folder, &self.identity.joining)
            && !self.identity.has_joined()
        {
            let wished = &self.node.config().name;
            let joined = join::join(address, joining, wished, folder, &self.disk).await;
            joined.map_err(|e| lost(&e))?;
        }
        let tls = self.identity.files.read().map_err(|e| lost(&e))?;
        dial(address, Some(tls)).await.map_err(|e| lost(&e))
    }

    /// As in the certificate.
    fn name(&self) -> String {
        let given = self.disk.known().node.filter(|_| self.identity.has_joined());
        given.unwrap_or_else(|| self.node.config().name.clone())
    }

    async fn open(&mut self, mut client: MasterClient<Channel>) -> Result<Stream, End> {
        let lost = |why: &str| End::Lost(why.to_owned());
        self.connection += 1;
        let hello = report::hello(&self.node, self.name(), &self.disk, self.connection).await;
        let hello = hello.map_err(|failure| End::Lost(failure.message))?;
        let epoch = hello.epoch_seen;
        let (outgoing, messages) = mpsc::channel(WAITING);
        let (session, first) = Session::open(hello, epoch, BootTime::now());
        // There is room.
        let _ = outgoing.send(first).await;
        let called = client.connect(ReceiverStream::new(messages));
        let called = tokio::time::timeout(self.back_off.patience(), called).await;
        let called = called.map_err(|_| lost("the master does not take the call"))?;
        let incoming = called.map_err(|status| End::Lost(status_of(&status)))?.into_inner();
        let heard = self.node.ask(|driver| driver.heard.clone()).await;
        let heard = heard.map_err(|failure| End::Lost(failure.message))?;
        let gate = Gate::new();
        let orders = Orders {
            node: self.node.clone(),
            disk: self.disk.clone(),
            gate: gate.clone(),
            caller: Caller { client: client.clone(), heard },
            finished: self.finished.clone(),
        };
        let (commands, queue) = mpsc::unbounded_channel();
        Ok(Stream {
            session,
            client,
            outgoing,
            incoming,
            updates: None,
            commands,
            carrying: orders.carry(queue),
            gate,
            reports: None,
            wished: None,
        })
    }

    /// Until the stream is to be closed; `Ok`: all is said.
    async fn converse(&mut self, stream: &mut Stream, address: &Address) -> Result<(), End> {
        let mut said = self.said.clone();
        say(&mut said, stream);
        // Of earlier streams, before a command of this one is taken for one of those.
        while let Ok(finished) = self.results.try_recv() {
            self.finished(stream, finished).await?;
        }
        while !stream.session.is_over() {
            let now = BootTime::now();
            stream.session.check(now)?;
            let has_news = stream.session.has_news(now);
            let due =
                if has_news { stream.session.until() } else { stream.session.due() }.since(now);
            // Each of these is taken as a whole or not at all (tokio, "Cancel safety").
            tokio::select! {
                came = stream.incoming.message(), if !stream.session.is_full() => {
                    self.came(stream, came, address).await?;
                }
                permit = stream.outgoing.clone().reserve_owned(), if has_news => {
                    let permit = permit.map_err(|_| End::Lost("the master has hung up".into()))?;
                    if let Some(message) = stream.session.next(BootTime::now()) {
                        permit.send(message);
                    }
                }
                Some(report) = next(&mut stream.reports) => {
                    stream.session.report(report);
                    self.renew(stream);
                }
                Some(update) = next(&mut stream.updates) => {
                    stream.session.say(from_agent::What::Update(update));
                }
                Some(finished) = self.results.recv() => {
                    self.finished(stream, finished).await?;
                }
                Ok(()) = said.changed() => say(&mut said, stream),
                () = tokio::time::sleep(due) => {}
            }
        }
        // What was sent goes out before the connection is closed.
        let _ = tokio::time::timeout(FAREWELL, stream.drain()).await;
        Ok(())
    }

    async fn came(
        &mut self,
        stream: &mut Stream,
        came: Result<Option<v1::FromMaster>, tonic::Status>,
        address: &Address,
    ) -> Result<(), End> {
        let message = came.map_err(|status| End::Lost(status_of(&status)))?;
        let message =
            message.ok_or_else(|| End::Lost("the master has closed the stream".to_owned()))?;
        for act in stream.session.take(message, BootTime::now())? {
            self.act(stream, act, address).await?;
        }
        Ok(())
    }

    async fn act(&mut self, stream: &mut Stream, act: Act, address: &Address) -> Result<(), End> {
        match act {
            Act::Epoch(epoch) => {
                let written = self.disk.change(|known| known.epoch = epoch);
                written.map_err(|e| End::Lost(chain(&e)))?;
            }
            Act::Heard(at) => {
                stream.gate.open_until(stream.session.until());
                self.node.tell(move |driver| driver.heard_by_master(at));
            }
            Act::Welcomed(welcome) => {
                tracing::info!(master = %address, name = welcome.master, "welcome");
                self.welcomed(stream, welcome).await?;
            }
            Act::Acknowledged(known) => self.node.tell(move |driver| driver.acknowledged(&known)),
            Act::Carry(command) => match self.ledger.begin(&command.id, self.connection) {
                // It ends when the stream does.
                Known::No => drop(stream.commands.send(*command)),
                Known::UnderWay { here: true } => stream.session.waive(),
                Known::UnderWay { here: false } => {}
                Known::Done(result) => stream.session.answer(result),
            },
        }
        Ok(())
    }

    /// What was not acknowledged goes first.
    async fn welcomed(&mut self, stream: &mut Stream, welcome: v1::Welcome) -> Result<(), End> {
        self.masters.welcomed(&welcome.masters);
        let lease = stream.session.terms().map(|terms| terms.lease);
        if let Some(lease) = lease {
            self.back_off.welcomed(lease);
        }
        if self.disk.known().lease != lease {
            let saved = self.disk.change(|known| known.lease = lease);
            saved.map_err(|e| End::Lost(chain(&e)))?;
        }
        let listen = self.node.ask(move |driver| driver.listen(&welcome.acknowledged)).await;
        let mut updates = listen.map_err(|failure| End::Lost(failure.message))?;
        while let Ok(update) = updates.try_recv() {
            stream.session.say(from_agent::What::Update(update));
        }
        stream.updates = Some(updates);
        stream.gate.open_until(stream.session.until());
        let every = stream.session.terms().map(|terms| terms.report_every);
        stream.reports = every.map(|every| self.begin_reports(every));
        Ok(())
    }

    async fn finished(&mut self, stream: &mut Stream, finished: Finished) -> Result<(), End> {
        match finished {
            Finished::Done(result) => {
                let has_failed = result.failure.is_some();
                if self.ledger.finish(&result) == Some(self.connection) {
                    stream.session.answer(result);
                } else if has_failed {
                    // Its stream is no more, and the Hello of this one has told of what is not there now.
                    let tasks = self.node.ask(|driver| driver.held()).await;
                    let tasks = tasks.map_err(|failure| End::Lost(failure.message))?;
                    let tasks = v1::Tasks { tasks, missing: Vec::new() };
                    stream.session.say(from_agent::What::Tasks(tasks));
                }
            }
            Finished::Dropped(command) => {
                if self.ledger.forget(&command) == Some(self.connection) {
                    // The master waits for its result: it was too late to begin it, and so it is for the stream.
                    return Err(End::Lost("a command came too late".to_owned()));
                }
            }
        }
        Ok(())
    }

    /// To read the numbers of many tasks takes a while: heartbeats do not wait for it.
    fn begin_reports(&self, every: Duration) -> mpsc::UnboundedReceiver<v1::NodeReport> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (node, meter) = (self.node.clone(), self.meter.clone());
        tokio::spawn(async move {
            loop {
                let report = meter.lock().await.report(&node).await;
                // The node has ended, or the stream.
                if report.map(|report| sender.send(report).is_err()).unwrap_or(true) {
                    return;
                }
                tokio::time::sleep(every).await;
            }
        });
        receiver
    }

    /// For the next connection.
    fn renew(&self, stream: &Stream) {
        let Some(folder) = self.identity.folder.clone() else { return };
        if !self.identity.has_joined() || !join::is_due(&self.disk) {
            return;
        }
        let (mut client, disk) = (stream.client.clone(), self.disk.clone());
        let node = self.name();
        tokio::spawn(async move {
            if let Err(e) = join::renew(&mut client, &node, &folder, &disk).await {
                tracing::warn!(error = chain(&e), "the certificate is not renewed");
            }
        });
    }
}

/// A call of `Connect`, and what hangs on it.
struct Stream {
    session: Session,
    client: MasterClient<Channel>,
    outgoing: mpsc::Sender<v1::FromAgent>,
    incoming: Streaming<v1::FromMaster>,
    updates: Option<mpsc::UnboundedReceiver<v1::TaskUpdate>>,
    commands: mpsc::UnboundedSender<v1::Command>,
    carrying: JoinHandle<()>,
    gate: Gate,
    reports: Option<mpsc::UnboundedReceiver<v1::NodeReport>>,
    wished: Option<v1::DrainWish>,
}

impl Stream {
    async fn close(self) {
        self.gate.close();
        let Self { commands, carrying, outgoing, incoming, .. } = self;
        drop((commands, outgoing, incoming));
        // One that has begun comes to its end.
        let _ = carrying.await;
    }

    /// Until the master has read all and ends the call.
    async fn drain(&mut self) {
        let (outgoing, _) = mpsc::channel(1);
        // Our direction ends.
        drop(std::mem::replace(&mut self.outgoing, outgoing));
        while let Ok(Some(_)) = self.incoming.message().await {}
    }
}

/// What the node wants to say, once on each stream.
fn say(said: &mut watch::Receiver<Said>, stream: &mut Stream) {
    let said = said.borrow_and_update();
    if let Some(wish) = said.drain
        && stream.wished != Some(wish)
    {
        stream.wished = Some(wish);
        stream.session.say(from_agent::What::Drain(wish));
    }
    if said.leaving {
        let sentence = "the agent ends".to_owned();
        stream.session.say(from_agent::What::Leaving(v1::Leaving { sentence }));
    }
}

/// Never, where nothing comes.
async fn next<T>(receiver: &mut Option<mpsc::UnboundedReceiver<T>>) -> Option<T> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

fn status_of(status: &tonic::Status) -> String {
    let said = format!("{:?}: {}", status.code(), status.message());
    match std::error::Error::source(status) {
        Some(cause) => format!("{said}: {}", chain(cause)),
        None => said,
    }
}

/// Between 0 and 1.
fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let bits = RandomState::new().hash_one(BootTime::now().0) >> 40;
    #[expect(clippy::cast_precision_loss, reason = "24 bits")]
    let share = bits as f64 / f64::from(1 << 24);
    share
}
