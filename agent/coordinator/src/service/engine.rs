//! The loop that owns the cluster: what nodes, people, the disk and the clock say goes in, one after the other, and what is to
//! be done is done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hafen_door::failure::{Failure, Kind};
use hafen_protocol::{time, v1};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::agenda::{Agenda, Due};
use super::board::Board;
use super::channel::{self, Channels, Opened};
use super::events::Events;
use super::metrics::Numbers;
use super::saver::{News, Saver};
use super::session::{About, Last, Line, Stream};
use super::{Card, Ended};
use crate::cluster::{Core, Effect, Event, Order, Refusal, Session, Settings};
use crate::model::{Amounts, Drain, NodeId, Record};
use crate::state::{Mandate, Save};
use crate::wire;

/// Of the lease: how long a message may stay without any answer.
const ANSWER: u32 = 10;
/// Of the lease: a loop that is so late was stopped itself, and first hears what has come meanwhile.
const LATE: u32 = 4;
/// Reports are wanted that often.
const REPORT: Duration = Duration::from_secs(10);
/// Messages that are taken in before the clock is looked at again.
const ROUND: usize = 64;

/// Of nodes.
#[derive(Debug)]
pub(super) enum Input {
    Hello {
        hello: Box<v1::Hello>,
        line: Line,
        session: oneshot::Sender<Session>,
    },
    Said {
        session: Session,
        message: Box<v1::FromAgent>,
        /// So that no node has many messages here at a time.
        _turn: OwnedSemaphorePermit,
    },
    Ended {
        session: Session,
        last: Last,
    },
}

/// Something that somebody wants to know or do.
pub(super) type Ask = Box<dyn FnOnce(&mut Engine) + Send>;

/// Ends of the loop's queues, for all who talk to it.
#[derive(Debug, Clone)]
pub(super) struct Inlet {
    pub(super) nodes: mpsc::UnboundedSender<Input>,
    pub(super) people: mpsc::Sender<Ask>,
    pub(super) saved: watch::Receiver<u64>,
    pub(super) changed: watch::Receiver<u64>,
    pub(super) epoch: u64,
    pub(super) events: Events,
    pub(super) numbers: Numbers,
}

pub(super) struct Engine {
    pub(super) core: Core,
    pub(super) card: Arc<Card>,
    pub(super) board: Board,
    pub(super) events: Events,
    pub(super) numbers: Numbers,
    pub(super) saver: Saver,
    mandate: Mandate,
    settings: Settings,
    streams: BTreeMap<Session, Stream>,
    /// Of those that are watched: the stream, the silence, and when it began to count.
    watches: BTreeMap<NodeId, (Session, Duration, Instant)>,
    agenda: Agenda,
    channels: Channels,
    last_session: Session,
    last_command: u64,
    saved: watch::Sender<u64>,
    changed: watch::Sender<u64>,
    stalled: bool,
    /// The last view that was made.
    pub(super) seen: Option<Arc<v1::ClusterView>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

/// What the loop waits for.
#[derive(Debug)]
pub(super) struct Queues {
    nodes: mpsc::UnboundedReceiver<Input>,
    people: mpsc::Receiver<Ask>,
    disk: mpsc::UnboundedReceiver<News>,
}

/// People who wait for their turn.
const PEOPLE: usize = 256;

impl Engine {
    /// Begin where the records say. Nothing is done before [`Self::run`].
    pub(super) fn open(
        records: Vec<Record>,
        (save, mandate): (Save, Mandate),
        settings: Settings,
        card: Arc<Card>,
    ) -> Result<(Self, Queues, Inlet, Vec<Effect>, super::tokens::Tokens), Ended> {
        let tokens = super::tokens::Tokens::new(&records);
        let (core, effects) = Core::recover(settings, records);
        let numbers = Numbers::default();
        let (saver, disk) = Saver::start(save, numbers.clone()).map_err(Ended::Thread)?;
        let (nodes_sender, nodes) = mpsc::unbounded_channel();
        let (people_sender, people) = mpsc::channel(PEOPLE);
        let (saved, see_saved) = watch::channel(0);
        // Greater than any of an earlier epoch: who waits for a change sees the restart.
        let (changed, see_changed) = watch::channel((core.epoch() << 32) + 1);
        let events = Events::new(core.epoch());
        let inlet = Inlet {
            nodes: nodes_sender,
            people: people_sender,
            saved: see_saved,
            changed: see_changed,
            epoch: core.epoch(),
            events: events.clone(),
            numbers: numbers.clone(),
        };
        let engine = Self {
            board: Board::new(&core),
            core,
            card,
            events,
            numbers,
            saver,
            mandate,
            settings,
            streams: BTreeMap::new(),
            watches: BTreeMap::new(),
            agenda: Agenda::default(),
            channels: Channels::default(),
            last_session: 0,
            last_command: 0,
            saved,
            changed,
            stalled: false,
            seen: None,
        };
        Ok((engine, Queues { nodes, people, disk }, inlet, effects, tokens))
    }

    /// Until `stop`, or until nothing can be written down any more.
    pub(super) async fn run(
        mut self,
        mut queues: Queues,
        begin: Vec<Effect>,
        mut stop: oneshot::Receiver<()>,
    ) -> Result<(), Ended> {
        self.perform(begin);
        loop {
            let next = self.agenda.next();
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // All of these lose nothing when they are dropped (tokio, "Cancel safety"). Without `biased` each has its turn.
            tokio::select! {
                _ = &mut stop => return Ok(()),
                Some(news) = queues.disk.recv() => self.written(news?),
                Some(ask) = queues.people.recv() => ask(&mut self),
                Some(input) = queues.nodes.recv() => self.take_all(input, &mut queues.nodes),
                () = due => self.elapse(),
            }
        }
    }

    fn take_all(&mut self, first: Input, more: &mut mpsc::UnboundedReceiver<Input>) {
        self.take(first);
        for _ in 0..ROUND {
            let Ok(input) = more.try_recv() else { return };
            self.take(input);
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Hello { hello, line, session } => {
                let number = self.hello(&hello, line);
                let _ = session.send(number);
            }
            Input::Said { session, message, .. } => self.said(session, *message),
            Input::Ended { session, last } => self.lose(session, last),
        }
    }

    fn written(&mut self, revision: u64) {
        self.happened(Event::Saved { revision });
        self.saved.send_replace(revision);
    }

    /// What is due. Whoever was stopped himself first hears what has come meanwhile: to wait longer is always safe.
    fn elapse(&mut self) {
        let now = Instant::now();
        while let Some((at, due)) = self.agenda.take(now) {
            let late = now.saturating_duration_since(at) > self.settings.lease / LATE;
            if late && !self.stalled && matches!(due, Due::Watch(_)) {
                tracing::warn!(late = ?(now - at), "we were stopped ourselves: nodes get more time");
                self.stalled = true;
                self.spare();
                self.agenda.put(due, self.settings.lease / 2);
                return;
            }
            match due {
                Due::Timer(timer) => self.happened(Event::Elapsed(timer)),
                Due::Watch(node) => self.look(&node),
                Due::Answer(session) => self.answer(session),
                Due::Channel(command) => {
                    let words = "its node did not open the channel in time";
                    self.channels.give_up(&command, Failure::new(Kind::Deadline, words));
                }
            }
        }
        self.stalled = false;
    }

    /// Every node is looked at later.
    fn spare(&mut self) {
        for node in self.watches.keys().cloned().collect::<Vec<_>>() {
            self.agenda.put(Due::Watch(node), self.settings.lease / 2);
        }
    }

    fn look(&mut self, node: &NodeId) {
        let Some(&(session, silence, since)) = self.watches.get(node) else { return };
        let heard = self.streams.get(&session).map(Stream::last_received);
        let quiet = heard.map_or(since, |heard| heard.max(since)).elapsed();
        if quiet < silence {
            return self.agenda.put(Due::Watch(node.clone()), silence - quiet);
        }
        self.watches.remove(node);
        self.happened(Event::Silent { node: node.clone(), session });
    }

    fn answer(&mut self, session: Session) {
        let owes = self.streams.get(&session).is_some_and(|stream| !stream.answered);
        if owes {
            self.say(session, v1::from_master::What::Ping(v1::Ping {}));
        }
    }

    /// One event, and all that follows from it.
    pub(super) fn happened(&mut self, event: Event) {
        let before = self.board.presence_of(&event, &self.core);
        let effects = self.core.step(event);
        if let Some((node, before)) = before {
            self.board.presence_changed(&node, before, &self.core, &self.events);
            self.change();
        }
        self.perform(effects);
    }

    /// Something is another than it was.
    pub(super) fn change(&mut self) {
        self.changed.send_modify(|revision| *revision += 1);
    }

    pub(super) fn changed(&self) -> u64 {
        *self.changed.borrow()
    }

    pub(super) fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Save { revision, changes } => {
                    self.board.note(&changes, &self.events, &self.numbers);
                    self.change();
                    self.saver.save(revision, changes);
                }
                Effect::Send { session, order, .. } => self.send(session, &order),
                Effect::Close { session, refused, .. } => self.close(session, refused),
                Effect::Watch { node, session, silence } => {
                    self.watches.insert(node.clone(), (session, silence, Instant::now()));
                    self.agenda.put(Due::Watch(node), silence);
                }
                Effect::Arm { timer, after } => self.agenda.put(Due::Timer(timer), after),
            }
        }
    }

    fn hello(&mut self, said: &v1::Hello, line: Line) -> Session {
        self.last_session += 1;
        let session = self.last_session;
        let Ok(hello) = wire::hello(said) else { return session };
        let node = hello.node.clone();
        self.streams.insert(session, Stream::new(node.clone(), line, self.core.epoch()));
        self.happened(Event::Hello { session, hello });
        if let Some(stream) = self.streams.get_mut(&session) {
            let draining = self.core.node(&node).is_some_and(|(node, _)| node.drain.on);
            stream.undrain = said.draining && !draining;
            self.board.hello(&self.core, &node, said);
            self.numbers.streams(self.streams.len());
        }
        session
    }

    fn said(&mut self, session: Session, message: v1::FromAgent) {
        let Some(stream) = self.streams.get_mut(&session) else { return };
        if let Err(rule) = stream.take_in(message.number, message.heard) {
            return self.broken(session, rule);
        }
        let node = stream.node.clone();
        self.board.heard(&node);
        match message.what {
            Some(v1::from_agent::What::Ping(_)) | None => {
                return self.say(session, v1::from_master::What::Ping(v1::Ping {}));
            }
            Some(what) => self.take_word(session, &node, what),
        }
        let due = Due::Answer(session);
        if self.streams.get(&session).is_some_and(|stream| !stream.answered)
            && !self.agenda.has(&due)
        {
            self.agenda.put(due, self.settings.lease / ANSWER);
        }
    }

    fn take_word(&mut self, session: Session, node: &NodeId, what: v1::from_agent::What) {
        use v1::from_agent::What;
        match what {
            What::Hello(_) => self.broken(session, "a second Hello on one stream".to_owned()),
            What::Ping(_) => {}
            What::Update(update) => self.update(session, node, update),
            What::Result(result) => self.result(session, node, &result),
            What::Report(report) => self.report(session, node, &report),
            What::Tasks(tasks) => {
                let held = tasks.tasks.iter().map(wire::held).collect();
                self.happened(Event::Tasks { node: node.clone(), session, held });
            }
            What::Drain(wish) => self.wish(session, node, &wish),
            What::Leaving(leaving) => {
                self.streams.get_mut(&session).into_iter().for_each(|one| one.leaving = true);
                self.board.tell(&self.events, node, "node leaving", &leaving.sentence);
            }
        }
    }

    /// Said again on each stream: the drain that is under way goes on, unless less time is left to it now.
    fn wish(&mut self, session: Session, node: &NodeId, wish: &v1::DrainWish) {
        let within = wish.within.as_ref().map(|within| wire::duration(within, "within"));
        let within = match within.transpose() {
            Ok(within) => within,
            Err(rule) => return self.broken(session, rule.to_string()),
        };
        let before = self.core.node(node).map_or_else(Drain::default, |(node, _)| node.drain);
        if before.on != wish.on {
            self.board.tell(&self.events, node, "node wishes to be drained", "");
        }
        let bounds = before.within.filter(|_| wish.on).into_iter().chain(within);
        let event = Event::Drain { node: node.clone(), on: wish.on, within: bounds.min() };
        self.happened(event);
    }

    fn update(&mut self, session: Session, node: &NodeId, update: v1::TaskUpdate) {
        let v1::TaskUpdate { task, sequence, status: Some(status), .. } = update else {
            return self.broken(session, "an update without a status".to_owned());
        };
        if sequence == 0 {
            return self.broken(session, format!("update 0 of {task}: the first is 1"));
        }
        let seen = wire::seen(status.state(), status.ready);
        self.board.status(&self.core, node, &task, sequence, status);
        self.happened(Event::Update { node: node.clone(), session, task, sequence, seen });
        self.change();
    }

    fn result(&mut self, session: Session, node: &NodeId, result: &v1::CommandResult) {
        let Some(stream) = self.streams.get_mut(&session) else { return };
        let about = match stream.result(&result.command) {
            Ok(about) => about,
            Err(_) => return self.unread(session),
        };
        if let Some(About::Signal(waits)) = about {
            let done = result.failure.as_ref().map(channel::failure).map_or(Ok(()), Err);
            // Nobody may wait any more.
            return drop(waits.send(done));
        }
        let Some(failure) = &result.failure else { return };
        match about {
            Some(About::Run(task)) => {
                tracing::warn!(%node, task, "refused: {}", failure.sentence);
                self.board.refused(&self.core, node, &task, &failure.sentence);
                self.happened(Event::Refused { node: node.clone(), session, task });
            }
            Some(About::Channel) => {
                self.agenda.cancel(&Due::Channel(result.command.clone()));
                self.channels.give_up(&result.command, channel::failure(failure));
            }
            Some(About::Signal(_) | About::Other) | None => {
                tracing::debug!(%node, command = result.command, "failed: {}", failure.sentence);
            }
        }
    }

    fn report(&mut self, session: Session, node: &NodeId, report: &v1::NodeReport) {
        let pressed = self.board.report(&self.core, node, report, &self.events);
        // Under pressure nothing is idle, whatever else the report says.
        if let Some(idle) = wire::idle(report).or(pressed.then(Amounts::default)) {
            self.happened(Event::Report { node: node.clone(), session, idle, pressed });
        }
        self.change();
    }

    fn send(&mut self, session: Session, order: &Order) {
        let Some(stream) = self.streams.get(&session) else { return };
        let (node, undrain) = (stream.node.clone(), stream.undrain);
        self.last_command += 1;
        let epoch = self.core.epoch();
        let id = format!("{epoch:x}-{:x}", self.last_command);
        let what = match wire::order(order, id, epoch, &self.settings) {
            Ok(what) => what,
            Err(error) => return tracing::error!(%node, "a task cannot be read: {error}"),
        };
        let about = match order {
            Order::Run { allocation, .. } => About::Run(crate::model::task_name(*allocation)),
            _ => About::Other,
        };
        match what {
            v1::from_master::What::Command(command) => self.command(session, command, about),
            v1::from_master::What::Welcome(welcome) => {
                self.welcome(session, welcome);
                if undrain {
                    self.send(session, &Order::Drain(false));
                }
            }
            other => self.say(session, other),
        }
    }

    fn welcome(&mut self, session: Session, welcome: v1::Welcome) {
        let Some(stream) = self.streams.get_mut(&session) else { return };
        (stream.welcomed, stream.undrain) = (true, false);
        let welcome = v1::Welcome {
            ping_every: Some(time::span(self.settings.lease / 5)),
            report_every: Some(time::span(REPORT.min(self.settings.lease))),
            master: self.card.name.clone(),
            ..welcome
        };
        self.say(session, v1::from_master::What::Welcome(welcome));
    }

    fn command(&mut self, session: Session, command: v1::Command, about: About) {
        if !self.mandate.holds() {
            return;
        }
        let Some(stream) = self.streams.get_mut(&session) else { return };
        if stream.command(command, about).is_err() {
            self.unread(session);
        }
    }

    /// Whoever may not be the only one any more says nothing, not even that it has heard something.
    fn say(&mut self, session: Session, what: v1::from_master::What) {
        if !self.mandate.holds() {
            return;
        }
        let Some(stream) = self.streams.get_mut(&session) else { return };
        if stream.send(what).is_err() {
            self.unread(session);
        }
    }

    /// It does not read what it is told: it is as good as gone.
    fn unread(&mut self, session: Session) {
        tracing::warn!(session, "the node does not read; its stream is closed");
        self.lose(session, Last::Void);
    }

    fn broken(&mut self, session: Session, rule: String) {
        let Some(stream) = self.streams.get(&session) else { return };
        self.board.tell(&self.events, &stream.node, "node broke the protocol", &rule);
        self.lose(session, Last::Refused(super::master::protocol(rule)));
    }

    fn lose(&mut self, session: Session, last: Last) {
        let Some(stream) = self.streams.remove(&session) else { return };
        let node = stream.node.clone();
        stream.finish(last);
        self.happened(Event::Closed { node, session });
        self.numbers.streams(self.streams.len());
    }

    fn close(&mut self, session: Session, refused: Option<Refusal>) {
        let Some(stream) = self.streams.remove(&session) else { return };
        let node = stream.node.clone();
        if let Some(why) = refused {
            tracing::warn!(%node, "refused: {why}");
            // After a gap the core knows the stream still.
            if why == Refusal::Gap {
                stream.finish(Last::Refused(wire::refused(why)));
                return self.happened(Event::Closed { node, session });
            }
        }
        stream.finish(refused.map_or(Last::Void, |why| Last::Refused(wire::refused(why))));
        self.numbers.streams(self.streams.len());
    }

    /// Ask a node for a channel; the answer comes when it is open, or is not.
    pub(super) fn open_channel(
        &mut self,
        node: &NodeId,
        what: v1::open_channel::What,
    ) -> Result<oneshot::Receiver<Opened>, Failure> {
        let session = self.stream_of(node)?;
        let open = v1::command::What::Open(v1::OpenChannel { what: Some(what) });
        let command = self.new_command(open);
        let opened = self.channels.expect(&command.id, node)?;
        self.agenda.put(Due::Channel(command.id.clone()), channel::PATIENCE);
        self.command(session, command, About::Channel);
        Ok(opened)
    }

    /// Have a node send a signal; the answer comes with the result.
    pub(super) fn signal(
        &mut self,
        node: &NodeId,
        signal: v1::SignalTaskRequest,
    ) -> Result<oneshot::Receiver<Result<(), Failure>>, Failure> {
        let session = self.stream_of(node)?;
        let command = self.new_command(v1::command::What::Signal(signal));
        let (waits, answer) = oneshot::channel();
        self.command(session, command, About::Signal(waits));
        Ok(answer)
    }

    fn stream_of(&self, node: &NodeId) -> Result<Session, Failure> {
        let mut streams = self.streams.iter();
        let stands = streams.find(|(_, stream)| stream.node == *node && stream.welcomed);
        stands.map(|(session, _)| *session).ok_or_else(|| {
            let words = format!("{node} is not heard now");
            Failure::new(Kind::Unavailable, words)
        })
    }

    fn new_command(&mut self, what: v1::command::What) -> v1::Command {
        self.last_command += 1;
        let epoch = self.core.epoch();
        let id = format!("{epoch:x}-{:x}", self.last_command);
        v1::Command { id, epoch, what: Some(what) }
    }

    /// A node has opened one: who waits for it.
    pub(super) fn channel_came(
        &mut self,
        command: &str,
        node: Option<&str>,
    ) -> Option<oneshot::Sender<Opened>> {
        let waits = self.channels.open(command, node)?;
        self.agenda.cancel(&Due::Channel(command.to_owned()));
        Some(waits)
    }

    pub(super) fn now() -> pbjson_types::Timestamp {
        hafen_protocol::time::stamp(SystemTime::now())
    }
}
