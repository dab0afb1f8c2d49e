//! What should happen in a cluster: [`Core::step`] takes what has happened and says what is to be done. It neither does it
//! nor waits; there is no clock (silence and pauses go out as durations, and come back as events), no thread, and no file.
//!
//! Nothing is sent before it is written down: what a step changes goes out as one [`Effect::Save`], and what follows from it
//! is held until [`Event::Saved`]. After a crash [`Core::recover`] goes on from the records alone: what nodes are told
//! follows from what is wanted and from what they say they have, never from what was told before.

mod jobs;
mod members;
mod placing;
mod recovery;
mod rehearsal;
mod tasks;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use jobs::{FENCE, Rejected};
pub use rehearsal::Rehearsed;

use crate::assign::{Pool, Why};
use crate::model::{
    AllocId, Allocation, Amounts, JobId, JobRecord, Key, Machine, Namespace, Node, NodeId, Record,
    Seen, Slot,
};

/// A stream of a node: the driver counts them from 1, in the order in which they came.
pub type Session = u64;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All up to this revision is on the disk.
    Saved {
        revision: u64,
    },
    /// The first message of a stream.
    Hello {
        session: Session,
        hello: Hello,
    },
    /// A stream broke. Its node may come again.
    Closed {
        node: NodeId,
        session: Session,
    },
    /// Nothing was heard of the node for as long as [`Effect::Watch`] says. Whatever still comes on that stream is not
    /// taken in, and not answered.
    Silent {
        node: NodeId,
        session: Session,
    },
    Update {
        node: NodeId,
        session: Session,
        task: String,
        sequence: u64,
        seen: Seen,
    },
    /// All that the node holds, once more.
    Tasks {
        node: NodeId,
        session: Session,
        held: Vec<Held>,
    },
    /// The node has not taken a task.
    Refused {
        node: NodeId,
        session: Session,
        task: String,
    },
    /// What revocable tasks may share there, and whether they have to leave.
    Report {
        node: NodeId,
        session: Session,
        idle: Amounts,
        pressed: bool,
    },
    Elapsed(Timer),
    Drain {
        node: NodeId,
        on: bool,
        /// What has not moved away after that is stopped.
        within: Option<Duration>,
    },
    /// A machine is gone for good: somebody who knows says so.
    Remove {
        node: NodeId,
    },
    Stop {
        job: JobId,
        purge: bool,
    },
    /// An instance is to end, and another one to take its place.
    Replace {
        allocation: AllocId,
    },
    Quota {
        namespace: Namespace,
        most: Option<Amounts>,
    },
}

/// Who dials, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub node: NodeId,
    pub instance: String,
    pub incarnation: u64,
    pub connection: u64,
    pub epoch_seen: u64,
    pub machine: Machine,
    pub held: Vec<Held>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub task: String,
    pub seen: Seen,
}

/// What is to be done. What is sent to a stream that is no more is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write all of it down, or nothing, and say so.
    Save {
        revision: u64,
        changes: Vec<Change>,
    },
    Send {
        node: NodeId,
        session: Session,
        order: Order,
    },
    /// End a stream; with a reason if it is to be told.
    Close {
        node: NodeId,
        session: Session,
        refused: Option<Refusal>,
    },
    /// Say [`Event::Silent`] once nothing has been heard on this stream for so long, from now on; session 0: in any case.
    /// An earlier one for this node is replaced.
    Watch {
        node: NodeId,
        session: Session,
        silence: Duration,
    },
    /// Begin to wait; the same timer begins anew.
    Arm {
        timer: Timer,
        after: Duration,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put(Record),
    Erase(Key),
}

/// What a node is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    Welcome { acknowledged: Vec<(String, u64)> },
    Run { allocation: AllocId, epoch: u64, payload: Vec<u8>, is_pod: bool },
    Stop { task: String, preempted: bool },
    Forget { task: String },
    Acknowledge { task: String, sequence: u64 },
    Drain(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("a later start or connection of this node is known")]
    Stale,
    #[error("another machine has this name")]
    Taken,
    #[error("the node obeys a later master")]
    Epoch,
    #[error("an update is missing before this one")]
    Gap,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// Until an allocation is given up, in the silence that began with the end of this session.
    Replace { allocation: AllocId, session: Session, since: u64 },
    /// Until the next try in a place whose last one was this.
    BackOff { allocation: AllocId },
    /// Until a new instance has to be ready.
    Healthy { allocation: AllocId },
    /// Until failures of before are forgotten.
    Forgive { allocation: AllocId },
    /// Until what has not moved away from a node is stopped.
    Drain { node: NodeId },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long a node may stay unheard.
    pub lease: Duration,
    /// For what an agent takes between the moment in which it has to act and the act.
    pub margin: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lease: Duration::from_secs(5), margin: Duration::from_secs(1) }
    }
}

/// A node in memory.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) node: Node,
    /// Its stream.
    session: Option<Session>,
    /// The stream whose silence counts.
    watched: Session,
    /// Its lease has ended.
    silent: bool,
    /// How often it has.
    silences: u64,
}

/// The whole cluster.
#[derive(Debug, Clone)]
pub struct Core {
    settings: Settings,
    epoch: u64,
    /// Allocations that were decided on in this epoch.
    counter: u64,
    nodes: BTreeMap<NodeId, Member>,
    jobs: BTreeMap<JobId, JobRecord>,
    allocations: BTreeMap<AllocId, Allocation>,
    quotas: BTreeMap<Namespace, Amounts>,
    // All that follows is worked out from the above.
    /// The latest allocation in each place.
    places: BTreeMap<JobId, BTreeMap<Slot, AllocId>>,
    on: BTreeMap<NodeId, BTreeSet<AllocId>>,
    used: BTreeMap<Namespace, Amounts>,
    pool: Pool,
    /// Places that wait for a node, and why they have none.
    waiting: BTreeMap<JobId, BTreeMap<Slot, Option<Arc<Why>>>>,
    /// Nodes that are to be empty.
    draining: BTreeSet<NodeId>,
    /// The place that an update of a job waits for, as far as it was seen: it is looked at first.
    blocking: BTreeMap<JobId, Slot>,
    /// Allocations whose place waits for a pause to end.
    resting: BTreeSet<AllocId>,
    // Of the present step:
    touched: BTreeSet<Key>,
    effects: Vec<Effect>,
    dirty: BTreeMap<JobId, Dirty>,
    /// There may be room that there was not.
    stirred: bool,
    // What waits for the disk:
    revision: u64,
    held: VecDeque<(u64, Vec<Effect>)>,
}

#[derive(Debug, Clone)]
enum Dirty {
    Slots(BTreeSet<Slot>),
    All,
}

impl Core {
    fn empty(settings: Settings, epoch: u64) -> Self {
        Self {
            settings,
            epoch,
            counter: 0,
            nodes: BTreeMap::new(),
            jobs: BTreeMap::new(),
            allocations: BTreeMap::new(),
            quotas: BTreeMap::new(),
            places: BTreeMap::new(),
            on: BTreeMap::new(),
            used: BTreeMap::new(),
            pool: Pool::default(),
            waiting: BTreeMap::new(),
            draining: BTreeSet::new(),
            blocking: BTreeMap::new(),
            resting: BTreeSet::new(),
            touched: BTreeSet::new(),
            effects: Vec::new(),
            dirty: BTreeMap::new(),
            stirred: false,
            revision: 0,
            held: VecDeque::new(),
        }
    }

    /// What follows from what has happened. An event that is late, or of what is not known, changes nothing.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Saved { revision } => return self.saved(revision),
            Event::Hello { session, hello } => self.hello(session, hello),
            Event::Closed { node, session } => self.closed(&node, session),
            Event::Silent { node, session } => self.silent(&node, session),
            Event::Update { node, session, task, sequence, seen } => {
                self.update(&node, session, &task, sequence, seen);
            }
            Event::Tasks { node, session, held } => self.listed(&node, session, &held),
            Event::Refused { node, session, task } => self.refused(&node, session, &task),
            Event::Report { node, session, idle, pressed } => {
                self.report(&node, session, idle, pressed);
            }
            Event::Elapsed(timer) => self.elapsed(&timer),
            Event::Drain { node, on, within } => self.drain(&node, on, within),
            Event::Remove { node } => self.remove(&node),
            Event::Stop { job, purge } => self.stop_job(&job, purge),
            Event::Replace { allocation } => self.stop(allocation, crate::model::Why::Asked),
            Event::Quota { namespace, most } => self.quota(namespace, most),
        }
        self.conclude()
    }

    fn elapsed(&mut self, timer: &Timer) {
        match timer {
            Timer::Replace { allocation, session, since } => {
                self.give_away(*allocation, *session, *since);
            }
            Timer::BackOff { allocation } => self.rested(*allocation),
            Timer::Healthy { allocation } => self.not_healthy(*allocation),
            Timer::Forgive { allocation } => self.forgive(*allocation),
            Timer::Drain { node } => self.drain_is_over(node),
        }
    }

    /// Jobs whose circumstances have changed are looked after, what waits is placed, and what has changed is saved.
    fn conclude(&mut self) -> Vec<Effect> {
        while let Some((job, dirty)) = self.dirty.pop_first() {
            self.tend(&job, &dirty);
        }
        if std::mem::take(&mut self.stirred) {
            self.place();
        }
        self.commit()
    }

    fn commit(&mut self) -> Vec<Effect> {
        let effects = std::mem::take(&mut self.effects);
        let touched = std::mem::take(&mut self.touched);
        if touched.is_empty() {
            // What is already on its way to the disk may be the reason for it.
            let Some((_, held)) = self.held.back_mut() else { return effects };
            held.extend(effects);
            return Vec::new();
        }
        self.revision += 1;
        self.held.push_back((self.revision, effects));
        let changes = touched.into_iter().map(|key| self.change(key)).collect();
        vec![Effect::Save { revision: self.revision, changes }]
    }

    fn change(&self, key: Key) -> Change {
        self.record(&key).map_or(Change::Erase(key), Change::Put)
    }

    fn record(&self, key: &Key) -> Option<Record> {
        Some(match key {
            Key::Epoch => Record::Epoch(self.epoch),
            Key::Node(id) => Record::Node(self.nodes.get(id)?.node.clone()),
            Key::Job(id) => Record::Job(Box::new(self.jobs.get(id)?.clone())),
            Key::Allocation(id) => Record::Allocation(Box::new(self.allocations.get(id)?.clone())),
            Key::Quota(id) => Record::Quota(id.clone(), *self.quotas.get(id)?),
            // Of others, who save it themselves.
            Key::Token(_) | Key::Withdrawal(_) => return None,
        })
    }

    fn saved(&mut self, revision: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        while self.held.front().is_some_and(|(wanted, _)| *wanted <= revision) {
            effects.extend(self.held.pop_front().into_iter().flat_map(|(_, held)| held));
        }
        effects
    }

    fn mark(&mut self, job: &JobId, slot: &Slot) {
        let dirty = self.dirty.entry(job.clone()).or_insert_with(|| Dirty::Slots(BTreeSet::new()));
        if let Dirty::Slots(slots) = dirty {
            slots.insert(slot.clone());
        }
    }

    fn mark_all(&mut self, job: &JobId) {
        self.dirty.insert(job.clone(), Dirty::All);
    }

    fn send(&mut self, node: &NodeId, order: Order) {
        let Some(session) = self.nodes.get(node).and_then(|member| member.session) else { return };
        self.effects.push(Effect::Send { node: node.clone(), session, order });
    }

    fn arm(&mut self, timer: Timer, after: Duration) {
        self.effects.push(Effect::Arm { timer, after });
    }

    /// Of the last save that went out: whoever asked for something is answered when it is on the disk.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn nodes(&self) -> impl Iterator<Item = (&Node, Presence)> {
        self.nodes.values().map(|member| (&member.node, member.presence()))
    }

    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<(&Node, Presence)> {
        self.nodes.get(id).map(|member| (&member.node, member.presence()))
    }

    #[must_use]
    pub fn job(&self, id: &JobId) -> Option<&JobRecord> {
        self.jobs.get(id)
    }

    #[must_use]
    pub fn allocation(&self, id: AllocId) -> Option<&Allocation> {
        self.allocations.get(&id)
    }

    /// All that a node holds, as far as it is known.
    pub fn on<'a>(&'a self, node: &NodeId) -> impl Iterator<Item = &'a Allocation> + use<'a> {
        let on = self.on.get(node).into_iter().flatten();
        on.filter_map(|id| self.allocations.get(id))
    }

    /// Quotas, and what of them is taken.
    pub fn quotas(&self) -> impl Iterator<Item = (&Namespace, Amounts, Amounts)> {
        let used = |name| self.used.get(name).copied().unwrap_or_default();
        self.quotas.iter().map(move |(name, most)| (name, *most, used(name)))
    }

    pub fn jobs(&self) -> impl Iterator<Item = &JobRecord> {
        self.jobs.values()
    }

    pub fn allocations(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations.values()
    }

    /// The one that counts in each place of a job.
    pub fn places<'a>(
        &'a self,
        job: &JobId,
    ) -> impl Iterator<Item = (&'a Slot, &'a Allocation)> + use<'a> {
        let places = self.places.get(job).into_iter().flatten();
        places.filter_map(|(slot, id)| Some((slot, self.allocations.get(id)?)))
    }

    /// Places that wait for a node, and why; without a reason: for others to leave.
    pub fn waiting(&self) -> impl Iterator<Item = (&JobId, &Slot, Option<&Why>)> {
        let jobs = self.waiting.iter();
        jobs.flat_map(|(job, slots)| slots.iter().map(move |(s, why)| (job, s, why.as_deref())))
    }
}

/// How a node is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Here,
    /// Its stream is broken, its lease has not ended.
    Away,
    Unreachable,
}

impl Member {
    const fn presence(&self) -> Presence {
        match (self.silent, self.session) {
            (true, _) => Presence::Unreachable,
            (false, Some(_)) => Presence::Here,
            (false, None) => Presence::Away,
        }
    }
}
