//! Ratios, goals, and both ways to print them.

use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use crate::measure::{Sample, Series};
use crate::programs::{FLOOR, OURS};
use crate::sheet::{Plot, Sheet};
use crate::stats::{Spread, median, ratio, spread};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::AtLeast(least) => write!(f, ">= {least}"),
        }
    }
}

/// A goal on one of the numbers that a report names.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    pub name: &'static str,
    pub bound: Bound,
}

impl Goal {
    pub const fn at_most(name: &'static str, most: f64) -> Self {
        Self { name, bound: Bound::AtMost(most) }
    }

    pub const fn at_least(name: &'static str, least: f64) -> Self {
        Self { name, bound: Bound::AtLeast(least) }
    }

    fn is_met(&self, value: f64) -> bool {
        match self.bound {
            Bound::AtMost(most) => value <= most,
            Bound::AtLeast(least) => value >= least,
        }
    }

    /// Of what was measured; `None` when nothing was.
    pub(crate) fn verdict(&self, value: Option<f64>) -> &'static str {
        match value.map(|v| self.is_met(v)) {
            Some(true) => "met",
            Some(false) => "NOT met",
            None => "not measured",
        }
    }

    pub(crate) fn line(&self, value: Option<f64>) -> String {
        let Self { name, bound } = self;
        format!("goal {name} {bound}: {} ({})", number(value), self.verdict(value))
    }

    pub(crate) fn json(&self, value: Option<f64>) -> Value {
        let met = value.map(|v| self.is_met(v));
        match self.bound {
            Bound::AtMost(most) => json!({ "at_most": most, "met": met }),
            Bound::AtLeast(least) => json!({ "at_least": least, "met": met }),
        }
    }
}

/// One program's row.
#[derive(Debug, Clone)]
pub struct Row {
    pub version: String,
    pub series: Series,
}

impl Row {
    pub(crate) fn values(&self, of: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.series.samples.iter().map(of).collect()
    }

    pub(crate) fn wall(&self) -> Option<Spread> {
        spread(&self.values(Sample::wall_ms))
    }

    pub(crate) fn cpu(&self) -> Option<f64> {
        median(&self.values(Sample::cpu_ms))
    }

    pub(crate) fn peak(&self) -> Option<f64> {
        median(&self.values(Sample::peak_mib))
    }

    pub(crate) fn json(&self) -> Value {
        let wall = self.wall();
        let series = &self.series;
        json!({
            "wall_ms": rounded(wall.map(|w| w.median)),
            "wall_ms_p10": rounded(wall.map(|w| w.p10)),
            "wall_ms_p90": rounded(wall.map(|w| w.p90)),
            "cpu_ms": rounded(self.cpu()),
            "peak_mib": rounded(self.peak()),
            "runs": series.samples.len(),
            "failures": series.failures,
            "timeouts": series.timeouts,
            "leftovers": series.leftovers,
        })
    }

    pub(crate) fn cells(&self) -> [String; 5] {
        let wall = self.wall();
        [
            number(wall.map(|w| w.median)),
            number(wall.map(|w| w.p10)),
            number(wall.map(|w| w.p90)),
            number(self.cpu()),
            number(self.peak()),
        ]
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        let Series { name, first_error, given_up, leftovers, .. } = &self.series;
        let end = if *given_up { "; given up" } else { "" };
        let failed = first_error.as_ref().map(|error| format!("{name} failed: {error}{end}"));
        let left = format!("{name} left a cgroup behind {leftovers} times");
        failed.into_iter().chain((*leftovers > 0).then_some(left)).collect()
    }
}

#[derive(Debug)]
pub struct Report {
    /// What is compared, as in `run_vs_floor`.
    pub verb: &'static str,
    pub rows: Vec<Row>,
    pub goals: Vec<Goal>,
    /// Facts about the machine and the run.
    pub facts: Vec<(&'static str, Value)>,
    pub notes: Vec<String>,
}

impl Report {
    fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.series.name == name)
    }

    /// `run_vs_X`, `cpu_run_vs_X` and `rss_run_vs_X`: ours divided by X, of medians; null
    /// where one of the two has no successful run.
    pub fn ratios(&self) -> Map<String, Value> {
        let ours = self.row(OURS);
        let mut all = Map::new();
        for row in self.rows.iter().filter(|r| r.series.name != OURS) {
            let name = format!("{}_vs_{}", self.verb, row.series.name);
            let pair =
                |of: &dyn Fn(&Row) -> Option<f64>| rounded(ratio(ours.and_then(of), of(row)));
            all.insert(name.clone(), pair(&|r| r.wall().map(|w| w.median)));
            all.insert(format!("cpu_{name}"), pair(&Row::cpu));
            all.insert(format!("rss_{name}"), pair(&Row::peak));
        }
        all
    }

    /// Each goal with its ratio; `None` when it was not measured.
    pub fn goals(&self) -> Vec<(Goal, Option<f64>)> {
        let ratios = self.ratios();
        let value = |goal: &Goal| ratios.get(goal.name).and_then(Value::as_f64);
        self.goals.iter().map(|goal| (*goal, value(goal))).collect()
    }

    /// One object: the ratios, then what they come from.
    pub fn json(&self) -> Value {
        let each = |of: &dyn Fn(&Row) -> Value| -> Value {
            self.rows.iter().map(|r| (r.series.name.clone(), of(r))).collect()
        };
        let medians = ("medians".to_owned(), each(&|r| self.row_json(r)));
        let versions = ("versions".to_owned(), each(&|r| r.version.clone().into()));
        let rest = self.ratios().into_iter().chain([medians, versions]);
        self.sheet().report(std::iter::empty::<(String, _)>(), rest)
    }

    fn row_json(&self, row: &Row) -> Value {
        let mut json = row.json();
        json["wall_vs_floor"] = rounded(self.vs_floor(row));
        json
    }

    fn vs_floor(&self, row: &Row) -> Option<f64> {
        let wall = |r: &Row| r.wall().map(|w| w.median);
        ratio(wall(row), self.row(FLOOR).and_then(wall))
    }

    pub fn text(&self) -> String {
        self.sheet().text()
    }

    fn sheet(&self) -> Sheet {
        let head = vec![
            "program",
            "version",
            "wall ms",
            "p10",
            "p90",
            "user+sys ms",
            "peak MiB",
            "wall / floor",
            "cpu / floor",
            "peak / floor",
            "runs",
            "failed",
        ];
        let wall = |row: &Row| (row.series.name.clone(), row.values(Sample::wall_ms));
        Sheet {
            facts: self.facts.clone(),
            head,
            named: 2,
            rows: self.rows.iter().map(|row| self.cells(row)).collect(),
            others: Vec::new(),
            goals: self.goals(),
            notes: self.all_notes(),
            plots: vec![Plot {
                name: "wall".into(),
                title: format!("Wall time of {}", self.verb),
                axis: "ms",
                series: self.rows.iter().map(wall).collect(),
            }],
        }
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let floor = self.row(FLOOR);
        let over = |of: &dyn Fn(&Row) -> Option<f64>| number(ratio(of(row), floor.and_then(of)));
        let mut cells = vec![row.series.name.clone(), row.version.clone()];
        cells.extend(row.cells());
        cells.extend([
            over(&|r| r.wall().map(|w| w.median)),
            over(&Row::cpu),
            over(&Row::peak),
            row.series.samples.len().to_string(),
            failures(&row.series),
        ]);
        cells
    }

    fn all_notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        if let Some(wall) = self.row(FLOOR).and_then(Row::wall).filter(Spread::is_noisy) {
            notes.push(format!(
                "the machine is noisy: the floor's p90 is {:.1} times its p10",
                wall.p90 / wall.p10
            ));
        }
        notes.extend(self.rows.iter().flat_map(Row::notes));
        notes
    }
}

pub(crate) fn fact_line((name, value): &(&str, Value)) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    format!("{}: {text}", name.replace('_', " "))
}

pub(crate) fn failures(series: &Series) -> String {
    match (series.failures, series.timeouts) {
        (0, 0) => "-".into(),
        (failed, 0) => failed.to_string(),
        (0, late) => format!("{late} timed out"),
        (failed, late) => format!("{failed}, {late} timed out"),
    }
}

pub(crate) fn number(value: Option<f64>) -> String {
    value.map_or("-".into(), |v| format!("{v:.2}"))
}

pub(crate) fn rounded(value: Option<f64>) -> Value {
    value.map_or(Value::Null, |v| json!((v * 1000.0).round() / 1000.0))
}

/// A table without frame, so that it can be pasted anywhere.
pub fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(head);
    table
}

/// Its first `named` columns hold names, the others numbers.
pub fn filled(head: &[&str], named: usize, rows: impl Iterator<Item = Vec<String>>) -> Table {
    let mut table = table(head);
    rows.for_each(|row| {
        table.add_row(row);
    });
    for column in table.column_iter_mut().skip(named) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The result of a measuring program, on its output.
#[must_use]
pub fn tell(program: &str, result: Result<String, Box<dyn std::error::Error>>) -> ExitCode {
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{program}: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, wall_ms: &[u64]) -> Row {
        let sample = |ms: &u64| Sample {
            wall_ns: ms * 1_000_000,
            user_us: 500,
            sys_us: ms * 100,
            peak_kib: 1024,
        };
        let samples = wall_ms.iter().map(sample).collect();
        Row {
            version: "1".into(),
            series: Series { name: name.into(), samples, ..Series::default() },
        }
    }

    fn report(rows: Vec<Row>) -> Report {
        let goals = vec![Goal::at_most("run_vs_floor", 1.5), Goal::at_most("run_vs_crun", 0.6)];
        Report {
            verb: "run",
            rows,
            goals,
            facts: vec![("bundle", "default".into())],
            notes: vec![],
        }
    }

    #[test]
    fn ratios_and_goals() {
        let rows = vec![row(FLOOR, &[2, 2, 3]), row(OURS, &[3, 3, 9]), row("crun", &[4, 4, 4])];
        let report = report(rows);
        let json = report.json();
        assert_eq!(json["run_vs_floor"], 1.5);
        assert_eq!(json["run_vs_crun"], 0.75);
        assert_eq!(json["rss_run_vs_crun"], 1.0);
        assert_eq!(json["goals"]["run_vs_floor"]["met"], true);
        assert_eq!(json["goals"]["run_vs_crun"]["met"], false);
        assert_eq!(json["medians"]["crun"]["wall_vs_floor"], 2.0);
        assert!(report.text().contains("NOT met"));
    }

    #[test]
    fn a_goal_bounds_from_above_or_below() {
        let least = Goal::at_least("unpack", 1.5);
        assert_eq!(least.line(Some(1.5)), "goal unpack >= 1.5: 1.50 (met)");
        assert_eq!(least.json(Some(1.4)), json!({ "at_least": 1.5, "met": false }));
        assert_eq!(Goal::at_most("extra", 2.0).line(None), "goal extra <= 2: - (not measured)");
    }

    #[test]
    fn what_was_not_measured_is_null() {
        let report = report(vec![row(FLOOR, &[2]), row("runc", &[])]);
        let json = report.json();
        assert!(json["run_vs_floor"].is_null());
        assert!(json["medians"]["runc"]["wall_ms"].is_null());
        assert!(json["goals"]["run_vs_crun"]["met"].is_null());
        assert!(report.text().contains("not measured"));
    }

    #[test]
    fn noise_and_failures_are_noted() {
        let mut broken = row("crun", &[]);
        broken.series.timeouts = 3;
        broken.series.first_error = Some("timed out".into());
        let report = report(vec![row(FLOOR, &[1, 1, 1, 5, 5]), broken]);
        let text = report.text();
        assert!(text.contains("noisy"), "{text}");
        assert!(text.contains("3 timed out"), "{text}");
    }
}
