//! What is said of a cluster.

use serde_json::{Value, json};

use crate::report::{Goal, number, rounded};
use crate::sheet::{Plot, Sheet};
use crate::stats::percentile;

/// Parts, as `--only` names them.
pub const MODEL: &str = "model";
pub const HEARTBEAT: &str = "heartbeat";
pub const LIVE: &str = "live";

const GOALS: [Goal; 6] = [
    Goal::at_most("failover_beyond_detection_s", 0.5),
    Goal::at_most("publish_to_running_s", 0.3),
    Goal::at_least("placements_per_s_10k", 50_000.0),
    Goal::at_most("heartbeat_10k_cores", 0.5),
    Goal::at_most("heartbeat_10k_rss_mib", 512.0),
    Goal::at_most("packing_vs_bfd", 1.03),
];

/// Something that was measured, once or several times.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub part: &'static str,
    pub case: String,
    /// With its unit.
    pub what: &'static str,
    pub values: Vec<f64>,
}

/// What is looked for first; of several runs the median.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Named {
    pub failover_beyond_detection_s: Option<f64>,
    pub publish_to_running_s: Option<f64>,
    pub placements_per_s_10k: Option<f64>,
    /// The same for an end and a new task in its place, one at a time on nodes that are nearly full.
    pub replacements_per_s_10k: Option<f64>,
    pub heartbeat_10k_cores: Option<f64>,
    pub heartbeat_10k_rss_mib: Option<f64>,
    pub packing_vs_bfd: Option<f64>,
    pub leader_recovery_100k_s: Option<f64>,
}

impl Named {
    const fn all(&self) -> [(&'static str, Option<f64>); 8] {
        [
            ("failover_beyond_detection_s", self.failover_beyond_detection_s),
            ("publish_to_running_s", self.publish_to_running_s),
            ("placements_per_s_10k", self.placements_per_s_10k),
            ("replacements_per_s_10k", self.replacements_per_s_10k),
            ("heartbeat_10k_cores", self.heartbeat_10k_cores),
            ("heartbeat_10k_rss_mib", self.heartbeat_10k_rss_mib),
            ("packing_vs_bfd", self.packing_vs_bfd),
            ("leader_recovery_100k_s", self.leader_recovery_100k_s),
        ]
    }

    fn value(&self, wanted: &str) -> Option<f64> {
        self.all().into_iter().find(|(name, _)| *name == wanted)?.1
    }
}

#[derive(Debug, Default)]
pub struct Report {
    pub rows: Vec<Row>,
    pub named: Named,
    /// Facts about the machine and the run.
    pub facts: Vec<(&'static str, Value)>,
    pub notes: Vec<String>,
}

impl Report {
    pub fn add(&mut self, part: &'static str, case: &str, what: &'static str, values: Vec<f64>) {
        self.rows.push(Row { part, case: case.to_owned(), what, values });
    }

    fn goals(&self) -> [(Goal, Option<f64>); GOALS.len()] {
        GOALS.map(|goal| (goal, self.named.value(goal.name)))
    }

    /// One object: the goals' numbers, then what they come from.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(Row::json).collect();
        self.sheet().report(self.named.all(), [("rows".into(), rows)])
    }

    #[must_use]
    pub fn text(&self) -> String {
        self.sheet().text()
    }

    fn sheet(&self) -> Sheet {
        let without_goal = self.named.all().into_iter();
        let without_goal =
            without_goal.filter(|(name, _)| !GOALS.iter().any(|goal| goal.name == *name));
        let live = self.rows.iter().filter(|row| row.part == LIVE);
        Sheet {
            facts: self.facts.clone(),
            head: Row::HEAD.into(),
            named: 3,
            rows: self.rows.iter().map(Row::cells).collect(),
            others: without_goal.map(|(name, value)| (name.to_owned(), value)).collect(),
            goals: self.goals().into(),
            notes: self.notes.clone(),
            plots: vec![Plot {
                name: LIVE.to_owned(),
                title: "A job on three nodes".to_owned(),
                axis: "s",
                series: live.map(Row::series).collect(),
            }],
        }
    }
}

impl Row {
    pub(crate) const HEAD: [&str; 7] = ["part", "case", "what", "median", "least", "most", "runs"];

    /// Median, least and most.
    fn spread(&self) -> [Option<f64>; 3] {
        [50.0, 0.0, 100.0].map(|percent| percentile(&self.values, percent))
    }

    pub(crate) fn json(&self) -> Value {
        let [median, least, most] = self.spread().map(rounded);
        let values: Vec<Value> = self.values.iter().map(|value| rounded(Some(*value))).collect();
        json!({
            "part": self.part,
            "case": self.case,
            "what": self.what,
            "median": median,
            "least": least,
            "most": most,
            "values": values,
        })
    }

    fn series(&self) -> (String, Vec<f64>) {
        let name = self.what.strip_suffix(", s").unwrap_or(self.what);
        (name.to_owned(), self.values.clone())
    }

    pub(crate) fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.part.to_owned(), self.case.clone(), self.what.to_owned()];
        cells.extend(self.spread().map(number));
        cells.push(self.values.len().to_string());
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report { facts: vec![("kernel", "6".into())], ..Report::default() };
        report.add(LIVE, "3 replicas", "publish to running, s", vec![0.3, 0.1, 0.2]);
        report.named.publish_to_running_s = Some(0.2);
        report.named.placements_per_s_10k = Some(40_000.0);
        report.notes.push("a note".into());
        report
    }

    #[test]
    fn every_named_number_is_there_even_where_nothing_was_measured() {
        let json = report().json();
        for (name, _) in Named::default().all() {
            assert!(json.get(name).is_some(), "{name}");
        }
        for goal in GOALS {
            assert!(json["goals"].get(goal.name).is_some(), "{}", goal.name);
            assert!(Named::default().all().iter().any(|(name, _)| *name == goal.name));
        }
        assert_eq!(json["publish_to_running_s"], 0.2);
        assert_eq!(json["goals"]["publish_to_running_s"]["met"], true);
        assert_eq!(json["goals"]["placements_per_s_10k"]["met"], false);
        assert!(json["packing_vs_bfd"].is_null());
        assert!(json["goals"]["packing_vs_bfd"]["met"].is_null());
        assert_eq!(json["kernel"], "6");
    }

    #[test]
    fn a_row_has_its_middle_and_its_ends() {
        let json = report().json();
        let row = &json["rows"][0];
        assert_eq!(
            (&row["median"], &row["least"], &row["most"]),
            (&0.2.into(), &0.1.into(), &0.3.into())
        );
        assert_eq!(row["values"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn the_text_has_table_goals_and_notes() {
        let text = report().text();
        for part in ["kernel: 6", "3 replicas", "NOT met", "not measured", "note: a note"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
