//! What has happened in the cluster, for people: kept in memory, and told to whoever listens.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hafen_door::failure::{Failure, Kind};
use hafen_door::{Flow, news};
use hafen_protocol::{time, v1};
use tokio::sync::broadcast;

/// Events that are kept.
const KEPT: usize = 10_000;
/// Events that a slow listener may be behind.
const BEHIND: usize = 4_096;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Events {
    shared: Arc<Mutex<Shared>>,
    live: broadcast::Sender<Arc<v1::ClusterEvent>>,
    epoch: u64,
}

#[derive(Debug, Default)]
struct Shared {
    last: u64,
    kept: VecDeque<Arc<v1::ClusterEvent>>,
}

impl Events {
    pub(super) fn new(epoch: u64) -> Self {
        let (live, _) = broadcast::channel(BEHIND);
        Self { shared: Arc::default(), live, epoch }
    }

    /// Number, time and epoch are filled in.
    pub(super) fn tell(&self, event: v1::ClusterEvent) {
        let v1::ClusterEvent { node, job, instance, what, sentence, .. } = &event;
        tracing::info!(%node, %job, %instance, %sentence, "{what}");
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.last += 1;
        let event = Arc::new(v1::ClusterEvent {
            sequence: shared.last,
            epoch: self.epoch,
            time: Some(time::stamp(SystemTime::now())),
            ..event
        });
        shared.kept.push_back(event.clone());
        if shared.kept.len() > KEPT {
            shared.kept.pop_front();
        }
        // Under the lock: so nobody hears them in another order. Nobody may be listening.
        let _ = self.live.send(event);
    }

    /// # Errors
    /// [`Kind::OutOfRange`] where the first is not kept any more.
    pub(super) fn listen(
        &self,
        request: v1::ClusterEventsRequest,
    ) -> Result<Flow<v1::ClusterEvent>, Failure> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = shared.kept.front().map_or(shared.last + 1, |event| event.sequence);
        if request.since > 0 && request.since < oldest && oldest > 1 {
            let words = format!("the oldest event that is kept is {oldest}: ask from there on");
            return Err(Failure::new(Kind::OutOfRange, words));
        }
        let wanted =
            |event: &&Arc<v1::ClusterEvent>| request.since > 0 && event.sequence >= request.since;
        let past: Vec<_> = shared.kept.iter().filter(wanted).cloned().collect();
        let live = self.live.subscribe();
        drop(shared);
        let live = request.follow.then_some(live);
        let wanted = move |event: &v1::ClusterEvent| {
            let fits = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
            fits(&request.job, &event.job) && fits(&request.node, &event.node)
        };
        Ok(news::flow(past, live, "ask again", wanted))
    }
}
