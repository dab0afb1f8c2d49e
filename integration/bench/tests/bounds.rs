//! A launch takes no more system calls and instructions than the repository's bounds allow.
//!
//! Of the release build, since it is the one that is delivered. `cargo xtask test` makes it; where it is not there, or the
//! machine is of another kind than that of the bounds, the tests are ignored.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use hafen_bench::bounds::CASES;
use hafen_bench::measure::Job;
use hafen_bench::tracer::count;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// See `bench-bounds --help`.
const OTHER_MACHINE: i32 = 3;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trial = |name: &'static str| {
        Trial::ignorable_test(name.replace(' ', "_"), move || stays_within_its_bounds(name))
    };
    let mut trials: Vec<Trial> = CASES.iter().map(|case| trial(case.name)).collect();
    trials.push(Trial::test("the_same_takes_as_many", the_same_takes_as_many));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn the_same_takes_as_many() -> Result<(), Failed> {
    // With two processes that the shell waits for.
    let job = Job::new(Path::new("/bin/sh"), ["-c", "(exit 0); (exit 0)"]);
    let [first, second] = [count(&job)?, count(&job)?];
    assert_eq!(first.len(), 3);
    for (one, other) in first.iter().zip(&second) {
        for (phase, count) in &one.counts {
            let other = other.counts[phase];
            assert_eq!(count.calls, other.calls, "{}", phase.name());
            let apart = count.instructions.abs_diff(other.instructions);
            assert!(100 * apart < count.instructions, "{}: {count:?}, {other:?}", phase.name());
        }
    }
    Ok(())
}

fn stays_within_its_bounds(case: &str) -> Result<Completion, Failed> {
    let missing = |what: String| Ok(Completion::ignored_with(format!("needs {what}")));
    if !nix::unistd::geteuid().is_root() {
        return missing("root".to_owned());
    }
    let Some(program) = release_build() else {
        return missing("the release build of hafen-oci".to_owned());
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench-bounds"));
    let output = command.args(["--only", case]).env("HAFEN_OCI", program).output()?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    match output.status.code() {
        Some(0) => {
            words.lines().filter(|line| line.starts_with("note:")).for_each(|n| println!("{n}"));
            Ok(Completion::Completed)
        }
        Some(OTHER_MACHINE) => missing(format!(
            "the machine of the bounds: {}",
            words.lines().last().unwrap_or_default()
        )),
        _ => Err(words.into_owned().into()),
    }
}

/// Beside the folder of the programs of the tests.
fn release_build() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_BIN_EXE_bench-bounds")).ancestors().nth(2)?;
    Some(folder.join("release/hafen-oci")).filter(|path| path.exists())
}
