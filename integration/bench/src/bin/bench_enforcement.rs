//! `bench-enforcement`: how exactly the limits of a container hold.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Parser, Subcommand};
use hafen_bench::agent::Error;
use hafen_bench::bundle::{self, Kind};
use hafen_bench::cluster::report::Row;
use hafen_bench::enforcement::{
    Beside, CPU, FILLERS, LIMIT, MEMORY, NEIGHBOUR, NEIGHBOUR_CPUS, Report, Scene, rounds_of,
    work_regularly,
};
use hafen_bench::host::{Delegation, Host};
use hafen_bench::measure::interruption;
use hafen_bench::programs::{OURS, ask_version, locate};
use hafen_bench::report::tell;
use serde_json::Value;

const PARTS: [&str; 3] = [CPU, MEMORY, NEIGHBOUR];
/// Limits in CPUs and how many loops are busy under them.
const BUSY: [(f64, usize); 5] = [(0.5, 1), (0.5, 2), (0.5, 8), (1.5, 2), (1.5, 8)];
/// How often the small work is due, and what it takes where nobody disturbs.
const EVERY: Duration = Duration::from_millis(10);
const WORK: Duration = Duration::from_millis(1);

/// Measures how well hafen-oci's limits hold. cpu: CPU time that busy loops took, divided by what they were allowed.
/// memory: the most memory that was taken by what allocates as fast as it can, divided by the limit. neighbour: how late
/// small work is done that is due every 10 ms, alone, beside a busy container without limits, and beside one under a limit.
///
/// The program is taken from HAFEN_OCI, else from the folder of this program, else from PATH.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    inside: Option<Inside>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Only these parts
    #[arg(long, value_delimiter = ',', default_value = "cpu,memory,neighbour")]
    only: Vec<String>,
    /// Measured runs of each case of memory and neighbour
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Measured runs of each case of cpu
    #[arg(long, default_value_t = 1)]
    cpu_runs: u32,
    /// For how long loops are busy under a limit
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// For how long small work is done
    #[arg(long, default_value_t = 5.0)]
    work_seconds: f64,
}

#[derive(Debug, Subcommand)]
enum Inside {
    /// What a container of this benchmark runs: the small work
    #[command(hide = true)]
    Work { rounds: u64, seconds: f64 },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match options.inside {
        Some(Inside::Work { rounds, seconds }) => work(rounds, seconds),
        None => run(&options),
    };
    tell("bench-enforcement", result.map_err(|e| -> Box<dyn std::error::Error> { e }))
}

fn work(rounds: u64, seconds: f64) -> Result<String, Error> {
    let late = work_regularly(EVERY, rounds, Duration::try_from_secs_f64(seconds)?);
    Ok(late.iter().map(u128::to_string).collect::<Vec<_>>().join(" "))
}

fn run(options: &Options) -> Result<String, Error> {
    if let Some(other) = options.only.iter().find(|part| !PARTS.contains(&part.as_str())) {
        return Err(format!("--only: {other} is none of {}", PARTS.join(", ")).into());
    }
    let program = locate(OURS, "HAFEN_OCI").ok_or("no program `hafen-oci`")?;
    let host = Host::read()?;
    let parent = host.folder_of_state();
    let folder = tempfile::Builder::new().prefix("bench-enforcement-").tempdir_in(parent)?;
    let interrupted = interruption()?;
    let _delegation = Delegation::new(&host, &bundle::CONTROLLERS)?;
    let id = format!("hafen-bench-{}", std::process::id());
    let config = bundle::config(Kind::Minimal, &id, &host)?;
    bundle::make(&folder.path().join("bundle"), &config)?;
    let scene = Scene { program: &program, folder: folder.path(), id: &id };
    let all = All { options, scene: &scene, interrupted: &interrupted };
    let mut report = Report::default();
    for part in &options.only {
        eprintln!("{part}");
        if let Err(e) = all.measure(part, &mut report) {
            report.notes.push(format!("{part} failed: {e}"));
        }
        host.sweep(&id);
        if interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
    }
    report.facts = facts(options, &host, &ask_version(&program, folder.path()));
    Ok(if options.json { format!("{:#}", report.json()) } else { report.text() })
}

struct All<'a> {
    options: &'a Options,
    scene: &'a Scene<'a>,
    interrupted: &'a AtomicBool,
}

impl All<'_> {
    fn measure(&self, part: &str, report: &mut Report) -> Result<(), Error> {
        match part {
            CPU => self.cpu(report),
            MEMORY => self.memory(report),
            _ => self.neighbour(report),
        }
    }

    fn times(
        &self,
        runs: u32,
        mut act: impl FnMut() -> Result<f64, Error>,
    ) -> Result<Vec<f64>, Error> {
        let mut all = Vec::new();
        for _ in 0..runs {
            self.go_on()?;
            all.push(act()?);
        }
        Ok(all)
    }

    fn go_on(&self) -> Result<(), Error> {
        hafen_bench::cluster::go_on(self.interrupted)
    }

    fn cpu(&self, report: &mut Report) -> Result<(), Error> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let length = Duration::try_from_secs_f64(self.options.seconds)?;
        // More than there are would not be a limit.
        for (cpus, busy) in BUSY.into_iter().filter(|(cpus, _)| *cpus < processors as f64) {
            let values =
                self.times(self.options.cpu_runs, || self.scene.cpu(cpus, busy, length))?;
            let case = format!("{busy} busy, {cpus} CPUs");
            report.rows.push(Row { part: CPU, case, what: "used / allowed", values });
        }
        Ok(())
    }

    fn memory(&self, report: &mut Report) -> Result<(), Error> {
        for (case, script) in FILLERS {
            let values = self.times(self.options.runs, || self.scene.memory(script))?;
            report.rows.push(Row {
                part: MEMORY,
                case: case.to_owned(),
                what: "peak / limit",
                values,
            });
        }
        Ok(())
    }

    /// In turns, so that what the machine does meanwhile falls on all alike.
    fn neighbour(&self, report: &mut Report) -> Result<(), Error> {
        let own: PathBuf = std::env::current_exe()?;
        let words =
            ["work".to_owned(), rounds_of(WORK).to_string(), self.options.work_seconds.to_string()];
        let mut values = [(); Beside::ALL.len()].map(|()| Vec::new());
        for _ in 0..self.options.runs {
            for (beside, values) in Beside::ALL.into_iter().zip(&mut values) {
                self.go_on()?;
                values.push(self.scene.beat(beside, &own, &words)?);
            }
        }
        for (beside, values) in Beside::ALL.into_iter().zip(values) {
            let case = beside.name().to_owned();
            report.rows.push(Row { part: NEIGHBOUR, case, what: "late, p99 ms", values });
        }
        Ok(())
    }
}

fn facts(options: &Options, host: &Host, version: &str) -> Vec<(&'static str, Value)> {
    let mut facts = vec![(OURS, version.into())];
    facts.extend(host.facts());
    facts.extend([
        ("busy_s", options.seconds.into()),
        ("memory_limit_mib", (LIMIT >> 20).into()),
        ("work_s", options.work_seconds.into()),
        ("neighbour_cpus", NEIGHBOUR_CPUS.into()),
    ]);
    facts
}
