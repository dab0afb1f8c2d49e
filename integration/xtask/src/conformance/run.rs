//! One program of the suite with one runtime.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::leftovers::Foreign;
use super::runtime::Runtime;
use super::suite::Suite;
use super::tap::{self, Ended};
use crate::command::{self, End, limited};

const DELETE: Duration = Duration::from_secs(60);

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) program: String,
    pub(super) runtime: Runtime,
    /// Nothing where the runtime passed.
    pub(super) complaint: Option<String>,
    pub(super) attempts: u32,
    pub(super) milliseconds: u128,
}

impl Outcome {
    pub(super) fn passed(&self) -> bool {
        self.complaint.is_none()
    }
}

/// What all runs of one session have in common.
pub(super) struct Bench<'a> {
    pub(super) suite: &'a Suite,
    pub(super) foreign: &'a Foreign,
    pub(super) limit: Duration,
    pub(super) ours: PathBuf,
}

impl Bench<'_> {
    /// Until the runtime passes, at most so many times: the suite waits with sleeps, and loses some races.
    pub(super) fn run(&self, program: &str, runtime: Runtime, attempts: u32) -> Result<Outcome> {
        let started = Instant::now();
        let mut attempt = 1;
        let complaint = loop {
            let complaint = self
                .attempt(program, runtime)
                .with_context(|| format!("{program} with {}", runtime.name()))?;
            if complaint.is_none() || attempt >= attempts {
                break complaint;
            }
            attempt += 1;
        };
        Ok(Outcome {
            program: program.to_owned(),
            runtime,
            complaint,
            attempts: attempt,
            milliseconds: started.elapsed().as_millis(),
        })
    }

    fn path_of(&self, runtime: Runtime) -> Result<PathBuf> {
        if runtime == Runtime::Ours { Ok(self.ours.clone()) } else { runtime.program() }
    }

    fn attempt(&self, program: &str, runtime: Runtime) -> Result<Option<String>> {
        let place = Place::new(self.suite, &self.path_of(runtime)?)?;
        let ended = place.execute(&self.suite.program(program), runtime, self.limit);
        let cleaned = place.clean(runtime, self.foreign);
        let complaint = tap::complaint(&place.said("out")?, &place.said("err")?, ended?);
        place.remove()?;
        cleaned.map(|()| complaint)
    }
}

/// A folder of its own for everything that a run writes.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new(suite: &Suite, runtime: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("conformance-").tempdir_in("/var/tmp")?;
        let place = Self { folder };
        for name in ["bundles", "state"] {
            std::fs::create_dir(place.path(name))?;
        }
        // The suite looks for these in its working directory.
        for name in [super::suite::INSIDE, super::suite::ROOTFS] {
            std::fs::copy(suite.program(name), place.path(name))
                .with_context(|| format!("copy {name} of {}", suite.folder().display()))?;
        }
        place.write_wrapper(runtime)?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The suite knows no `--root`. The last words are noted too: among them are the names of the containers.
    fn write_wrapper(&self, program: &Path) -> Result<()> {
        let here = self.folder.path();
        let text = format!(
            "#!/bin/sh\nfor last; do :; done\necho \"$last\" >>{here}/words\nexec {program} --root {here}/state \"$@\"\n",
            here = here.display(),
            program = program.display(),
        );
        let mut options = File::options();
        let mut file =
            options.write(true).create_new(true).mode(0o755).open(self.path("runtime"))?;
        file.write_all(text.as_bytes()).context("write the wrapper")
    }

    /// In a mount namespace of its own: some programs ask for containers without one, and what those mount
    /// ends with it.
    fn execute(&self, program: &Path, runtime: Runtime, limit: Duration) -> Result<Ended> {
        let script = format!("{}; exec \"$0\"", runtime.preparation());
        let mut command = limited(limit, "unshare");
        command.args(["--mount", "sh", "-c", &script]).arg(program);
        command.current_dir(self.folder.path()).env("RUNTIME", self.path("runtime"));
        command.env("TMPDIR", self.path("bundles"));
        // Files, not pipes: a container that was left behind would hold them open.
        command.stdout(File::create(self.path("out"))?).stderr(File::create(self.path("err"))?);
        Ok(match command::run(limit, &mut command)? {
            End::TimedOut(_) => Ended::AtItsLimit,
            end if end.success() => Ended::Well,
            End::Code(_) => Ended::Badly,
        })
    }

    fn said(&self, name: &str) -> Result<String> {
        let bytes = std::fs::read(self.path(name)).with_context(|| format!("read {name}"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn clean(&self, runtime: Runtime, foreign: &Foreign) -> Result<()> {
        for entry in std::fs::read_dir(self.path("state"))?.filter_map(Result::ok) {
            // What it says matters less than what is left, which the cgroups show.
            let _ = self.delete(runtime, &entry.file_name().to_string_lossy())?;
        }
        foreign.remove_cgroups(&self.containers())
    }

    fn delete(&self, runtime: Runtime, id: &str) -> Result<End> {
        let script = format!("{}; exec \"$@\"", runtime.preparation());
        let mut command = limited(DELETE, "unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(self.path("runtime"));
        command.args(["delete", "--force", id]);
        command::run(DELETE, command.stdout(Stdio::null()).stderr(Stdio::null()))
    }

    fn containers(&self) -> BTreeSet<String> {
        let words = std::fs::read_to_string(self.path("words")).unwrap_or_default();
        words.lines().filter(|word| is_uuid(word)).map(str::to_owned).collect()
    }

    /// Nothing below may be a mount: what is removed would be the mount's.
    fn remove(self) -> Result<()> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
        let folder = self.folder.path().to_string_lossy().into_owned();
        ensure!(!mounts.contains(&folder), "something is still mounted below {folder}");
        self.folder.close().with_context(|| format!("remove {folder}"))
    }
}

/// So are all containers of the suite named.
fn is_uuid(word: &str) -> bool {
    let groups: Vec<usize> = word.split('-').map(str::len).collect();
    groups == [8, 4, 4, 4, 12] && word.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

/// Holds the lock that the integration suites take: both compare or clean what all share.
pub(super) struct HostLock(std::process::Child);

impl HostLock {
    pub(super) fn take() -> Result<Self> {
        let mut command = Command::new("flock");
        // `cat` holds it until our end of its input is closed, be it by our death.
        command.args(["/var/tmp", "sh", "-c", "echo; exec cat"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("run flock")?;
        let mut ready = [0];
        let output = child.stdout.as_mut().context("no pipe")?;
        std::io::Read::read_exact(output, &mut ready).context("lock /var/tmp")?;
        Ok(Self(child))
    }
}

impl Drop for HostLock {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::is_uuid;

    #[test]
    fn only_names_of_containers_are_cleaned() {
        assert!(is_uuid("7b26e576-4a24-4be9-8634-35550a5b2e97"));
        for word in ["", "KILL", "-", "----", "/var/tmp/bundles/ocitest1-2-3-4-5"] {
            assert!(!is_uuid(word), "{word}");
        }
    }
}
