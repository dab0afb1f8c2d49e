//! Whether a container came to what it must. Pure: looks at the record only.

use super::case::Expected;
use super::record::Record;
use super::runner::Ended;
use crate::command::End;

/// Share of the granted processor time that may be used beyond it: a period that has begun is finished.
const CPU_EXCESS: f64 = 1.2;
/// And the share that must be used at least, or it was not the limit that held the container back.
const CPU_USED: f64 = 0.5;

/// SIGKILL, as an exit code.
const KILLED: i32 = 128 + 9;

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) happened: String,
    /// From the kernel's files, by their names there.
    pub(crate) numbers: String,
    pub(crate) held: bool,
}

pub(crate) fn judge(expected: Expected, ended: &Ended) -> Verdict {
    let Some(record) = &ended.record else { return without_record(ended) };
    if let End::TimedOut(_) = ended.end {
        return Verdict { happened: ended.end.to_string(), numbers: String::new(), held: false };
    }
    let mut verdict = match expected {
        Expected::Says(text) => said(text, ended, record),
        Expected::KilledForMemory => killed_for_memory(record),
        Expected::Throttled { cpus } => throttled(cpus, record),
        Expected::ForksRefused => forks_refused(record),
    };
    if let Some(contradiction) = contradiction(ended.end, record) {
        verdict = Verdict { happened: contradiction, held: false, ..verdict };
    }
    verdict
}

/// The runtime failed; its last line says why.
fn without_record(ended: &Ended) -> Verdict {
    let last = ended.output.lines().last().unwrap_or_default();
    Verdict {
        happened: format!("{}: {last}", ended.end),
        numbers: "no record of its end".to_owned(),
        held: false,
    }
}

/// The record and the exit code of `hafen run` must tell the same.
fn contradiction(end: End, record: &Record) -> Option<String> {
    let End::Code(code) = end else { return None };
    let recorded = record.exit_code.or_else(|| record.signal.map(|signal| 128 + signal))?;
    (recorded != code).then(|| format!("ended with {code}, hafen inspect says {recorded}"))
}

fn said(text: &str, ended: &Ended, record: &Record) -> Verdict {
    let said = ended.output.lines().any(|line| line == text);
    let happened = if said {
        format!("wrote its line, {}", ended.end)
    } else {
        format!("wrote something else, {}", ended.end)
    };
    let usage = &record.usage;
    let numbers = format!(
        "{:.1} ms of CPU time, peak {} of {}",
        milliseconds(usage.cpu_usec),
        mebibytes(usage.memory_peak_bytes),
        mebibytes(usage.memory_limit_bytes)
    );
    Verdict { happened, numbers, held: said && ended.end.success() }
}

fn killed_for_memory(record: &Record) -> Verdict {
    let usage = &record.usage;
    let kills = usage.oom_kills.unwrap_or(0);
    let within = match (usage.memory_peak_bytes, usage.memory_limit_bytes) {
        (Some(peak), Some(limit)) => peak <= limit,
        _ => true,
    };
    let killed = record.signal == Some(9) || record.exit_code == Some(KILLED);
    let happened = match (killed, kills) {
        (true, 1..) => "killed by the kernel, out of memory".to_owned(),
        (true, 0) => "killed, but not for its memory".to_owned(),
        (false, _) => format!("not killed, {}", how_it_ended(record)),
    };
    let numbers = format!(
        "oom_kill {kills}, peak {} of {}",
        mebibytes(usage.memory_peak_bytes),
        mebibytes(usage.memory_limit_bytes)
    );
    Verdict { happened, numbers, held: killed && kills > 0 && within }
}

fn throttled(granted: f64, record: &Record) -> Verdict {
    let (used, usage) = (record.cpus(), &record.usage);
    let periods = usage.cpu_throttled_periods.unwrap_or(0);
    let (happened, right) = match used / granted {
        share if share > CPU_EXCESS => ("got more than its limit", false),
        share if share < CPU_USED => ("hardly used a CPU", false),
        _ if periods == 0 => ("never throttled", false),
        _ => ("throttled", true),
    };
    let numbers = format!(
        "used {used:.2} CPUs, nr_throttled {periods} of {} periods",
        usage.cpu_periods.map_or_else(|| "?".to_owned(), |n| n.to_string())
    );
    let happened = format!("{happened}, ran {:.1} s", milliseconds(record.wall_usec) / 1000.0);
    Verdict { happened, numbers, held: right && record.exit_code == Some(0) }
}

/// A kernel counts the refusals, or knows the peak, or both.
fn forks_refused(record: &Record) -> Verdict {
    let usage = &record.usage;
    let beyond =
        matches!((usage.pids_peak, usage.pids_limit), (Some(peak), Some(limit)) if peak > limit);
    let reached = match (usage.pids_limit_hits, usage.pids_peak, usage.pids_limit) {
        (Some(hits), _, _) => hits > 0,
        (None, Some(peak), Some(limit)) => peak == limit,
        _ => false,
    };
    let happened = match (beyond, reached) {
        (true, _) => "more processes than its limit",
        (false, false) => "the limit was never reached",
        (false, true) => "forks refused, all processes gone",
    };
    let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let numbers = format!(
        "pids.events max {}, peak {} of {}",
        number(usage.pids_limit_hits),
        number(usage.pids_peak),
        number(usage.pids_limit)
    );
    Verdict { happened: happened.to_owned(), numbers, held: reached && !beyond }
}

fn how_it_ended(record: &Record) -> String {
    match (record.exit_code, record.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "end unknown".to_owned(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn milliseconds(usec: u64) -> f64 {
    usec as f64 / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mebibytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "?".to_owned(), |n| format!("{:.1} MiB", n as f64 / f64::from(1 << 20)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::record::Usage;
    use super::*;

    fn ended(code: i32, usage: Usage) -> Ended {
        let record = Record {
            exit_code: Some(code),
            signal: None,
            wall_usec: 3_000_000,
            usage,
            ..Record::default()
        };
        Ended { end: End::Code(code), output: "hello\n".to_owned(), record: Some(record) }
    }

    fn holds(expected: Expected, ended: &Ended) -> bool {
        judge(expected, ended).held
    }

    const CPU: Expected = Expected::Throttled { cpus: 0.5 };

    fn burnt(cpu_usec: u64, throttled: Option<u64>) -> Ended {
        ended(0, Usage { cpu_usec, cpu_throttled_periods: throttled, ..Usage::default() })
    }

    fn forked(hits: Option<u64>, peak: Option<u64>) -> Ended {
        let usage = Usage {
            pids_limit: Some(32),
            pids_peak: peak,
            pids_limit_hits: hits,
            ..Usage::default()
        };
        ended(0, usage)
    }

    fn hog(code: i32, kills: Option<u64>, peak: Option<u64>) -> Ended {
        let usage = Usage {
            memory_limit_bytes: Some(64),
            memory_peak_bytes: peak,
            oom_kills: kills,
            ..Usage::default()
        };
        ended(code, usage)
    }

    #[test]
    fn the_line_and_the_exit_code_are_asked_for() {
        assert!(holds(Expected::Says("hello"), &ended(0, Usage::default())));
        assert!(!holds(Expected::Says("other"), &ended(0, Usage::default())));
        assert!(!holds(Expected::Says("hello"), &ended(1, Usage::default())));
    }

    #[test]
    fn an_oom_kill_needs_the_kernels_evidence() {
        let holds = |ended: &Ended| holds(Expected::KilledForMemory, ended);
        assert!(holds(&hog(137, Some(1), None)));
        assert!(holds(&hog(137, Some(2), Some(64))));
        assert!(!holds(&hog(137, Some(1), Some(65))));
        assert!(!holds(&hog(137, Some(0), Some(64))));
        assert!(!holds(&hog(137, None, None)));
        assert!(!holds(&hog(0, Some(1), None)));
    }

    #[test]
    fn a_kill_may_be_written_as_a_signal() {
        let mut ended = hog(137, Some(1), None);
        ended.record = ended.record.map(|r| Record { exit_code: None, signal: Some(9), ..r });
        assert!(holds(Expected::KilledForMemory, &ended));
    }

    #[test]
    fn throttling_needs_a_share_near_the_limit() {
        assert!(holds(CPU, &burnt(1_500_000, Some(30))));
        assert!(holds(CPU, &burnt(1_600_000, Some(1))));
        assert!(!holds(CPU, &burnt(1_500_000, Some(0))));
        assert!(!holds(CPU, &burnt(1_500_000, None)));
        assert!(!holds(CPU, &burnt(3_000_000, Some(30))));
        assert!(!holds(CPU, &burnt(300_000, Some(30))));
    }

    #[test]
    fn forks_are_contained_by_refusals_or_by_the_peak() {
        let holds = |ended: &Ended| holds(Expected::ForksRefused, ended);
        assert!(holds(&forked(Some(3), None)));
        assert!(holds(&forked(Some(3), Some(32))));
        assert!(holds(&forked(None, Some(32))));
        assert!(!holds(&forked(Some(0), Some(31))));
        assert!(!holds(&forked(Some(3), Some(200))));
        assert!(!holds(&forked(None, None)));
    }

    #[test]
    fn what_did_not_end_or_was_not_recorded_never_holds() {
        let mut late = forked(Some(3), Some(32));
        late.end = End::TimedOut(Duration::from_secs(60));
        assert_eq!(judge(Expected::ForksRefused, &late).happened, "not done after 60 s, stopped");
        let failed = Ended {
            end: End::Code(1),
            output: "hafen-oci: clone3: EPERM\n".to_owned(),
            record: None,
        };
        let verdict = judge(CPU, &failed);
        assert_eq!(
            (verdict.happened.as_str(), verdict.held),
            ("exit code 1: hafen-oci: clone3: EPERM", false)
        );
    }

    #[test]
    fn a_report_that_tells_another_end_is_not_believed() {
        let mut other = forked(Some(3), Some(32));
        other.end = End::Code(2);
        let verdict = judge(Expected::ForksRefused, &other);
        assert_eq!(
            (verdict.happened.as_str(), verdict.held),
            ("ended with 2, hafen inspect says 0", false)
        );
    }
}
