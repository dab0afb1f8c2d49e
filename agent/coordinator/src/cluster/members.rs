//! Nodes that come, fall silent and return.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Core, Effect, Held, Hello, Member, Order, Refusal, Session, Timer};
use crate::model::{
    AllocId, Allocation, Amounts, Drain, Key, Node, NodeId, Outcome, Part, Phase, Seen, Slot, Why,
    allocation_of, part_of, task_name,
};

/// How much slower than ours the clock of a machine may run, in hundredths.
const DRIFT: u32 = 1;

impl Core {
    pub(super) fn hello(&mut self, session: Session, hello: Hello) {
        if let Some(refused) = self.refusal(&hello) {
            let refused = Some(refused);
            return self.effects.push(Effect::Close { node: hello.node, session, refused });
        }
        let id = hello.node.clone();
        self.enter(session, &hello);
        self.welcome(&id, &hello.held);
        self.compare_all(&id, &hello.held);
        self.stirred = true;
        let everywhere = self.jobs.values().filter(|job| job.job().kind.is_one_per_node());
        for job in everywhere.map(|job| job.id.clone()).collect::<Vec<_>>() {
            self.mark(&job, &Slot::Node(id.clone()));
        }
    }

    pub(super) fn listed(&mut self, node: &NodeId, session: Session, held: &[Held]) {
        if self.nodes.get(node).is_some_and(|member| member.session == Some(session)) {
            self.compare_all(node, held);
        }
    }

    fn compare_all(&mut self, node: &NodeId, all: &[Held]) {
        self.dismiss(node, all);
        let held = all.iter().map(|held| (held.task.as_str(), held.seen)).collect();
        for allocation in self.on.get(node).cloned().unwrap_or_default() {
            self.compare(allocation, &held);
        }
    }

    fn refusal(&self, hello: &Hello) -> Option<Refusal> {
        if hello.epoch_seen > self.epoch {
            return Some(Refusal::Epoch);
        }
        let known = &self.nodes.get(&hello.node)?.node;
        if known.instance != hello.instance {
            return Some(Refusal::Taken);
        }
        let later = (known.incarnation, known.connection) >= (hello.incarnation, hello.connection);
        later.then_some(Refusal::Stale)
    }

    fn enter(&mut self, session: Session, hello: &Hello) {
        let before = self.nodes.get(&hello.node);
        let drain = before.map_or_else(Drain::default, |member| member.node.drain);
        let silences = before.map_or(0, |member| member.silences);
        let old = before.and_then(|member| member.session);
        let node = Node {
            id: hello.node.clone(),
            instance: hello.instance.clone(),
            incarnation: hello.incarnation,
            connection: hello.connection,
            machine: hello.machine.clone(),
            drain,
        };
        self.pool.set_node(&node.id, &node.machine, !drain.on);
        let id = node.id.clone();
        let session_of = Some(session);
        let member =
            Member { node, session: session_of, watched: session, silent: false, silences };
        self.nodes.insert(id.clone(), member);
        self.touched.insert(Key::Node(id.clone()));
        if let Some(session) = old {
            self.effects.push(Effect::Close { node: id.clone(), session, refused: None });
        }
        let silence = self.settings.lease;
        self.effects.push(Effect::Watch { node: id, session, silence });
    }

    fn welcome(&mut self, node: &NodeId, held: &[Held]) {
        let known = held.iter().filter_map(|held| {
            let (allocation, member) = self.part_on(node, &held.task)?;
            let sequence = member.map_or(allocation.sequence, |member| member.sequence);
            Some((held.task.clone(), sequence))
        });
        let acknowledged = known.collect();
        self.send(node, Order::Welcome { acknowledged });
        if self.nodes[node].node.drain.on {
            self.send(node, Order::Drain(true));
        }
    }

    /// What nobody knows of is nobody's.
    fn dismiss(&mut self, node: &NodeId, held: &[Held]) {
        for Held { task, seen } in held {
            if self.part_on(node, task).is_none() {
                self.send_away(node, task, *seen);
            }
        }
    }

    pub(super) fn send_away(&mut self, node: &NodeId, task: &str, seen: Seen) {
        // Tasks of a pod end and go together.
        let task = part_of(task).map_or_else(|| task.to_owned(), |(id, _)| task_name(id));
        let order = if seen.is_end() {
            Order::Forget { task }
        } else {
            Order::Stop { task, preempted: false }
        };
        self.send(node, order);
    }

    /// What has updates of its own: a task, or one of a pod.
    pub(super) fn part_on(
        &self,
        node: &NodeId,
        task: &str,
    ) -> Option<(&Allocation, Option<&Part>)> {
        let (id, member) = part_of(task)?;
        let allocation = self.allocations.get(&id).filter(|one| one.node == *node)?;
        match member {
            Some(name) => Some((allocation, Some(allocation.members.get(name)?))),
            None => allocation.members.is_empty().then_some((allocation, None)),
        }
    }

    pub(super) fn known_on(&self, node: &NodeId, task: &str) -> Option<&Allocation> {
        let allocation = self.allocations.get(&allocation_of(task)?)?;
        (allocation.node == *node).then_some(allocation)
    }

    /// What is wanted there, and what the node says.
    fn compare(&mut self, id: AllocId, held: &BTreeMap<&str, Seen>) {
        let Some(allocation) = self.allocations.get(&id) else { return };
        let (phase, confirmed) = (allocation.phase, allocation.confirmed);
        let task = allocation.task();
        let of_pod = |name: &String| held.get(format!("{task}.{name}").as_str());
        let seen = held.get(task.as_str()).or_else(|| allocation.members.keys().find_map(of_pod));
        match (seen, phase) {
            (Some(_), Phase::Ended(_)) => self.tell_forget(id),
            (None, Phase::Ended(_)) => {}
            (Some(_), Phase::Starting | Phase::Ready) => self.confirm(id),
            (Some(_), Phase::Stopping(_) | Phase::Abandoned) => {
                self.confirm(id);
                self.tell_stop(id);
            }
            // It never came there: what was sent on an earlier stream is void.
            (None, Phase::Starting | Phase::Ready) if !confirmed => self.tell_run(id),
            (None, _) => self.end(id, Outcome::Gone),
        }
    }

    pub(super) fn closed(&mut self, node: &NodeId, session: Session) {
        let Some(member) = self.nodes.get_mut(node) else { return };
        if member.session == Some(session) {
            member.session = None;
            self.pool.open(node, false);
        }
    }

    /// Its lease has ended: what is there is given up after the grace of its job.
    pub(super) fn silent(&mut self, node: &NodeId, session: Session) {
        let Some(member) = self.nodes.get_mut(node) else { return };
        if member.watched != session || member.silent {
            return;
        }
        member.silent = true;
        member.silences += 1;
        let since = member.silences;
        if let Some(session) = member.session.take() {
            self.effects.push(Effect::Close { node: node.clone(), session, refused: None });
        }
        self.pool.open(node, false);
        for id in self.on.get(node).cloned().unwrap_or_default() {
            let Some(after) = self.grace(id) else { continue };
            self.arm(Timer::Replace { allocation: id, session, since }, after);
        }
    }

    /// Until an allocation may be given up; none that is bound to its node is.
    fn grace(&self, id: AllocId) -> Option<Duration> {
        let allocation = self.allocations.get(&id)?;
        let is_bound = matches!(allocation.slot, Slot::Node(_));
        if is_bound || allocation.phase.has_ended() || allocation.phase == Phase::Abandoned {
            return None;
        }
        let chosen = self.jobs.get(&allocation.job).map_or(Duration::ZERO, |job| job.job().grace);
        Some(chosen.max(self.until_fenced(allocation)))
    }

    /// From the silence on, until its node has stopped what must never run twice. The agent counts from the sending of a
    /// message that we have received, so before us: clocks are not compared, only how fast they run.
    fn until_fenced(&self, allocation: &Allocation) -> Duration {
        let Some(fence) = allocation.fence else { return Duration::ZERO };
        let settings = &self.settings;
        // Later than that it takes no order to run it, whether its lease has ended or not.
        let stops = fence.stop_after_disconnect + fence.kill_grace;
        (stops + stops * DRIFT / 100 + settings.margin).saturating_sub(settings.lease)
    }

    pub(super) fn give_away(&mut self, id: AllocId, session: Session, since: u64) {
        let Some(allocation) = self.allocations.get(&id) else { return };
        let Some(member) = self.nodes.get(&allocation.node) else { return };
        // A timer of an earlier silence says nothing of this one.
        if !member.silent || member.watched != session || member.silences != since {
            return;
        }
        if allocation.phase.is_wanted() || matches!(allocation.phase, Phase::Stopping(_)) {
            self.abandon(id);
        }
    }

    pub(super) fn drain(&mut self, node: &NodeId, on: bool, within: Option<Duration>) {
        let Some(member) = self.nodes.get_mut(node) else { return };
        let before = member.node.drain;
        let within = within.filter(|_| on);
        if (before.on, before.within) == (on, within) {
            return;
        }
        member.node.drain = Drain { on, within, overdue: false };
        self.touched.insert(Key::Node(node.clone()));
        self.bound_drain(node);
        if before.on != on {
            self.turn_drain(node, on);
        }
    }

    /// From now on, also where it had begun before: there is no clock. A timer of before is replaced, or finds no bound.
    pub(super) fn bound_drain(&mut self, node: &NodeId) {
        let drain = self.nodes.get(node).map_or_else(Drain::default, |member| member.node.drain);
        if let Some(after) = drain.within.filter(|_| !drain.overdue) {
            self.arm(Timer::Drain { node: node.clone() }, after);
        }
    }

    fn turn_drain(&mut self, node: &NodeId, on: bool) {
        let Some(member) = self.nodes.get(node) else { return };
        let is_here = member.session.is_some();
        if on {
            self.draining.insert(node.clone())
        } else {
            self.draining.remove(node)
        };
        self.pool.open(node, is_here && !on);
        self.send(node, Order::Drain(on));
        self.stirred = true;
        self.mark_jobs_on(node);
    }

    /// Whatever of jobs has to stay in place is not looked at any more: what is still wanted there is stopped.
    pub(super) fn drain_is_over(&mut self, node: &NodeId) {
        let on = self.on.get(node).into_iter().flatten();
        let here = on.filter_map(|id| self.allocations.get(id));
        let left: Vec<AllocId> =
            here.filter(|one| one.phase.is_wanted()).map(|one| one.id).collect();
        let Some(member) = self.nodes.get_mut(node) else { return };
        let drain = &mut member.node.drain;
        if drain.within.is_none() || drain.overdue || left.is_empty() {
            return;
        }
        drain.overdue = true;
        self.touched.insert(Key::Node(node.clone()));
        for id in left {
            self.stop(id, Why::Overdue);
        }
    }

    fn mark_jobs_on(&mut self, node: &NodeId) {
        let on = self.on.get(node).into_iter().flatten();
        let here = on.filter_map(|id| self.allocations.get(id)).map(|allocation| &allocation.job);
        let everywhere = self.jobs.values().filter(|job| job.job().kind.is_one_per_node());
        let jobs: BTreeSet<_> = here.chain(everywhere.map(|job| &job.id)).cloned().collect();
        jobs.iter().for_each(|job| self.mark_all(job));
    }

    pub(super) fn remove(&mut self, node: &NodeId) {
        if self.nodes.get(node).is_none_or(|member| member.session.is_some()) {
            return;
        }
        self.mark_jobs_on(node);
        for id in self.on.get(node).cloned().unwrap_or_default() {
            self.end(id, Outcome::Gone);
        }
        self.nodes.remove(node);
        self.draining.remove(node);
        self.touched.insert(Key::Node(node.clone()));
        self.pool.remove(node);
    }

    /// Under pressure those go first that took only what was idle: one with each report, the largest of the least priority.
    pub(super) fn report(&mut self, node: &NodeId, session: Session, idle: Amounts, pressed: bool) {
        if self.nodes.get(node).is_none_or(|member| member.session != Some(session)) {
            return;
        }
        self.pool.set_idle(node, if pressed { Amounts::default() } else { idle });
        self.stirred = true;
        if !pressed {
            return;
        }
        let on = self.on.get(node).into_iter().flatten();
        let here = on.filter_map(|id| self.allocations.get(id));
        let revocable = here.filter(|one| one.revocable && one.phase.is_wanted());
        let first = revocable
            .min_by_key(|one| (one.priority, std::cmp::Reverse(one.request.memory), one.id));
        if let Some(id) = first.map(|allocation| allocation.id) {
            self.stop(id, Why::Preempted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Event, Settings};
    use crate::model::Machine;

    #[test]
    fn only_a_change_of_a_drain_is_saved() {
        let (mut core, _) = Core::recover(Settings::default(), Vec::new());
        let node = NodeId("n1".to_owned());
        let hello = Hello {
            node: node.clone(),
            instance: "i".to_owned(),
            incarnation: 1,
            connection: 1,
            epoch_seen: 0,
            machine: Machine::default(),
            held: Vec::new(),
        };
        core.step(Event::Hello { session: 1, hello });
        let mut saves = |on, minutes: Option<u64>| {
            let before = core.revision();
            let within = minutes.map(|minutes| Duration::from_secs(minutes * 60));
            core.step(Event::Drain { node: node.clone(), on, within });
            core.revision() - before
        };
        // A bound of what is not drained says nothing.
        assert_eq!([saves(false, None), saves(false, Some(1))], [0, 0]);
        assert_eq!([saves(true, None), saves(true, None)], [1, 0]);
        assert_eq!([saves(true, Some(1)), saves(true, Some(1)), saves(true, Some(2))], [1, 0, 1]);
        assert_eq!([saves(false, None), saves(false, None), saves(false, Some(1))], [1, 0, 0]);
    }
}
