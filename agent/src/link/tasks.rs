//! A master's tasks, in the loop that owns all tasks.

use std::collections::BTreeSet;
use std::time::Duration;

use hafen_agent_core::{Event, Next, Phase, Record, Stop, TaskId, Update};
use hafen_protocol::v1;
use tokio::sync::mpsc;

use super::clock::BootTime;
use super::words;
use crate::container::name;
use crate::driver::{Driver, Live};
use crate::{node, time, view};

impl Driver {
    #[must_use]
    pub fn is_masters(&self, id: &TaskId) -> bool {
        self.live.get(id).is_some_and(|live| live.grant.is_some())
    }

    #[must_use]
    pub fn masters(&self) -> BTreeSet<String> {
        let all = self.live.iter().filter(|(_, live)| live.grant.is_some());
        all.map(|(id, _)| id.0.clone()).collect()
    }

    /// No master wants to know of it any more.
    pub fn disown(&mut self, id: &TaskId) {
        let known = self.live.get_mut(id).and_then(|live| live.grant.take());
        if known.is_some() {
            self.happened(Event::Acknowledged { id: id.clone(), sequence: u64::MAX });
        }
    }

    /// From now on what becomes of a master's tasks is told there; first what it has not acknowledged, in order.
    pub fn listen(
        &mut self,
        acknowledged: &[v1::Acknowledge],
    ) -> mpsc::UnboundedReceiver<v1::TaskUpdate> {
        for known in acknowledged {
            self.acknowledged(known);
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        for (id, live) in self.live.iter().filter(|(_, live)| live.grant.is_some()) {
            let Some(record) = self.core.record(id) else { continue };
            // What is not on the disk yet is told when it is.
            let written = record.updates.iter().filter(|update| update.revision <= live.saved);
            for update in written {
                let _ = sender.send(self.update(id, live, update));
            }
        }
        self.master = Some(sender);
        receiver
    }

    /// A master cannot have taken note of what it was not told.
    pub fn acknowledged(&mut self, known: &v1::Acknowledge) {
        let id = TaskId(known.task.clone());
        let Some(live) = self.live.get(&id).filter(|live| live.grant.is_some()) else { return };
        let sequence = known.sequence.min(live.sequence);
        self.happened(Event::Acknowledged { id, sequence });
    }

    /// If there is one; if not, the next one is told.
    pub fn tell_master(&self, id: &TaskId, update: &Update) {
        let (Some(master), Some(live)) = (&self.master, self.live.get(id)) else { return };
        let _ = master.send(self.update(id, live, update));
    }

    /// The last news once more, acknowledged or not.
    pub fn tell_again(&self, id: &TaskId) {
        let (Some(master), Some(live)) = (&self.master, self.live.get(id)) else { return };
        if live.sequence > 0 {
            let _ = master.send(self.last_update(id, live));
        }
    }

    fn last_update(&self, id: &TaskId, live: &Live) -> v1::TaskUpdate {
        let mut status = node::status(self, id, live);
        (status.ready, status.sequence, status.spec) = (live.ready, live.sequence, None);
        cut(&mut status);
        let epoch = live.grant.as_ref().map_or(0, |grant| grant.epoch);
        v1::TaskUpdate { task: id.0.clone(), sequence: live.sequence, status: Some(status), epoch }
    }

    fn update(&self, id: &TaskId, live: &Live, update: &Update) -> v1::TaskUpdate {
        let mut told = self.last_update(id, live);
        if update.sequence == live.sequence {
            return told;
        }
        // Of earlier news only that is known which was written down.
        let mut status = v1::TaskStatus {
            id: id.0.clone(),
            reason: view::reason(&update.reason, None),
            attempt: update.attempt,
            container: name(id, update.attempt),
            ready: update.ready,
            sequence: update.sequence,
            pod: told.status.map(|status| status.pod).unwrap_or_default(),
            ..v1::TaskStatus::default()
        };
        status.set_state(view::wire(update.state));
        cut(&mut status);
        (told.sequence, told.status) = (update.sequence, Some(status));
        told
    }

    /// All that is held for a master, also what is not written down yet: a master takes it that what is not listed never
    /// comes.
    #[must_use]
    pub fn held(&self) -> Vec<v1::HeldTask> {
        let held = self.live.iter().filter_map(|(id, live)| {
            let grant = live.grant.as_ref()?;
            let record = self.core.record(id)?;
            Some(v1::HeldTask {
                id: id.0.clone(),
                pod: live.group.as_ref().map(|group| group.id.clone()).unwrap_or_default(),
                epoch: grant.epoch,
                state: view::wire(live.told.0).into(),
                sequence: live.sequence,
                acknowledged: known(record),
                ready: live.ready,
                digest: grant.digest.clone(),
            })
        });
        held.collect()
    }

    /// A master has heard us as of then. Whoever keeps a task only for as long as that is so has to be told here.
    pub fn heard_by_master(&mut self, at: BootTime) {
        self.heard.renew(at);
    }

    /// The time that a task may go on without a master, if it is over.
    #[must_use]
    pub fn unheard_too_long(&self, id: &TaskId, now: BootTime) -> Option<Duration> {
        let live = self.live.get(id).filter(|live| live.grant.is_some())?;
        let longest = live.spec.stop_after_disconnect.as_ref().map(time::duration)?;
        self.heard.is_longer_ago(longest, now).then_some(longest)
    }

    /// Stop what may run elsewhere by now. The answer is the time until that is so of another one.
    pub fn stop_unheard(&mut self, now: BootTime) -> Option<Duration> {
        let bound = self.live.iter().filter_map(|(id, live)| {
            live.grant.as_ref()?;
            let longest = live.spec.stop_after_disconnect.as_ref().map(time::duration)?;
            (!self.has_ended(id)).then(|| (id.clone(), longest))
        });
        let bound: Vec<(TaskId, Duration)> = bound.collect();
        let mut next: Option<Duration> = None;
        for (id, longest) in bound {
            let left = self.heard.at().map(|at| at.after(longest).since(now));
            match left.filter(|left| !left.is_zero()) {
                Some(left) => next = Some(next.map_or(left, |next| next.min(left))),
                None => {
                    let why = Stop::Disconnected { longest };
                    self.happened(Event::Stop { id, why, grace: None });
                }
            }
        }
        next
    }

    /// It has ended, and its master knows.
    #[must_use]
    pub fn is_over(&self, id: &TaskId) -> bool {
        self.core.record(id).is_none_or(|record| {
            matches!(record.phase, Phase::Ended(_)) && record.updates.is_empty()
        })
    }

    /// The same, but for what its container leaves behind, which goes now: its end is told before that.
    #[must_use]
    pub fn is_all_but_over(&self, id: &TaskId) -> bool {
        self.core.record(id).is_some_and(|record| {
            let ends = matches!(record.phase, Phase::Releasing { next: Next::End(_) });
            ends && record.updates.is_empty()
        })
    }
}

/// The last update that a master has acknowledged.
fn known(record: &Record) -> u64 {
    record.updates.front().map_or(record.sequence, |update| update.sequence - 1)
}

fn cut(status: &mut v1::TaskStatus) {
    if let Some(reason) = &mut status.reason {
        reason.sentence = words::sentence(&reason.sentence);
    }
}
