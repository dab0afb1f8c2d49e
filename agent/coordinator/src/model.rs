//! What a cluster consists of: nodes, jobs, and the allocations that put one onto the other. Plain values, as they are
//! written down.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self(name.to_owned())
            }
        }
    };
}

name!(
    /// The name of a node, as its certificate says.
    NodeId
);
name!(
    /// The name of a job, which its owner chose.
    JobId
);
name!(Namespace);

/// An allocation's number: given once, in the order in which they were decided on.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct AllocId(pub u64);

impl fmt::Display for AllocId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// What is asked for, or there: thousandths of a CPU, bytes, processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Amounts {
    pub cpu_milli: u64,
    pub memory: u64,
    pub disk: u64,
    pub pids: u64,
}

impl Amounts {
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory: self.memory.saturating_add(other.memory),
            disk: self.disk.saturating_add(other.disk),
            pids: self.pids.saturating_add(other.pids),
        }
    }

    /// Nothing goes below zero: a node may come back with less than what is on it.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory: self.memory.saturating_sub(other.memory),
            disk: self.disk.saturating_sub(other.disk),
            pids: self.pids.saturating_sub(other.pids),
        }
    }

    #[must_use]
    pub fn fits(&self, room: &Self) -> bool {
        self.lacking(room).is_none()
    }

    /// The first of which there is too little.
    #[must_use]
    pub fn lacking(&self, room: &Self) -> Option<Dimension> {
        let dimensions = [
            (self.cpu_milli > room.cpu_milli, Dimension::Cpu),
            (self.memory > room.memory, Dimension::Memory),
            (self.disk > room.disk, Dimension::Disk),
            (self.pids > room.pids, Dimension::Pids),
        ];
        dimensions.into_iter().find(|(lacks, _)| *lacks).map(|(_, dimension)| dimension)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Dimension {
    Cpu,
    Memory,
    Disk,
    Pids,
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Pids => "pids",
        })
    }
}

/// A machine, as far as placement is concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Attributes, and its failure domains by their level.
    pub attributes: BTreeMap<String, String>,
    pub features: BTreeSet<String>,
    pub allocatable: Amounts,
}

/// What of a machine's attributes must hold, or is wished for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Constraint {
    pub attribute: String,
    pub test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Test {
    In(Vec<String>),
    /// Also without the attribute.
    NotIn(Vec<String>),
    Present,
    Absent,
    /// As numbers; what is none fails.
    AtLeast(i64),
    AtMost(i64),
}

impl Constraint {
    #[must_use]
    pub fn holds(&self, attributes: &BTreeMap<String, String>) -> bool {
        let value = attributes.get(&self.attribute);
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.test {
            Test::In(wanted) => value.is_some_and(|value| wanted.contains(value)),
            Test::NotIn(unwanted) => value.is_none_or(|value| !unwanted.contains(value)),
            Test::Present => value.is_some(),
            Test::Absent => value.is_none(),
            Test::AtLeast(least) => number().is_some_and(|number| number >= *least),
            Test::AtMost(most) => number().is_some_and(|number| number <= *most),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Affinity {
    pub constraint: Constraint,
    /// Negative: rather not there.
    pub weight: i32,
}

/// Over the values of an attribute, as "zone": the one with the fewest comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Spread {
    pub attribute: String,
    /// The most that a value may have more than the one with the fewest; absent: as even as it goes.
    pub most_uneven: Option<u32>,
}

/// Where a task may and should run.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    pub constraints: Vec<Constraint>,
    pub affinities: Vec<Affinity>,
    pub spread: Option<Spread>,
    /// What the agent must be able to do.
    pub features: BTreeSet<String>,
    /// It takes what others have asked for and do not use, and leaves first.
    pub revocable: bool,
}

/// What of a job decides where its instances run, and the bytes of what runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Template {
    /// A `TaskSpec` or `PodSpec` of the protocol, as its bytes: the core does not look into it.
    pub payload: Vec<u8>,
    pub is_pod: bool,
    /// Names of a pod's tasks, each of which has updates of its own; none: it is one task.
    pub members: BTreeSet<String>,
    pub request: Amounts,
    /// Of the node, taken by one instance only.
    pub ports: BTreeSet<u16>,
    pub rules: Rules,
    /// Of one job on one node; absent: as many as fit.
    pub most_per_node: Option<u32>,
    pub fence: Option<Fence>,
}

/// Of what must never run twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// `TaskSpec.stop_after_disconnect`.
    pub stop_after_disconnect: Duration,
    /// Between the agent's first signal and the end of the last process.
    pub kill_grace: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    Replicas(u32),
    OnePerNode,
    /// So many runs to completion; each is tried so often.
    Batch {
        runs: u32,
        tries: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub namespace: Namespace,
    pub kind: Kind,
    pub template: Template,
    /// Greater goes first.
    pub priority: i32,
    /// May push out what has a lower priority.
    pub preempts: bool,
    pub update: Strategy,
    pub reschedule: BackOff,
    /// Between a node's silence and a replacement elsewhere.
    pub grace: Duration,
    /// As its owner gave it (a `JobSpec` of the protocol, as its bytes): the core does not look into it.
    #[serde(default)]
    pub source: Vec<u8>,
}

impl Job {
    #[must_use]
    pub const fn at_most_one(&self) -> bool {
        self.template.fence.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strategy {
    /// Instances that may be missing at a time because of an update or a drain; at least 1.
    pub most_parallel: u32,
    /// A new instance that is not ready after so long has failed.
    pub healthy_within: Duration,
    pub roll_back: bool,
}

impl Default for Strategy {
    fn default() -> Self {
        Self { most_parallel: 1, healthy_within: Duration::from_secs(300), roll_back: true }
    }
}

/// How long to wait before the next instance in the place of one that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackOff {
    pub first: Duration,
    pub most: Duration,
}

impl Default for BackOff {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), most: Duration::from_secs(300) }
    }
}

impl BackOff {
    /// After so many failures in a row.
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        let doubled = 2_u32.checked_pow(failures.saturating_sub(1));
        doubled.and_then(|n| self.first.checked_mul(n)).unwrap_or(self.most).min(self.most)
    }
}

/// One of a job's places, which is filled by one allocation at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Slot {
    Index(u32),
    Node(NodeId),
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => index.fmt(f),
            Self::Node(node) => node.fmt(f),
        }
    }
}

/// Of a job, so that it can be told which of its instances are old.
pub type Version = u64;

/// One instance, placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    pub id: AllocId,
    pub job: JobId,
    pub namespace: Namespace,
    pub version: Version,
    pub slot: Slot,
    pub node: NodeId,
    /// As it was when it was placed.
    pub request: Amounts,
    pub ports: BTreeSet<u16>,
    pub priority: i32,
    pub revocable: bool,
    pub fence: Option<Fence>,
    pub phase: Phase,
    /// The agent has said that it has it.
    pub confirmed: bool,
    /// Of the last update that was applied.
    pub sequence: u64,
    /// Of the slot, in a row.
    pub failures: u32,
    /// Of a pod: its tasks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<String, Part>,
}

/// One task of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Of the last update that was applied.
    pub sequence: u64,
    pub seen: Seen,
}

impl Default for Part {
    fn default() -> Self {
        Self { sequence: 0, seen: Seen::Alive }
    }
}

impl Allocation {
    /// `TaskGrant.epoch`: of one place the greatest is the one that counts.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.id.0
    }

    /// The name of its task on the node.
    #[must_use]
    pub fn task(&self) -> String {
        task_name(self.id)
    }

    /// What is seen of all tasks of a pod together; of one task it is what is seen of it.
    #[must_use]
    pub fn together(&self, seen: Seen) -> Seen {
        let any = |wanted: Seen| self.members.values().any(|member| member.seen == wanted);
        let all = |fits: fn(Seen) -> bool| self.members.values().all(|member| fits(member.seen));
        match () {
            () if self.members.is_empty() => seen,
            () if any(Seen::Lost) => Seen::Lost,
            () if !all(Seen::is_end) => {
                let ready = all(|seen| matches!(seen, Seen::Ready | Seen::Finished));
                if ready { Seen::Ready } else { Seen::Alive }
            }
            () if any(Seen::Failed) => Seen::Failed,
            () if any(Seen::Killed) => Seen::Killed,
            () => Seen::Finished,
        }
    }
}

/// Of a node, a job or a namespace.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (1..=63).contains(&text.len()) && text.chars().all(is_good)
}

/// Names are never used twice.
#[must_use]
pub fn task_name(id: AllocId) -> String {
    format!("a{id}")
}

/// Back from its name; what has another form is not ours.
#[must_use]
pub fn allocation_of(task: &str) -> Option<AllocId> {
    let digits = task.strip_prefix('a')?;
    let id = AllocId(u64::from_str_radix(digits, 16).ok()?);
    (task_name(id) == task).then_some(id)
}

/// Of a task's name on the node: the allocation, and of a pod's task its own name in the pod.
#[must_use]
pub fn part_of(task: &str) -> Option<(AllocId, Option<&str>)> {
    match task.split_once('.') {
        Some((pod, member)) => Some((allocation_of(pod)?, Some(member))),
        None => Some((allocation_of(task)?, None)),
    }
}

/// Where an allocation stands, as the coordinator knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Until it is ready for the first time.
    Starting,
    Ready,
    Stopping(Why),
    /// Given up without a word from its node: it may run, and is stopped when the node is heard again.
    Abandoned,
    Ended(Outcome),
}

impl Phase {
    /// It is to run.
    #[must_use]
    pub const fn is_wanted(self) -> bool {
        matches!(self, Self::Starting | Self::Ready)
    }

    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Ended(_))
    }
}

/// Why an allocation is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Why {
    /// Its job, or its place in it, is no more.
    Surplus,
    Outdated,
    Drained,
    /// It had not moved away from a node that is to be empty.
    Overdue,
    Preempted,
    /// It did not become ready.
    Unhealthy,
    /// A later one is in its place.
    Duplicate,
    /// Its node cannot tell what became of it.
    Lost,
    /// Somebody wants another one in its place.
    Asked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Finished,
    Failed,
    /// As it was asked to.
    Stopped,
    /// The node did not take it.
    Refused,
    /// The node has forgotten it.
    Gone,
}

/// What an agent says of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Seen {
    /// It begins, waits, or ends.
    Alive,
    Ready,
    Finished,
    Failed,
    Killed,
    Lost,
}

/// A node, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub instance: String,
    /// Of the latest Hello.
    pub incarnation: u64,
    pub connection: u64,
    pub machine: Machine,
    #[serde(flatten)]
    pub drain: Drain,
}

/// Whether somebody wants a node to be empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    #[serde(rename = "draining")]
    pub on: bool,
    /// After that what has not moved away is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Duration>,
    /// That time is over, and something was stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overdue: bool,
}

/// A job, and how far its update is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    pub id: JobId,
    /// The one that is wanted.
    pub version: Version,
    /// The last few, and those of which something runs.
    pub versions: BTreeMap<Version, Job>,
    /// The last of which all instances were ready: what an update that fails goes back to.
    pub stable: Option<Version>,
    pub rollout: Rollout,
    /// Nothing of it is to run.
    pub stopped: bool,
    /// Nothing of it is to be known once nothing of it is left.
    pub purged: bool,
}

impl JobRecord {
    /// As it is wanted.
    ///
    /// # Panics
    /// Never: the version that is wanted is kept.
    #[must_use]
    pub fn job(&self) -> &Job {
        &self.versions[&self.version]
    }

    /// Versions whose instances are what is wanted.
    #[must_use]
    pub fn current(&self) -> BTreeSet<Version> {
        let wanted = &self.job().template;
        let same = self.versions.iter().filter(|(_, job)| job.template == *wanted);
        same.map(|(version, _)| *version).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rollout {
    Done,
    UnderWay,
    /// Back to what was stable; it is not gone back from.
    RollingBack,
    /// Nobody wants to go back from it: it stays as far as it came.
    Failed,
}

/// What is written down, each under a key of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Record {
    /// The epoch in which the cluster is directed.
    Epoch(u64),
    Node(Node),
    Job(Box<JobRecord>),
    Allocation(Box<Allocation>),
    Quota(Namespace, Amounts),
    Token(Token),
    Withdrawal(Withdrawal),
}

/// Certificates of a holder that do not count any more: those with a lower number, and single ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    /// As their certificates name them.
    pub holder: String,
    pub least: u64,
    /// In hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub serials: BTreeSet<String>,
}

/// What lets a node join. Only its hash is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// SHA-256, in hexadecimal.
    pub hash: String,
    /// Nodes that may still join with it.
    pub uses: u32,
    /// Seconds since 1970.
    pub until: u64,
    /// Requests that it was used for, as their SHA-256: the same one is answered again, for its answer may have been lost.
    pub given: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Key {
    Epoch,
    Node(NodeId),
    Job(JobId),
    Allocation(AllocId),
    Quota(Namespace),
    Token(String),
    Withdrawal(String),
}

impl Record {
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Epoch(_) => Key::Epoch,
            Self::Node(node) => Key::Node(node.id.clone()),
            Self::Job(job) => Key::Job(job.id.clone()),
            Self::Allocation(allocation) => Key::Allocation(allocation.id),
            Self::Quota(namespace, _) => Key::Quota(namespace.clone()),
            Self::Token(token) => Key::Token(token.hash.clone()),
            Self::Withdrawal(one) => Key::Withdrawal(one.holder.clone()),
        }
    }
}
