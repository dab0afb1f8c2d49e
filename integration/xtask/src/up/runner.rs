//! Runs containers through `hafen-oci`, each within a time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::case::Case;
use super::image::{Image, NAME};
use super::record::Record;
use crate::command::{self, End, limited};

/// Where `hafen-oci` keeps its state when nobody says otherwise.
pub(crate) const STATE: &str = "/run/hafen-oci";

/// For a container that takes three seconds.
const RUN_LIMIT: Duration = Duration::from_secs(60);
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// What is known of a container after its end.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) end: End,
    /// Of the container and of the runtime, both streams.
    pub(crate) output: String,
    pub(crate) record: Option<Record>,
}

#[derive(Debug)]
pub(crate) struct Runner {
    program: PathBuf,
    scratch: PathBuf,
    limit: Duration,
}

impl Runner {
    pub(crate) fn new(program: PathBuf, scratch: &Path) -> Self {
        Self { program, scratch: scratch.to_owned(), limit: RUN_LIMIT }
    }

    /// Runs a container to its end, or ends it.
    pub(crate) fn run(&self, case: &Case, image: &Image) -> Result<Ended> {
        let id = id(case);
        let output = self.scratch.join(format!("{id}.output"));
        let report = self.scratch.join(format!("{id}.json"));
        let end = self.call_run(case, image, &id, &output, &report)?;
        if matches!(end, End::TimedOut(_)) {
            self.remove(&id)?;
        }
        let text = fs::read(&output).with_context(|| format!("read {}", output.display()))?;
        Ok(Ended {
            end,
            output: String::from_utf8_lossy(&text).into_owned(),
            record: read_record(&report)?,
        })
    }

    /// The output goes to a file: a pipe would stay open as long as anything of the container is left.
    fn call_run(
        &self,
        case: &Case,
        image: &Image,
        id: &str,
        output: &Path,
        report: &Path,
    ) -> Result<End> {
        let file = File::create(output).with_context(|| format!("create {}", output.display()))?;
        let mut command = limited(self.limit, &self.program);
        command.args(["run", "--id", id, "--images"]).arg(&image.store);
        command.args(["--image", NAME]).arg("--report").arg(report);
        command.args(&case.limits).arg("--").args(&case.command);
        command.stdout(file.try_clone().context("dup")?).stderr(file);
        command::run(self.limit, &mut command)
    }

    /// `run` was stopped at its time limit: its container goes too.
    fn remove(&self, id: &str) -> Result<()> {
        let mut command = limited(CALL_LIMIT, &self.program);
        let end = command::run(CALL_LIMIT, command.args(["delete", "--force", id]))?;
        if !end.success() {
            eprintln!("hafen-oci delete --force {id}: {end}");
        }
        Ok(())
    }

    /// Our containers that the runtime still knows.
    pub(crate) fn left_behind(&self) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        let mut command = limited(CALL_LIMIT, &self.program);
        let end = command::read(CALL_LIMIT, command.args(["list", "-q"]), |line| {
            if line.starts_with(&prefix()) {
                ids.push(line.to_owned());
            }
        })?;
        anyhow::ensure!(end.success(), "hafen-oci list: {end}");
        Ok(ids)
    }
}

/// Another `up` may run at the same time.
fn prefix() -> String {
    format!("up-{}-", std::process::id())
}

fn id(case: &Case) -> String {
    prefix() + &case.name.replace(' ', "-")
}

/// The report, if the runtime came that far.
fn read_record(path: &Path) -> Result<Option<Record>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).map(Some).with_context(|| format!("parse {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::up::case;

    /// A runtime of shell, whose `$scratch` is the folder given.
    fn runner(scratch: &Path, script: &str) -> Runner {
        let program = scratch.join("runtime");
        fs::write(&program, format!("#!/bin/sh\nscratch={}\n{script}\n", scratch.display()))
            .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Runner { limit: Duration::from_secs(1), ..Runner::new(program, scratch) }
    }

    #[test]
    fn a_container_that_does_not_end_is_deleted() {
        let scratch = tempfile::tempdir().unwrap();
        let script = r#"case $1 in run) sleep 30 ;; *) echo "$@" >$scratch/calls ;; esac"#;
        let case = &case::all(false)[0];
        let image = Image { store: "/nowhere".into() };
        let ended = runner(scratch.path(), script).run(case, &image).unwrap();
        assert!(matches!(ended.end, End::TimedOut(_)) && ended.record.is_none());
        let calls = fs::read_to_string(scratch.path().join("calls")).unwrap();
        assert_eq!(calls, format!("delete --force {}\n", id(case)));
    }

    #[test]
    fn only_our_containers_are_looked_for() {
        let scratch = tempfile::tempdir().unwrap();
        let ours = prefix() + "x";
        let left =
            runner(scratch.path(), &format!("echo other; echo {ours}")).left_behind().unwrap();
        assert_eq!(left, [ours]);
    }
}
