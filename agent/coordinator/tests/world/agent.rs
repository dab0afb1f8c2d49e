//! A simulated node: the part of docs/protocol.md that an agent has to keep.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hafen_coordinator::model::{Allocation, Seen};

/// What an agent says, besides the counters.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    Hello { incarnation: u64, connection: u64, epoch_seen: u64, held: Vec<(String, Seen)> },
    Ping,
    Update { task: String, sequence: u64, seen: Seen },
    Refused { task: String },
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u64,
    pub(crate) number: u64,
    /// When each message was sent that is not heard yet.
    pub(crate) sent: VecDeque<(u64, u64)>,
    /// When the last one was sent that was heard; of the dial, if none was.
    pub(crate) heard_at: u64,
    pub(crate) welcomed: bool,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) allocation: Allocation,
    pub(crate) behaviour: u8,
    /// Processes are there.
    pub(crate) runs: bool,
    pub(crate) dying: bool,
    pub(crate) seen: Seen,
    pub(crate) sequence: u64,
    pub(crate) unheard: VecDeque<(u64, Seen)>,
}

#[derive(Debug)]
pub(crate) struct Agent {
    /// The machine, and the agent on it.
    pub(crate) powered: bool,
    pub(crate) alive: bool,
    pub(crate) boot: u64,
    pub(crate) incarnation: u64,
    pub(crate) connection: u64,
    pub(crate) epoch_seen: u64,
    pub(crate) stream: Option<Stream>,
    pub(crate) dial_at: u64,
    /// When the last message was sent that any master heard.
    pub(crate) heard_at: u64,
    /// Of its clock, in thousandths.
    pub(crate) rate: u64,
    pub(crate) tasks: BTreeMap<String, Task>,
    /// Tasks that were forgotten.
    pub(crate) past: BTreeSet<String>,
    // Its links:
    pub(crate) cut_up: bool,
    pub(crate) cut_down: bool,
    pub(crate) latency: u64,
    /// What waits at the cut, of which stream, in order.
    pub(crate) held_up: Vec<(u64, super::Happening)>,
    pub(crate) held_down: Vec<(u64, super::Happening)>,
}

impl Agent {
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            powered: true,
            alive: true,
            boot: 1,
            incarnation: 1,
            connection: 0,
            epoch_seen: 0,
            stream: None,
            dial_at: 0,
            heard_at: 0,
            rate,
            tasks: BTreeMap::new(),
            past: BTreeSet::new(),
            cut_up: false,
            cut_down: false,
            latency: 20,
            held_up: Vec::new(),
            held_down: Vec::new(),
        }
    }

    /// By its own clock.
    pub(crate) fn since(&self, then: u64, now: u64) -> u64 {
        (now - then) * self.rate / 1000
    }

    /// Take note that the master heard everything up to this number.
    pub(crate) fn heard(&mut self, number: u64) {
        let Some(stream) = &mut self.stream else { return };
        while stream.sent.front().is_some_and(|(sent, _)| *sent <= number) {
            stream.heard_at = stream.sent.pop_front().map_or(0, |(_, at)| at);
        }
        self.heard_at = self.heard_at.max(stream.heard_at);
    }

    pub(crate) fn acknowledged(&mut self, task: &str, sequence: u64) {
        if let Some(task) = self.tasks.get_mut(task) {
            assert!(sequence <= task.sequence, "what was never said is acknowledged");
            task.unheard.retain(|(unheard, _)| *unheard > sequence);
        }
    }

    /// News of a task.
    pub(crate) fn tell(&mut self, name: &str, seen: Seen) -> Option<Up> {
        let task = self.tasks.get_mut(name)?;
        task.seen = seen;
        task.sequence += 1;
        task.unheard.push_back((task.sequence, seen));
        Some(Up::Update { task: name.to_owned(), sequence: task.sequence, seen })
    }
}
