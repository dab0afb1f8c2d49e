//! The one loop that owns the tasks of a node.
//!
//! Everything that happens comes in through one queue: what people and masters ask for, what keepers tell, what was
//! written down, which timers have run out. The core decides what follows, and here it is done, in tasks of their own
//! that answer into the queue. Nothing in the loop waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hafen_agent_core::{
    Attempt, Core, Definition, Effect, Event, Found, Phase, Reason, Record, Recovered, Refusal,
    State, Stop, TaskId, Timer, Update, Violation,
};
use hafen_protocol::v1;
use hafen_spec::keep::{ExitRecord, Request, Told};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::container::{Container, Ground, Inquiry, Job, Listener, News, Staged};
use crate::events::Events;
use crate::failure::{Failure, Kind};
use crate::link::{BootTime, Heard};
use crate::metrics::Phases;
use crate::records::{Document, Done, Grant, Writers};
use crate::traces::Traces;
use crate::{check, resolve, view};

/// Between two tries of what failed and must be.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_MOST: Duration = Duration::from_secs(30);
/// Until a record is written down for which nobody waits: another one has mostly taken its place by then.
const SOON: Duration = Duration::from_secs(5);
/// After that an operation is late, and shown so.
const DEADLINE: Duration = Duration::from_secs(60);

/// What comes into the queue.
pub enum Input {
    /// A question or a wish, which may look at everything.
    Ask(Box<dyn FnOnce(&mut Driver) + Send>),
    Happened(Event),
    Written(Done),
    Launched(Job, Result<Box<Container>, Refusal>),
    Inquired(Job, Inquiry),
    Heard(TaskId, Attempt, News),
    Checked(TaskId, Attempt, check::Change),
    /// A try of something failed, and will be made again.
    Failing(TaskId, &'static str, String),
    /// Nothing is left of the sandbox.
    Cleaned(TaskId),
}

/// A task beside what the core knows of it.
#[derive(Debug)]
pub struct Live {
    pub spec: Arc<v1::TaskSpec>,
    pub group: Option<Arc<v1::PodSpec>>,
    /// It is a master's.
    pub grant: Option<Grant>,
    pub created: String,
    pub end: Option<ExitRecord>,
    /// Those of its processes, since it was launched or found again, of which was told.
    oom_kills: u64,
    /// What was told last. What the core knows beyond that is not on the disk yet, and may be forgotten in a crash.
    pub told: (State, Attempt),
    /// With that, and under which number.
    pub ready: bool,
    pub sequence: u64,
    pub reason: Reason,
    pub container: Option<Container>,
    /// What the image says, where the task does not.
    pub signal: Option<String>,
    pub checks: Vec<v1::CheckStatus>,
    checking: Option<AbortHandle>,
    timers: HashMap<Timer, AbortHandle>,
    saving_soon: Option<AbortHandle>,
    pub operations: BTreeMap<&'static str, Operation>,
    /// Who waits until it is written down, and in which state it is then.
    accepted: Vec<oneshot::Sender<Result<(), String>>>,
    waiters: Vec<(Vec<State>, oneshot::Sender<()>)>,
    /// The last revision that is on the disk, and who waits for which.
    pub saved: u64,
    saving: Vec<(u64, oneshot::Sender<()>)>,
    /// Nobody wants to see it any more.
    remove: bool,
    cleaning: bool,
}

/// Something under way.
#[derive(Debug, Clone)]
pub struct Operation {
    pub since: SystemTime,
    begun: Instant,
    pub last_error: Option<String>,
}

impl Operation {
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.begun.elapsed() > DEADLINE
    }

    #[must_use]
    pub const fn deadline() -> Duration {
        DEADLINE
    }
}

pub struct Driver {
    pub ground: Ground,
    pub events: Events,
    pub core: Core,
    pub live: BTreeMap<TaskId, Live>,
    pub groups: BTreeMap<String, Arc<v1::PodSpec>>,
    pub quarantined: BTreeMap<String, String>,
    pub boot_id: String,
    /// Nobody knows them any more, but something of them may still be on the disk: their names are not free yet.
    pub erasing: BTreeSet<TaskId>,
    /// Who tells a master what becomes of its tasks, while there is one.
    pub master: Option<mpsc::UnboundedSender<v1::TaskUpdate>>,
    /// When a master has last heard us.
    pub heard: Heard,
    writers: Writers,
    inputs: mpsc::UnboundedSender<Input>,
    /// How long what is done for tasks takes.
    pub phases: Phases,
    traces: Traces,
}

impl Driver {
    #[must_use]
    pub fn new(
        ground: Ground,
        events: Events,
        boot_id: String,
        traces: Traces,
        heard: Heard,
        inputs: mpsc::UnboundedSender<Input>,
    ) -> Self {
        let written = inputs.clone();
        let writers = Writers::start(&ground.folders, move |done| {
            let _ = written.send(Input::Written(done));
        });
        Self {
            ground,
            events,
            core: Core::default(),
            live: BTreeMap::new(),
            groups: BTreeMap::new(),
            quarantined: BTreeMap::new(),
            boot_id,
            erasing: BTreeSet::new(),
            master: None,
            heard,
            writers,
            inputs,
            phases: Phases::default(),
            traces,
        }
    }

    /// Until nobody can ask any more.
    pub async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Input>) {
        while let Some(input) = queue.recv().await {
            self.take(input);
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Ask(ask) => ask(self),
            Input::Happened(event) => self.happened(event),
            Input::Written(written) => self.written(written),
            Input::Launched(job, result) => self.launched(&job, result),
            Input::Inquired(job, inquiry) => self.inquired(&job, inquiry),
            Input::Heard(id, attempt, news) => self.heard(&id, attempt, news),
            Input::Checked(id, attempt, change) => self.checked(&id, attempt, &change),
            Input::Failing(id, phase, why) => self.failing(&id, phase, why),
            Input::Cleaned(id) => self.cleaned(&id),
        }
    }

    pub fn happened(&mut self, event: Event) {
        let id = of(&event).cloned();
        let effects = self.core.step(event);
        self.perform(effects);
        if let Some(id) = id {
            self.settle(&id);
        }
    }

    /// After anything has changed: whoever waits is told, and what has ended goes.
    fn settle(&mut self, id: &TaskId) {
        let Some(record) = self.core.record(id) else { return };
        let (phase, told) = (record.phase.clone(), record.updates.is_empty());
        let Some(live) = self.live.get_mut(id) else { return };
        let state = live.told.0;
        // Nobody hears of an end before it is written down.
        let is_over = matches!(phase, Phase::Ended(_) | Phase::Lost) && state.is_end();
        let mut waiting = Vec::new();
        for (states, waiter) in live.waiters.drain(..) {
            let is_there = if states.is_empty() { is_over } else { states.contains(&state) };
            // What has ended will not come to another state.
            if is_there || (is_over && phase != Phase::Lost) {
                let _ = waiter.send(());
            } else if !waiter.is_closed() {
                waiting.push((states, waiter));
            }
        }
        live.waiters = waiting;
        if !matches!(phase, Phase::Ended(_)) {
            return;
        }
        live.timers.drain().for_each(|(_, timer)| timer.abort());
        if !live.cleaning {
            live.cleaning = true;
            self.clean(id.clone());
        } else if live.remove && told && !live.operations.contains_key("clean") {
            self.forget(id);
        }
    }

    /// Before the agent ends: what is to be written down is, and what is to go has gone, when all of these are answered.
    pub fn finish(&self) -> Vec<oneshot::Receiver<()>> {
        self.writers.finish()
    }

    /// Or is not known.
    pub fn has_ended(&self, id: &TaskId) -> bool {
        self.core.record(id).is_none_or(|record| matches!(record.phase, Phase::Ended(_)))
    }

    fn forget(&mut self, id: &TaskId) {
        let effects = self.core.step(Event::Forget { id: id.clone() });
        self.perform(effects);
    }

    /// Leave nothing around a task that has ended. What a group shares goes with the last of it.
    fn clean(&mut self, id: TaskId) {
        let group = self.live.get(&id).and_then(|live| live.group.clone());
        let last = group
            .as_ref()
            .is_none_or(|group| self.members(&group.id).all(|other| self.has_ended(other)));
        let mut names = vec![id.0.clone()];
        names.extend(group.filter(|_| last).map(|group| group.id.clone()));
        self.begin(&id, "clean");
        let (sandboxes, inputs) = (self.ground.sandboxes.clone(), self.inputs.clone());
        tokio::spawn(async move {
            for name in names {
                again(&inputs, &id, "clean", async || {
                    sandboxes.remove(&name).await.map_err(|e| e.to_string())
                })
                .await;
            }
            let _ = inputs.send(Input::Cleaned(id));
        });
    }

    fn cleaned(&mut self, id: &TaskId) {
        self.end(id, "clean");
        self.settle(id);
    }

    fn written(&mut self, done: Done) {
        match done {
            Done::Written { id, revision, result: Ok(()) } => {
                self.end(&id, "save");
                let accepted =
                    self.live.get_mut(&id).map(|live| std::mem::take(&mut live.accepted));
                accepted.into_iter().flatten().for_each(|reply| drop(reply.send(Ok(()))));
                if let Some(live) = self.live.get_mut(&id) {
                    live.is_saved(revision);
                }
                self.happened(Event::Saved { id, revision });
            }
            Done::Written { id, result: Err(e), .. } => {
                self.not_written(&id, &crate::failure::chain(&e));
            }
            Done::Erased { id, result } => {
                if let Err(e) = result {
                    // Without its document it is no task at the next start, and goes then.
                    tracing::warn!(task = %id, error = crate::failure::chain(&e), "not all removed");
                }
                self.erasing.remove(&id);
            }
        }
    }

    /// Who has not got an answer yet is told so; what was promised is tried again.
    fn not_written(&mut self, id: &TaskId, why: &str) {
        if self.core.withdraw(id) {
            let accepted = self.live.remove(id).map(|live| live.accepted);
            for reply in accepted.into_iter().flatten() {
                let _ = reply.send(Err(why.to_owned()));
            }
            self.erase(id);
            return;
        }
        self.failing(id, "save", why.to_owned());
        let id = id.clone();
        self.later(AGAIN, Input::Ask(Box::new(move |driver| driver.save_again(&id))));
    }

    /// Into the queue after a while.
    fn later(&self, after: Duration, input: Input) -> AbortHandle {
        let inputs = self.inputs.clone();
        let waiting = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let _ = inputs.send(input);
        });
        waiting.abort_handle()
    }

    fn save_again(&mut self, id: &TaskId) {
        if let Some(record) = self.core.record(id).cloned() {
            self.save(record);
        }
    }

    pub fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.perform_one(effect);
        }
    }

    fn perform_one(&mut self, effect: Effect) {
        match effect {
            Effect::Save(record) => self.save(record),
            Effect::SaveSoon(record) => self.save_soon(&record.id),
            Effect::Stage { id } => self.stage(id),
            Effect::Launch { id, attempt } => self.launch(&id, attempt),
            Effect::Signal { id, attempt } => self.signal(&id, attempt),
            Effect::Kill { id, attempt } => self.kill(&id, attempt),
            Effect::Release { id, attempt } => self.release(id, attempt),
            Effect::Send { id, update } => self.send(&id, &update),
            Effect::Arm { id, attempt, timer, after } => self.arm(&id, attempt, timer, after),
            Effect::Erase { id } => self.erase(&id),
        }
    }

    fn save_soon(&mut self, id: &TaskId) {
        if self.live.get(id).is_none_or(|live| live.saving_soon.is_some()) {
            return;
        }
        let task = id.clone();
        let waiting =
            self.later(SOON, Input::Ask(Box::new(move |driver| driver.save_again(&task))));
        if let Some(live) = self.live.get_mut(id) {
            live.saving_soon = Some(waiting);
        }
    }

    fn save(&mut self, record: Record) {
        let Some(live) = self.live.get_mut(&record.id) else { return };
        live.saving_soon.take().into_iter().for_each(|waiting| waiting.abort());
        let id = record.id.clone();
        self.writers.write(Document {
            format: Document::format(),
            boot_id: self.boot_id.clone(),
            created: live.created.clone(),
            spec: (*live.spec).clone(),
            pod: live.group.as_ref().map(|group| group.id.clone()).unwrap_or_default(),
            grant: live.grant.clone(),
            record,
            reason: live.reason.clone(),
            end: live.end.clone(),
        });
        self.begin(&id, "save");
    }

    fn job(&self, id: &TaskId, attempt: Attempt) -> Option<Job> {
        let live = self.live.get(id)?;
        let (spec, group) = (live.spec.clone(), live.group.clone());
        Some(Job { id: id.clone(), attempt, spec, group })
    }

    fn stage(&mut self, id: TaskId) {
        let Some(job) = self.job(&id, 0) else { return };
        self.begin(&id, "stage");
        let (ground, inputs) = (self.ground.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let result = ground.stage(&job).await;
            let _ = inputs.send(Input::Ask(Box::new(move |driver| driver.staged(id, result))));
        });
    }

    fn staged(&mut self, id: TaskId, result: Result<Staged, String>) {
        self.end(&id, "stage");
        if let (Ok(staged), Some(live)) = (&result, self.live.get_mut(&id)) {
            live.signal.clone_from(&staged.signal);
        }
        self.happened(Event::Staged { id, result: result.map(drop) });
    }

    pub fn listener(&self) -> Listener {
        let inputs = self.inputs.clone();
        Arc::new(move |id, attempt, news| drop(inputs.send(Input::Heard(id, attempt, news))))
    }

    fn launch(&mut self, id: &TaskId, attempt: Attempt) {
        let Some(job) = self.job(id, attempt) else { return };
        if let Some(longest) = self.unheard_too_long(id, BootTime::now()) {
            return self.keep_from_starting(id, attempt, longest);
        }
        self.begin(id, "launch");
        let fence = self.fence(&job);
        let (ground, inputs, listener) =
            (self.ground.clone(), self.inputs.clone(), self.listener());
        tokio::spawn(async move {
            // What was ready may have been removed since, or was so before a reboot. What is to be fetched for each start was
            // so for the first one when the task was staged.
            let ready = match job.attempt {
                1 => ground.at_hand(&job.id, &job.spec),
                _ => ground.find_staged(&job.id, &job.spec),
            };
            let ready = match ready {
                Some(staged) => Ok(staged),
                None => ground.stage(&job).await,
            };
            let result = match ready {
                Ok(_) => ground.launch(&job, fence, listener).await.map(Box::new),
                Err(why) => Err(why.into()),
            };
            let _ = inputs.send(Input::Launched(job, result));
        });
    }

    /// It may run elsewhere by now.
    fn keep_from_starting(&mut self, id: &TaskId, attempt: Attempt, longest: Duration) {
        let why = Stop::Disconnected { longest };
        let result = Err(Refusal::from(why.to_string()));
        self.happened(Event::Stop { id: id.clone(), why, grace: None });
        self.happened(Event::Launched { id: id.clone(), attempt, result });
    }

    /// Where the keeper of a master's task sees when a master has heard us, if it is to stop it for that.
    fn fence(&self, job: &Job) -> Option<PathBuf> {
        let is_fenced = self.is_masters(&job.id) && job.spec.stop_after_disconnect.is_some();
        is_fenced.then(|| self.heard.file().to_owned())
    }

    fn launched(&mut self, job: &Job, result: Result<Box<Container>, Refusal>) {
        self.end(&job.id, "launch");
        let (id, attempt) = (job.id.clone(), job.attempt);
        match result {
            Ok(container) => {
                if let Some(live) = self.live.get_mut(&id) {
                    live.container = Some(*container);
                    live.end = None;
                }
                self.happened(Event::Launched { id: id.clone(), attempt, result: Ok(()) });
                self.begin_checks(job);
            }
            // It may have run and ended so quickly that nobody could connect: then that is what happened.
            Err(why) => {
                let folder = self.ground.folders.attempt(&id, attempt);
                match crate::keeper::read_end(&folder) {
                    Ok(Some(end)) => {
                        self.happened(Event::Launched { id: id.clone(), attempt, result: Ok(()) });
                        self.ended(&id, attempt, end);
                    }
                    _ => self.happened(Event::Launched { id, attempt, result: Err(why) }),
                }
            }
        }
    }

    fn heard(&mut self, id: &TaskId, attempt: Attempt, news: News) {
        match news {
            News::Told(told) => match *told {
                Told::Exited(end) => self.ended(id, attempt, *end),
                Told::Oom { kills, last } => self.oom(id, kills, last),
                Told::Released { error: Some(error) } => self.failing(id, "release", error),
                Told::Failed { error } => tracing::warn!(task = %id, error, "a keeper refused"),
                _ => {}
            },
            News::Gone => self.gone(id, attempt),
        }
    }

    fn oom(&mut self, id: &TaskId, kills: u64, last: Option<hafen_spec::keep::Oom>) {
        let own = |live: &Live| live.spec.resources.as_ref()?.limit.as_ref()?.memory;
        let own = self.live.get(id).and_then(own);
        let (limit, shared) = view::memory_limit(own, self.shared_memory(id), None);
        let violation = Violation::Memory {
            limit,
            peak: limit,
            events: kills,
            largest: last.map(|oom| (oom.process, oom.resident)),
            shared,
        };
        self.events.tell(&id.0, v1::event::What::Oom(view::violation(&violation)));
        if let Some(live) = self.live.get_mut(id) {
            live.oom_kills = live.oom_kills.max(kills);
        }
    }

    fn shared_memory(&self, id: &TaskId) -> Option<u64> {
        view::shared_memory(self.live.get(id)?.group.as_deref())
    }

    fn ended(&mut self, id: &TaskId, attempt: Attempt, end: ExitRecord) {
        let exit = view::exit(&end, self.shared_memory(id));
        if let Some(live) = self.live.get_mut(id) {
            // The kernel tells of its kills later than it kills (kernel/cgroup/cgroup.c, `cgroup_file_notify`).
            let told = mem::take(&mut live.oom_kills);
            let memory = exit.violated.iter().find(|v| matches!(v, Violation::Memory { .. }));
            if let Some(memory) = memory.filter(|_| end.usage.cgroup.oom_kills > Some(told)) {
                self.events.tell(&id.0, v1::event::What::Oom(view::violation(memory)));
            }
            live.end = Some(end);
            live.checking.take().into_iter().for_each(|checking| checking.abort());
        }
        self.happened(Event::Exited { id: id.clone(), attempt, exit });
    }

    /// A keeper is not heard any more. Did its container end, or did only the keeper?
    fn gone(&mut self, id: &TaskId, attempt: Attempt) {
        let current = self.core.record(id).is_some_and(|record| {
            let alive =
                matches!(record.phase, Phase::Starting | Phase::Running | Phase::Killing { .. });
            record.attempt == attempt && alive
        });
        if !current {
            return self.end(id, "inquire");
        }
        self.inquire(id, attempt);
    }

    fn inquire(&mut self, id: &TaskId, attempt: Attempt) {
        let Some(job) = self.job(id, attempt) else { return };
        self.begin(id, "inquire");
        let (ground, inputs, listener) =
            (self.ground.clone(), self.inputs.clone(), self.listener());
        tokio::spawn(async move {
            let inquiry = ground.inquire(&job, listener).await;
            let _ = inputs.send(Input::Inquired(job, inquiry));
        });
    }

    fn inquired(&mut self, job: &Job, inquiry: Inquiry) {
        let (id, attempt) = (job.id.clone(), job.attempt);
        // What is asked again is still under way.
        if !matches!(inquiry, Inquiry::Unclear(_)) {
            self.end(&id, "inquire");
        }
        match inquiry {
            Inquiry::Running(container) => {
                let killing = self.core.record(&id).map(|record| record.phase.clone());
                if let Some(live) = self.live.get_mut(&id) {
                    live.container = Some(*container);
                }
                self.begin_checks(job);
                // What was asked of the keeper before may not have been heard.
                match killing {
                    Some(Phase::Killing { forced: false }) => self.signal(&id, attempt),
                    Some(Phase::Killing { forced: true }) => self.kill(&id, attempt),
                    _ => {}
                }
            }
            Inquiry::Ended(end) => self.ended(&id, attempt, *end),
            Inquiry::Nothing => self.happened(Event::Vanished { id, attempt }),
            Inquiry::Unclear(why) => {
                self.failing(&id, "inquire", why);
                let ask = move |driver: &mut Self| driver.gone(&id, attempt);
                self.later(AGAIN, Input::Ask(Box::new(ask)));
            }
        }
    }

    fn signal(&mut self, id: &TaskId, attempt: Attempt) {
        let Some(live) = self.live.get(id) else { return };
        let stop = self.core.record(id).and_then(|record| record.stop.as_ref());
        // Its keeper does that, in the same moment, and some programs take a second signal for a stronger one.
        if matches!(stop, Some(Stop::Disconnected { .. })) && live.container.is_some() {
            return;
        }
        let signal = resolve::stop_signal(&live.spec, live.signal.as_deref());
        self.ask_keeper(id, attempt, Request::Signal { signal, all: false }, (signal, false));
    }

    fn kill(&mut self, id: &TaskId, attempt: Attempt) {
        self.ask_keeper(id, attempt, Request::Kill, (nix::libc::SIGKILL, true));
    }

    /// Through the keeper, or past it.
    fn ask_keeper(&mut self, id: &TaskId, attempt: Attempt, request: Request, past: (i32, bool)) {
        let container = self.live.get(id).and_then(|live| live.container.as_ref());
        let current = container.filter(|container| container.attempt == attempt);
        if current.is_some_and(|container| container.ask(request)) {
            return;
        }
        let Some(job) = self.job(id, attempt) else { return };
        let (ground, inputs) = (self.ground.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let (signal, all) = past;
            if ground.signal(&job, signal, all).await.is_err() {
                // There may be nothing to signal any more.
                let ask = move |driver: &mut Self| driver.gone(&job.id, job.attempt);
                let _ = inputs.send(Input::Ask(Box::new(ask)));
            }
        });
    }

    fn release(&mut self, id: TaskId, attempt: Attempt) {
        if let Some(live) = self.live.get_mut(&id) {
            live.container = None;
            live.checks.clear();
        }
        self.begin(&id, "release");
        let (ground, inputs) = (self.ground.clone(), self.inputs.clone());
        tokio::spawn(async move {
            again(&inputs, &id, "release", async || ground.release(&id, attempt).await).await;
            let ask = move |driver: &mut Self| {
                driver.end(&id, "release");
                driver.happened(Event::Released { id, attempt });
            };
            let _ = inputs.send(Input::Ask(Box::new(ask)));
        });
    }

    fn send(&mut self, id: &TaskId, update: &Update) {
        let Some(live) = self.live.get_mut(id) else { return };
        live.told = (update.state, update.attempt);
        (live.ready, live.sequence) = (update.ready, update.sequence);
        live.reason = update.reason.clone();
        let is_masters = live.grant.is_some();
        let reason = view::reason(&update.reason, live.end.as_ref());
        let state = view::wire(update.state).into();
        let change = v1::StateChange { state, reason, attempt: update.attempt };
        self.events.tell(&id.0, v1::event::What::State(change));
        if update.state.is_end() {
            self.end_group_of(id);
        }
        if is_masters {
            return self.tell_master(id, update);
        }
        // Nobody else takes note.
        let event = Event::Acknowledged { id: id.clone(), sequence: update.sequence };
        let _ = self.inputs.send(Input::Happened(event));
    }

    /// Tasks of a group end together: when one has failed, or was stopped, or when all that are left have been.
    fn end_group_of(&mut self, id: &TaskId) {
        let Some(group) = self.live.get(id).and_then(|live| live.group.clone()) else { return };
        let finished = self.core.record(id).is_some_and(|r| view::state(r) == State::Finished);
        if finished {
            return;
        }
        let others: Vec<TaskId> =
            self.members(&group.id).filter(|other| *other != id).cloned().collect();
        for other in others {
            let why = Stop::Group { task: id.0.clone() };
            self.happened(Event::Stop { id: other, why, grace: None });
        }
    }

    pub fn members<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a TaskId> {
        let of_group = move |live: &Live| live.group.as_ref().is_some_and(|g| g.id == group);
        self.live.iter().filter(move |(_, live)| of_group(live)).map(|(id, _)| id)
    }

    fn arm(&mut self, id: &TaskId, attempt: Attempt, timer: Timer, after: Duration) {
        if !self.live.contains_key(id) {
            return;
        }
        let event = Event::Elapsed { id: id.clone(), attempt, timer };
        let waiting = self.later(after, Input::Happened(event));
        let before = self.live.get_mut(id).and_then(|live| live.timers.insert(timer, waiting));
        before.into_iter().for_each(|before| before.abort());
    }

    fn erase(&mut self, id: &TaskId) {
        self.live.remove(id);
        self.erasing.insert(id.clone());
        self.writers.erase(id.clone());
    }

    fn begin_checks(&mut self, job: &Job) {
        let Some(live) = self.live.get_mut(&job.id) else { return };
        let Some(container) = &live.container else { return };
        let Ok(mut checks) = check::validate(&job.spec.checks) else { return };
        if checks.is_empty() || !matches!(live.container, Some(ref c) if c.attempt == job.attempt) {
            return;
        }
        let ready = self.core.record(&job.id).is_some_and(|record| record.ready);
        checks.iter_mut().for_each(|check| check.go_on(ready));
        live.checks = checks.iter().map(check::Schedule::status).collect();
        let target = check::Target {
            namespace: format!("/proc/{}/ns/net", container.status.pid).into(),
            address: container.sandbox.addresses.first().copied(),
        };
        let (sender, mut changes) = mpsc::channel(16);
        let folder = self.ground.folders.attempt(&job.id, job.attempt);
        let exec = move |args: Vec<String>, patience| {
            let folder = folder.clone();
            async move { crate::streams::exec_quietly(&folder, args, patience).await }
        };
        let (inputs, id, attempt) = (self.inputs.clone(), job.id.clone(), job.attempt);
        let checking = tokio::spawn(async move {
            let asking = check::run(checks, target, exec, sender);
            let telling = async {
                while let Some(change) = changes.recv().await {
                    let _ = inputs.send(Input::Checked(id.clone(), attempt, change));
                }
            };
            tokio::join!(asking, telling);
        });
        let before = live.checking.replace(checking.abort_handle());
        before.into_iter().for_each(|before| before.abort());
    }

    fn checked(&mut self, id: &TaskId, attempt: Attempt, change: &check::Change) {
        let is_current = self.core.record(id).is_some_and(|record| record.attempt == attempt);
        let Some(live) = self.live.get_mut(id).filter(|_| is_current) else { return };
        let status = &change.status;
        if let Some(known) = live.checks.iter_mut().find(|known| known.name == status.name) {
            known.clone_from(status);
        }
        let ready = live.checks.iter().filter(|check| is_readiness(check)).all(|c| c.passing);
        let turns = is_readiness(status);
        self.events.tell(&id.0, v1::event::What::Check(status.clone()));
        if turns {
            self.happened(Event::Turned { id: id.clone(), attempt, ready });
        }
        if status.kind() == v1::check::Kind::Health && !status.passing && change.flipped {
            let check = format!("{}: {}", status.name, status.message);
            let why = Stop::Unhealthy { check };
            self.happened(Event::Stop { id: id.clone(), why, grace: None });
        }
    }

    fn begin(&mut self, id: &TaskId, phase: &'static str) {
        let Some(live) = self.live.get_mut(id) else { return };
        let now = Operation { since: SystemTime::now(), begun: Instant::now(), last_error: None };
        live.operations.entry(phase).or_insert(now);
    }

    fn end(&mut self, id: &TaskId, phase: &'static str) {
        let operation = self.live.get_mut(id).and_then(|live| live.operations.remove(phase));
        let Some(operation) = operation else { return };
        let took = operation.begun.elapsed();
        self.phases.took(phase, took);
        self.traces.took(phase, &id.0, operation.since, took);
    }

    fn failing(&mut self, id: &TaskId, phase: &'static str, why: String) {
        tracing::warn!(task = %id, phase, error = why, "tried again");
        let live = self.live.get_mut(id);
        if let Some(operation) = live.and_then(|live| live.operations.get_mut(phase)) {
            operation.last_error = Some(why);
        }
    }

    /// Is there no task of that name?
    ///
    /// # Errors
    /// [`Kind::Exists`].
    pub fn is_free(&self, id: &TaskId) -> Result<(), Failure> {
        let taken = self.live.contains_key(id)
            || self.quarantined.contains_key(&id.0)
            || self.erasing.contains(id);
        if !taken {
            return Ok(());
        }
        let words = format!("there is a task {id} already: hafen rm {id}, or choose another name");
        Err(Failure::new(Kind::Exists, words))
    }

    /// Take a task on. The answer comes when it is written down. What is staged already starts with the same record.
    ///
    /// # Errors
    /// [`Kind::Exists`].
    pub fn submit(
        &mut self,
        spec: v1::TaskSpec,
        definition: Definition,
        group: Option<Arc<v1::PodSpec>>,
        grant: Option<Grant>,
        staged: Option<Staged>,
    ) -> Result<oneshot::Receiver<Result<(), String>>, Failure> {
        let id = TaskId(spec.id.clone());
        self.is_free(&id)?;
        let effects = self.core.submit(id.clone(), definition, staged.is_some());
        let effects = effects.map_err(|e| Failure::of(Kind::Exists, &e))?;
        let (accepted, answer) = oneshot::channel();
        let created = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut live = Live::new(Arc::new(spec), group, created);
        live.accepted.push(accepted);
        live.grant = grant;
        live.remove = live.spec.remove;
        live.signal = staged.and_then(|staged| staged.signal);
        self.live.insert(id, live);
        self.perform(effects);
        Ok(answer)
    }

    /// Ask a task to end. The answer comes when that is written down: before, a crash would forget it.
    pub fn stop(
        &mut self,
        id: &TaskId,
        why: Stop,
        grace: Option<Duration>,
    ) -> oneshot::Receiver<()> {
        self.happened(Event::Stop { id: id.clone(), why, grace });
        let (waiter, written) = oneshot::channel();
        let revision = self.core.record(id).map_or(0, |record| record.revision);
        if let Some(live) = self.live.get_mut(id) {
            live.saving.push((revision, waiter));
            live.is_saved(0);
        }
        written
    }

    /// Remove a task that has ended, or once it has.
    ///
    /// # Errors
    /// [`Kind::State`]: it has not ended, and is not to be forced.
    pub fn remove(&mut self, id: &TaskId, force: bool) -> Result<(), Failure> {
        let ended = self.has_ended(id);
        if !ended && !force {
            let words =
                format!("{id} has not ended: hafen stop {id} first, or hafen rm --force {id}");
            return Err(Failure::new(Kind::State, words));
        }
        if let Some(live) = self.live.get_mut(id) {
            live.remove = true;
        }
        if !ended {
            let stop =
                Event::Stop { id: id.clone(), why: Stop::Asked, grace: Some(Duration::ZERO) };
            self.happened(stop);
        }
        self.settle(id);
        Ok(())
    }

    /// Tell when it is in one of the states; empty: when it has ended, or is lost.
    pub fn when(&mut self, id: &TaskId, states: Vec<State>) -> Option<oneshot::Receiver<()>> {
        let (waiter, answer) = oneshot::channel();
        self.live.get_mut(id)?.waiters.push((states, waiter));
        self.settle(id);
        Some(answer)
    }

    /// Change what a task may take while it runs. What is not named stays as it is.
    pub fn change_resources(&mut self, id: &TaskId, resources: v1::Resources) -> Option<Job> {
        let live = self.live.get_mut(id)?;
        let mut spec = (*live.spec).clone();
        spec.resources = Some(resources);
        live.spec = Arc::new(spec);
        let attempt = self.core.record(id)?.attempt;
        self.save_again(id);
        self.job(id, attempt)
    }

    /// Go on with what was written down, and with what is found.
    pub fn recover(&mut self, all: Vec<(Document, Inquiry)>, found: &[(TaskId, Attempt)]) {
        let mut recovered = Vec::new();
        let mut checked = Vec::new();
        for (document, inquiry) in all {
            let id = document.record.id.clone();
            let group = self.groups.get(&document.pod).cloned();
            let evidence = inquiry.evidence(view::shared_memory(group.as_deref()));
            let mut live = Live::new(Arc::new(document.spec), group, document.created);
            live.end = document.end;
            live.grant = document.grant;
            live.remove = live.spec.remove;
            let rebooted = document.boot_id != self.boot_id;
            match inquiry {
                Inquiry::Running(container) => {
                    checked.push((id.clone(), container.attempt));
                    live.container = Some(*container);
                }
                Inquiry::Ended(end) => live.end = Some(*end),
                Inquiry::Nothing | Inquiry::Unclear(_) => {}
            }
            let last = document.record.updates.back().map(|update| update.reason.clone());
            live.reason = last.unwrap_or(document.reason);
            live.told = (view::state(&document.record), document.record.attempt);
            live.sequence = document.record.sequence;
            live.ready = document.record.phase == Phase::Running && document.record.ready;
            live.saved = document.record.revision;
            self.live.insert(id, live);
            recovered.push(Recovered { record: document.record, evidence, rebooted });
        }
        let found: Vec<Found> =
            found.iter().map(|(id, attempt)| Found { id: id.clone(), attempt: *attempt }).collect();
        let (core, effects) = Core::recover(recovered, &found);
        self.core = core;
        self.perform(effects);
        for (id, attempt) in checked {
            let job = self.job(&id, attempt);
            job.iter().for_each(|job| self.begin_checks(job));
        }
        let ids: Vec<TaskId> = self.live.keys().cloned().collect();
        ids.iter().for_each(|id| self.settle(id));
    }
}

impl Live {
    fn is_saved(&mut self, revision: u64) {
        self.saved = self.saved.max(revision);
        let saved = self.saved;
        for (_, waiter) in self.saving.extract_if(.., |(wanted, _)| *wanted <= saved) {
            let _ = waiter.send(());
        }
    }

    fn new(spec: Arc<v1::TaskSpec>, group: Option<Arc<v1::PodSpec>>, created: String) -> Self {
        Self {
            spec,
            group,
            grant: None,
            created,
            end: None,
            oom_kills: 0,
            told: (State::Staging, 0),
            ready: false,
            sequence: 0,
            reason: Reason::None,
            container: None,
            signal: None,
            checks: Vec::new(),
            checking: None,
            timers: HashMap::new(),
            saving_soon: None,
            operations: BTreeMap::new(),
            accepted: Vec::new(),
            waiters: Vec::new(),
            saved: 0,
            saving: Vec::new(),
            remove: false,
            cleaning: false,
        }
    }
}

fn is_readiness(check: &v1::CheckStatus) -> bool {
    check.kind() == v1::check::Kind::Readiness
}

/// Try until it works, with longer and longer pauses, and tell of each failure.
async fn again<F>(
    inputs: &mpsc::UnboundedSender<Input>,
    id: &TaskId,
    phase: &'static str,
    act: impl Fn() -> F,
) where
    F: Future<Output = Result<(), String>>,
{
    let mut pause = AGAIN;
    while let Err(why) = act().await {
        // Nobody is there any more: whoever comes after us goes on.
        if inputs.send(Input::Failing(id.clone(), phase, why)).is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN_MOST);
    }
}

const fn of(event: &Event) -> Option<&TaskId> {
    match event {
        Event::Saved { id, .. }
        | Event::Staged { id, .. }
        | Event::Launched { id, .. }
        | Event::Exited { id, .. }
        | Event::Vanished { id, .. }
        | Event::Released { id, .. }
        | Event::Stop { id, .. }
        | Event::Elapsed { id, .. }
        | Event::Turned { id, .. }
        | Event::Acknowledged { id, .. }
        | Event::Forget { id } => Some(id),
        Event::Resend => None,
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Input")
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("tasks", &self.live.len()).finish_non_exhaustive()
    }
}
