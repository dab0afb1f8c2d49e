//! A program that serves until it is ended: started, stopped, killed, and started again.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait_until;

const END: Duration = Duration::from_secs(60);

/// It is killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    words: Vec<OsString>,
    variables: Vec<(String, OsString)>,
    log: PathBuf,
    process: Option<Child>,
}

impl Daemon {
    /// A program with its words, which does not run yet, and the file that it logs to.
    pub fn new<I: IntoIterator<Item: Into<OsString>>>(words: I, log: PathBuf) -> Self {
        let words = words.into_iter().map(Into::into).collect();
        Self { words, variables: Vec::new(), log, process: None }
    }

    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// # Panics
    /// It runs already, or cannot be started.
    #[track_caller]
    pub fn begin(&mut self) {
        assert!(self.process.is_none(), "{:?} runs already", self.words);
        let log = File::options().create(true).append(true).open(&self.log).expect("a log");
        let errors = log.try_clone().expect("a descriptor");
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).stdin(Stdio::null()).stdout(log).stderr(errors);
        // The test's own are none of the program's.
        for name in ["HAFEN_SEED", "HAFEN_CYCLES", "HAFEN_BATCH"] {
            command.env_remove(name);
        }
        // Nobody who ends its group is to end what it has begun.
        command.envs(self.variables.iter().map(|(name, value)| (name, value))).process_group(0);
        let spawned = command.spawn();
        self.process = Some(spawned.unwrap_or_else(|e| panic!("start {:?}: {e}", self.words)));
    }

    /// What it has logged.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// # Panics
    /// It does not run.
    #[must_use]
    #[track_caller]
    pub fn pid(&self) -> i32 {
        self.process.as_ref().expect("it runs").id().cast_signed()
    }

    /// How it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let ended = self.process.as_mut()?.try_wait().expect("wait for it")?;
        self.process = None;
        Some(ended)
    }

    /// # Panics
    /// It does not run.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("it lives");
    }

    /// End it at once, if it runs.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ask it to end, and wait until it has.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.end(Signal::SIGTERM, END)
    }

    /// End it by a signal.
    ///
    /// # Panics
    /// It does not run, or does not end.
    #[track_caller]
    pub(crate) fn end(&mut self, signal: Signal, within: Duration) -> ExitStatus {
        self.signal(signal);
        let ended = wait_until(within, || self.ended());
        ended
            .unwrap_or_else(|| panic!("{:?} does not end by {signal}: {}", self.words, self.said()))
    }

    /// Wait until it gives an answer, and does not end before.
    ///
    /// # Panics
    /// It does.
    #[track_caller]
    pub(crate) fn answers<T>(
        &mut self,
        within: Duration,
        mut answer: impl FnMut(&Self) -> Option<T>,
    ) -> T {
        let answered = wait_until(within, || {
            let ended = self.ended();
            assert!(ended.is_none(), "it has ended, {ended:?}: {}", self.said());
            answer(self)
        });
        answered.unwrap_or_else(|| panic!("{:?} does not answer: {}", self.words, self.said()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill9();
    }
}
