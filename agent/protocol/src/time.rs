//! Times and durations of the protocol, and those of the standard library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Before 1970 is 1970: the protocol's times are those of tasks.
#[must_use]
pub fn stamp(time: SystemTime) -> pbjson_types::Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    pbjson_types::Timestamp {
        seconds,
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

#[must_use]
pub fn system(stamp: &pbjson_types::Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(u64::try_from(stamp.seconds).unwrap_or_default());
    let nanos = Duration::from_nanos(u64::try_from(stamp.nanos).unwrap_or_default());
    UNIX_EPOCH.checked_add(seconds + nanos).unwrap_or(UNIX_EPOCH)
}

/// As long as can be said.
#[must_use]
pub fn span(of: Duration) -> pbjson_types::Duration {
    let seconds = i64::try_from(of.as_secs()).unwrap_or(i64::MAX);
    pbjson_types::Duration { seconds, nanos: of.subsec_nanos().cast_signed() }
}

/// Less than nothing is nothing.
#[must_use]
pub fn duration(given: &pbjson_types::Duration) -> Duration {
    Duration::try_from(*given).unwrap_or_default()
}
