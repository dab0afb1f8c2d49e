//! What is said of images.

use serde_json::{Value, json};

use super::programs::OURS;
use crate::measure::Sample;
use crate::report::{Goal, Row, failures, number, rounded};
use crate::sheet::{Plot, Sheet};
use crate::stats::ratio;

/// The row of starts without an image.
pub const NO_IMAGE: &str = "no image";
/// The operation of the rows whose programs make no root file system: they start on one.
pub const START: &str = "start";
/// The operation that `unpack_vs_fastest_peer` is about.
const GOAL: &str = "import";

pub const GOALS: [Goal; 3] = [
    Goal::at_least("unpack_vs_fastest_peer", 1.5),
    Goal::at_most("peak_memory_mib", 64.0),
    Goal::at_most("cached_rootfs_extra_ms", 2.0),
];

/// One program doing one thing with one image.
#[derive(Debug, Clone)]
pub struct Line {
    pub image: &'static str,
    pub verb: &'static str,
    pub row: Row,
    /// What the program keeps afterwards.
    pub disk_mib: Option<f64>,
}

impl Line {
    fn name(&self) -> &str {
        &self.row.series.name
    }

    fn is_of(&self, image: &str, verb: &str) -> bool {
        self.image == image && self.verb == verb
    }

    fn median(&self) -> Option<f64> {
        self.row.wall().map(|w| w.median)
    }
}

#[derive(Debug)]
pub struct Report {
    pub lines: Vec<Line>,
    /// The image that the goal of unpacking is about.
    pub large: &'static str,
    /// Facts about the machine and the run.
    pub facts: Vec<(&'static str, Value)>,
    pub notes: Vec<String>,
}

impl Report {
    fn median(&self, image: &str, verb: &str, name: &str) -> Option<f64> {
        let line = self.lines.iter().find(|l| l.is_of(image, verb) && l.name() == name);
        line.and_then(Line::median)
    }

    /// How many times as long as ours the fastest of the others takes.
    pub fn vs_fastest_peer(&self, image: &str, verb: &str) -> Option<f64> {
        let peers = self.lines.iter().filter(|l| l.is_of(image, verb) && l.name() != OURS);
        let fastest = peers.filter_map(Line::median).min_by(f64::total_cmp);
        ratio(fastest, self.median(image, verb, OURS))
    }

    /// What a start on the image's layers takes more than one on a folder, in milliseconds.
    pub fn cached_extra(&self, image: &str) -> Option<f64> {
        Some(self.median(image, START, OURS)? - self.median(image, START, NO_IMAGE)?)
    }

    /// The largest that was seen of ours, whatever it did with whichever image.
    pub fn peak_memory(&self) -> Option<f64> {
        let ours = self.lines.iter().filter(|l| l.name() == OURS && l.verb != START);
        let samples = ours.flat_map(|l| &l.row.series.samples);
        samples.map(Sample::peak_mib).max_by(f64::total_cmp)
    }

    /// Image and operation of all lines, each once.
    fn parts(&self) -> Vec<(&'static str, &'static str)> {
        let mut parts: Vec<_> = self.lines.iter().map(|l| (l.image, l.verb)).collect();
        parts.dedup();
        parts
    }

    /// The value of each goal.
    pub fn named(&self) -> [(Goal, Option<f64>); 3] {
        let starts = self.parts().into_iter().filter(|(_, verb)| *verb == START);
        let extra = starts.filter_map(|(image, _)| self.cached_extra(image));
        let values = [
            self.vs_fastest_peer(self.large, GOAL),
            self.peak_memory(),
            extra.max_by(f64::total_cmp),
        ];
        let mut values = values.into_iter();
        GOALS.map(|goal| (goal, values.next().flatten()))
    }

    /// Beside the goals: the same of each image and operation.
    fn others(&self) -> Vec<(String, Option<f64>)> {
        let of = |(image, verb)| match verb {
            START => (format!("cached_rootfs_extra_ms {image}"), self.cached_extra(image)),
            _ => (format!("{verb}_vs_fastest_peer {image}"), self.vs_fastest_peer(image, verb)),
        };
        self.parts().into_iter().map(of).collect()
    }

    /// One object: the goals' numbers, then what they come from.
    pub fn json(&self) -> Value {
        let goals = self.named().into_iter().map(|(goal, value)| (goal.name, value));
        let others = self.others().into_iter().map(|(name, value)| (name, rounded(value)));
        let rows = self.lines.iter().map(line_json).collect();
        let rest = [("each".into(), others.collect()), ("rows".into(), rows)];
        self.sheet().report(goals, rest)
    }

    pub fn text(&self) -> String {
        self.sheet().text()
    }

    fn sheet(&self) -> Sheet {
        let head = vec![
            "image",
            "operation",
            "program",
            "version",
            "wall ms",
            "p10",
            "p90",
            "user+sys ms",
            "peak MiB",
            "wall / hafen",
            "disk MiB",
            "runs",
            "failed",
        ];
        Sheet {
            facts: self.facts.clone(),
            head,
            named: 4,
            rows: self.lines.iter().map(|line| self.cells(line)).collect(),
            others: self.others(),
            goals: self.named().into(),
            notes: self.all_notes(),
            plots: self.parts().into_iter().map(|part| self.plot(part)).collect(),
        }
    }

    fn plot(&self, (image, verb): (&'static str, &'static str)) -> Plot {
        let lines = self.lines.iter().filter(|line| line.is_of(image, verb));
        let wall = |line: &Line| (line.name().to_owned(), line.row.values(Sample::wall_ms));
        Plot {
            name: format!("{image}-{verb}"),
            title: format!("Wall time of {verb}, {image}"),
            axis: "ms",
            series: lines.map(wall).collect(),
        }
    }

    fn cells(&self, line: &Line) -> Vec<String> {
        let Line { image, verb, row, disk_mib } = line;
        let mut cells: Vec<String> =
            [image, verb, line.name(), &row.version].map(str::to_owned).into();
        cells.extend(row.cells());
        cells.extend([
            number(ratio(line.median(), self.median(image, verb, OURS))),
            disk_mib.map_or("-".into(), |mib| format!("{mib:.0}")),
            row.series.samples.len().to_string(),
            failures(&row.series),
        ]);
        cells
    }

    fn all_notes(&self) -> Vec<String> {
        let of = |line: &Line| {
            let about = format!("{} {}: ", line.image, line.verb);
            line.row.notes().into_iter().map(move |note| about.clone() + &note)
        };
        self.notes.iter().cloned().chain(self.lines.iter().flat_map(of)).collect()
    }
}

fn line_json(line: &Line) -> Value {
    let mut all = line.row.json();
    all["image"] = json!(line.image);
    all["operation"] = json!(line.verb);
    all["program"] = json!(line.name());
    all["version"] = json!(line.row.version);
    all["disk_mib"] = rounded(line.disk_mib);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Series;

    fn line(image: &'static str, verb: &'static str, name: &str, runs: &[(u64, u64)]) -> Line {
        let sample = |(ms, mib): &(u64, u64)| Sample {
            wall_ns: ms * 1_000_000,
            user_us: 0,
            sys_us: 0,
            peak_kib: mib * 1024,
        };
        let samples = runs.iter().map(sample).collect();
        let series = Series { name: name.into(), samples, ..Series::default() };
        Line { image, verb, row: Row { version: "1".into(), series }, disk_mib: None }
    }

    fn report(lines: Vec<Line>) -> Report {
        Report { lines, large: "large", facts: vec![("kernel", "6".into())], notes: vec![] }
    }

    #[test]
    fn the_fastest_peer_counts() {
        let report = report(vec![
            line("large", "import", OURS, &[(2000, 20), (2000, 30), (9000, 20)]),
            line("large", "import", "skopeo+umoci", &[(9000, 90)]),
            line("large", "import", "podman", &[(5000, 90)]),
            line("large", "pull", OURS, &[(1000, 10)]),
            line("large", "pull", "podman", &[(1200, 90)]),
        ]);
        let json = report.json();
        assert_eq!(json["unpack_vs_fastest_peer"], 2.5);
        assert_eq!(json["each"]["pull_vs_fastest_peer large"], 1.2);
        assert_eq!(json["peak_memory_mib"], 30.0);
        assert!(json["cached_rootfs_extra_ms"].is_null());
        let text = report.text();
        assert!(text.contains("goal unpack_vs_fastest_peer >= 1.5: 2.50 (met)"), "{text}");
        assert!(text.contains("goal cached_rootfs_extra_ms <= 2: - (not measured)"), "{text}");
    }

    #[test]
    fn the_worse_image_counts_for_starts() {
        let report = report(vec![
            line("many", START, NO_IMAGE, &[(6, 4)]),
            line("many", START, OURS, &[(9, 400)]),
            line("large", START, NO_IMAGE, &[(6, 4)]),
            line("large", START, OURS, &[(7, 4)]),
        ]);
        let json = report.json();
        assert_eq!(json["cached_rootfs_extra_ms"], 3.0);
        assert_eq!(json["each"]["cached_rootfs_extra_ms large"], 1.0);
        assert_eq!(json["goals"]["cached_rootfs_extra_ms"]["met"], false);
        assert!(json["peak_memory_mib"].is_null(), "a start is no unpacking");
    }

    #[test]
    fn a_peer_that_failed_is_none() {
        let mut broken = line("large", "import", "podman", &[]);
        broken.row.series.first_error = Some("no space".into());
        let report = report(vec![line("large", "import", OURS, &[(1, 1)]), broken]);
        assert_eq!(report.vs_fastest_peer("large", "import"), None);
        assert!(report.text().contains("note: large import: podman failed: no space"));
    }
}
