//! When a check is due, and what its answers mean. Pure: without a clock.

use std::time::Duration;

use hafen_protocol::v1;
use v1::check::{Kind, Probe};

use super::probe;
use crate::failure::Failure;

const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(5);
const FAILURES: u32 = 3;
const SUCCESSES: u32 = 1;
/// More often would be a load of its own.
const SHORTEST: Duration = Duration::from_millis(10);
/// A hundred days of 24 hours.
const LONGEST: Duration = Duration::from_secs(100 * 86_400);
/// Of what a probe says.
const LONGEST_MESSAGE: usize = 512;

/// A field of a check that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct CheckError {
    pub field: String,
    pub reason: String,
}

/// Something to tell about a check.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub status: v1::CheckStatus,
    /// It passes and did not, or the other way round.
    pub flipped: bool,
}

/// A check and what has come of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    name: String,
    kind: Kind,
    probe: Probe,
    interval: Duration,
    timeout: Duration,
    initial_delay: Duration,
    /// In a row, until it does not pass.
    most_failures: u32,
    /// In a row, until it passes.
    enough_successes: u32,
    passing: bool,
    failures: u32,
    successes: u32,
    message: String,
}

impl Schedule {
    /// A task is well until it is shown not to be, and ready only once it is shown to be.
    ///
    /// # Errors
    /// Names the field.
    pub fn new(index: usize, check: &v1::Check) -> Result<Self, CheckError> {
        let wrong = |field: &str, reason: &str| CheckError {
            field: format!("checks[{index}].{field}"),
            reason: reason.to_owned(),
        };
        if check.name.is_empty() {
            return Err(wrong("name", "is missing"));
        }
        if check.name.contains(char::is_control) {
            return Err(wrong("name", &format!("{:?} has a control character", check.name)));
        }
        let kind = match Kind::try_from(check.kind) {
            Ok(kind @ (Kind::Health | Kind::Readiness)) => kind,
            _ => return Err(wrong("kind", "must be health or readiness")),
        };
        let probe = check.probe.clone().ok_or_else(|| wrong("probe", "is missing"))?;
        probe::validate(&probe).map_err(|(field, reason)| wrong(field, &reason))?;
        let time = |field, of: Option<pbjson_types::Duration>, absent, shortest| {
            let Some(of) = of else { return Ok(absent) };
            match Duration::try_from(of) {
                Ok(time) if time > LONGEST => {
                    let longest = humantime::format_duration(LONGEST);
                    Err(wrong(field, &format!("must be {longest} or shorter")))
                }
                Ok(time) if time >= shortest => Ok(time),
                _ => Err(wrong(
                    field,
                    &format!("must be {} or longer", humantime::format_duration(shortest)),
                )),
            }
        };
        Ok(Self {
            name: check.name.clone(),
            kind,
            probe,
            interval: time("interval", check.interval, INTERVAL, SHORTEST)?,
            timeout: time("timeout", check.timeout, TIMEOUT, SHORTEST)?,
            initial_delay: time(
                "initial_delay",
                check.initial_delay,
                Duration::ZERO,
                Duration::ZERO,
            )?,
            most_failures: if check.failures == 0 { FAILURES } else { check.failures },
            enough_successes: if check.successes == 0 { SUCCESSES } else { check.successes },
            passing: kind == Kind::Health,
            failures: 0,
            successes: 0,
            message: String::new(),
        })
    }

    /// Whoever asked before us has found it ready: it is, until it is shown not to be.
    pub fn go_on(&mut self, ready: bool) {
        if self.kind == Kind::Readiness {
            self.passing = ready;
        }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    #[must_use]
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// Between the beginnings of two probes.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Of one probe.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Before the first probe.
    #[must_use]
    pub fn initial_delay(&self) -> Duration {
        self.initial_delay
    }

    /// What a probe has said. Told are a flip, the first answer, and the first one of its kind in a row: what comes
    /// after it says nothing new.
    pub fn answer(&mut self, answer: Result<(), String>) -> Option<Change> {
        let before = (self.successes, self.failures);
        self.count(answer);
        let passes = match self.passing {
            true => self.failures < self.most_failures,
            false => self.successes >= self.enough_successes,
        };
        let flipped = passes != self.passing;
        self.passing = passes;
        let turned = (before.0 == 0, before.1 == 0) != (self.successes == 0, self.failures == 0);
        (flipped || turned).then(|| Change { status: self.status(), flipped })
    }

    fn count(&mut self, answer: Result<(), String>) {
        match answer {
            Ok(()) => {
                self.successes = self.successes.saturating_add(1);
                self.failures = 0;
                self.message.clear();
            }
            Err(reason) => {
                self.failures = self.failures.saturating_add(1);
                self.successes = 0;
                self.message = reason.chars().take(LONGEST_MESSAGE).collect();
            }
        }
    }

    /// As a client is told.
    #[must_use]
    pub fn status(&self) -> v1::CheckStatus {
        v1::CheckStatus {
            name: self.name.clone(),
            kind: self.kind.into(),
            passing: self.passing,
            failures: self.failures,
            message: self.message.clone(),
        }
    }
}

impl From<CheckError> for Failure {
    fn from(e: CheckError) -> Self {
        Self::of(crate::failure::Kind::Invalid, &e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind, failures: u32, successes: u32) -> v1::Check {
        v1::Check {
            name: "web".to_owned(),
            kind: kind.into(),
            probe: Some(Probe::Tcp(v1::check::Tcp { port: 80, host: String::new() })),
            failures,
            successes,
            ..v1::Check::default()
        }
    }

    /// Each answer: passing, failures in a row, whether it is told ("t") or a flip ("F").
    fn told(kind: Kind, failures: u32, successes: u32, answers: &str) -> Vec<(bool, u32, char)> {
        let mut schedule = Schedule::new(0, &check(kind, failures, successes)).unwrap();
        let answer = |c| {
            let said = schedule.answer(if c == '+' { Ok(()) } else { Err("no".to_owned()) });
            let how = said.map_or('.', |change| if change.flipped { 'F' } else { 't' });
            (schedule.status().passing, schedule.status().failures, how)
        };
        answers.chars().map(answer).collect()
    }

    #[test]
    fn a_task_is_well_until_it_fails_often_enough() {
        assert_eq!(
            told(Kind::Health, 3, 0, "+--+----"),
            [
                (true, 0, 't'),
                (true, 1, 't'),
                (true, 2, '.'),
                (true, 0, 't'),
                (true, 1, 't'),
                (true, 2, '.'),
                (false, 3, 'F'),
                (false, 4, '.'),
            ]
        );
    }

    #[test]
    fn a_task_is_ready_once_it_succeeds_often_enough() {
        assert_eq!(
            told(Kind::Readiness, 1, 2, "-+++-+"),
            [
                (false, 1, 't'),
                (false, 0, 't'),
                (true, 0, 'F'),
                (true, 0, '.'),
                (false, 1, 'F'),
                (false, 0, 't'),
            ]
        );
    }

    #[test]
    fn what_is_absent_is_what_the_protocol_says() {
        let schedule = Schedule::new(0, &check(Kind::Health, 0, 0)).unwrap();
        assert_eq!((schedule.interval(), schedule.timeout()), (INTERVAL, TIMEOUT));
        assert_eq!(schedule.initial_delay(), Duration::ZERO);
        let (most, enough) = (schedule.most_failures, schedule.enough_successes);
        assert_eq!((most, enough), (3, 1));
    }

    #[test]
    fn errors_name_the_field() {
        let says = |change: fn(&mut v1::Check)| {
            let mut check = check(Kind::Health, 0, 0);
            change(&mut check);
            Schedule::new(2, &check).unwrap_err().to_string()
        };
        assert_eq!(says(|c| c.name.clear()), "checks[2].name: is missing");
        assert_eq!(says(|c| c.kind = 0), "checks[2].kind: must be health or readiness");
        assert_eq!(says(|c| c.probe = None), "checks[2].probe: is missing");
        let negative = |c: &mut v1::Check| {
            c.timeout = Some(pbjson_types::Duration { seconds: -1, nanos: 0 });
        };
        assert_eq!(says(negative), "checks[2].timeout: must be 10ms or longer");
        let zero = |c: &mut v1::Check| c.interval = Some(pbjson_types::Duration::default());
        assert_eq!(says(zero), "checks[2].interval: must be 10ms or longer");
        let port = |c: &mut v1::Check| {
            c.probe = Some(Probe::Tcp(v1::check::Tcp { port: 70000, host: String::new() }));
        };
        assert!(says(port).starts_with("checks[2].tcp.port: "));
    }
}
