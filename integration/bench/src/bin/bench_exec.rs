//! `bench-exec`: what a short command more in a running container costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Parser;
use hafen_bench::bundle::{self, Kind};
use hafen_bench::host::Host;
use hafen_bench::measure::{Bench, Settings, Subject, interruption};
use hafen_bench::programs::{self, Program};
use hafen_bench::report::{Goal, Report, Row, tell};
use serde_json::{Value, json};

/// Measures `exec ID /bin/true` of hafen-oci, crun and runc, interleaved, each in a container that
/// it has made itself of the same bundle.
///
/// Programs are taken from HAFEN_OCI, HAFEN_CRUN and HAFEN_RUNC, else from the folder of this
/// program, else from PATH.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Measured runs of each program
    #[arg(long, default_value_t = 100)]
    runs: u32,
    /// What runs in the container
    #[arg(long, value_enum, default_value = "default")]
    bundle: Kind,
    /// Seed of the order of the programs
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const TIMEOUT: Duration = Duration::from_secs(10);

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    tell("bench-exec", run(&Options::parse()))
}

/// One runtime's container.
struct Container<'a> {
    program: &'a Program,
    stopwatch: &'a Path,
    /// What the program must not see of the host, see [`Host::cover_for`].
    cover: Option<(PathBuf, PathBuf)>,
    state: PathBuf,
    id: String,
    host: &'a Host,
}

impl<'a> Container<'a> {
    fn start(
        program: &'a Program,
        stopwatch: &'a Path,
        folder: &Path,
        kind: Kind,
        host: &'a Host,
    ) -> Result<Self, Error> {
        let id = format!("hafen-bench-{}-{}", program.name, std::process::id());
        let (bundle, state) = (folder.join(&id), folder.join(format!("state-{}", program.name)));
        let mut config = bundle::config(kind, &id, host)?;
        config["process"]["args"] = json!(["/bin/sleep", "3600"]);
        bundle::make(&bundle, &config)?;
        fs::create_dir(&state)?;
        let cover = host.cover_for(program.name, folder)?;
        let container = Self { program, stopwatch, cover, state, id, host };
        container.call(&["create", "--bundle", &bundle.to_string_lossy()])?;
        container.call(&["start"])?;
        Ok(container)
    }

    /// Its output goes nowhere: the container keeps what it was born with.
    fn call(&self, words: &[&str]) -> Result<(), Error> {
        let mut command = Command::new(self.stopwatch);
        command.arg(TIMEOUT.as_millis().to_string());
        let (cover, with) = self.cover.clone().unwrap_or_else(|| ("-".into(), "-".into()));
        command.arg(cover).arg(with).arg(&self.program.path);
        command.arg("--root").arg(&self.state).args(words).arg(&self.id);
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        let line = String::from_utf8_lossy(&output.stdout);
        if line.trim_end().ends_with("exit 0") {
            return Ok(());
        }
        Err(format!("{command:?}: {}", line.trim_end()).into())
    }

    fn subject(&self) -> Subject {
        let cover = self.cover.clone();
        Subject { cover, ..programs::exec(self.program, &self.state, &self.id) }
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.call(&["delete", "--force"]) {
            eprintln!("bench-exec: {e}");
        }
        self.host.sweep(&self.id);
    }
}

fn run(options: &Options) -> Result<String, Error> {
    let stopwatch = programs::stopwatch()?;
    let host = Host::read()?;
    let parent = host.folder_of_state();
    let folder = tempfile::Builder::new().prefix("bench-exec-").tempdir_in(parent)?;
    let interrupted = interruption()?;
    let (found, missing) = programs::runtimes(folder.path());
    let mut containers = Vec::new();
    let mut notes = Vec::new();
    for program in &found {
        match Container::start(program, &stopwatch, folder.path(), options.bundle, &host) {
            Ok(container) => containers.push(container),
            Err(e) => notes.push(format!("{} makes no container here: {e}", program.name)),
        }
    }
    let subjects: Vec<Subject> = containers.iter().map(Container::subject).collect();
    let bench =
        Bench { settings: settings(options), stopwatch: &stopwatch, interrupted: &interrupted };
    let series = bench.interleave(&subjects, &|| false);
    if interrupted.load(Ordering::Relaxed) {
        return Err("interrupted".into());
    }
    notes.extend(programs::not_found(&missing));
    let rows = containers.iter().zip(series);
    let report = Report {
        verb: "exec",
        rows: rows.map(|(c, series)| Row { version: c.program.version.clone(), series }).collect(),
        goals: vec![Goal::at_most("exec_vs_crun", 0.6)],
        facts: facts(options, &host, folder.path()),
        notes,
    };
    Ok(if options.json { format!("{:#}", report.json()) } else { report.text() })
}

fn facts(options: &Options, host: &Host, folder: &Path) -> Vec<(&'static str, Value)> {
    let mut facts = vec![("bundle", options.bundle.name().into())];
    facts.extend(host.facts());
    facts.push(("bundle_and_state_on", host.fs_type(folder).into()));
    facts
}

fn settings(options: &Options) -> Settings {
    Settings {
        rounds: options.runs,
        warmup: 3,
        timeout: TIMEOUT,
        pause: Duration::from_millis(20),
        seed: options.seed,
    }
}
