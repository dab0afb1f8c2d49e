//! What a measuring program has to say, in one shape for all: printed, or put into a page (`cargo xtask bench`).

use serde_json::{Map, Value, json};

use crate::report::{Goal, fact_line, filled, number, rounded};
use crate::stats::spread;

#[derive(Debug, Clone, Default)]
pub struct Sheet {
    /// Facts about the machine and the run.
    pub facts: Vec<(&'static str, Value)>,
    pub head: Vec<&'static str>,
    /// How many columns hold names; the others hold numbers.
    pub named: usize,
    pub rows: Vec<Vec<String>>,
    /// Numbers without a goal.
    pub others: Vec<(String, Option<f64>)>,
    pub goals: Vec<(Goal, Option<f64>)>,
    pub notes: Vec<String>,
    pub plots: Vec<Plot>,
}

/// Several series side by side, each run of them a dot.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// Of its file, within the program.
    pub name: String,
    pub title: String,
    /// What the axis shows, with its unit.
    pub axis: &'static str,
    pub series: Vec<(String, Vec<f64>)>,
}

impl Sheet {
    #[must_use]
    pub fn text(&self) -> String {
        let facts: Vec<String> = self.facts.iter().map(fact_line).collect();
        let table = filled(&self.head, self.named, self.rows.iter().cloned());
        let others = self.others.iter().map(|(name, value)| format!("{name}: {}", number(*value)));
        let goals = self.goals.iter().map(|(goal, value)| goal.line(*value));
        let notes = self.notes.iter().map(|note| format!("note: {note}"));
        let lines: Vec<String> = others.chain(goals).chain(notes).collect();
        format!("{}\n{table}\n{}", facts.join(", "), lines.join("\n"))
    }

    /// One object for programs: what is looked for by its name, the `rest` of what it comes from, and goals, facts and notes; under
    /// `sheet` what a page is made of.
    #[must_use]
    pub fn report<N: Into<String>>(
        &self,
        named: impl IntoIterator<Item = (N, Option<f64>)>,
        rest: impl IntoIterator<Item = (String, Value)>,
    ) -> Value {
        let named = named.into_iter().map(|(name, value)| (name.into(), rounded(value)));
        let mut all: Map<String, Value> = named.chain(rest).collect();
        if !self.goals.is_empty() {
            let goals = self.goals.iter();
            let goals = goals.map(|(goal, value)| (goal.name.to_owned(), goal.json(*value)));
            all.insert("goals".into(), goals.collect());
        }
        all.extend(self.facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        all.insert("notes".into(), self.notes.clone().into());
        all.insert("sheet".into(), self.json());
        all.into()
    }

    /// The same for a page: what is printed as it is printed, and the dots of the plots.
    fn json(&self) -> Value {
        let others = self.others.iter().map(|(name, value)| json!([name, number(*value)]));
        let goals = self.goals.iter().map(|(goal, value)| {
            json!({
                "name": goal.name,
                "bound": goal.bound.to_string(),
                "value": number(*value),
                "verdict": goal.verdict(*value),
            })
        });
        json!({
            "facts": self.facts.iter().map(fact_line).collect::<Vec<_>>(),
            "head": self.head,
            "named": self.named,
            "rows": self.rows,
            "others": others.collect::<Vec<_>>(),
            "goals": goals.collect::<Vec<_>>(),
            "notes": self.notes,
            "plots": self.plots.iter().map(Plot::json).collect::<Vec<_>>(),
        })
    }
}

impl Plot {
    fn json(&self) -> Value {
        let series = self.series.iter().map(|(name, values)| {
            let spread = spread(values);
            json!({
                "name": name,
                "values": values.iter().map(|value| rounded(Some(*value))).collect::<Vec<_>>(),
                "p10": rounded(spread.map(|s| s.p10)),
                "median": rounded(spread.map(|s| s.median)),
                "p90": rounded(spread.map(|s| s.p90)),
            })
        });
        json!({
            "name": self.name,
            "title": self.title,
            "axis": self.axis,
            "series": series.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        Sheet {
            facts: vec![("bundle", "small".into()), ("pause_ms", 20.into())],
            head: vec!["program", "wall ms"],
            named: 1,
            rows: vec![vec!["a".into(), "1.50".into()]],
            others: vec![("a_vs_b".into(), Some(0.256))],
            goals: vec![(Goal::at_most("a_vs_c", 0.5), None)],
            notes: vec!["a note".into()],
            plots: vec![Plot {
                name: "wall".into(),
                title: "Wall time".into(),
                axis: "ms",
                series: vec![("a".into(), vec![3.0, 1.0, 2.0]), ("b".into(), vec![])],
            }],
        }
    }

    #[test]
    fn a_page_says_what_is_printed() {
        let (json, text) = (sheet().json(), sheet().text());
        for word in ["bundle: small", "pause ms: 20", "1.50", "a_vs_b: 0.26", "note: a note"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(text.contains("goal a_vs_c <= 0.5: - (not measured)"), "{text}");
        assert_eq!(json["facts"], json!(["bundle: small", "pause ms: 20"]));
        assert_eq!(json["rows"], json!([["a", "1.50"]]));
        assert_eq!(json["others"], json!([["a_vs_b", "0.26"]]));
        assert_eq!(json["goals"][0]["bound"], "<= 0.5");
        assert_eq!(json["goals"][0]["verdict"], "not measured");
    }

    #[test]
    fn every_value_is_a_dot_and_nothing_is_no_spread() {
        let json = sheet().json();
        let series = &json["plots"][0]["series"];
        assert_eq!(series[0]["values"], json!([3.0, 1.0, 2.0]));
        assert_eq!(series[0]["median"], 2.0);
        assert!(series[1]["median"].is_null());
    }
}
