//! `bench-cluster`: what a coordinator decides, hears and brings about, with made-up nodes and with real ones.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use hafen_bench::agent::gate::Gate;
use hafen_bench::agent::{image, processes};
use hafen_bench::cluster::coordinator::Coordinator;
use hafen_bench::cluster::nodes::{self, Machine};
use hafen_bench::cluster::report::{HEARTBEAT, LIVE, MODEL, Report};
use hafen_bench::cluster::{Error, go_on, heartbeat, live, packing, recovery, speed};
use hafen_bench::host::{Delegation, Host};
use hafen_bench::measure::interruption;
use hafen_bench::programs::{OURS, ask_version, locate};
use hafen_bench::report::tell;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Above this, others have a part in every number.
const QUIET: f64 = 1.5;
const PARTS: [&str; 3] = [MODEL, HEARTBEAT, LIVE];
const MACHINES: [&str; 3] = ["n1", "n2", "n3"];

/// Measures a cluster. model: placement, packing and recovery in this process, with the coordinator's library. heartbeat:
/// `hafen coordinator`, and many agents that are made up in this process. live: `hafen coordinator` and three `hafen agent`s
/// on this host, from publishing a job and from the death of a machine to a container's first words; as root.
///
/// The program is taken from HAFEN, else from the folder of this program, else from PATH; hafen-oci is expected beside it.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Only these parts
    #[arg(long, value_delimiter = ',', default_value = "model,heartbeat,live")]
    only: Vec<String>,
    /// Times that placement and recovery are measured
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Made-up agents
    #[arg(long, default_value_t = 10_000)]
    agents: usize,
    /// Of these, how many dial at the same time
    #[arg(long, default_value_t = 200)]
    at_once: usize,
    /// Seconds for which the coordinator's CPU time is counted
    #[arg(long, default_value_t = 20)]
    window: u64,
    /// Times that a job is published
    #[arg(long, default_value_t = 10)]
    publish: u32,
    /// Times that a machine dies
    #[arg(long, default_value_t = 5)]
    failovers: u32,
    /// Seconds that a node may stay unheard
    #[arg(long, default_value_t = 5.0)]
    lease: f64,
    /// Give up if the machine has a load above 1.5, instead of saying so
    #[arg(long)]
    only_quiet: bool,
    /// Parent of the folder that everything is in
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
}

fn main() -> ExitCode {
    let result = run(&Options::parse());
    tell("bench-cluster", result.map_err(|e| -> Box<dyn std::error::Error> { e }))
}

fn run(options: &Options) -> Result<String, Error> {
    if let Some(other) = options.only.iter().find(|part| !PARTS.contains(&part.as_str())) {
        return Err(format!("--only: {other} is none of {}", PARTS.join(", ")).into());
    }
    let lease = Duration::try_from_secs_f64(options.lease).map_err(|e| format!("--lease: {e}"))?;
    let load = processes::load().unwrap_or_default();
    if options.only_quiet && load > QUIET {
        return Err(format!("the machine has a load of {load}: it is to be quiet").into());
    }
    let interrupted = interruption()?;
    let host = Host::read()?;
    let place = Place::new(options, &host)?;
    let all = All { options, lease, host: &host, place: &place, interrupted: &interrupted };
    let mut report = Report::default();
    for part in &options.only {
        eprintln!("{part}");
        if let Err(e) = all.measure(part, &mut report) {
            go_on(&interrupted)?;
            report.notes.push(format!("{part} failed: {e}"));
        }
    }
    report.facts = facts(&all, load);
    report.notes.extend(notes(options, load));
    Ok(if options.json { format!("{:#}", report.json()) } else { report.text() })
}

/// Folders that are there while the benchmark runs.
struct Place {
    folder: TempDir,
    /// For what programs keep in /run.
    run: TempDir,
    /// Part of both names, and so of the command lines of all that is started.
    mark: PathBuf,
}

impl Place {
    fn new(options: &Options, host: &Host) -> Result<Self, Error> {
        let mark = format!("bench-cl-{}", std::process::id());
        let make =
            |parent: &Path| tempfile::Builder::new().prefix(&mark).rand_bytes(0).tempdir_in(parent);
        let (folder, run) = (make(&options.dir)?, make(&host.folder_of_state())?);
        Ok(Self { folder, run, mark: mark.into() })
    }
}

/// What the parts share.
struct All<'a> {
    options: &'a Options,
    lease: Duration,
    host: &'a Host,
    place: &'a Place,
    interrupted: &'a AtomicBool,
}

impl All<'_> {
    fn measure(&self, part: &str, report: &mut Report) -> Result<(), Error> {
        match part {
            MODEL => self.model(report),
            HEARTBEAT => self.heartbeat(report),
            _ => self.live(report),
        }
    }

    fn model(&self, report: &mut Report) -> Result<(), Error> {
        let rounds = self.options.rounds;
        speed::measure(report, rounds, self.interrupted)?;
        packing::measure(report, self.interrupted)?;
        let folder = self.place.folder.path();
        recovery::measure(report, recovery::Size::LARGE, folder, rounds, self.interrupted)
    }

    fn heartbeat(&self, report: &mut Report) -> Result<(), Error> {
        let Options { agents: wanted, at_once: wave, window, .. } = *self.options;
        let agents = heartbeat::make_room(wanted)?;
        if agents < wanted {
            report.notes.push(format!(
                "{agents} made-up agents in place of {wanted}: there are not more files (ulimit -Hn) or ports"
            ));
        }
        let coordinator = self.coordinator(HEARTBEAT)?;
        let window = Duration::from_secs(window);
        let settings = heartbeat::Settings { agents, wave, window, lease: self.lease };
        heartbeat::measure(report, &coordinator, &settings, self.interrupted)
    }

    fn live(&self, report: &mut Report) -> Result<(), Error> {
        let folder = self.place.folder.path();
        let _delegation = Delegation::new(self.host, &["cpu", "memory", "pids", "io"])?;
        let made = image::make(&folder.join("image"))?;
        let gate = Gate::open(&folder.join("gate"))?;
        let coordinator = self.coordinator(LIVE)?;
        let place = nodes::Place { folder, run: self.place.run.path(), mark: &self.place.mark };
        let program = program()?;
        let begin =
            |name| Machine::begin(&program, name, place, &made, &coordinator.url, self.host);
        let mut machines = MACHINES.into_iter().map(begin).collect::<Result<Vec<_>, Error>>()?;
        let Options { publish, failovers, .. } = *self.options;
        let mut scene = live::Scene {
            coordinator: &coordinator,
            machines: &mut machines,
            gate: &gate,
            settings: live::Settings { publish, failovers, lease: self.lease },
            interrupted: self.interrupted,
        };
        scene.measure(report)
    }

    fn coordinator(&self, part: &str) -> Result<Coordinator, Error> {
        let name = format!("coordinator-{part}");
        let (folder, run) = (self.place.folder.path().join(&name), self.place.run.path());
        Coordinator::begin(&program()?, &folder, &run.join(&name), self.lease)
    }
}

fn program() -> Result<PathBuf, Error> {
    locate("hafen", "HAFEN").ok_or_else(|| "no program `hafen`".into())
}

fn facts(all: &All<'_>, load: f64) -> Vec<(&'static str, Value)> {
    let on = |folder: &TempDir| all.host.fs_type(folder.path()).to_owned();
    let version = |name: &str, variable| {
        locate(name, variable).map(|program| ask_version(&program, all.place.folder.path()))
    };
    let versions = json!({
        "bench-cluster": env!("CARGO_PKG_VERSION"),
        "hafen": version("hafen", "HAFEN"),
        OURS: version(OURS, "HAFEN_OCI"),
    });
    let mut facts = all.host.facts();
    facts.extend([
        ("versions", versions),
        ("everything_on", on(&all.place.folder).into()),
        ("run_on", on(&all.place.run).into()),
        ("lease_s", all.options.lease.into()),
        ("window_s", all.options.window.into()),
        ("load_before", load.into()),
        ("load_after", processes::load().into()),
    ]);
    facts
}

fn notes(options: &Options, load: f64) -> Vec<String> {
    let said = |part: &str, note: &str| {
        options.only.iter().any(|only| only == part).then(|| note.to_owned())
    };
    let mut notes: Vec<String> = [
        said(MODEL, "the file that recovery reads was written just before, so it is in memory"),
        said(HEARTBEAT, "the made-up agents run on the same processors as the coordinator"),
        said(LIVE, "coordinator and machines share this host; the image is in each store"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if load > QUIET {
        notes.push(format!("the machine was not quiet: a load of {load} at the beginning"));
    }
    if cfg!(debug_assertions) {
        notes.push("a debug build: no number of it means anything".to_owned());
    }
    notes
}
