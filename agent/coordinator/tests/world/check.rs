//! What must hold, always and in the end.

use std::collections::{BTreeMap, BTreeSet};

use hafen_coordinator::cluster::{Change, Core, Order};
use hafen_coordinator::model::{
    Allocation, Amounts, JobId, Key, Kind, Namespace, Node, NodeId, Outcome, Phase, Record,
    Rollout, allocation_of, task_name,
};

use super::{FAILS, NEVER_READY, World, agent_of};

impl World {
    pub(crate) fn allocation(&self, task: &str) -> Option<&Allocation> {
        match self.disk.get(&Key::Allocation(allocation_of(task)?))? {
            Record::Allocation(allocation) => Some(allocation),
            _ => None,
        }
    }

    /// One save, all of it or nothing.
    pub(crate) fn save(&mut self, changes: Vec<Change>) {
        let is_bounded = |change: &Change| matches!(change, Change::Put(Record::Allocation(one)) if one.namespace.0 == "bounded");
        let has_bounded = changes.iter().any(is_bounded);
        for change in changes {
            match change {
                Change::Put(record) => {
                    self.check_record(&record);
                    self.disk.insert(record.key(), record);
                }
                Change::Erase(key) => {
                    self.disk.remove(&key);
                    self.erased.insert(key);
                }
            }
        }
        if has_bounded {
            self.check_quota();
        }
    }

    /// Every update is applied, and in order.
    fn check_record(&self, record: &Record) {
        let Record::Allocation(new) = record else { return };
        assert!(!self.erased.contains(&record.key()), "{} comes again", new.id);
        let old = self.allocation(&new.task()).map_or(0, |old| old.sequence);
        assert!(
            new.sequence == old || new.sequence == old + 1,
            "{}: {old} to {}",
            new.id,
            new.sequence
        );
    }

    fn check_quota(&self) {
        let bounded = Namespace("bounded".to_owned());
        let Some(Record::Quota(_, most)) = self.disk.get(&Key::Quota(bounded.clone())) else {
            return;
        };
        let sum = self
            .on_disk()
            .filter(|one| one.namespace == bounded)
            .filter(|one| !matches!(one.phase, Phase::Ended(_) | Phase::Abandoned));
        let sum = sum.fold(Amounts::default(), |sum, one| sum.plus(one.request));
        assert!(sum.fits(most), "the quota is exceeded: {sum:?}");
    }

    fn on_disk(&self) -> impl Iterator<Item = &Allocation> {
        self.disk.values().filter_map(|record| match record {
            Record::Allocation(allocation) => Some(&**allocation),
            _ => None,
        })
    }

    /// Nothing is said before the reason for it is written down.
    pub(crate) fn check_order(&self, node: &NodeId, order: &Order) {
        let epoch = self.core.as_ref().map_or(0, Core::epoch);
        let saved =
            matches!(self.disk.get(&Key::Epoch), Some(Record::Epoch(saved)) if *saved == epoch);
        assert!(saved, "sent before its epoch is saved");
        assert!(self.disk.contains_key(&Key::Node(node.clone())), "{node} is not written down");
        match order {
            Order::Run { allocation, .. } => {
                let known = self.disk.contains_key(&Key::Allocation(*allocation));
                let gone = self.erased.contains(&Key::Allocation(*allocation));
                assert!(known || gone, "{allocation} runs before it is written down");
            }
            Order::Stop { task, .. } => {
                let saved = self.allocation(task).filter(|one| one.node == *node);
                assert!(
                    saved.is_none_or(|one| !one.phase.is_wanted()),
                    "{task}: stopped too early"
                );
            }
            Order::Acknowledge { task, sequence } => {
                let saved = self.allocation(task).filter(|one| one.node == *node);
                assert!(
                    saved.is_none_or(|one| one.sequence >= *sequence),
                    "{task}: not written down"
                );
            }
            Order::Forget { task } => {
                let saved = self.allocation(task);
                assert!(
                    saved.is_none_or(|one| one.phase.has_ended()),
                    "{task}: forgotten too early"
                );
            }
            Order::Welcome { .. } | Order::Drain(_) => {}
        }
    }

    /// A container starts.
    pub(crate) fn check_start(&self, index: usize, name: &str, new: &Allocation) {
        let agent = &self.agents[index];
        assert!(!agent.past.contains(name), "{name} is started once more");
        assert_eq!(agent_of(&new.node), index, "{name} is started elsewhere");
        if new.fence.is_some() {
            for (other, agent) in self.agents.iter().enumerate() {
                let twin = agent.tasks.values().find(|task| {
                    task.runs && task.allocation.job == new.job && task.allocation.slot == new.slot
                });
                assert!(
                    twin.is_none(),
                    "{}: {name} on {index} while {twin:?} runs on {other} at {}",
                    new.job,
                    self.now
                );
            }
        }
        let running = agent.tasks.values().filter(|task| task.runs);
        let sum = running.fold(new.request, |sum, task| sum.plus(task.allocation.request));
        assert!(sum.cpu_milli <= self.plan.cpu_milli, "{index} is over-allocated: {sum:?}");
        let ports = agent.tasks.values().filter(|task| task.runs).flat_map(|t| &t.allocation.ports);
        assert_eq!(ports.filter(|port| new.ports.contains(port)).count(), 0, "a port is taken");
    }

    /// When all is healed and at rest: what is wanted runs, and nothing else.
    pub(crate) fn check_the_end(&self) {
        let core = self.core.as_ref().expect("it is healed");
        self.check_that_all_is_heard();
        let mut running: BTreeMap<(JobId, String), u32> = BTreeMap::new();
        for task in
            self.agents.iter().flat_map(|agent| agent.tasks.values()).filter(|task| task.runs)
        {
            let slot = task.allocation.slot.to_string();
            *running.entry((task.allocation.job.clone(), slot)).or_default() += 1;
            let broken = [FAILS, NEVER_READY].contains(&task.behaviour);
            let has_stable =
                core.jobs().any(|job| job.id == task.allocation.job && job.stable.is_some());
            assert!(
                !broken || !has_stable || self.plan.tight,
                "what never works was not rolled back: {task:?}"
            );
        }
        for ((job, slot), count) in &running {
            assert_eq!(*count, 1, "{job} {slot} runs {count} times");
        }
        self.check_disk(core);
        for record in core.jobs() {
            let mine = running.keys().filter(|(job, _)| *job == record.id).count();
            self.check_job(core, &record.id, mine);
        }
        let strangers: Vec<_> =
            running.keys().filter(|(job, _)| core.jobs().all(|known| known.id != *job)).collect();
        assert!(strangers.is_empty(), "{strangers:?}");
    }

    fn check_that_all_is_heard(&self) {
        let living = self.agents.iter().enumerate().filter(|(n, _)| self.dead != Some(*n));
        for (index, agent) in living {
            assert!(
                agent.stream.as_ref().is_some_and(|stream| stream.welcomed),
                "{index} is alone"
            );
            for (name, task) in &agent.tasks {
                assert!(task.unheard.is_empty(), "{index} {name}: not heard {:?}", task.unheard);
                let kept = self.allocation(name).is_some();
                assert!(task.runs || kept, "{index} {name}: nobody forgets it");
            }
        }
    }

    /// What is on the disk is what a core that recovers from it has.
    fn check_disk(&self, core: &Core) {
        let known: BTreeSet<String> = core.allocations().map(Allocation::task).collect();
        let saved: BTreeSet<String> = self.on_disk().map(|one| task_name(one.id)).collect();
        assert_eq!(known, saved);
        let is_dead = |one: &&Allocation| self.dead == Some(agent_of(&one.node));
        for one in core.allocations().filter(|one| !is_dead(one)) {
            assert_ne!(one.phase, Phase::Abandoned, "{one:?}: all nodes are back");
        }
    }

    fn check_job(&self, core: &Core, id: &JobId, running: usize) {
        let record = core.jobs().find(|record| record.id == *id).expect("it is there");
        if record.stopped {
            return assert_eq!(running, 0, "{id} is stopped");
        }
        let behaviour = record.job().template.payload[0];
        // Without room none of them may have been tried.
        if [FAILS, NEVER_READY].contains(&behaviour) {
            if self.plan.tight {
                return;
            }
            return assert_eq!(record.stable, None, "{id}: was not rolled back");
        }
        let waiting: Vec<String> = core
            .waiting()
            .map(|(job, slot, why)| {
                format!("{job} {slot}: {}", why.map(ToString::to_string).unwrap_or_default())
            })
            .collect();
        // A wish that the coordinator died of before it was written down was not answered.
        let is_dead = |node: &Node| self.dead == Some(agent_of(&node.id));
        let nodes = core.nodes().filter(|(node, _)| !node.drain.on && !is_dead(node)).count();
        let wanted = match record.job().kind {
            Kind::Replicas(_) if id.0 == "bounded" => 3,
            Kind::Replicas(count) => count as usize,
            Kind::OnePerNode => nodes,
            Kind::Batch { runs, .. } => {
                return self.check_batch(core, id, runs, waiting.is_empty());
            }
        };
        // Without room for all, the most urgent have theirs.
        let is_urgent = id.0 == "urgent" && core.nodes().all(|(node, _)| !node.drain.on);
        if !self.plan.tight || is_urgent {
            assert_eq!(running, wanted, "{id} {:?}; waiting: {waiting:?}", record.rollout);
            let is_done = id.0 == "bounded"
                || self.dead.is_some() && id.0 == "everywhere"
                || record.rollout == Rollout::Done;
            assert!(is_done, "{id}: {:?}", record.rollout);
        } else {
            let waits = core.waiting().filter(|(job, _, _)| *job == id).count();
            assert!(running + waits >= wanted, "{id}: {running} run, {waits} wait");
        }
    }

    fn check_batch(&self, core: &Core, id: &JobId, runs: u32, settled: bool) {
        let done = core.places(id).filter(|(_, one)| one.phase == Phase::Ended(Outcome::Finished));
        assert!(!settled || done.count() == runs as usize, "{id} is not done");
    }
}
