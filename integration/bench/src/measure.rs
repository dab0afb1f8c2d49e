//! Runs several programs side by side and measures each run.
//!
//! Rounds are interleaved: in each round every program runs once, in a new random order.
//! What the machine does meanwhile then falls on all alike, and none always follows the
//! same other one (the kernel takes a network namespace apart after its container is gone).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

/// Whether somebody wants us to end (SIGINT, SIGTERM), from now on.
///
/// # Errors
/// Of sigaction(2).
pub fn interruption() -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}

/// A command line.
#[derive(Debug, Clone)]
pub struct Job {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// It is over when all that it has left running has ended, and that is in the sums.
    pub with_descendants: bool,
}

impl Job {
    pub fn new<A: Into<OsString>>(program: &Path, arguments: impl IntoIterator<Item = A>) -> Self {
        Self {
            program: program.to_owned(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            with_descendants: false,
        }
    }

    /// A script of sh(1) with its arguments.
    pub fn shell(script: &str, arguments: &[&dyn AsRef<OsStr>]) -> Self {
        let head = ["-c", script, "sh"].map(OsString::from);
        let arguments = arguments.iter().map(|word| word.as_ref().to_owned());
        Self::new(Path::new("/bin/sh"), head.into_iter().chain(arguments))
    }

    #[must_use]
    pub fn with_descendants(self) -> Self {
        Self { with_descendants: true, ..self }
    }
}

/// One of the programs that are compared, and what a single run of it is.
#[derive(Debug, Clone)]
pub struct Subject {
    pub name: String,
    /// Run before the measured job, not measured.
    pub before: Vec<Job>,
    pub measured: Job,
    /// Run after the measured job, not measured.
    pub after: Vec<Job>,
    /// Run when one of the others failed or was killed; their failures are ignored.
    pub rescue: Vec<Job>,
    /// The program's own folder of state, emptied after a failure.
    pub state: PathBuf,
    /// A file that is covered by another one while the program runs.
    pub cover: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub rounds: u32,
    /// Rounds before these that are not counted.
    pub warmup: u32,
    /// For a single job.
    pub timeout: Duration,
    /// Between two runs, for what the kernel still does after the first.
    pub pause: Duration,
    /// Of the order of programs in a round.
    pub seed: u64,
}

/// One run. The resources are those of the program and of all children it waited for;
/// what a descendant used that nobody waited for is in no sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub wall_ns: u64,
    pub user_us: u64,
    pub sys_us: u64,
    /// Of the largest process, not their sum.
    pub peak_kib: u64,
}

impl Sample {
    pub fn wall_ms(&self) -> f64 {
        self.wall_ns as f64 / 1e6
    }

    pub fn cpu_ms(&self) -> f64 {
        (self.user_us + self.sys_us) as f64 / 1e3
    }

    pub fn peak_mib(&self) -> f64 {
        self.peak_kib as f64 / 1024.0
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Done(Sample),
    Failed(String),
    TimedOut,
}

/// All runs of one subject.
#[derive(Debug, Clone, Default)]
pub struct Series {
    pub name: String,
    pub samples: Vec<Sample>,
    pub failures: u32,
    pub timeouts: u32,
    /// Successful runs after which something had to be cleaned up.
    pub leftovers: u32,
    pub first_error: Option<String>,
    /// It failed so often that it was no longer run.
    pub given_up: bool,
}

impl Series {
    fn record(&mut self, outcome: Outcome) {
        let error = match outcome {
            Outcome::Done(sample) => return self.samples.push(sample),
            Outcome::Failed(why) => {
                self.failures += 1;
                why
            }
            Outcome::TimedOut => {
                self.timeouts += 1;
                "timed out".into()
            }
        };
        self.first_error.get_or_insert(error);
    }
}

/// A subject is given up after so many failures in a row, or so many time-outs at all.
const MOST_FAILURES: u32 = 5;
const MOST_TIMEOUTS: u32 = 10;

#[derive(Debug)]
pub struct Bench<'a> {
    pub settings: Settings,
    /// Path of the `stopwatch` program.
    pub stopwatch: &'a Path,
    /// Stops the measurement between two runs.
    pub interrupted: &'a AtomicBool,
}

impl Bench<'_> {
    /// Runs every subject in every round. `clean` is called after each run, removes what it
    /// finds left of the container, and says if there was anything.
    pub fn interleave(&self, subjects: &[Subject], clean: &dyn Fn() -> bool) -> Vec<Series> {
        let name = |s: &Subject| Series { name: s.name.clone(), ..Series::default() };
        let mut all: Vec<Series> = subjects.iter().map(name).collect();
        let mut in_a_row = vec![0; subjects.len()];
        let mut random = fastrand::Rng::with_seed(self.settings.seed);
        for round in 0..self.settings.warmup + self.settings.rounds {
            let mut order: Vec<usize> = (0..subjects.len()).collect();
            random.shuffle(&mut order);
            for n in order.into_iter().filter(|n| !all[*n].given_up).collect::<Vec<_>>() {
                if self.interrupted.load(Ordering::Relaxed) {
                    return all;
                }
                let outcome = self.run(&subjects[n], clean, &mut all[n]);
                in_a_row[n] = if matches!(outcome, Outcome::Done(_)) { 0 } else { in_a_row[n] + 1 };
                if round >= self.settings.warmup || !matches!(outcome, Outcome::Done(_)) {
                    all[n].record(outcome);
                }
                all[n].given_up = in_a_row[n] >= MOST_FAILURES || all[n].timeouts >= MOST_TIMEOUTS;
                thread::sleep(self.settings.pause);
            }
        }
        all
    }

    fn run(&self, subject: &Subject, clean: &dyn Fn() -> bool, series: &mut Series) -> Outcome {
        let outcome = self.run_jobs(subject);
        let failed = !matches!(outcome, Outcome::Done(_));
        if failed {
            for job in &subject.rescue {
                self.time(job, subject);
            }
        }
        let left = clean();
        if failed {
            empty(&subject.state);
        } else if left {
            series.leftovers += 1;
        }
        outcome
    }

    fn run_jobs(&self, subject: &Subject) -> Outcome {
        let others = |jobs: &[Job]| {
            let outcomes = jobs.iter().map(|job| self.time(job, subject));
            outcomes.into_iter().find(|o| !matches!(o, Outcome::Done(_)))
        };
        if let Some(bad) = others(&subject.before) {
            return bad;
        }
        let outcome = self.time(&subject.measured, subject);
        if !matches!(outcome, Outcome::Done(_)) {
            return outcome;
        }
        others(&subject.after).unwrap_or(outcome)
    }

    /// Runs one job under the stopwatch.
    pub fn time(&self, job: &Job, subject: &Subject) -> Outcome {
        self.try_time(job, subject).unwrap_or_else(|e| Outcome::Failed(e.to_string()))
    }

    fn try_time(&self, job: &Job, subject: &Subject) -> io::Result<Outcome> {
        let none = (PathBuf::from("-"), PathBuf::from("-"));
        let (cover, with) = subject.cover.as_ref().unwrap_or(&none);
        // A file: a pipe would be kept open by whatever a killed program leaves behind.
        let errors = tempfile::NamedTempFile::new()?;
        let output = Command::new(self.stopwatch)
            .args(job.with_descendants.then_some("--all"))
            .arg(self.settings.timeout.as_millis().to_string())
            .args([cover, with])
            .arg(&job.program)
            .args(&job.arguments)
            .stdin(Stdio::null())
            .stderr(errors.reopen()?)
            // Out of reach of the terminal's Ctrl-C: a run is finished, not torn apart.
            .process_group(0)
            .output()?;
        let line = String::from_utf8_lossy(&output.stdout);
        let said = fs::read_to_string(errors.path()).unwrap_or_default();
        Ok(read_line(&line, &said))
    }
}

/// The stopwatch's line, and what the program wrote to stderr.
fn read_line(line: &str, said: &str) -> Outcome {
    let said = said.trim().lines().last().unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    let [wall, user, sys, peak, ending, number] = words[..] else {
        return Outcome::Failed(said.to_owned());
    };
    let sample = || -> Result<Sample, std::num::ParseIntError> {
        Ok(Sample {
            wall_ns: wall.parse()?,
            user_us: user.parse()?,
            sys_us: sys.parse()?,
            peak_kib: peak.parse()?,
        })
    };
    match (ending, number, sample()) {
        ("timeout", ..) => Outcome::TimedOut,
        ("exit", "0", Ok(sample)) => Outcome::Done(sample),
        _ => Outcome::Failed(format!("{ending} {number}: {said}")),
    }
}

fn empty(folder: &Path) {
    // Left over only if a program still writes there; the next run will tell.
    let _ = fs::remove_dir_all(folder);
    let _ = fs::create_dir(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_stopwatch() {
        let sample = Sample { wall_ns: 1_500_000, user_us: 300, sys_us: 700, peak_kib: 2048 };
        assert_eq!(read_line("1500000 300 700 2048 exit 0\n", ""), Outcome::Done(sample));
        assert_eq!((sample.wall_ms(), sample.cpu_ms(), sample.peak_mib()), (1.5, 1.0, 2.0));
    }

    #[test]
    fn failures_carry_the_last_words() {
        assert_eq!(read_line("1 2 3 4 timeout 0", "x"), Outcome::TimedOut);
        let failed = |text: &str| Outcome::Failed(text.into());
        assert_eq!(read_line("1 2 3 4 exit 1", "a\nb\n"), failed("exit 1: b"));
        assert_eq!(read_line("1 2 3 4 signal 11", ""), failed("signal 11: "));
        assert_eq!(read_line("", "stopwatch: posix_spawn"), failed("stopwatch: posix_spawn"));
    }

    #[test]
    fn the_first_error_is_kept() {
        let mut series = Series::default();
        series.record(Outcome::TimedOut);
        series.record(Outcome::Failed("later".into()));
        assert_eq!((series.failures, series.timeouts), (1, 1));
        assert_eq!(series.first_error.as_deref(), Some("timed out"));
    }
}
