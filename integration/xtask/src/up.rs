//! `cargo xtask up`: builds Hafen, starts a node with its coordinator, and runs four tasks whose limits must hold.

mod case;
mod image;
mod node;
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
use node::Node;
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
    workspace::build_release(workspace::PRODUCT)?;
    let scratch = tempfile::Builder::new().prefix("hafen-up.").tempdir().context("mkdtemp")?;
    let programs = workspace::target()?.join("release");
    let mut node = Node::start(&programs, scratch.path())?;
    image::make(&node.hafen, scratch.path(), &node.images)?;
    let runner = Runner::new(node.hafen.clone(), node.host(), scratch.path());
    let all_held = run_cases(&runner)?;
    println!("\nThe page of the cluster: {}", node.page().unwrap_or_default());
    if !options.once {
        tell_of(&node);
        node.wait()?;
    }
    let nothing_left = check_nothing_left(node)?;
    Ok(if all_held && nothing_left { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell_of(node: &Node) {
    println!("\nThe node goes on until it is interrupted. In another terminal:");
    println!("    export HAFEN_HOST={} HAFEN_COORDINATOR={}", node.host(), node.coordinator());
    println!("    {} publish {} --name web -- sleep 1000", node.hafen.display(), image::NAME);
    println!("    {} ps", node.hafen.display());
}

/// Runs the four containers one after another and prints what became of them.
fn run_cases(runner: &Runner) -> Result<bool> {
    println!("Four tasks of an agent, from an image made of busybox-static:\n");
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut results = Vec::new();
    for case in case::all(case::has_swap(&swaps)) {
        let ended = runner.run(&case)?;
        let verdict = verdict::judge(case.expected, &ended);
        print_words(&case, &ended);
        let why = ended.record.map(|record| record.sentence).unwrap_or_default();
        results.push((case, verdict, why));
    }
    println!("\n{}", table(&results));
    Ok(results.iter().all(|(_, verdict, _)| verdict.held))
}

fn print_words(case: &Case, ended: &Ended) {
    for line in ended.output.lines().take(5) {
        println!("  {}: {line}", case.name);
    }
}

fn table(results: &[(Case, Verdict, String)]) -> Table {
    let header = ["task", "limits", "what happened", "the kernel's numbers", "verdict"];
    let mut table = crate::table::new(header);
    for (case, verdict, why) in results {
        let held = if verdict.held { "ok" } else { "FAILED" };
        let limits = case.limits.join(" ");
        let happened = format!("{}\n{why}", verdict.happened);
        table.add_row([case.name, &limits, &happened, &verdict.numbers, held]);
    }
    table
}

/// Every container must be gone when it has ended.
fn check_nothing_left(node: Node) -> Result<bool> {
    let left = node.stop()?;
    if left.is_empty() {
        println!("The node has ended; nothing of the four is left.");
    } else {
        println!("FAILED: left behind: {}", left.join(", "));
    }
    Ok(left.is_empty())
}
