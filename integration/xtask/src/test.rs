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
mod deny;
mod fuzz;
mod install;
mod needs;
mod session;
mod tally;

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::command::limited;
use crate::conformance;
use crate::setup::{self, Group};
use crate::workspace;
use artifacts::{Artifacts, Program};
use session::Session;

/// The suite finds the launch's steps by dying before each of them, and leaves defences out to see attacks succeed.
const FEATURES: &[&str] = &["--workspace", "--features", "hafen-oci/fault-points,hafen-oci/weaken"];

/// What is printed is read.
const PLAIN: &[&str] = &["--color", "never"];

/// An ordinary user of the virtual machine, made there.
const USER: &str = "hafen";
/// The suite's cases for them.
const USER_CASES: &str = "user::";

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
        if !options.vm {
            test_natively(&mut session, options, &artifacts);
        }
        if !options.native {
            test_in_vm(&mut session, options, &artifacts);
        }
        conform(&mut session, options);
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
        session.tests(&program.name, "natively", NATIVE, command);
    }
    let mut documentation = cargo(BUILD, &[&["test", "--doc"], FEATURES].concat());
    documentation.arg("--").args(PLAIN).args(&options.filter);
    session.tests("doc", "natively", BUILD, documentation);
}

fn test_in_vm(session: &mut Session, options: &Options, artifacts: &Artifacts) {
    let Some(suite) = artifacts.programs.iter().find(|program| program.is_suite()) else {
        session.failed("suite in the virtual machine", "no test program named suite was built");
        return;
    };
    let filter = options.filter.as_deref();
    session.tests(&suite.name, "in the virtual machine", VM, in_vm(suite, &[], "vm", filter));
    // Two filters cannot be combined, so a filter for other cases runs none of the user's.
    if filter.is_none_or(|f| f.starts_with(USER_CASES)) {
        let command = in_vm(suite, &["-u", USER], "vm-user", filter.or(Some(USER_CASES)));
        session.tests(&suite.name, "in the virtual machine as a user", VM, command);
    }
}

/// The OCI's validation suite; `--native` and `--vm` choose as above.
fn conform(session: &mut Session, options: &Options) {
    let filter = options.filter.as_deref();
    let mut any = false;
    let built = session.act("build the validation suite", || {
        any = conformance::has(filter)?;
        Ok(())
    });
    let places =
        [(false, "natively", !options.vm), (true, "in the virtual machine", !options.native)];
    for (vm, place, _) in places.iter().filter(|(.., wanted)| built && any && *wanted) {
        match conformance::step(*vm, filter) {
            Ok((limit, command)) => session.tests("conformance", place, limit, command),
            Err(error) => session.failed("conformance", &format!("{error:#}")),
        }
    }
}

fn in_vm(suite: &Program, options: &[&str], needs: &str, filter: Option<&str>) -> Command {
    let mut command = limited(VM, workspace::vm_run());
    // Its own limit comes first: it says more.
    let seconds = (VM.as_secs() - MINUTE).to_string();
    // Below /tmp only the working directory is seen in there.
    command.current_dir(workspace::root()).env("NEEDS", needs);
    command.args(["-t", &seconds]).args(options).arg("--").arg(&suite.path);
    command.args(PLAIN).args(filter);
    command
}
