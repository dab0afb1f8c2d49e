//! Sizes, shares of CPUs and times as people write and read them.

use std::time::Duration;

/// `64M` is 64 * 1024 * 1024.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let upper = text.trim_end_matches(['b', 'B', 'i']).to_ascii_uppercase();
    let unit = UNITS.iter().find(|(unit, _)| upper.ends_with(*unit));
    let (number, shift) = unit.map_or((upper.as_str(), 0), |(_, shift)| {
        (&upper[..upper.len().saturating_sub(1)], *shift)
    });
    digits(number)?.checked_mul(1 << shift)
}

/// `+5` is a number for the standard library only.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Thousandths: `1.5` is 1500, `.5` is 500.
#[must_use]
pub fn cpus(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let whole = if text.starts_with('.') { "0" } else { whole };
    if part.is_empty() || part.len() > 3 {
        return None;
    }
    let part = digits(part)? * 10_u64.pow(3 - u32::try_from(part.len()).ok()?);
    digits(whole)?.checked_mul(1000)?.checked_add(part)
}

/// `90`, `90s`, `1h 30m`: a bare number is seconds.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    match digits(text) {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => humantime::parse_duration(text).ok(),
    }
}

#[must_use]
pub fn say_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// The two largest units only: nobody wants the seconds of days.
#[must_use]
pub fn say_duration(duration: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = duration.as_secs();
    if rest == 0 {
        return if duration.is_zero() {
            "0s".to_owned()
        } else {
            format!("{}ms", duration.as_millis())
        };
    }
    let mut words = Vec::new();
    for (seconds, unit) in UNITS {
        let count = rest / seconds;
        rest %= seconds;
        if count > 0 {
            words.push(format!("{count}{unit}"));
        } else if !words.is_empty() {
            break;
        }
    }
    words.truncate(2);
    words.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        let cases = [("64M", 64 << 20), ("1g", 1 << 30), ("2KiB", 2048), ("4096", 4096), ("0", 0)];
        for (text, wanted) in cases {
            assert_eq!(bytes(text), Some(wanted), "{text}");
        }
        for wrong in ["", "M", "-1", "+1", "1.5G", "99999999999T", "64X", "1 M", "1MM"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn cpus_have_three_places() {
        let cases = [("1", 1000), ("0.5", 500), (".5", 500), ("1.25", 1250), ("0.001", 1)];
        for (text, wanted) in cases {
            assert_eq!(cpus(text), Some(wanted), "{text}");
        }
        for wrong in ["", ".", "1.", "-1", "0.0001", "1,5", "x"] {
            assert_eq!(cpus(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_are_short() {
        let cases = [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_600, "1h"), (90_061, "1d1h")];
        for (seconds, wanted) in cases {
            assert_eq!(say_duration(Duration::from_secs(seconds)), wanted);
        }
        assert_eq!(say_duration(Duration::from_millis(20)), "20ms");
        assert_eq!(duration("90"), Some(Duration::from_secs(90)));
        assert_eq!(duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(duration("soon"), None);
    }
}
