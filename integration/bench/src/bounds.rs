//! How many system calls and instructions a launch may take, phase by phase: they repeat where times do not.
//!
//! The numbers are kept in `bounds.toml` of this package. They are those of one kind of machine, which the file names: what
//! cgroup hierarchies and capabilities there are decides what a launch has to do. What else could differ is taken away: a
//! launch is counted where few mounts are seen, at addresses and under names that are always the same.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::personality::{self, Persona};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::bundle::{self, Kind};
use crate::host::{Host, parse_mountinfo};
use crate::measure::Job;
use crate::programs::{self, OURS, Program};
use crate::stats::median;
use crate::tracer::{self, Count, Phase, Process};

/// A command that is counted.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    kind: Kind,
    /// `exec` in a container that runs, not `run`.
    joins: bool,
}

pub const CASES: [Case; 4] = [
    Case { name: "run podman", kind: Kind::Podman, joins: false },
    Case { name: "run default", kind: Kind::Default, joins: false },
    Case { name: "run minimal", kind: Kind::Minimal, joins: false },
    Case { name: "exec default", kind: Kind::Default, joins: true },
];

/// What a launch has to do depends on these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Controllers of the v1 hierarchies, then those of the cgroup2 tree.
    pub cgroups: String,
    /// What a process may have at most: as many calls ask for them, and those without CAP_SYS_RESOURCE look at their limits.
    pub capabilities: String,
}

impl Machine {
    fn here(host: &Host) -> io::Result<Self> {
        let mut legacy: Vec<_> = host.legacy().filter_map(Path::file_name).collect();
        legacy.sort();
        let legacy: Vec<_> = legacy.iter().map(|name| name.to_string_lossy()).collect();
        let cgroups = format!("{}; {}", legacy.join(" "), host.controllers.join(" "));
        let status = fs::read_to_string("/proc/self/status")?;
        let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        Ok(Self { cgroups, capabilities: bounding.unwrap_or_default().trim().to_owned() })
    }
}

/// The file. A case has a number for each process and phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    pub machine: Machine,
    #[serde(flatten)]
    pub cases: BTreeMap<String, BTreeMap<String, Count>>,
}

const HEADER: &str = "\
# System calls and instructions of a launch by the release build of hafen-oci, on a machine of this kind.
# `cargo xtask bench bounds --write` writes this file; `cargo xtask test` fails where a number is exceeded by more than 3 %.

";

/// The repository's.
pub fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bounds.toml")
}

impl Bounds {
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(path: &Path) -> io::Result<Self> {
        let wrong =
            |e: &dyn std::fmt::Display| io::Error::other(format!("{}: {e}", path.display()));
        let text = fs::read_to_string(path).map_err(|e| wrong(&e))?;
        toml::from_str(&text).map_err(|e| wrong(&e))
    }

    /// # Errors
    /// Names the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        fs::write(path, format!("{HEADER}{text}"))
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }
}

/// In percent.
const TOLERANCE: u64 = 3;

/// What is to be said of a number beside its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Held,
    Grown,
    /// The bound should follow, or what was won can be lost again.
    Shrunk,
    /// There is no bound.
    Unknown,
}

pub fn compare(now: u64, bound: Option<u64>) -> Verdict {
    match bound {
        None => Verdict::Unknown,
        Some(bound) if 100 * now > (100 + TOLERANCE) * bound => Verdict::Grown,
        Some(bound) if 100 * now < (100 - TOLERANCE) * bound => Verdict::Shrunk,
        Some(_) => Verdict::Held,
    }
}

/// One line of what was counted: the median of all runs, and how far they lie apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub name: String,
    pub count: Count,
    /// Largest less smallest number of instructions, in percent of the median.
    pub spread: f64,
}

/// Of several runs of a case.
///
/// # Errors
/// Where they do not have the same processes and phases.
pub fn lines(runs: &[Vec<Process>]) -> io::Result<Vec<Line>> {
    let named = |run: &Vec<Process>| -> Vec<(String, Count)> {
        let process = |(number, process): (usize, &Process)| {
            let who = match number {
                0 => "runtime".to_owned(),
                number => format!("child {number}"),
            };
            let name = move |(phase, count): (&Phase, &Count)| {
                (format!("{who}, {}", phase.name()), *count)
            };
            process.counts.iter().map(name).collect::<Vec<_>>()
        };
        run.iter().enumerate().flat_map(process).collect()
    };
    let runs: Vec<_> = runs.iter().map(named).collect();
    let Some(first) = runs.first() else { return Ok(Vec::new()) };
    let line = |(index, (name, _)): (usize, &(String, Count))| {
        let of = |number: fn(&Count) -> u64| -> io::Result<Vec<f64>> {
            let found = runs.iter().map(|run| run.get(index).filter(|(n, _)| n == name));
            let found: Option<Vec<_>> = found.map(|l| l.map(|(_, c)| number(c) as f64)).collect();
            found.ok_or_else(|| io::Error::other(format!("{name}: not in all of the runs")))
        };
        let (calls, instructions) = (of(|c| c.calls)?, of(|c| c.instructions)?);
        let middle = |values: &[f64]| median(values).unwrap_or_default();
        let smallest = instructions.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = instructions.iter().copied().fold(0.0, f64::max);
        let count =
            Count { calls: middle(&calls) as u64, instructions: middle(&instructions) as u64 };
        Ok(Line {
            name: name.clone(),
            count,
            spread: 100.0 * (largest - smallest) / middle(&instructions).max(1.0),
        })
    };
    first.iter().enumerate().map(line).collect()
}

/// Where launches are counted: a mount namespace of this process with few mounts.
#[derive(Debug)]
pub struct Scene {
    host: Host,
    pub machine: Machine,
    program: Program,
    id: String,
}

/// Everything is in here, so that all paths are the same on all machines.
const FOLDER: &str = "/run";

impl Scene {
    /// Puts this process, and what it starts, where it counts. To be called before there is a second thread.
    ///
    /// # Errors
    /// Of a call.
    pub fn enter(program: &Path) -> io::Result<Self> {
        let host = Host::read()?;
        let machine = Machine::here(&host)?;
        let bytes = fs::read(program)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", program.display())))?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("tmpfs"), FOLDER, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
        let copy = Path::new(FOLDER).join(OURS);
        fs::write(&copy, bytes)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        leave_out_mounts()?;
        personality::set(personality::get()? | Persona::ADDR_NO_RANDOMIZE)?;
        stay_on_this_processor()?;
        // As long as any other's: a process id has seven digits at most.
        let id = format!("hafen-bounds-{:07}", std::process::id());
        let kind = programs::Kind::Runtime;
        let program = Program { name: OURS, kind, path: copy, version: String::new() };
        Ok(Self { host, machine, program, id })
    }

    /// # Errors
    /// Of the tracer, and of what has to be done before and after.
    pub fn count(&self, case: &Case) -> io::Result<Vec<Process>> {
        let (bundle, state) = (self.folder("bundle"), self.folder("state"));
        fs::create_dir_all(&state)?;
        let result = self.count_in(case, &bundle, &state);
        self.host.sweep(&self.id);
        for folder in [&bundle, &state] {
            fs::remove_dir_all(folder)?;
        }
        result
    }

    fn folder(&self, name: &str) -> PathBuf {
        Path::new(FOLDER).join(name)
    }

    fn count_in(&self, case: &Case, bundle: &Path, state: &Path) -> io::Result<Vec<Process>> {
        let mut config = bundle::config(case.kind, &self.id, &self.host)?;
        if case.joins {
            config["process"]["args"] = json!(["/bin/sleep", "3600"]);
        }
        bundle::make(bundle, &config)?;
        if !case.joins {
            let job = programs::launch(&self.program, bundle, state, &self.id).measured;
            // The first one compiles the filter and keeps it.
            run(&job)?;
            return tracer::count(&job);
        }
        let call = |words: &[&str]| {
            let folder = state.to_string_lossy();
            let words = ["--root", &folder].into_iter().chain(words.iter().copied());
            run(&Job::new(&self.program.path, words.map(str::to_owned)))
        };
        call(&["create", "--bundle", &bundle.to_string_lossy(), &self.id])?;
        let counted = call(&["start", &self.id])
            .and_then(|()| tracer::count(&programs::exec(&self.program, state, &self.id).measured));
        call(&["delete", "--force", &self.id])?;
        counted
    }
}

fn run(job: &Job) -> io::Result<()> {
    let mut command = Command::new(&job.program);
    let status =
        command.args(&job.arguments).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}

/// A runtime reads them all. Nobody else sees this namespace. What the bounds are on stays, to be written.
fn leave_out_mounts() -> io::Result<()> {
    const STAY: [&str; 6] = ["/", "/proc", "/sys", "/sys/fs/cgroup", "/dev", FOLDER];
    let mounts = parse_mountinfo(&fs::read_to_string("/proc/self/mountinfo")?);
    let stays = |point: &Path| {
        STAY.iter().any(|stay| Path::new(stay) == point) || file().starts_with(point)
    };
    for mount in mounts.iter().rev().filter(|m| !m.fs_type.starts_with("cgroup")) {
        if !stays(&mount.point) {
            // Gone already with the one that it was on.
            let _ = umount2(&mount.point, MntFlags::MNT_DETACH);
        }
    }
    Ok(())
}

/// A step goes from one process to the other, which takes several times as long between two processors.
fn stay_on_this_processor() -> io::Result<()> {
    let mut here = CpuSet::new();
    here.set(nix::sched::sched_getcpu()?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &here)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_percent_are_nothing() {
        assert_eq!(compare(103, Some(100)), Verdict::Held);
        assert_eq!(compare(104, Some(100)), Verdict::Grown);
        assert_eq!(compare(97, Some(100)), Verdict::Held);
        assert_eq!(compare(96, Some(100)), Verdict::Shrunk);
        assert_eq!(compare(31, Some(30)), Verdict::Grown, "a call more of thirty");
        assert_eq!(compare(1, None), Verdict::Unknown);
        assert_eq!(compare(0, Some(0)), Verdict::Held);
    }

    #[test]
    fn the_repositorys_file_can_be_read_and_has_all_cases() {
        let bounds = Bounds::read(&file()).unwrap();
        for case in CASES {
            assert!(bounds.cases[case.name].len() > 1, "{}", case.name);
        }
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("bounds.toml");
        bounds.write(&copy).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), fs::read(file()).unwrap(), "written by hand?");
    }
}
