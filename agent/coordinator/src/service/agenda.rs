//! What is to happen later.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::{Session, Timer};
use crate::model::NodeId;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Timer(Timer),
    /// Look whether a node was silent for too long.
    Watch(NodeId),
    /// A stream on which something was heard gets an answer, whatever else there is to say.
    Answer(Session),
    /// Nobody has opened the channel of this command.
    Channel(String),
}

/// Each thing is there once; put in again, it has the new time.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    sorted: BTreeMap<(Instant, u64), Due>,
    places: BTreeMap<Due, (Instant, u64)>,
    count: u64,
}

impl Agenda {
    pub(super) fn put(&mut self, due: Due, after: Duration) {
        self.cancel(&due);
        self.count += 1;
        let place = (Instant::now() + after, self.count);
        self.sorted.insert(place, due.clone());
        self.places.insert(due, place);
    }

    pub(super) fn has(&self, due: &Due) -> bool {
        self.places.contains_key(due)
    }

    pub(super) fn cancel(&mut self, due: &Due) {
        if let Some(place) = self.places.remove(due) {
            self.sorted.remove(&place);
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.sorted.keys().next().map(|(at, _)| *at)
    }

    /// What is due, and since when.
    pub(super) fn take(&mut self, now: Instant) -> Option<(Instant, Due)> {
        let entry = self.sorted.first_entry().filter(|entry| entry.key().0 <= now)?;
        let ((at, _), due) = entry.remove_entry();
        self.places.remove(&due);
        Some((at, due))
    }
}
