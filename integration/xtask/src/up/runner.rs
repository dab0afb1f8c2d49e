//! Runs containers through the agent, each within a time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::case::Case;
use super::image::NAME;
use super::record::Record;
use crate::command::{self, End, limited};

/// For a container that takes three seconds.
const RUN_LIMIT: Duration = Duration::from_secs(60);
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// What is known of a container after its end.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) end: End,
    /// Both streams.
    pub(crate) output: String,
    pub(crate) record: Option<Record>,
}

#[derive(Debug)]
pub(crate) struct Runner {
    program: PathBuf,
    /// Of the agent.
    host: String,
    scratch: PathBuf,
    limit: Duration,
}

impl Runner {
    pub(crate) fn new(program: PathBuf, host: String, scratch: &Path) -> Self {
        Self { program, host, scratch: scratch.to_owned(), limit: RUN_LIMIT }
    }

    /// Runs a container to its end, or ends it.
    pub(crate) fn run(&self, case: &Case) -> Result<Ended> {
        let id = id(case);
        let output = self.scratch.join(format!("{id}.output"));
        let end = self.call_run(case, &id, &output)?;
        let text = fs::read(&output).with_context(|| format!("read {}", output.display()))?;
        let ended = Ended {
            end,
            output: String::from_utf8_lossy(&text).into_owned(),
            record: self.inspect(&id)?,
        };
        self.call(&["rm", "--force", &id])?;
        Ok(ended)
    }

    /// The output goes to a file: a pipe would stay open as long as anything of the container is left.
    fn call_run(&self, case: &Case, id: &str, output: &Path) -> Result<End> {
        let file = File::create(output).with_context(|| format!("create {}", output.display()))?;
        let mut command = limited(self.limit, &self.program);
        command.args(["--host", &self.host, "run", "--name", id]);
        command.args(&case.limits).arg(NAME).args(&case.command);
        command.stdout(file.try_clone().context("dup")?).stderr(file);
        command::run(self.limit, &mut command)
    }

    fn inspect(&self, id: &str) -> Result<Option<Record>> {
        let mut text = String::new();
        let mut command = limited(CALL_LIMIT, &self.program);
        command.args(["--host", &self.host, "inspect", id]);
        let end = command::read(CALL_LIMIT, &mut command, |line| text.push_str(line))?;
        if !end.success() {
            return Ok(None);
        }
        Record::read(text.as_bytes())
    }

    fn call(&self, words: &[&str]) -> Result<()> {
        let mut command = limited(CALL_LIMIT, &self.program);
        command.args(["--host", &self.host]).args(words);
        let mut said = Vec::new();
        let end = command::read(CALL_LIMIT, &mut command, |line| said.push(line.to_owned()))?;
        ensure!(end.success(), "{}: {end}", command::line(&command));
        Ok(())
    }
}

fn id(case: &Case) -> String {
    case.name.replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::up::case;

    /// A program of shell, whose `$scratch` is the folder given.
    fn runner(scratch: &Path, script: &str) -> Runner {
        let program = scratch.join("hafen");
        fs::write(&program, format!("#!/bin/sh\nscratch={}\n{script}\n", scratch.display()))
            .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let limit = Duration::from_secs(1);
        Runner { limit, ..Runner::new(program, "unix:///nowhere".to_owned(), scratch) }
    }

    #[test]
    fn a_container_that_does_not_end_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let script = r#"case $3 in run) sleep 30 ;; inspect) exit 1 ;; *) echo "$@" >$scratch/calls ;; esac"#;
        let case = &case::all(false)[0];
        let ended = runner(scratch.path(), script).run(case).unwrap();
        assert!(matches!(ended.end, End::TimedOut(_)), "{:?}", ended.end);
        let calls = fs::read_to_string(scratch.path().join("calls")).unwrap();
        assert_eq!(calls, "--host unix:///nowhere rm --force behaves\n");
        assert!(ended.record.is_none());
    }

    #[test]
    fn output_and_record_come_back() {
        let scratch = tempfile::tempdir().unwrap();
        let script = r#"case $3 in
            run) echo "hello"; echo "there" >&2; exit 4 ;;
            inspect) echo '{"reason":{"sentence":"s","exit":{"code":4,"ran":"1s"}}}' ;;
        esac"#;
        let case = &case::all(false)[0];
        let ended = runner(scratch.path(), script).run(case).unwrap();
        assert_eq!((ended.end, ended.output.as_str()), (End::Code(4), "hello\nthere\n"));
        assert_eq!(ended.record.unwrap().exit_code, Some(4));
    }
}
