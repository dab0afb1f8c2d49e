//! How fast tasks are placed, and how tightly: `cargo run --release -p hafen-coordinator --example placements`. One line of
//! JSON for each case.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hafen_coordinator::assign::{Outcome, Pool, Request, assign};
use hafen_coordinator::cluster::{Change, Core, Effect, Event, Held, Hello, Order, Settings};
use hafen_coordinator::model::{
    AllocId, Amounts, BackOff, Constraint, Job, JobId, Key, Kind, Machine, NodeId, Record, Rules,
    Seen, Spread, Strategy, Template, Test, task_name,
};
use serde_json::json;

/// Numbers that are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

const NODE_CPU: u64 = 32_000;
const NODE_MEMORY: u64 = 128 << 30;

fn amounts(cpu_milli: u64, memory: u64) -> Amounts {
    Amounts { cpu_milli, memory, disk: 0, pids: 0 }
}

fn machine(n: u64) -> Machine {
    let attributes = [
        ("zone".into(), format!("z{}", n % 3)),
        ("disk".into(), ["ssd", "hdd"][(n % 2) as usize].into()),
    ];
    Machine {
        attributes: attributes.into(),
        allocatable: amounts(NODE_CPU, NODE_MEMORY),
        ..Machine::default()
    }
}

fn pool(nodes: u64) -> Pool {
    let mut pool = Pool::default();
    for n in 0..nodes {
        pool.set_node(&NodeId(format!("n{n:06}")), &machine(n), true);
    }
    pool
}

type Sizes = fn(&mut Random) -> Amounts;

const SIZES: [(&str, Sizes); 4] = [
    ("small", |r| amounts(50 + 50 * r.below(40), (64 + 64 * r.below(128)) << 20)),
    ("skewed", |r| {
        if r.below(2) == 0 {
            amounts(2000 + r.below(6000), 1 << 30)
        } else {
            amounts(100 + r.below(400), (4 + r.below(28)) << 30)
        }
    }),
    ("large", |r| amounts(4000 + 100 * r.below(140), (8 + r.below(56)) << 30)),
    ("heavy-tailed", |r| {
        let n = 1 << r.below(8);
        amounts(100 * n + r.below(100), (n << 28) + (r.below(256) << 20))
    }),
];

/// Requests of jobs with ten instances each; every eighth job has rules.
fn templates(sizes: Sizes, count: usize, with_rules: bool) -> Vec<Template> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut templates = Vec::new();
    while templates.len() < count {
        let rules = if with_rules { rules(random.below(16)) } else { Rules::default() };
        let template = Template { request: sizes(&mut random), rules, ..Template::default() };
        templates.extend(std::iter::repeat_n(template, 10));
    }
    templates.truncate(count);
    templates
}

fn rules(choice: u64) -> Rules {
    let ssd = Constraint { attribute: "disk".into(), test: Test::In(vec!["ssd".into()]) };
    match choice {
        0 => Rules { constraints: vec![ssd], ..Rules::default() },
        1 => Rules {
            spread: Some(Spread { attribute: "zone".into(), most_uneven: Some(1) }),
            ..Rules::default()
        },
        _ => Rules::default(),
    }
}

/// All at once (`wave` = all), or as they come.
fn place(pool: &mut Pool, templates: &[Template], wave: usize) -> Vec<Option<NodeId>> {
    let jobs: Vec<JobId> =
        (0..templates.len().div_ceil(10)).map(|n| JobId(format!("job-{n:05}"))).collect();
    let mut placed = Vec::new();
    for first in (0..templates.len()).step_by(wave) {
        let range = first..(first + wave).min(templates.len());
        let requests: Vec<Request<'_>> = range
            .map(|n| Request {
                id: AllocId(n as u64),
                job: &jobs[n / 10],
                template: &templates[n],
                priority: 0,
                preempts: false,
                node: None,
            })
            .collect();
        placed.extend(assign(pool, &requests).into_iter().map(|outcome| match outcome {
            Outcome::Placed(node) => Some(node),
            _ => None,
        }));
    }
    placed
}

fn speed(nodes: u64, tasks: usize, with_rules: bool, wave: usize) {
    // Some 85 % of the nodes when all are there.
    let scale = (nodes * NODE_CPU * 17 / 20) / tasks as u64;
    let mut templates = templates(SIZES[0].1, tasks, with_rules);
    for template in &mut templates {
        template.request.cpu_milli = (template.request.cpu_milli * scale / 1025).max(1);
        template.request.memory = (template.request.memory / (4 << 30) + 1) * (scale << 22) / 2
            + (template.request.memory & 0xFFFF_F000) % (scale << 21);
    }
    let mut pool = pool(nodes);
    let begin = Instant::now();
    let placed = place(&mut pool, &templates, wave);
    let filled = begin.elapsed();
    let count = placed.iter().flatten().count();
    // Ends and new ones at random, at that load.
    let mut random = Random(7);
    let churn = 50_000.min(tasks);
    let begin = Instant::now();
    for (n, template) in templates.iter().enumerate().take(churn) {
        let old = random.below(tasks as u64) as usize;
        let Some(node) = &placed[old] else { continue };
        pool.release(AllocId(old as u64), node);
        let job = JobId(format!("new-{}", n / 10));
        let request = Request {
            id: AllocId((tasks + n) as u64),
            job: &job,
            template,
            priority: 0,
            preempts: false,
            node: None,
        };
        assign(&mut pool, &[request]);
    }
    let churned = begin.elapsed();
    println!(
        "{}",
        json!({
            "case": "speed", "nodes": nodes, "tasks": tasks, "rules": with_rules, "wave": wave, "placed": count,
            "placements_per_s": (tasks as f64 / filled.as_secs_f64()).round(),
            "churn_per_s": (churn as f64 / churned.as_secs_f64()).round(),
        })
    );
}

/// Nodes that are used, by the textbook.
fn reference(requests: &[Amounts], best: bool) -> usize {
    let mut nodes: Vec<Amounts> = Vec::new();
    let size = |a: &Amounts| a.cpu_milli * 1024 + (a.memory >> 12);
    for request in requests {
        let mut fitting = nodes.iter_mut().filter(|free| request.fits(free));
        let node = if best { fitting.min_by_key(|free| size(free)) } else { fitting.next() };
        match node {
            Some(free) => *free = free.less(*request),
            None => nodes.push(amounts(NODE_CPU, NODE_MEMORY).less(*request)),
        }
    }
    nodes.len()
}

fn packing(name: &str, sizes: Sizes, tasks: usize) {
    let mut random = Random(11);
    let templates: Vec<Template> = (0..tasks)
        .map(|_| Template { request: sizes(&mut random), ..Template::default() })
        .collect();
    let mut requests: Vec<Amounts> = templates.iter().map(|t| t.request).collect();
    let first_fit = reference(&requests, false);
    requests.sort_by_key(|a| std::cmp::Reverse(a.cpu_milli * 1024 + (a.memory >> 12)));
    let decreasing = reference(&requests, true);
    let used = |wave| {
        let placed = place(&mut pool(first_fit as u64 * 2), &templates, wave);
        assert!(placed.iter().all(Option::is_some));
        placed.into_iter().flatten().collect::<std::collections::BTreeSet<_>>().len()
    };
    let (batch, online) = (used(tasks), used(10));
    let versus = |n: usize| (n as f64 / decreasing as f64 * 1000.0).round() / 1000.0;
    println!(
        "{}",
        json!({
            "case": "packing", "sizes": name, "tasks": tasks, "best_fit_decreasing": decreasing, "first_fit": first_fit,
            "batch": batch, "online": online, "batch_vs_bfd": versus(batch), "online_vs_bfd": versus(online), "first_fit_vs_bfd": versus(first_fit),
        })
    );
}

/// The whole state machine: nodes come, jobs are submitted, everything becomes ready, the coordinator starts again, a node
/// falls silent.
fn cluster(nodes: u64, jobs: u64, replicas: u32) {
    let (mut core, effects) = Core::recover(Settings::default(), Vec::new());
    let mut disk: BTreeMap<Key, Record> = BTreeMap::new();
    carry_out(&mut core, &mut disk, effects);
    let seconds = |begin: Instant| (begin.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    let begin = Instant::now();
    for n in 0..nodes {
        let effects = core.step(hello(n, 1, Vec::new()));
        carry_out(&mut core, &mut disk, effects);
    }
    let joined = seconds(begin);
    let begin = Instant::now();
    let mut runs = Vec::new();
    for n in 0..jobs {
        let effects = core.submit(job(n, replicas)).expect("a good job");
        runs.extend(carry_out(&mut core, &mut disk, effects));
    }
    let submitted = seconds(begin);
    let begin = Instant::now();
    for (node, session, task) in &runs {
        let (node, session, task) = (node.clone(), *session, task.clone());
        let update = Event::Update { node, session, task, sequence: 1, seen: Seen::Ready };
        let effects = core.step(update);
        carry_out(&mut core, &mut disk, effects);
    }
    let ready = seconds(begin);
    let records: Vec<Record> = disk.values().cloned().collect();
    let begin = Instant::now();
    let (mut core, effects) = Core::recover(Settings::default(), records);
    carry_out(&mut core, &mut disk, effects);
    let recovered = seconds(begin);
    let begin = Instant::now();
    let mut held: BTreeMap<NodeId, Vec<Held>> = BTreeMap::new();
    for (node, _, task) in &runs {
        let one = Held { task: task.clone(), seen: Seen::Ready };
        held.entry(node.clone()).or_default().push(one);
    }
    for n in 0..nodes {
        let held = held.remove(&name(n)).unwrap_or_default();
        let effects = core.step(hello(n, 2, held));
        carry_out(&mut core, &mut disk, effects);
    }
    let returned = seconds(begin);
    let begin = Instant::now();
    let mut replaced = 0;
    let mut effects = core.step(Event::Silent { node: name(0), session: 1 });
    let timers: Vec<_> = effects
        .drain(..)
        .filter_map(|effect| match effect {
            Effect::Arm { timer, .. } => Some(timer),
            _ => None,
        })
        .collect();
    for timer in timers {
        let effects = core.step(Event::Elapsed(timer));
        replaced += carry_out(&mut core, &mut disk, effects).len();
    }
    let failover_ms = begin.elapsed().as_secs_f64() * 1000.0;
    println!(
        "{}",
        json!({
            "case": "cluster", "nodes": nodes, "tasks": runs.len(), "join_s": joined, "submit_s": submitted, "ready_s": ready,
            "recover_s": recovered, "return_s": returned, "node_lost_replaced": replaced, "node_lost_ms": (failover_ms * 100.0).round() / 100.0,
        })
    );
}

fn name(n: u64) -> NodeId {
    NodeId(format!("n{n:06}"))
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

/// Tasks that are to run, and where.
fn carry_out(
    core: &mut Core,
    disk: &mut BTreeMap<Key, Record>,
    mut effects: Vec<Effect>,
) -> Vec<(NodeId, u64, String)> {
    let mut runs = Vec::new();
    while let Some(effect) = effects.pop() {
        match effect {
            Effect::Save { revision, changes } => {
                for change in changes {
                    match change {
                        Change::Put(record) => disk.insert(record.key(), record),
                        Change::Erase(key) => disk.remove(&key),
                    };
                }
                effects.extend(core.step(Event::Saved { revision }));
            }
            Effect::Send { node, session, order: Order::Run { allocation, .. } } => {
                runs.push((node, session, task_name(allocation)));
            }
            _ => {}
        }
    }
    runs
}

fn main() {
    for nodes in [1_000, 10_000] {
        for with_rules in [false, true] {
            speed(nodes, 100_000, with_rules, 100_000);
            speed(nodes, 100_000, with_rules, 10);
        }
    }
    for (name, sizes) in SIZES {
        packing(name, sizes, 5_000);
    }
    cluster(10_000, 1_000, 100);
    cluster(1_000, 1, 10_000);
}
