//! A real `hafen agent` on this host that obeys the coordinator, and dies as machines do.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Error;
use crate::agent::{Program, hafen, processes, wait_until};
use crate::host::Host;
use crate::images::layout::Made;

#[derive(Debug)]
pub struct Machine {
    pub name: String,
    program: PathBuf,
    folder: PathBuf,
    run: PathBuf,
    /// What the command lines of all its processes have in them.
    mark: PathBuf,
    instance: String,
    url: String,
    host: Host,
    agent: Option<Program>,
}

/// Where everything of this benchmark is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub folder: &'a Path,
    /// On a tmpfs, as /run is.
    pub run: &'a Path,
    /// Part of both names, and so of the command lines of all that is started.
    pub mark: &'a Path,
}

impl Machine {
    /// # Errors
    /// If the image cannot be imported or the agent not be started.
    pub fn begin(
        program: &Path,
        name: &str,
        place: Place<'_>,
        made: &Made,
        url: &str,
        host: &Host,
    ) -> Result<Self, Error> {
        let folder = place.folder.join(name);
        fs::create_dir_all(&folder).map_err(crate::agent::says("mkdir", &folder))?;
        hafen::import(program, &folder, made)?;
        let mut machine = Self {
            name: name.to_owned(),
            program: program.to_owned(),
            folder,
            run: place.run.join(name),
            mark: place.mark.join(name),
            instance: format!("bench-{name}-{}", std::process::id()),
            url: url.to_owned(),
            host: host.clone(),
            agent: None,
        };
        machine.start()?;
        Ok(machine)
    }

    /// Its agent, for the first time or again.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self) -> Result<(), Error> {
        let more = ["--name", &self.name, "--master-urls", &self.url];
        let begun = hafen::begin(&self.program, &self.folder, &self.run, &self.instance, &more);
        self.agent = Some(begun?);
        Ok(())
    }

    /// Agent, keepers and containers end at once, and nobody says a word.
    ///
    /// # Errors
    /// If something of it lives on.
    pub fn die(&mut self) -> Result<(), Error> {
        // First who could tell of the others' ends.
        if let Some(mut agent) = self.agent.take() {
            agent.end(Signal::SIGKILL);
        }
        wait_until(&format!("all of {} ends", self.name), || {
            let left = self.processes();
            for pid in &left {
                // Fails only if it has ended, which is what is wanted.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            left.is_empty()
        })
    }

    /// Keepers, by their command lines, and what is in the cgroups of this agent.
    fn processes(&self) -> Vec<i32> {
        let mut all = processes::of(&self.mark);
        let tree = self.host.unified.join("hafen").join(&self.instance);
        members(&tree, &mut all);
        all
    }
}

/// What is not there has no members.
fn members(folder: &Path, all: &mut Vec<i32>) {
    let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    all.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            members(&entry.path(), all);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.end(Signal::SIGTERM);
        }
        // Nothing, unless something went wrong.
        if let Err(e) = self.die() {
            eprintln!("bench-cluster: {e}");
        }
        // The members of a killed cgroup take a moment to leave it.
        std::thread::sleep(Duration::from_millis(20));
        self.host.sweep(&format!("hafen/{}", self.instance));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_all_folders_below_are_found() {
        let tree = tempfile::tempdir().unwrap();
        let leaf = tree.path().join("a/leaf");
        fs::create_dir_all(&leaf).unwrap();
        fs::write(tree.path().join("cgroup.procs"), "").unwrap();
        fs::write(leaf.join("cgroup.procs"), "17\n0\n18\n").unwrap();
        let mut all = Vec::new();
        members(tree.path(), &mut all);
        assert_eq!(all, [17, 18]);
        members(&tree.path().join("none"), &mut all);
        assert_eq!(all.len(), 2);
    }
}
