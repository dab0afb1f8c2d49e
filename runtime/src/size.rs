//! Sizes as people write them.

/// `64M` is 64 * 1024 * 1024.
pub(crate) fn bytes(text: &str) -> Option<i64> {
    const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let upper = text.trim_end_matches(['b', 'B', 'i']).to_ascii_uppercase();
    let unit = UNITS.iter().find(|(unit, _)| upper.ends_with(*unit));
    let (number, shift) =
        unit.map_or((upper.as_str(), 0), |(unit, shift)| (upper.trim_end_matches(*unit), *shift));
    let number: i64 = number.parse().ok().filter(|n| *n > 0)?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(bytes("64M"), Some(64 << 20));
        assert_eq!(bytes("1g"), Some(1 << 30));
        assert_eq!(bytes("2KiB"), Some(2048));
        assert_eq!(bytes("4096"), Some(4096));
        for wrong in ["", "M", "0", "-1", "-5", "1.5G", "9999999999T", "64X"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
