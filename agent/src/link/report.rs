//! What a node says of itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::time::{Duration, SystemTime};

use hafen_protocol::v1;

use super::disk::Disk;
use super::session::VERSIONS;
use crate::config::Config;
use crate::failure::Failure;
use crate::node::{Node, is_revocable};
use crate::time;

fn features() -> Vec<String> {
    ["pods", "update", "channel", "fence"].map(str::to_owned).to_vec()
}

/// For constraints: what the machine is, and what its owner says of it.
#[must_use]
pub fn attributes(config: &Config) -> BTreeMap<String, String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let own = [("kernel", kernel.trim()), ("arch", std::env::consts::ARCH), ("os", "linux")];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    own.chain(config.attributes.iter().cloned()).collect()
}

pub(super) async fn hello(
    node: &Node,
    name: String,
    disk: &Disk,
    connection: u64,
) -> Result<v1::Hello, Failure> {
    let (status, config, known) = (node.status().await?, node.config(), disk.known());
    let domain =
        |(level, name): &(String, String)| v1::Domain { level: level.clone(), name: name.clone() };
    Ok(v1::Hello {
        version_least: VERSIONS.0,
        version_most: VERSIONS.1,
        node: name,
        instance: known.instance,
        incarnation: known.incarnation,
        connection,
        boot_id: status.boot_id,
        software: format!("hafen {}", status.version),
        features: features(),
        attributes: attributes(config),
        domains: config.domains.iter().map(domain).collect(),
        capacity: status.capacity,
        tasks: node.ask(|driver| driver.held()).await?,
        epoch_seen: known.epoch,
        draining: known.draining,
    })
}

/// Makes reports. What a task takes of CPUs is seen between two of them.
#[derive(Debug, Default)]
pub(super) struct Meter {
    before: HashMap<String, (Duration, SystemTime)>,
    /// What the node is short of, as far as it was told.
    short: BTreeSet<&'static str>,
}

/// From how many percent on the node is short of each of [`v1::Capacity::WAITS`]. It is so no more below half of that.
const SHORT: [f64; 3] = [50.0, 10.0, 25.0];
/// What the kernel's numbers are the average of.
const AVERAGE: Duration = Duration::from_secs(10);

/// Tasks, as far as a report needs to know.
struct Tasks {
    masters: BTreeSet<String>,
    revocable: BTreeSet<String>,
}

impl Meter {
    pub(super) async fn report(&mut self, node: &Node) -> Result<v1::NodeReport, Failure> {
        let capacity = node.status().await?.capacity;
        let usage = node.stats(v1::StatsRequest::default()).await?.tasks;
        let known = node.ask(|driver| {
            let revocable = driver.live.iter().filter(|(_, live)| is_revocable(&live.spec));
            let revocable = revocable.map(|(id, _)| id.0.clone()).collect();
            Tasks { masters: driver.masters(), revocable }
        });
        let known = known.await?;
        let firm = usage.iter().filter(|task| !known.revocable.contains(&task.id));
        let used_firm = self.sum(firm);
        let is_running = |id: &String| usage.iter().any(|task| task.id == *id);
        self.before.retain(|id, _| is_running(id));
        let tasks = usage.iter().filter(|task| known.masters.contains(&task.id));
        let tasks = tasks.cloned().collect();
        let pressure = self.pressure(&capacity.unwrap_or_default());
        Ok(v1::NodeReport { capacity, tasks, pressure, used_firm: Some(used_firm) })
    }

    /// What lasts is told each time: a report may be lost, and a master may be another one.
    fn pressure(&mut self, capacity: &v1::Capacity) -> Vec<v1::Pressure> {
        let mut told = Vec::new();
        for ((of, percent, _), from) in capacity.waits().into_iter().zip(SHORT) {
            let percent = percent.unwrap_or_default();
            let was_short = self.short.contains(of);
            let is_short = percent >= if was_short { from / 2.0 } else { from };
            if is_short {
                self.short.insert(of);
            } else {
                self.short.remove(of);
            }
            if is_short || was_short {
                let (of, over) = (of.to_owned(), Some(time::span(AVERAGE)));
                told.push(v1::Pressure { of, percent, over, ended: !is_short });
            }
        }
        told
    }

    fn sum<'a>(&mut self, tasks: impl Iterator<Item = &'a v1::TaskUsage>) -> v1::Amounts {
        let (mut cpu_milli, mut memory, mut pids) = (0, 0, 0);
        for task in tasks {
            let usage = task.usage.unwrap_or_default();
            cpu_milli += self.cpu_milli(&task.id, &usage, task.time.as_ref());
            memory += usage.memory;
            pids += usage.pids;
        }
        v1::Amounts {
            cpu_milli: Some(cpu_milli),
            memory: Some(memory),
            pids: Some(pids),
            ..v1::Amounts::default()
        }
    }

    /// Of one that was not seen before: nothing yet.
    fn cpu_milli(
        &mut self,
        id: &str,
        usage: &v1::Usage,
        at: Option<&pbjson_types::Timestamp>,
    ) -> u64 {
        let cpu = usage.cpu.as_ref().map(time::duration).unwrap_or_default();
        let now = at.map_or_else(SystemTime::now, time::system);
        let Some((cpu_before, before)) = self.before.insert(id.to_owned(), (cpu, now)) else {
            return 0;
        };
        let passed = now.duration_since(before).unwrap_or_default().as_millis();
        let taken = cpu.saturating_sub(cpu_before).as_millis();
        u64::try_from((taken * 1_000).checked_div(passed).unwrap_or(0)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(id: &str, cpu_millis: u64, at_millis: u64) -> v1::TaskUsage {
        let cpu = Some(time::span(Duration::from_millis(cpu_millis)));
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_millis);
        let usage = v1::Usage { cpu, memory: 10, pids: 1, ..v1::Usage::default() };
        v1::TaskUsage { id: id.to_owned(), time: Some(time::stamp(at)), usage: Some(usage) }
    }

    #[test]
    fn pressure_is_told_while_it_lasts_and_when_it_ends() {
        let mut meter = Meter::default();
        let mut told = |memory: Option<f64>| {
            let capacity = v1::Capacity {
                memory_pressure: memory,
                cpu_pressure: Some(40.0),
                ..v1::Capacity::default()
            };
            let told = meter.pressure(&capacity).into_iter();
            told.map(|one| format!("{} {} {}", one.of, one.percent, one.ended)).collect::<Vec<_>>()
        };
        assert!(told(None).is_empty(), "the kernel counts none");
        assert!(told(Some(9.9)).is_empty());
        assert_eq!(told(Some(10.0)), ["memory 10 false"]);
        assert_eq!(told(Some(5.0)), ["memory 5 false"]);
        assert_eq!(told(Some(4.9)), ["memory 4.9 true"]);
        assert!(told(Some(9.9)).is_empty());
    }

    #[test]
    fn cpu_is_what_was_taken_since_the_last_report() {
        let mut meter = Meter::default();
        let mut sum = |tasks: &[v1::TaskUsage]| {
            let sum = meter.sum(tasks.iter());
            (sum.cpu_milli.unwrap(), sum.memory.unwrap(), sum.pids.unwrap())
        };
        assert_eq!(sum(&[usage("a", 70_000, 1_000)]), (0, 10, 1));
        let both = [usage("a", 71_000, 3_000), usage("b", 5_000, 3_000)];
        assert_eq!(sum(&both), (500, 20, 2));
        // No time has passed.
        assert_eq!(sum(&[usage("a", 71_000, 3_000)]), (0, 10, 1));
    }
}
