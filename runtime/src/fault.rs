//! Places where a test lets the runtime die as by SIGKILL.

/// A fault point. Without the feature `fault-points` it is nothing at all.
#[cfg(not(feature = "fault-points"))]
pub(crate) const fn point() {}

#[cfg(feature = "fault-points")]
pub(crate) fn point() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let here = PASSED.fetch_add(1, Ordering::Relaxed);
    let prefix = if KEEPS.load(Ordering::Relaxed) { "k" } else { "" };
    if wanted(prefix).is_some_and(|wanted| wanted == here) {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(feature = "fault-points")]
static KEEPS: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// From here on this is a keeper of a container that runs. It counts from 0, as each program does after an execve(2), and
/// its numbers have a `k` before them.
#[cfg(feature = "fault-points")]
pub(crate) fn keeps() {
    KEEPS.store(true, std::sync::atomic::Ordering::Relaxed);
}

#[cfg(not(feature = "fault-points"))]
pub(crate) const fn keeps() {}

/// Before which operation shall the child die?
#[cfg(feature = "fault-points")]
pub(crate) fn child() -> Option<usize> {
    wanted("c")
}

#[cfg(not(feature = "fault-points"))]
pub(crate) const fn child() -> Option<usize> {
    None
}

#[cfg(feature = "fault-points")]
fn wanted(prefix: &str) -> Option<usize> {
    std::env::var("HAFEN_FAULT").ok()?.strip_prefix(prefix)?.parse().ok()
}
