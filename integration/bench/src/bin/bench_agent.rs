//! `bench-agent`: what it costs a node to run many containers, against containerd and Podman.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use hafen_bench::agent::containerd::{self, Containerd};
use hafen_bench::agent::gate::Gate;
use hafen_bench::agent::hafen::{self, Hafen};
use hafen_bench::agent::podman::{self, Podman};
use hafen_bench::agent::report::{Line, Report};
use hafen_bench::agent::round::{Scene, Seen, Settings};
use hafen_bench::agent::{Error, Node, image, processes};
use hafen_bench::host::{Delegation, Host};
use hafen_bench::images::layout::Made;
use hafen_bench::measure::interruption;
use hafen_bench::programs::locate;
use hafen_bench::report::tell;
use serde_json::Value;
use tempfile::TempDir;

/// Above this, others have a part in every number.
const QUIET: f64 = 1.5;

/// Starts and destroys many containers as fast as possible, and looks at them in between: latency, memory, statistics,
/// ends, CPU time when idle, recovery. `hafen agent` through its API, containerd through ctr, Podman through podman, in
/// turns of random order, all as root, with the same image and command and without a network.
///
/// Programs are taken from HAFEN, HAFEN_CONTAINERD and HAFEN_PODMAN, else from the folder of this program, else from
/// PATH; hafen-oci is expected beside hafen, ctr and runc in PATH.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// How many containers
    #[arg(long, value_delimiter = ',', default_value = "200,1000")]
    count: Vec<usize>,
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only these programs
    #[arg(long, value_delimiter = ',', default_value = "hafen,containerd,podman")]
    peers: Vec<String>,
    /// Requests under way at the same time
    #[arg(long, default_value_t = 8)]
    at_once: usize,
    /// Containers of each round that are started, and others that are ended, one after the other
    #[arg(long, default_value_t = 20)]
    singles: usize,
    /// Seconds for which CPU time without requests is counted
    #[arg(long, default_value_t = 30)]
    idle: u64,
    /// Give up if the machine has a load above 1.5, instead of saying so
    #[arg(long)]
    only_quiet: bool,
    /// Seed of the order of the programs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Parent of the folder that everything is in
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
}

fn main() -> ExitCode {
    tell("bench-agent", run(&Options::parse()).map_err(|e| -> Box<dyn std::error::Error> { e }))
}

fn run(options: &Options) -> Result<String, Error> {
    let load = processes::load().unwrap_or_default();
    if options.only_quiet && load > QUIET {
        return Err(format!("the machine has a load of {load}: it is to be quiet").into());
    }
    let interrupted = interruption()?;
    let host = Host::read()?;
    let _delegation = Delegation::new(&host, &["cpu", "memory", "pids", "io"])?;
    let place = Place::new(options, &host)?;
    let gate = Gate::open(&place.folder.path().join("gate"))?;
    let (mut nodes, lacking) = nodes(options, &host, &place, &gate)?;
    let serial = AtomicU64::new(0);
    let settings = Settings {
        at_once: options.at_once,
        singles: options.singles,
        idle: Duration::from_secs(options.idle),
    };
    let scene = Scene { settings, gate: &gate, mark: Path::new(&place.mark), serial: &serial };
    let lines = measure(options, &scene, &mut nodes, &interrupted);
    drop(nodes);
    if interrupted.load(Ordering::Relaxed) {
        return Err("interrupted".into());
    }
    let report =
        Report { lines, facts: facts(options, &host, &place, load), notes: notes(load, lacking) };
    Ok(if options.json { format!("{:#}", report.json()) } else { report.text() })
}

/// Folders that are there while the benchmark runs.
struct Place {
    folder: TempDir,
    /// For what programs keep in /run.
    run: TempDir,
    /// Part of both names, and so of the command lines of all that is started.
    mark: String,
}

impl Place {
    fn new(options: &Options, host: &Host) -> Result<Self, Error> {
        // Podman takes no run folder of more than 50 characters.
        let mark = format!("bench-ag-{}", std::process::id());
        let make =
            |parent: &Path| tempfile::Builder::new().prefix(&mark).rand_bytes(0).tempdir_in(parent);
        Ok(Self { folder: make(&options.dir)?, run: make(&host.folder_of_state())?, mark })
    }

    fn at(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.folder.path().join(name), self.run.path().join(name))
    }
}

type Nodes = Vec<Box<dyn Node>>;

fn nodes(
    options: &Options,
    host: &Host,
    place: &Place,
    gate: &Gate,
) -> Result<(Nodes, Vec<String>), Error> {
    let made = image::make(&place.folder.path().join("image"))?;
    let (mut nodes, mut notes): (Nodes, _) = (Vec::new(), Vec::new());
    for name in &options.peers {
        let variable = format!("HAFEN_{}", name.to_uppercase());
        let variable = if name == hafen::NAME { "HAFEN" } else { &variable };
        let Some(program) = locate(name, variable) else {
            notes.push(format!("not found: {name}"));
            continue;
        };
        match node(name, &program, place, &made, gate, host) {
            Ok(node) => nodes.push(node),
            Err(e) => notes.push(format!("{name} does not begin: {e}")),
        }
    }
    Ok((nodes, notes))
}

fn node(
    name: &str,
    program: &Path,
    place: &Place,
    made: &Made,
    gate: &Gate,
    host: &Host,
) -> Result<Box<dyn Node>, Error> {
    let (folder, run) = place.at(name);
    let gate = &gate.folder;
    Ok(match name {
        hafen::NAME => Box::new(Hafen::new(program, (&folder, &run), made, gate, host)?),
        containerd::NAME => Box::new(Containerd::new(program, &folder, &run, made, gate, host)?),
        podman::NAME => Box::new(Podman::new(program, &folder, &run, made, gate, host)?),
        other => {
            return Err(format!("--peers: {other} is none of hafen, containerd, podman").into());
        }
    })
}

fn measure(
    options: &Options,
    scene: &Scene<'_>,
    nodes: &mut Nodes,
    interrupted: &AtomicBool,
) -> Vec<Line> {
    let mut rng = fastrand::Rng::with_seed(options.seed);
    let mut lines = Vec::new();
    for count in options.count.iter().copied() {
        let line = |node: &dyn Node| Line {
            name: node.name(),
            version: node.version(),
            count,
            rounds: Vec::new(),
            first_error: None,
        };
        let mut own: Vec<Line> = nodes.iter().map(|node| line(node.as_ref())).collect();
        for round in 1..=options.rounds {
            let mut order: Vec<usize> = (0..nodes.len()).collect();
            rng.shuffle(&mut order);
            for at in order {
                if own[at].first_error.is_some() || interrupted.load(Ordering::Relaxed) {
                    continue;
                }
                eprintln!("{} containers, round {round}: {}", count, own[at].name);
                note(&mut own[at], scene.round(nodes[at].as_mut(), count));
            }
        }
        lines.extend(own);
    }
    lines
}

fn note(line: &mut Line, seen: Result<Seen, Error>) {
    match seen {
        Ok(seen) => line.rounds.push(seen),
        Err(e) => line.first_error = Some(e.to_string()),
    }
}

fn facts(options: &Options, host: &Host, place: &Place, load: f64) -> Vec<(&'static str, Value)> {
    let on = |folder: &TempDir| host.fs_type(folder.path()).to_owned();
    let mut facts = host.facts();
    facts.extend([
        ("everything_on", on(&place.folder).into()),
        ("run_on", on(&place.run).into()),
        ("at_once", options.at_once.into()),
        ("load_before", load.into()),
        ("load_after", processes::load().into()),
    ]);
    facts
}

fn notes(load: f64, lacking: Vec<String>) -> Vec<String> {
    let mut notes = vec![
        "hafen is asked through its gRPC API, containerd and Podman through a process of ctr or podman for each call"
            .to_owned(),
        "containerd keeps no log (--null-io), the others keep one".to_owned(),
    ];
    if load > QUIET {
        notes.push(format!("the machine was not quiet: a load of {load} before the first round"));
    }
    notes.extend(lacking);
    notes
}
