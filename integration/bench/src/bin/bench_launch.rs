//! `bench-launch`: what one launch costs, against the kernel's own cost and other runtimes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use hafen_bench::assembler::Assembler;
use hafen_bench::bundle::{self, Kind};
use hafen_bench::host::{Delegation, Host};
use hafen_bench::measure::{Bench, Settings, Subject, interruption};
use hafen_bench::programs::{self, Program};
use hafen_bench::report::{Goal, Report, Row, tell};
use hafen_bench::{launch_plan, steps};
use serde_json::Value;
use tempfile::TempDir;

/// Measures `run` of one container: hafen-oci, crun, runc, youki and the libcontainer
/// reference against the floor, interleaved on one bundle.
///
/// Programs are taken from HAFEN_OCI, HAFEN_FLOOR, HAFEN_REFERENCE, HAFEN_CRUN, HAFEN_RUNC
/// and HAFEN_YOUKI, else from the folder of this program, else from PATH.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Measured runs of each program
    #[arg(long, default_value_t = 100)]
    runs: u32,
    /// What is launched
    #[arg(long, value_enum, default_value = "default")]
    bundle: Kind,
    /// Runs of each program before the measured ones
    #[arg(long, default_value_t = 3)]
    warmup: u32,
    /// Seconds after which a run is killed
    #[arg(long, default_value_t = 10)]
    timeout: u64,
    /// Milliseconds between two runs, in which the kernel clears up after the first
    #[arg(long, default_value_t = 20)]
    pause: u64,
    /// Seed of the order of the programs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these programs (floor, hafen-oci, crun, runc, youki, libcontainer)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Print what each system call of the floor takes instead
    #[arg(long)]
    steps: bool,
    /// Parent of the folder for bundle and state [default: the first of /run, /dev/shm that is a tmpfs]
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    tell("bench-launch", run(&Options::parse()))
}

type Error = Box<dyn std::error::Error>;

fn run(options: &Options) -> Result<String, Error> {
    let stopwatch = programs::stopwatch()?;
    let host = Host::read()?;
    let scene = Scene::new(options, &host)?;
    let interrupted = interruption()?;
    let bench =
        Bench { settings: settings(options), stopwatch: &stopwatch, interrupted: &interrupted };
    let result = measure(options, &host, &scene, &bench);
    host.sweep(&scene.cgroup);
    result
}

fn settings(options: &Options) -> Settings {
    Settings {
        rounds: options.runs,
        warmup: options.warmup,
        timeout: Duration::from_secs(options.timeout),
        pause: Duration::from_millis(options.pause),
        seed: options.seed,
    }
}

/// Everything that exists on the machine while the benchmark runs.
struct Scene {
    folder: TempDir,
    bundle: PathBuf,
    /// Name of the container and of its cgroup in every tree.
    cgroup: String,
    plan: Assembler,
    _delegation: Option<Delegation>,
}

impl Scene {
    fn new(options: &Options, host: &Host) -> Result<Self, Error> {
        let parent = options.dir.clone().unwrap_or_else(|| host.folder_of_state());
        let folder = tempfile::Builder::new().prefix("bench-launch-").tempdir_in(&parent)?;
        let bundle = folder.path().join("bundle");
        let cgroup = format!("hafen-bench-{}", std::process::id());
        let config = bundle::config(options.bundle, &cgroup, host)?;
        bundle::make(&bundle, &config)?;
        let plan = launch_plan::plan(&config, &bundle, &cgroup, host)?;
        fs::write(bundle.join("floor.plan"), plan.finish())?;
        let limits = options.bundle == Kind::Limits;
        let delegation = limits.then(|| Delegation::new(host, &bundle::CONTROLLERS)).transpose()?;
        Ok(Self { folder, bundle, cgroup, plan, _delegation: delegation })
    }

    fn subject(&self, program: &Program, host: &Host) -> io::Result<Subject> {
        let state = self.folder.path().join(format!("state-{}", program.name));
        fs::create_dir(&state)?;
        let mut subject = programs::launch(program, &self.bundle, &state, &self.cgroup);
        subject.cover = host.cover_for(program.name, self.folder.path())?;
        Ok(subject)
    }
}

fn measure(
    options: &Options,
    host: &Host,
    scene: &Scene,
    bench: &Bench<'_>,
) -> Result<String, Error> {
    let (found, mut missing) = programs::find(scene.folder.path());
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|o| o == name);
    let found: Vec<Program> = found.into_iter().filter(|p| wanted(p.name)).collect();
    missing.retain(|name| wanted(name));
    let subjects: io::Result<Vec<Subject>> = found.iter().map(|p| scene.subject(p, host)).collect();
    let subjects = subjects?;
    if options.steps {
        return floor_steps(&subjects, scene, bench);
    }
    let series = bench.interleave(&subjects, &|| !host.sweep(&scene.cgroup).is_empty());
    if bench.interrupted.load(std::sync::atomic::Ordering::Relaxed) {
        return Err("interrupted".into());
    }
    let rows = found.iter().zip(series);
    let rows = rows.map(|(p, series)| Row { version: p.version.clone(), series }).collect();
    let report = Report {
        verb: "run",
        rows,
        goals: vec![Goal::at_most("run_vs_floor", 1.5), Goal::at_most("run_vs_crun", 0.6)],
        facts: facts(options, host, scene.folder.path()),
        notes: notes(&missing, &subjects),
    };
    Ok(if options.json { format!("{:#}", report.json()) } else { report.text() })
}

fn floor_steps(subjects: &[Subject], scene: &Scene, bench: &Bench<'_>) -> Result<String, Error> {
    let floor = subjects.iter().find(|s| s.name == programs::FLOOR).ok_or("no program `floor`")?;
    let steps = steps::measure(bench, floor, &scene.plan, &scene.bundle)?;
    Ok(steps.table(5.0).to_string())
}

fn facts(options: &Options, host: &Host, folder: &Path) -> Vec<(&'static str, Value)> {
    let mut facts = vec![("bundle", options.bundle.name().into())];
    facts.extend(host.facts());
    facts.push(("bundle_and_state_on", host.fs_type(folder).into()));
    facts.push(("pause_ms", options.pause.into()));
    facts
}

fn notes(missing: &[&str], subjects: &[Subject]) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(programs::not_found(missing));
    for subject in subjects.iter().filter(|s| s.cover.is_some()) {
        notes.push(format!(
            "{} runs where the cgroup2 tree shows no controllers: it refuses this host otherwise",
            subject.name
        ));
    }
    notes
}
