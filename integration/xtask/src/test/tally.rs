//! Counts of tests, from what the test programs print (libtest's format).

use std::collections::{BTreeMap, BTreeSet};

/// What has run so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    /// As the result lines count them.
    ignored: u64,
    /// Of tests since the last result line.
    unsettled: Counts,
    executed: BTreeSet<Test>,
    lacking: BTreeMap<Test, String>,
    lacking_lines: u64,
    /// What was wrong, a text for each failed test, as it was said.
    pub(super) faults: Vec<String>,
    /// Now is the part in which a program says it.
    is_telling: bool,
}

/// A test program's name and the test's.
type Test = (String, String);

/// A result line's counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) ignored: u64,
}

impl Counts {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)
    }
}

/// A test that no run has executed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Skipped<'a> {
    pub(super) program: &'a str,
    pub(super) name: &'a str,
    /// What it lacked, as the last run said.
    pub(super) reason: &'a str,
}

impl Tally {
    /// Reads one line of a program's output; gives the counts when it is a result line.
    pub(super) fn read_line(&mut self, program: &str, line: &str) -> Option<Counts> {
        self.read_fault(program, line);
        if let Some(counts) = parse_result(line) {
            self.unsettled = Counts::default();
            self.add(counts);
            return Some(counts);
        }
        if let Some((name, outcome)) = parse_test(line) {
            self.read_test((program.to_owned(), name.to_owned()), outcome);
        }
        None
    }

    /// After `failures:` come parts with the head `---- NAME ----` (libtest adds a word), and `failures:` once more
    /// before the names alone.
    fn read_fault(&mut self, program: &str, line: &str) {
        if line == "failures:" {
            self.is_telling = !self.is_telling;
        } else if !self.is_telling {
        } else if let Some(head) = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" ----"))
        {
            self.faults.push(format!("{program}: {head}"));
        } else if let Some(fault) = self.faults.last_mut()
            && !line.is_empty()
        {
            fault.push_str("\n  ");
            fault.push_str(line);
        }
    }

    /// Counts what a program said of single tests before it ended without a result line.
    pub(super) fn settle(&mut self) {
        self.is_telling = false;
        let counts = std::mem::take(&mut self.unsettled);
        self.add(counts);
    }

    fn add(&mut self, counts: Counts) {
        self.passed += counts.passed;
        self.failed += counts.failed;
        self.ignored += counts.ignored;
    }

    fn read_test(&mut self, test: Test, outcome: &str) {
        if let Some(reason) = outcome.strip_prefix("ignored") {
            self.unsettled.ignored += 1;
            self.lacking_lines += 1;
            self.lacking.insert(test, clean_reason(reason).to_owned());
        } else if outcome.starts_with("ok") {
            self.unsettled.passed += 1;
            self.executed.insert(test);
        } else if outcome.starts_with("FAILED") {
            self.unsettled.failed += 1;
            self.executed.insert(test);
        }
    }

    /// Ignored wherever they were met.
    pub(super) fn skipped(&self) -> Vec<Skipped<'_>> {
        let never = self.lacking.iter().filter(|(test, _)| !self.executed.contains(*test));
        never.map(|((program, name), reason)| Skipped { program, name, reason }).collect()
    }

    /// Number of [`Self::skipped`], and of ignored tests whose names were not printed.
    pub(super) fn skipped_count(&self) -> u64 {
        self.skipped().len() as u64 + self.ignored.saturating_sub(self.lacking_lines)
    }

    /// Ignored in one run and executed in another.
    pub(super) fn made_up_for(&self) -> usize {
        self.lacking.len() - self.skipped().len()
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; ..`
fn parse_result(line: &str) -> Option<Counts> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut found = Counts::default();
    for count in counts.split(';') {
        let Some((number, word)) = count.trim().split_once(' ') else { continue };
        let place = match word {
            "passed" => &mut found.passed,
            "failed" => &mut found.failed,
            "ignored" => &mut found.ignored,
            _ => continue,
        };
        *place = number.parse().ok()?;
    }
    Some(found)
}

/// `test NAME ... OUTCOME`, the name padded by some.
fn parse_test(line: &str) -> Option<(&str, &str)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    Some((name.trim_end(), outcome))
}

/// libtest writes `ignored, REASON`, libtest-mimic `ignored (REASON)`.
fn clean_reason(text: &str) -> &str {
    let text = text.trim_start_matches([',', ' ']);
    let inner = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).unwrap_or(text);
    if inner.is_empty() { "no reason given" } else { inner }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(runs: &[(&str, &[&str])]) -> Tally {
        let mut tally = Tally::default();
        for (program, lines) in runs {
            for line in *lines {
                tally.read_line(program, line);
            }
        }
        tally
    }

    fn result(passed: u64, failed: u64, ignored: u64) -> String {
        let word = if failed > 0 { "FAILED" } else { "ok" };
        format!(
            "test result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out; finished in 0.00s"
        )
    }

    #[test]
    fn result_lines_are_added_up() {
        let mut tally = Tally::default();
        assert_eq!(tally.read_line("a", "running 3 tests"), None);
        let counts = Counts { passed: 3, failed: 1, ignored: 2 };
        assert_eq!(tally.read_line("a", &result(3, 1, 2)), Some(counts));
        tally.read_line("b", &result(4, 0, 0));
        assert_eq!((tally.passed, tally.failed, tally.skipped_count()), (7, 1, 2));
    }

    #[test]
    fn tests_before_a_hang_count() {
        let lines =
            ["test a ... ok", "test b ... FAILED", "test c ... ignored (needs X)", "test d ... "];
        let mut tally = tally(&[("suite", &lines)]);
        assert_eq!((tally.passed, tally.failed), (0, 0));
        tally.settle();
        assert_eq!((tally.passed, tally.failed, tally.skipped_count()), (1, 1, 1));
    }

    #[test]
    fn faults_are_kept_with_their_tests() {
        let lines = [
            "failures:",
            "",
            "---- limits::a ----",
            "left by it:",
            "  a cgroup",
            "",
            "---- b stdout ----",
            "no",
            "",
            "failures:",
            "    limits::a",
            "    b",
            "",
        ];
        let tally = tally(&[("suite", &lines), ("other", &["running 1 test"])]);
        let expected = ["suite: limits::a\n  left by it:\n    a cgroup", "suite: b stdout\n  no"];
        assert_eq!(tally.faults, expected);
    }

    #[test]
    fn what_another_run_executes_is_not_skipped() {
        let tally = tally(&[
            (
                "suite",
                &[
                    "test limits::a  ... ignored (needs unified cgroups)",
                    "test limits::b ... ignored (needs CAP_X)",
                    &result(0, 0, 2),
                ],
            ),
            (
                "suite",
                &[
                    "test limits::a  ... ok",
                    "test limits::b ... ignored (needs CAP_X)",
                    &result(1, 0, 1),
                ],
            ),
        ]);
        let skipped = Skipped { program: "suite", name: "limits::b", reason: "needs CAP_X" };
        assert_eq!(tally.skipped(), [skipped]);
        assert_eq!((tally.skipped_count(), tally.made_up_for()), (1, 1));
    }

    #[test]
    fn the_same_name_in_another_program_is_another_test() {
        let tally = tally(&[("a", &["test x ... ignored, slow"]), ("b", &["test x ... ok"])]);
        assert_eq!(tally.skipped(), [Skipped { program: "a", name: "x", reason: "slow" }]);
    }

    #[test]
    fn a_reason_may_be_missing() {
        let tally = tally(&[("a", &["test x ... ignored"])]);
        assert_eq!(tally.skipped()[0].reason, "no reason given");
    }
}
