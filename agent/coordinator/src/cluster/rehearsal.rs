//! What would become of a job, if all went well.

use std::collections::BTreeMap;

use super::{Core, Rejected};
use crate::assign::Why;
use crate::model::{AllocId, Job, NodeId, Outcome, Phase, Slot, Version};

/// Steps of an update that are gone through; what comes after them is not told.
const STEPS: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rehearsed {
    pub version: Version,
    /// Places that would get a node, or would wait for one and why (without a reason: for others to leave).
    pub places: BTreeMap<Slot, Result<NodeId, Option<Why>>>,
    /// Instances of it that would be stopped.
    pub stops: Vec<AllocId>,
    /// Instances of others that would be pushed out.
    pub pushed: Vec<AllocId>,
}

impl Core {
    /// Take the job on and go through it: what is stopped ends at once, what is placed is ready at once.
    ///
    /// # Errors
    /// As [`Core::submit`].
    pub fn rehearse(mut self, job: Job) -> Result<Rehearsed, Rejected> {
        let id = job.id.clone();
        let before = self.allocations.clone();
        self.submit(job)?;
        let mut stopped: Vec<AllocId> = Vec::new();
        for _ in 0..STEPS {
            let wanted = |core: &Self, phase: fn(Phase) -> bool| {
                let moves = core.allocations.values().filter(|one| phase(one.phase));
                moves.map(|one| one.id).collect::<Vec<_>>()
            };
            let ends = wanted(&self, |phase| matches!(phase, Phase::Stopping(_)));
            let mut begins = wanted(&self, |phase| phase == Phase::Starting);
            begins.retain(|one| self.allocations[one].job == id && !before.contains_key(one));
            if ends.is_empty() && begins.is_empty() {
                break;
            }
            for one in ends {
                stopped.push(one);
                self.end(one, Outcome::Stopped);
            }
            for one in begins {
                self.ready(one);
            }
            self.conclude();
        }
        // What was on its way out before is nothing that follows.
        stopped.retain(|one| before.get(one).is_some_and(|one| one.phase.is_wanted()));
        let (stops, pushed) = stopped.into_iter().partition(|one| before[one].job == id);
        let version = self.jobs.get(&id).map_or(1, |record| record.version);
        let new = self.places(&id).filter(|(_, one)| !before.contains_key(&one.id));
        let placed = new.map(|(slot, one)| (slot.clone(), Ok(one.node.clone())));
        let waits = self.waiting.get(&id).into_iter().flatten();
        let waits = waits.map(|(slot, why)| (slot.clone(), Err(why.as_deref().cloned())));
        let places = waits.chain(placed).collect();
        Ok(Rehearsed { version, places, stops, pushed })
    }
}
