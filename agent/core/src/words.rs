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
            Self::NotLaunched { why } => write!(f, "could not be started: {why}"),
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
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exited with code {code}")?,
            (None, Some(signal)) => write!(f, "killed by signal {signal}")?,
            (None, None) => f.write_str("ended")?,
        }
        write!(f, " after {}", seconds(self.ran))?;
        self.violated.as_ref().map_or(Ok(()), |violated| write!(f, ", {violated}"))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { limit, peak, kills } => {
                let (limit, peak) = (mebibytes(*limit), mebibytes(*peak));
                write!(f, "memory limit {limit} reached, peak {peak}, {kills} OOM kills")
            }
            Self::Disk { limit } => write!(f, "disk limit {} reached", mebibytes(*limit)),
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "one digit is told")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_has_the_numbers() {
        let violated = Some(Violation::Memory { limit: 64 << 20, peak: 64 << 20, kills: 3 });
        let ran = Duration::from_millis(1500);
        let exit = Exit { code: None, signal: Some(9), ran, violated };
        let wanted = "killed by signal 9 after 1.5 s, memory limit 64.0 MiB reached, peak 64.0 MiB, 3 OOM kills";
        assert_eq!(Reason::Exited(exit).to_string(), wanted);
        let why = Stop::TooLong { limit: Duration::from_secs(5) };
        let exit = Some(Exit { code: Some(143), signal: None, ran, violated: None });
        let stopped = Reason::Stopped { why, exit }.to_string();
        assert_eq!(stopped, "stopped: ran longer than 5.0 s: exited with code 143 after 1.5 s");
    }
}
