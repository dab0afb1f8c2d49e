//! The cluster as people see it.

use std::collections::BTreeMap;

use hafen_protocol::{time, v1};

use super::board::Told;
use super::engine::Engine;
use crate::assign::Why;
use crate::cluster::Presence;
use crate::model::{
    Allocation, Amounts, Job, JobId, JobRecord, Kind, Node, NodeId, Outcome, Phase, Rollout, Slot,
};
use crate::wire;

type Waiting<'a> = BTreeMap<&'a JobId, Vec<(&'a Slot, Option<&'a Why>)>>;

/// Where others have to leave first.
const ROOM: &str = "waits for others to leave";

#[derive(Debug, Default)]
struct Counts {
    filled: u32,
    ready: u32,
    starting: u32,
    finished: u32,
    failed: u32,
}

pub(super) fn amounts(of: Amounts) -> v1::Amounts {
    // What was not said is as much as is asked for.
    let said = |value: u64| Some(value).filter(|value| *value != u64::MAX);
    v1::Amounts {
        cpu_milli: said(of.cpu_milli),
        memory: said(of.memory),
        swap: None,
        pids: said(of.pids),
        disk: said(of.disk),
    }
}

fn plus_all(sum: &mut v1::Capacity, more: &v1::Capacity) {
    let pairs = [
        (&mut sum.total, &more.total),
        (&mut sum.reserved, &more.reserved),
        (&mut sum.allocatable, &more.allocatable),
        (&mut sum.allocated, &more.allocated),
        (&mut sum.used, &more.used),
    ];
    let waits = [
        (&mut sum.cpu_pressure, more.cpu_pressure),
        (&mut sum.memory_pressure, more.memory_pressure),
        (&mut sum.io_pressure, more.io_pressure),
        (&mut sum.memory_pressure_full, more.memory_pressure_full),
        (&mut sum.io_pressure_full, more.io_pressure_full),
    ];
    for (most, more) in waits {
        *most = match (*most, more) {
            (Some(most), Some(more)) => Some(most.max(more)),
            (most, more) => most.or(more),
        };
    }
    for (sum, more) in pairs {
        if let Some(more) = more {
            sum.get_or_insert_default().add(more);
        }
    }
}

impl Engine {
    /// Everything, of all namespaces.
    pub(super) fn view(&self) -> v1::ClusterView {
        let mut waiting = Waiting::new();
        for (job, slot, why) in self.core.waiting() {
            waiting.entry(job).or_default().push((slot, why));
        }
        let nodes: Vec<_> =
            self.core.nodes().map(|(node, presence)| self.node(node, presence)).collect();
        let mut capacity = v1::Capacity::default();
        let heard =
            nodes.iter().filter(|node| node.presence() != v1::cluster_node::Presence::Unreachable);
        heard
            .filter_map(|node| node.capacity.as_ref())
            .for_each(|one| plus_all(&mut capacity, one));
        let placed = self.core.allocations().map(|one| self.instance(one, false));
        let without = self.core.jobs().flat_map(|job| unplaced(job, waiting.get(&job.id)));
        v1::ClusterView {
            revision: self.changed(),
            coordinator: self.card.name.clone(),
            addresses: self.card.addresses.clone(),
            epoch: self.core.epoch(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: Some(capacity),
            nodes,
            instances: placed.chain(without).collect(),
            jobs: self.core.jobs().map(|job| self.job(job, waiting.get(&job.id))).collect(),
            time: Some(Self::now()),
        }
    }

    pub(super) fn node(&self, node: &Node, presence: Presence) -> v1::ClusterNode {
        use v1::cluster_node::Presence as Said;
        let presence = match presence {
            Presence::Here => Said::Here,
            Presence::Away => Said::Away,
            Presence::Unreachable => Said::Unreachable,
        };
        let said = self.board.node(&node.id).cloned().unwrap_or_default();
        let on: Vec<_> = self.core.on(&node.id).filter(|one| !one.phase.has_ended()).collect();
        let taken = on.iter().fold(Amounts::default(), |sum, one| sum.plus(one.request));
        let allocatable = Some(amounts(node.machine.allocatable));
        let capacity =
            said.capacity.unwrap_or(v1::Capacity { allocatable, ..v1::Capacity::default() });
        v1::ClusterNode {
            name: node.id.0.clone(),
            presence: presence.into(),
            draining: node.drain.on,
            instance: node.instance.clone(),
            boot_id: said.boot_id,
            software: said.software,
            incarnation: node.incarnation,
            attributes: node.machine.attributes.clone(),
            features: node.machine.features.iter().cloned().collect(),
            capacity: Some(v1::Capacity { allocated: Some(amounts(taken)), ..capacity }),
            instances: count(on.len()),
            heard: said.heard,
            drain_within: node.drain.within.map(time::span),
            drain_overdue: node.drain.overdue,
            pressure: said.short.into_values().collect(),
        }
    }

    fn is_ready(&self, one: &Allocation) -> bool {
        let presence = self.core.node(&one.node).map(|(_, presence)| presence);
        one.phase == Phase::Ready && presence.is_some_and(|is| is != Presence::Unreachable)
    }

    fn counts(&self, id: &JobId) -> Counts {
        let mut counts = Counts::default();
        for (_, one) in self.core.places(id) {
            let counted = match one.phase {
                Phase::Ready if self.is_ready(one) => &mut counts.ready,
                Phase::Starting => &mut counts.starting,
                Phase::Ended(Outcome::Finished) => &mut counts.finished,
                Phase::Ended(Outcome::Failed | Outcome::Refused) => &mut counts.failed,
                _ => continue,
            };
            *counted += 1;
        }
        counts.filled = count(self.core.places(id).count());
        counts
    }

    /// Without specs.
    fn job(&self, record: &JobRecord, waiting: Option<&Vec<(&Slot, Option<&Why>)>>) -> v1::Job {
        let job = record.job();
        let counts = self.counts(&record.id);
        let waits: &[_] = waiting.map_or(&[], Vec::as_slice);
        let filled = |slot: &Slot| self.core.places(&record.id).any(|(place, _)| place == slot);
        let empty = waits.iter().filter(|(slot, _)| !filled(slot)).count();
        let (kind, wanted) = match job.kind {
            Kind::Replicas(count) => ("replicas", count),
            Kind::OnePerNode => ("one_per_node", counts.filled + count(empty)),
            Kind::Batch { runs, .. } => ("batch", runs),
        };
        v1::Job {
            name: record.id.0.clone(),
            namespace: job.namespace.0.clone(),
            version: record.version,
            stable: record.stable.unwrap_or_default(),
            rollout: rollout(record.rollout).into(),
            stopped: record.stopped,
            wanted: if record.stopped { 0 } else { wanted },
            ready: counts.ready,
            starting: counts.starting,
            waiting: count(waits.len()),
            finished: counts.finished,
            failed: counts.failed,
            sentence: waits.first().map(|(_, why)| why_not(*why)).unwrap_or_default(),
            spec: None,
            versions: Vec::new(),
            priority: job.priority,
            kind: kind.to_owned(),
            runs: runs(job),
        }
    }

    /// With specs, and all versions that are known.
    pub(super) fn whole_job(&self, id: &JobId) -> Option<v1::Job> {
        let record = self.core.job(id)?;
        let waiting = self.core.waiting().filter(|(job, ..)| *job == id);
        let waiting: Vec<_> = waiting.map(|(_, slot, why)| (slot, why)).collect();
        let of = |version: u64| {
            let running = self.core.places(id).filter(|(_, one)| !one.phase.has_ended());
            running.filter(|(_, one)| one.version == version).count()
        };
        let versions = record.versions.iter().map(|(version, job)| v1::JobVersion {
            version: *version,
            spec: Some(wire::job::spec(job)),
            instances: count(of(*version)),
        });
        Some(v1::Job {
            spec: Some(wire::job::spec(record.job())),
            versions: versions.collect(),
            ..self.job(record, Some(&waiting))
        })
    }

    pub(super) fn instance(&self, one: &Allocation, with_tasks: bool) -> v1::Instance {
        let none = Told::default();
        let told = self.board.told(one.id).unwrap_or(&none);
        let tasks = || told.tasks.values();
        let ended = one.phase.has_ended();
        let state = tasks().map(v1::TaskStatus::state).max_by_key(|state| weight(*state));
        v1::Instance {
            name: one.task(),
            job: one.job.0.clone(),
            namespace: one.namespace.0.clone(),
            version: one.version,
            slot: one.slot.to_string(),
            node: one.node.0.clone(),
            phase: phase(one.phase).into(),
            sentence: self.board.sentence(one),
            failures: one.failures,
            state: state.unwrap_or_default().into(),
            addresses: tasks().flat_map(|status| status.addresses.clone()).collect(),
            ports: tasks().flat_map(|status| status.ports.clone()).collect(),
            started: tasks().filter_map(|status| status.started).max_by_key(|at| at.seconds),
            usage: usage(told).filter(|_| !ended),
            tasks: if with_tasks { tasks().cloned().collect() } else { Vec::new() },
        }
    }

    /// By its name, or the beginning of a name that only one has.
    pub(super) fn find_node(&self, name: &str) -> Option<NodeId> {
        let id = NodeId(name.to_owned());
        if self.core.node(&id).is_some() {
            return Some(id);
        }
        let mut like = self.core.nodes().filter(|(node, _)| node.id.0.starts_with(name));
        match (like.next(), like.next()) {
            (Some((node, _)), None) if !name.is_empty() => Some(node.id.clone()),
            _ => None,
        }
    }
}

fn unplaced(job: &JobRecord, waiting: Option<&Vec<(&Slot, Option<&Why>)>>) -> Vec<v1::Instance> {
    let waits = waiting.into_iter().flatten();
    let one = |(slot, why): &(&Slot, Option<&Why>)| v1::Instance {
        job: job.id.0.clone(),
        namespace: job.job().namespace.0.clone(),
        version: job.version,
        slot: slot.to_string(),
        phase: v1::instance::Phase::Waiting.into(),
        sentence: why_not(*why),
        ..v1::Instance::default()
    };
    waits.map(one).collect()
}

pub(super) fn why_not(why: Option<&Why>) -> String {
    why.map_or_else(|| ROOM.to_owned(), ToString::to_string)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

const fn rollout(of: Rollout) -> v1::job::Rollout {
    match of {
        Rollout::Done => v1::job::Rollout::Done,
        Rollout::UnderWay => v1::job::Rollout::UnderWay,
        Rollout::RollingBack => v1::job::Rollout::RollingBack,
        Rollout::Failed => v1::job::Rollout::Failed,
    }
}

const fn phase(of: Phase) -> v1::instance::Phase {
    use v1::instance::Phase as Said;
    match of {
        Phase::Starting => Said::Starting,
        Phase::Ready => Said::Ready,
        Phase::Stopping(_) => Said::Stopping,
        Phase::Abandoned => Said::Abandoned,
        Phase::Ended(Outcome::Finished) => Said::Finished,
        Phase::Ended(Outcome::Failed) => Said::Failed,
        Phase::Ended(Outcome::Stopped) => Said::Stopped,
        Phase::Ended(Outcome::Refused) => Said::Refused,
        Phase::Ended(Outcome::Gone) => Said::Gone,
    }
}

/// Of a pod's tasks the one that matters most.
const fn weight(state: v1::State) -> u8 {
    match state {
        v1::State::Lost => 10,
        v1::State::Error => 9,
        v1::State::Failed => 8,
        v1::State::Staging => 7,
        v1::State::Starting => 6,
        v1::State::Waiting => 5,
        v1::State::Killing => 4,
        v1::State::Running => 3,
        v1::State::Killed => 2,
        v1::State::Finished => 1,
        v1::State::Unspecified => 0,
    }
}

/// Of a pod: what its tasks take together.
fn usage(told: &Told) -> Option<v1::Usage> {
    let mut all = told.usage.values();
    let mut sum = *all.next()?;
    for one in all {
        sum.memory += one.memory;
        sum.pids += one.pids;
        sum.memory_limit += one.memory_limit;
        sum.oom_kills += one.oom_kills;
    }
    Some(sum)
}

/// The image, or what else it runs.
fn runs(job: &Job) -> String {
    use v1::job_spec::What;
    let of = |task: &v1::TaskSpec| match task.root.as_ref().and_then(|root| root.kind.as_ref()) {
        Some(v1::root::Kind::Image(image)) => image.clone(),
        _ => task.command.first().cloned().unwrap_or_default(),
    };
    match wire::job::spec(job).what {
        Some(What::Task(task)) => of(&task),
        Some(What::Pod(pod)) => pod.tasks.iter().map(of).collect::<Vec<_>>().join(", "),
        None => String::new(),
    }
}
