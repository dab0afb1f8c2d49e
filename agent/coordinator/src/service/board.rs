//! What is known beside the cluster's own values, and only in memory: what tasks and nodes last said of themselves, and what
//! has to be told as news.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use hafen_protocol::{time, v1};

use super::events::Events;
use super::metrics::Numbers;
use crate::cluster::{Change, Core, Event, Presence};
use crate::model::{
    AllocId, Allocation, Drain, JobId, JobRecord, Key, Node, NodeId, Outcome, Phase, Record,
    Rollout, Version, Why, part_of,
};

/// Of what a task says of itself.
const MOST_ADDRESSES: usize = 16;
const MOST_PORTS: usize = 128;
const MOST_CHECKS: usize = 64;
/// Of allocations that are not known any more, whose last words are kept for people.
const MOST_GONE: usize = 1_000;

/// What a node last said of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    pub(super) boot_id: String,
    pub(super) software: String,
    pub(super) capacity: Option<v1::Capacity>,
    pub(super) heard: Option<pbjson_types::Timestamp>,
    /// What it is short of, by its name.
    pub(super) short: BTreeMap<String, v1::Pressure>,
}

/// What cannot be taken back from a task that has it, but by its end.
const HELD: &str = "memory";

/// What tasks of one allocation last said, by their names on the node.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    pub(super) tasks: BTreeMap<String, v1::TaskStatus>,
    pub(super) usage: BTreeMap<String, v1::Usage>,
    /// Why the node did not take it.
    pub(super) refused: String,
}

#[derive(Debug)]
struct JobSeen {
    version: Version,
    rollout: Rollout,
    stopped: bool,
}

impl JobSeen {
    const fn of(job: &JobRecord) -> Self {
        Self { version: job.version, rollout: job.rollout, stopped: job.stopped }
    }
}

#[derive(Debug, Default)]
pub(super) struct Board {
    nodes: BTreeMap<NodeId, Said>,
    told: HashMap<AllocId, Told>,
    gone: std::collections::VecDeque<AllocId>,
    // As far as it was told as news:
    phases: HashMap<AllocId, Phase>,
    jobs: BTreeMap<JobId, JobSeen>,
    drains: BTreeMap<NodeId, Drain>,
}

/// Not more than a sentence.
fn cut(text: &mut String) {
    text.truncate(hafen_protocol::sentence(text).len());
}

impl Board {
    pub(super) fn new(core: &Core) -> Self {
        Self {
            phases: core.allocations().map(|one| (one.id, one.phase)).collect(),
            jobs: core.jobs().map(|job| (job.id.clone(), JobSeen::of(job))).collect(),
            drains: core.nodes().map(|(node, _)| (node.id.clone(), node.drain)).collect(),
            ..Self::default()
        }
    }

    pub(super) fn node(&self, node: &NodeId) -> Option<&Said> {
        self.nodes.get(node)
    }

    pub(super) fn told(&self, id: AllocId) -> Option<&Told> {
        self.told.get(&id)
    }

    /// Of the allocation that has this task there; a node says nothing of those of others.
    fn told_on(&mut self, core: &Core, node: &NodeId, task: &str) -> Option<&mut Told> {
        let (id, _) = part_of(task)?;
        core.allocation(id).filter(|one| one.node == *node)?;
        Some(self.told.entry(id).or_default())
    }

    pub(super) fn hello(&mut self, core: &Core, node: &NodeId, hello: &v1::Hello) {
        let said = self.nodes.entry(node.clone()).or_default();
        *said = Said {
            boot_id: hello.boot_id.clone(),
            software: hello.software.clone(),
            capacity: hello.capacity,
            heard: Some(time::stamp(SystemTime::now())),
            short: BTreeMap::new(),
        };
        for held in &hello.tasks {
            let Some(told) = self.told_on(core, node, &held.id) else { continue };
            told.tasks.entry(held.id.clone()).or_insert_with(|| v1::TaskStatus {
                id: held.id.clone(),
                pod: held.pod.clone(),
                state: held.state,
                ready: held.ready,
                sequence: held.acknowledged,
                ..v1::TaskStatus::default()
            });
        }
    }

    pub(super) fn heard(&mut self, node: &NodeId) {
        if let Some(said) = self.nodes.get_mut(node) {
            said.heard = Some(time::stamp(SystemTime::now()));
        }
    }

    /// Whether tasks that took only what was idle have to leave.
    pub(super) fn report(
        &mut self,
        core: &Core,
        node: &NodeId,
        report: &v1::NodeReport,
        events: &Events,
    ) -> bool {
        for v1::TaskUsage { id, usage, .. } in &report.tasks {
            let Some(usage) = usage else { continue };
            if let Some(told) = self.told_on(core, node, id) {
                told.usage.insert(id.clone(), *usage);
            }
        }
        let said = self.nodes.entry(node.clone()).or_default();
        if report.capacity.is_some() {
            said.capacity = report.capacity;
        }
        let is_known = |one: &&v1::Pressure| v1::Capacity::WAITS.contains(&one.of.as_str());
        let known = report.pressure.iter().filter(is_known);
        let mut news = Vec::new();
        for one in known {
            let before = match one.ended {
                true => said.short.remove(&one.of),
                false => said.short.insert(one.of.clone(), one.clone()),
            };
            if before.is_some() == one.ended {
                let what = if one.ended { "pressure ended" } else { "node under pressure" };
                news.push((what, format!("{} {:.0}%", one.of, one.percent)));
            }
        }
        let pressed = said.short.contains_key(HELD);
        news.iter().for_each(|(what, sentence)| self.tell(events, node, what, sentence));
        pressed
    }

    pub(super) fn status(
        &mut self,
        core: &Core,
        node: &NodeId,
        task: &str,
        sequence: u64,
        mut status: v1::TaskStatus,
    ) {
        let Some(told) = self.told_on(core, node, task) else { return };
        if told.tasks.get(task).is_some_and(|before| before.sequence > sequence) {
            return;
        }
        task.clone_into(&mut status.id);
        (status.spec, status.sequence) = (None, sequence);
        status.labels.clear();
        status.quarantined.clear();
        status.addresses.truncate(MOST_ADDRESSES);
        status.ports.truncate(MOST_PORTS);
        status.checks.truncate(MOST_CHECKS);
        status.checks.iter_mut().for_each(|check| cut(&mut check.message));
        status.reason.iter_mut().for_each(|reason| cut(&mut reason.sentence));
        told.tasks.insert(task.to_owned(), status);
    }

    pub(super) fn refused(&mut self, core: &Core, node: &NodeId, task: &str, sentence: &str) {
        let Some(told) = self.told_on(core, node, task) else { return };
        hafen_protocol::sentence(sentence).clone_into(&mut told.refused);
    }

    /// What an allocation came to, in words.
    pub(super) fn sentence(&self, allocation: &Allocation) -> String {
        let told = self.told.get(&allocation.id);
        let reason = told.and_then(|told| {
            let mut tasks = told.tasks.values().filter_map(|status| status.reason.as_ref());
            tasks.find(|reason| !reason.sentence.is_empty()).map(|reason| reason.sentence.clone())
        });
        match allocation.phase {
            Phase::Starting | Phase::Ready => String::new(),
            Phase::Stopping(why) => because(why).to_owned(),
            Phase::Abandoned => "its node is not heard".to_owned(),
            Phase::Ended(Outcome::Refused) => {
                told.map(|told| told.refused.clone()).unwrap_or_default()
            }
            Phase::Ended(Outcome::Gone) => "its node does not know it any more".to_owned(),
            Phase::Ended(_) => reason.unwrap_or_default(),
        }
    }

    pub(super) fn tell(&self, events: &Events, node: &NodeId, what: &str, sentence: &str) {
        events.tell(v1::ClusterEvent {
            node: node.0.clone(),
            what: what.to_owned(),
            sentence: hafen_protocol::sentence(sentence).to_owned(),
            ..v1::ClusterEvent::default()
        });
    }

    /// Of the node whose presence an event may change.
    pub(super) fn presence_of(
        &self,
        event: &Event,
        core: &Core,
    ) -> Option<(NodeId, Option<Presence>)> {
        let node = match event {
            Event::Hello { hello, .. } => &hello.node,
            Event::Closed { node, .. } | Event::Silent { node, .. } | Event::Remove { node } => {
                node
            }
            _ => return None,
        };
        Some((node.clone(), core.node(node).map(|(_, presence)| presence)))
    }

    pub(super) fn presence_changed(
        &mut self,
        node: &NodeId,
        before: Option<Presence>,
        core: &Core,
        events: &Events,
    ) {
        let after = core.node(node).map(|(_, presence)| presence);
        let what = match (before, after) {
            (before, after) if before == after => return,
            (None, Some(_)) => "node joined",
            (_, Some(Presence::Here)) => "node here",
            (_, Some(Presence::Away)) => "node away",
            (_, Some(Presence::Unreachable)) => "node unreachable",
            (_, None) => {
                self.nodes.remove(node);
                self.drains.remove(node);
                "node removed"
            }
        };
        self.tell(events, node, what, "");
    }

    /// What is written down is what people are told.
    pub(super) fn note(&mut self, changes: &[Change], events: &Events, numbers: &Numbers) {
        for change in changes {
            match change {
                Change::Put(Record::Allocation(allocation)) => {
                    self.note_allocation(allocation, events, numbers);
                }
                Change::Erase(Key::Allocation(id)) => self.forget(*id),
                Change::Put(Record::Job(job)) => self.note_job(job, events),
                Change::Erase(Key::Job(id)) => {
                    self.jobs.remove(id);
                    of_job(events, id, "job forgotten", String::new());
                }
                Change::Put(Record::Node(node)) => self.note_node(node, events),
                _ => {}
            }
        }
    }

    fn note_node(&mut self, node: &Node, events: &Events) {
        let before = self.drains.insert(node.id.clone(), node.drain).unwrap_or_default();
        let Drain { on, within, overdue } = node.drain;
        let bound = within.map(|within| format!("within {within:?}")).unwrap_or_default();
        if on && (before.on, before.within) != (on, within) {
            self.tell(events, &node.id, "node drains", &bound);
        }
        if before.on && !on {
            self.tell(events, &node.id, "node takes tasks again", "");
        }
        if overdue && !before.overdue {
            let words = "the time is over: what had not moved away is stopped";
            self.tell(events, &node.id, "drain is overdue", words);
        }
    }

    fn note_allocation(&mut self, one: &Allocation, events: &Events, numbers: &Numbers) {
        let before = self.phases.insert(one.id, one.phase);
        if before == Some(one.phase) {
            return;
        }
        let what = match one.phase {
            Phase::Starting if before.is_none() => {
                numbers.placed();
                "instance placed"
            }
            Phase::Starting => "instance not ready",
            Phase::Ready => "instance ready",
            Phase::Stopping(_) => "instance stopping",
            Phase::Abandoned => "instance abandoned",
            Phase::Ended(Outcome::Finished) => "instance finished",
            Phase::Ended(Outcome::Failed) => "instance failed",
            Phase::Ended(Outcome::Stopped) => "instance stopped",
            Phase::Ended(Outcome::Refused) => "instance refused",
            Phase::Ended(Outcome::Gone) => "instance gone",
        };
        events.tell(v1::ClusterEvent {
            node: one.node.0.clone(),
            job: one.job.0.clone(),
            instance: one.task(),
            what: what.to_owned(),
            sentence: self.sentence(one),
            ..v1::ClusterEvent::default()
        });
    }

    fn note_job(&mut self, job: &JobRecord, events: &Events) {
        let version = format!("version {}", job.version);
        let before = self.jobs.insert(job.id.clone(), JobSeen::of(job));
        let changed = before.as_ref().is_none_or(|before| before.version != job.version);
        let rollout = before.as_ref().is_none_or(|before| before.rollout != job.rollout);
        let stopped = before.as_ref().is_some_and(|before| before.stopped);
        if changed {
            let what = if before.is_none() { "job taken on" } else { "job updated" };
            of_job(events, &job.id, what, version.clone());
        }
        if job.stopped && !stopped {
            of_job(events, &job.id, "job stopped", String::new());
        }
        let what = match job.rollout {
            Rollout::Done => "rollout done",
            Rollout::RollingBack => "rollout goes back",
            Rollout::Failed => "rollout failed",
            Rollout::UnderWay => return,
        };
        if rollout {
            of_job(events, &job.id, what, version);
        }
    }

    /// Its last words stay for a while.
    fn forget(&mut self, id: AllocId) {
        if self.phases.remove(&id).is_none() {
            return;
        }
        self.gone.push_back(id);
        if self.gone.len() > MOST_GONE
            && let Some(oldest) = self.gone.pop_front()
        {
            self.told.remove(&oldest);
        }
    }
}

fn of_job(events: &Events, job: &JobId, what: &str, sentence: String) {
    let (job, what) = (job.0.clone(), what.to_owned());
    events.tell(v1::ClusterEvent { job, what, sentence, ..v1::ClusterEvent::default() });
}

pub(super) const fn because(why: Why) -> &'static str {
    match why {
        Why::Surplus => "it is not wanted any more",
        Why::Outdated => "another version is wanted",
        Why::Drained => "its node is being drained",
        Why::Overdue => "it had not left its node in time, which is being drained",
        Why::Preempted => "another one needs its room",
        Why::Unhealthy => "it was not ready in time",
        Why::Duplicate => "a later one is in its place",
        Why::Asked => "somebody wants another one in its place",
        Why::Lost => "its node cannot tell what became of it",
    }
}
