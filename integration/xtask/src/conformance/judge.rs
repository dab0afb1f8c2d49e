//! What the outcomes mean, in libtest's words.

use std::collections::BTreeMap;

use anyhow::Result;

use super::record::{Host, Known, Record};
use super::run::Outcome;
use super::runtime::Runtime;

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// Nobody passes, for this reason.
    Excused(String),
    Failed(String),
}

pub(super) struct Judge<'a> {
    host: Host,
    known: &'a Known,
    /// For the runtimes that did not run.
    record: &'a Record,
    counts: [usize; 3],
}

/// The results of one program.
type Results<'a> = BTreeMap<Runtime, &'a Outcome>;

impl<'a> Judge<'a> {
    pub(super) fn new(host: Host, known: &'a Known, record: &'a Record) -> Self {
        Self { host, known, record, counts: [0; 3] }
    }

    pub(super) fn all(&mut self, outcomes: &[Outcome]) {
        let mut programs: BTreeMap<&str, Results<'_>> = BTreeMap::new();
        for outcome in outcomes {
            programs.entry(&outcome.program).or_default().insert(outcome.runtime, outcome);
        }
        for (program, results) in &programs {
            let verdict = self.verdict(program, results);
            self.tell(program, verdict);
        }
    }

    fn verdict(&self, program: &str, results: &Results<'_>) -> Verdict {
        let peers: Vec<&str> = [Runtime::Crun, Runtime::Runc]
            .into_iter()
            .filter(|peer| self.passes(program, *peer, results))
            .map(Runtime::name)
            .collect();
        let complaint = results.get(&Runtime::Ours).and_then(|ours| ours.complaint.as_deref());
        if let (Some(_), Some(race)) = (complaint, self.known.race(program)) {
            return Verdict::Excused(race.to_owned());
        }
        match (complaint, self.known.not_yet(self.host, program)) {
            (Some(_), Some(reason)) => return Verdict::Excused(format!("not yet: {reason}")),
            (None, Some(_)) => {
                return Verdict::Failed("reasons.json says that ours does not pass it".to_owned());
            }
            (_, None) => {}
        }
        match (complaint, self.known.reason(self.host, program)) {
            (Some(complaint), _) if !peers.is_empty() => {
                Verdict::Failed(format!("{} passes it: {complaint}", peers.join(" and ")))
            }
            (Some(_), Some(reason)) => Verdict::Excused(reason.to_owned()),
            (Some(complaint), None) => {
                Verdict::Failed(format!("and no reason is listed: {complaint}"))
            }
            (None, None) => Verdict::Passed,
            (None, Some(_)) => {
                Verdict::Failed("reasons.json says that nobody passes it".to_owned())
            }
        }
    }

    fn passes(&self, program: &str, runtime: Runtime, results: &Results<'_>) -> bool {
        let recorded = || self.record.passed(self.host, program, runtime).unwrap_or(false);
        results.get(&runtime).map_or_else(recorded, |outcome| outcome.passed())
    }

    fn tell(&mut self, name: &str, verdict: Verdict) {
        let (place, words) = match verdict {
            Verdict::Passed => (0, "ok".to_owned()),
            Verdict::Excused(reason) => (2, format!("ignored, {reason}")),
            Verdict::Failed(why) => {
                eprintln!("{name}: {why}");
                (1, "FAILED".to_owned())
            }
        };
        self.counts[place] += 1;
        println!("test {name} ... {words}");
    }

    /// The page must show what was measured, and the list must name programs that exist.
    pub(super) fn check_page(&mut self, record: &Record, outcomes: &[Outcome]) -> Result<()> {
        let mut wrong: Vec<String> = outcomes
            .iter()
            .filter(|o| self.known.race(&o.program).is_none())
            .filter(|o| record.passed(self.host, &o.program, o.runtime) != Some(o.passed()))
            .map(|o| format!("{} with {} is recorded otherwise", o.program, o.runtime.name()))
            .collect();
        let strange = self.known.programs().filter(|p| !outcomes.iter().any(|o| o.program == *p));
        wrong.extend(strange.map(|p| format!("reasons.json lists {p}, which is no program")));
        if !record.is_shown(self.known)? {
            wrong.push("docs/conformance.md shows something else than results.json".to_owned());
        }
        let verdict = if wrong.is_empty() {
            Verdict::Passed
        } else {
            Verdict::Failed(wrong.join("; ") + " (`cargo xtask conformance --write` records)")
        };
        self.tell("docs/conformance.md", verdict);
        Ok(())
    }

    pub(super) fn finish(&self) -> bool {
        let [passed, failed, ignored] = self.counts;
        let word = if failed == 0 { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured"
        );
        failed == 0
    }
}

/// One line for a person who looks for the cause.
pub(super) fn explain(outcome: &Outcome) {
    let result = outcome.complaint.as_deref().unwrap_or("passed");
    let seconds = outcome.milliseconds as f64 / 1000.0;
    let tries = if outcome.attempts > 1 {
        format!(", attempt {}", outcome.attempts)
    } else {
        String::new()
    };
    eprintln!(
        "{} with {} ({seconds:.1} s{tries}): {result}",
        outcome.program,
        outcome.runtime.name()
    );
}
