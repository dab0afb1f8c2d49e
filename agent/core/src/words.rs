use std::fmt;
use std::time::Duration;

use crate::task::{Exit, Reason, Stop, TaskId, Violation};

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// For people; what numbers there are, are in it.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Exited(exit) => exit.fmt(f),
            Self::Stopped { why, exit: None } => why.fmt(f),
            Self::Stopped { why, exit: Some(exit) } => write!(f, "{why}: {exit}"),
            Self::NotStaged { why } => write!(f, "could not be prepared: {why}"),
            Self::NotLaunched(refusal) => write!(f, "could not be started: {}", refusal.why),
            Self::Rebooted => f.write_str("the machine was started again while it ran"),
            Self::Vanished => f.write_str("there is neither a container nor a record of its end"),
            Self::Unclear { why } => write!(f, "nobody can tell whether it runs: {why}"),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("stopped"),
            Self::TooLong { limit } => write!(f, "stopped: ran longer than {}", seconds(*limit)),
            Self::Unhealthy { check } => write!(f, "stopped: unhealthy: {check}"),
            Self::Group { task } => write!(f, "stopped: {task} of its group has ended"),
            Self::Preempted => f.write_str("stopped: its place was needed for another task"),
            Self::Disconnected { longest } => {
                write!(f, "stopped: no master was heard for {}", seconds(*longest))
            }
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SIGKILL: i32 = 9;
        let by_memory = self.violated.iter().find(|v| matches!(v, Violation::Memory { .. }));
        let mut rest: Vec<_> = self.violated.iter().collect();
        match (self.code, self.signal, by_memory) {
            (None, Some(SIGKILL), Some(memory)) => {
                rest.retain(|v| v != &memory);
                write!(f, "killed: {memory}")?;
            }
            (Some(code), _, _) => write!(f, "exited with code {code}")?,
            (None, Some(signal), _) => write!(f, "killed by signal {signal}")?,
            (None, None, _) => f.write_str("ended, and nobody saw how")?,
        }
        write!(f, ", after {}", seconds(self.ran))?;
        rest.iter().try_for_each(|violated| write!(f, "; {violated}"))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { limit, peak, events, largest, shared } => {
                match (*limit, shared) {
                    (0, _) => f.write_str("no memory was left on the machine")?,
                    (limit, false) => write!(f, "memory limit {} reached", mebibytes(limit))?,
                    (limit, true) => {
                        write!(f, "memory limit {} of its pod reached", mebibytes(limit))?;
                    }
                }
                write!(f, ", peak {}, {}", mebibytes(*peak), plural(*events, "OOM event"))?;
                largest.as_ref().map_or(Ok(()), |(name, bytes)| {
                    write!(f, ", largest process {name:?} {}", mebibytes(*bytes))
                })
            }
            Self::Pids { limit, refused } => {
                let refused = plural(*refused, "fork");
                write!(f, "limit of {limit} processes reached, {refused} refused")
            }
            Self::Disk { limit } => write!(f, "disk limit {} reached", mebibytes(*limit)),
        }
    }
}

fn plural(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "one digit is told")]
fn mebibytes(bytes: u64) -> String {
    let text = format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    format!("{} MiB", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_has_the_numbers() {
        let largest = Some(("python3".to_owned(), 58 << 20));
        let (limit, peak) = (64 << 20, 64 << 20);
        let memory = Violation::Memory { limit, peak, events: 3, largest, shared: false };
        let pids = Violation::Pids { limit: 32, refused: 7 };
        let ran = Duration::from_millis(1500);
        let exit =
            Exit { code: None, signal: Some(9), ran, violated: vec![memory, pids], fenced: None };
        let wanted = "killed: memory limit 64 MiB reached, peak 64 MiB, 3 OOM events, largest process \"python3\" 58 MiB, \
                      after 1.5 s; limit of 32 processes reached, 7 forks refused";
        assert_eq!(Reason::Exited(exit).to_string(), wanted);
        let of = |limit, shared| {
            Violation::Memory { limit, peak: 5 << 20, events: 1, largest: None, shared }.to_string()
        };
        assert_eq!(
            of(9 << 20, true),
            "memory limit 9 MiB of its pod reached, peak 5 MiB, 1 OOM event"
        );
        assert_eq!(of(0, true), "no memory was left on the machine, peak 5 MiB, 1 OOM event");
        let why = Stop::TooLong { limit: Duration::from_secs(5) };
        let exit =
            Some(Exit { code: Some(143), signal: None, ran, violated: Vec::new(), fenced: None });
        let stopped = Reason::Stopped { why, exit }.to_string();
        assert_eq!(stopped, "stopped: ran longer than 5.0 s: exited with code 143, after 1.5 s");
    }
}
