//! Signals by name (signal(7)).

use nix::sys::signal::Signal;

/// `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+3`.
#[must_use]
pub fn number(text: &str) -> Option<i32> {
    const LAST: i32 = 64;
    const RTMIN: i32 = 34;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str| {
        name.strip_prefix(prefix)
            .and_then(|n| if n.is_empty() { Some(0) } else { n.parse::<i32>().ok() })
    };
    let found = name
        .parse::<i32>()
        .ok()
        .or_else(|| offset("RTMIN").map(|n| RTMIN + n))
        .or_else(|| offset("RTMAX").map(|n| LAST + n))
        .or_else(|| format!("SIG{name}").parse::<Signal>().ok().map(|s| s as i32));
    found.filter(|n| (0..=LAST).contains(n))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_by_number_and_name() {
        for (text, wanted) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("0", 0),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(number(text), Some(wanted), "{text}");
        }
        for wrong in ["", "SIGNOPE", "65", "-1", "RTMAX+1"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
