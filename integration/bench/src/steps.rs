//! Where the floor's time goes: the median of each of its system calls.

use std::fs;
use std::path::Path;

use comfy_table::{CellAlignment, Table};

use crate::assembler::{Assembler, times};
use crate::measure::{Bench, Job, Outcome, Subject};
use crate::report::table;
use crate::stats::median;

#[derive(Debug)]
pub struct Steps {
    labels: Vec<String>,
    child: std::ops::Range<usize>,
    /// For each call, what it took in each run, in microseconds.
    taken: Vec<Vec<f64>>,
}

/// Runs the floor `bench.settings.rounds` times and reads the times that it left in its plan.
pub fn measure(
    bench: &Bench<'_>,
    floor: &Subject,
    plan: &Assembler,
    bundle: &Path,
) -> Result<Steps, String> {
    let labels = plan.labels().to_vec();
    let mut steps = Steps { taken: vec![vec![]; labels.len()], labels, child: plan.child_calls() };
    let mut job: Job = floor.measured.clone();
    job.arguments.push("--steps".into());
    for _ in 0..bench.settings.rounds {
        if let Outcome::Failed(why) = bench.time(&job, floor) {
            return Err(why);
        }
        let file = fs::read(bundle.join("floor.plan")).map_err(|e| e.to_string())?;
        for (taken, (began, ended)) in steps.taken.iter_mut().zip(times(&file, plan.labels().len()))
        {
            // exec and exit do not come back.
            if ended != 0 {
                taken.push((ended - began) as f64 / 1e3);
            }
        }
        std::thread::sleep(bench.settings.pause);
    }
    Ok(steps)
}

impl Steps {
    /// The calls that took at least `least` microseconds, and a line for the rest.
    pub fn table(&self, least: f64) -> Table {
        let mut table = table(&["who", "step", "median µs"]);
        let (mut rest, mut count) = (0.0, 0);
        for (n, label) in self.labels.iter().enumerate() {
            let Some(took) = median(&self.taken[n]) else { continue };
            if took < least {
                (rest, count) = (rest + took, count + 1);
                continue;
            }
            let who = if self.child.contains(&n) { "child" } else { "parent" };
            table.add_row([who.to_owned(), label.clone(), format!("{took:.0}")]);
        }
        table.add_row([String::new(), format!("{count} others"), format!("{rest:.0}")]);
        if let Some(column) = table.column_mut(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}
