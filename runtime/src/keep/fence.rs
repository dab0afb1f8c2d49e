//! A container that nobody directs any more is stopped from here: whoever would do it otherwise may be dead, or stopped.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use hafen_spec::keep::{Fence, Heard};
use hafen_sys::clock::since_boot;
use hafen_sys::file::{boot_id, read_text};
use hafen_sys::{CallError, Context};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::supervise::micros;

/// Between two kills of what does not die: it may be stuck in the kernel.
const KILL_AGAIN: Duration = Duration::from_secs(10);

/// Wakes its keeper when the time may be up.
#[derive(Debug)]
pub(crate) struct Guard(TimerFd);

/// What is to be done with the container.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// With that signal.
    Ask(i32),
    Kill,
}

/// When somebody was heard last, in microseconds of CLOCK_BOOTTIME; `None`: nobody was since the machine was started.
///
/// # Errors
/// Of reading the boot's name.
pub(crate) fn heard(file: &Path) -> Result<Option<u64>, CallError> {
    let boot_id = boot_id()?;
    // Who cannot be read was not heard.
    let text = read_text(file).ok();
    let heard = text.and_then(|text| Heard::parse(&text));
    let heard = heard.filter(|heard| heard.boot_id == boot_id && heard.at <= since_boot());
    Ok(heard.map(|heard| micros(heard.at)))
}

impl Guard {
    /// # Errors
    /// Names the call.
    pub(crate) fn new(fence: &Fence) -> Result<Self, CallError> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags);
        let guard = Self(timer.call(|| "timerfd_create".to_owned())?);
        guard.wake_at(next(fence))?;
        Ok(guard)
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// A moment of the past is now.
    fn wake_at(&self, moment: u64) -> Result<(), CallError> {
        // None at all would be no timer.
        let moment = TimeSpec::from_duration(Duration::from_micros(moment.max(1)));
        let set = self.0.set(Expiration::OneShot(moment), TimerSetTimeFlags::TFD_TIMER_ABSTIME);
        set.call(|| "timerfd_settime".to_owned())
    }

    /// It has woken us. The file is looked at only now: so a container costs nothing for as long as all is well.
    pub(crate) fn look(&self, fence: &mut Fence, now: Duration) -> Due {
        let _ = self.0.wait();
        let due = judge(fence, heard(&fence.file).unwrap_or_default(), micros(now));
        let moment = if due == Due::Kill { micros(now + KILL_AGAIN) } else { next(fence) };
        // It has been set before.
        let _ = self.wake_at(moment);
        due
    }
}

/// When there will be something to do.
fn next(fence: &Fence) -> u64 {
    match fence.over_usec {
        Some(over) => over.saturating_add(fence.grace_usec),
        None => fence.heard_usec.saturating_add(fence.after_usec),
    }
}

/// Once the time is up it stays so: whoever waits for this container to end may not be disappointed. A machine that slept
/// over the grace as well kills at once.
fn judge(fence: &mut Fence, heard: Option<u64>, now: u64) -> Due {
    let was_over = fence.over_usec.is_some();
    fence.heard_usec = fence.heard_usec.max(heard.unwrap_or_default());
    let moment = next(fence);
    if now < moment {
        return Due::Nothing;
    }
    if was_over {
        return Due::Kill;
    }
    fence.over_usec = Some(moment);
    if now < next(fence) { Due::Ask(fence.signal) } else { Due::Kill }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence() -> Fence {
        Fence {
            file: "/heard".into(),
            after_usec: 100,
            signal: 15,
            grace_usec: 10,
            heard_usec: 1000,
            over_usec: None,
        }
    }

    #[test]
    fn who_is_heard_moves_it_only_on() {
        let mut fence = fence();
        assert_eq!(judge(&mut fence, None, 1099), Due::Nothing);
        assert_eq!(judge(&mut fence, Some(1050), 1100), Due::Nothing);
        assert_eq!(judge(&mut fence, Some(10), 1149), Due::Nothing);
        assert_eq!(next(&fence), 1150);
        assert_eq!(judge(&mut fence, Some(10), 1150), Due::Ask(15));
    }

    #[test]
    fn what_is_over_stays_so() {
        let mut fence = fence();
        assert_eq!(judge(&mut fence, None, 1100), Due::Ask(15));
        assert_eq!((fence.over_usec, next(&fence)), (Some(1100), 1110));
        assert_eq!(judge(&mut fence, Some(1105), 1109), Due::Nothing);
        assert_eq!(judge(&mut fence, Some(1105), 1110), Due::Kill);
        assert_eq!(judge(&mut fence, Some(1105), 9000), Due::Kill);
    }

    #[test]
    fn a_grace_that_was_slept_over_is_none() {
        let mut fence = fence();
        assert_eq!(judge(&mut fence, None, 1110), Due::Kill);
        assert_eq!(fence.over_usec, Some(1100));
    }
}
