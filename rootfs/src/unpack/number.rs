//! Numbers as archives write them.

use nix::sys::time::TimeSpec;

/// A field of a header: octal text, or base 256 where the first bit is set (GNU tar, "Extensions to Archive Format").
pub(super) fn field(bytes: &[u8]) -> Result<i64, String> {
    if bytes[0] & 0x80 != 0 {
        return binary(bytes).ok_or_else(|| "a number of the header is too large".to_owned());
    }
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = bytes.iter().position(|byte| !padding(byte)) else { return Ok(0) };
    let digits = &bytes[start..];
    let end = digits.iter().position(padding).unwrap_or(digits.len());
    let text = &digits[..end];
    let octal = text.iter().all(|byte| matches!(byte, b'0'..=b'7'));
    let number = std::str::from_utf8(text).ok().and_then(|t| i64::from_str_radix(t, 8).ok());
    number
        .filter(|_| octal)
        .ok_or_else(|| format!("\"{}\" in the header is no octal number", text.escape_ascii()))
}

/// Two's complement, the marker in place of the highest bit.
fn binary(bytes: &[u8]) -> Option<i64> {
    let negative = bytes[0] & 0x40 != 0;
    let first = if negative { -1 } else { 0 };
    let mask = |index: usize, byte: u8| if index == 0 && !negative { byte & 0x7f } else { byte };
    let add = |sum: i128, (index, byte): (usize, &u8)| sum << 8 | i128::from(mask(index, *byte));
    i64::try_from(bytes.iter().enumerate().fold(first, add)).ok()
}

/// A whole number of a pax record.
pub(super) fn decimal(bytes: &[u8]) -> Result<u64, String> {
    let text = std::str::from_utf8(bytes).ok();
    let digits = text.filter(|t| !t.is_empty() && t.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| format!("\"{}\" is no number for this place", bytes.escape_ascii()))
}

/// Seconds of a pax record, with a fraction or not; before 1970 with a minus for all of it.
pub(super) fn time(bytes: &[u8]) -> Result<TimeSpec, String> {
    split_time(bytes).ok_or_else(|| format!("\"{}\" is no time", bytes.escape_ascii()))
}

fn split_time(bytes: &[u8]) -> Option<TimeSpec> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit())
    {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanoseconds: i64 = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => TimeSpec::new(seconds, nanoseconds),
        (true, 0) => TimeSpec::new(-seconds, 0),
        (true, _) => TimeSpec::new(-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// An owner. The highest number means "leave as it is" to chown(2).
pub(super) fn id(number: u64) -> Result<u32, String> {
    match u32::try_from(number) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(format!("{number} is no user or group that Linux knows")),
    }
}
