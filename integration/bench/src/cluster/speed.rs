//! How fast tasks are placed.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use hafen_coordinator::assign::{Outcome, Pool, Request, assign};
use hafen_coordinator::model::{AllocId, JobId, NodeId, Template};

use super::report::{MODEL, Report};
use super::sizes::{self, NODE_CPU, Random, SMALL};
use super::{Error, go_on};
use crate::stats::median;

const TASKS: usize = 100_000;
const NODES: [u64; 2] = [1_000, MANY];
/// The goal is about so many.
const MANY: u64 = 10_000;
/// Tasks that are placed together where not all are.
const FEW: usize = 10;
/// Tasks that end and are replaced once all are placed.
const CHURN: usize = 50_000;

/// One run.
#[derive(Debug, Clone, Copy)]
struct Seen {
    placed: usize,
    /// Placed in a second, from empty nodes to full ones.
    fill_rate: f64,
    /// Then: ends, each with a new task in its place.
    churn_rate: f64,
}

/// Nodes without a task.
#[must_use]
pub fn pool(nodes: u64) -> Pool {
    let mut pool = Pool::default();
    for n in 0..nodes {
        pool.set_node(&sizes::name(n), &sizes::machine(n), true);
    }
    pool
}

/// All at once (`wave` = all), or as they come.
pub fn place(pool: &mut Pool, templates: &[Template], wave: usize) -> Vec<Option<NodeId>> {
    let jobs: Vec<JobId> =
        (0..templates.len().div_ceil(10)).map(|n| JobId(format!("job-{n:05}"))).collect();
    let mut placed = Vec::new();
    for first in (0..templates.len()).step_by(wave) {
        let range = first..(first + wave).min(templates.len());
        let requests: Vec<Request<'_>> =
            range.map(|n| request(n, &jobs[n / 10], &templates[n])).collect();
        placed.extend(assign(pool, &requests).into_iter().map(|outcome| match outcome {
            Outcome::Placed(node) => Some(node),
            _ => None,
        }));
    }
    placed
}

const fn request<'a>(n: usize, job: &'a JobId, template: &'a Template) -> Request<'a> {
    let id = AllocId(n as u64);
    Request { id, job, template, priority: 0, preempts: false, node: None }
}

/// Some 85 % of the nodes when all are there.
fn fitted(nodes: u64, with_rules: bool) -> Vec<Template> {
    let scale = (nodes * NODE_CPU * 17 / 20) / TASKS as u64;
    let mut templates = sizes::templates(SMALL, TASKS, with_rules);
    for template in &mut templates {
        let request = &mut template.request;
        request.cpu_milli = (request.cpu_milli * scale / 1025).max(1);
        request.memory = (request.memory / (4 << 30) + 1) * (scale << 22) / 2
            + (request.memory & 0xFFFF_F000) % (scale << 21);
    }
    templates
}

fn run(nodes: u64, templates: &[Template], wave: usize) -> Seen {
    let mut pool = pool(nodes);
    let begin = Instant::now();
    let placed = place(&mut pool, templates, wave);
    let filled = begin.elapsed();
    let count = placed.iter().flatten().count();
    let fill_rate = count as f64 / filled.as_secs_f64();
    Seen { placed: count, fill_rate, churn_rate: churn(&mut pool, placed, templates) }
}

/// Ends and new ones at random, at that load, one by one.
fn churn(pool: &mut Pool, mut placed: Vec<Option<NodeId>>, templates: &[Template]) -> f64 {
    let mut random = Random(7);
    let jobs: Vec<JobId> = (0..CHURN.div_ceil(10)).map(|n| JobId(format!("new-{n}"))).collect();
    let mut done = 0;
    let begin = Instant::now();
    for (n, template) in templates.iter().enumerate().take(CHURN) {
        let old = random.below(placed.len() as u64) as usize;
        let Some(node) = placed[old].take() else { continue };
        pool.release(AllocId(old as u64), &node);
        assign(pool, &[request(TASKS + n, &jobs[n / 10], template)]);
        done += 1;
    }
    f64::from(done) / begin.elapsed().as_secs_f64()
}

/// # Errors
/// If somebody wants us to end.
pub fn measure(report: &mut Report, rounds: u32, interrupted: &AtomicBool) -> Result<(), Error> {
    let (mut slowest, mut slowest_churn) = (f64::INFINITY, f64::INFINITY);
    for nodes in NODES {
        for with_rules in [false, true] {
            let templates = fitted(nodes, with_rules);
            for wave in [TASKS, FEW] {
                let mut seen = Vec::new();
                for _ in 0..rounds {
                    go_on(interrupted)?;
                    seen.push(run(nodes, &templates, wave));
                }
                let (fill, churn) = note(report, &case(nodes, with_rules, wave), &seen);
                if nodes == MANY {
                    slowest = slowest.min(fill.unwrap_or(slowest));
                    slowest_churn = slowest_churn.min(churn.unwrap_or(slowest_churn));
                }
            }
        }
    }
    report.named.placements_per_s_10k = Some(slowest).filter(|rate| rate.is_finite());
    report.named.replacements_per_s_10k = Some(slowest_churn).filter(|rate| rate.is_finite());
    Ok(())
}

fn case(nodes: u64, with_rules: bool, wave: usize) -> String {
    let rules = if with_rules { "with rules" } else { "no rules" };
    let wave = if wave == TASKS { "all at once".to_owned() } else { format!("{wave} at a time") };
    format!("{nodes} nodes, {TASKS} tasks, {rules}, {wave}")
}

/// The middle of both rates.
fn note(report: &mut Report, case: &str, seen: &[Seen]) -> (Option<f64>, Option<f64>) {
    let each = |of: fn(&Seen) -> f64| -> Vec<f64> { seen.iter().map(of).collect() };
    let (fill, churn) = (each(|s| s.fill_rate), each(|s| s.churn_rate));
    let middle = (median(&fill), median(&churn));
    report.add(MODEL, case, "placements/s", fill);
    report.add(MODEL, case, "replacements/s at 85 %", churn);
    report.add(MODEL, case, "tasks placed", each(|s| s.placed as f64));
    middle
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_all_tasks_fit_and_are_placed_where_they_may() {
        // As many for each node as there are in the case of 1,000.
        let templates: Vec<Template> = fitted(1_000, true).into_iter().take(1_000).collect();
        let placed = place(&mut pool(10), &templates, FEW);
        assert!(placed.iter().flatten().count() > 900);
        let [at_once, again] = [0; 2].map(|_| place(&mut pool(10), &templates, TASKS));
        assert_eq!(at_once, again);
    }

    #[test]
    fn a_case_has_its_middle() {
        let seen = |fill_rate, churn_rate| Seen { placed: 1, fill_rate, churn_rate };
        let mut report = Report::default();
        let all = [seen(9.0, 3.0), seen(8.0, 5.0), seen(7.0, 4.0)];
        assert_eq!(note(&mut report, "x", &all), (Some(8.0), Some(4.0)));
        assert_eq!(note(&mut report, "x", &[]), (None, None));
        assert_eq!(case(10, false, FEW), "10 nodes, 100000 tasks, no rules, 10 at a time");
    }
}
