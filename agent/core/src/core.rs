use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::task::{
    Attempt, Definition, Exit, Next, Phase, Reason, Record, Refusal, Restart, State, Stop, TaskId,
    Update,
};

/// Between two kills of what does not die: it may be stuck in the kernel.
pub(crate) const KILL_AGAIN: Duration = Duration::from_secs(10);
/// Who has so many updates of which nobody has taken note is not started again, and not told to be ready or not, until
/// somebody has.
const MOST_UPDATES: usize = 1_000;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The record with this revision, or a later one, is on the disk.
    Saved {
        id: TaskId,
        revision: u64,
    },
    Staged {
        id: TaskId,
        result: Result<(), String>,
    },
    /// The container runs, or it does not exist.
    Launched {
        id: TaskId,
        attempt: Attempt,
        result: Result<(), Refusal>,
    },
    Exited {
        id: TaskId,
        attempt: Attempt,
        exit: Exit,
    },
    /// There is no container any more, and no record of its end.
    Vanished {
        id: TaskId,
        attempt: Attempt,
    },
    /// Nothing is left of the container, its record of an end included.
    Released {
        id: TaskId,
        attempt: Attempt,
    },
    Stop {
        id: TaskId,
        why: Stop,
        /// In place of the task's own.
        grace: Option<Duration>,
    },
    Elapsed {
        id: TaskId,
        attempt: Attempt,
        timer: Timer,
    },
    /// Its checks say that it can be used, or that it cannot.
    Turned {
        id: TaskId,
        attempt: Attempt,
        ready: bool,
    },
    /// Somebody has taken note of all updates up to this one.
    Acknowledged {
        id: TaskId,
        sequence: u64,
    },
    /// Whoever listens has come (again), or has been silent for long.
    Resend,
    /// Nobody wants to know of the task any more.
    Forget {
        id: TaskId,
    },
}

/// What is to be done. Each may be done again after a crash, and then changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write the record down, and say so.
    Save(Record),
    /// The same, some time: nothing waits for it, and the next record will do as well.
    SaveSoon(Record),
    /// Have ready what a container needs.
    Stage {
        id: TaskId,
    },
    /// Make the container of this attempt; one that is there already is no failure.
    Launch {
        id: TaskId,
        attempt: Attempt,
    },
    /// Ask it to end.
    Signal {
        id: TaskId,
        attempt: Attempt,
    },
    /// End it.
    Kill {
        id: TaskId,
        attempt: Attempt,
    },
    /// Leave nothing of it.
    Release {
        id: TaskId,
        attempt: Attempt,
    },
    Send {
        id: TaskId,
        update: Update,
    },
    /// Begin to wait; a timer of the same kind and task is replaced.
    Arm {
        id: TaskId,
        attempt: Attempt,
        timer: Timer,
        after: Duration,
    },
    /// Remove the record.
    Erase {
        id: TaskId,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// Until it is killed.
    Grace,
    /// Until it is killed once more.
    KillAgain,
    /// Until it has run too long.
    Longest,
    /// Until the next start.
    BackOff,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("there is a task {0} already")]
    Exists(TaskId),
}

/// A task in memory.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) record: Record,
    /// What waits for the disk, and for which revision.
    held: VecDeque<(u64, Vec<Effect>)>,
    /// The last revision that is on the disk.
    saved: u64,
}

/// All tasks of a node.
#[derive(Debug, Clone, Default)]
pub struct Core {
    pub(crate) tasks: BTreeMap<TaskId, Task>,
}

impl Core {
    /// Records of all tasks, by their names.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.tasks.values().map(|task| &task.record)
    }

    /// Take a task on.
    ///
    /// With `ready` there is nothing to stage: it starts at once.
    ///
    /// # Errors
    /// [`Refused::Exists`], whatever the task that is there: a name is used once.
    pub fn submit(
        &mut self,
        id: TaskId,
        definition: Definition,
        ready: bool,
    ) -> Result<Vec<Effect>, Refused> {
        if self.tasks.contains_key(&id) {
            return Err(Refused::Exists(id));
        }
        let record = Record {
            id: id.clone(),
            definition,
            revision: 0,
            attempt: 0,
            failures: 0,
            phase: Phase::Staging,
            stop: None,
            ready: false,
            sequence: 0,
            updates: VecDeque::new(),
        };
        let mut task = Task::new(record);
        let effects = if ready {
            // Acceptance and start are one record: that is one wait for the disk less.
            task.start()
        } else {
            task.tell(State::Staging, Reason::None);
            task.commit(vec![Effect::Stage { id: id.clone() }])
        };
        self.tasks.insert(id, task);
        Ok(effects)
    }

    /// Take back a task that could not be written down: nothing has been done for it yet.
    pub fn withdraw(&mut self, id: &TaskId) -> bool {
        let unsaved = self.tasks.get(id).is_some_and(|task| task.saved == 0);
        if unsaved {
            self.tasks.remove(id);
        }
        unsaved
    }

    /// The record of a task.
    #[must_use]
    pub fn record(&self, id: &TaskId) -> Option<&Record> {
        self.tasks.get(id).map(|task| &task.record)
    }

    /// What follows from what has happened. An event that is late, or of a task that is not known, changes nothing.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Resend => self.tasks.values().flat_map(Task::resend).collect(),
            Event::Forget { id } => self.forget(&id),
            Event::Saved { id, revision } => self.with(&id, |task| task.saved(revision)),
            Event::Staged { id, result } => self.with(&id, |task| task.staged(result)),
            Event::Launched { id, attempt, result } => {
                self.with(&id, |task| task.launched(attempt, result))
            }
            Event::Exited { id, attempt, exit } => {
                self.with(&id, |task| task.exited(attempt, Reason::Exited(exit)))
            }
            Event::Vanished { id, attempt } => self.with(&id, |task| task.vanished(attempt)),
            Event::Released { id, attempt } => self.with(&id, |task| task.released(attempt)),
            Event::Stop { id, why, grace } => self.with(&id, |task| task.stop(why, grace)),
            Event::Elapsed { id, attempt, timer } => {
                self.with(&id, |task| task.elapsed(attempt, timer))
            }
            Event::Turned { id, attempt, ready } => {
                self.with(&id, |task| task.turned(attempt, ready))
            }
            Event::Acknowledged { id, sequence } => {
                self.with(&id, |task| task.acknowledged(sequence))
            }
        }
    }

    fn with(&mut self, id: &TaskId, act: impl FnOnce(&mut Task) -> Vec<Effect>) -> Vec<Effect> {
        self.tasks.get_mut(id).map(act).unwrap_or_default()
    }

    /// Only what has ended, and of which everybody knows, can be forgotten.
    fn forget(&mut self, id: &TaskId) -> Vec<Effect> {
        let over = |task: &Task| {
            matches!(task.record.phase, Phase::Ended(_)) && task.record.updates.is_empty()
        };
        if !self.tasks.get(id).is_some_and(over) {
            return Vec::new();
        }
        self.tasks.remove(id);
        vec![Effect::Erase { id: id.clone() }]
    }
}

impl Task {
    pub(crate) fn new(record: Record) -> Self {
        let saved = record.revision;
        Self { record, held: VecDeque::new(), saved }
    }

    pub(crate) fn id(&self) -> TaskId {
        self.record.id.clone()
    }

    /// The record has changed: write it down, and hold what follows until that is done.
    pub(crate) fn commit(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        self.record.revision += 1;
        let revision = self.record.revision;
        let news = self.record.updates.iter().filter(|update| update.revision == revision);
        let send = news.map(|update| Effect::Send { id: self.id(), update: update.clone() });
        let all = effects.into_iter().chain(send).collect();
        self.held.push_back((revision, all));
        vec![Effect::Save(self.record.clone())]
    }

    /// News, to be sent once the next revision is saved.
    pub(crate) fn tell(&mut self, state: State, reason: Reason) {
        let record = &mut self.record;
        record.sequence += 1;
        record.updates.push_back(Update {
            sequence: record.sequence,
            attempt: record.attempt,
            state,
            reason,
            ready: state == State::Running && record.ready,
            revision: record.revision + 1,
        });
    }

    fn saved(&mut self, revision: u64) -> Vec<Effect> {
        self.saved = self.saved.max(revision);
        let mut effects = Vec::new();
        while self.held.front().is_some_and(|(wanted, _)| *wanted <= self.saved) {
            effects.extend(self.held.pop_front().into_iter().flat_map(|(_, held)| held));
        }
        effects
    }

    /// What is not on the disk yet is sent when it is.
    pub(crate) fn resend(&self) -> Vec<Effect> {
        let known = self.record.updates.iter().filter(|update| update.revision <= self.saved);
        known.map(|update| Effect::Send { id: self.id(), update: update.clone() }).collect()
    }

    fn acknowledged(&mut self, sequence: u64) -> Vec<Effect> {
        let before = self.record.updates.len();
        let told = self.record.updates.back().map(|update| update.ready);
        self.record.updates.retain(|update| update.sequence > sequence);
        if self.record.updates.len() == before {
            return Vec::new();
        }
        // There was no room to tell it.
        if self.record.phase == Phase::Running && told != Some(self.record.ready) {
            return self.tell_whether_ready();
        }
        // Lost in a crash, it only has news told once more.
        self.record.revision += 1;
        vec![Effect::SaveSoon(self.record.clone())]
    }

    fn turned(&mut self, attempt: Attempt, ready: bool) -> Vec<Effect> {
        let runs = self.record.phase == Phase::Running && attempt == self.record.attempt;
        if !runs || self.record.ready == ready {
            return Vec::new();
        }
        self.record.ready = ready;
        self.tell_whether_ready()
    }

    /// There is no bound to how often it turns: where nobody listens, the last one is told when somebody does.
    fn tell_whether_ready(&mut self) -> Vec<Effect> {
        if self.is_unheard() {
            return Vec::new();
        }
        self.tell(State::Running, Reason::None);
        self.commit(Vec::new())
    }

    fn is_unheard(&self) -> bool {
        self.record.updates.len() >= MOST_UPDATES
    }

    fn staged(&mut self, result: Result<(), String>) -> Vec<Effect> {
        match (&self.record.phase, result) {
            (Phase::Staging, Ok(())) => self.start(),
            (Phase::Staging, Err(why)) => self.end(State::Error, Reason::NotStaged { why }),
            _ => Vec::new(),
        }
    }

    /// The next attempt.
    fn start(&mut self) -> Vec<Effect> {
        self.record.attempt += 1;
        self.record.phase = Phase::Starting;
        self.tell(State::Starting, Reason::None);
        let launch = Effect::Launch { id: self.id(), attempt: self.record.attempt };
        self.commit(vec![launch])
    }

    fn launched(&mut self, attempt: Attempt, result: Result<(), Refusal>) -> Vec<Effect> {
        if self.record.phase != Phase::Starting || attempt != self.record.attempt {
            return Vec::new();
        }
        match result {
            Ok(()) => self.runs(Duration::ZERO),
            Err(refusal) => self.exited(attempt, Reason::NotLaunched(refusal)),
        }
    }

    /// It runs, and has for that long.
    pub(crate) fn runs(&mut self, ran: Duration) -> Vec<Effect> {
        if let Some(why) = self.record.stop.clone() {
            return self.ask(why);
        }
        self.record.phase = Phase::Running;
        self.record.ready = !self.record.definition.waits_for_checks;
        self.tell(State::Running, Reason::None);
        let arm = self.arm_longest(ran);
        self.commit(arm.into_iter().collect())
    }

    pub(crate) fn arm_longest(&self, ran: Duration) -> Option<Effect> {
        let longest = self.record.definition.longest?;
        Some(self.arm(Timer::Longest, longest.saturating_sub(ran)))
    }

    pub(crate) fn arm(&self, timer: Timer, after: Duration) -> Effect {
        Effect::Arm { id: self.id(), attempt: self.record.attempt, timer, after }
    }

    fn stop(&mut self, why: Stop, grace: Option<Duration>) -> Vec<Effect> {
        let is_final = |stop: &Stop| !stop.is_of_health() || why.is_of_health();
        if self.record.stop.as_ref().is_some_and(is_final) {
            return Vec::new();
        }
        let own = self.record.definition.grace;
        self.record.definition.grace = grace.unwrap_or(own);
        match self.record.phase {
            Phase::Staging | Phase::Waiting => {
                self.record.stop = Some(why.clone());
                self.end(State::Killed, Reason::Stopped { why, exit: None })
            }
            // It is not known yet whether there is something to stop.
            Phase::Starting => {
                self.record.stop = Some(why);
                self.commit(Vec::new())
            }
            Phase::Running => self.ask(why),
            Phase::Releasing { next: Next::Restart } => {
                self.record.stop = Some(why.clone());
                self.record.phase = Phase::Releasing { next: Next::End(State::Killed) };
                self.tell(State::Killed, Reason::Stopped { why, exit: None });
                self.commit(Vec::new())
            }
            // Orders have come: what may be there goes.
            Phase::Lost => {
                self.record.stop = Some(why);
                self.record.phase = Phase::Releasing { next: Next::End(State::Lost) };
                let release = self.release();
                self.commit(vec![release])
            }
            Phase::Killing { .. } => {
                self.record.stop = Some(why);
                self.commit(Vec::new())
            }
            Phase::Releasing { .. } | Phase::Ended(_) => Vec::new(),
        }
    }

    fn ask(&mut self, why: Stop) -> Vec<Effect> {
        self.record.phase = Phase::Killing { forced: false };
        self.record.stop = Some(why.clone());
        self.tell(State::Killing, Reason::Stopped { why, exit: None });
        let effects = self.killing(false);
        self.commit(effects)
    }

    /// What ends it, and what makes sure of that.
    pub(crate) fn killing(&self, forced: bool) -> Vec<Effect> {
        let (id, attempt) = (self.id(), self.record.attempt);
        if forced {
            return vec![Effect::Kill { id, attempt }, self.arm(Timer::KillAgain, KILL_AGAIN)];
        }
        let grace = self.record.definition.grace;
        vec![Effect::Signal { id, attempt }, self.arm(Timer::Grace, grace)]
    }

    fn elapsed(&mut self, attempt: Attempt, timer: Timer) -> Vec<Effect> {
        if attempt != self.record.attempt {
            return Vec::new();
        }
        match (timer, &self.record.phase) {
            (Timer::Grace, Phase::Killing { forced: false }) => {
                self.record.phase = Phase::Killing { forced: true };
                let effects = self.killing(true);
                self.commit(effects)
            }
            (Timer::KillAgain, Phase::Killing { forced: true }) => self.killing(true),
            (Timer::Longest, Phase::Running) => {
                let limit = self.record.definition.longest.unwrap_or_default();
                self.ask(Stop::TooLong { limit })
            }
            (Timer::BackOff, Phase::Waiting) if self.is_unheard() => vec![self.pause()],
            (Timer::BackOff, Phase::Waiting) => self.start(),
            _ => Vec::new(),
        }
    }

    /// There is no process of this attempt any more, if there ever was one.
    pub(crate) fn exited(&mut self, attempt: Attempt, reason: Reason) -> Vec<Effect> {
        let alive = matches!(
            self.record.phase,
            Phase::Starting | Phase::Running | Phase::Killing { .. } | Phase::Lost
        );
        if !alive || attempt != self.record.attempt {
            return Vec::new();
        }
        self.note_fence(&reason);
        self.count(&reason);
        let (state, next, reason) = self.judge(reason);
        self.record.phase = Phase::Releasing { next };
        self.tell(state, reason);
        let release = self.release();
        self.commit(vec![release])
    }

    /// What was to end has ended. What was to run may have done its work, or not: nobody knows.
    pub(crate) fn vanished(&mut self, attempt: Attempt) -> Vec<Effect> {
        match self.record.phase {
            _ if attempt != self.record.attempt => Vec::new(),
            Phase::Killing { .. } => self.exited(attempt, Reason::Vanished),
            Phase::Starting | Phase::Running => self.lose(Reason::Vanished),
            _ => Vec::new(),
        }
    }

    pub(crate) fn lose(&mut self, reason: Reason) -> Vec<Effect> {
        self.record.phase = Phase::Lost;
        self.tell(State::Lost, reason);
        self.commit(Vec::new())
    }

    pub(crate) fn release(&self) -> Effect {
        Effect::Release { id: self.id(), attempt: self.record.attempt }
    }

    /// A keeper does not ask before it stops: that it did is told by the end.
    fn note_fence(&mut self, reason: &Reason) {
        if let Reason::Exited(Exit { fenced: Some(longest), .. }) = reason
            && self.record.stop.as_ref().is_none_or(Stop::is_of_health)
        {
            self.record.stop = Some(Stop::Disconnected { longest: *longest });
        }
    }

    /// Failures in a row.
    fn count(&mut self, reason: &Reason) {
        let long = self.record.definition.back_off.forget_after;
        let unhealthy = self.record.stop.as_ref().is_some_and(Stop::is_of_health);
        // Who was stopped for its health may well end with code 0, and has failed all the same.
        let recovered = matches!(reason, Reason::Exited(exit)
            if (exit.is_success() && !unhealthy) || exit.ran >= long);
        let before = if recovered { 0 } else { self.record.failures };
        let failed = unhealthy || !matches!(reason, Reason::Exited(exit) if exit.is_success());
        self.record.failures = before.saturating_add(u32::from(failed));
    }

    fn judge(&self, reason: Reason) -> (State, Next, Reason) {
        let reason = match (self.record.stop.clone(), reason) {
            (None, reason) => reason,
            (Some(why), reason) => {
                let exit = match reason {
                    Reason::Exited(exit) => Some(exit),
                    _ => None,
                };
                let is_for_good = !why.is_of_health();
                let reason = Reason::Stopped { why, exit };
                if is_for_good {
                    return (State::Killed, Next::End(State::Killed), reason);
                }
                reason
            }
        };
        let success = matches!(&reason, Reason::Exited(exit) if exit.is_success());
        let again = match self.record.definition.restart {
            Restart::Never => false,
            Restart::Always => true,
            Restart::OnFailure { most } => {
                !success && most.is_none_or(|most| self.record.failures <= most)
            }
        };
        let end = match reason {
            _ if again => return (State::Waiting, Next::Restart, reason),
            _ if success => State::Finished,
            Reason::NotLaunched(_) => State::Error,
            _ => State::Failed,
        };
        (end, Next::End(end), reason)
    }

    fn released(&mut self, attempt: Attempt) -> Vec<Effect> {
        let Phase::Releasing { next } = self.record.phase else { return Vec::new() };
        if attempt != self.record.attempt {
            return Vec::new();
        }
        match next {
            // Whoever ordered it hears that nothing runs any more.
            Next::End(State::Lost) => {
                let why = self.record.stop.clone().unwrap_or(Stop::Asked);
                self.end(State::Killed, Reason::Stopped { why, exit: None })
            }
            Next::End(state) => {
                self.record.phase = Phase::Ended(state);
                self.commit(Vec::new())
            }
            Next::Restart => {
                self.record.phase = Phase::Waiting;
                self.record.stop = None;
                let pause = self.pause();
                self.commit(vec![pause])
            }
        }
    }

    pub(crate) fn pause(&self) -> Effect {
        let pause = self.record.definition.back_off.pause(self.record.failures);
        self.arm(Timer::BackOff, pause)
    }

    fn end(&mut self, state: State, reason: Reason) -> Vec<Effect> {
        self.record.phase = Phase::Ended(state);
        self.tell(state, reason);
        self.commit(Vec::new())
    }
}
