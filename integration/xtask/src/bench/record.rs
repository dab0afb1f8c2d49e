//! What is kept of a run, `run.json`: all that the page is made of.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{machine, parts};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// As somebody would type it.
    pub(super) command: String,
    /// UTC.
    pub(super) began: String,
    /// What was built, or where the programs are that were taken as they are.
    pub(super) programs: String,
    /// Small runs, by which everything can be seen to work.
    pub(super) quick: bool,
    /// Names and values.
    pub(super) machine: Vec<(String, String)>,
    /// Programs and packages.
    pub(super) versions: Vec<(String, String)>,
    /// What could not be set up.
    pub(super) lacking: Vec<String>,
    /// One minute's, before anything was run.
    pub(super) load_before: Option<f64>,
    pub(super) parts: Vec<Part>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) command: String,
    /// UTC.
    pub(super) began: String,
    pub(super) seconds: f64,
    /// A moment before it, in which nothing of ours ran.
    pub(super) before: Look,
    pub(super) during: Look,
    /// Of one minute, at its end.
    pub(super) load_after: Option<f64>,
    /// What was measured, where the run that it is of had another one than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) commit: Option<String>,
    /// Why there is no result.
    pub(super) failure: Option<String>,
    /// What the program printed with `--json`.
    pub(super) result: Value,
}

/// What the processors did for a while, in percent of all of them together; `None` where the kernel does not say.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Look {
    pub(super) busy: Option<f64>,
    /// Taken by whoever else is on the physical machine.
    pub(super) steal: Option<f64>,
    /// Time in which somebody waited for a processor (pressure stall information).
    pub(super) waiting: Option<f64>,
}

impl Part {
    pub(super) fn sheet(&self) -> Result<Sheet> {
        let sheet = self.result.get("sheet").context("it printed no sheet")?;
        Sheet::deserialize(sheet).context("its sheet")
    }
}

/// What a measuring program has to say for a page (`hafen_bench::sheet`).
#[derive(Debug, Deserialize)]
pub(super) struct Sheet {
    pub(super) facts: Vec<String>,
    pub(super) head: Vec<String>,
    pub(super) named: usize,
    pub(super) rows: Vec<Vec<String>>,
    pub(super) others: Vec<(String, String)>,
    pub(super) goals: Vec<Goal>,
    pub(super) notes: Vec<String>,
    pub(super) plots: Vec<Plot>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Goal {
    pub(super) name: String,
    pub(super) bound: String,
    pub(super) value: String,
    pub(super) verdict: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Plot {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) axis: String,
    pub(super) series: Vec<Series>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) values: Vec<f64>,
    pub(super) p10: Option<f64>,
    pub(super) median: Option<f64>,
    pub(super) p90: Option<f64>,
}

impl Record {
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no kept run", file.display()))
    }

    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("encode the run")? + "\n";
        fs::write(file, text).with_context(|| format!("write {}", file.display()))
    }

    pub(super) fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    fn commit(&self) -> Option<&str> {
        let named = self.versions.iter().find(|(name, _)| name == machine::COMMIT);
        named.map(|(_, commit)| commit.as_str())
    }

    /// Takes what was not measured now from an earlier run; the parts are in their usual order then.
    pub(super) fn complete(&mut self, earlier: Self) {
        let (commit, own) = (earlier.commit().map(str::to_owned), self.commit());
        let other = commit.filter(|commit| Some(commit.as_str()) != own);
        let missing = earlier.parts.into_iter().filter(|part| self.part(&part.name).is_none());
        let missing: Vec<Part> = missing
            .map(|part| Part { commit: part.commit.or_else(|| other.clone()), ..part })
            .collect();
        self.parts.extend(missing);
        self.parts.sort_by_key(|part| parts::ALL.iter().position(|known| known.name == part.name));
    }
}
