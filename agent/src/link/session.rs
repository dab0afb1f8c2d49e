//! One stream to a master: what is counted, what is heard and for how long that holds, and what is said in which order.
//! There is no clock, no socket and no disk: whoever drives it says what has come and what time it is.

use std::collections::VecDeque;
use std::time::Duration;

use hafen_protocol::v1::{self, failure, from_agent, from_master};

use super::clock::BootTime;
use super::words;
use crate::time;

/// Least and most version of the protocol.
pub(super) const VERSIONS: (u32, u32) = (1, 1);
/// Until the Hello is answered.
const PATIENCE: Duration = Duration::from_secs(10);
const REPORT_EVERY: Duration = Duration::from_secs(10);
const LEASES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// Bytes of a message.
pub(super) const MOST_MESSAGE: usize = 4 << 20;
const LEAST_MESSAGE: usize = 64 << 10;
/// Commands without a result.
pub(super) const MOST_COMMANDS: usize = 1_024;

/// What the master has said in its Welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    pub lease: Duration,
    pub ping_every: Duration,
    pub report_every: Duration,
    pub max_message: usize,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Write it down: nothing lower is obeyed from now on, by no later agent either.
    Epoch(u64),
    /// The master has heard what we sent then.
    Heard(BootTime),
    Welcomed(v1::Welcome),
    Acknowledged(v1::Acknowledge),
    Carry(Box<v1::Command>),
}

/// Why there is no stream any more. Nothing of it that has not been carried out ever is.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum End {
    #[error("the master has not heard this node for {:.1} s", .0.as_secs_f64())]
    Silence(Duration),
    #[error("the master breaks a rule: {0}")]
    Broken(String),
    #[error("refused: {}: {}", .0.kind().as_str_name(), .0.sentence)]
    Refused(v1::Refused),
    #[error("another master is to be asked")]
    Redirected(Vec<String>),
    #[error("the master is of epoch {0}, and {1} was seen")]
    Fenced(u64, u64),
    /// Neither side's fault.
    #[error("{0}")]
    Lost(String),
}

fn broken<T>(rule: impl Into<String>) -> Result<T, End> {
    Err(End::Broken(rule.into()))
}

#[derive(Debug)]
pub struct Session {
    /// Of our last message, and of theirs.
    number: u64,
    taken: u64,
    /// What we sent, and when, as far as they have not said that they have heard it.
    sent: VecDeque<(u64, BootTime)>,
    last_sent: BootTime,
    heard: BootTime,
    terms: Option<Terms>,
    /// The greatest that was seen.
    epoch: u64,
    queue: VecDeque<from_agent::What>,
    /// The latest one holds, and all else goes first.
    report: Option<v1::NodeReport>,
    /// Commands without a result.
    open: usize,
    is_over: bool,
}

impl Session {
    /// With the Hello, which is sent now. `epoch` is the greatest that was seen.
    #[must_use]
    pub fn open(hello: v1::Hello, epoch: u64, now: BootTime) -> (Self, v1::FromAgent) {
        let mut session = Self {
            number: 0,
            taken: 0,
            sent: VecDeque::new(),
            last_sent: now,
            heard: now,
            terms: None,
            epoch,
            queue: VecDeque::new(),
            report: None,
            open: 0,
            is_over: false,
        };
        let first = session.number(from_agent::What::Hello(hello), now);
        (session, first)
    }

    #[must_use]
    pub const fn terms(&self) -> Option<Terms> {
        self.terms
    }

    /// From then on nothing that comes is taken in, unless we are heard before.
    #[must_use]
    pub fn until(&self) -> BootTime {
        let patience = self.terms.map_or(PATIENCE, |terms| terms.lease);
        self.heard.after(patience)
    }

    /// When something is to be done though nothing comes.
    #[must_use]
    pub fn due(&self) -> BootTime {
        let ping = self.terms.map(|terms| self.last_sent.after(terms.ping_every));
        ping.map_or(self.until(), |ping| ping.min(self.until()))
    }

    /// # Errors
    /// [`End::Silence`].
    pub fn check(&self, now: BootTime) -> Result<(), End> {
        if now < self.until() {
            return Ok(());
        }
        Err(End::Silence(now.since(self.heard)))
    }

    /// Something has come.
    ///
    /// # Errors
    /// The stream is to be closed.
    pub fn take(&mut self, message: v1::FromMaster, now: BootTime) -> Result<Vec<Act>, End> {
        // It may have waited in the network, or we may have slept: it is not carried out, whatever it says.
        self.check(now)?;
        if message.number != self.taken + 1 {
            return broken(format!("message {} came after {}", message.number, self.taken));
        }
        self.taken = message.number;
        if message.epoch < self.epoch {
            return self.drop(message);
        }
        let mut acts = Vec::new();
        if message.epoch > self.epoch {
            self.epoch = message.epoch;
            acts.push(Act::Epoch(message.epoch));
        }
        let heard = self.hear(message.heard)?;
        let what = self.understand(message.what)?;
        // Only who is welcome is heard.
        acts.extend(heard.map(Act::Heard));
        acts.extend(what);
        Ok(acts)
    }

    /// Nobody that is lower is obeyed.
    fn drop(&mut self, message: v1::FromMaster) -> Result<Vec<Act>, End> {
        if self.terms.is_none() {
            return Err(End::Fenced(message.epoch, self.epoch));
        }
        if let Some(from_master::What::Command(command)) = message.what {
            self.open += 1;
            self.fence(&command, message.epoch);
        }
        Ok(Vec::new())
    }

    fn fence(&mut self, command: &v1::Command, epoch: u64) {
        let sentence = format!("it is of epoch {epoch}, and {} was seen", self.epoch);
        self.answer(words::failed(&command.id, failure::Kind::Fenced, sentence));
    }

    fn hear(&mut self, number: u64) -> Result<Option<BootTime>, End> {
        if number > self.number {
            let sent = self.number;
            return broken(format!("message {number} is said to be heard, and {sent} were sent"));
        }
        let mut last = None;
        while self.sent.front().is_some_and(|(sent, _)| *sent <= number) {
            last = self.sent.pop_front().map(|(_, at)| at);
        }
        self.heard = last.map_or(self.heard, |at| self.heard.max(at));
        Ok(last)
    }

    fn understand(&mut self, what: Option<from_master::What>) -> Result<Option<Act>, End> {
        use from_master::What;
        match what {
            Some(What::Refused(refused)) => Err(End::Refused(refused)),
            Some(What::Redirect(redirect)) => Err(End::Redirected(redirect.masters)),
            Some(What::Welcome(welcome)) if self.terms.is_none() => {
                self.terms = Some(terms(&welcome)?);
                Ok(Some(Act::Welcomed(welcome)))
            }
            Some(What::Welcome(_)) => broken("a second Welcome"),
            _ if self.terms.is_none() => broken("the first message is no Welcome"),
            Some(What::Acknowledge(known)) => Ok(Some(Act::Acknowledged(known))),
            Some(What::Command(command)) => Ok(self.command(command)),
            Some(What::Ping(_)) | None => Ok(None),
        }
    }

    fn command(&mut self, command: v1::Command) -> Option<Act> {
        use failure::Kind;
        self.open += 1;
        let wrong = |kind, sentence: &str| words::failed(&command.id, kind, sentence);
        if command.epoch < self.epoch {
            self.fence(&command, command.epoch);
        } else if command.epoch > self.epoch {
            self.answer(wrong(Kind::Invalid, "its epoch is greater than its master's"));
        } else if command.id.is_empty() || command.id.len() > 64 {
            self.answer(wrong(Kind::Invalid, "id: 1 to 64 bytes"));
        } else if command.what.is_none() {
            self.answer(wrong(Kind::Unsupported, "this node knows no such command"));
        } else {
            return Some(Act::Carry(Box::new(command)));
        }
        None
    }

    /// The result of a command, or of its repetition.
    pub fn answer(&mut self, result: v1::CommandResult) {
        self.open = self.open.saturating_sub(1);
        self.say(from_agent::What::Result(result));
    }

    /// A command will have no result: it was told already that it is under way.
    pub fn waive(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    pub fn say(&mut self, what: from_agent::What) {
        self.queue.push_back(what);
    }

    /// The latest one holds; that a pressure has ended was said by the one before alone.
    pub fn report(&mut self, mut report: v1::NodeReport) {
        let unsent = self.report.take().map(|before| before.pressure).unwrap_or_default();
        let is_told = |old: &v1::Pressure| report.pressure.iter().any(|one| one.of == old.of);
        let ended: Vec<_> = unsent.into_iter().filter(|old| old.ended && !is_told(old)).collect();
        report.pressure.extend(ended);
        self.report = Some(report);
    }

    /// The master waits, or is made to.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.open >= MOST_COMMANDS
    }

    /// Is there something to send?
    #[must_use]
    pub fn has_news(&self, now: BootTime) -> bool {
        let Some(terms) = self.terms else { return false };
        let quiet = now >= self.last_sent.after(terms.ping_every);
        !self.is_over && (!self.queue.is_empty() || self.report.is_some() || quiet)
    }

    /// The next message, which is sent now.
    pub fn next(&mut self, now: BootTime) -> Option<v1::FromAgent> {
        use from_agent::What;
        if !self.has_news(now) {
            return None;
        }
        let most = self.terms.map_or(MOST_MESSAGE, |terms| terms.max_message);
        let report = |report: &mut Option<_>| report.take().map(What::Report);
        let next = self.queue.pop_front().or_else(|| report(&mut self.report));
        let what = words::fit(next.unwrap_or(What::Ping(v1::Ping {})), most);
        self.is_over = matches!(what, What::Leaving(_));
        Some(self.number(what, now))
    }

    /// Nothing more is said.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.is_over
    }

    fn number(&mut self, what: from_agent::What, now: BootTime) -> v1::FromAgent {
        self.number += 1;
        self.sent.push_back((self.number, now));
        self.last_sent = now;
        v1::FromAgent { number: self.number, heard: self.taken, what: Some(what) }
    }
}

fn terms(welcome: &v1::Welcome) -> Result<Terms, End> {
    let version = welcome.version;
    if version < VERSIONS.0 || version > VERSIONS.1 {
        return broken(format!("version {version} was not offered"));
    }
    let lease = welcome.lease.as_ref().map(time::duration).unwrap_or_default();
    if lease < LEASES.0 || lease > LEASES.1 {
        return broken(format!("a lease of {:.1} s: 1 s to 10 min", lease.as_secs_f64()));
    }
    let said = |wire: &Option<_>| wire.as_ref().map(time::duration).filter(|time| !time.is_zero());
    let ping_every = said(&welcome.ping_every).unwrap_or(lease / 5);
    Ok(Terms {
        lease,
        // Rarer than that would let the lease end.
        ping_every: ping_every.clamp(lease / 100, lease / 2),
        report_every: said(&welcome.report_every).unwrap_or(REPORT_EVERY).max(lease / 10),
        max_message: match welcome.max_message {
            0 => MOST_MESSAGE,
            bytes => usize::try_from(bytes).unwrap_or(MOST_MESSAGE).max(LEAST_MESSAGE),
        },
    })
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
