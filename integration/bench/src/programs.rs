//! The programs that a launch benchmark compares: where they are and how each is told
//! to run a bundle.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::measure::{Job, Subject};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `PROG BUNDLE`
    Floor,
    /// `PROG --root DIR run --bundle B ID`, as runc has it
    Runtime,
    /// `PROG run --root DIR --bundle B ID`
    Reference,
}

#[derive(Debug, Clone)]
pub struct Program {
    /// Of the table's row and of the ratio `run_vs_NAME`.
    pub name: &'static str,
    pub kind: Kind,
    pub path: PathBuf,
    pub version: String,
}

pub const OURS: &str = "hafen-oci";
pub const FLOOR: &str = "floor";

/// (name, file, variable that names it, kind)
const KNOWN: [Known; 6] = [
    (FLOOR, "floor", "HAFEN_FLOOR", Kind::Floor),
    (OURS, "hafen-oci", "HAFEN_OCI", Kind::Runtime),
    ("crun", "crun", "HAFEN_CRUN", Kind::Runtime),
    ("runc", "runc", "HAFEN_RUNC", Kind::Runtime),
    ("youki", "youki", "HAFEN_YOUKI", Kind::Runtime),
    ("libcontainer", "hafen-reference", "HAFEN_REFERENCE", Kind::Reference),
];

/// Those that are here, and the names of those that are not. `scratch` is for what they write
/// when asked for their version.
pub fn find(scratch: &Path) -> (Vec<Program>, Vec<&'static str>) {
    find_of(&KNOWN, scratch)
}

/// The same of those alone that have commands for each step of a container's life.
pub fn runtimes(scratch: &Path) -> (Vec<Program>, Vec<&'static str>) {
    let runtimes = KNOWN.into_iter().filter(|(.., kind)| *kind == Kind::Runtime);
    find_of(&runtimes.collect::<Vec<_>>(), scratch)
}

type Known = (&'static str, &'static str, &'static str, Kind);

fn find_of(known: &[Known], scratch: &Path) -> (Vec<Program>, Vec<&'static str>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for &(name, file, variable, kind) in known {
        match locate(file, variable) {
            Some(path) => {
                let version = version(&path, kind, scratch);
                found.push(Program { name, kind, path, version });
            }
            None => missing.push(name),
        }
    }
    (found, missing)
}

/// A note of programs that were looked for, if there are any.
pub fn not_found(missing: &[impl AsRef<str>]) -> Option<String> {
    let names: Vec<&str> = missing.iter().map(AsRef::as_ref).collect();
    (!names.is_empty()).then(|| format!("not found: {}", names.join(", ")))
}

/// What measures one command.
///
/// # Errors
/// It was not built.
pub fn stopwatch() -> Result<PathBuf, &'static str> {
    locate("stopwatch", "HAFEN_STOPWATCH").ok_or("no program `stopwatch` next to this one")
}

/// What the environment names, else next to this program, else in PATH.
pub fn locate(file: &str, variable: &str) -> Option<PathBuf> {
    if let Some(named) = env::var_os(variable) {
        return Some(PathBuf::from(named)).filter(|p| p.is_file());
    }
    let here = env::current_exe().ok()?.parent()?.to_owned();
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = [here].into_iter().chain(env::split_paths(&path));
    folders.find_map(|f| Some(f.join(file)).filter(|p| p.is_file()))
}

fn version(program: &Path, kind: Kind, scratch: &Path) -> String {
    match kind {
        Kind::Floor => env!("CARGO_PKG_VERSION").into(),
        Kind::Runtime | Kind::Reference => ask_version(program, scratch),
    }
}

/// What `--version` says.
pub fn ask_version(program: &Path, scratch: &Path) -> String {
    let mut command = Command::new(program);
    // Without this crun makes /run/crun.
    command.arg("--version").env("XDG_RUNTIME_DIR", scratch).stdin(Stdio::null());
    let output = command.output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    first_version(&text).unwrap_or_else(|| "unknown".into())
}

/// The first word that begins with a digit: `crun version 1.8.1`.
fn first_version(text: &str) -> Option<String> {
    let mut words = text.split_whitespace().map(|w| w.trim_start_matches('v'));
    words.find(|w| w.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
}

pub(crate) fn words(list: &[&dyn AsRef<OsStr>]) -> Vec<OsString> {
    list.iter().map(|word| word.as_ref().to_owned()).collect()
}

/// A launch: `run` of the bundle, which ends when the container has ended and is gone.
pub fn launch(program: &Program, bundle: &Path, state: &Path, id: &str) -> Subject {
    let run = match program.kind {
        Kind::Floor => words(&[&bundle]),
        Kind::Runtime => words(&[&"--root", &state, &"run", &"--bundle", &bundle, &id]),
        Kind::Reference => words(&[&"run", &"--root", &state, &"--bundle", &bundle, &id]),
    };
    let delete = words(&[&"--root", &state, &"delete", &"--force", &id]);
    let rescue = match program.kind {
        Kind::Runtime => vec![Job::new(&program.path, delete)],
        Kind::Floor | Kind::Reference => vec![],
    };
    Subject {
        name: program.name.into(),
        before: vec![],
        measured: Job::new(&program.path, run),
        after: vec![],
        rescue,
        state: state.to_owned(),
        cover: None,
    }
}

/// `exec` of a short command in the container `id`, which runs.
pub fn exec(program: &Program, state: &Path, id: &str) -> Subject {
    Subject {
        name: program.name.into(),
        before: vec![],
        measured: Job::new(&program.path, words(&[&"--root", &state, &"exec", &id, &"/bin/true"])),
        after: vec![],
        rescue: vec![],
        state: state.to_owned(),
        cover: None,
    }
}

/// The commands of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Create,
    Start,
    Kill,
    Delete,
}

impl Phase {
    pub const ALL: [Self; 4] = [Self::Create, Self::Start, Self::Kill, Self::Delete];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Kill => "kill",
            Self::Delete => "delete",
        }
    }
}

/// Until the process that the file names has ended; whoever is its parent may not have waited for it.
const ENDED: &str = r#"read -r pid <"$1"
while [ -d "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status"; do sleep 0.005; done 2>/dev/null"#;

/// A container's life, of which one command is measured. The bundle's program is one that does not end by itself.
pub fn phase(program: &Program, phase: Phase, bundle: &Path, state: &Path, id: &str) -> Subject {
    let pid_file = state.with_extension("pid");
    let job = |command: &[&dyn AsRef<OsStr>]| {
        Job::new(&program.path, [words(&[&"--root", &state]), words(command)].concat())
    };
    let life = [
        (
            Some(Phase::Create),
            job(&[&"create", &"--bundle", &bundle, &"--pid-file", &pid_file, &id]),
        ),
        (Some(Phase::Start), job(&[&"start", &id])),
        (Some(Phase::Kill), job(&[&"kill", &id, &"KILL"])),
        (None, Job::shell(ENDED, &[&pid_file])),
        (Some(Phase::Delete), job(&[&"delete", &id])),
    ];
    let at = life.iter().position(|(of, _)| *of == Some(phase)).unwrap_or_default();
    let jobs = |part: &[(Option<Phase>, Job)]| part.iter().map(|(_, job)| job.clone()).collect();
    Subject {
        name: program.name.into(),
        before: jobs(&life[..at]),
        measured: life[at].1.clone(),
        after: jobs(&life[at + 1..]),
        rescue: vec![job(&[&"delete", &"--force", &id])],
        state: state.to_owned(),
        cover: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_runtimes_print_them() {
        assert_eq!(first_version("crun version 1.8.1\ncommit: f8a").as_deref(), Some("1.8.1"));
        assert_eq!(first_version("runc version 1.1.5+ds1").as_deref(), Some("1.1.5+ds1"));
        assert_eq!(first_version("tool v0.7.0").as_deref(), Some("0.7.0"));
        assert_eq!(first_version(""), None);
    }

    #[test]
    fn every_phase_is_in_a_whole_life() {
        let (path, version) = (PathBuf::from("/x/runc"), "1".to_owned());
        let program = Program { name: "runc", kind: Kind::Runtime, path, version };
        for (n, each) in Phase::ALL.into_iter().enumerate() {
            let subject = phase(&program, each, Path::new("/b"), Path::new("/s"), "id");
            assert_eq!(subject.measured.arguments[2], each.name());
            assert_eq!(subject.before.len() + subject.after.len(), Phase::ALL.len());
            assert_eq!(subject.before.len(), if each == Phase::Delete { 4 } else { n });
        }
    }
}
