//! Random schedules of events, crashes and reboots, on a world in which every effect may take its time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hafen_agent_core::{
    Attempt, BackOff, Core, Definition, Effect, Event, Evidence, Exit, Found, Phase, Reason,
    Record, Recovered, Restart, State, Stop, TaskId, Timer, Update,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Container {
    Running,
    Exited(Exit),
}

/// What outlives the agent, and what does not.
#[derive(Debug, Default)]
struct World {
    core: Core,
    disk: BTreeMap<TaskId, Record>,
    /// Of the machine, and of those in which each record was saved.
    boots: u32,
    saved_in: BTreeMap<TaskId, u32>,
    containers: BTreeMap<(TaskId, Attempt), Container>,
    heard: BTreeMap<(TaskId, u64), Update>,
    /// Ends that happened, with their code.
    ends: Vec<(TaskId, Attempt, Exit)>,
    launched: BTreeSet<(TaskId, Attempt)>,
    /// Of these nobody could tell for a while.
    unclear: BTreeSet<TaskId>,
    // Gone with the agent:
    effects: Vec<Effect>,
    events: Vec<Event>,
    timers: BTreeMap<(TaskId, Timer), Attempt>,
}

fn task(number: u8) -> TaskId {
    TaskId(format!("task-{number}"))
}

impl World {
    fn with(definitions: &[Definition]) -> Self {
        let mut world = Self::default();
        for (definition, number) in definitions.iter().zip(0..) {
            let ready = number % 2 == 1;
            let effects = world.core.submit(task(number), definition.clone(), ready).unwrap();
            assert!(world.core.submit(task(number), definition.clone(), ready).is_err());
            world.effects.extend(effects);
        }
        world
    }

    fn deliver(&mut self, event: Event) {
        let effects = self.core.step(event);
        self.effects.extend(effects);
    }

    /// One thing happens; `choice` says which, `detail` how.
    fn happen(&mut self, choice: u8, detail: u8) {
        let pick = |length: usize| usize::from(detail) % length.max(1);
        match choice {
            0..=89 if !self.effects.is_empty() => {
                let effect = self.effects.remove(pick(self.effects.len()));
                self.perform(effect, detail);
            }
            90..=149 if !self.events.is_empty() => {
                let event = self.events.remove(pick(self.events.len()));
                self.deliver(event);
            }
            150..=179 => self.end_of_one(pick(self.containers.len()), detail),
            180..=209 => self.fire(pick(self.timers.len())),
            210..=219 => {
                let why = match detail % 5 {
                    0 => Stop::Unhealthy { check: "http".to_owned() },
                    _ => Stop::Asked,
                };
                self.deliver(Event::Stop { id: task(detail % 3), why, grace: None });
            }
            220..=229 => self.deliver(Event::Resend),
            230..=249 => self.crash(false, detail),
            250..=252 => self.vanish(pick(self.containers.len())),
            253.. => self.crash(true, detail),
            _ => {}
        }
    }

    fn perform(&mut self, effect: Effect, detail: u8) {
        match effect {
            Effect::Save(record) => self.save(record),
            // It may take as long as that a crash comes first.
            Effect::SaveSoon(_) if detail % 3 == 1 => {}
            Effect::SaveSoon(record) => self.save(record),
            Effect::Stage { id } => {
                let result = if detail == 7 { Err("no such image".into()) } else { Ok(()) };
                self.events.push(Event::Staged { id, result });
            }
            Effect::Launch { id, attempt } => self.launch(id, attempt, detail),
            Effect::Signal { id, attempt } | Effect::Kill { id, attempt }
                if !self.containers.contains_key(&(id.clone(), attempt)) =>
            {
                self.events.push(Event::Vanished { id, attempt });
            }
            Effect::Signal { id, attempt } if detail.is_multiple_of(2) => {
                self.ends(id, attempt, Some(143), None);
            }
            Effect::Signal { .. } => {}
            Effect::Kill { id, attempt } => self.ends(id, attempt, None, Some(9)),
            Effect::Release { id, attempt } => self.release(id, attempt),
            Effect::Send { id, update } => self.hear(id, &update, detail),
            Effect::Arm { id, attempt, timer, .. } => {
                self.timers.insert((id, timer), attempt);
            }
            Effect::Erase { id } => {
                self.disk.remove(&id);
            }
        }
    }

    /// A record that comes late does not replace a later one.
    fn save(&mut self, record: Record) {
        let (id, revision) = (record.id.clone(), record.revision);
        if self.disk.get(&id).is_none_or(|known| known.revision < revision) {
            self.disk.insert(id.clone(), record);
            self.saved_in.insert(id.clone(), self.boots);
        }
        self.events.push(Event::Saved { id, revision });
    }

    fn launch(&mut self, id: TaskId, attempt: Attempt, detail: u8) {
        let saved = self.disk.get(&id).expect("nothing happens before it is saved");
        assert!(saved.attempt >= attempt, "{id} {attempt}: its start is not written down");
        let others = self.containers.iter().filter(|((other, n), container)| {
            *other == id && *n != attempt && matches!(container, Container::Running)
        });
        assert_eq!(others.count(), 0, "{id}: a second copy");
        let key = (id.clone(), attempt);
        let result = match (self.containers.contains_key(&key), detail) {
            (true, _) => Ok(()),
            (false, 0..=15) => Err("no space left on device".to_owned().into()),
            (false, _) => {
                assert!(self.launched.insert(key.clone()), "{id} {attempt}: started once more");
                self.containers.insert(key, Container::Running);
                Ok(())
            }
        };
        self.events.push(Event::Launched { id, attempt, result });
    }

    fn end_of_one(&mut self, index: usize, detail: u8) {
        let Some(((id, attempt), _)) = self.containers.iter().nth(index) else { return };
        let code = Some(i32::from(detail % 3));
        let fenced = (detail % 11 == 5).then_some(Duration::from_secs(30));
        self.ends_with(id.clone(), *attempt, Exit { fenced, ..exit(code, None) });
    }

    fn ends(&mut self, id: TaskId, attempt: Attempt, code: Option<i32>, signal: Option<i32>) {
        self.ends_with(id, attempt, exit(code, signal));
    }

    fn ends_with(&mut self, id: TaskId, attempt: Attempt, exit: Exit) {
        let Some(container) = self.containers.get_mut(&(id.clone(), attempt)) else { return };
        if matches!(container, Container::Exited(_)) {
            return;
        }
        *container = Container::Exited(exit.clone());
        self.ends.push((id.clone(), attempt, exit.clone()));
        self.events.push(Event::Exited { id, attempt, exit });
    }

    /// Somebody has taken it away with everything that is known of it. As long as nobody has written down that it was there,
    /// nobody can tell that from one that never was.
    fn vanish(&mut self, index: usize) {
        let Some((id, attempt)) = self.containers.keys().nth(index).cloned() else { return };
        if self.disk.get(&id).is_none_or(|record| record.phase == Phase::Starting) {
            return;
        }
        self.containers.remove(&(id.clone(), attempt));
        self.unclear.insert(id.clone());
        self.events.push(Event::Vanished { id, attempt });
    }

    fn release(&mut self, id: TaskId, attempt: Attempt) {
        if let Some(record) = self.disk.get(&id).filter(|record| record.attempt == attempt) {
            let written = matches!(record.phase, Phase::Releasing { .. } | Phase::Ended(_));
            assert!(written, "{id} {attempt}: released before its end is written down");
        }
        self.containers.remove(&(id.clone(), attempt));
        self.events.push(Event::Released { id, attempt });
    }

    fn hear(&mut self, id: TaskId, update: &Update, detail: u8) {
        let saved = self.disk.get(&id).expect("a record");
        assert!(saved.revision >= update.revision, "{id}: sent before it was written down");
        let sequence = update.sequence;
        if let Some(known) = self.heard.insert((id.clone(), sequence), update.clone()) {
            assert_eq!(known, *update, "{id}: two meanings of one number");
        }
        // Whoever takes note has heard all before.
        let all = (1..=sequence).all(|n| self.heard.contains_key(&(id.clone(), n)));
        if all && detail.is_multiple_of(3) {
            self.events.push(Event::Acknowledged { id, sequence });
        }
    }

    fn fire(&mut self, index: usize) {
        let Some(key) = self.timers.keys().nth(index).cloned() else { return };
        let attempt = self.timers.remove(&key).expect("it is there");
        let (id, timer) = key;
        self.events.push(Event::Elapsed { id, attempt, timer });
    }

    fn crash(&mut self, rebooted: bool, detail: u8) {
        self.effects.clear();
        self.events.clear();
        self.timers.clear();
        if rebooted {
            self.boots += 1;
            self.containers.retain(|_, container| matches!(container, Container::Exited(_)));
        }
        let records: Vec<Record> = self.disk.values().cloned().collect();
        let mut recovered = Vec::new();
        for record in records {
            let evidence = self.evidence(&record, detail);
            let rebooted = self.saved_in.get(&record.id) != Some(&self.boots);
            recovered.push(Recovered { record, evidence, rebooted });
        }
        let found: Vec<Found> = self
            .containers
            .keys()
            .map(|(id, attempt)| Found { id: id.clone(), attempt: *attempt })
            .collect();
        let known: BTreeMap<TaskId, Attempt> =
            self.disk.values().map(|record| (record.id.clone(), record.attempt)).collect();
        let strangers = found.iter().filter(|f| known.get(&f.id) != Some(&f.attempt)).count();
        assert_eq!(strangers, 0, "a container that nobody has written down: {found:?}");
        let (core, effects) = Core::recover(recovered, &found);
        self.core = core;
        self.effects = effects;
    }

    fn evidence(&mut self, record: &Record, detail: u8) -> Evidence {
        match self.containers.get(&(record.id.clone(), record.attempt)) {
            Some(Container::Running) if detail == 13 => {
                self.unclear.insert(record.id.clone());
                Evidence::Unclear { why: "its keeper does not answer".into() }
            }
            Some(Container::Running) => Evidence::Running { ran: Duration::from_secs(1) },
            Some(Container::Exited(exit)) => Evidence::Exited(exit.clone()),
            None => Evidence::Nothing,
        }
    }

    /// Everything is done, delivered and heard; only then a timer fires.
    fn settle(&mut self) {
        const STEPS: usize = 2000;
        for _ in 0..STEPS {
            if !self.effects.is_empty() {
                let effect = self.effects.remove(0);
                self.perform(effect, 30);
            } else if !self.events.is_empty() {
                let event = self.events.remove(0);
                self.deliver(event);
            } else if !self.timers.is_empty() {
                self.fire(0);
            } else {
                return;
            }
        }
        panic!("it comes to no end: {:?}", self.core.records().collect::<Vec<_>>());
    }

    fn check_the_end(&self) {
        assert!(self.containers.is_empty(), "left behind: {:?}", self.containers);
        for record in self.core.records() {
            let Phase::Ended(state) = record.phase else { panic!("has not ended: {record:?}") };
            assert!(record.updates.is_empty(), "not heard: {record:?}");
            let last = self.heard.get(&(record.id.clone(), record.sequence)).expect("an update");
            assert!(
                last.state.is_end() && (last.state == state || state == State::Lost),
                "{last:?}"
            );
            assert_eq!(self.disk.get(&record.id).map(|r| &r.phase), Some(&record.phase));
        }
        for (id, attempt, exit) in &self.ends {
            let told = self.heard.iter().any(|((other, _), update)| {
                other == id && update.attempt == *attempt && tells(&update.reason, exit)
            });
            assert!(told || self.unclear.contains(id), "{id} {attempt}: its end is forgotten");
            let goes_on = self.launched.contains(&(id.clone(), attempt + 1));
            let is_for_good = exit.fenced.is_some() && !self.unclear.contains(id);
            assert!(!(is_for_good && goes_on), "{id} {attempt}: it was fenced, and goes on");
        }
    }
}

const fn exit(code: Option<i32>, signal: Option<i32>) -> Exit {
    Exit { code, signal, ran: Duration::from_secs(1), violated: Vec::new(), fenced: None }
}

fn tells(reason: &Reason, wanted: &Exit) -> bool {
    match reason {
        Reason::Exited(exit) | Reason::Stopped { exit: Some(exit), .. } => exit == wanted,
        _ => false,
    }
}

fn definition() -> impl Strategy<Value = Definition> {
    let restart = prop_oneof![
        Just(Restart::Never),
        Just(Restart::Always),
        Just(Restart::OnFailure { most: None }),
        (0_u32..3).prop_map(|most| Restart::OnFailure { most: Some(most) }),
    ];
    let longest = prop_oneof![Just(None), Just(Some(Duration::from_secs(5)))];
    (restart, longest).prop_map(|(restart, longest)| Definition {
        restart,
        longest,
        grace: Duration::from_secs(1),
        back_off: BackOff {
            first: Duration::from_secs(1),
            most: Duration::from_secs(60),
            forget_after: Duration::from_secs(600),
        },
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Nothing happens before it is saved, no attempt is started twice, no two run at once; what is stopped comes to its
    /// end, every end is told, and everything that is told is heard.
    #[test]
    fn any_schedule(
        definitions in prop::collection::vec(definition(), 1..4),
        schedule in prop::collection::vec(any::<(u8, u8)>(), 0..400),
    ) {
        let mut world = World::with(&definitions);
        for (choice, detail) in schedule {
            world.happen(choice, detail);
        }
        for number in 0..definitions.len() as u8 {
            world.deliver(Event::Stop { id: task(number), why: Stop::Asked, grace: None });
        }
        world.deliver(Event::Resend);
        world.settle();
        world.deliver(Event::Resend);
        world.settle();
        // Who was never written down does not exist after a crash.
        world.check_the_end();
    }
}

/// What its keeper has stopped is told as if the node had been asked to, and is not started again.
#[test]
fn a_fenced_end_is_for_good() {
    let back_off = BackOff {
        first: Duration::from_secs(1),
        most: Duration::from_secs(3),
        forget_after: Duration::from_secs(600),
    };
    let definition =
        Definition { restart: Restart::Always, longest: None, grace: Duration::ZERO, back_off };
    let mut world = World::with(std::slice::from_ref(&definition));
    world.settle_but_timers();
    let longest = Duration::from_secs(30);
    let end = Exit { fenced: Some(longest), ..exit(Some(143), None) };
    world.ends_with(task(0), 1, end.clone());
    world.settle_but_timers();
    let last = world.heard.values().next_back().map(|update| (update.state, update.reason.clone()));
    let reason = Reason::Stopped { why: Stop::Disconnected { longest }, exit: Some(end) };
    assert_eq!(last, Some((State::Killed, reason)));
}

/// A task that nobody stops ends by itself, or goes on for ever, as its definition says.
#[test]
fn restarts_are_counted() {
    let definition = Definition {
        restart: Restart::OnFailure { most: Some(2) },
        longest: None,
        grace: Duration::ZERO,
        back_off: BackOff {
            first: Duration::from_secs(1),
            most: Duration::from_secs(3),
            forget_after: Duration::from_secs(600),
        },
    };
    let mut world = World::with(std::slice::from_ref(&definition));
    let id = task(0);
    for attempt in 1..=3 {
        world.settle_but_timers();
        assert!(world.containers.contains_key(&(id.clone(), attempt)), "attempt {attempt}");
        world.ends(id.clone(), attempt, Some(1), None);
        world.settle_but_timers();
        world.fire(0);
    }
    world.settle();
    let phase = world.core.records().next().map(|record| record.phase.clone());
    assert_eq!(phase, Some(Phase::Ended(State::Failed)));
    let pauses = [1, 2, 3].map(|failures| definition.back_off.pause(failures).as_secs());
    assert_eq!(pauses, [1, 2, 3]);
    assert_eq!(definition.back_off.pause(u32::MAX), Duration::from_secs(3));
}

impl World {
    fn settle_but_timers(&mut self) {
        while !(self.effects.is_empty() && self.events.is_empty()) {
            if self.effects.is_empty() {
                let event = self.events.remove(0);
                self.deliver(event);
            } else {
                let effect = self.effects.remove(0);
                self.perform(effect, 30);
            }
        }
    }
}
