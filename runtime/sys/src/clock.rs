//! The clock that nobody sets.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The time since the boot of the machine, also that in which it slept (CLOCK_BOOTTIME).
#[must_use]
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
