//! A cluster in virtual time: agents, a network that delays, cuts and breaks, machines and a coordinator that die. Every
//! run follows from its seed: `HAFEN_SEED=7` runs that one alone, `HAFEN_SEEDS=1000` so many, `HAFEN_TRACE=1` tells all.

mod world;

use world::{Plan, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn seeds(default: u64) -> Vec<u64> {
    match number("HAFEN_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("HAFEN_SEEDS").unwrap_or(default)).collect(),
    }
}

fn run_all(name: &str, seeds: Vec<u64>, plan: impl Fn(u64) -> Plan) {
    for seed in seeds {
        let plan = plan(seed);
        let run = std::panic::AssertUnwindSafe(|| World::new(seed, plan).run());
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("{name}: HAFEN_SEED={seed} shows it again");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Everything that may go wrong goes wrong, on a few nodes with room enough.
#[test]
fn faults() {
    run_all("faults", seeds(25), |seed| Plan { agents: 5 + seed as usize % 20, ..Plan::default() });
}

/// Hardly any room: priorities push others out.
#[test]
fn tight() {
    run_all("tight", seeds(15), |seed| Plan {
        agents: 4 + seed as usize % 5,
        cpu_milli: 1500,
        tight: true,
        ..Plan::default()
    });
}

/// Many nodes; more faults at a time. `HAFEN_AGENTS=3000` for more of them.
#[test]
fn many() {
    let agents = number("HAFEN_AGENTS").unwrap_or(120);
    run_all("many", seeds(1), |_| Plan {
        agents: agents as usize,
        faults: agents as usize,
        replicas: agents as u32,
        ..Plan::default()
    });
}

/// Without faults everything runs soon.
#[test]
fn calm() {
    run_all("calm", seeds(3), |_| Plan { faults: 0, ..Plan::default() });
}
