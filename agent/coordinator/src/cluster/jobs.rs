//! What is wanted of a job, and how it comes there.

use std::collections::{BTreeMap, BTreeSet};

use super::{Core, Dirty, Effect, Presence};
use crate::assign::NODE;
use crate::model::{
    AllocId, Allocation, Amounts, Constraint, Job, JobId, JobRecord, Key, Kind, Namespace, Outcome,
    Phase, Rollout, Slot, Version, Why, is_name,
};

/// Versions that are kept for whoever wants to go back.
const KEPT: usize = 6;
/// What an agent must be able to do for jobs that never run twice.
pub const FENCE: &str = "fence";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("{0}: a name has 1 to 63 letters, digits, \"_\", \"-\" and \".\"")]
    Name(String),
    #[error("{0}: an update that may replace none at a time has no end")]
    Parallel(JobId),
    #[error("{0}: a batch of which each run is tried 0 times")]
    Tries(JobId),
    #[error("{0}: its kind cannot be changed; stop it and choose another name")]
    Kind(JobId),
}

impl Kind {
    #[must_use]
    pub const fn is_one_per_node(self) -> bool {
        matches!(self, Self::OnePerNode)
    }

    fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl Core {
    /// Take a job on, or change it.
    ///
    /// # Errors
    /// What cannot be wanted.
    pub fn submit(&mut self, mut job: Job) -> Result<Vec<Effect>, Rejected> {
        self.examine(&job)?;
        if job.at_most_one() {
            job.template.rules.features.insert(FENCE.to_owned());
        }
        let id = job.id.clone();
        match self.jobs.get_mut(&id) {
            Some(record) => record.renew(job),
            None => {
                self.jobs.insert(id.clone(), JobRecord::new(job));
            }
        }
        self.touched.insert(Key::Job(id.clone()));
        self.prune(&id);
        self.stirred = true;
        self.mark_all(&id);
        Ok(self.conclude())
    }

    fn examine(&self, job: &Job) -> Result<(), Rejected> {
        if !is_name(&job.id.0) {
            return Err(Rejected::Name(job.id.0.clone()));
        }
        if job.update.most_parallel == 0 {
            return Err(Rejected::Parallel(job.id.clone()));
        }
        if matches!(job.kind, Kind::Batch { tries: 0, .. }) {
            return Err(Rejected::Tries(job.id.clone()));
        }
        let known = self.jobs.get(&job.id);
        if known.is_some_and(|known| !known.job().kind.is_like(job.kind)) {
            return Err(Rejected::Kind(job.id.clone()));
        }
        Ok(())
    }

    fn prune(&mut self, id: &JobId) {
        let used: BTreeSet<Version> = self.versions_in_use(id);
        let Some(record) = self.jobs.get_mut(id) else { return };
        let keep = [Some(record.version), record.stable];
        let recent: BTreeSet<Version> = record.versions.keys().rev().take(KEPT).copied().collect();
        record.versions.retain(|version, _| {
            recent.contains(version) || used.contains(version) || keep.contains(&Some(*version))
        });
    }

    fn versions_in_use(&self, id: &JobId) -> BTreeSet<Version> {
        self.places(id).map(|(_, allocation)| allocation.version).collect()
    }

    pub(super) fn stop_job(&mut self, id: &JobId, purge: bool) {
        let Some(record) = self.jobs.get_mut(id) else { return };
        record.stopped = true;
        record.purged |= purge;
        self.touched.insert(Key::Job(id.clone()));
        self.mark_all(id);
    }

    pub(super) fn quota(&mut self, namespace: Namespace, most: Option<Amounts>) {
        self.touched.insert(Key::Quota(namespace.clone()));
        match most {
            Some(most) => self.quotas.insert(namespace, most),
            None => self.quotas.remove(&namespace),
        };
        self.stirred = true;
    }

    /// Go through the places of a job whose circumstances have changed, and do what is missing.
    pub(super) fn tend(&mut self, id: &JobId, dirty: &Dirty) {
        let Some(record) = self.jobs.get(id) else { return };
        let is_moving = record.rollout != Rollout::Done;
        match dirty {
            Dirty::Slots(slots) => {
                for slot in slots {
                    self.tend_slot(id, slot);
                }
            }
            Dirty::All => self.tend_all(id),
        }
        if is_moving || matches!(dirty, Dirty::All) || !self.draining.is_empty() {
            self.replace_outdated(id);
            self.finish_rollout(id);
        }
        self.purge(id);
    }

    fn tend_all(&mut self, id: &JobId) {
        let filled = self.places.get(id).into_iter().flat_map(|slots| slots.keys().cloned());
        let waiting = self.waiting.get(id).into_iter().flat_map(|slots| slots.keys().cloned());
        let mut slots: BTreeSet<Slot> = filled.chain(waiting).collect();
        slots.extend(self.wanted(id));
        for slot in slots {
            self.tend_slot(id, &slot);
        }
    }

    fn wanted(&self, id: &JobId) -> Vec<Slot> {
        let Some(record) = self.jobs.get(id).filter(|record| !record.stopped) else {
            return Vec::new();
        };
        match record.job().kind {
            Kind::Replicas(count) | Kind::Batch { runs: count, .. } => {
                (0..count).map(Slot::Index).collect()
            }
            Kind::OnePerNode => {
                let slots = self.nodes.keys().cloned().map(Slot::Node);
                slots.filter(|slot| self.is_wanted(record, slot)).collect()
            }
        }
    }

    fn is_wanted(&self, record: &JobRecord, slot: &Slot) -> bool {
        let job = record.job();
        match (job.kind, slot) {
            _ if record.stopped => false,
            (Kind::Replicas(count) | Kind::Batch { runs: count, .. }, Slot::Index(index)) => {
                *index < count
            }
            (Kind::OnePerNode, Slot::Node(node)) => self.nodes.get(node).is_some_and(|member| {
                let machine = &member.node.machine;
                let mut attributes = machine.attributes.clone();
                attributes.insert(NODE.to_owned(), node.0.clone());
                let rules = &job.template.rules;
                !member.node.drain.on
                    && rules.features.is_subset(&machine.features)
                    && rules.constraints.iter().all(|rule: &Constraint| rule.holds(&attributes))
            }),
            _ => false,
        }
    }

    fn tend_slot(&mut self, id: &JobId, slot: &Slot) {
        let Some(record) = self.jobs.get(id) else { return };
        let wanted = self.is_wanted(record, slot);
        let kind = record.job().kind;
        let latest = self.places.get(id).and_then(|slots| slots.get(slot)).copied();
        let allocation = latest.and_then(|latest| self.allocations.get(&latest));
        let fill = match allocation {
            None => wanted,
            Some(allocation) if !wanted => {
                let (id, phase) = (allocation.id, allocation.phase);
                self.leave_place(id, phase);
                false
            }
            Some(allocation) => self.is_free(allocation, kind),
        };
        self.wait(id, slot, fill);
    }

    fn leave_place(&mut self, id: AllocId, phase: Phase) {
        if phase.is_wanted() {
            let why = self.why_surplus(id);
            self.stop(id, why);
        } else if !matches!(phase, Phase::Stopping(_)) {
            self.vacate(id, phase);
        }
    }

    fn why_surplus(&self, id: AllocId) -> Why {
        let node = self.allocations.get(&id).and_then(|one| self.nodes.get(&one.node));
        if node.is_some_and(|member| member.node.drain.on) { Why::Drained } else { Why::Surplus }
    }

    /// Its place is empty. What has ended is not known any more; what is given up is, until its node returns.
    fn vacate(&mut self, id: AllocId, phase: Phase) {
        let Some(allocation) = self.allocations.get(&id).cloned() else { return };
        if let Some(slots) = self.places.get_mut(&allocation.job) {
            slots.remove(&allocation.slot);
        }
        if phase.has_ended() {
            self.erase(id);
        }
    }

    /// Another one is to be put in its place.
    fn is_free(&self, allocation: &Allocation, kind: Kind) -> bool {
        match (allocation.phase, kind) {
            (Phase::Starting | Phase::Ready | Phase::Stopping(_), _) => false,
            (Phase::Ended(Outcome::Finished), Kind::Batch { .. }) => false,
            (Phase::Ended(_), Kind::Batch { tries, .. }) if allocation.failures >= tries => false,
            (Phase::Ended(_), _) => !self.resting.contains(&allocation.id),
            (Phase::Abandoned, _) => true,
        }
    }

    fn wait(&mut self, id: &JobId, slot: &Slot, waits: bool) {
        if waits {
            let slots = self.waiting.entry(id.clone()).or_default();
            self.stirred |= !slots.contains_key(slot);
            slots.entry(slot.clone()).or_default();
        } else if let Some(slots) = self.waiting.get_mut(id) {
            slots.remove(slot);
            if slots.is_empty() {
                self.waiting.remove(id);
            }
        }
    }

    /// Instances of an old version, and on nodes that are to be empty: as many at a time as may be missing.
    fn replace_outdated(&mut self, id: &JobId) {
        let Some(record) = self.jobs.get(id).filter(|record| !record.stopped) else { return };
        if self.draining.is_empty() && record.current().len() == record.versions.len() {
            return;
        }
        let most = match record.job().kind {
            // Runs do not stand in for each other.
            Kind::Batch { .. } => usize::MAX,
            Kind::Replicas(_) | Kind::OnePerNode => record.job().update.most_parallel as usize,
        };
        let spare = most.saturating_sub(self.missing(id));
        let (ready, missing): (Vec<_>, Vec<_>) =
            self.outdated(record).into_iter().partition(|(one, _)| self.is_ready(one));
        let stops = missing.into_iter().chain(ready.into_iter().take(spare));
        for (id, why) in stops.map(|(one, why)| (one.id, why)).collect::<Vec<_>>() {
            self.stop(id, why);
        }
    }

    fn outdated(&self, record: &JobRecord) -> Vec<(&Allocation, Why)> {
        let current = record.current();
        let goes_on = record.rollout != Rollout::Failed;
        let wanted =
            self.places(&record.id).map(|(_, one)| one).filter(|one| one.phase.is_wanted());
        let why = |one: &Allocation| {
            let node = self.nodes.get(&one.node);
            let moves = node.is_some_and(|member| member.node.drain.on);
            let is_old = goes_on && !current.contains(&one.version);
            moves.then_some(Why::Drained).or(is_old.then_some(Why::Outdated))
        };
        wanted.filter_map(|one| Some((one, why(one)?))).collect()
    }

    /// Places without an instance that does its work.
    fn missing(&self, id: &JobId) -> usize {
        let filled = self.places.get(id);
        let is_new = |slot: &&Slot| filled.is_none_or(|filled| !filled.contains_key(slot));
        let waiting = self.waiting.get(id).map_or(0, |slots| slots.keys().filter(is_new).count());
        let idle = |one: &Allocation| !self.is_ready(one) && !is_done(one);
        waiting + self.places(id).filter(|(_, one)| idle(one)).count()
    }

    fn is_ready(&self, allocation: &Allocation) -> bool {
        allocation.phase == Phase::Ready && self.is_here(allocation)
    }

    fn is_here(&self, allocation: &Allocation) -> bool {
        let member = self.nodes.get(&allocation.node);
        member.is_some_and(|member| member.presence() != Presence::Unreachable)
    }

    fn finish_rollout(&mut self, id: &JobId) {
        let Some(record) = self.jobs.get(id) else { return };
        if !matches!(record.rollout, Rollout::UnderWay | Rollout::RollingBack) || record.stopped {
            return;
        }
        let blocking = self.blocking_place(record);
        if let Some(slot) = blocking {
            self.blocking.insert(id.clone(), slot);
            return;
        }
        self.blocking.remove(id);
        let Some(record) = self.jobs.get_mut(id) else { return };
        record.rollout = Rollout::Done;
        record.stable = Some(record.version);
        self.touched.insert(Key::Job(id.clone()));
        self.prune(id);
    }

    /// One that has no instance yet that is ready and as it is wanted; the one of before first.
    fn blocking_place(&self, record: &JobRecord) -> Option<Slot> {
        let current = record.current();
        let is_new = |one: &Allocation| {
            is_done(one) || one.phase == Phase::Ready && current.contains(&one.version)
        };
        let places = self.places.get(&record.id);
        let blocks = |slot: &Slot| {
            let latest = places.and_then(|places| places.get(slot));
            !latest.and_then(|latest| self.allocations.get(latest)).is_some_and(is_new)
        };
        let before = self.blocking.get(&record.id);
        if let Some(slot) = before.filter(|slot| self.is_wanted(record, slot) && blocks(slot)) {
            return Some(slot.clone());
        }
        let slots = self.wanted(&record.id);
        let from = before.and_then(|before| slots.binary_search(before).ok()).unwrap_or_default();
        slots[from..].iter().chain(&slots[..from]).find(|slot| blocks(slot)).cloned()
    }

    /// An instance of a new version has failed: go back, if there is something to go back to.
    pub(super) fn fail_rollout(&mut self, allocation: &Allocation) {
        let Some(record) = self.jobs.get_mut(&allocation.job) else { return };
        let is_new = record.current().contains(&allocation.version);
        if record.rollout != Rollout::UnderWay || !is_new || !record.fail() {
            return;
        }
        let id = record.id.clone();
        self.touched.insert(Key::Job(id.clone()));
        self.mark_all(&id);
    }

    fn purge(&mut self, id: &JobId) {
        let is_purged = self.jobs.get(id).is_some_and(|record| record.purged && record.stopped);
        let is_empty = self.places.get(id).is_none_or(BTreeMap::is_empty);
        if is_purged && is_empty {
            self.jobs.remove(id);
            self.places.remove(id);
            self.touched.insert(Key::Job(id.clone()));
        }
    }
}

/// Nothing more is to come of it.
fn is_done(allocation: &Allocation) -> bool {
    allocation.phase == Phase::Ended(Outcome::Finished)
}

impl JobRecord {
    fn new(job: Job) -> Self {
        Self {
            id: job.id.clone(),
            version: 1,
            versions: [(1, job)].into(),
            stable: None,
            rollout: Rollout::UnderWay,
            stopped: false,
            purged: false,
        }
    }

    /// Another version, unless nothing of its instances changes.
    fn renew(&mut self, job: Job) {
        (self.stopped, self.purged) = (false, false);
        if self.job().template == job.template {
            self.versions.insert(self.version, job);
            if self.rollout == Rollout::Failed {
                self.rollout = Rollout::UnderWay;
            }
            return;
        }
        self.advance(job);
        self.rollout = Rollout::UnderWay;
    }

    fn advance(&mut self, job: Job) {
        self.version =
            self.versions.keys().max().copied().unwrap_or_default().max(self.version) + 1;
        self.versions.insert(self.version, job);
    }

    /// Whether that changes anything.
    fn fail(&mut self) -> bool {
        let stable = self.stable.filter(|stable| *stable != self.version);
        let Some(old) = stable.and_then(|stable| self.versions.get(&stable)) else { return false };
        if !self.job().update.roll_back {
            self.rollout = Rollout::Failed;
            return true;
        }
        // How many there are to be is not what failed.
        let job = Job { kind: self.job().kind, ..old.clone() };
        self.advance(job);
        self.rollout = Rollout::RollingBack;
        true
    }
}
