mod agent;
mod check;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use agent::{Agent, Stream, Task, Up};
use hafen_coordinator::cluster::{
    Change, Core, Effect, Event, Held, Hello, Order, Session, Settings, Timer,
};
use hafen_coordinator::model::{
    Affinity, Amounts, BackOff, Constraint, Fence, Job, JobId, Key, Kind, Machine, Namespace,
    NodeId, Record, Seen, Spread, Strategy, Template, Test, task_name,
};

pub(crate) const LEASE: u64 = 5_000;
const PING: u64 = 1_000;
const TICK: u64 = 500;
/// Faults happen until then; after it everything heals, and has this long to come to rest.
const TROUBLE: u64 = 90_000;
const REST: u64 = 200_000;

// What a container does, in the first byte of its payload.
pub(crate) const SERVES: u8 = 0;
pub(crate) const FAILS: u8 = 1;
const RUNS_TO_ITS_END: u8 = 2;
pub(crate) const NEVER_READY: u8 = 3;
const FLAKY: u8 = 4;

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) agents: usize,
    pub(crate) cpu_milli: u64,
    pub(crate) faults: usize,
    pub(crate) replicas: u32,
    pub(crate) tight: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { agents: 10, cpu_milli: 16_000, faults: 60, replicas: 12, tight: false }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Happening {
    ToMaster {
        stream: u64,
        number: u64,
        what: Up,
    },
    ToAgent {
        stream: u64,
        heard: u64,
        epoch: u64,
        order: Option<Order>,
    },
    /// Either end notices that a stream is broken.
    BrokenAtMaster {
        stream: u64,
    },
    BrokenAtAgent {
        stream: u64,
    },
    Tick {
        agent: usize,
    },
    Saved {
        life: u64,
        revision: u64,
        changes: Vec<Change>,
    },
    Elapsed {
        life: u64,
        timer: Timer,
    },
    Watch {
        life: u64,
        node: NodeId,
    },
    Task {
        agent: usize,
        boot: u64,
        task: String,
        becomes: Seen,
    },
    Trouble,
    Link {
        agent: usize,
    },
    Power {
        agent: usize,
    },
    Start {
        agent: usize,
    },
    Coordinator,
    Operate,
    Die,
    Heal,
}

#[derive(Debug)]
struct Line {
    stream: u64,
    node: NodeId,
    heard: u64,
    heard_at: u64,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    random: u64,
    pub(crate) now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    pub(crate) agents: Vec<Agent>,
    /// Of each stream that was ever dialled.
    streams: Vec<usize>,
    /// When the last message of a stream arrives, up and down.
    arrivals: BTreeMap<(u64, bool), u64>,
    pub(crate) disk: BTreeMap<Key, Record>,
    pub(crate) erased: BTreeSet<Key>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) draining: BTreeSet<usize>,
    pub(crate) healed: bool,
    /// A machine that never comes back.
    pub(crate) dead: Option<usize>,
    // Gone when the coordinator dies:
    pub(crate) core: Option<Core>,
    life: u64,
    lines: BTreeMap<Session, Line>,
    /// By their streams.
    sessions: BTreeMap<u64, Session>,
    next_session: Session,
    watches: BTreeMap<NodeId, (Session, u64, u64)>,
    timers: BTreeMap<Timer, u64>,
    last_save: u64,
    trace: bool,
}

fn node(agent: usize) -> NodeId {
    NodeId(format!("n{agent:04}"))
}

pub(crate) fn agent_of(node: &NodeId) -> usize {
    node.0[1..].parse().expect("one of ours")
}

fn settings() -> Settings {
    Settings { lease: Duration::from_millis(LEASE), margin: Duration::from_secs(1) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("short")
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let (core, effects) = Core::recover(settings(), Vec::new());
        let mut world = Self {
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            agents: Vec::new(),
            streams: Vec::new(),
            arrivals: BTreeMap::new(),
            disk: BTreeMap::new(),
            erased: BTreeSet::new(),
            jobs: BTreeMap::new(),
            draining: BTreeSet::new(),
            healed: false,
            dead: None,
            core: Some(core),
            life: 1,
            lines: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
            watches: BTreeMap::new(),
            timers: BTreeMap::new(),
            last_save: 0,
            trace: std::env::var_os("HAFEN_TRACE").is_some(),
            plan,
        };
        for agent in 0..world.plan.agents {
            let rate = 990 + world.below(21);
            world.agents.push(Agent::new(rate));
            let at = world.below(1000);
            world.after(at, Happening::Tick { agent });
        }
        for _ in 0..world.plan.faults {
            let at = 2_000 + world.below(TROUBLE - 2_000);
            world.after(at, Happening::Trouble);
        }
        for _ in 0..world.plan.faults.min(12) {
            let at = 2_000 + world.below(TROUBLE - 2_000);
            world.after(at, Happening::Operate);
        }
        if world.plan.faults > 0 && !world.plan.tight {
            let at = 2_000 + world.below(TROUBLE - 2_000);
            world.after(at, Happening::Die);
        }
        world.after(TROUBLE, Happening::Heal);
        world.perform(effects);
        world.first_jobs();
        world
    }

    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % most.max(1)
    }

    fn after(&mut self, delay: u64, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    fn at(&mut self, time: u64, happening: Happening) {
        self.order += 1;
        self.queue.insert((time, self.order), happening);
    }

    pub(crate) fn run(mut self) {
        while let Some(((time, _), happening)) = self.queue.pop_first() {
            if time > TROUBLE + REST {
                break;
            }
            self.now = time;
            if self.trace && !matches!(happening, Happening::Tick { .. }) {
                eprintln!("{time:>7} {happening:?}");
            }
            self.happen(happening);
        }
        self.check_the_end();
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::ToMaster { stream, number, what } => self.at_master(stream, number, what),
            Happening::ToAgent { stream, heard, epoch, order } => {
                self.at_agent(stream, heard, epoch, order);
            }
            Happening::BrokenAtMaster { stream } => self.broken_at_master(stream),
            Happening::BrokenAtAgent { stream } => self.broken_at_agent(stream),
            Happening::Tick { agent } => self.tick(agent),
            Happening::Saved { life, revision, changes } if life == self.life => {
                self.save(changes);
                self.deliver(Event::Saved { revision });
            }
            Happening::Elapsed { life, timer } if life == self.life => {
                if self.timers.get(&timer) == Some(&self.now) {
                    self.timers.remove(&timer);
                    self.deliver(Event::Elapsed(timer));
                }
            }
            Happening::Watch { life, node } if life == self.life => self.watch(&node),
            Happening::Saved { .. } | Happening::Elapsed { .. } | Happening::Watch { .. } => {}
            Happening::Task { agent, boot, task, becomes } => {
                self.task_becomes(agent, boot, &task, becomes);
            }
            Happening::Trouble => self.trouble(),
            Happening::Link { agent } => self.mend(agent),
            Happening::Power { agent } => self.power_on(agent),
            Happening::Start { agent } => self.start_agent(agent),
            Happening::Coordinator => self.start_coordinator(),
            Happening::Operate => self.operate(),
            Happening::Die => self.die(),
            Happening::Heal => self.heal(),
        }
    }
}

// The coordinator's driver.
impl World {
    fn deliver(&mut self, event: Event) {
        let Some(core) = &mut self.core else { return };
        let effects = core.step(event);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Save { revision, changes } => {
                    let is_slow = self.below(50) == 0 && !self.healed;
                    let delay = 1 + self.below(if is_slow { 1_500 } else { 20 });
                    self.last_save = self.last_save.max(self.now + delay);
                    let (at, life) = (self.last_save, self.life);
                    self.at(at, Happening::Saved { life, revision, changes });
                }
                Effect::Send { session, order, node } => {
                    self.check_order(&node, &order);
                    self.tell(session, Some(order));
                }
                Effect::Close { session, .. } => {
                    if let Some(line) = self.lines.remove(&session) {
                        self.down(line.stream, Happening::BrokenAtAgent { stream: line.stream });
                    }
                }
                Effect::Watch { node, session, silence } => {
                    let (now, life) = (self.now, self.life);
                    self.watches.insert(node.clone(), (session, millis(silence), now));
                    self.after(millis(silence), Happening::Watch { life, node });
                }
                Effect::Arm { timer, after } => {
                    let (at, life) = (self.now + millis(after), self.life);
                    self.timers.insert(timer.clone(), at);
                    self.at(at, Happening::Elapsed { life, timer });
                }
            }
        }
    }

    fn watch(&mut self, node: &NodeId) {
        let Some((session, silence, since)) = self.watches.get(node).copied() else { return };
        let heard = self.heard_last(node, session).max(since);
        if heard + silence > self.now {
            let life = self.life;
            return self.at(heard + silence, Happening::Watch { life, node: node.clone() });
        }
        self.watches.remove(node);
        self.deliver(Event::Silent { node: node.clone(), session });
    }

    fn heard_last(&self, node: &NodeId, session: Session) -> u64 {
        self.lines.get(&session).filter(|line| line.node == *node).map_or(0, |line| line.heard_at)
    }

    fn tell(&mut self, session: Session, order: Option<Order>) {
        let Some(line) = self.lines.get(&session) else { return };
        let epoch = self.core.as_ref().map_or(0, Core::epoch);
        let (stream, heard) = (line.stream, line.heard);
        self.down(stream, Happening::ToAgent { stream, heard, epoch, order });
    }

    fn at_master(&mut self, stream: u64, number: u64, what: Up) {
        if self.core.is_none() {
            return self.down(stream, Happening::BrokenAtAgent { stream });
        }
        if let Up::Hello { incarnation, connection, epoch_seen, held } = what {
            return self.hello(stream, incarnation, connection, epoch_seen, held);
        }
        let (now, id) = (self.now, node(self.streams[stream as usize]));
        let session = self.sessions.get(&stream).copied().unwrap_or_default();
        let Some(line) = self.lines.get_mut(&session) else {
            return self.down(stream, Happening::BrokenAtAgent { stream });
        };
        assert_eq!(number, line.heard + 1, "a stream keeps its order");
        (line.heard, line.heard_at) = (number, now);
        match what {
            Up::Update { task, sequence, seen } => {
                self.deliver(Event::Update { node: id, session, task, sequence, seen });
            }
            Up::Refused { task } => self.deliver(Event::Refused { node: id, session, task }),
            Up::Ping | Up::Hello { .. } => {}
        }
        self.tell(session, None);
    }

    fn hello(
        &mut self,
        stream: u64,
        incarnation: u64,
        connection: u64,
        epoch_seen: u64,
        held: Vec<(String, Seen)>,
    ) {
        let agent = self.streams[stream as usize];
        let session = self.next_session;
        self.next_session += 1;
        let line = Line { stream, node: node(agent), heard: 1, heard_at: self.now };
        self.lines.insert(session, line);
        self.sessions.insert(stream, session);
        let hello = Hello {
            node: node(agent),
            instance: format!("i{agent}"),
            incarnation,
            connection,
            epoch_seen,
            machine: self.machine(agent),
            held: held.into_iter().map(|(task, seen)| Held { task, seen }).collect(),
        };
        self.deliver(Event::Hello { session, hello });
    }

    fn broken_at_master(&mut self, stream: u64) {
        let session = self.sessions.get(&stream).copied().unwrap_or_default();
        let Some(id) = self.lines.get(&session).map(|line| line.node.clone()) else { return };
        // Its last sign still counts for the watch.
        let heard = self.lines.remove(&session).map_or(0, |line| line.heard_at);
        if let Some(watch) = self.watches.get_mut(&id).filter(|watch| watch.0 == session) {
            watch.2 = watch.2.max(heard);
        }
        self.deliver(Event::Closed { node: id, session });
    }

    fn stop_coordinator(&mut self) {
        self.core = None;
        self.life += 1;
        for (_, line) in std::mem::take(&mut self.lines) {
            self.down(line.stream, Happening::BrokenAtAgent { stream: line.stream });
        }
        self.sessions.clear();
        self.watches.clear();
        self.timers.clear();
        self.last_save = self.now;
    }

    fn start_coordinator(&mut self) {
        if self.core.is_some() {
            return;
        }
        let (core, effects) = Core::recover(settings(), self.disk.values().cloned().collect());
        self.core = Some(core);
        self.perform(effects);
    }
}

// Links and agents.
impl World {
    fn up(&mut self, agent: usize, what: Up) {
        let now = self.now;
        let Some(stream) = &mut self.agents[agent].stream else { return };
        // Nothing but the Hello goes out before the Welcome.
        if !stream.welcomed && !matches!(what, Up::Hello { .. }) {
            return;
        }
        stream.number += 1;
        let (id, number) = (stream.id, stream.number);
        stream.sent.push_back((number, now));
        let message = Happening::ToMaster { stream: id, number, what };
        if self.agents[agent].cut_up {
            return self.agents[agent].held_up.push((id, message));
        }
        self.travel((id, true), self.agents[agent].latency, message);
    }

    /// Only what is of one stream and goes one way keeps its order.
    fn travel(&mut self, way: (u64, bool), latency: u64, message: Happening) {
        let delay = 1 + self.below(latency);
        let at = self.arrivals.get(&way).copied().unwrap_or_default().max(self.now + delay);
        self.arrivals.insert(way, at);
        self.at(at, message);
    }

    fn down(&mut self, stream: u64, message: Happening) {
        let agent = self.streams[stream as usize];
        if self.agents[agent].cut_down {
            return self.agents[agent].held_down.push((stream, message));
        }
        self.travel((stream, false), self.agents[agent].latency, message);
    }

    /// What was held at the cut goes on its way, in order and late.
    fn mend(&mut self, index: usize) {
        let agent = &mut self.agents[index];
        (agent.cut_up, agent.cut_down, agent.latency) = (false, false, 20);
        let (up, down) = (std::mem::take(&mut agent.held_up), std::mem::take(&mut agent.held_down));
        for (stream, message) in up {
            self.travel((stream, true), 1_000, message);
        }
        for (stream, message) in down {
            self.travel((stream, false), 1_000, message);
        }
    }

    fn tick(&mut self, index: usize) {
        self.after(TICK, Happening::Tick { agent: index });
        self.fence(index);
        let now = self.now;
        let agent = &mut self.agents[index];
        if !agent.alive {
            return;
        }
        let stale = agent.stream.as_ref().is_some_and(|s| agent.since(s.heard_at, now) >= LEASE);
        if stale {
            self.hang_up(index);
        }
        let agent = &self.agents[index];
        match &agent.stream {
            None if now >= agent.dial_at => self.dial(index),
            Some(stream) if stream.sent.back().is_none_or(|(_, at)| at + PING <= now) => {
                self.up(index, Up::Ping);
            }
            Some(stream) if stream.welcomed && self.now.is_multiple_of(4) => self.resend(index),
            _ => {}
        }
    }

    /// The node stops what it promised to stop, whether its agent lives or not.
    fn fence(&mut self, index: usize) {
        let agent = &self.agents[index];
        let silence = agent.since(agent.heard_at, self.now);
        let late =
            agent.tasks.iter().filter(|(_, task)| task.runs && !task.dying).filter(|(_, t)| {
                let fence = t.allocation.fence;
                fence.is_some_and(|fence| silence >= millis(fence.stop_after_disconnect))
            });
        for name in late.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.kill(index, &name);
        }
    }

    fn kill(&mut self, index: usize, name: &str) {
        let delay = 1 + self.below(1_900);
        let agent = &mut self.agents[index];
        let boot = agent.boot;
        let Some(task) = agent.tasks.get_mut(name).filter(|task| task.runs && !task.dying) else {
            return;
        };
        task.dying = true;
        let task = name.to_owned();
        self.after(delay, Happening::Task { agent: index, boot, task, becomes: Seen::Killed });
    }

    fn hang_up(&mut self, index: usize) {
        let pause = 200 + self.below(1_000);
        let agent = &mut self.agents[index];
        let Some(stream) = agent.stream.take() else { return };
        agent.dial_at = self.now + pause;
        let lost = self.below(3) == 0;
        if !lost && !self.agents[index].cut_up {
            self.after(5, Happening::BrokenAtMaster { stream: stream.id });
        }
    }

    fn dial(&mut self, index: usize) {
        let id = self.streams.len() as u64;
        self.streams.push(index);
        let now = self.now;
        let agent = &mut self.agents[index];
        agent.connection += 1;
        agent.stream =
            Some(Stream { id, number: 0, sent: VecDeque::new(), heard_at: now, welcomed: false });
        let held = agent.tasks.iter().map(|(name, task)| (name.clone(), task.seen)).collect();
        let (incarnation, connection) = (agent.incarnation, agent.connection);
        let epoch_seen = agent.epoch_seen;
        self.up(index, Up::Hello { incarnation, connection, epoch_seen, held });
    }

    fn broken_at_agent(&mut self, stream: u64) {
        let index = self.streams[stream as usize];
        let is_this = self.agents[index].stream.as_ref().is_some_and(|s| s.id == stream);
        if is_this {
            self.hang_up(index);
        }
    }

    fn at_agent(&mut self, stream: u64, heard: u64, epoch: u64, order: Option<Order>) {
        let index = self.streams[stream as usize];
        let now = self.now;
        let agent = &mut self.agents[index];
        let is_this = agent.stream.as_ref().is_some_and(|current| current.id == stream);
        if !agent.alive || !is_this || epoch < agent.epoch_seen {
            return;
        }
        agent.epoch_seen = epoch;
        agent.heard(heard);
        // What comes after the lease is void.
        let at = agent.stream.as_ref().map_or(0, |stream| stream.heard_at);
        if agent.since(at, now) >= LEASE {
            return self.hang_up(index);
        }
        match order {
            None | Some(Order::Drain(_)) => {}
            Some(Order::Welcome { acknowledged }) => self.welcomed(index, &acknowledged),
            Some(Order::Acknowledge { task, sequence }) => agent.acknowledged(&task, sequence),
            Some(Order::Forget { task }) => self.forget(index, &task),
            Some(Order::Stop { task, .. }) => self.stop(index, &task),
            Some(Order::Run { allocation, payload, .. }) => {
                self.run_task(index, &task_name(allocation), payload[0]);
            }
        }
    }

    fn welcomed(&mut self, index: usize, acknowledged: &[(String, u64)]) {
        let agent = &mut self.agents[index];
        for (task, sequence) in acknowledged {
            agent.acknowledged(task, *sequence);
        }
        if let Some(stream) = &mut agent.stream {
            stream.welcomed = true;
        }
        self.resend(index);
    }

    /// More often than it has to.
    fn resend(&mut self, index: usize) {
        let mut again = Vec::new();
        for (name, task) in &self.agents[index].tasks {
            let unheard = task.unheard.iter().copied();
            again.extend(unheard.map(|(sequence, seen)| Up::Update {
                task: name.clone(),
                sequence,
                seen,
            }));
        }
        for update in again {
            self.up(index, update);
        }
    }

    fn forget(&mut self, index: usize, name: &str) {
        let agent = &mut self.agents[index];
        let over = |task: &&Task| !task.runs && task.unheard.is_empty();
        if agent.tasks.get(name).filter(over).is_some() {
            agent.tasks.remove(name);
            agent.past.insert(name.to_owned());
        }
    }

    fn stop(&mut self, index: usize, name: &str) {
        self.kill(index, name);
    }

    fn run_task(&mut self, index: usize, name: &str, behaviour: u8) {
        let now = self.now;
        let agent = &self.agents[index];
        if agent.tasks.contains_key(name) {
            return;
        }
        let allocation = self.allocation(name).expect("it was written down").clone();
        let silence = agent.since(agent.heard_at, now);
        let fence = allocation.fence.map(|fence| millis(fence.stop_after_disconnect));
        if fence.is_some_and(|most| silence >= most) || self.below(200) == 0 {
            return self.up(index, Up::Refused { task: name.to_owned() });
        }
        self.check_start(index, name, &allocation);
        let task = Task {
            allocation,
            behaviour,
            runs: true,
            dying: false,
            seen: Seen::Alive,
            sequence: 0,
            unheard: VecDeque::new(),
        };
        self.agents[index].tasks.insert(name.to_owned(), task);
        self.news(index, name, Seen::Alive);
        self.behave(index, name);
    }

    fn behave(&mut self, index: usize, name: &str) {
        let (behaviour, boot) = (self.agents[index].tasks[name].behaviour, self.agents[index].boot);
        let soon = 10 + self.below(400);
        let then = |world: &mut Self, delay, becomes| {
            let task = name.to_owned();
            world.after(delay, Happening::Task { agent: index, boot, task, becomes });
        };
        match behaviour {
            SERVES => then(self, soon, Seen::Ready),
            FAILS => then(self, soon, Seen::Failed),
            RUNS_TO_ITS_END => {
                then(self, soon, Seen::Ready);
                let fails = self.below(4) == 0 && !self.healed;
                let end = if fails { Seen::Failed } else { Seen::Finished };
                let later = soon + 100 + self.below(5_000);
                then(self, later, end);
            }
            FLAKY => {
                then(self, soon, Seen::Ready);
                if !self.healed {
                    let later = soon + self.below(30_000);
                    then(self, later, Seen::Failed);
                }
            }
            _ => {}
        }
    }

    fn task_becomes(&mut self, index: usize, boot: u64, name: &str, becomes: Seen) {
        let agent = &mut self.agents[index];
        let Some(task) = agent.tasks.get_mut(name) else { return };
        let is_late = agent.boot != boot || !task.runs || (task.dying && becomes != Seen::Killed);
        if is_late {
            return;
        }
        if becomes.is_end() {
            task.runs = false;
        }
        self.news(index, name, becomes);
    }

    /// Written down by the node, also while its agent is dead; sent if there is a stream.
    fn news(&mut self, index: usize, name: &str, seen: Seen) {
        let update = self.agents[index].tell(name, seen);
        if let Some(update) = update.filter(|_| self.agents[index].alive) {
            self.up(index, update);
        }
    }
}

// Trouble.
impl World {
    fn trouble(&mut self) {
        if self.healed {
            return;
        }
        let index = self.victim();
        let short = 100 + self.below(20_000);
        match self.below(20) {
            0..=2 => self.cut(index, true, true, short),
            3..=5 => self.cut(index, true, false, short),
            6..=8 => self.cut(index, false, true, short),
            9 | 10 => self.slow(index, short),
            11..=13 => self.power_off(index, short),
            14 | 15 => self.stop_agent(index, short),
            16 => self.reset(index),
            17 => self.lose(index),
            _ => {
                self.stop_coordinator();
                let down = 50 + self.below(10_000);
                self.after(down, Happening::Coordinator);
            }
        }
    }

    /// Rather a node with something that must not run twice.
    fn victim(&mut self) -> usize {
        let is_single = |agent: &Agent| {
            agent.tasks.values().any(|task| task.runs && task.allocation.fence.is_some())
        };
        let singles: Vec<usize> =
            (0..self.agents.len()).filter(|n| is_single(&self.agents[*n])).collect();
        if !singles.is_empty() && self.below(2) == 0 {
            return singles[self.below(singles.len() as u64) as usize];
        }
        self.below(self.agents.len() as u64) as usize
    }

    fn cut(&mut self, index: usize, up: bool, down: bool, time: u64) {
        let agent = &mut self.agents[index];
        (agent.cut_up, agent.cut_down) = (agent.cut_up || up, agent.cut_down || down);
        self.after(time, Happening::Link { agent: index });
    }

    fn slow(&mut self, index: usize, time: u64) {
        self.agents[index].latency = 4_000;
        self.after(time, Happening::Link { agent: index });
    }

    fn reset(&mut self, index: usize) {
        let Some(stream) = self.agents[index].stream.as_ref().map(|stream| stream.id) else {
            return;
        };
        self.after(3, Happening::BrokenAtMaster { stream });
        self.after(5, Happening::BrokenAtAgent { stream });
    }

    /// It cannot tell any more what became of a task, which runs on.
    fn lose(&mut self, index: usize) {
        let running = self.agents[index].tasks.iter().find(|(_, task)| task.runs && !task.dying);
        if let Some(name) = running.map(|(name, _)| name.clone()) {
            self.news(index, &name, Seen::Lost);
        }
    }

    fn power_off(&mut self, index: usize, time: u64) {
        if !self.agents[index].powered {
            return;
        }
        self.stop_agent(index, time + 1);
        let agent = &mut self.agents[index];
        agent.powered = false;
        agent.boot += 1;
        let ended: Vec<String> = agent
            .tasks
            .iter()
            .filter(|(_, task)| task.runs)
            .map(|(name, _)| name.clone())
            .collect();
        for name in ended {
            self.agents[index].tasks.get_mut(&name).expect("it is there").runs = false;
            self.news(index, &name, Seen::Failed);
        }
        self.after(time, Happening::Power { agent: index });
    }

    fn power_on(&mut self, index: usize) {
        if self.dead == Some(index) {
            return;
        }
        self.agents[index].powered = true;
    }

    fn stop_agent(&mut self, index: usize, time: u64) {
        let agent = &mut self.agents[index];
        agent.alive = false;
        if let Some(stream) = agent.stream.take()
            && time.is_multiple_of(2)
        {
            self.after(5, Happening::BrokenAtMaster { stream: stream.id });
        }
        self.after(time, Happening::Start { agent: index });
    }

    fn start_agent(&mut self, index: usize) {
        let agent = &mut self.agents[index];
        if agent.alive || !agent.powered {
            return;
        }
        (agent.alive, agent.stream) = (true, None);
        agent.incarnation += 1;
        (agent.connection, agent.dial_at) = (0, self.now);
    }

    fn die(&mut self) {
        let index = self.agents.len() - 1;
        self.power_off(index, 0);
        self.agents[index].powered = false;
        self.dead = Some(index);
    }

    fn heal(&mut self) {
        self.healed = true;
        for index in 0..self.agents.len() {
            self.mend(index);
            if self.dead == Some(index) {
                continue;
            }
            self.agents[index].powered = true;
            self.start_agent(index);
        }
        self.start_coordinator();
    }
}

// What people want.
impl World {
    fn machine(&self, agent: usize) -> Machine {
        let attributes = [("zone".to_owned(), format!("z{}", agent % 3))];
        let memory = 64 << 30;
        let allocatable = Amounts { cpu_milli: self.plan.cpu_milli, memory, disk: 0, pids: 0 };
        let features = BTreeSet::from(["fence".to_owned()]);
        Machine { attributes: attributes.into(), features, allocatable }
    }

    fn job(&self, name: &str, kind: Kind, behaviour: u8) -> Job {
        let request = Amounts { cpu_milli: 300, memory: 64 << 20, disk: 0, pids: 0 };
        Job {
            id: JobId(name.to_owned()),
            namespace: Namespace("default".to_owned()),
            kind,
            template: Template { payload: vec![behaviour], request, ..Template::default() },
            priority: 50,
            preempts: false,
            update: Strategy { healthy_within: Duration::from_secs(8), ..Strategy::default() },
            reschedule: BackOff { first: Duration::from_secs(1), most: Duration::from_secs(20) },
            grace: Duration::ZERO,
            source: Vec::new(),
        }
    }

    fn first_jobs(&mut self) {
        let fence = |seconds| {
            let stop_after_disconnect = Duration::from_secs(seconds);
            Some(Fence { stop_after_disconnect, kill_grace: Duration::from_secs(2) })
        };
        let mut web = self.job("web", Kind::Replicas(self.plan.replicas), SERVES);
        web.template.rules.spread = Some(Spread { attribute: "zone".into(), most_uneven: None });
        web.update.most_parallel = 3;
        let mut patient = self.job("patient", Kind::Replicas(3), SERVES);
        patient.grace = Duration::from_secs(6);
        patient.template.rules.affinities = vec![Affinity {
            constraint: Constraint { attribute: "zone".into(), test: Test::In(vec!["z1".into()]) },
            weight: 5,
        }];
        let mut one = self.job("one", Kind::Replicas(4), SERVES);
        one.template.fence = fence(15);
        let mut quick = self.job("quick", Kind::Replicas(3), SERVES);
        quick.template.fence = fence(3);
        quick.template.ports = BTreeSet::from([5432]);
        let mut everywhere = self.job("everywhere", Kind::OnePerNode, SERVES);
        (everywhere.priority, everywhere.preempts) = (80, true);
        let batch = self.job("batch", Kind::Batch { runs: 6, tries: 1000 }, RUNS_TO_ITS_END);
        let flaky = self.job("flaky", Kind::Replicas(2), FLAKY);
        let mut bounded = self.job("bounded", Kind::Replicas(5), SERVES);
        bounded.namespace = Namespace("bounded".to_owned());
        let most = Amounts { cpu_milli: 1000, memory: 1 << 40, disk: 0, pids: 0 };
        self.deliver(Event::Quota { namespace: bounded.namespace.clone(), most: Some(most) });
        let mut jobs = vec![web, patient, one, quick, everywhere, batch, flaky, bounded];
        if self.plan.tight {
            let mut urgent = self.job("urgent", Kind::Replicas(self.plan.agents as u32), SERVES);
            (urgent.priority, urgent.preempts) = (90, true);
            urgent.template.request.cpu_milli = 700;
            jobs.push(urgent);
        }
        for job in jobs {
            self.submit(job);
        }
    }

    fn submit(&mut self, job: Job) {
        let Some(core) = &mut self.core else { return };
        let effects = core.submit(job.clone()).expect("a good job");
        self.jobs.insert(job.id.clone(), job);
        self.perform(effects);
    }

    fn operate(&mut self) {
        if self.core.is_none() {
            return;
        }
        let choice = self.below(8);
        let web = JobId("web".to_owned());
        let mut job = self.jobs[&web].clone();
        match choice {
            0 | 1 => {
                job.template.payload = vec![SERVES, self.below(250) as u8];
                self.submit(job);
            }
            2 => {
                let broken = if self.below(2) == 0 { FAILS } else { NEVER_READY };
                job.template.payload = vec![broken, self.below(250) as u8];
                self.submit(job);
            }
            3 => {
                job.kind = Kind::Replicas(1 + self.below(u64::from(self.plan.replicas)) as u32);
                self.submit(job);
            }
            4 => {
                let mut one = self.jobs[&JobId("one".to_owned())].clone();
                one.template.payload = vec![SERVES, self.below(250) as u8];
                self.submit(one);
            }
            5 => self.drain(true),
            6 => self.drain(false),
            _ => self.stop_or_start(),
        }
    }

    fn drain(&mut self, on: bool) {
        // Few enough that there is room for all elsewhere.
        let index = self.below(2) as usize;
        let before = self.draining.len();
        if on {
            self.draining.insert(index)
        } else {
            self.draining.remove(&index)
        };
        if self.draining.len() != before {
            let seconds = self.below(40);
            let within =
                Some(Duration::from_secs(seconds)).filter(|_| on && seconds.is_multiple_of(2));
            self.deliver(Event::Drain { node: node(index), on, within });
        }
    }

    fn stop_or_start(&mut self) {
        let id = JobId("patient".to_owned());
        if let Some(job) = self.jobs.remove(&id) {
            self.jobs.insert(JobId("patient-stopped".to_owned()), job);
            self.deliver(Event::Stop { job: id, purge: self.random.is_multiple_of(2) });
        } else if let Some(job) = self.jobs.remove(&JobId("patient-stopped".to_owned())) {
            self.submit(job);
        }
    }
}
