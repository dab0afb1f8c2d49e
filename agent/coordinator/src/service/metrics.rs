//! The cluster's numbers, for Prometheus.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hafen_protocol::v1;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

type Value = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    of: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Which {
    resource: String,
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Waits {
    node: String,
    resource: String,
}

/// Counted while we run. Clones share their numbers.
#[derive(Debug, Clone)]
pub(super) struct Numbers {
    save: Histogram,
    placements: Counter,
    streams: Arc<AtomicU64>,
}

impl Default for Numbers {
    fn default() -> Self {
        const BUCKETS: [f64; 11] =
            [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0];
        Self {
            save: Histogram::new(BUCKETS),
            placements: Counter::default(),
            streams: Arc::default(),
        }
    }
}

impl Numbers {
    pub(super) fn save_took(&self, time: Duration) {
        self.save.observe(time.as_secs_f64());
    }

    pub(super) fn placed(&self) {
        self.placements.inc();
    }

    pub(super) fn streams(&self, count: usize) {
        self.streams.store(count as u64, Ordering::Relaxed);
    }

    /// In the text format of OpenMetrics.
    pub(super) fn text(&self, view: &v1::ClusterView) -> String {
        let mut registry = Registry::with_prefix("hafen_cluster");
        let presences = view.nodes.iter().map(|node| name(node.presence().as_str_name()));
        counted(&mut registry, "nodes", "Nodes by presence", presences);
        let phases = view.instances.iter().map(|one| name(one.phase().as_str_name()));
        counted(&mut registry, "instances", "Instances by phase", phases);
        let waiting = view.jobs.iter().map(|job| f64::from(job.waiting)).sum();
        single(&mut registry, "waiting", "Places that wait for a node", waiting);
        let streams = number(self.streams.load(Ordering::Relaxed));
        single(&mut registry, "streams", "Streams of nodes", streams);
        single(&mut registry, "epoch", "Epoch of this coordinator", number(view.epoch));
        capacity(&mut registry, &view.capacity.unwrap_or_default());
        pressure(&mut registry, &view.nodes);
        let help = "Instances that were given a node";
        registry.register("placements", help, self.placements.clone());
        let help = "How long it took to write down what was decided";
        registry.register("save_seconds", help, self.save.clone());
        let mut text = String::new();
        // Into memory: nothing can fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

/// `PRESENCE_HERE` is "here".
fn name(of: &str) -> String {
    of.split_once('_').map_or(of, |(_, name)| name).to_ascii_lowercase()
}

fn counted(registry: &mut Registry, name: &str, help: &str, all: impl Iterator<Item = String>) {
    let family = Family::<Of, Value>::default();
    for of in all {
        family.get_or_create(&Of { of }).inc();
    }
    registry.register(name, help, family);
}

fn single(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Value::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn capacity(registry: &mut Registry, capacity: &v1::Capacity) {
    let family = Family::<Which, Value>::default();
    for (kind, amounts) in [
        ("total", capacity.total),
        ("allocatable", capacity.allocatable),
        ("allocated", capacity.allocated),
        ("used", capacity.used),
    ] {
        let amounts = amounts.unwrap_or_default();
        for (resource, value) in [
            ("cpus", amounts.cpu_milli.map(|milli| number(milli) / 1000.0)),
            ("memory_bytes", amounts.memory.map(number)),
            ("pids", amounts.pids.map(number)),
        ] {
            let Some(value) = value else { continue };
            let which = Which { resource: resource.to_owned(), kind: kind.to_owned() };
            family.get_or_create(&which).set(value);
        }
    }
    let help = "What nodes that are heard have, and what of it is spoken for";
    registry.register("capacity", help, family);
}

/// Of nodes whose kernel counts it.
fn pressure(registry: &mut Registry, nodes: &[v1::ClusterNode]) {
    let (some, full) = (Family::<Waits, Value>::default(), Family::<Waits, Value>::default());
    let heard =
        nodes.iter().filter(|node| node.presence() != v1::cluster_node::Presence::Unreachable);
    for node in heard {
        let capacity = node.capacity.unwrap_or_default();
        for (resource, of_some, of_all) in capacity.waits() {
            let of = Waits { node: node.name.clone(), resource: resource.to_owned() };
            for (family, percent) in [(&some, of_some), (&full, of_all)] {
                let Some(percent) = percent else { continue };
                family.get_or_create(&of).set(percent);
            }
        }
    }
    let help = "Time of the last 10 s in which some process of the node waited";
    registry.register("node_pressure_percent", help, some);
    let help = "Time of the last 10 s in which all processes of the node waited";
    registry.register("node_pressure_full_percent", help, full);
    let short = nodes.iter().flat_map(|node| &node.pressure).map(|one| one.of.clone());
    counted(registry, "nodes_short", "Nodes under pressure that lasts, by what they lack", short);
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
const fn number(n: u64) -> f64 {
    n as f64
}
