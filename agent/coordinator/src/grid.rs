//! Nodes by what is free on them, so that the best fit is found without a look at each.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Amounts;

/// How much is free: what best fit keeps small. A CPU counts about as much as 4 GiB, which is how machines are built; disk
/// and pids are asked for, and are not what machines are filled by.
#[must_use]
pub(crate) const fn size(amounts: &Amounts) -> u64 {
    weigh(amounts.cpu_milli, amounts.memory)
}

const fn weigh(cpu_milli: u64, memory: u64) -> u64 {
    cpu_milli.saturating_mul(1 << 10).saturating_add(memory >> 12)
}

/// Below that memory is not told apart by the cell.
const MEMORY_UNIT: u32 = 16;

/// A logarithmic scale with four steps in each octave, exact below 8.
const fn step(amount: u64) -> u8 {
    if amount < 4 {
        return amount as u8;
    }
    let octave = amount.ilog2();
    if octave > 32 {
        return 127;
    }
    (4 * (octave - 1)) as u8 + ((amount >> (octave - 2)) & 3) as u8
}

/// The least amount of a step.
const fn floor(step: u8) -> u64 {
    if step < 4 {
        return step as u64;
    }
    (4 + (step as u64 & 3)) << (step / 4 - 1)
}

/// A cell holds the nodes with nearly as much CPU and memory free; in it they are sorted by what is free.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grid {
    /// Steps of memory that are taken, by the step of the CPU.
    rows: BTreeMap<u8, u128>,
    nodes: BTreeSet<(u16, u64, u32)>,
}

const fn cell(row: u8, column: u8) -> u16 {
    ((row as u16) << 8) | column as u16
}

fn place_of(free: &Amounts) -> (u8, u8) {
    (step(free.cpu_milli), step(free.memory >> MEMORY_UNIT))
}

impl Grid {
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(crate) fn insert(&mut self, node: u32, free: &Amounts) {
        let (row, column) = place_of(free);
        if self.nodes.insert((cell(row, column), size(free), node)) {
            *self.rows.entry(row).or_default() |= 1 << column;
        }
    }

    pub(crate) fn remove(&mut self, node: u32, free: &Amounts) {
        let (row, column) = place_of(free);
        let cell = cell(row, column);
        self.nodes.remove(&(cell, size(free), node));
        if self.in_cell(cell).next().is_some() {
            return;
        }
        let Some(mask) = self.rows.get_mut(&row) else { return };
        *mask &= !(1 << column);
        if *mask == 0 {
            self.rows.remove(&row);
        }
    }

    fn in_cell(&self, cell: u16) -> impl Iterator<Item = (u64, u32)> {
        let nodes = self.nodes.range((cell, 0, 0)..=(cell, u64::MAX, u32::MAX));
        nodes.map(|(_, size, node)| (*size, *node))
    }

    /// The node with the least free of those that have room for it, and which the caller finds to fit.
    pub(crate) fn best(&self, request: &Amounts, fits: impl Fn(u32) -> bool) -> Option<u32> {
        let (row, column) = place_of(request);
        let mut best: Option<(u64, u32)> = None;
        for (row, mask) in self.rows.range(row..) {
            let mut columns = mask & (u128::MAX << column);
            while columns != 0 {
                let column = columns.trailing_zeros() as u8;
                columns &= columns - 1;
                let least = weigh(floor(*row), floor(column) << MEMORY_UNIT);
                if best.is_some_and(|(size, _)| size < least) {
                    break;
                }
                let better = |found: &(u64, u32)| best.is_none_or(|best| *found < best);
                let mut nodes = self.in_cell(cell(*row, column)).take_while(better);
                best = nodes.find(|(_, node)| fits(*node)).or(best);
            }
        }
        best.map(|(_, node)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_in_order_and_have_their_floor() {
        let mut before = 0;
        for amount in (0..5000).chain((13..33).flat_map(|n| [(1 << n) - 1, 1 << n, (1 << n) + 1])) {
            let step = step(amount);
            assert!(step >= before || amount < 8192, "{amount}");
            assert!(floor(step) <= amount, "{amount}");
            assert!(floor(step + 1) > amount, "{amount}");
            before = step;
        }
        assert_eq!(step(u64::MAX), 127);
    }
}
