//! Places that wait get a node.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Core, Timer};
use crate::assign::{self, Hindrance, Outcome, Pool, Request};
use crate::model::{
    AllocId, Allocation, Amounts, Job, JobId, Key, Namespace, NodeId, Part, Phase, Rollout, Slot,
    Why,
};

/// Allocations of an epoch are numbered below this.
const EPOCH_SHIFT: u32 = 40;

type Wanted = (AllocId, JobId, Slot);
type Assign = fn(&mut Pool, &[Request<'_>]) -> Vec<Outcome>;

impl Core {
    pub(super) fn place(&mut self) {
        let mut wanted = self.in_order();
        let mut assign: Assign = assign::assign;
        // What has no node leaves its share of the quota to the next.
        loop {
            let (within, beyond) = self.within_quota(wanted);
            if within.is_empty() {
                return;
            }
            self.place_all(&within, assign);
            assign = assign::assign_more;
            wanted = beyond;
        }
    }

    fn in_order(&mut self) -> Vec<Wanted> {
        let jobs = self.waiting.iter();
        let slots = jobs.flat_map(|(job, slots)| slots.keys().map(move |slot| (job, slot)));
        let mut wanted: Vec<_> = slots.map(|(job, slot)| (job.clone(), slot.clone())).collect();
        let priority = |job: &JobId| self.jobs.get(job).map_or(0, |record| record.job().priority);
        wanted
            .sort_by_cached_key(|(job, slot)| (Reverse(priority(job)), job.clone(), slot.clone()));
        wanted.into_iter().map(|(job, slot)| (self.next_id(), job, slot)).collect()
    }

    fn next_id(&mut self) -> AllocId {
        self.counter += 1;
        AllocId((self.epoch << EPOCH_SHIFT) + self.counter)
    }

    fn within_quota(&mut self, wanted: Vec<Wanted>) -> (Vec<Wanted>, Vec<Wanted>) {
        if self.quotas.is_empty() {
            return (wanted, Vec::new());
        }
        let mut used = self.used.clone();
        let (mut within, mut beyond) = (Vec::new(), Vec::new());
        for one in wanted {
            let job = self.jobs[&one.1].job();
            if self.charge(&mut used, &job.namespace, &job.template.request) {
                within.push(one);
            } else {
                let hindrance = Hindrance::Quota(job.namespace.0.clone());
                let why = assign::Why(BTreeMap::from([(hindrance, 1)]));
                self.note(&one, Some(Arc::new(why)));
                beyond.push(one);
            }
        }
        (within, beyond)
    }

    fn charge(
        &self,
        used: &mut BTreeMap<Namespace, Amounts>,
        of: &Namespace,
        request: &Amounts,
    ) -> bool {
        let Some(most) = self.quotas.get(of) else { return true };
        let sum = used.get(of).copied().unwrap_or_default().plus(*request);
        let fits = sum.fits(most);
        if fits {
            used.insert(of.clone(), sum);
        }
        fits
    }

    fn note(&mut self, (_, job, slot): &Wanted, why: Option<Arc<assign::Why>>) {
        if let Some(waiting) = self.waiting.get_mut(job).and_then(|slots| slots.get_mut(slot)) {
            *waiting = why;
        }
    }

    fn place_all(&mut self, wanted: &[Wanted], assign: Assign) {
        let requests: Vec<Request<'_>> =
            wanted.iter().map(|(id, job, slot)| request(*id, self.jobs[job].job(), slot)).collect();
        let outcomes = assign(&mut self.pool, &requests);
        for (one, outcome) in wanted.iter().zip(outcomes) {
            match outcome {
                Outcome::Placed(node) => self.allocate(one, node),
                Outcome::Preempts { victims, .. } => {
                    self.note(one, None);
                    for victim in victims {
                        self.stop(victim, Why::Preempted);
                    }
                }
                Outcome::Waits(_) => self.note(one, None),
                Outcome::Nowhere(why) => self.note(one, Some(why)),
            }
        }
    }

    fn allocate(&mut self, (id, job, slot): &Wanted, node: NodeId) {
        self.wait_no_more(job, slot);
        let record = &self.jobs[job];
        let before = self.places.get(job).and_then(|slots| slots.get(slot)).copied();
        let before = before.and_then(|before| self.allocations.get(&before)).cloned();
        let (version, job) = (record.version, record.job());
        let template = &job.template;
        let allocation = Allocation {
            id: *id,
            job: job.id.clone(),
            namespace: job.namespace.clone(),
            version,
            slot: slot.clone(),
            node,
            request: job.template.request,
            ports: job.template.ports.clone(),
            priority: job.priority,
            revocable: job.template.rules.revocable,
            fence: job.template.fence,
            phase: Phase::Starting,
            confirmed: false,
            sequence: 0,
            failures: before.as_ref().map_or(0, |before| before.failures),
            members: template.members.iter().map(|name| (name.clone(), Part::default())).collect(),
        };
        let gate = record.stable.is_some() && record.rollout != Rollout::Done;
        let gate = gate.then_some(job.update.healthy_within);
        self.adopt(allocation);
        self.touched.insert(Key::Allocation(*id));
        self.tell_run(*id);
        if let Some(after) = gate {
            self.arm(Timer::Healthy { allocation: *id }, after);
        }
        if let Some(before) = before.filter(|before| before.phase.has_ended()) {
            self.erase(before.id);
        }
    }

    fn wait_no_more(&mut self, job: &JobId, slot: &Slot) {
        let Some(slots) = self.waiting.get_mut(job) else { return };
        slots.remove(slot);
        if slots.is_empty() {
            self.waiting.remove(job);
        }
    }

    /// It is in its place, on its node, and counted in its namespace.
    pub(super) fn adopt(&mut self, allocation: Allocation) {
        let id = allocation.id;
        if !matches!(allocation.phase, Phase::Ended(_) | Phase::Abandoned) {
            let used = self.used.entry(allocation.namespace.clone()).or_default();
            *used = used.plus(allocation.request);
        }
        let place = self.places.entry(allocation.job.clone()).or_default();
        place.insert(allocation.slot.clone(), id);
        self.on.entry(allocation.node.clone()).or_default().insert(id);
        self.allocations.insert(id, allocation);
    }
}

fn request<'a>(id: AllocId, job: &'a Job, slot: &'a Slot) -> Request<'a> {
    let node = match slot {
        Slot::Node(node) => Some(node),
        Slot::Index(_) => None,
    };
    let (template, priority, preempts) = (&job.template, job.priority, job.preempts);
    Request { id, job: &job.id, template, priority, preempts, node }
}
