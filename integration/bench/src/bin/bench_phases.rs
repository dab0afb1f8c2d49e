//! `bench-phases`: what create, start, kill and delete cost, each by itself.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Parser;
use hafen_bench::bundle::{self, Kind};
use hafen_bench::host::Host;
use hafen_bench::measure::{Bench, Settings, Subject, interruption};
use hafen_bench::phases::{Line, Report};
use hafen_bench::programs::{self, Phase, Program};
use hafen_bench::report::{Row, tell};
use serde_json::{Value, json};

/// Measures create, start, kill (SIGKILL) and delete of one container: hafen-oci, crun, runc and youki, interleaved on one
/// bundle whose program sleeps. Each run is a container's whole life, of which one command is measured.
///
/// Programs are taken from HAFEN_OCI, HAFEN_CRUN, HAFEN_RUNC and HAFEN_YOUKI, else from the folder of this program, else
/// from PATH.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Measured runs of each program and command
    #[arg(long, default_value_t = 40)]
    runs: u32,
    /// Runs of each before the measured ones
    #[arg(long, default_value_t = 3)]
    warmup: u32,
    /// What is made
    #[arg(long, value_enum, default_value = "podman")]
    bundle: Kind,
    /// Seed of the order of the programs
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    tell("bench-phases", run(&Options::parse()))
}

fn run(options: &Options) -> Result<String, Error> {
    let stopwatch = programs::stopwatch()?;
    let host = Host::read()?;
    let parent = host.folder_of_state();
    let folder = tempfile::Builder::new().prefix("bench-phases-").tempdir_in(parent)?;
    let interrupted = interruption()?;
    let id = format!("hafen-bench-{}", std::process::id());
    let made = folder.path().join("bundle");
    let mut config = bundle::config(options.bundle, &id, &host)?;
    config["process"]["args"] = json!(["/bin/sleep", "3600"]);
    bundle::make(&made, &config)?;
    let (found, missing) = programs::runtimes(folder.path());
    let bench =
        Bench { settings: settings(options), stopwatch: &stopwatch, interrupted: &interrupted };
    let mut lines = Vec::new();
    for phase in Phase::ALL {
        eprintln!("{}", phase.name());
        let subject = |program| subject(program, phase, &made, folder.path(), &id, &host);
        let subjects = found.iter().map(subject).collect::<Result<Vec<_>, Error>>()?;
        let series = bench.interleave(&subjects, &|| !host.sweep(&id).is_empty());
        if interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        let rows = found.iter().zip(series);
        lines.extend(rows.map(|(program, series)| Line {
            phase,
            row: Row { version: program.version.clone(), series },
        }));
    }
    let notes = programs::not_found(&missing).into_iter().collect();
    let report = Report { lines, facts: facts(options, &host, folder.path()), notes };
    Ok(if options.json { format!("{:#}", report.json()) } else { report.text() })
}

fn subject(
    program: &Program,
    phase: Phase,
    made: &Path,
    folder: &Path,
    id: &str,
    host: &Host,
) -> Result<Subject, Error> {
    let state = folder.join(format!("state-{}", program.name));
    fs::create_dir_all(&state)?;
    let cover = host.cover_for(program.name, folder)?;
    Ok(Subject { cover, ..programs::phase(program, phase, made, &state, id) })
}

fn settings(options: &Options) -> Settings {
    Settings {
        rounds: options.runs,
        warmup: options.warmup,
        timeout: Duration::from_secs(10),
        pause: Duration::from_millis(20),
        seed: options.seed,
    }
}

fn facts(options: &Options, host: &Host, folder: &Path) -> Vec<(&'static str, Value)> {
    let mut facts = vec![("bundle", options.bundle.name().into())];
    facts.extend(host.facts());
    facts.push(("bundle_and_state_on", host.fs_type(folder).into()));
    facts
}
