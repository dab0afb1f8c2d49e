//! The part of `hafen inspect` that is judged here: JSON of the protocol, in which numbers of 64 bits are text, and 0 is
//! left out.

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// From start to end.
    pub(crate) wall_usec: u64,
    /// Why it ended, as people are told.
    pub(crate) sentence: String,
    pub(crate) usage: Usage,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_usec: u64,
    pub(crate) memory_limit_bytes: Option<u64>,
    pub(crate) memory_peak_bytes: Option<u64>,
    pub(crate) oom_kills: Option<u64>,
    pub(crate) cpu_periods: Option<u64>,
    pub(crate) cpu_throttled_periods: Option<u64>,
    pub(crate) pids_limit: Option<u64>,
    pub(crate) pids_peak: Option<u64>,
    pub(crate) pids_limit_hits: Option<u64>,
}

#[derive(Deserialize)]
struct Task {
    reason: Option<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    sentence: String,
    exit: Option<Exit>,
}

#[derive(Deserialize)]
struct Exit {
    code: Option<i32>,
    signal: Option<i32>,
    ran: Option<String>,
    #[serde(default)]
    usage: Told,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Told {
    cpu: Option<String>,
    cpu_periods: Option<String>,
    cpu_throttled_periods: Option<String>,
    memory_peak: Option<String>,
    memory_limit: Option<String>,
    oom_kills: Option<String>,
    pids_peak: Option<String>,
    pids_limit: Option<String>,
    pids_refused: Option<String>,
}

impl Record {
    /// `None`: the task has no end that anybody saw.
    pub(crate) fn read(text: &[u8]) -> Result<Option<Self>> {
        let task: Task = serde_json::from_slice(text).context("parse what hafen inspect says")?;
        let Some(Reason { sentence, exit: Some(exit) }) = task.reason else { return Ok(None) };
        let Exit { code, signal, ran, usage } = exit;
        Ok(Some(Self {
            exit_code: code,
            signal,
            wall_usec: micros(ran.as_deref()),
            sentence,
            usage: Usage::of(&usage),
        }))
    }

    /// Processors in use, on average.
    pub(crate) fn cpus(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of seconds")]
        let share = self.usage.cpu_usec as f64 / self.wall_usec.max(1) as f64;
        share
    }
}

impl Usage {
    fn of(told: &Told) -> Self {
        let number = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
        Self {
            cpu_usec: micros(told.cpu.as_deref()),
            memory_limit_bytes: number(&told.memory_limit),
            memory_peak_bytes: number(&told.memory_peak),
            oom_kills: number(&told.oom_kills),
            cpu_periods: number(&told.cpu_periods),
            cpu_throttled_periods: number(&told.cpu_throttled_periods),
            pids_limit: number(&told.pids_limit),
            pids_peak: number(&told.pids_peak),
            pids_limit_hits: number(&told.pids_refused),
        }
    }
}

/// A duration as `2.014759s`.
fn micros(text: Option<&str>) -> u64 {
    let seconds: f64 = text.and_then(|t| t.strip_suffix('s')?.parse().ok()).unwrap_or_default();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "seconds of a test"
    )]
    let micros = (seconds * 1e6).max(0.0) as u64;
    micros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_inspect_says_is_read() {
        let text = br#"{"id":"x","state":"STATE_FAILED","reason":{"kind":"KIND_EXITED","sentence":"killed: ...","exit":
            {"signal":9,"ran":"2s","usage":{"cpu":"1.000000s","memoryLimit":"67108864","oomKills":"1"}}}}"#;
        let record = Record::read(text).unwrap().unwrap();
        assert_eq!((record.signal, record.usage.oom_kills), (Some(9), Some(1)));
        assert_eq!(record.usage.memory_limit_bytes, Some(67_108_864));
        assert!((record.cpus() - 0.5).abs() < 1e-9);
        assert!(Record::read(br#"{"id":"x","state":"STATE_RUNNING"}"#).unwrap().is_none());
    }
}
