use std::time::Duration;

use crate::core::{Core, Effect, Task};
use crate::task::{Attempt, Exit, Phase, Reason, Record, TaskId};

/// A record that was found on the disk, and what is found of the container of its attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    pub record: Record,
    pub evidence: Evidence,
    /// The record is of an earlier boot: of that nothing runs any more.
    pub rebooted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// No container, no keeper, no record of an end.
    Nothing,
    Running {
        ran: Duration,
    },
    Exited(Exit),
    /// There is something, and what it is cannot be told.
    Unclear {
        why: String,
    },
}

/// A container on this machine with our mark.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    pub id: TaskId,
    pub attempt: Attempt,
}

impl Core {
    /// Go on after a crash: what was written down, united with what is found. What nobody has written down is nobody's,
    /// and is released. Whoever calls it has made sure that no launch of before is still under way.
    #[must_use]
    pub fn recover(recovered: Vec<Recovered>, found: &[Found]) -> (Self, Vec<Effect>) {
        let mut core = Self::default();
        let mut effects = Vec::new();
        for Recovered { record, evidence, rebooted } in recovered {
            let mut task = Task::new(record);
            effects.extend(task.resend());
            effects.extend(task.go_on(evidence, rebooted));
            core.tasks.insert(task.id(), task);
        }
        let is_known = |container: &&Found| {
            core.tasks.get(&container.id).is_some_and(|t| t.record.attempt == container.attempt)
        };
        let orphans = found.iter().filter(|container| !is_known(container)).cloned();
        effects.extend(orphans.map(|Found { id, attempt }| Effect::Release { id, attempt }));
        (core, effects)
    }
}

impl Task {
    /// All that this does without a new record was held back by the record that is there.
    fn go_on(&mut self, evidence: Evidence, rebooted: bool) -> Vec<Effect> {
        match &self.record.phase {
            Phase::Staging => vec![Effect::Stage { id: self.id() }],
            Phase::Waiting => vec![self.pause()],
            Phase::Releasing { .. } => vec![self.release()],
            Phase::Ended(_) | Phase::Lost => Vec::new(),
            Phase::Starting | Phase::Running | Phase::Killing { .. } => {
                self.go_on_alive(evidence, rebooted)
            }
        }
    }

    fn go_on_alive(&mut self, evidence: Evidence, rebooted: bool) -> Vec<Effect> {
        let (attempt, phase) = (self.record.attempt, self.record.phase.clone());
        match (evidence, phase) {
            (Evidence::Exited(exit), _) => self.exited(attempt, Reason::Exited(exit)),
            // What was starting may have run as well.
            (Evidence::Nothing, Phase::Starting | Phase::Running) if rebooted => {
                self.exited(attempt, Reason::Rebooted)
            }
            // Whoever launches it finds no other one: the name of an attempt is taken once.
            (Evidence::Nothing, Phase::Starting) if self.record.stop.is_none() => {
                vec![Effect::Launch { id: self.id(), attempt }]
            }
            (Evidence::Nothing, Phase::Running) => self.vanished(attempt),
            (Evidence::Nothing, _) => self.exited(attempt, Reason::Vanished),
            (Evidence::Running { ran }, Phase::Starting) => self.runs(ran),
            (Evidence::Running { ran }, Phase::Running) => {
                self.arm_longest(ran).into_iter().collect()
            }
            (Evidence::Running { .. }, phase) => {
                self.killing(phase == Phase::Killing { forced: true })
            }
            // Whatever it is, it is to end.
            (Evidence::Unclear { .. }, Phase::Killing { forced }) => self.killing(forced),
            (Evidence::Unclear { .. }, Phase::Starting) if self.record.stop.is_some() => {
                self.runs(Duration::ZERO)
            }
            (Evidence::Unclear { why }, _) => self.lose(Reason::Unclear { why }),
        }
    }
}
