//! How few nodes the same tasks need, against the textbook.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use hafen_coordinator::model::{Amounts, Template};

use super::report::{MODEL, Report};
use super::sizes::{NODE_CPU, NODE_MEMORY, Random, SIZES, Sizes, amounts};
use super::speed::{place, pool};
use super::{Error, go_on};

const TASKS: usize = 5_000;
/// Tasks that are placed together where not all are.
const FEW: usize = 10;

/// Nodes that the same tasks take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Used {
    decreasing: usize,
    first_fit: usize,
    at_once: usize,
    as_they_come: usize,
}

fn size(amounts: &Amounts) -> u64 {
    amounts.cpu_milli * 1024 + (amounts.memory >> 12)
}

/// Nodes that are used, by the textbook.
fn reference(requests: &[Amounts], best: bool) -> usize {
    let mut nodes: Vec<Amounts> = Vec::new();
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

fn pack(sizes: Sizes, tasks: usize) -> Result<Used, Error> {
    let mut random = Random(11);
    let templates: Vec<Template> = (0..tasks)
        .map(|_| Template { request: sizes(&mut random), ..Template::default() })
        .collect();
    let mut requests: Vec<Amounts> = templates.iter().map(|t| t.request).collect();
    let first_fit = reference(&requests, false);
    requests.sort_by_key(|request| Reverse(size(request)));
    let decreasing = reference(&requests, true);
    let used = |wave| -> Result<usize, Error> {
        let placed = place(&mut pool(first_fit as u64 * 2), &templates, wave);
        let nodes: Option<BTreeSet<_>> = placed.into_iter().collect();
        Ok(nodes.ok_or("not every task has a node, though there are more than enough")?.len())
    };
    Ok(Used { decreasing, first_fit, at_once: used(tasks)?, as_they_come: used(FEW)? })
}

/// # Errors
/// If a task has no node.
pub fn measure(report: &mut Report, interrupted: &AtomicBool) -> Result<(), Error> {
    let mut worst = 0.0_f64;
    for (name, sizes) in SIZES {
        go_on(interrupted)?;
        let used = pack(sizes, TASKS)?;
        let case = format!("{TASKS} {name} tasks");
        let versus = |nodes: usize| nodes as f64 / used.decreasing as f64;
        worst = worst.max(versus(used.at_once));
        let mut add = |what, value| report.add(MODEL, &case, what, vec![value]);
        add("nodes, best-fit-decreasing", used.decreasing as f64);
        add("nodes vs that, all at once", versus(used.at_once));
        add("nodes vs that, 10 at a time", versus(used.as_they_come));
        add("nodes vs that, first-fit", versus(used.first_fit));
    }
    report.named.packing_vs_bfd = Some(worst);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_textbook_packs_as_it_says() {
        let half = amounts(NODE_CPU / 2, 1 << 30);
        let small = amounts(NODE_CPU / 2 - 1, 1 << 30);
        assert_eq!(reference(&[half, half, small, small], false), 2);
        let large = amounts(NODE_CPU - 1, 1 << 30);
        assert_eq!(reference(&[large, half, half], true), 2);
        assert_eq!(reference(&[], true), 0);
    }

    #[test]
    fn ours_needs_no_fewer_nodes_than_there_is_work() {
        let used = pack(SIZES[1].1, 300).unwrap();
        assert!(
            used.at_once <= used.first_fit * 2 && used.at_once * 2 > used.decreasing,
            "{used:?}"
        );
    }
}
