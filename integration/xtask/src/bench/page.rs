//! The page: what a kept run says, in the words of `page.md`.
//!
//! A line `{{NAME}}` of the template stands for what the run has to say: `about`, `goals`, `machine`, `versions`, `noise`, or
//! `part NAME`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::plot;
use super::record::{Goal, Look, Part, Record, Sheet};

pub(super) const FILE: &str = "benchmarks.md";
/// Of plots and of the kept run.
pub(super) const FOLDER: &str = "benchmarks";
pub(super) const RUN: &str = "benchmarks/run.json";

const TEMPLATE: &str = include_str!("page.md");

/// One minute's load for each processor, before anything of ours runs.
const LOAD: f64 = 0.5;
/// Percent of all processors in a moment in which nothing of ours runs, and of time in which somebody waits for one.
const BUSY: f64 = 5.0;
const WAITING: f64 = 5.0;
/// Percent of the processors that others on the physical machine take, at any time.
const STEAL: f64 = 2.0;

/// As the measuring programs say it.
const NOT_MEASURED: &str = "not measured";

/// Files by their names below the folder of documents.
pub(super) type Files = BTreeMap<String, String>;

/// Writes page, plots and the run itself; plots that are no longer of it are removed.
pub(super) fn write(record: &Record, out: &Path) -> Result<()> {
    let files = render(record)?;
    let folder = out.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("mkdir {}", folder.display()))?;
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "svg") {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    for (name, text) in files {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    record.write(&out.join(RUN))
}

/// The page and its plots.
pub(super) fn render(record: &Record) -> Result<Files> {
    let mut files = Files::new();
    let mut text = String::new();
    for line in TEMPLATE.lines() {
        match line.strip_prefix("{{").and_then(|line| line.strip_suffix("}}")) {
            None => text.extend([line, "\n"]),
            Some(name) => text += &block(record, name, &mut files)?,
        }
    }
    files.insert(FILE.to_owned(), text);
    Ok(files)
}

fn block(record: &Record, name: &str, files: &mut Files) -> Result<String> {
    match name {
        "about" => Ok(about(record)),
        "goals" => goals(record),
        "machine" => {
            Ok(table(&["", ""], 2, record.machine.iter().map(|(name, value)| vec![name, value])))
        }
        "versions" => {
            let rows = record.versions.iter().map(|(name, value)| vec![name, value]);
            Ok(table(&["program or package", "version"], 2, rows))
        }
        "noise" => Ok(noise(record)),
        _ => match name.strip_prefix("part ") {
            Some(name) => part(record, name, files).with_context(|| format!("part {name}")),
            None => bail!("page.md: {{{{{name}}}}} is unknown"),
        },
    }
}

fn about(record: &Record) -> String {
    let mut lines = vec![format!(
        "Run of {} by `{}`; programs {}.",
        record.began, record.command, record.programs
    )];
    if record.quick {
        lines.push("**A small run (`--quick`): it shows that everything works; its numbers mean nothing.**".into());
    }
    let noisy: Vec<String> = disturbed(record);
    lines.push(if noisy.is_empty() {
        "The machine was quiet.".into()
    } else {
        format!("**The machine was noisy**: {}. See [Noise](#noise).", noisy.join("; "))
    });
    lines
        .extend(record.lacking.iter().map(|why| format!("**A peer could not be set up**: {why}.")));
    let failed: Vec<&str> =
        record.parts.iter().filter(|p| p.failure.is_some()).map(|p| p.name.as_str()).collect();
    if !failed.is_empty() {
        lines.push(format!("**Not measured, since the program failed**: {}.", failed.join(", ")));
    }
    lines.join("\n\n") + "\n"
}

/// What of it was beyond a bound.
fn disturbed(record: &Record) -> Vec<String> {
    let mut noisy = Vec::new();
    let processors: f64 = record
        .machine
        .iter()
        .find(|(name, _)| name == "processors")
        .and_then(|(_, value)| value.split(' ').next()?.parse().ok())
        .unwrap_or(1.0);
    if let Some(load) = record.load_before.filter(|load| *load > LOAD * processors) {
        noisy.push(format!("a load of {load} before the run"));
    }
    let parts: Vec<&str> =
        record.parts.iter().filter(|part| is_noisy(part)).map(|part| part.name.as_str()).collect();
    if !parts.is_empty() {
        noisy.push(format!("others worked before or during {}", parts.join(", ")));
    }
    noisy
}

fn is_noisy(part: &Part) -> bool {
    let above = |value: Option<f64>, bound: f64| value.is_some_and(|value| value > bound);
    above(part.before.busy, BUSY)
        || above(part.before.waiting, WAITING)
        || above(part.before.steal, STEAL)
        || above(part.during.steal, STEAL)
}

fn noise(record: &Record) -> String {
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| value.to_string());
    let head = [
        "part",
        "busy before, %",
        "waiting before, %",
        "stolen before, %",
        "busy during, %",
        "waiting during, %",
        "stolen during, %",
        "load after",
        "",
    ];
    let rows = record.parts.iter().map(|part| {
        let Look { busy, steal, waiting } = part.before;
        let mut row = vec![part.name.clone(), number(busy), number(waiting), number(steal)];
        let Look { busy, steal, waiting } = part.during;
        row.extend([busy, waiting, steal, part.load_after].map(number));
        row.push(if is_noisy(part) { "**noisy**" } else { "quiet" }.to_owned());
        row
    });
    let load = number(record.load_before);
    let bounds = format!(
        "Load before the run: {load}. A part is noisy where before it, in a moment in which nothing of the benchmark runs, more than {BUSY} % of the \
         processors are busy, {WAITING} % of the time somebody waits for one, or at any time {STEAL} % are taken by others on the physical machine; the run is, \
         where the load before it is more than {LOAD} for each processor."
    );
    format!("{bounds}\n\n{}", table(&head, 1, rows))
}

fn goals(record: &Record) -> Result<String> {
    let mut all = Vec::new();
    for part in record.parts.iter().filter(|part| part.failure.is_none()) {
        let sheet = part.sheet().with_context(|| format!("part {}", part.name))?;
        all.extend(sheet.goals.into_iter().map(|goal| (part.name.clone(), goal)));
    }
    let measured: BTreeSet<String> = all
        .iter()
        .filter(|(_, goal)| goal.verdict != NOT_MEASURED)
        .map(|(_, goal)| goal.name.clone())
        .collect();
    // Two parts may be about one goal, of which one has no more than half of what it compares.
    all.retain(|(_, goal)| goal.verdict != NOT_MEASURED || !measured.contains(&goal.name));
    let rows = all.into_iter().map(|(part, Goal { name, bound, value, verdict })| {
        let verdict = if verdict == "met" { verdict } else { format!("**{verdict}**") };
        vec![part, name, format!("`{bound}`"), value, verdict]
    });
    Ok(table(&["part", "goal", "bound", "measured", ""], 2, rows))
}

fn part(record: &Record, name: &str, files: &mut Files) -> Result<String> {
    let Some(part) = record.part(name) else {
        return Ok("Not measured in this run.\n".to_owned());
    };
    let of = part.commit.iter().map(|commit| format!(", of commit {commit}")).collect::<String>();
    let head = format!("    {}\n\n{}{of}, {} s.", part.command, part.began, part.seconds);
    if let Some(failure) = &part.failure {
        return Ok(format!("{head} **Failed**: {failure}\n"));
    }
    let sheet = part.sheet()?;
    let noisy =
        if is_noisy(part) { " **Others worked on the machine**, see [Noise](#noise)." } else { "" };
    let mut blocks = vec![format!("{head}{noisy}"), sheet.facts.join(", ")];
    blocks.push(table(&sheet.head, sheet.named, sheet.rows.iter().cloned()).trim_end().to_owned());
    blocks.extend(said(&sheet));
    for each in &sheet.plots {
        if let Some(picture) = plot::svg(each)? {
            let file = format!("{FOLDER}/{name}-{}.svg", each.name);
            blocks.push(format!("![{}, {}]({file})", each.title, each.axis));
            files.insert(file, picture);
        }
    }
    Ok(blocks.join("\n\n") + "\n")
}

/// Ratios, goals and notes as a list.
fn said(sheet: &Sheet) -> Option<String> {
    let others = sheet.others.iter().map(|(name, value)| format!("- `{name}`: {value}"));
    let goals = sheet.goals.iter().map(|goal| {
        format!("- goal `{} {}`: {} ({})", goal.name, goal.bound, goal.value, goal.verdict)
    });
    let notes = sheet.notes.iter().map(|note| format!("- {note}"));
    let lines: Vec<String> = others.chain(goals).chain(notes).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// The first `named` columns hold names, the others numbers.
fn table<T: AsRef<str>>(
    head: &[impl AsRef<str>],
    named: usize,
    rows: impl Iterator<Item = Vec<T>>,
) -> String {
    fn line<T: AsRef<str>>(cells: impl IntoIterator<Item = T>) -> String {
        let cells =
            cells.into_iter().map(|cell| format!(" {} |", cell.as_ref().replace('|', "\\|")));
        format!("|{}\n", cells.collect::<String>())
    }
    let rules = (0..head.len()).map(|n| if n < named { "---" } else { "---:" });
    let mut text = line(head) + &line(rules);
    rows.for_each(|row| text += &line(row));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::bench::{machine, parts};
    use crate::workspace;

    fn a_part(name: &str) -> Part {
        let result = json!({ "sheet": {
            "facts": ["kernel: 6"],
            "head": ["program", "wall ms"],
            "named": 1,
            "rows": [["hafen-oci", "1.50"]],
            "others": [["a_vs_b", "0.25"]],
            "goals": [{ "name": "a_vs_c", "bound": "<= 0.5", "value": "0.75", "verdict": "NOT met" }],
            "notes": ["a note"],
            "plots": [{ "name": "wall", "title": "Wall time", "axis": "ms", "series": [
                { "name": "hafen-oci", "values": [1.5, 1.25], "p10": 1.3, "median": 1.4, "p90": 1.5 },
            ] }],
        } });
        Part {
            name: name.into(),
            command: format!("cargo xtask bench {name}"),
            began: "2026-01-01T00:00:00Z".into(),
            seconds: 2.5,
            before: Look { busy: Some(1.0), steal: Some(0.0), waiting: None },
            during: Look { busy: Some(90.0), steal: Some(0.0), waiting: None },
            load_after: Some(1.5),
            commit: None,
            failure: None,
            result,
        }
    }

    fn record() -> Record {
        Record {
            command: "cargo xtask bench".into(),
            began: "2026-01-01T00:00:00Z".into(),
            programs: "built".into(),
            quick: false,
            machine: vec![("processors".into(), "2 x Fast CPU".into())],
            versions: vec![("crun".into(), "1.8.1".into())],
            lacking: vec![],
            load_before: Some(0.5),
            parts: vec![a_part("exec")],
        }
    }

    fn page(record: &Record) -> String {
        render(record).unwrap().remove(FILE).unwrap()
    }

    #[test]
    fn the_same_run_gives_the_same_files() {
        let kept = serde_json::to_vec(&record()).unwrap();
        let again: Record = serde_json::from_slice(&kept).unwrap();
        let files = render(&record()).unwrap();
        assert_eq!(files, render(&again).unwrap());
        assert!(files.contains_key("benchmarks/exec-wall.svg"), "{:?}", files.keys());
    }

    #[test]
    fn what_was_printed_is_in_the_page() {
        let text = page(&record());
        for part in [
            "| program | wall ms |\n| --- | ---: |\n| hafen-oci | 1.50 |\n",
            "    cargo xtask bench exec\n",
            "- `a_vs_b`: 0.25\n",
            "| exec | a_vs_c | `<= 0.5` | 0.75 | **NOT met** |",
            "- a note\n",
            "![Wall time, ms](benchmarks/exec-wall.svg)",
            "| crun | 1.8.1 |",
            "The machine was quiet.",
            "Not measured in this run.",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_failed_part_is_a_row_that_says_so() {
        let mut record = record();
        record.parts[0].failure = Some("exit code 1: no crun".into());
        let text = page(&record);
        assert!(text.contains("**Failed**: exit code 1: no crun"), "{text}");
        assert!(text.contains("the program failed**: exec."), "{text}");
    }

    #[test]
    fn a_goal_that_one_part_has_measured_is_not_missing_in_another() {
        let mut record = record();
        let mut other = a_part("phases");
        let goal = &mut other.result["sheet"]["goals"][0];
        goal["verdict"] = NOT_MEASURED.into();
        let mut missing = goal.clone();
        missing["name"] = "a_vs_d".into();
        other.result["sheet"]["goals"].as_array_mut().unwrap().push(missing);
        record.parts.push(other);
        let table = goals(&record).unwrap();
        assert!(table.contains("| exec | a_vs_c |") && !table.contains("| phases | a_vs_c |"));
        assert!(table.contains("| phases | a_vs_d | `<= 0.5` | 0.75 | **not measured** |"));
    }

    #[test]
    fn what_an_earlier_run_measured_names_its_commit() {
        let of = |commit: &str, parts: &[&str]| Record {
            versions: vec![(machine::COMMIT.into(), commit.into())],
            parts: parts.iter().map(|name| a_part(name)).collect(),
            ..record()
        };
        let mut second = of("b2", &["phases"]);
        second.complete(of("a1", &["exec", "phases"]));
        let mut third = of("c3", &["stdio"]);
        third.complete(second);
        let commits: Vec<_> =
            third.parts.iter().map(|part| (part.name.as_str(), part.commit.as_deref())).collect();
        assert_eq!(commits, [("exec", Some("a1")), ("phases", Some("b2")), ("stdio", None)]);
        let text = page(&third);
        assert!(text.contains("2026-01-01T00:00:00Z, of commit a1, 2.5 s.\n"), "{text}");
        let mut again = of("a1", &["stdio"]);
        again.complete(of("a1", &["exec"]));
        assert!(again.parts.iter().all(|part| part.commit.is_none()));
    }

    #[test]
    fn noise_is_told() {
        let quiet = record();
        assert!(disturbed(&quiet).is_empty());
        let mut loaded = record();
        loaded.load_before = Some(1.1);
        assert_eq!(disturbed(&loaded), ["a load of 1.1 before the run"]);
        let mut stolen = record();
        stolen.parts[0].during.steal = Some(2.1);
        assert_eq!(disturbed(&stolen), ["others worked before or during exec"]);
        let mut busy = record();
        busy.parts[0].before.busy = Some(5.1);
        assert!(page(&busy).contains("**The machine was noisy**"));
    }

    #[test]
    fn every_part_has_its_place_once() {
        for part in parts::ALL {
            let place = format!("{{{{part {}}}}}\n", part.name);
            assert_eq!(TEMPLATE.matches(&place).count(), 1, "{place}");
        }
        assert_eq!(TEMPLATE.matches("{{part ").count(), parts::ALL.len());
    }

    #[test]
    fn nobody_writes_a_number_into_the_page() {
        let docs = workspace::root().join("docs");
        let record = Record::read(&docs.join(RUN)).unwrap();
        let files = render(&record).unwrap();
        for (name, text) in &files {
            let file = docs.join(name);
            let committed = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(
                committed == *text,
                "{name} is not what run.json gives: cargo xtask bench --from docs/{RUN}"
            );
        }
        let plots = fs::read_dir(docs.join(FOLDER)).unwrap().flatten();
        for plot in plots.map(|entry| entry.file_name().into_string().unwrap()) {
            let known = plot == "run.json" || files.contains_key(&format!("{FOLDER}/{plot}"));
            assert!(known, "{FOLDER}/{plot} is of no part of the run");
        }
    }
}
