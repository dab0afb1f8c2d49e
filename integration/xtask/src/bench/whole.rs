//! All measuring programs in one run.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::Value;

use super::parts::{self, GROUPS, Part, Size};
use super::record::{self, Record};
use super::{build, install, machine, measuring, page};
use crate::command::{self, limited};
use crate::setup::{self, Group};
use crate::workspace;

#[derive(Debug, Args)]
pub(super) struct Whole {
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(GROUPS))]
    only: Vec<String>,
    /// Small runs, to see that everything works
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// More runs and rounds of everything; takes more than an hour
    #[arg(long)]
    full: bool,
    /// Also in the virtual machine
    #[arg(long)]
    vm: bool,
    /// Folder for benchmarks.md and benchmarks/ [default: docs]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Make the page of this kept run, and measure only what --only names, if anything
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Take the programs from this folder and build nothing
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

impl Whole {
    const fn size(&self) -> Size {
        match (self.quick, self.full) {
            (true, _) => Size::Quick,
            (_, true) => Size::Full,
            _ => Size::Usual,
        }
    }

    fn wants(&self, part: &Part) -> bool {
        let named = self.only.iter().any(|group| group == part.group);
        let all = self.only.is_empty() && self.from.is_none();
        named || (all && !part.in_vm) || (self.vm && part.in_vm)
    }

    /// As somebody would type it.
    fn command(&self) -> String {
        let words = std::env::args().skip(1);
        words.fold("cargo xtask".to_owned(), |line, word| line + " " + &word)
    }

    fn parts(&self) -> Vec<Part> {
        parts::ALL.iter().copied().filter(|part| self.wants(part)).collect()
    }
}

pub(super) fn run(options: &Whole) -> Result<ExitCode> {
    let out = options.out.clone().unwrap_or_else(|| workspace::root().join("docs"));
    let earlier = options.from.as_deref().map(Record::read).transpose()?;
    let parts = options.parts();
    let record = match earlier {
        Some(earlier) if parts.is_empty() => earlier,
        earlier => measure(options, &parts, earlier, &out)?,
    };
    page::write(&record, &out)?;
    println!("{}", out.join(page::FILE).display());
    // What could not be measured is told in the page, and here by the exit code.
    let failed = record.parts.iter().filter(|part| part.failure.is_some()).count();
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(options: &Whole, parts: &[Part], earlier: Option<Record>, out: &Path) -> Result<Record> {
    let groups = groups(parts);
    let mut lacking = Vec::new();
    let programs = programs(options, parts, &groups, &mut lacking)?;
    let mut record = Record {
        command: options.command(),
        began: now(),
        programs: match &options.programs {
            None => "built for release by this command".to_owned(),
            Some(folder) => format!("taken as they were, from {}", folder.display()),
        },
        quick: options.quick,
        machine: machine::facts(),
        versions: machine::versions(),
        lacking,
        load_before: machine::load(),
        parts: Vec::new(),
    };
    if let Some(earlier) = &earlier {
        ensure!(
            earlier.machine == record.machine,
            "--from: that run is of another machine, or of another kernel: what one of them takes says nothing of the other"
        );
    }
    let file = out.join(page::RUN);
    fs::create_dir_all(out.join(page::FOLDER))
        .with_context(|| format!("mkdir {}", out.join(page::FOLDER).display()))?;
    for part in parts {
        record.parts.push(measure_part(part, options.size(), &programs));
        // What was measured is not lost, whatever becomes of the rest.
        record.write(&file)?;
    }
    if let Some(earlier) = earlier {
        record.complete(earlier);
    }
    Ok(record)
}

fn groups(parts: &[Part]) -> Vec<Group> {
    let mut groups = Vec::new();
    for part in parts {
        if !groups.contains(&part.needs) {
            groups.push(part.needs);
        }
    }
    groups
}

/// The folder of all programs.
fn programs(
    options: &Whole,
    parts: &[Part],
    groups: &[Group],
    lacking: &mut Vec<String>,
) -> Result<PathBuf> {
    if let Some(folder) = &options.programs {
        return fs::canonicalize(folder)
            .with_context(|| format!("--programs {}", folder.display()));
    }
    lacking.extend(install(groups)?);
    if parts.iter().any(|part| part.in_vm) {
        setup::install_vm()?;
    }
    build(true)?;
    Ok(workspace::target()?.join("release"))
}

/// UTC.
fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// How long the machine is looked at before each part.
const LOOK: Duration = Duration::from_secs(2);

fn measure_part(part: &Part, size: Size, programs: &Path) -> record::Part {
    let limit = Duration::from_secs(60 * if size == Size::Full { 90 } else { 15 });
    let (mut command, line) = command_of(part, size, programs, limit);
    eprintln!("== {}: {line}", part.name);
    let before = machine::look(LOOK);
    let (began, watch, clock) = (now(), machine::Watch::begin(), Instant::now());
    let result = call(&mut command, limit);
    let seconds = (clock.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let (during, load_after) = (watch.end(), machine::load());
    let failure = result.as_ref().err().map(|error| format!("{error:#}"));
    if let Some(failure) = &failure {
        eprintln!("FAILED: {}: {failure}", part.name);
    }
    record::Part {
        name: part.name.to_owned(),
        command: line,
        began,
        seconds,
        before,
        during,
        load_after,
        commit: None,
        failure,
        result: result.unwrap_or_default(),
    }
}

/// The command, and how somebody would type it.
fn command_of(part: &Part, size: Size, programs: &Path, limit: Duration) -> (Command, String) {
    let options = part.options(size);
    if !part.in_vm {
        let name = part.program.trim_start_matches("bench-");
        let line = format!("cargo xtask bench {name} {}", options.join(" "));
        let line = line.trim_end();
        let program = programs.join(part.program);
        let Some(on) = part.on else {
            return (with(measuring(limited(limit, program)), &options), line.to_owned());
        };
        let mut command = measuring(limited(limit, "taskset"));
        command.args(["--cpu-list", on]).arg(program);
        return (with(command, &options), format!("taskset --cpu-list {on} {line}"));
    }
    let folder = programs.strip_prefix(workspace::root()).unwrap_or(programs);
    let seconds = (limit.as_secs() - 60).to_string();
    let mut words: Vec<OsString> = ["-t", &seconds, "--", "sh", IN_VM].map(OsString::from).into();
    words.extend([folder.into(), part.program.into()]);
    let line = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let line = format!("cargo xtask vm {line} {}", options.join(" "));
    let mut command = measuring(limited(limit, workspace::vm_run()));
    command.args(words);
    (with(command, &options), line.trim_end().to_owned())
}

/// Copies what is measured into the machine's memory: files of the host are slow to read there.
const IN_VM: &str = "integration/bench/in-vm";

fn with(mut command: Command, options: &[&str]) -> Command {
    command.current_dir(workspace::root()).args(options).arg("--json");
    command
}

/// What it printed; the last that it said on its standard error is why there is nothing.
fn call(command: &mut Command, limit: Duration) -> Result<Value> {
    let errors = tempfile::NamedTempFile::new().context("mkstemp")?;
    command.stderr(errors.reopen().context("open")?);
    let mut text = String::new();
    let end = command::read(limit, command, |line| text.extend([line, "\n"]))?;
    let said = fs::read_to_string(errors.path()).unwrap_or_default();
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    if !end.success() {
        eprint!("{said}");
    }
    ensure!(end.success(), "{end}: {last}");
    serde_json::from_str(&text).with_context(|| format!("it printed no JSON; {last}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: Whole,
    }

    fn parts(words: &[&str]) -> Vec<&'static str> {
        let cli = Cli::try_parse_from([&["bench"], words].concat()).unwrap();
        cli.options.parts().iter().map(|part| part.name).collect()
    }

    #[test]
    fn what_is_measured() {
        assert!(parts(&[]).contains(&"launch-podman"));
        assert!(!parts(&[]).contains(&"vm-exec"));
        assert!(parts(&["--vm"]).contains(&"vm-exec") && parts(&["--vm"]).contains(&"exec"));
        assert_eq!(parts(&["--only", "exec,phases"]), ["exec", "phases"]);
        assert_eq!(parts(&["--from", "x"]), [""; 0]);
        assert_eq!(parts(&["--from", "x", "--only", "stdio"]), ["stdio"]);
        assert!(Cli::try_parse_from(["bench", "--only", "lunch"]).is_err());
    }

    #[test]
    fn a_failure_says_why() {
        let limit = Duration::from_secs(20);
        let run = |script: &str| call(limited(limit, "sh").args(["-c", script]), limit);
        assert_eq!(run("echo '{'; echo '\"a\": 1}'").unwrap()["a"], 1);
        let error = run("echo first >&2; echo why >&2; exit 3").unwrap_err();
        assert_eq!(error.to_string(), "exit code 3: why");
        assert_eq!(run("echo x").unwrap_err().to_string(), "it printed no JSON; ");
    }
}
