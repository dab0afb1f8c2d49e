//! `cargo xtask test`: everything that can be checked, on this machine and in the virtual machine.
//!
//! A step that fails does not keep the others from running. Every step has a time limit, so a hang is a
//! failure with a name. The last line counts:
//!
//! ```text
//! total: 312 passed, 0 failed, 2 skipped
//! ```
//!
//! *passed* and *failed* add up all runs; a failed step that is not a test, such as clippy, is one more
//! failure. *skipped* are the tests that no run of them has executed (a case for cgroup v2 alone is ignored
//! on a hybrid machine and runs in the virtual one); each is named above with what it lacked. `#[ignore]`
//! on a unit test says that it needs root and limits; it runs where the machine has both.

mod artifacts;
mod background;
mod deny;
mod fuzz;
mod needs;
mod session;
mod tally;

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::command::{self, limited};
use crate::conformance;
use crate::setup::{self, Group};
use crate::workspace;
use artifacts::{Artifacts, Program};
use session::{Session, TestRun};

/// The suite finds the launch's steps by dying before each of them, and leaves defences out to see attacks succeed.
pub(crate) const FEATURES: &[&str] =
    &["--workspace", "--features", "hafen-oci/fault-points,hafen-oci/weaken"];

/// What is printed is read.
const PLAIN: &[&str] = &["--color", "never"];

/// An ordinary user of the virtual machine, made there.
const USER: &str = "hafen";
/// The suite's cases for them.
const USER_CASES: &str = "user::";

/// About half of the suite by the time that it takes in the virtual machine; what is new goes to the other half.
const FIRST_MACHINE: &[&str] = &[
    "bad_input",
    "differential",
    "docs",
    "events",
    "explain",
    "faults",
    "foreign",
    "images",
    "lifecycle",
    "limits",
    "pause",
    "smoke",
    "update",
    "without",
];

/// What these ask of the kernel the rest of their modules asks as well: they are about documents, names, registries, much
/// output, many deaths, short leases, a minute of pressure and a browser, and take half an hour where a processor is emulated.
const NATIVE_ONLY: &[&str] = &[
    "agent::api::",
    "agent::faults::",
    "agent::functions::",
    "agent::hostile::",
    "agent::oracle::",
    "agent::pressure::one_that_is_short_of_memory",
    "agent::recovery::",
    "agent::roots::",
    "agent::storage::",
    "agent::terminals::",
    "cluster::a_cut_machine",
    "cluster::a_drain_has",
    "cluster::a_drained_machine",
    "cluster::a_person_is",
    "cluster::a_removed_machine",
    "cluster::an_update",
    "cluster::at_most_one",
    "cluster::one_way",
    "cluster::people_attach",
    "cluster::revocable_tasks",
    "cluster::short_silences",
    "cluster::the_coordinator",
    "cluster::whatever_happens",
    "images::collect::",
    "images::compare::",
    "images::folder::",
    "images::hostile::",
    "images::registry::",
    "images::store::",
    "keeper::deaths::",
    "keeper::logs::",
    "keeper::memory::",
    "masters::",
    "misuse::",
    "page::",
    "up::of_three_nodes",
    "up::one_node",
];

const MINUTE: u64 = 60;
const FORMAT: Duration = Duration::from_secs(MINUTE);
const BUILD: Duration = Duration::from_secs(20 * MINUTE);
const NATIVE: Duration = Duration::from_secs(30 * MINUTE);
const VM: Duration = Duration::from_secs(35 * MINUTE);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the checks of the code and the tests on this machine
    #[arg(long, conflicts_with = "vm")]
    native: bool,
    /// Only the integration suite in the virtual machine
    #[arg(long)]
    vm: bool,
    /// Trust that everything is installed
    #[arg(long)]
    no_setup: bool,
    /// Only tests whose name contains this; leaves out the checks of the code
    filter: Option<String>,
}

impl Options {
    fn checks_code(&self) -> bool {
        !self.vm && self.filter.is_none()
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut session = Session::default();
    if !options.no_setup {
        set_up(&mut session, options);
    }
    let deny = options.checks_code().then(deny::prepare);
    let fuzz = options.checks_code().then(fuzz::prepare);
    if options.checks_code() {
        check_code(&mut session);
    }
    if let Some(artifacts) = build(&mut session) {
        let validates = build_validation(&mut session, options);
        if !options.vm {
            if options.checks_code() {
                // Whose launches must not take more than they did.
                session.act("build the release", || workspace::build_release(workspace::PRODUCT));
            }
            test_natively(&mut session, options, &artifacts);
            if validates
                && let Some(run) = validation(&mut session, false, options.filter.as_deref())
            {
                session.tests(run);
            }
        }
        if !options.native {
            test_in_vm(&mut session, options, &artifacts, validates);
        }
    }
    if let Some(deny) = deny {
        deny.check(&mut session);
    }
    if let Some(fuzz) = fuzz {
        fuzz.run(&mut session);
    }
    Ok(session.finish())
}

fn set_up(session: &mut Session, options: &Options) {
    session.act("set up", || setup::install(Group::Test));
    if !options.native {
        session.act("set up the virtual machine", setup::install_vm);
    }
}

fn cargo(limit: Duration, words: &[&str]) -> Command {
    let mut command = limited(limit, workspace::cargo());
    command.current_dir(workspace::root()).args(words);
    command
}

fn check_code(session: &mut Session) {
    session.step("fmt", FORMAT, cargo(FORMAT, &["fmt", "--all", "--check"]));
    let words = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    session.step("clippy", BUILD, cargo(BUILD, &words));
}

/// The programs first: the suite takes them from the target folder.
fn build(session: &mut Session) -> Option<Artifacts> {
    let programs = [&["build", "--quiet"], FEATURES].concat();
    let built = session.step("build", BUILD, cargo(BUILD, &programs));
    let messages = ["--message-format", "json-render-diagnostics"];
    let tests = [&["test", "--quiet", "--no-run"], &messages[..], FEATURES].concat();
    let artifacts = session.collect("build the tests", BUILD, cargo(BUILD, &tests))?;
    built.then_some(artifacts)
}

fn test_natively(session: &mut Session, options: &Options, artifacts: &Artifacts) {
    let needs = needs::of_this_machine();
    for program in &artifacts.programs {
        let mut command = limited(NATIVE, &program.path);
        command.current_dir(&program.folder).env("CARGO_MANIFEST_DIR", &program.folder);
        command.args(PLAIN).args(&options.filter);
        if program.is_suite() {
            command.env("NEEDS", needs);
        } else if needs == needs::NATIVE {
            command.arg("--include-ignored");
        }
        session.tests(natively(&program.name, NATIVE, command));
    }
    let mut documentation = cargo(BUILD, &[&["test", "--doc"], FEATURES].concat());
    documentation.arg("--").args(PLAIN).args(&options.filter);
    session.tests(natively("doc", BUILD, documentation));
}

fn natively(program: &str, limit: Duration, command: Command) -> TestRun {
    TestRun { program: program.to_owned(), place: "natively".to_owned(), limit, command }
}

/// Tests run one after another, so an emulated machine keeps hardly more than one processor busy: with half of them in a
/// second one they take not much more than half the time.
fn test_in_vm(session: &mut Session, options: &Options, artifacts: &Artifacts, validates: bool) {
    let Some(suite) = artifacts.programs.iter().find(|program| program.is_suite()) else {
        session.failed("suite in the virtual machine", "no test program named suite was built");
        return;
    };
    let run = |place: &str, command| TestRun {
        program: suite.name.clone(),
        place: place.to_owned(),
        limit: VM,
        command,
    };
    let filter = options.filter.as_deref();
    let mut user = in_vm(suite, &["-u", USER], "vm-user");
    match filter {
        None => {
            let names = names(suite);
            let halves = Halves::of(&names);
            let lost = halves.lost(&names);
            if !lost.is_empty() {
                session.failed("halves of the suite", &format!("in neither: {}", lost.join(", ")));
            }
            let [one, other] = [&halves.one, &halves.other].map(|skipped| {
                let mut machine = in_vm(suite, &[], "vm");
                let all = skipped.iter().map(String::as_str).chain(NATIVE_ONLY.iter().copied());
                machine.args(all.flat_map(|words| ["--skip", words]));
                machine
            });
            session.tests_at_once(vec![
                run("in the virtual machine", one),
                run("in a second virtual machine", other),
            ]);
            user.arg(USER_CASES);
        }
        Some(filter) => {
            let mut command = in_vm(suite, &[], "vm");
            command.arg(filter);
            session.tests(run("in the virtual machine", command));
            user.arg(filter);
        }
    }
    let mut rest = Vec::new();
    // Two filters cannot be combined, so a filter for other cases runs none of the user's.
    if filter.is_none_or(|f| f.starts_with(USER_CASES)) {
        rest.push(run("in the virtual machine as a user", user));
    }
    if validates {
        rest.extend(validation(session, true, filter));
    }
    session.tests_at_once(rest);
}

/// What each of two machines leaves to the other: parts of names.
struct Halves {
    one: Vec<String>,
    other: Vec<String>,
}

impl Halves {
    fn of(names: &[String]) -> Self {
        let modules = names.iter().filter_map(|name| Some(name.split_once("::")?.0));
        let modules: BTreeSet<&str> = modules.collect();
        let skip = |first: bool| {
            let of_it = modules.iter().filter(|module| FIRST_MACHINE.contains(module) == first);
            of_it.map(|module| format!("{module}::")).collect()
        };
        Self { one: skip(false), other: skip(true) }
    }

    /// In neither: `--skip` finds its words anywhere in a name, so of a module within another one that is called like
    /// one of the first machine's.
    fn lost<'a>(&self, names: &'a [String]) -> Vec<&'a str> {
        let skips = |list: &[String], name: &str| list.iter().any(|words| name.contains(words));
        let wanted = names
            .iter()
            .map(String::as_str)
            .filter(|name| !NATIVE_ONLY.iter().any(|group| name.starts_with(group)));
        wanted.filter(|name| skips(&self.one, name) && skips(&self.other, name)).collect()
    }
}

/// Of the suite's cases.
fn names(suite: &Program) -> Vec<String> {
    let mut command = limited(FORMAT, &suite.path);
    command.arg("--list");
    let mut names = Vec::new();
    // Where it cannot be listed nothing is skipped, and everything runs twice.
    let _ = command::read(FORMAT, &mut command, |line| {
        names.extend(line.strip_suffix(": test").map(str::to_owned));
    });
    names
}

/// Whether the OCI's validation suite is there, and any of it is wanted.
fn build_validation(session: &mut Session, options: &Options) -> bool {
    let mut any = false;
    let built = session.act("build the validation suite", || {
        any = conformance::has(options.filter.as_deref())?;
        Ok(())
    });
    built && any
}

fn validation(session: &mut Session, vm: bool, filter: Option<&str>) -> Option<TestRun> {
    let place = if vm { "in the virtual machine" } else { "natively" }.to_owned();
    match conformance::step(vm, filter) {
        Ok((limit, command)) => {
            Some(TestRun { program: "conformance".to_owned(), place, limit, command })
        }
        Err(error) => {
            session.failed("conformance", &format!("{error:#}"));
            None
        }
    }
}

fn in_vm(suite: &Program, options: &[&str], needs: &str) -> Command {
    let mut command = limited(VM, workspace::vm_run());
    // Its own limit comes first: it says more.
    let seconds = (VM.as_secs() - MINUTE).to_string();
    // Below /tmp only the working directory is seen in there.
    command.current_dir(workspace::root()).env("NEEDS", needs);
    command.args(["-t", &seconds]).args(options).arg("--").arg(&suite.path).args(PLAIN);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_is_in_one_half() {
        let names = ["limits::memory", "agent::ends::memory", "keeper::logs::rotated"];
        let names = names.map(str::to_owned);
        let halves = Halves::of(&names);
        assert_eq!(halves.one, ["agent::", "keeper::"]);
        assert_eq!(halves.other, ["limits::"]);
        assert_eq!(halves.lost(&names), [""; 0]);
        let within = [&names[..], &["agent::limits::memory".to_owned()]].concat();
        assert_eq!(Halves::of(&within).lost(&within), ["agent::limits::memory"]);
    }
}
