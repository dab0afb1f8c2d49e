//! What the core knows, in the words of the protocol.

use hafen_agent_core::{Exit, Phase, Reason, Record, State, Stop, Violation};
use hafen_protocol::v1;
use hafen_spec::keep::{ExitRecord, Usage};

use crate::time::span;

/// The state that a task is in.
#[must_use]
pub const fn state(record: &Record) -> State {
    match record.phase {
        Phase::Staging => State::Staging,
        Phase::Starting => State::Starting,
        Phase::Running => State::Running,
        Phase::Killing { .. } => State::Killing,
        Phase::Releasing { next: hafen_agent_core::Next::End(state) } | Phase::Ended(state) => {
            state
        }
        Phase::Releasing { next: hafen_agent_core::Next::Restart } | Phase::Waiting => {
            State::Waiting
        }
        Phase::Lost => State::Lost,
    }
}

#[must_use]
pub const fn wire(state: State) -> v1::State {
    match state {
        State::Staging => v1::State::Staging,
        State::Starting => v1::State::Starting,
        State::Running => v1::State::Running,
        State::Killing => v1::State::Killing,
        State::Waiting => v1::State::Waiting,
        State::Finished => v1::State::Finished,
        State::Failed => v1::State::Failed,
        State::Killed => v1::State::Killed,
        State::Error => v1::State::Error,
        State::Lost => v1::State::Lost,
    }
}

/// The state as people say it.
#[must_use]
pub fn word(state: v1::State) -> String {
    state.as_str_name().trim_start_matches("STATE_").to_ascii_lowercase()
}

/// The state of the wire, if it is one.
#[must_use]
pub const fn own(state: v1::State) -> Option<State> {
    Some(match state {
        v1::State::Unspecified => return None,
        v1::State::Staging => State::Staging,
        v1::State::Starting => State::Starting,
        v1::State::Running => State::Running,
        v1::State::Killing => State::Killing,
        v1::State::Waiting => State::Waiting,
        v1::State::Finished => State::Finished,
        v1::State::Failed => State::Failed,
        v1::State::Killed => State::Killed,
        v1::State::Error => State::Error,
        v1::State::Lost => State::Lost,
    })
}

#[must_use]
pub fn is_end(state: v1::State) -> bool {
    own(state).is_some_and(State::is_end)
}

/// Of the tasks of a group together: the least far of those that go on, or else the worst of the ends.
#[must_use]
pub fn together(states: impl Iterator<Item = v1::State>) -> v1::State {
    use v1::State as S;
    const ORDER: [S; 10] = [
        S::Staging,
        S::Starting,
        S::Waiting,
        S::Killing,
        S::Running,
        S::Lost,
        S::Error,
        S::Failed,
        S::Killed,
        S::Finished,
    ];
    let states: Vec<S> = states.collect();
    ORDER.into_iter().find(|state| states.contains(state)).unwrap_or(S::Unspecified)
}

/// A reason, with what the last end tells.
#[must_use]
pub fn reason(reason: &Reason, end: Option<&ExitRecord>) -> Option<v1::Reason> {
    use v1::reason::Kind;
    let exit = match reason {
        Reason::Exited(exit) => Some(exit),
        Reason::Stopped { exit, .. } => exit.as_ref(),
        _ => None,
    };
    let kind = match reason {
        Reason::None => return None,
        Reason::Exited(_) => Kind::Exited,
        Reason::Stopped { why: Stop::Asked | Stop::Group { .. }, .. } => Kind::Stopped,
        Reason::Stopped { why: Stop::TooLong { .. }, .. } => Kind::TooLong,
        Reason::Stopped { why: Stop::Unhealthy { .. }, .. } => Kind::Unhealthy,
        Reason::Stopped { why: Stop::Preempted, .. } => Kind::Preempted,
        Reason::Stopped { why: Stop::Disconnected { .. }, .. } => Kind::Disconnected,
        Reason::NotStaged { .. } => Kind::NotStaged,
        Reason::NotLaunched(_) => Kind::NotLaunched,
        Reason::Rebooted => Kind::Rebooted,
        Reason::Vanished => Kind::Vanished,
        Reason::Unclear { .. } => Kind::Unclear,
    };
    let exit = match reason {
        Reason::NotLaunched(refusal) if refusal.code.is_some() => {
            Some(v1::Exit { code: refusal.code, ..v1::Exit::default() })
        }
        _ => exit.map(|exit| wire_exit(exit, end)),
    };
    Some(v1::Reason { kind: kind.into(), sentence: reason.to_string(), exit })
}

fn wire_exit(exit: &Exit, end: Option<&ExitRecord>) -> v1::Exit {
    v1::Exit {
        code: exit.code,
        signal: exit.signal,
        ran: Some(span(exit.ran)),
        violations: exit.violated.iter().map(violation).collect(),
        usage: end.map(|end| usage(&end.usage.cgroup)),
    }
}

#[must_use]
pub fn violation(violation: &Violation) -> v1::Violation {
    use v1::violation::Kind;
    let sentence = violation.to_string();
    let bare = |kind: Kind, limit, events| v1::Violation {
        kind: kind.into(),
        limit,
        events,
        sentence: sentence.clone(),
        ..v1::Violation::default()
    };
    match violation {
        Violation::Memory { limit, peak, events, largest, shared: _ } => v1::Violation {
            peak: *peak,
            largest: largest.as_ref().map(|(name, _)| name.clone()).unwrap_or_default(),
            largest_amount: largest.as_ref().map(|(_, bytes)| *bytes).unwrap_or_default(),
            ..bare(Kind::Memory, *limit, *events)
        },
        Violation::Pids { limit, refused } => bare(Kind::Pids, *limit, *refused),
        Violation::Disk { limit } => bare(Kind::Disk, *limit, 1),
    }
}

fn usage(usage: &Usage) -> v1::Usage {
    let micros = |n: Option<u64>| n.map(|n| span(std::time::Duration::from_micros(n)));
    v1::Usage {
        cpu: micros(usage.cpu_usec),
        cpu_periods: usage.cpu_periods.unwrap_or_default(),
        cpu_throttled_periods: usage.cpu_throttled_periods.unwrap_or_default(),
        cpu_throttled: micros(usage.cpu_throttled_usec),
        memory_peak: usage.memory_peak_bytes.unwrap_or_default(),
        memory_limit: usage.memory_limit_bytes.unwrap_or_default(),
        oom_events: usage.oom_events.unwrap_or_default(),
        oom_kills: usage.oom_kills.unwrap_or_default(),
        pids_peak: usage.pids_peak.unwrap_or_default(),
        pids_limit: usage.pids_limit.unwrap_or_default(),
        pids_refused: usage.pids_limit_hits.unwrap_or_default(),
        ..v1::Usage::default()
    }
}

/// The limit of memory that a task has together with others.
#[must_use]
pub fn shared_memory(group: Option<&v1::PodSpec>) -> Option<u64> {
    group?.limit.as_ref()?.memory
}

/// Which limit it was: the own one where there is one and it was reached, else that of the group, and whether it is that.
#[must_use]
pub fn memory_limit(own: Option<u64>, shared: Option<u64>, peak: Option<u64>) -> (u64, bool) {
    // The last pages are not there when the kernel gives up.
    const NEARLY: u64 = 1 << 20;
    let reached = |limit: &u64| peak.is_none_or(|peak| peak.saturating_add(NEARLY) >= *limit);
    match (own.filter(reached), shared) {
        (Some(own), _) => (own, false),
        (None, Some(shared)) => (shared, true),
        (None, None) => (0, true),
    }
}

/// How a keeper's record of an end reads to the core: with the limits that were reached, that of all tasks of its group
/// among them.
#[must_use]
pub fn exit(end: &ExitRecord, shared: Option<u64>) -> Exit {
    let numbers = &end.usage.cgroup;
    let mut violated = Vec::new();
    if let Some(kills @ 1..) = numbers.oom_kills {
        let peak = numbers.memory_peak_bytes;
        let (limit, shared) = memory_limit(numbers.memory_limit_bytes, shared, peak);
        violated.push(Violation::Memory {
            limit,
            peak: peak.unwrap_or(limit),
            // Those of a limit above are counted above.
            events: numbers.oom_events.unwrap_or_default().max(kills),
            largest: end.oom.as_ref().map(|oom| (oom.process.clone(), oom.resident)),
            shared,
        });
    }
    if let (Some(limit), Some(refused @ 1..)) = (numbers.pids_limit, numbers.pids_limit_hits) {
        violated.push(Violation::Pids { limit, refused });
    }
    Exit {
        code: end.exit_code,
        signal: end.signal,
        ran: std::time::Duration::from_micros(end.wall_usec),
        violated,
        fenced: end.fenced_after_usec.map(std::time::Duration::from_micros),
    }
}

#[cfg(test)]
mod tests {
    use hafen_spec::keep::{Numbers, Oom};

    use super::*;

    #[test]
    fn an_end_by_the_oom_killer_is_a_sentence_with_its_numbers() {
        let cgroup = Usage {
            memory_limit_bytes: Some(64 << 20),
            memory_peak_bytes: Some(64 << 20),
            oom_events: Some(3),
            oom_kills: Some(1),
            ..Usage::default()
        };
        let end = ExitRecord {
            id: "a.1".to_owned(),
            pid: 7,
            exit_code: None,
            signal: Some(9),
            started_at: String::new(),
            wall_usec: 2_000_000,
            usage: Numbers { cgroup, ..Numbers::default() },
            oom: Some(Oom { pid: 7, process: "python3".to_owned(), resident: 58 << 20 }),
            log_lost_bytes: 0,
            fenced_after_usec: None,
        };
        let told = reason(&Reason::Exited(exit(&end, None)), Some(&end)).unwrap();
        let wanted = "killed: memory limit 64 MiB reached, peak 64 MiB, 3 OOM events, largest process \"python3\" 58 MiB, after 2.0 s";
        assert_eq!(told.sentence, wanted);
        assert_eq!(told.exit.unwrap().usage.unwrap().oom_events, 3);
    }

    #[test]
    fn the_limit_that_was_reached_is_told() {
        assert_eq!(memory_limit(Some(64 << 20), Some(96 << 20), Some(64 << 20)), (64 << 20, false));
        assert_eq!(memory_limit(Some(64 << 20), Some(96 << 20), Some(50 << 20)), (96 << 20, true));
        assert_eq!(memory_limit(None, Some(96 << 20), Some(50 << 20)), (96 << 20, true));
        assert_eq!(memory_limit(Some(64 << 20), None, None), (64 << 20, false));
        assert_eq!(memory_limit(None, None, Some(50 << 20)), (0, true));
    }
}
