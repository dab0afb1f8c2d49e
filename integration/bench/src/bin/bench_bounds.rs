//! `bench-bounds`: how many system calls and instructions a launch takes, beside what it may take.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::Parser;
use comfy_table::Table;
use hafen_bench::bounds::{self, Bounds, CASES, Case, Line, Scene, Verdict, compare};
use hafen_bench::programs::{self, OURS};
use hafen_bench::report::filled;
use hafen_bench::tracer::Process;

/// Counts the system calls and the instructions of `hafen-oci run` and `hafen-oci exec`, in each process and phase, and
/// compares them with the bounds that the repository keeps. Must be root.
///
/// The program is taken from HAFEN_OCI, else from the folder of this program, else from PATH. The exit code is 1 where a
/// number is more than 3 % above its bound, and 3 where the bounds are those of another kind of machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Only these: "run podman", "run default", "run minimal", "exec default"
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Count so often, and take the medians
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Make what was counted the bounds
    #[arg(long)]
    write: bool,
    /// Name the so many functions that take most instructions; the program must have its symbols
    #[arg(long, value_name = "N")]
    functions: Option<usize>,
}

type Error = Box<dyn std::error::Error>;

/// Of a machine that the bounds say nothing about.
const OTHER_MACHINE: u8 = 3;

fn main() -> ExitCode {
    run(&Options::parse()).unwrap_or_else(|e| {
        eprintln!("bench-bounds: {e}");
        ExitCode::FAILURE
    })
}

fn run(options: &Options) -> Result<ExitCode, Error> {
    let program = programs::locate(OURS, "HAFEN_OCI").ok_or("no program hafen-oci")?;
    let program = fs::canonicalize(program)?;
    let kept = Bounds::read(&bounds::file());
    let symbols = options.functions.map(|_| symbols(&program)).transpose()?;
    let scene = Scene::enter(&program)?;
    let mut counted = Vec::new();
    for case in CASES.iter().filter(|c| is_wanted(options, c)) {
        let runs: Result<Vec<_>, _> = (0..options.runs).map(|_| scene.count(case)).collect();
        let runs = runs?;
        if let Some((count, symbols)) = options.functions.zip(symbols.as_ref()) {
            println!("{}\n{}", case.name, functions(&runs[0], symbols, count));
        }
        counted.push((case.name, bounds::lines(&runs)?));
    }
    if options.write {
        return write(kept.ok(), &scene, &counted);
    }
    let kept = kept?;
    let known = kept.machine == scene.machine;
    let (table, verdicts) = compared(&counted, known.then_some(&kept));
    println!("{table}");
    if !known {
        let (theirs, ours) = (&kept.machine, &scene.machine);
        eprintln!("bench-bounds: the bounds are those of {theirs:?}, this is {ours:?}");
        return Ok(OTHER_MACHINE.into());
    }
    Ok(tell(&verdicts))
}

fn is_wanted(options: &Options, case: &Case) -> bool {
    options.only.is_empty() || options.only.iter().any(|name| name == case.name)
}

type Counted<'a> = [(&'a str, Vec<Line>)];

/// Cases that were not counted keep the bounds that they have, if this is the machine that they are of.
fn write(kept: Option<Bounds>, scene: &Scene, counted: &Counted<'_>) -> Result<ExitCode, Error> {
    let machine = scene.machine.clone();
    let mut cases = kept.filter(|k| k.machine == machine).map(|k| k.cases).unwrap_or_default();
    for (name, lines) in counted {
        let numbers = lines.iter().map(|line| (line.name.clone(), line.count)).collect();
        cases.insert((*name).to_owned(), numbers);
    }
    Bounds { machine, cases }.write(&bounds::file())?;
    println!("{} is written", bounds::file().display());
    Ok(ExitCode::SUCCESS)
}

/// What was counted beside the bounds, if they are known, and what is to be said of it.
fn compared(counted: &Counted<'_>, bounds: Option<&Bounds>) -> (Table, Vec<(Verdict, String)>) {
    let head = ["command", "process, phase", "calls", "bound", "instructions", "bound", "spread %"];
    let (mut rows, mut verdicts) = (Vec::new(), Vec::new());
    for (case, line) in
        counted.iter().flat_map(|(case, lines)| lines.iter().map(move |l| (*case, l)))
    {
        let Line { name, count, .. } = line;
        let bound = bounds.and_then(|b| b.cases.get(case)?.get(name));
        let both = [
            ("system calls", count.calls, bound.map(|b| b.calls)),
            ("instructions", count.instructions, bound.map(|b| b.instructions)),
        ];
        let text = |bound: Option<u64>| bound.map_or("-".to_owned(), |b| b.to_string());
        let mut row = vec![case.to_owned(), name.clone()];
        for (what, now, bound) in both {
            row.extend([now.to_string(), text(bound)]);
            let words = format!("{case}: {name}: {now} {what}, bound {}", text(bound));
            verdicts.extend(bounds.map(|_| (compare(now, bound), words)));
        }
        row.push(format!("{:.2}", line.spread));
        rows.push(row);
    }
    (filled(&head, 2, rows.into_iter()), verdicts)
}

fn tell(verdicts: &[(Verdict, String)]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (verdict, words) in verdicts {
        match verdict {
            Verdict::Held => {}
            Verdict::Shrunk => println!("note: {words}: lower it with --write"),
            Verdict::Grown | Verdict::Unknown => {
                println!("FAILED: {words}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// Where each function begins.
type Symbols = BTreeMap<u64, String>;

/// As nm(1) of binutils, which a C compiler brings, has them.
fn symbols(program: &Path) -> Result<Symbols, Error> {
    let output = Command::new("nm").args(["--demangle", "--defined-only"]).arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let symbol = |line: &str| {
        let (address, rest) = line.split_once(' ')?;
        Some((u64::from_str_radix(address, 16).ok()?, rest.get(2..)?.to_owned()))
    };
    let symbols: Symbols = text.lines().filter_map(symbol).collect();
    if symbols.is_empty() {
        return Err(format!(
            "{} has no symbols: build it with CARGO_PROFILE_RELEASE_STRIP=none",
            program.display()
        )
        .into());
    }
    Ok(symbols)
}

/// Those that take most, of each process.
fn functions(processes: &[Process], symbols: &Symbols, most: usize) -> Table {
    let of_each = |(number, process): (usize, &Process)| {
        let mut sums = BTreeMap::<&str, u64>::new();
        for (address, times) in &process.addresses {
            let name = symbols.range(..=*address).next_back().map_or("", |(_, name)| name.as_str());
            *sums.entry(name).or_default() += times;
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|(_, times)| Reverse(*times));
        let row = move |(name, times): (&str, u64)| {
            vec![number.to_string(), name.to_owned(), times.to_string()]
        };
        sums.into_iter().take(most).map(row).collect::<Vec<_>>()
    };
    let rows = processes.iter().enumerate().flat_map(of_each);
    filled(&["process", "function", "instructions"], 2, rows)
}
