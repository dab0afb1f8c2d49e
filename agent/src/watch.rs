//! Tasks that are held back for long: throttled, or short of memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hafen_agent_core::TaskId;
use hafen_protocol::v1;

use crate::node::Node;
use crate::resolve::duration;
use crate::stats;

/// Between two looks: one or two small files of each task.
const INTERVAL: Duration = Duration::from_secs(15);
/// In how many looks in a row it must be so.
const LASTS: u32 = 2;
/// Percent of the periods that is worth to be told of.
const THROTTLED: f64 = 25.0;

#[derive(Debug, Default)]
struct Known {
    /// Throttled periods, and all.
    periods: (u64, u64),
    in_a_row: u32,
    told: bool,
}

impl Known {
    /// Percent of the periods since the last look in which it was throttled; what is to be told of it.
    fn look(&mut self, now: (u64, u64)) -> Option<(f64, bool)> {
        let (throttled, all) =
            (now.0.saturating_sub(self.periods.0), now.1.saturating_sub(self.periods.1));
        self.periods = now;
        #[expect(clippy::cast_precision_loss, reason = "a share of some hundred")]
        let percent = if all == 0 { 0.0 } else { throttled as f64 * 100.0 / all as f64 };
        let high = percent >= THROTTLED;
        self.in_a_row = if high { self.in_a_row + 1 } else { 0 };
        match (self.told, high) {
            (false, true) if self.in_a_row >= LASTS => {
                self.told = true;
                Some((percent, false))
            }
            (true, false) => {
                self.told = false;
                Some((percent, true))
            }
            _ => None,
        }
    }
}

/// For as long as the node runs.
pub(crate) async fn pressure(node: Node) {
    let mut known: BTreeMap<TaskId, Known> = BTreeMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Ok(running) = node.running().await else { return };
        let ids: BTreeSet<TaskId> = running.iter().map(|(id, _)| id.clone()).collect();
        known.retain(|id, _| ids.contains(id));
        let read = tokio::task::spawn_blocking(move || {
            let all = running.into_iter();
            all.map(|(id, status)| (id, stats::throttling(&status.claims))).collect::<Vec<_>>()
        });
        for (id, periods) in read.await.unwrap_or_default() {
            if let Some((percent, ended)) = known.entry(id.clone()).or_default().look(periods) {
                let over = Some(duration(INTERVAL * LASTS));
                let what = v1::Pressure { of: "cpu".to_owned(), percent, over, ended };
                node.events_log().tell(&id.0, v1::event::What::Pressure(what));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_told_once_and_its_end_too() {
        let mut known = Known::default();
        assert_eq!(known.look((10, 10)), None);
        assert_eq!(known.look((20, 20)), Some((100.0, false)));
        assert_eq!(known.look((30, 30)), None);
        assert_eq!(known.look((30, 40)), Some((0.0, true)));
        assert_eq!(known.look((30, 50)), None);
    }
}
