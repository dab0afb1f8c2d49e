//! Agents that are only made up: each has a connection of its own, keeps its lease as docs/protocol.md says, and holds nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hafen_protocol::v1;
use hafen_protocol::v1::from_agent::What as Up;
use hafen_protocol::v1::from_master::What as Down;
use hafen_protocol::v1::master_client::MasterClient;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use super::Error;
use super::sizes::{NODE_CPU, NODE_MEMORY};
use crate::agent::PATIENCE;

/// Where the master does not say how often it wants one.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// What became of all of them.
#[derive(Debug, Default)]
pub struct Tally {
    welcomed: AtomicUsize,
    lost: AtomicUsize,
    first_loss: Mutex<Option<String>>,
    /// Pings that the master has said it heard, and what the slowest of them took.
    heard: AtomicU64,
    slowest_ns: AtomicU64,
}

impl Tally {
    #[must_use]
    pub fn welcomed(&self) -> usize {
        self.welcomed.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }

    /// Why the first one was lost.
    #[must_use]
    pub fn first_loss(&self) -> Option<String> {
        self.first_loss.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many pings were heard since the last call, and the milliseconds of the slowest.
    #[must_use]
    pub fn pings(&self) -> (u64, f64) {
        let heard = self.heard.swap(0, Ordering::Relaxed);
        (heard, self.slowest_ns.swap(0, Ordering::Relaxed) as f64 / 1e6)
    }

    fn note_ping(&self, took: Duration) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.slowest_ns.fetch_max(took, Ordering::Relaxed);
    }

    fn lose(&self, n: usize, why: &Error) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first_loss.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| format!("{}: {why}", name(n)));
    }
}

/// They live for as long as this does.
#[derive(Debug)]
pub struct Crowd {
    pub tally: Arc<Tally>,
    _agents: JoinSet<()>,
}

impl Crowd {
    /// So many begin to dial, `wave` of them at a time.
    ///
    /// # Errors
    /// If the address is none.
    pub fn gather(runtime: &Handle, url: &str, count: usize, wave: usize) -> Result<Self, Error> {
        let endpoint = Endpoint::from_shared(url.to_owned())?.connect_timeout(PATIENCE);
        let (tally, doors) = (Arc::new(Tally::default()), Arc::new(Semaphore::new(wave)));
        let mut agents = JoinSet::new();
        for n in 0..count {
            let (endpoint, doors) = (endpoint.clone(), Arc::clone(&doors));
            let tally = Arc::clone(&tally);
            let agent = async move {
                let Err(why) = live(n, &endpoint, &doors, &tally).await;
                tally.lose(n, &why);
            };
            agents.spawn_on(agent, runtime);
        }
        Ok(Self { tally, _agents: agents })
    }
}

/// Until it is lost.
async fn live(
    n: usize,
    endpoint: &Endpoint,
    doors: &Semaphore,
    tally: &Tally,
) -> Result<std::convert::Infallible, Error> {
    let door = doors.acquire().await?;
    let (mut agent, terms) = Agent::dial(n, endpoint).await?;
    drop(door);
    tally.welcomed.fetch_add(1, Ordering::Relaxed);
    let mut next_report = Instant::now() + terms.report_every;
    loop {
        match timeout_at(agent.said + terms.ping_every, agent.down.message()).await {
            Ok(message) => agent.hear(&message?.ok_or("the stream ended")?, tally)?,
            Err(_) => agent.speak(n, &terms, &mut next_report).await?,
        }
    }
}

/// What the Welcome says of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Terms {
    lease: Duration,
    ping_every: Duration,
    report_every: Duration,
}

impl Terms {
    fn of(welcome: &v1::Welcome) -> Result<Self, Error> {
        let length = |seconds: i64, nanos: i32| -> Result<Duration, Error> {
            Ok(Duration::new(u64::try_from(seconds)?, u32::try_from(nanos)?))
        };
        let lease = welcome.lease.ok_or("a Welcome without a lease")?;
        let lease = length(lease.seconds, lease.nanos)?;
        let or = |given: Option<_>, usual| match given {
            Some(given) => given,
            None => Ok(usual),
        };
        let given = |seconds, nanos| Some(length(seconds, nanos));
        Ok(Self {
            lease,
            ping_every: or(welcome.ping_every.and_then(|d| given(d.seconds, d.nanos)), lease / 5)?,
            report_every: or(
                welcome.report_every.and_then(|d| given(d.seconds, d.nanos)),
                REPORT_EVERY,
            )?,
        })
    }
}

/// A message that the master has not heard yet, as far as we know.
#[derive(Debug, Clone, Copy)]
struct Sent {
    number: u64,
    at: Instant,
    /// It is answered at once.
    is_ping: bool,
}

/// Both ends of a stream.
struct Agent {
    up: mpsc::Sender<v1::FromAgent>,
    down: Streaming<v1::FromMaster>,
    number: u64,
    heard: u64,
    /// When the last message was sent.
    said: Instant,
    unheard: VecDeque<Sent>,
    /// The lease counts from here: when the last message was sent that the master has heard.
    since: Instant,
}

impl Agent {
    async fn dial(n: usize, endpoint: &Endpoint) -> Result<(Self, Terms), Error> {
        let channel = endpoint.connect().await?;
        let (up, said) = mpsc::channel(4);
        let now = Instant::now();
        up.send(v1::FromAgent { number: 1, heard: 0, what: Some(Up::Hello(hello(n))) }).await?;
        let down = MasterClient::new(channel).connect(ReceiverStream::new(said)).await?;
        let mut down = down.into_inner();
        let first = timeout_at(now + PATIENCE, down.message()).await??;
        let terms = match first.and_then(|first| first.what) {
            Some(Down::Welcome(welcome)) => Terms::of(&welcome)?,
            Some(Down::Refused(refused)) => return Err(refused.sentence.into()),
            _ => return Err("neither a Welcome nor a Refused came".into()),
        };
        let agent =
            Self { up, down, number: 1, heard: 1, said: now, unheard: VecDeque::new(), since: now };
        Ok((agent, terms))
    }

    fn hear(&mut self, message: &v1::FromMaster, tally: &Tally) -> Result<(), Error> {
        if let Some(Down::Refused(refused)) = &message.what {
            return Err(refused.sentence.clone().into());
        }
        if message.number != self.heard + 1 || message.heard > self.number {
            let v1::FromMaster { number, heard, .. } = message;
            return Err(format!("number {number} came, which has heard {heard}").into());
        }
        self.heard = message.number;
        while let Some(sent) = self.unheard.front().filter(|sent| sent.number <= message.heard) {
            self.since = sent.at;
            if sent.is_ping {
                tally.note_ping(sent.at.elapsed());
            }
            self.unheard.pop_front();
        }
        Ok(())
    }

    /// A ping, or a report when it is time for one.
    async fn speak(
        &mut self,
        n: usize,
        terms: &Terms,
        next_report: &mut Instant,
    ) -> Result<(), Error> {
        if self.since.elapsed() > terms.lease {
            return Err("not heard for as long as the lease".into());
        }
        let now = Instant::now();
        let is_ping = now < *next_report;
        let what = if is_ping {
            Up::Ping(v1::Ping {})
        } else {
            *next_report = now + terms.report_every;
            Up::Report(report(n))
        };
        self.number += 1;
        self.said = now;
        self.unheard.push_back(Sent { number: self.number, at: now, is_ping });
        let message = v1::FromAgent { number: self.number, heard: self.heard, what: Some(what) };
        self.up.send(message).await.map_err(|_| "the stream ended".into())
    }
}

fn name(n: usize) -> String {
    format!("b{n:05}")
}

fn amounts(cpu_milli: u64, memory: u64) -> v1::Amounts {
    v1::Amounts { cpu_milli: Some(cpu_milli), memory: Some(memory), ..v1::Amounts::default() }
}

fn capacity() -> v1::Capacity {
    let whole = amounts(NODE_CPU, NODE_MEMORY);
    v1::Capacity {
        total: Some(whole),
        reserved: Some(amounts(0, 0)),
        allocatable: Some(whole),
        allocated: Some(amounts(0, 0)),
        used: Some(amounts(150, 400 << 20)),
        cpu_pressure: Some(0.5),
        memory_pressure: Some(0.0),
        io_pressure: Some(0.1),
        memory_pressure_full: Some(0.0),
        io_pressure_full: Some(0.1),
    }
}

fn hello(n: usize) -> v1::Hello {
    let attributes = [("arch", "x86_64"), ("kernel", "6.1.0"), ("os", "linux")];
    let domain = |level: &str, name: String| v1::Domain { level: level.to_owned(), name };
    v1::Hello {
        version_least: 1,
        version_most: 1,
        node: name(n),
        instance: format!("{n:032x}"),
        incarnation: 1,
        connection: 1,
        boot_id: format!("{n:08x}-0000-4000-8000-000000000000"),
        software: concat!("bench ", env!("CARGO_PKG_VERSION")).to_owned(),
        features: ["channel", "fence", "pods", "update"].map(str::to_owned).into(),
        attributes: attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        domains: vec![
            domain("zone", format!("z{}", n % 3)),
            domain("rack", format!("r{}", n / 40)),
        ],
        capacity: Some(capacity()),
        ..v1::Hello::default()
    }
}

/// Of a node without tasks; no two are quite the same.
fn report(n: usize) -> v1::NodeReport {
    let used = amounts(100 + n as u64 % 100, 400 << 20);
    let capacity = v1::Capacity { used: Some(used), ..capacity() };
    let used_firm = Some(amounts(0, 0));
    v1::NodeReport { capacity: Some(capacity), used_firm, ..v1::NodeReport::default() }
}

#[cfg(test)]
mod tests {
    use hafen_coordinator::wire;
    use hafen_protocol::time::span;

    use super::*;

    #[test]
    fn a_hello_is_what_the_coordinator_takes() {
        let hello = wire::hello(&hello(9_999)).unwrap();
        assert_eq!(hello.node.0, "b09999");
        assert_eq!(hello.machine.allocatable.cpu_milli, NODE_CPU);
        assert_eq!(hello.machine.attributes["rack"], "r249");
        assert!(wire::idle(&report(1)).is_some());
    }

    #[test]
    fn a_welcome_says_how_often_to_speak() {
        let seconds = |n| Some(span(Duration::from_secs(n)));
        let mut welcome = v1::Welcome { lease: seconds(5), ..v1::Welcome::default() };
        let terms = Terms::of(&welcome).unwrap();
        assert_eq!(terms.ping_every, Duration::from_secs(1));
        assert_eq!(terms.report_every, REPORT_EVERY);
        (welcome.ping_every, welcome.report_every) = (seconds(2), seconds(3));
        let terms = Terms::of(&welcome).unwrap();
        assert_eq!(terms.ping_every, Duration::from_secs(2));
        assert_eq!(terms.report_every, Duration::from_secs(3));
        assert!(Terms::of(&v1::Welcome::default()).is_err());
    }

    #[test]
    fn losses_and_pings_are_counted() {
        let tally = Tally::default();
        tally.lose(3, &"gone".into());
        tally.lose(4, &"gone, too".into());
        assert_eq!((tally.lost(), tally.first_loss().as_deref()), (2, Some("b00003: gone")));
        [3, 7, 5].into_iter().for_each(|ms| tally.note_ping(Duration::from_millis(ms)));
        let (heard, slowest) = tally.pings();
        assert_eq!(heard, 3);
        assert!((slowest - 7.0).abs() < 1e-9);
        assert_eq!(tally.pings().0, 0);
    }
}
