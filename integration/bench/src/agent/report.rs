//! What is said of nodes.

use serde_json::{Value, json};

use super::round::Seen;
use super::{containerd, hafen, podman};
use crate::report::{Goal, number, rounded};
use crate::sheet::{Plot, Sheet};
use crate::stats::{median, percentile, ratio, spread};

const GOALS: [Goal; 6] = [
    Goal::at_least("start_rate_vs_containerd", 5.0),
    Goal::at_most("memory_vs_containerd", 0.125),
    Goal::at_most("exit_notice_p99_ms", 5.0),
    Goal::at_most("stats_1000_ms", 100.0),
    Goal::at_most("idle_cpu_percent", 1.0),
    Goal::at_most("recover_1000_ms", 2000.0),
];

/// The goals are about so many; with fewer there is no value for what grows with them.
const MANY: usize = 1000;

/// One program with so many containers.
#[derive(Debug, Clone)]
pub struct Line {
    pub name: &'static str,
    pub version: String,
    pub count: usize,
    /// Of each round that came to its end.
    pub rounds: Vec<Seen>,
    pub first_error: Option<String>,
}

impl Line {
    fn each(&self, of: impl Fn(&Seen) -> Option<f64>) -> Vec<f64> {
        self.rounds.iter().filter_map(of).collect()
    }

    fn all(&self, of: impl Fn(&Seen) -> &Vec<f64>) -> Vec<f64> {
        self.rounds.iter().flat_map(|seen| of(seen).clone()).collect()
    }

    /// Each with its name; of several rounds the median.
    fn values(&self) -> Vec<(&'static str, Option<f64>)> {
        let (start, exit) = (self.all(|s| &s.start), self.all(|s| &s.exit));
        let middle = |of: fn(&Seen) -> Option<f64>| median(&self.each(of));
        let rates = self.each(|s| Some(s.start_rate));
        let rates = spread(&rates);
        vec![
            ("start ms p50", percentile(&start, 50.0)),
            ("p99", percentile(&start, 99.0)),
            ("starts/s", rates.map(|s| s.median)),
            ("p10", rates.map(|s| s.p10)),
            ("p90", rates.map(|s| s.p90)),
            ("destroyed/s", middle(|s| Some(s.destroy_rate))),
            ("exit ms p50", percentile(&exit, 50.0)),
            ("exit p99", percentile(&exit, 99.0)),
            ("KiB each", middle(|s| Some(s.kib_each))),
            ("host KiB each", middle(|s| s.host_kib_each)),
            ("daemon MiB", middle(|s| Some(s.daemon_kib? / 1024.0))),
            ("stats ms", median(&self.all(|s| &s.stats))),
            ("idle % daemon", middle(|s| s.idle_daemon)),
            ("all", middle(|s| Some(s.idle_all))),
            ("recover ms", middle(|s| s.recover)),
        ]
    }

    fn label(&self) -> String {
        format!("{} {}", self.name, self.count)
    }

    fn value(&self, wanted: &str) -> Option<f64> {
        self.values().into_iter().find(|(name, _)| *name == wanted)?.1
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
    fn line(&self, name: &str, count: usize) -> Option<&Line> {
        self.lines.iter().find(|line| line.name == name && line.count == count)
    }

    fn versus(&self, count: usize, value: &str, peer: &str) -> Option<f64> {
        let of = |name| self.line(name, count).and_then(|line| line.value(value));
        ratio(of(hafen::NAME), of(peer))
    }

    fn most(&self) -> usize {
        self.lines.iter().map(|line| line.count).max().unwrap_or_default()
    }

    /// Beside the goals, and at the largest count as they are: ours divided by theirs.
    fn others(&self) -> Vec<(String, Option<f64>)> {
        let versus = |name: &str, value, peer| {
            (format!("{name}_vs_{peer}"), self.versus(self.most(), value, peer))
        };
        vec![
            versus("start_rate", "starts/s", podman::NAME),
            versus("destroy_rate", "destroyed/s", containerd::NAME),
            versus("destroy_rate", "destroyed/s", podman::NAME),
            versus("memory", "KiB each", podman::NAME),
            versus("host_memory", "host KiB each", containerd::NAME),
            versus("host_memory", "host KiB each", podman::NAME),
        ]
    }

    /// The value of each goal, at the largest count.
    pub fn named(&self) -> [(Goal, Option<f64>); GOALS.len()] {
        let most = self.most();
        let ours = self.line(hafen::NAME, most);
        let own = |name: &str| ours.and_then(|line| line.value(name));
        let many = |name: &str| own(name).filter(|_| most >= MANY);
        let exits: Vec<f64> = self
            .lines
            .iter()
            .filter(|line| line.name == hafen::NAME)
            .flat_map(|line| line.all(|s| &s.exit))
            .collect();
        let values = [
            self.versus(most, "starts/s", containerd::NAME),
            self.versus(most, "KiB each", containerd::NAME),
            percentile(&exits, 99.0),
            many("stats ms"),
            many("idle % daemon"),
            many("recover ms"),
        ];
        let mut values = values.into_iter();
        GOALS.map(|goal| (goal, values.next().flatten()))
    }

    /// One object: the goals' numbers, then what they come from.
    pub fn json(&self) -> Value {
        let goals = self.named().into_iter().map(|(goal, value)| (goal.name.to_owned(), value));
        let rows = self.lines.iter().map(line_json).collect();
        self.sheet().report(goals.chain(self.others()), [("rows".into(), rows)])
    }

    pub fn text(&self) -> String {
        self.sheet().text()
    }

    fn sheet(&self) -> Sheet {
        let values =
            Line { name: "", version: String::new(), count: 0, rounds: vec![], first_error: None }
                .values();
        let mut head = vec!["program", "version", "containers"];
        head.extend(values.iter().map(|(name, _)| *name));
        head.push("rounds");
        let rows = self.lines.iter().map(|line| {
            let mut cells =
                vec![line.name.to_owned(), line.version.clone(), line.count.to_string()];
            cells.extend(line.values().into_iter().map(|(_, value)| number(value)));
            cells.push(line.rounds.len().to_string());
            cells
        });
        Sheet {
            facts: self.facts.clone(),
            head,
            named: 2,
            rows: rows.collect(),
            // Without a peer there is nothing to say of it.
            others: self.others().into_iter().filter(|(_, value)| value.is_some()).collect(),
            goals: self.named().into(),
            notes: self.all_notes(),
            plots: self.plots(),
        }
    }

    fn plots(&self) -> Vec<Plot> {
        let plot = |name: &str, title: &str, axis, of: &dyn Fn(&Line) -> Vec<f64>| Plot {
            name: name.to_owned(),
            title: title.to_owned(),
            axis,
            series: self.lines.iter().map(|line| (line.label(), of(line))).collect(),
        };
        let each = |of: fn(&Seen) -> f64| move |line: &Line| line.each(|seen| Some(of(seen)));
        let plots = [
            plot("start", "From the request to the container's first words", "ms", &|line| {
                line.all(|seen| &seen.start)
            }),
            plot("exit", "From a process's death until the end is told", "ms", &|line| {
                line.all(|seen| &seen.exit)
            }),
            plot("rate", "Containers started at once", "per second", &each(|s| s.start_rate)),
            plot("memory", "Memory of each idle container's keepers", "KiB", &each(|s| s.kib_each)),
            plot("host", "Memory that the host has less for each", "KiB", &|line| {
                line.each(|seen| seen.host_kib_each)
            }),
        ];
        plots.into_iter().filter(|plot| plot.series.iter().any(|(_, v)| !v.is_empty())).collect()
    }

    fn all_notes(&self) -> Vec<String> {
        let failed = self.lines.iter().filter_map(|line| {
            let error = line.first_error.as_ref()?;
            Some(format!("{} with {} containers failed: {error}", line.name, line.count))
        });
        self.notes.iter().cloned().chain(failed).collect()
    }
}

fn line_json(line: &Line) -> Value {
    let mut all = json!({
        "program": line.name,
        "version": line.version,
        "containers": line.count,
        "rounds": line.rounds.len(),
    });
    for (name, value) in line.values() {
        let name = name.replace(['/', ' '], "_").replace('%', "percent");
        all[name] = rounded(value);
    }
    all["start_ms"] = line.all(|s| &s.start).into();
    all["exit_ms"] = line.all(|s| &s.exit).into();
    all["start_rates"] = line.each(|s| Some(s.start_rate)).into();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &'static str, count: usize, rate: f64, kib: f64) -> Line {
        let seen = Seen {
            start_rate: rate,
            kib_each: kib,
            exit: vec![1.0, 2.0, 3.0],
            stats: vec![50.0],
            ..Seen::default()
        };
        Line { name, version: "1".into(), count, rounds: vec![seen], first_error: None }
    }

    fn report(lines: Vec<Line>) -> Report {
        Report { lines, facts: vec![("kernel", "6".into())], notes: vec![] }
    }

    #[test]
    fn goals_are_about_the_largest_count() {
        let lines = vec![
            line(hafen::NAME, 200, 70.0, 900.0),
            line(containerd::NAME, 200, 70.0, 900.0),
            line(hafen::NAME, 1000, 60.0, 1000.0),
            line(containerd::NAME, 1000, 10.0, 10_000.0),
        ];
        let json = report(lines).json();
        assert_eq!(json["start_rate_vs_containerd"], 6.0);
        assert_eq!(json["memory_vs_containerd"], 0.1);
        assert_eq!(json["stats_1000_ms"], 50.0);
        assert_eq!(json["goals"]["start_rate_vs_containerd"]["met"], true);
    }

    #[test]
    fn with_few_containers_nothing_is_said_of_many() {
        let mut broken = line(containerd::NAME, 50, 1.0, 1.0);
        broken.rounds.clear();
        broken.first_error = Some("no shim".into());
        let report = report(vec![line(hafen::NAME, 50, 60.0, 900.0), broken]);
        let json = report.json();
        assert!(json["stats_1000_ms"].is_null());
        assert!(json["start_rate_vs_containerd"].is_null());
        assert!(report.text().contains("containerd with 50 containers failed: no shim"));
    }
}
