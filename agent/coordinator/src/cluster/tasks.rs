//! What becomes of one allocation.

use super::{Core, Effect, Order, Refusal, Session, Timer};
use crate::model::{
    AllocId, Allocation, Key, Kind, NodeId, Outcome, Part, Phase, Rollout, Seen, Why, part_of,
};

impl Seen {
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Killed)
    }
}

impl Core {
    /// Each update is applied once, in order, and acknowledged when that is written down.
    pub(super) fn update(
        &mut self,
        node: &NodeId,
        session: Session,
        task: &str,
        sequence: u64,
        seen: Seen,
    ) {
        if self.nodes.get(node).is_none_or(|member| member.session != Some(session)) {
            return;
        }
        let Some((allocation, member)) = self.part_on(node, task) else {
            self.send(node, Order::Acknowledge { task: task.to_owned(), sequence });
            return self.send_away(node, task, seen);
        };
        let last = member.map_or(allocation.sequence, |member| member.sequence);
        let (id, whole) = (allocation.id, allocation.task());
        if sequence > last + 1 {
            let refused = Some(Refusal::Gap);
            return self.effects.push(Effect::Close { node: node.clone(), session, refused });
        }
        if sequence == last + 1 {
            self.apply(id, task, sequence, seen);
        }
        let sequence = last.max(sequence);
        self.send(node, Order::Acknowledge { task: task.to_owned(), sequence });
        let together =
            self.allocations.get(&id).map_or(seen, |allocation| allocation.together(seen));
        if together.is_end() {
            self.send(node, Order::Forget { task: whole });
        }
    }

    fn apply(&mut self, id: AllocId, task: &str, sequence: u64, seen: Seen) {
        let Some(allocation) = self.allocations.get_mut(&id) else { return };
        let member = part_of(task).and_then(|(_, name)| allocation.members.get_mut(name?));
        match member {
            Some(member) => *member = Part { sequence, seen },
            None => allocation.sequence = sequence,
        }
        allocation.confirmed = true;
        let seen = allocation.together(seen);
        self.touched.insert(Key::Allocation(id));
        match seen {
            Seen::Alive => self.alive(id),
            Seen::Ready => self.ready(id),
            Seen::Finished => self.end(id, Outcome::Finished),
            Seen::Failed => self.end(id, Outcome::Failed),
            Seen::Killed => self.end(id, Outcome::Stopped),
            Seen::Lost => self.lost(id),
        }
    }

    pub(super) fn confirm(&mut self, id: AllocId) {
        let Some(allocation) = self.allocations.get_mut(&id) else { return };
        if !allocation.confirmed {
            allocation.confirmed = true;
            self.touched.insert(Key::Allocation(id));
        }
    }

    /// It is not ready any more.
    fn alive(&mut self, id: AllocId) {
        self.go(id, Phase::Ready, Phase::Starting);
    }

    pub(super) fn ready(&mut self, id: AllocId) {
        let Some(allocation) = self.allocations.get(&id) else { return };
        let (job, slot, failures) =
            (allocation.job.clone(), allocation.slot.clone(), allocation.failures);
        if !self.go(id, Phase::Starting, Phase::Ready) {
            return;
        }
        self.mark(&job, &slot);
        if failures > 0 {
            let after =
                self.jobs.get(&job).map_or_else(Default::default, |job| job.job().reschedule.most);
            self.arm(Timer::Forgive { allocation: id }, after);
        }
    }

    fn go(&mut self, id: AllocId, from: Phase, to: Phase) -> bool {
        let allocation = self.allocations.get_mut(&id).filter(|one| one.phase == from);
        let Some(allocation) = allocation else { return false };
        allocation.phase = to;
        self.touched.insert(Key::Allocation(id));
        true
    }

    pub(super) fn forgive(&mut self, id: AllocId) {
        let ready = |one: &&mut Allocation| one.phase == Phase::Ready && one.failures > 0;
        let Some(allocation) = self.allocations.get_mut(&id).filter(ready) else { return };
        allocation.failures = 0;
        self.touched.insert(Key::Allocation(id));
    }

    /// Its node cannot tell whether it runs. What may run twice is replaced at once, the other when it has ended.
    fn lost(&mut self, id: AllocId) {
        let Some(allocation) = self.allocations.get(&id) else { return };
        if !allocation.phase.is_wanted() {
            return;
        }
        if allocation.fence.is_some() {
            return self.stop(id, Why::Lost);
        }
        self.abandon(id);
        self.tell_stop(id);
    }

    pub(super) fn refused(&mut self, node: &NodeId, session: Session, task: &str) {
        if self.nodes.get(node).is_none_or(|member| member.session != Some(session)) {
            return;
        }
        let refused = self.known_on(node, task).filter(|one| !one.confirmed);
        if let Some(id) = refused.map(|allocation| allocation.id) {
            self.end(id, Outcome::Refused);
        }
    }

    /// It is to end; what it holds is held until it has.
    pub(super) fn stop(&mut self, id: AllocId, why: Why) {
        let wanted = self.allocations.get_mut(&id).filter(|one| one.phase.is_wanted());
        let Some(allocation) = wanted else { return };
        allocation.phase = Phase::Stopping(why);
        self.pool.leave(id, &allocation.node);
        self.touched.insert(Key::Allocation(id));
        self.tell_stop(id);
    }

    /// Its place is free for another one. What its node holds for it, the node holds until it says otherwise.
    pub(super) fn abandon(&mut self, id: AllocId) {
        let Some(allocation) = self.allocations.get_mut(&id) else { return };
        allocation.phase = Phase::Abandoned;
        let allocation = allocation.clone();
        self.pool.leave(id, &allocation.node);
        self.give_back_quota(&allocation);
        self.touched.insert(Key::Allocation(id));
        self.stirred = true;
        self.mark(&allocation.job, &allocation.slot);
    }

    /// Nothing of it runs, nor will.
    pub(super) fn end(&mut self, id: AllocId, outcome: Outcome) {
        let Some(allocation) = self.allocations.get_mut(&id) else { return };
        let before = allocation.phase;
        if before.has_ended() {
            return;
        }
        let outcome = if before.is_wanted() || outcome == Outcome::Finished {
            outcome
        } else {
            Outcome::Stopped
        };
        allocation.phase = Phase::Ended(outcome);
        allocation.failures = match outcome {
            Outcome::Failed | Outcome::Refused => allocation.failures.saturating_add(1),
            Outcome::Finished | Outcome::Stopped | Outcome::Gone => allocation.failures,
        };
        let allocation = allocation.clone();
        self.touched.insert(Key::Allocation(id));
        self.stirred = true;
        self.pool.release(id, &allocation.node);
        if before != Phase::Abandoned {
            self.give_back_quota(&allocation);
        }
        self.after(&allocation, outcome);
    }

    fn after(&mut self, allocation: &Allocation, outcome: Outcome) {
        if self.latest(allocation) != Some(allocation.id) {
            self.erase(allocation.id);
        }
        self.mark(&allocation.job, &allocation.slot);
        if outcome == Outcome::Failed {
            self.fail_rollout(allocation);
        }
        self.rest(allocation, outcome);
    }

    /// A pause before the next one in its place.
    pub(super) fn rest(&mut self, allocation: &Allocation, outcome: Outcome) {
        let Some(record) = self.jobs.get(&allocation.job) else { return };
        let is_batch = matches!(record.job().kind, Kind::Batch { .. });
        let pauses = match outcome {
            Outcome::Failed | Outcome::Refused => true,
            Outcome::Finished => !is_batch,
            Outcome::Stopped | Outcome::Gone => false,
        };
        if pauses {
            let after = record.job().reschedule.pause(allocation.failures);
            self.resting.insert(allocation.id);
            self.arm(Timer::BackOff { allocation: allocation.id }, after);
        }
    }

    pub(super) fn rested(&mut self, id: AllocId) {
        self.resting.remove(&id);
        let Some(allocation) = self.allocations.get(&id) else { return };
        let (job, slot) = (allocation.job.clone(), allocation.slot.clone());
        self.mark(&job, &slot);
    }

    pub(super) fn not_healthy(&mut self, id: AllocId) {
        let Some(allocation) = self.allocations.get(&id) else { return };
        let under_way = |rollout| matches!(rollout, Rollout::UnderWay | Rollout::RollingBack);
        let job = self.jobs.get(&allocation.job);
        if allocation.phase != Phase::Starting || !job.is_some_and(|job| under_way(job.rollout)) {
            return;
        }
        let allocation = allocation.clone();
        self.stop(id, Why::Unhealthy);
        self.fail_rollout(&allocation);
    }

    pub(super) fn latest(&self, allocation: &Allocation) -> Option<AllocId> {
        self.places.get(&allocation.job)?.get(&allocation.slot).copied()
    }

    /// Nothing of it need be known.
    pub(super) fn erase(&mut self, id: AllocId) {
        let Some(allocation) = self.allocations.remove(&id) else { return };
        self.resting.remove(&id);
        self.touched.insert(Key::Allocation(id));
        if let Some(on) = self.on.get_mut(&allocation.node) {
            on.remove(&id);
        }
    }

    fn give_back_quota(&mut self, allocation: &Allocation) {
        if let Some(used) = self.used.get_mut(&allocation.namespace) {
            *used = used.less(allocation.request);
        }
    }

    pub(super) fn tell_run(&mut self, id: AllocId) {
        let Some(allocation) = self.allocations.get(&id) else { return };
        let versions = self.jobs.get(&allocation.job).map(|job| &job.versions);
        let Some(job) = versions.and_then(|all| all.get(&allocation.version)) else { return };
        let order = Order::Run {
            allocation: id,
            epoch: allocation.epoch(),
            payload: job.template.payload.clone(),
            is_pod: job.template.is_pod,
        };
        let node = allocation.node.clone();
        self.send(&node, order);
    }

    pub(super) fn tell_stop(&mut self, id: AllocId) {
        let Some(allocation) = self.allocations.get(&id) else { return };
        let preempted = allocation.phase == Phase::Stopping(Why::Preempted);
        let (node, task) = (allocation.node.clone(), allocation.task());
        self.send(&node, Order::Stop { task, preempted });
    }

    pub(super) fn tell_forget(&mut self, id: AllocId) {
        let Some(allocation) = self.allocations.get(&id) else { return };
        let (node, task) = (allocation.node.clone(), allocation.task());
        self.send(&node, Order::Forget { task });
    }
}
