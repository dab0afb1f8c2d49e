//! The numbers of a node and of its tasks, for Prometheus: read when they are asked for.

use std::time::Duration;

use hafen_protocol::v1;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::time;

/// Everything that is told.
#[derive(Debug)]
pub struct Metrics {
    pub usage: v1::StatsResponse,
    pub status: v1::NodeStatus,
    pub debug: v1::DebugResponse,
    pub phases: Phases,
    pub uptime: Duration,
}

/// How long each phase of the work on tasks took. Clones share their numbers.
#[derive(Debug, Clone)]
pub struct Phases(Family<Phase, Histogram, fn() -> Histogram>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: String,
}

impl Default for Phases {
    fn default() -> Self {
        const BUCKETS: [f64; 12] =
            [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];
        Self(Family::new_with_constructor(|| Histogram::new(BUCKETS)))
    }
}

impl Phases {
    pub fn took(&self, phase: &str, time: Duration) {
        let phase = Phase { phase: phase.to_owned() };
        self.0.get_or_create(&phase).observe(time.as_secs_f64());
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Task {
    task: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Which {
    resource: String,
    kind: String,
}

type Value = Gauge<f64, std::sync::atomic::AtomicU64>;

/// A number of each task: name, help, and where it is.
type Number = (&'static str, &'static str, fn(&v1::Usage) -> Option<f64>);

const NUMBERS: [Number; 22] = [
    ("cpu_seconds", "CPU time taken", |u| seconds(u.cpu.as_ref())),
    ("cpu_user_seconds", "CPU time in user mode", |u| seconds(u.cpu_user.as_ref())),
    ("cpu_system_seconds", "CPU time in the kernel", |u| seconds(u.cpu_system.as_ref())),
    ("cpu_periods", "Periods of cpu.max in which it ran", |u| number(u.cpu_periods)),
    ("cpu_throttled_periods", "Periods in which its quota was used up", |u| {
        number(u.cpu_throttled_periods)
    }),
    ("cpu_throttled_seconds", "Time that it was kept waiting for that", |u| {
        seconds(u.cpu_throttled.as_ref())
    }),
    ("memory_bytes", "Memory in use, page cache included", |u| number(u.memory)),
    ("memory_peak_bytes", "The most that it was", |u| number(u.memory_peak)),
    ("memory_limit_bytes", "Limit of memory; 0: none", |u| number(u.memory_limit)),
    ("memory_anon_bytes", "Of it, of no file", |u| number(u.memory_anon)),
    ("swap_bytes", "Swap in use", |u| number(u.swap)),
    ("oom_kills", "Processes that the OOM killer ended", |u| number(u.oom_kills)),
    ("pids", "Processes and threads", |u| number(u.pids)),
    ("pids_limit", "Limit of them; 0: none", |u| number(u.pids_limit)),
    ("forks_refused", "Forks refused for the limit", |u| number(u.pids_refused)),
    ("read_bytes", "Bytes read from block devices", |u| number(u.read_bytes)),
    ("written_bytes", "Bytes written to block devices", |u| number(u.written_bytes)),
    ("received_bytes", "Bytes received by its network", |u| number(u.received_bytes)),
    ("sent_bytes", "Bytes sent by its network", |u| number(u.sent_bytes)),
    ("cpu_pressure_percent", "Time of the last 10 s in which some process waited for a CPU", |u| {
        u.cpu_pressure
    }),
    ("memory_pressure_percent", "The same for memory", |u| u.memory_pressure),
    ("io_pressure_percent", "The same for block I/O", |u| u.io_pressure),
];

fn seconds(wire: Option<&pbjson_types::Duration>) -> Option<f64> {
    wire.map(|wire| time::duration(wire).as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
const fn number(n: u64) -> Option<f64> {
    Some(n as f64)
}

impl Metrics {
    /// In the text format of OpenMetrics.
    #[must_use]
    pub fn text(&self) -> String {
        let mut registry = Registry::with_prefix("hafen");
        self.tasks(registry.sub_registry_with_prefix("task"));
        self.node(registry.sub_registry_with_prefix("node"));
        self.agent(registry.sub_registry_with_prefix("agent"));
        let mut text = String::new();
        // Into memory: nothing can fail.
        let _ = encode(&mut text, &registry);
        text
    }

    fn tasks(&self, registry: &mut Registry) {
        for (name, help, of) in NUMBERS {
            let family = Family::<Task, Value>::default();
            for task in &self.usage.tasks {
                if let Some(value) = task.usage.as_ref().and_then(of) {
                    family.get_or_create(&Task { task: task.id.clone() }).set(value);
                }
            }
            registry.register(name, help, family);
        }
    }

    fn node(&self, registry: &mut Registry) {
        let states = Family::<Of, Value>::default();
        for (state, count) in &self.status.tasks {
            states.get_or_create(&Of { state: state.clone() }).set(f64::from(*count));
        }
        registry.register("tasks", "Tasks by state", states);
        let family = Family::<Which, Value>::default();
        let capacity = self.status.capacity.unwrap_or_default();
        for (kind, amounts) in [
            ("total", capacity.total),
            ("reserved", capacity.reserved),
            ("allocatable", capacity.allocatable),
            ("allocated", capacity.allocated),
            ("used", capacity.used),
        ] {
            let amounts = amounts.unwrap_or_default();
            let cpus = amounts.cpu_milli.and_then(number).map(|milli| milli / 1000.0);
            for (resource, value) in [
                ("cpus", cpus),
                ("memory_bytes", amounts.memory.and_then(number)),
                ("swap_bytes", amounts.swap.and_then(number)),
                ("pids", amounts.pids.and_then(number)),
            ] {
                let Some(value) = value else { continue };
                let which = Which { resource: resource.to_owned(), kind: kind.to_owned() };
                family.get_or_create(&which).set(value);
            }
        }
        registry.register("capacity", "What the node has, and what of it is spoken for", family);
        const SOME: &str = "Time of the last 10 s in which some process waited";
        const ALL: &str = "Time of the last 10 s in which all processes waited";
        for (name, help, of) in [
            ("cpu_pressure_percent", SOME, capacity.cpu_pressure),
            ("memory_pressure_percent", SOME, capacity.memory_pressure),
            ("io_pressure_percent", SOME, capacity.io_pressure),
            ("memory_pressure_full_percent", ALL, capacity.memory_pressure_full),
            ("io_pressure_full_percent", ALL, capacity.io_pressure_full),
        ] {
            single(registry, name, help, of);
        }
    }

    fn agent(&self, registry: &mut Registry) {
        single(registry, "memory_bytes", "Resident", number(self.debug.memory));
        single(registry, "descriptors", "Open descriptors", number(self.debug.descriptors));
        let under_way = self.debug.operations.len() as u64;
        single(registry, "operations", "Operations under way", number(under_way));
        let late = self.debug.operations.iter().filter(|o| o.late).count() as u64;
        single(registry, "operations_late", "Of them, past their deadline", number(late));
        let help = "How long a phase of the work on a task took";
        registry.register("phase_seconds", help, self.phases.0.clone());
        let uptime = self.uptime.as_secs_f64();
        single(registry, "uptime_seconds", "Since its start", Some(uptime));
    }
}

fn single(registry: &mut Registry, name: &str, help: &str, value: Option<f64>) {
    let Some(value) = value else { return };
    let gauge = Value::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_tasks_and_node() {
        let usage = v1::Usage { memory: 5, ..v1::Usage::default() };
        let task = v1::TaskUsage { id: "a".to_owned(), usage: Some(usage), time: None };
        let mut status = v1::NodeStatus::default();
        status.tasks.insert("running".to_owned(), 1);
        let metrics = Metrics {
            usage: v1::StatsResponse { tasks: vec![task] },
            status,
            debug: v1::DebugResponse::default(),
            phases: Phases::default(),
            uptime: Duration::from_secs(2),
        };
        metrics.phases.took("launch", Duration::from_millis(3));
        let text = metrics.text();
        for line in [
            "hafen_task_memory_bytes{task=\"a\"} 5.0",
            "hafen_node_tasks{state=\"running\"} 1.0",
            "hafen_agent_phase_seconds_bucket{le=\"0.005\",phase=\"launch\"} 1",
            "hafen_agent_uptime_seconds 2.0",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
