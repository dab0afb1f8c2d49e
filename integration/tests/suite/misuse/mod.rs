//! Nodes, masters and callers that do what they may not, or far too much of what they may: the others are not to notice.

mod coordinator;
mod crowd;
mod orders;
mod stream;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hafen_integration::cluster::{Cluster, Shape, lines};
use hafen_integration::{Case, Test, patience};

use crate::cluster::{Lab, names};

pub(crate) fn trials() -> Vec<Case> {
    [coordinator::trials(), crowd::trials(), orders::trials()].into_iter().flatten().collect()
}

/// Nothing of it ends within a test.
const LEASE: Duration = Duration::from_secs(6);
/// Of an answer, whatever others do.
const LONG: Duration = Duration::from_secs(2);

/// A cluster in which something runs that is not to be disturbed.
struct Peace<'t> {
    lab: Lab<'t>,
    before: BTreeSet<String>,
}

impl<'t> Peace<'t> {
    fn new(t: &'t Test) -> Self {
        Self::of(t, Shape::new(1, LEASE))
    }

    fn of(t: &'t Test, shape: Shape) -> Self {
        let lab = Lab::of(t, Cluster::start(t, shape));
        lab.cluster.submit(&lab.job("web", 2));
        let before = names(&lab.cluster.ready("web", 2));
        Self { lab, before }
    }

    fn socket(&self) -> PathBuf {
        self.lab.cluster.coordinators[0].socket().to_owned()
    }

    /// Of the coordinator.
    fn memory(&self) -> u64 {
        memory(self.lab.cluster.coordinators[0].daemon.pid())
    }

    /// People are answered at once.
    #[track_caller]
    fn is_served(&self) {
        let begin = Instant::now();
        let _ = self.lab.cluster.view();
        let took = begin.elapsed();
        assert!(took < patience(LONG), "a view took {took:?}");
    }

    /// What runs has run on.
    #[track_caller]
    fn holds(&self) {
        self.is_served();
        assert_eq!(names(&self.lab.cluster.ready("web", 2)), self.before);
        assert_eq!(lines(&self.lab.told, "web"), 2, "none was started again");
        let said = self.lab.cluster.said();
        for word in ["node away node=m0", "node unreachable node=m0"] {
            assert!(!said.contains(word), "{said}");
        }
    }
}

/// Resident MiB of a process.
fn memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib >> 10
}

/// # Panics
/// A process has become larger than it may.
#[track_caller]
fn has_not_grown(what: &str, before: u64, after: u64, most: u64) {
    assert!(after <= before + most, "{what} made it grow from {before} to {after} MiB");
}
