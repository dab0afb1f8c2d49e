//! Many nodes under one coordinator: what it decides, what it hears, and how soon containers run that somebody publishes or
//! that a dead machine had.

pub mod coordinator;
pub mod crowd;
pub mod heartbeat;
pub mod live;
pub mod nodes;
pub mod packing;
pub mod recovery;
pub mod report;
pub mod sizes;
pub mod speed;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub use crate::agent::Error;

/// Whether somebody wants us to end.
///
/// # Errors
/// If so.
pub fn go_on(interrupted: &AtomicBool) -> Result<(), Error> {
    if interrupted.load(Ordering::Relaxed) { Err("interrupted".into()) } else { Ok(()) }
}

/// # Errors
/// If somebody wants us to end meanwhile.
fn pause(length: Duration, interrupted: &AtomicBool) -> Result<(), Error> {
    let end = Instant::now() + length;
    loop {
        go_on(interrupted)?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(Duration::from_millis(100)));
    }
}
