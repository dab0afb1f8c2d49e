//! Going on from what was written down.

use super::{Core, Effect, Member, Settings, Timer};
use crate::model::{Allocation, Key, Node, Phase, Record, Rollout, Template};

impl Core {
    /// Go on from these records, or begin with none. The effects are to be carried out first: the first of them saves the
    /// new epoch, and all that is sent waits for that. Nodes have two leases, from now on, to come.
    #[must_use]
    pub fn recover(settings: Settings, records: Vec<Record>) -> (Self, Vec<Effect>) {
        let epochs = records.iter().filter_map(|record| match record {
            Record::Epoch(epoch) => Some(*epoch),
            _ => None,
        });
        let mut core = Self::empty(settings, epochs.max().unwrap_or_default() + 1);
        core.touched.insert(Key::Epoch);
        let mut allocations = Vec::new();
        for record in records {
            match record {
                Record::Epoch(_) | Record::Token(_) | Record::Withdrawal(_) => {}
                Record::Node(node) => core.expect(node),
                Record::Job(job) => {
                    core.jobs.insert(job.id.clone(), *job);
                }
                Record::Allocation(allocation) => allocations.push(*allocation),
                Record::Quota(namespace, most) => {
                    core.quotas.insert(namespace, most);
                }
            }
        }
        // The latest of a place is the last to be put there.
        allocations.sort_by_key(|allocation| allocation.id);
        for allocation in allocations {
            core.restore(&allocation);
        }
        for job in core.jobs.keys().cloned().collect::<Vec<_>>() {
            core.mark_all(&job);
        }
        core.stirred = true;
        let effects = core.conclude();
        (core, effects)
    }

    fn expect(&mut self, node: Node) {
        let id = node.id.clone();
        self.pool.set_node(&id, &node.machine, false);
        if node.drain.on {
            self.draining.insert(id.clone());
        }
        let member = Member { node, session: None, watched: 0, silent: false, silences: 0 };
        self.nodes.insert(id.clone(), member);
        self.bound_drain(&id);
        // Agents pause for half a lease between two tries, and a try may take a whole one.
        let silence = self.settings.lease * 2;
        self.effects.push(Effect::Watch { node: id, session: 0, silence });
    }

    fn restore(&mut self, allocation: &Allocation) {
        self.adopt(allocation.clone());
        if let Phase::Ended(outcome) = allocation.phase {
            return self.rest(allocation, outcome);
        }
        self.hold(allocation);
        self.forgive_later(allocation);
        let record = self.jobs.get(&allocation.job);
        let gate = record.filter(|r| r.stable.is_some() && r.rollout != Rollout::Done);
        if let Some(after) = gate.map(|record| record.job().update.healthy_within)
            && allocation.phase == Phase::Starting
        {
            self.arm(Timer::Healthy { allocation: allocation.id }, after);
        }
    }

    /// Failures of before are forgotten again some day.
    fn forgive_later(&mut self, allocation: &Allocation) {
        let Some(record) = self.jobs.get(&allocation.job) else { return };
        let after = record.job().reschedule.most;
        if allocation.phase == Phase::Ready && allocation.failures > 0 {
            self.arm(Timer::Forgive { allocation: allocation.id }, after);
        }
    }

    /// What it holds on its node, which its version says no more than it does itself.
    fn hold(&mut self, allocation: &Allocation) {
        let mut template = Template {
            request: allocation.request,
            ports: allocation.ports.clone(),
            ..Template::default()
        };
        template.rules.revocable = allocation.revocable;
        let Allocation { id, node, job, priority, .. } = allocation;
        self.pool.take(*id, node, job, &template, *priority);
        if !allocation.phase.is_wanted() {
            self.pool.leave(*id, node);
        }
    }
}
