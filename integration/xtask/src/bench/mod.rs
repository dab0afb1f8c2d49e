//! `cargo xtask bench`: builds what is measured and runs the measuring program.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::setup::{self, Group};
use crate::workspace;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Many containers on a node: started, looked at and destroyed, against containerd and Podman
    #[command(disable_help_flag = true)]
    Agent {
        /// Options of bench-agent, such as --count N and --json (`--help` shows them)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// One container, from the command's start to its end, against crun, runc, libcontainer and a floor
    #[command(disable_help_flag = true)]
    Launch {
        /// Options of bench-launch, such as --runs N and --json (`--help` shows them)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// System calls and instructions of one launch, against the bounds that the repository keeps
    #[command(disable_help_flag = true)]
    Bounds {
        /// Options of bench-bounds, such as --runs N and --write (`--help` shows them)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// A short command in a running container, against crun and runc
    #[command(disable_help_flag = true)]
    Exec {
        /// Options of bench-exec, such as --runs N and --json (`--help` shows them)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Many nodes under a coordinator: placement, heartbeats, a job's start and its return after a node's death
    #[command(disable_help_flag = true)]
    Cluster {
        /// Options of bench-cluster, such as --only model and --json (`--help` shows them)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Pull, import and unpacking of images, and starts on them, against skopeo with umoci and Podman
    #[command(disable_help_flag = true)]
    Images {
        /// Options of bench-images, such as --runs N and --json (`--help` shows them)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

impl Bench {
    /// The program, its options, and the packages that it needs.
    const fn program(&self) -> (&str, &Vec<String>, Group) {
        match self {
            Self::Agent { words } => ("bench-agent", words, Group::BenchAgent),
            Self::Launch { words } => ("bench-launch", words, Group::Bench),
            Self::Bounds { words } => ("bench-bounds", words, Group::Up),
            Self::Exec { words } => ("bench-exec", words, Group::Bench),
            Self::Cluster { words } => ("bench-cluster", words, Group::Up),
            Self::Images { words } => ("bench-images", words, Group::BenchImages),
        }
    }
}

fn build(bench: &Bench) -> Result<()> {
    if matches!(bench, Bench::Bounds { .. }) {
        workspace::build_release(workspace::PRODUCT)?;
        return workspace::build_release(&["hafen-bench"]);
    }
    // Built alone: together with others it would get their choice of features.
    workspace::build_release(&["hafen-oci"])?;
    if bench.program().2 == Group::Bench {
        return workspace::build_release(&["hafen-bench", "hafen-reference"]);
    }
    workspace::build_release(&["hafen"])?;
    workspace::build_release(&["hafen-bench"])
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let (name, words, group) = options.bench.program();
    setup::install(group)?;
    build(&options.bench)?;
    let program = workspace::target()?.join("release").join(name);
    let status = Command::new(&program)
        .args(words)
        .status()
        .with_context(|| format!("run {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
