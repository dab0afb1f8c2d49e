use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The name of a task, which its owner chose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId(pub String);

/// Each start of a task's container has a number, and the container a name of its own: so a second one is never taken for
/// the first.
pub type Attempt = u32;

/// What of a task's definition decides what happens to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    pub restart: Restart,
    pub back_off: BackOff,
    /// Between the signal that asks and the one that does not.
    pub grace: Duration,
    /// After that it is stopped.
    pub longest: Option<Duration>,
    /// It can be used once its checks say so, and not as soon as it runs.
    #[serde(default)]
    pub waits_for_checks: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Restart {
    Never,
    /// After every end but a success; so often in a row at most.
    OnFailure {
        most: Option<u32>,
    },
    Always,
}

/// How long to wait before a restart: twice as long each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackOff {
    pub first: Duration,
    pub most: Duration,
    /// Who ran that long begins with `first` again.
    pub forget_after: Duration,
}

impl BackOff {
    /// Before the restart after so many failures in a row.
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        let doubled = 2_u32.checked_pow(failures.saturating_sub(1));
        doubled.and_then(|n| self.first.checked_mul(n)).unwrap_or(self.most).min(self.most)
    }
}

/// What a person or a master is told. The last five are ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    Staging,
    Starting,
    Running,
    Killing,
    /// For the next start.
    Waiting,
    Finished,
    Failed,
    Killed,
    Error,
    Lost,
}

impl State {
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Killed | Self::Error | Self::Lost)
    }
}

/// How a container ended, as its keeper wrote it down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub ran: Duration,
    /// Limits that it ran into, with their numbers.
    pub violated: Vec<Violation>,
    /// Its keeper stopped it: nobody had directed the node for so long.
    #[serde(default)]
    pub fenced: Option<Duration>,
}

impl Exit {
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Violation {
    Memory {
        /// Bytes; 0: nobody set one.
        limit: u64,
        peak: u64,
        /// How often the OOM killer was called for.
        events: u64,
        /// The process that it ended last, and how many bytes that held.
        largest: Option<(String, u64)>,
        /// The limit is that of its group, or, where there is none, the machine's memory.
        #[serde(default)]
        shared: bool,
    },
    Pids {
        limit: u64,
        /// Forks.
        refused: u64,
    },
    Disk {
        limit: u64,
    },
}

/// Why a task is to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stop {
    Asked,
    TooLong {
        limit: Duration,
    },
    Unhealthy {
        check: String,
    },
    /// Another one of its group has ended, and they end together.
    Group {
        task: String,
    },
    /// Something more important needs its place.
    Preempted,
    /// Nobody has directed the node for so long.
    Disconnected {
        longest: Duration,
    },
}

impl Stop {
    /// Who is stopped for its health may be started again; other reasons are for good.
    #[must_use]
    pub const fn is_of_health(&self) -> bool {
        matches!(self, Self::Unhealthy { .. })
    }
}

/// Why there is no container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub why: String,
    /// As shells count what they cannot run: 127, it is not there; 126, it is no program.
    pub code: Option<i32>,
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self { why, code: None }
    }
}

/// Why a task is in its state, for programs; its `Display` is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// Nothing is to be said.
    None,
    Exited(Exit),
    Stopped {
        why: Stop,
        exit: Option<Exit>,
    },
    NotStaged {
        why: String,
    },
    NotLaunched(Refusal),
    /// The machine was started again while it ran.
    Rebooted,
    /// There is neither a container nor a word of its end.
    Vanished,
    /// What is there cannot be told.
    Unclear {
        why: String,
    },
}

/// News of a task: numbered, and kept until somebody has taken note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    pub sequence: u64,
    pub attempt: Attempt,
    pub state: State,
    pub reason: Reason,
    /// It runs, and can be used.
    #[serde(default)]
    pub ready: bool,
    /// Of the record with which it was written down.
    pub revision: u64,
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    Staging,
    Starting,
    Running,
    Killing {
        /// Without being asked any more.
        forced: bool,
    },
    Releasing {
        next: Next,
    },
    Waiting,
    Ended(State),
    /// Whether it runs cannot be told: it waits for orders, and is never started meanwhile.
    Lost,
}

/// After the release of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Next {
    End(State),
    Restart,
}

/// Everything that is known of a task, as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: TaskId,
    pub definition: Definition,
    /// Counts the changes of this record.
    pub revision: u64,
    pub attempt: Attempt,
    /// In a row.
    pub failures: u32,
    pub phase: Phase,
    pub stop: Option<Stop>,
    /// While it runs: it can be used.
    #[serde(default)]
    pub ready: bool,
    /// Of the last update.
    pub sequence: u64,
    /// Of which nobody has taken note yet.
    pub updates: VecDeque<Update>,
}
