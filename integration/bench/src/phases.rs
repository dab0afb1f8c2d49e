//! What is said of the commands of a container's life, each by itself.

use serde_json::Value;

use crate::measure::Sample;
use crate::programs::{OURS, Phase};
use crate::report::{Row, failures, number};
use crate::sheet::{Plot, Sheet};
use crate::stats::ratio;

/// One program's command.
#[derive(Debug, Clone)]
pub struct Line {
    pub phase: Phase,
    pub row: Row,
}

impl Line {
    fn name(&self) -> &str {
        &self.row.series.name
    }

    fn median(&self) -> Option<f64> {
        self.row.wall().map(|wall| wall.median)
    }
}

#[derive(Debug)]
pub struct Report {
    pub lines: Vec<Line>,
    /// Facts about the machine and the run.
    pub facts: Vec<(&'static str, Value)>,
    pub notes: Vec<String>,
}

impl Report {
    fn median(&self, phase: Phase, name: &str) -> Option<f64> {
        self.lines.iter().find(|l| l.phase == phase && l.name() == name)?.median()
    }

    /// The sum of all phases.
    fn whole(&self, name: &str) -> Option<f64> {
        Phase::ALL.into_iter().map(|phase| self.median(phase, name)).sum()
    }

    /// `create_vs_X` and so on, and `whole_vs_X`: ours divided by X, of medians.
    fn ratios(&self) -> Vec<(String, Option<f64>)> {
        let mut peers: Vec<&str> = self.lines.iter().map(Line::name).collect();
        peers.sort_unstable();
        peers.dedup();
        let mut all = Vec::new();
        for peer in peers.into_iter().filter(|peer| *peer != OURS) {
            for phase in Phase::ALL {
                let value = ratio(self.median(phase, OURS), self.median(phase, peer));
                all.push((format!("{}_vs_{peer}", phase.name()), value));
            }
            all.push((format!("whole_vs_{peer}"), ratio(self.whole(OURS), self.whole(peer))));
        }
        all
    }

    /// One object: the ratios, then what they come from.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows = self.lines.iter().map(line_json).collect();
        self.sheet().report(self.ratios(), [("rows".into(), rows)])
    }

    #[must_use]
    pub fn text(&self) -> String {
        self.sheet().text()
    }

    fn sheet(&self) -> Sheet {
        let plot = |phase: Phase| {
            let lines = self.lines.iter().filter(|line| line.phase == phase);
            let wall = |line: &Line| (line.name().to_owned(), line.row.values(Sample::wall_ms));
            Plot {
                name: phase.name().to_owned(),
                title: format!("Wall time of {}", phase.name()),
                axis: "ms",
                series: lines.map(wall).collect(),
            }
        };
        Sheet {
            facts: self.facts.clone(),
            head: vec![
                "phase",
                "program",
                "version",
                "wall ms",
                "p10",
                "p90",
                "user+sys ms",
                "peak MiB",
                "wall / hafen-oci",
                "runs",
                "failed",
            ],
            named: 3,
            rows: self.lines.iter().map(|line| self.cells(line)).collect(),
            others: self.ratios(),
            goals: Vec::new(),
            notes: self.all_notes(),
            plots: Phase::ALL.into_iter().map(plot).collect(),
        }
    }

    fn cells(&self, line: &Line) -> Vec<String> {
        let Line { phase, row } = line;
        let mut cells: Vec<String> =
            [phase.name(), line.name(), &row.version].map(str::to_owned).into();
        cells.extend(row.cells());
        cells.extend([
            number(ratio(line.median(), self.median(*phase, OURS))),
            row.series.samples.len().to_string(),
            failures(&row.series),
        ]);
        cells
    }

    fn all_notes(&self) -> Vec<String> {
        let of = |line: &Line| {
            let about = format!("{}: ", line.phase.name());
            line.row.notes().into_iter().map(move |note| about.clone() + &note)
        };
        self.notes.iter().cloned().chain(self.lines.iter().flat_map(of)).collect()
    }
}

fn line_json(line: &Line) -> Value {
    let mut all = line.row.json();
    all["phase"] = line.phase.name().into();
    all["program"] = line.name().into();
    all["version"] = line.row.version.clone().into();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Series;

    fn line(phase: Phase, name: &str, ms: u64) -> Line {
        let sample = Sample { wall_ns: ms * 1_000_000, user_us: 0, sys_us: 0, peak_kib: 1024 };
        let series = Series { name: name.into(), samples: vec![sample; 3], ..Series::default() };
        Line { phase, row: Row { version: "1".into(), series } }
    }

    #[test]
    fn each_phase_and_the_whole_have_a_ratio() {
        let ours = [4, 1, 1, 2].into_iter().zip(Phase::ALL);
        let theirs = [8, 4, 1, 3].into_iter().zip(Phase::ALL);
        let mut lines: Vec<Line> = ours.map(|(ms, phase)| line(phase, OURS, ms)).collect();
        lines.extend(theirs.map(|(ms, phase)| line(phase, "crun", ms)));
        let json = Report { lines, facts: vec![], notes: vec![] }.json();
        assert_eq!(json["create_vs_crun"], 0.5);
        assert_eq!(json["start_vs_crun"], 0.25);
        assert_eq!(json["kill_vs_crun"], 1.0);
        assert_eq!(json["whole_vs_crun"], 0.5);
    }

    #[test]
    fn a_phase_that_never_worked_has_no_ratio() {
        let mut broken = line(Phase::Create, "runc", 1);
        broken.row.series.samples.clear();
        broken.row.series.first_error = Some("no such file".into());
        let lines = vec![line(Phase::Create, OURS, 1), broken];
        let report = Report { lines, facts: vec![], notes: vec![] };
        assert!(report.json()["create_vs_runc"].is_null());
        assert!(report.json()["whole_vs_runc"].is_null());
        assert!(report.text().contains("note: create: runc failed: no such file"));
    }
}
