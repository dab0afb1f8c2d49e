//! What was measured last, why the rest fails, and the page that shows both.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::run::Outcome;
use super::runtime::{ALL, Runtime};
use crate::workspace;

/// Where the suite ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Host {
    Native,
    Vm,
}

/// Whether each runtime passed each program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Record(BTreeMap<Host, BTreeMap<String, BTreeMap<Runtime, bool>>>);

impl Record {
    pub(super) fn read() -> Result<Self> {
        read("results.json")
    }

    pub(super) fn passed(&self, host: Host, program: &str, runtime: Runtime) -> Option<bool> {
        self.0.get(&host)?.get(program)?.get(&runtime).copied()
    }

    pub(super) fn note(&mut self, host: Host, outcome: &Outcome) {
        let programs = self.0.entry(host).or_default();
        let runtimes = programs.entry(outcome.program.clone()).or_default();
        runtimes.insert(outcome.runtime, outcome.passed());
    }

    pub(super) fn write(&self, known: &Known) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        let path = data("results.json");
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        let page = page();
        std::fs::write(&page, self.render(known))
            .with_context(|| format!("write {}", page.display()))
    }

    /// Whether `docs/conformance.md` is what this record gives.
    pub(super) fn is_shown(&self, known: &Known) -> Result<bool> {
        let text = std::fs::read_to_string(page()).context("read docs/conformance.md")?;
        Ok(text == self.render(known))
    }

    fn render(&self, known: &Known) -> String {
        let mut text = INTRODUCTION.to_owned();
        let programs: Vec<&String> = self.0.values().flat_map(BTreeMap::keys).collect();
        let programs: std::collections::BTreeSet<&String> = programs.into_iter().collect();
        for program in &programs {
            let race = known.race(program).map(|_| "race");
            let cell = |host: &Host, r| race.unwrap_or_else(|| self.cell(*host, program, r));
            let cells = HOSTS.iter().flat_map(|host| ALL.map(|r| cell(host, r)));
            let _ = writeln!(text, "| {program} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
        let sums = HOSTS.iter().flat_map(|host| ALL.map(|r| self.sum(*host, r, known).to_string()));
        let _ = writeln!(
            text,
            "| **passed of {}** | {} |",
            programs.iter().filter(|program| known.race(program).is_none()).count(),
            sums.collect::<Vec<_>>().join(" | ")
        );
        text + &known.render()
    }

    fn cell(&self, host: Host, program: &str, runtime: Runtime) -> &'static str {
        match self.passed(host, program, runtime) {
            Some(true) => "yes",
            Some(false) => "-",
            None => "?",
        }
    }

    fn sum(&self, host: Host, runtime: Runtime, known: &Known) -> usize {
        let programs = self.0.get(&host).into_iter().flatten();
        let certain = programs.filter(|(program, _)| known.race(program).is_none());
        certain.filter(|(_, runtimes)| runtimes.get(&runtime) == Some(&true)).count()
    }
}

const HOSTS: [Host; 2] = [Host::Native, Host::Vm];

const INTRODUCTION: &str = "# Conformance

The validation suite of the OCI's [runtime-tools](https://github.com/opencontainers/runtime-tools) with `hafen-oci` and with Debian's
crun and runc, natively (hybrid cgroups) and in the virtual machine (cgroup v2 alone). Written by `cargo xtask conformance --write`
and checked by `cargo xtask test`: a program that crun or runc passes must be passed, and one that none passes needs a reason.

    cargo xtask conformance              # on this machine, all three
    cargo xtask conformance --vm         # in the virtual machine; --refresh runs the others there, too
    cargo xtask conformance killsig      # programs with \"killsig\" in their name, with their complaints

A program passes when it ends with 0, has no `not ok` (TODO aside), and, where it knows no results, prints no error. Many wait by
the clock, so one that has passed before gets three attempts.

| program | native: hafen-oci | crun | runc | vm: hafen-oci | crun | runc |
|---|---|---|---|---|---|---|
";

/// `integration/conformance/reasons.json`: why a program is not passed, where that is not the runtime's fault.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Known {
    /// With every runtime.
    fails_everywhere: BTreeMap<String, BTreeMap<Host, String>>,
    /// With ours, though others pass.
    #[serde(default)]
    not_yet: BTreeMap<String, BTreeMap<Host, String>>,
    /// Now and then, with any runtime.
    races: BTreeMap<String, String>,
}

impl Known {
    pub(super) fn read() -> Result<Self> {
        read("reasons.json")
    }

    pub(super) fn reason(&self, host: Host, program: &str) -> Option<&str> {
        Some(self.fails_everywhere.get(program)?.get(&host)?.as_str())
    }

    pub(super) fn not_yet(&self, host: Host, program: &str) -> Option<&str> {
        Some(self.not_yet.get(program)?.get(&host)?.as_str())
    }

    pub(super) fn race(&self, program: &str) -> Option<&str> {
        self.races.get(program).map(String::as_str)
    }

    pub(super) fn programs(&self) -> impl Iterator<Item = &str> {
        let listed = self.fails_everywhere.keys().chain(self.not_yet.keys());
        listed.chain(self.races.keys()).map(String::as_str)
    }

    fn render(&self) -> String {
        let mut text = "\n## Why nobody passes\n\n".to_owned();
        for (program, reasons) in &self.fails_everywhere {
            let _ = writeln!(text, "- **{program}**: {}", sentence(reasons));
        }
        if !self.not_yet.is_empty() {
            text.push_str("\n## What hafen-oci does not pass yet, and others do\n\n");
        }
        for (program, reasons) in &self.not_yet {
            let _ = writeln!(text, "- **{program}**: {}", sentence(reasons));
        }
        text.push_str("\n## What is a matter of luck\n\n");
        for (program, reason) in &self.races {
            let _ = writeln!(text, "- **{program}**: {reason}");
        }
        text
    }
}

fn sentence(reasons: &BTreeMap<Host, String>) -> String {
    match (reasons.get(&Host::Native), reasons.get(&Host::Vm)) {
        (Some(native), Some(vm)) if native == vm => native.clone(),
        (native, vm) => {
            let native = native.map(|reason| format!("Natively: {reason}"));
            let vm = vm.map(|reason| format!("In the virtual machine: {reason}"));
            [native, vm].into_iter().flatten().collect::<Vec<_>>().join(" ")
        }
    }
}

fn data(name: &str) -> PathBuf {
    workspace::root().join("integration/conformance").join(name)
}

fn page() -> PathBuf {
    workspace::root().join("docs/conformance.md")
}

fn read<T: DeserializeOwned + Default>(name: &str) -> Result<T> {
    let path = data(name);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
}
