//! `cargo xtask up`: builds Hafen and runs four real containers whose limits must hold.

mod case;
mod image;
mod record;
mod rootfs;
mod runner;
mod verdict;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::Table;

use crate::setup::{self, Group};
use crate::workspace;
use case::Case;
use image::Image;
use runner::{Ended, Runner};
use verdict::Verdict;

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// Run the containers once and end; the exit code is 0 only if every limit held
    #[arg(long)]
    once: bool,
}

pub(crate) fn run(options: Options) -> Result<ExitCode> {
    setup::install(Group::Up)?;
    workspace::build_release(&["hafen", "hafen-oci"])?;
    let scratch = tempfile::Builder::new().prefix("hafen-up.").tempdir().context("mkdtemp")?;
    let programs = workspace::target()?.join("release");
    let image = Image::make(&programs.join("hafen"), scratch.path())?;
    let runner = Runner::new(programs.join("hafen-oci"), scratch.path());
    let all_held = run_cases(&runner, &image)?;
    let nothing_left = check_nothing_left(&runner)?;
    if !options.once {
        println!("There is no dashboard and no agent yet: this ran the containers once and ends.");
    }
    Ok(if all_held && nothing_left { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the four containers one after another and prints what became of them.
fn run_cases(runner: &Runner, image: &Image) -> Result<bool> {
    println!("Four containers of an image made of busybox-static:\n");
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut results = Vec::new();
    for case in case::all(case::has_swap(&swaps)) {
        let ended = runner.run(&case, image)?;
        let verdict = verdict::judge(case.expected, &ended);
        print_words(&case, &ended);
        results.push((case, verdict));
    }
    println!("\n{}", table(&results));
    Ok(results.iter().all(|(_, verdict)| verdict.held))
}

fn print_words(case: &Case, ended: &Ended) {
    for line in ended.output.lines().take(5) {
        println!("  {}: {line}", case.name);
    }
}

fn table(results: &[(Case, Verdict)]) -> Table {
    let header = ["container", "limits", "what happened", "the kernel's numbers", "verdict"];
    let mut table = crate::table::new(header);
    for (case, verdict) in results {
        let held = if verdict.held { "ok" } else { "FAILED" };
        let limits = case.limits.join(" ");
        table.add_row([case.name, &limits, &verdict.happened, &verdict.numbers, held]);
    }
    table
}

/// Every container must be gone from the runtime's state when it has ended.
fn check_nothing_left(runner: &Runner) -> Result<bool> {
    let left = runner.left_behind()?;
    if left.is_empty() {
        println!("State was kept in {}; nothing of the four is left there.", runner::STATE);
    } else {
        println!("FAILED: left behind in {}: {}", runner::STATE, left.join(", "));
    }
    Ok(left.is_empty())
}
