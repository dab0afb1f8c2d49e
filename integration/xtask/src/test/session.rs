//! The steps of one run of `cargo xtask test`, what became of them, and the last words.

use std::panic::resume_unwind;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::Table;

use super::artifacts::Artifacts;
use super::tally::{Counts, Tally};
use crate::command::{self, End};

/// Of what a failed test says, at the end.
const MOST_LINES: usize = 15;

#[derive(Debug, Default)]
pub(super) struct Session {
    tally: Tally,
    steps: Vec<Step>,
    /// Failures that no test's result line counts.
    failed_steps: u64,
}

#[derive(Debug)]
struct Step {
    name: String,
    took: Duration,
    result: String,
}

/// A program that prints test results, made with [`command::limited`] and the same limit.
#[derive(Debug)]
pub(super) struct TestRun {
    pub(super) program: String,
    pub(super) place: String,
    pub(super) limit: Duration,
    pub(super) command: Command,
}

/// What a test program printed.
#[derive(Debug, Default)]
struct Heard {
    /// Absent until there was a result line.
    counts: Option<Counts>,
    last_line: String,
}

enum Judgement {
    Good(Counts),
    /// And the tally has counted them.
    TestsFailed(Counts),
    /// A hang, a crash, silence.
    Broken(String),
}

impl Heard {
    fn add(&mut self, counts: Option<Counts>, line: &str) {
        if let Some(counts) = counts {
            self.counts = Some(self.counts.unwrap_or_default().plus(counts));
        }
        line.clone_into(&mut self.last_line);
    }

    fn judge(&self, end: Result<End>) -> Judgement {
        let late = matches!(end, Ok(End::TimedOut(_)));
        match (failure_of(end), self.counts) {
            (None, Some(counts)) => Judgement::Good(counts),
            (None, None) => Judgement::Broken("no test result was printed".to_owned()),
            (Some(_), Some(counts)) if counts.failed > 0 && !late => Judgement::TestsFailed(counts),
            (Some(why), _) => Judgement::Broken(why + &self.unfinished_test()),
        }
    }

    /// One test at a time is announced before it runs, so a hang or a crash has the test's name.
    fn unfinished_test(&self) -> String {
        let name = self.last_line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... "));
        name.map(|name| format!(", in {}", name.trim_end())).unwrap_or_default()
    }
}

impl Session {
    /// A function as a step.
    pub(super) fn act(&mut self, name: &str, action: impl FnOnce() -> Result<()>) -> bool {
        let started = begin(name);
        let failure = action().err().map(|error| format!("{error:#}"));
        self.end(name, started.elapsed(), failure)
    }

    /// A program that must end with 0.
    pub(super) fn step(&mut self, name: &str, limit: Duration, mut command: Command) -> bool {
        let started = begin(name);
        let failure = failure_of(command::run(limit, &mut command));
        self.end(name, started.elapsed(), failure)
    }

    /// A build that says on its standard output what it made.
    pub(super) fn collect(
        &mut self,
        name: &str,
        limit: Duration,
        mut command: Command,
    ) -> Option<Artifacts> {
        let started = begin(name);
        let mut artifacts = Artifacts::default();
        let end = command::read(limit, &mut command, |line| artifacts.read_line(line));
        self.end(name, started.elapsed(), failure_of(end)).then_some(artifacts)
    }

    /// A program that prints test results.
    pub(super) fn tests(&mut self, run: TestRun) {
        self.tests_at_once(vec![run]);
    }

    /// Several such programs at the same time; what they print comes one after the other.
    pub(super) fn tests_at_once(&mut self, runs: Vec<TestRun>) {
        std::thread::scope(|scope| {
            let begun: Vec<_> = runs
                .into_iter()
                .map(|TestRun { program, place, limit, mut command }| {
                    let (sender, lines) = channel();
                    let run = scope.spawn(move || {
                        let started = Instant::now();
                        // Nobody listens any more only where this program dies, too.
                        let end = command::read(limit, &mut command, |line| {
                            let _ = sender.send(line.to_owned());
                        });
                        (end, started.elapsed())
                    });
                    (program, place, lines, run)
                })
                .collect();
            for (program, place, lines, run) in begun {
                let name = format!("{program} {place}");
                println!("== {name}");
                let heard = self.hear(&program, &lines);
                let (end, took) = run.join().unwrap_or_else(|panic| resume_unwind(panic));
                self.settle(&name, took, heard.judge(end));
            }
        });
    }

    fn hear(&mut self, program: &str, lines: &Receiver<String>) -> Heard {
        let mut heard = Heard::default();
        for line in lines {
            println!("{line}");
            heard.add(self.tally.read_line(program, &line), &line);
        }
        self.tally.settle();
        heard
    }

    fn settle(&mut self, name: &str, took: Duration, judgement: Judgement) {
        match judgement {
            // Most programs of the workspace have no test, or none of the filter's.
            Judgement::Good(counts) if counts == Counts::default() => (),
            Judgement::Good(counts) => self.note(name, took, counts.to_string()),
            Judgement::TestsFailed(counts) => self.note(name, took, format!("FAILED, {counts}")),
            Judgement::Broken(why) => {
                let _ = self.end(name, took, Some(why));
            }
        }
    }

    /// A step that could not even begin.
    pub(super) fn failed(&mut self, name: &str, why: &str) {
        let _ = self.end(name, Duration::ZERO, Some(why.to_owned()));
    }

    fn end(&mut self, name: &str, took: Duration, failure: Option<String>) -> bool {
        let good = failure.is_none();
        if let Some(failure) = &failure {
            eprintln!("FAILED: {name}: {failure}");
            self.failed_steps += 1;
        }
        self.note(name, took, failure.map_or_else(|| "ok".to_owned(), |f| format!("FAILED, {f}")));
        good
    }

    fn note(&mut self, name: &str, took: Duration, result: String) {
        self.steps.push(Step { name: name.to_owned(), took, result });
    }

    /// Prints the steps, the skipped tests, what was wrong and the total.
    pub(super) fn finish(&self) -> ExitCode {
        println!("\n{}", self.table());
        for skipped in self.tally.skipped() {
            println!("skipped: {}: {}: {}", skipped.program, skipped.name, skipped.reason);
        }
        let made_up_for = self.tally.made_up_for();
        if made_up_for > 0 {
            println!("ignored in one environment and run in another: {made_up_for}");
        }
        // Once more, where who reads the end of a long record finds it.
        for fault in &self.tally.faults {
            println!("failed: {}", shortened(fault));
        }
        println!("{}", self.total());
        if self.failures() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn failures(&self) -> u64 {
        self.tally.failed + self.failed_steps
    }

    fn total(&self) -> String {
        let (passed, skipped) = (self.tally.passed, self.tally.skipped_count());
        format!("total: {passed} passed, {} failed, {skipped} skipped", self.failures())
    }

    fn table(&self) -> Table {
        let mut table = crate::table::new(["step", "seconds", "result"]);
        for step in &self.steps {
            let first_line = step.result.lines().next().unwrap_or_default();
            table.add_row([&step.name, &format!("{:.1}", step.took.as_secs_f64()), first_line]);
        }
        table
    }
}

/// A program's whole output may be among it.
fn shortened(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let rest = lines.len().saturating_sub(MOST_LINES);
    let mut short = lines[..lines.len() - rest].join("\n");
    if rest > 0 {
        short.push_str(&format!("\n  ... {rest} lines more"));
    }
    short
}

fn begin(name: &str) -> Instant {
    println!("== {name}");
    Instant::now()
}

fn failure_of(end: Result<End>) -> Option<String> {
    match end {
        Ok(end) if end.success() => None,
        Ok(end) => Some(end.to_string()),
        Err(error) => Some(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    /// The total after a shell script ran as a test program.
    fn total(script: &str) -> String {
        let mut session = Session::default();
        let mut command = command::limited(LIMIT, "sh");
        command.args(["-c", script]);
        session.tests(a_run(command));
        session.total()
    }

    fn a_run(command: Command) -> TestRun {
        TestRun { program: "program".to_owned(), place: "here".to_owned(), limit: LIMIT, command }
    }

    #[test]
    fn runs_at_once_are_counted_each() {
        let run = |script: &str| {
            let mut command = command::limited(LIMIT, "sh");
            command.args(["-c", script]);
            a_run(command)
        };
        let mut session = Session::default();
        session.tests_at_once(vec![run(GOOD), run(&format!("{BAD}; exit 1")), run("sleep 30")]);
        assert_eq!(session.total(), "total: 5 passed, 2 failed, 1 skipped");
    }

    const GOOD: &str = "echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured'";
    const BAD: &str = "echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured'";

    #[test]
    fn results_are_the_total() {
        assert_eq!(total(GOOD), "total: 3 passed, 0 failed, 1 skipped");
        assert_eq!(total(&format!("{GOOD}; {GOOD}")), "total: 6 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn a_failed_test_is_counted_once() {
        assert_eq!(total(&format!("{BAD}; exit 101")), "total: 2 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_crash_a_hang_and_silence_are_failures() {
        assert_eq!(total(&format!("{GOOD}; exit 1")), "total: 3 passed, 1 failed, 1 skipped");
        assert_eq!(total(&format!("{BAD}; sleep 30")), "total: 2 passed, 2 failed, 0 skipped");
        assert_eq!(total("sleep 30"), "total: 0 passed, 1 failed, 0 skipped");
        assert_eq!(total(":"), "total: 0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_hang_has_the_name_of_its_test() {
        let mut heard = Heard::default();
        heard.add(None, "test limits::memory   ... ");
        let Judgement::Broken(why) = heard.judge(Ok(End::TimedOut(LIMIT))) else { panic!() };
        assert_eq!(why, "not done after 1 s, stopped, in limits::memory");
    }

    #[test]
    fn a_step_counts_only_when_it_fails() {
        let mut session = Session::default();
        assert!(session.act("good", || Ok(())));
        assert!(!session.act("bad", || anyhow::bail!("no")));
        assert_eq!(session.total(), "total: 0 passed, 1 failed, 0 skipped");
    }
}
