//! `cargo xtask`: the commands that stand around the product.
//!
//! | command | what it does |
//! |---|---|
//! | `setup` | installs the Debian packages that the others need |
//! | `up` | builds Hafen and runs four real containers under limits |
//! | `test` | checks the code, tests it on this machine and in the virtual machine |
//! | `vm` | runs any program in the virtual machine |
//! | `conformance` | runs the OCI's validation suite with Hafen, crun and runc |
//! | `bench` | measures |
//!
//! Everything but `vm` does the set-up that it needs first. It looks at files only, so on a machine that
//! has everything it costs next to nothing.

mod bench;
mod command;
mod conformance;
mod setup;
mod table;
mod test;
mod up;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Sets up, runs, tests and measures Hafen")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what is missing on this machine (Debian, as root)
    Setup(setup::Options),
    /// Build Hafen and run four containers under limits
    Up(up::Options),
    /// Run all checks and tests, here and in the virtual machine
    Test(test::Options),
    /// Run a program in the virtual machine: vm [-u USER] [OPTION..] -- COMMAND..
    Vm(vm::Options),
    /// Validate this and other runtimes with the OCI's suite, here or in the virtual machine
    Conformance(conformance::Options),
    /// Measure against other runtimes
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(options) => setup::run(options),
        Command::Up(options) => up::run(options),
        Command::Test(options) => test::run(&options),
        Command::Vm(options) => vm::run(&options),
        Command::Conformance(options) => conformance::run(&options),
        Command::Bench(options) => bench::run(&options),
    };
    result.unwrap_or_else(|error| {
        eprintln!("cargo xtask: {error:#}");
        ExitCode::FAILURE
    })
}
