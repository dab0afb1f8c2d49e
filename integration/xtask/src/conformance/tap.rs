//! What a program of the suite says about the runtime, in the Test Anything Protocol.

/// The end of a program, as far as it judges the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Well,
    Badly,
    AtItsLimit,
}

/// Nothing when the runtime passed, or why not, in one line.
///
/// Some programs know no `not ok`: they print an `error` in a diagnostic that belongs to no result, and a
/// plan of none. And some print nothing at all and say it by their exit code.
pub(super) fn complaint(output: &str, errors: &str, ended: Ended) -> Option<String> {
    let said = failed_result(output).or_else(|| loose_error(output));
    let last = || errors.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned);
    match (ended, said) {
        (Ended::AtItsLimit, _) => Some("not done within the time limit".to_owned()),
        (_, Some(said)) => Some(said),
        (Ended::Well, None) => None,
        (Ended::Badly, None) => Some(last().unwrap_or_else(|| "failed in silence".to_owned())),
    }
}

fn failed_result(output: &str) -> Option<String> {
    let mut failures = output.lines().filter(|l| l.starts_with("not ok") && !l.contains("# TODO"));
    failures.next().map(str::to_owned)
}

/// The first `error` of a diagnostic where the program has no result at all.
fn loose_error(output: &str) -> Option<String> {
    let has_result = output.lines().any(|l| l.starts_with("ok ") || l.starts_with("not ok "));
    let error = output.lines().find_map(|l| l.trim().strip_prefix("\"error\":"));
    error.filter(|_| !has_result).map(|text| text.trim().trim_matches(['"', ',']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_decide() {
        let good = "TAP version 13\nok 1 - a\nnot ok 2 # TODO later\n1..2\n";
        assert_eq!(complaint(good, "noise", Ended::Well), None);
        let bad = "ok 1 - a\nnot ok 2 - b\n  ---\n  {\n    \"error\": \"x\"\n  }\n  ...\n1..2\n";
        assert_eq!(complaint(bad, "", Ended::Well).as_deref(), Some("not ok 2 - b"));
    }

    #[test]
    fn an_error_beside_a_good_result_is_part_of_the_test() {
        let refused =
            "ok 1 - is refused\n  ---\n  {\n    \"error\": \"exit status 1\"\n  }\n  ...\n";
        assert_eq!(complaint(refused, "", Ended::Well), None);
    }

    #[test]
    fn an_error_without_results_is_a_failure() {
        let hooks = "TAP version 13\n  ---\n  {\n    \"error\": \"too early\",\n  }\n  ...\n1..0\n";
        assert_eq!(complaint(hooks, "", Ended::Well).as_deref(), Some("too early"));
        assert_eq!(complaint("TAP version 13\n1..0\n", "", Ended::Well), None);
    }

    #[test]
    fn the_exit_code_counts() {
        let last = complaint("ok 1 - a\n", "first\nexit status 1\n\n", Ended::Badly);
        assert_eq!(last.as_deref(), Some("exit status 1"));
        assert_eq!(complaint("", "", Ended::Badly).as_deref(), Some("failed in silence"));
        assert!(complaint("ok 1 - a\n", "", Ended::AtItsLimit).is_some());
    }
}
