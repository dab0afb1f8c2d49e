//! `bench-stdio`: how fast what a container writes gets into a log, and what that costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Parser;
use hafen_bench::bundle::{self, Kind};
use hafen_bench::host::Host;
use hafen_bench::measure::{Bench, Settings, Subject, interruption};
use hafen_bench::programs;
use hafen_bench::report::{Row, tell};
use hafen_bench::stdio::{self, Line, PIECE, Place, Report, Taker};
use serde_json::Value;

/// Measures the way of a container's output into its log: `hafen-oci keep`, conmon with crun, conmon with runc, and as the
/// bound a container whose output is the file itself; interleaved, from the first call until the container is gone.
///
/// Programs are taken from HAFEN_OCI, HAFEN_CONMON, HAFEN_CRUN and HAFEN_RUNC, else from the folder of this program, else
/// from PATH.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// What a container writes, in MB; it is made of pieces of 16 MiB
    #[arg(long, default_value_t = 1000)]
    megabytes: u64,
    /// Measured runs of each program
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Runs of each program before the measured ones
    #[arg(long, default_value_t = 1)]
    warmup: u32,
    /// Seed of the order of the programs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Parent of the folder for bundle, state and logs [default: the first of /run, /dev/shm that is a tmpfs]
    #[arg(long)]
    dir: Option<PathBuf>,
}

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    tell("bench-stdio", run(&Options::parse()))
}

fn run(options: &Options) -> Result<String, Error> {
    let stopwatch = programs::stopwatch()?;
    let host = Host::read()?;
    let parent = options.dir.clone().unwrap_or_else(|| host.folder_of_state());
    let folder = tempfile::Builder::new().prefix("bench-stdio-").tempdir_in(parent)?;
    let interrupted = interruption()?;
    let id = format!("hafen-bench-{}", std::process::id());
    let made = folder.path().join("bundle");
    let pieces = (options.megabytes * 1_000_000).div_ceil(PIECE);
    let mut config = bundle::config(Kind::Default, &id, &host)?;
    config["process"]["args"] = stdio::command(pieces);
    bundle::make(&made, &config)?;
    stdio::write_piece(&made.join("rootfs"))?;
    let bytes = pieces * PIECE;
    let (found, missing) = stdio::find(folder.path());
    let subject = |taker| subject(taker, bytes, &made, folder.path(), &id, &host);
    let subjects = found.iter().map(subject).collect::<Result<Vec<_>, Error>>()?;
    let bench =
        Bench { settings: settings(options), stopwatch: &stopwatch, interrupted: &interrupted };
    let series = bench.interleave(&subjects, &|| !host.sweep(&id).is_empty());
    if interrupted.load(Ordering::Relaxed) {
        return Err("interrupted".into());
    }
    let lines = found.into_iter().zip(series).map(|(taker, series)| Line {
        log: taker.log,
        row: Row { version: taker.version, series },
    });
    let report = Report {
        lines: lines.collect(),
        bytes,
        facts: facts(bytes, &host, folder.path()),
        notes: notes(&missing),
    };
    Ok(if options.json { format!("{:#}", report.json()) } else { report.text() })
}

fn subject(
    taker: &Taker,
    bytes: u64,
    bundle: &Path,
    folder: &Path,
    id: &str,
    host: &Host,
) -> Result<Subject, Error> {
    let own = folder.join(format!("{}-{}", taker.name, taker.log).replace(' ', "-"));
    let (state, work) = (own.join("state"), own.join("work"));
    fs::create_dir_all(&state)?;
    let cover = host.cover_for(taker.runtime(), folder)?;
    Ok(Subject {
        cover,
        ..stdio::subject(taker, bytes, Place { bundle, state: &state, work: &work, id })
    })
}

fn settings(options: &Options) -> Settings {
    Settings {
        rounds: options.runs,
        warmup: options.warmup,
        timeout: Duration::from_secs(120),
        pause: Duration::from_millis(100),
        seed: options.seed,
    }
}

fn facts(bytes: u64, host: &Host, folder: &Path) -> Vec<(&'static str, Value)> {
    let mut facts = host.facts();
    facts.extend([("bytes_written", bytes.into()), ("everything_on", host.fs_type(folder).into())]);
    facts
}

fn notes(missing: &[String]) -> Vec<String> {
    let mut notes = vec![
        "no log is rotated; a log that holds less than was written is a failure".to_owned(),
        "the CPU time is that of everything that takes part, the container included".to_owned(),
    ];
    notes.extend(programs::not_found(missing));
    notes
}
