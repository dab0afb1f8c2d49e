//! `hafen-oci`: the command line of runc and crun.

#![no_main]

use clap::Parser;
use hafen_oci::cli::Cli;
use hafen_oci::{commands, log};
use hafen_sys::heap::Heap;

#[global_allocator]
static HEAP: Heap = Heap::new();

/// Bad usage has the exit code of every other refusal: clients know 1 only.
const FAILURE: u8 = 1;
const SUCCESS: u8 = 0;

hafen_sys::program!(begin);

/// The answer is the exit code.
fn begin() -> u8 {
    if let Err(unknown) = hafen_sys::weaken::read_variable() {
        eprintln!("hafen-oci: {unknown}");
        return FAILURE;
    }
    if commands::hasten() {
        HEAP.hasten();
        hafen_sys::start::hasten_stack();
    }
    if let Some(kept) = commands::go_on_after_ourselves() {
        return kept.unwrap_or_else(|error| {
            eprintln!("hafen-oci: {}", error.chain());
            FAILURE
        });
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() => {
            eprintln!("hafen-oci: {}", one_line(&e));
            return FAILURE;
        }
        Err(help_or_version) => {
            let _ = help_or_version.print();
            return SUCCESS;
        }
    };
    log::remember(&cli.log);
    match commands::dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            log::report(&cli.log, &error.chain());
            cli.command.failure(&error)
        }
    }
}

/// What is wrong with the command line, without the usage that follows it.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.starts_with("Usage:")).map(str::trim);
    let words: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}
