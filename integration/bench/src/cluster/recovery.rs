//! What a coordinator decides for a whole cluster, and how soon another one can go on from its file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use hafen_coordinator::cluster::{Change, Core, Effect, Event, Held, Hello, Order, Settings};
use hafen_coordinator::model::{
    BackOff, Job, JobId, Key, Kind, NodeId, Record, Seen, Strategy, Template, task_name,
};
use hafen_coordinator::state::Store;

use super::report::{MODEL, Report};
use super::sizes::{amounts, machine, name};
use super::{Error, go_on};
use crate::stats::median;

/// How large the cluster is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub nodes: u64,
    pub jobs: u64,
    pub replicas: u32,
}

impl Size {
    /// What the goal is about: 100,000 tasks.
    pub const LARGE: Self = Self { nodes: 10_000, jobs: 1_000, replicas: 100 };
}

/// Records in one transaction when the file is made.
const TOGETHER: usize = 10_000;

/// A task that is to run.
#[derive(Debug, Clone)]
struct Run {
    node: NodeId,
    session: u64,
    task: String,
}

/// The state machine, and what it has written down.
struct World {
    core: Core,
    disk: BTreeMap<Key, Record>,
}

impl World {
    fn begin() -> Self {
        let (core, effects) = Core::recover(Settings::default(), Vec::new());
        let mut world = Self { core, disk: BTreeMap::new() };
        world.carry_out(effects);
        world
    }

    fn step(&mut self, event: Event) -> Vec<Run> {
        let effects = self.core.step(event);
        self.carry_out(effects)
    }

    /// Tasks that are to run, and where.
    fn carry_out(&mut self, mut effects: Vec<Effect>) -> Vec<Run> {
        let mut runs = Vec::new();
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Save { revision, changes } => {
                    changes.into_iter().for_each(|change| self.write(change));
                    effects.extend(self.core.step(Event::Saved { revision }));
                }
                Effect::Send { node, session, order: Order::Run { allocation, .. } } => {
                    runs.push(Run { node, session, task: task_name(allocation) });
                }
                _ => {}
            }
        }
        runs
    }

    fn write(&mut self, change: Change) {
        match change {
            Change::Put(record) => self.disk.insert(record.key(), record),
            Change::Erase(key) => self.disk.remove(&key),
        };
    }

    fn submit_all(&mut self, size: Size) -> Result<Vec<Run>, Error> {
        let mut runs = Vec::new();
        for n in 0..size.jobs {
            let effects = self.core.submit(job(n, size.replicas))?;
            runs.extend(self.carry_out(effects));
        }
        Ok(runs)
    }

    fn make_ready(&mut self, runs: &[Run]) {
        for Run { node, session, task } in runs {
            self.step(Event::Update {
                node: node.clone(),
                session: *session,
                task: task.clone(),
                sequence: 1,
                seen: Seen::Ready,
            });
        }
    }

    /// All nodes come again, with what they hold.
    fn greet_all(&mut self, nodes: u64, runs: &[Run]) {
        let mut held: BTreeMap<&NodeId, Vec<Held>> = BTreeMap::new();
        for run in runs {
            let one = Held { task: run.task.clone(), seen: Seen::Ready };
            held.entry(&run.node).or_default().push(one);
        }
        for n in 0..nodes {
            let held = held.remove(&name(n)).unwrap_or_default();
            self.step(hello(n, 2, held));
        }
    }

    /// The lease of a node ends; how many of its tasks run elsewhere.
    fn lose(&mut self, n: u64) -> usize {
        let effects = self.core.step(Event::Silent { node: name(n), session: n + 1 });
        let timers: Vec<_> = effects.iter().filter_map(timer).cloned().collect();
        let at_once = self.carry_out(effects).len();
        let later = timers.into_iter().map(|timer| self.step(Event::Elapsed(timer)).len());
        at_once + later.sum::<usize>()
    }
}

const fn timer(effect: &Effect) -> Option<&hafen_coordinator::cluster::Timer> {
    match effect {
        Effect::Arm { timer, .. } => Some(timer),
        _ => None,
    }
}

fn hello(n: u64, connection: u64, held: Vec<Held>) -> Event {
    let hello = Hello {
        node: name(n),
        instance: n.to_string(),
        incarnation: 1,
        connection,
        epoch_seen: 0,
        machine: machine(n),
        held,
    };
    Event::Hello { session: n + 1, hello }
}

fn job(n: u64, replicas: u32) -> Job {
    let template = Template {
        request: amounts(1000 + n % 7 * 100, 1 << 30),
        payload: vec![0; 300],
        ..Template::default()
    };
    Job {
        id: JobId(format!("job-{n:05}")),
        namespace: "default".into(),
        kind: Kind::Replicas(replicas),
        template,
        priority: 0,
        preempts: false,
        update: Strategy::default(),
        reschedule: BackOff::default(),
        grace: Duration::ZERO,
        source: Vec::new(),
    }
}

fn seconds(begin: Instant) -> Vec<f64> {
    vec![begin.elapsed().as_secs_f64()]
}

/// # Errors
/// Of the file, or if somebody wants us to end.
pub fn measure(
    report: &mut Report,
    size: Size,
    folder: &Path,
    rounds: u32,
    interrupted: &AtomicBool,
) -> Result<(), Error> {
    let case = format!("{} nodes, {} tasks", size.nodes, size.jobs * u64::from(size.replicas));
    let mut world = World::begin();
    let begin = Instant::now();
    for n in 0..size.nodes {
        world.step(hello(n, 1, Vec::new()));
    }
    report.add(MODEL, &case, "all nodes join, s", seconds(begin));
    let begin = Instant::now();
    let runs = world.submit_all(size)?;
    report.add(MODEL, &case, "all jobs submitted, s", seconds(begin));
    let begin = Instant::now();
    world.make_ready(&runs);
    report.add(MODEL, &case, "all tasks ready, s", seconds(begin));
    go_on(interrupted)?;
    let file = folder.join("cluster");
    write(&file, &world.disk)?;
    let mut all = Vec::new();
    for _ in 0..rounds {
        go_on(interrupted)?;
        let (recovered, took) = recover(&file)?;
        (world.core, all) = (recovered.0, [all, vec![took]].concat());
        world.carry_out(recovered.1);
    }
    note(report, &case, &all);
    let begin = Instant::now();
    world.greet_all(size.nodes, &runs);
    report.add(MODEL, &case, "all nodes return, s", seconds(begin));
    let begin = Instant::now();
    let replaced = world.lose(0);
    report.add(MODEL, &case, "a lost node's tasks decided on, s", seconds(begin));
    report.add(MODEL, &case, "tasks of that node", vec![replaced as f64]);
    Ok(())
}

fn write(file: &Path, disk: &BTreeMap<Key, Record>) -> Result<(), Error> {
    let store = Store::open(file)?;
    let changes: Vec<Change> = disk.values().cloned().map(Change::Put).collect();
    for part in changes.chunks(TOGETHER) {
        store.save(part)?;
    }
    Ok(())
}

/// Seconds, from the beginning.
#[derive(Debug, Clone, Copy)]
struct Took {
    loaded: f64,
    decided: f64,
    /// The new epoch is on the disk: whatever is sent waits for that.
    written: f64,
}

fn recover(file: &Path) -> Result<((Core, Vec<Effect>), Took), Error> {
    let begin = Instant::now();
    let store = Store::open(file)?;
    let records = store.load()?;
    let loaded = begin.elapsed().as_secs_f64();
    let (core, effects) = Core::recover(Settings::default(), records);
    let decided = begin.elapsed().as_secs_f64();
    for effect in &effects {
        if let Effect::Save { changes, .. } = effect {
            store.save(changes)?;
        }
    }
    let written = begin.elapsed().as_secs_f64();
    Ok(((core, effects), Took { loaded, decided, written }))
}

fn note(report: &mut Report, case: &str, all: &[Took]) {
    let each = |of: fn(&Took) -> f64| -> Vec<f64> { all.iter().map(of).collect() };
    let whole = each(|took| took.written);
    report.named.leader_recovery_100k_s = median(&whole);
    report.add(MODEL, case, "recovery: file read, s", each(|took| took.loaded));
    report.add(MODEL, case, "recovery: and decided, s", each(|took| took.decided));
    report.add(MODEL, case, "recovery: and written, s", whole);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_goes_on_from_its_file() {
        let size = Size { nodes: 4, jobs: 2, replicas: 6 };
        let folder = tempfile::tempdir().unwrap();
        let mut report = Report::default();
        measure(&mut report, size, folder.path(), 2, &AtomicBool::new(false)).unwrap();
        assert!(report.named.leader_recovery_100k_s.is_some());
        let moved = report.rows.iter().find(|row| row.what == "tasks of that node").unwrap();
        assert!(moved.values[0] > 0.0);
        assert_eq!(moved.case, "4 nodes, 12 tasks");
    }
}
