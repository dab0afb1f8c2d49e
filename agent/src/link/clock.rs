//! When we were heard, on a clock that runs while the machine sleeps.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hafen_spec::keep;
use hafen_sys::clock::since_boot;
use hafen_sys::file::replace;

use crate::failure::chain;

const FILE: &str = "heard";

/// Since the boot of the machine (CLOCK_BOOTTIME).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BootTime(pub Duration);

impl BootTime {
    #[must_use]
    pub fn now() -> Self {
        Self(since_boot())
    }

    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    #[must_use]
    pub const fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// When a master last heard us: of what we sent, the last of which it said so. Clones share it; in a file the next agent of
/// the same boot finds it, and the keepers of tasks that must end without a master.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Nanoseconds; 0: never.
    at: Arc<AtomicU64>,
    file: PathBuf,
    boot_id: Arc<str>,
}

impl Heard {
    /// Of another boot nobody knows how long it lasted and how long ago that was: that is as never.
    #[must_use]
    pub fn open(run: &Path, boot_id: &str) -> Self {
        let file = run.join(FILE);
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let known = keep::Heard::parse(&text).filter(|heard| heard.boot_id == boot_id);
        let at = known.map_or(0, |heard| nanos(heard.at));
        Self { at: Arc::new(AtomicU64::new(at)), file, boot_id: boot_id.into() }
    }

    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    #[must_use]
    pub fn at(&self) -> Option<BootTime> {
        let nanos = self.at.load(Ordering::Acquire);
        (nanos != 0).then(|| BootTime(Duration::from_nanos(nanos)))
    }

    pub fn renew(&self, at: BootTime) {
        let nanos = nanos(at.0);
        if self.at.fetch_max(nanos, Ordering::AcqRel) >= nanos {
            return;
        }
        // Without it keepers and the next agent take it for longer ago than it was: that stops more than it must, and
        // nothing runs twice.
        let heard = keep::Heard { boot_id: self.boot_id.to_string(), at: at.0 };
        if let Err(e) = replace(&self.file, heard.to_string().as_bytes(), false) {
            tracing::warn!(error = chain(&e), "nobody else knows when we were heard");
        }
    }

    /// Has nobody heard us for so long?
    #[must_use]
    pub fn is_longer_ago(&self, than: Duration, now: BootTime) -> bool {
        self.at().is_none_or(|at| now.since(at) >= than)
    }
}

fn nanos(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_agent_of_the_same_boot_knows() {
        let folder = tempfile::tempdir().unwrap();
        let heard = Heard::open(folder.path(), "b1");
        let (second, now) = (Duration::from_secs(1), BootTime(Duration::from_secs(100)));
        assert!(heard.at().is_none() && heard.is_longer_ago(second * 90, now));
        heard.renew(BootTime(second * 50));
        heard.renew(BootTime(second * 40));
        let next = Heard::open(folder.path(), "b1");
        assert_eq!(next.at(), Some(BootTime(second * 50)));
        assert!(next.is_longer_ago(second * 50, now) && !next.is_longer_ago(second * 51, now));
        assert_eq!(Heard::open(folder.path(), "b2").at(), None);
    }
}
