//! One stream of a node, as the loop knows it: what was said in each direction, and what waits for a result.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hafen_door::failure::Failure;
use hafen_protocol::v1;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Status;

use crate::model::NodeId;

/// Messages that a node may not have read yet: one that does not read is gone.
pub(super) const UNREAD: usize = 4_096;
/// Commands without a result: the others wait here.
const MOST_COMMANDS: usize = 1_024;
/// One that makes us say so much is gone as well.
const MOST_WAITING: usize = 40_000;

/// A queue has room for 32 from the beginning on, and most nodes are told little: so the messages lie elsewhere.
pub(super) type Down = mpsc::Sender<Result<Box<v1::FromMaster>, Status>>;

/// When something was last received on a stream: set where it is received, so that what waits to be taken in counts.
#[derive(Debug, Clone)]
pub(super) struct Pulse {
    origin: Instant,
    nanos: Arc<AtomicU64>,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), nanos: Arc::default() }
    }

    pub(super) fn beat(&self) {
        let nanos = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_max(nanos, Ordering::Relaxed);
    }

    pub(super) fn last(&self) -> Instant {
        self.origin + Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

/// What a command is about, for when its result comes.
#[derive(Debug)]
pub(super) enum About {
    Run(String),
    Channel,
    /// Somebody waits for the result; it is dropped with the stream.
    Signal(oneshot::Sender<Result<(), Failure>>),
    Other,
}

/// The two ends that a stream's handler gives to the loop.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) down: Down,
    /// Dropped when the stream is to end.
    pub(super) end: oneshot::Sender<()>,
    pub(super) pulse: Pulse,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) node: NodeId,
    line: Line,
    epoch: u64,
    /// Of the last message that was taken in.
    heard: u64,
    sent: u64,
    pub(super) welcomed: bool,
    /// It has said its last word.
    pub(super) leaving: bool,
    /// Something was said since the last message was taken in.
    pub(super) answered: bool,
    /// The agent says that it takes no tasks, and we know of no reason.
    pub(super) undrain: bool,
    commands: BTreeMap<String, About>,
    waiting: VecDeque<(v1::Command, About)>,
}

/// What a stream ends with.
#[derive(Debug)]
pub(super) enum Last {
    Refused(v1::Refused),
    /// Nothing is wrong with it: another one is to be made.
    Void,
    /// It is over one of the limits.
    Limit(String),
}

/// The node does not read what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Stream {
    /// Of which the Hello was received.
    pub(super) fn new(node: NodeId, line: Line, epoch: u64) -> Self {
        Self {
            node,
            line,
            epoch,
            heard: 1,
            sent: 0,
            welcomed: false,
            leaving: false,
            answered: false,
            undrain: false,
            commands: BTreeMap::new(),
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn last_received(&self) -> Instant {
        self.line.pulse.last()
    }

    /// Check the numbers of a message, and count it.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(super) fn take_in(&mut self, number: u64, heard: u64) -> Result<(), String> {
        if number != self.heard + 1 {
            return Err(format!("message {number} came after message {}", self.heard));
        }
        if heard > self.sent {
            return Err(format!("heard is {heard}, and {} messages were sent", self.sent));
        }
        if !self.welcomed {
            return Err("nothing is said between Hello and Welcome".to_owned());
        }
        if self.leaving {
            return Err("nothing is said after Leaving".to_owned());
        }
        self.heard = number;
        self.answered = false;
        Ok(())
    }

    pub(super) fn send(&mut self, what: v1::from_master::What) -> Result<(), Full> {
        let (number, heard, epoch) = (self.sent + 1, self.heard, self.epoch);
        let message = Box::new(v1::FromMaster { number, heard, epoch, what: Some(what) });
        self.line.down.try_send(Ok(message)).map_err(|_| Full)?;
        self.sent = number;
        self.answered = true;
        Ok(())
    }

    /// Now, or when there are fewer without a result.
    pub(super) fn command(&mut self, command: v1::Command, about: About) -> Result<(), Full> {
        if self.commands.len() >= MOST_COMMANDS {
            self.waiting.push_back((command, about));
            return if self.waiting.len() > MOST_WAITING { Err(Full) } else { Ok(()) };
        }
        self.commands.insert(command.id.clone(), about);
        self.send(v1::from_master::What::Command(command))
    }

    /// A result came. What it was about, if it is of this stream.
    pub(super) fn result(&mut self, command: &str) -> Result<Option<About>, Full> {
        let about = self.commands.remove(command);
        if about.is_some()
            && let Some((command, about)) = self.waiting.pop_front()
        {
            self.command(command, about)?;
        }
        Ok(about)
    }

    /// With a last word, if there is room for it.
    pub(super) fn finish(mut self, last: Last) {
        let void = || Status::unavailable("the stream is void: dial again");
        let last = match last {
            Last::Refused(refused) => self.send(v1::from_master::What::Refused(refused)),
            Last::Void => self.line.down.try_send(Err(void())).map_err(|_| Full),
            Last::Limit(words) => {
                let status = Status::resource_exhausted(words);
                self.line.down.try_send(Err(status)).map_err(|_| Full)
            }
        };
        // It does not read: nothing is lost.
        let _ = last;
        drop(self.line.end);
    }
}
