//! `cargo xtask bench`: builds what is measured, and runs one measuring program, or all of them and writes a page of what
//! they say, `docs/benchmarks.md`.
//!
//! The page is made of `docs/benchmarks/run.json` and `page.md` beside this file; nobody writes a number into it.

mod machine;
mod page;
mod parts;
mod plot;
mod record;
mod whole;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::setup::{self, Group};
use crate::workspace;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    bench: Option<Bench>,
    #[command(flatten)]
    whole: whole::Whole,
}

#[derive(Debug, Args)]
struct Words {
    /// Options of the program, such as --runs N and --json (`--help` shows them)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Many containers on a node: started, looked at and destroyed, against containerd and Podman
    #[command(disable_help_flag = true)]
    Agent(Words),
    /// One container, from the command's start to its end, against crun, runc, youki, libcontainer and a floor
    #[command(disable_help_flag = true)]
    Launch(Words),
    /// System calls and instructions of one launch, against the bounds that the repository keeps
    #[command(disable_help_flag = true)]
    Bounds(Words),
    /// A short command in a running container, against crun, runc and youki
    #[command(disable_help_flag = true)]
    Exec(Words),
    /// create, start, kill and delete, each by itself, against crun, runc and youki
    #[command(disable_help_flag = true)]
    Phases(Words),
    /// What a container writes, into its log, against conmon
    #[command(disable_help_flag = true)]
    Stdio(Words),
    /// How exactly limits of CPU time and memory hold, and what a neighbour feels
    #[command(disable_help_flag = true)]
    Enforcement(Words),
    /// Many nodes under a coordinator: placement, heartbeats, a job's start and its return after a node's death
    #[command(disable_help_flag = true)]
    Cluster(Words),
    /// Pull, import and unpacking of images, and starts on them, against skopeo with umoci and Podman
    #[command(disable_help_flag = true)]
    Images(Words),
}

impl Bench {
    /// The program, its options, and the packages that it needs.
    const fn program(&self) -> (&str, &Vec<String>, Group) {
        match self {
            Self::Agent(Words { words }) => ("bench-agent", words, Group::BenchAgent),
            Self::Launch(Words { words }) => ("bench-launch", words, Group::Bench),
            Self::Bounds(Words { words }) => ("bench-bounds", words, Group::Up),
            Self::Exec(Words { words }) => ("bench-exec", words, Group::Bench),
            Self::Phases(Words { words }) => ("bench-phases", words, Group::Bench),
            Self::Stdio(Words { words }) => ("bench-stdio", words, Group::BenchAgent),
            Self::Enforcement(Words { words }) => ("bench-enforcement", words, Group::Up),
            Self::Cluster(Words { words }) => ("bench-cluster", words, Group::Up),
            Self::Images(Words { words }) => ("bench-images", words, Group::BenchImages),
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let Some(bench) = &options.bench else { return whole::run(&options.whole) };
    let (name, words, group) = bench.program();
    if let Some(why) = install(&[group])? {
        eprintln!("without youki: {why}");
    }
    build(group == Group::Bench)?;
    let program = workspace::target()?.join("release").join(name);
    let status = measuring(Command::new(&program))
        .args(words)
        .status()
        .with_context(|| format!("run {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the programs need, and why there is no youki where it is wanted and cannot be had.
fn install(groups: &[Group]) -> Result<Option<String>> {
    groups.iter().try_for_each(|group| setup::install(*group))?;
    let youki = groups.contains(&Group::Bench).then(setup::install_youki);
    Ok(youki.and_then(Result::err).map(|error| format!("{error:#}")))
}

/// What is delivered, as `up` builds it, and what measures it.
fn build(with_reference: bool) -> Result<()> {
    workspace::build_release(workspace::PRODUCT)?;
    let all = ["hafen-bench", "hafen-reference"];
    workspace::build_release(&all[..if with_reference { 2 } else { 1 }])
}

/// A measuring program, which finds what the set-up has installed beside Debian's packages.
fn measuring(mut command: Command) -> Command {
    let youki = setup::youki();
    if Path::is_file(&youki) && std::env::var_os("HAFEN_YOUKI").is_none() {
        command.env("HAFEN_YOUKI", youki);
    }
    command
}
