//! Tasks that are held back for long: throttled, or short of memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hafen_agent_core::TaskId;
use hafen_isolator::cgroup;
use hafen_protocol::v1;
use hafen_spec::plan::Claim;

use crate::node::Node;
use crate::time::span;

/// In how many looks in a row it must be so.
const LASTS: u32 = 2;
/// Percent of the periods that is worth to be told of.
const THROTTLED: f64 = 25.0;
/// Percent of the time in which some process waited for memory.
const SHORT_OF_MEMORY: f64 = 10.0;

#[derive(Debug, Default)]
struct Known {
    /// Throttled periods, and all.
    periods: (u64, u64),
    cpu: Lasting,
    memory: Lasting,
}

/// Something that is told when it lasts, once, and when it is over.
#[derive(Debug, Default)]
struct Lasting {
    in_a_row: u32,
    told: bool,
}

impl Lasting {
    /// What is to be told: whether it is over.
    fn look(&mut self, high: bool) -> Option<bool> {
        self.in_a_row = if high { self.in_a_row + 1 } else { 0 };
        let change = match (self.told, high) {
            (false, true) if self.in_a_row >= LASTS => Some(false),
            (true, false) => Some(true),
            _ => None,
        };
        self.told = change.map_or(self.told, |over| !over);
        change
    }
}

/// What a look finds.
#[derive(Debug, Clone, Copy)]
struct Seen {
    periods: (u64, u64),
    /// Percent; `None` where the kernel does not count it.
    memory: Option<f64>,
}

impl Known {
    /// Told is how long it has been so, at least.
    fn look(&mut self, seen: Seen, interval: Duration) -> Vec<v1::Pressure> {
        let before = std::mem::replace(&mut self.periods, seen.periods);
        let since = |now: u64, before: u64| now.saturating_sub(before);
        let (throttled, all) = (since(seen.periods.0, before.0), since(seen.periods.1, before.1));
        #[expect(clippy::cast_precision_loss, reason = "a share of some hundred")]
        let cpu = if all == 0 { 0.0 } else { throttled as f64 * 100.0 / all as f64 };
        let memory = seen.memory.unwrap_or_default();
        let told = [
            ("cpu", cpu, self.cpu.look(cpu >= THROTTLED)),
            ("memory", memory, self.memory.look(memory >= SHORT_OF_MEMORY)),
        ];
        let pressure = |(of, percent, over): (&str, f64, Option<bool>)| {
            let ended = over?;
            let over = Some(span(interval.saturating_mul(LASTS)));
            Some(v1::Pressure { of: of.to_owned(), percent, over, ended })
        };
        told.into_iter().filter_map(pressure).collect()
    }
}

/// For as long as the node runs. A look takes one or two small files of each task.
pub(crate) async fn pressure(node: Node) {
    let interval = node.config().pressure.interval;
    let mut known: BTreeMap<TaskId, Known> = BTreeMap::new();
    loop {
        tokio::time::sleep(interval).await;
        let Ok(running) = node.running().await else { return };
        let ids: BTreeSet<TaskId> = running.iter().map(|(id, _)| id.clone()).collect();
        known.retain(|id, _| ids.contains(id));
        let read = tokio::task::spawn_blocking(move || {
            let all = running.into_iter();
            all.map(|(id, status)| (id, look(&status.claims))).collect::<Vec<_>>()
        });
        for (id, seen) in read.await.unwrap_or_default() {
            for pressure in known.entry(id.clone()).or_default().look(seen, interval) {
                node.events_log().tell(&id.0, v1::event::What::Pressure(pressure));
            }
        }
    }
}

fn look(claims: &[Claim]) -> Seen {
    let memory = || Some(cgroup::memory_pressure(claims)?.some?.avg60);
    Seen { periods: cgroup::throttling(claims), memory: memory() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(known: &mut Known, periods: (u64, u64), memory: f64) -> Vec<(String, bool)> {
        let told = known.look(Seen { periods, memory: Some(memory) }, Duration::from_secs(15));
        told.into_iter().map(|pressure| (pressure.of, pressure.ended)).collect()
    }

    #[test]
    fn what_lasts_is_told_once_and_its_end_too() {
        let mut known = Known::default();
        let cpu = |ended| vec![("cpu".to_owned(), ended)];
        assert_eq!(told(&mut known, (10, 10), 0.0), []);
        assert_eq!(told(&mut known, (20, 20), 50.0), cpu(false));
        assert_eq!(told(&mut known, (30, 30), 50.0), [("memory".to_owned(), false)]);
        assert_eq!(told(&mut known, (30, 40), 50.0), cpu(true));
        assert_eq!(told(&mut known, (30, 50), 1.0), [("memory".to_owned(), true)]);
    }
}
