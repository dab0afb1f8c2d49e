//! `cargo xtask conformance`: the OCI's validation suite with our runtime and with its peers.
//!
//! It prints what libtest prints, so that `cargo xtask test` counts it. A program is *ok* when we pass it,
//! *ignored* with the reason when nobody does and `integration/conformance/reasons.json` says why, and
//! *FAILED* otherwise, or when what is recorded is no longer true.

mod judge;
mod leftovers;
mod record;
mod run;
mod runtime;
mod suite;
mod tap;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::command::{self, limited};
use crate::setup::{self, Group};
use crate::test::FEATURES;
use crate::workspace;
use judge::Judge;
use leftovers::Foreign;
use record::{Host, Known, Record};
use run::{Bench, HostLock, Outcome};
use runtime::Runtime;
use suite::Suite;

const NATIVE_PROGRAM: Duration = Duration::from_secs(60);
const VM_PROGRAM: Duration = Duration::from_secs(300);
/// Of everything.
const NATIVE: Duration = Duration::from_secs(20 * 60);
const VM: Duration = Duration::from_secs(40 * 60);
const MINUTE: Duration = Duration::from_secs(60);
/// Most of the suite's time is sleep.
const AT_ONCE: usize = 3;
const ATTEMPTS: u32 = 3;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// In the virtual machine
    #[arg(long)]
    vm: bool,
    /// Run crun and runc in the virtual machine as well, instead of trusting what is recorded
    #[arg(long)]
    refresh: bool,
    /// Record what was measured
    #[arg(long)]
    write: bool,
    /// Run here what the command runs elsewhere, and print one line of JSON for each run
    #[arg(long, hide = true, value_enum)]
    inside: Option<Host>,
    /// Only programs whose name contains this; their complaints are shown
    filter: Option<String>,
}

impl Options {
    fn host(&self) -> Host {
        if self.vm { Host::Vm } else { Host::Native }
    }

    /// Three runtimes take three times as long, and the virtual machine is slow.
    fn runtimes(&self, host: Host) -> Vec<Runtime> {
        let all = host == Host::Native || self.refresh;
        if all { runtime::ALL.to_vec() } else { vec![Runtime::Ours] }
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(host) = options.inside {
        return run_here(options, host);
    }
    if !setup::is_root()? {
        println!("test conformance ... ignored, needs root\n");
        println!("test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured");
        return Ok(ExitCode::SUCCESS);
    }
    setup::install(Group::Test)?;
    if options.vm {
        setup::install_vm()?;
    }
    build()?;
    Suite::make()?;
    report(options)
}

/// Builds the suite and says whether a filter leaves any program of it.
pub(crate) fn has(filter: Option<&str>) -> Result<bool> {
    let programs = Suite::make()?.programs()?;
    Ok(programs.iter().any(|program| program.contains(filter.unwrap_or_default())))
}

/// This command as a step of another, with its time limit.
pub(crate) fn step(vm: bool, filter: Option<&str>) -> Result<(Duration, Command)> {
    let limit = if vm { VM } else { NATIVE } + MINUTE;
    let mut command = limited(limit, this_program()?);
    command.arg("conformance").args(vm.then_some("--vm")).args(filter);
    Ok((limit, command))
}

fn build() -> Result<()> {
    let mut command = Command::new(workspace::cargo());
    // What `cargo xtask test` builds, so that neither has to build it again after the other.
    let status =
        command.current_dir(workspace::root()).args(["build", "--quiet"]).args(FEATURES).status();
    ensure!(status.context("run cargo build")?.success(), "the build failed");
    Ok(())
}

/// By its path: a build has replaced the file that this process was started from.
fn this_program() -> Result<PathBuf> {
    Ok(workspace::target()?.join("debug/hafen-xtask"))
}

fn report(options: &Options) -> Result<ExitCode> {
    let (host, known, mut record) = (options.host(), Known::read()?, Record::read()?);
    let mut outcomes = Vec::new();
    measure(options, |outcome| {
        if options.filter.is_some() || options.write {
            judge::explain(&outcome);
        }
        outcomes.push(outcome);
    })?;
    if options.write {
        outcomes.iter().for_each(|outcome| record.note(host, outcome));
        record.write(&known)?;
    }
    let mut judge = Judge::new(host, &known, &record);
    judge.all(&outcomes);
    if options.filter.is_none() {
        judge.check_page(&record, &outcomes)?;
    }
    Ok(if judge.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// This program again, where the suite is to run.
fn measure(options: &Options, mut each: impl FnMut(Outcome)) -> Result<()> {
    let program = this_program()?;
    let (limit, mut command) = if options.vm {
        let mut command = limited(VM, workspace::vm_run());
        let seconds = (VM - MINUTE).as_secs().to_string();
        command.args(["-t", &seconds, "--"]).arg(program);
        (VM, command)
    } else {
        (NATIVE, limited(NATIVE, program))
    };
    command.current_dir(workspace::root()).args(["conformance", "--inside"]);
    command.arg(if options.vm { "vm" } else { "native" });
    command.args(options.refresh.then_some("--refresh")).args(&options.filter);
    let end = command::read(limit, &mut command, |line| match serde_json::from_str(line) {
        Ok(outcome) => each(outcome),
        Err(_) => eprintln!("{line}"),
    })?;
    ensure!(end.success(), "{}: {end}", command::line(&command));
    Ok(())
}

fn run_here(options: &Options, host: Host) -> Result<ExitCode> {
    let _lock = HostLock::take()?;
    let (suite, foreign) = (Suite::built()?, Foreign::find());
    let limit = if host == Host::Vm { VM_PROGRAM } else { NATIVE_PROGRAM };
    // What is tested stays the same when somebody builds meanwhile.
    let copies = tempfile::tempdir_in("/var/tmp")?;
    let ours = copies.path().join("hafen-oci");
    std::fs::copy(Runtime::Ours.program()?, &ours).context("copy hafen-oci")?;
    let bench = Bench { suite: &suite, foreign: &foreign, limit, ours };
    let filter = options.filter.as_deref().unwrap_or_default();
    let programs = suite.programs()?.into_iter().filter(|name| name.contains(filter));
    let (alone, together): (Vec<_>, Vec<_>) = programs.partition(|name| shares_a_cgroup(name));
    let jobs = |names: Vec<String>| {
        let runtimes = options.runtimes(host);
        let pairs = names.into_iter().flat_map(move |name| {
            runtimes.clone().into_iter().map(move |runtime| (name.clone(), runtime))
        });
        Mutex::new(pairs.collect::<Vec<_>>().into_iter())
    };
    let attempts = Attempts::new(host)?;
    work(&bench, &jobs(together), AT_ONCE, &attempts)?;
    work(&bench, &jobs(alone), 1, &attempts)?;
    Ok(ExitCode::SUCCESS)
}

/// All of these name the same cgroup, so they cannot run at once.
fn shares_a_cgroup(program: &str) -> bool {
    program.starts_with("linux_cgroups") || program == "delete_resources"
}

/// How often a program is tried: it is known in advance what passes nowhere.
struct Attempts {
    host: Host,
    known: Known,
    record: Record,
}

impl Attempts {
    fn new(host: Host) -> Result<Self> {
        Ok(Self { host, known: Known::read()?, record: Record::read()? })
    }

    fn of(&self, program: &str, runtime: Runtime) -> u32 {
        let excused = self.known.reason(self.host, program).is_some()
            || (self.known.race(program).is_some() && runtime != Runtime::Ours);
        match self.record.passed(self.host, program, runtime) {
            Some(true) if !excused => ATTEMPTS,
            None if !excused => 2,
            _ => 1,
        }
    }
}

type Jobs = Mutex<std::vec::IntoIter<(String, Runtime)>>;

fn work(bench: &Bench<'_>, jobs: &Jobs, at_once: usize, attempts: &Attempts) -> Result<()> {
    let next = || jobs.lock().ok().and_then(|mut jobs| jobs.next());
    let worker = || -> Result<()> {
        while let Some((program, runtime)) = next() {
            let outcome = bench.run(&program, runtime, attempts.of(&program, runtime))?;
            let line = serde_json::to_string(&outcome)?;
            writeln!(std::io::stdout().lock(), "{line}").context("write the result")?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked"))
        })
    })
}
