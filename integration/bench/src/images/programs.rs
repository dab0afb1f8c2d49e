//! The programs that handle images, and how each is told what to do.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::layout::{Made, TAG};
use super::says;
use crate::measure::{Job, Subject};
use crate::programs::{ask_version, locate, words};

/// What ends with a root file system that a container can be started on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// From a registry.
    Pull,
    /// From a layout in a folder, which umoci takes as it is.
    Folder,
    /// From the tar of a layout.
    Import,
}

impl Verb {
    pub const ALL: [Self; 3] = [Self::Pull, Self::Folder, Self::Import];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Folder => "folder",
            Self::Import => "import",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hafen,
    /// `umoci unpack` writes down hashes of all files for a later `umoci repack`.
    Umoci,
    /// `umoci raw unpack` does not.
    UmociRaw,
    Podman,
}

pub const OURS: &str = "hafen";
pub const PODMAN: &str = "podman";

const KNOWN: [(&str, Kind); 4] = [
    (OURS, Kind::Hafen),
    ("skopeo+umoci", Kind::Umoci),
    ("skopeo+umoci raw", Kind::UmociRaw),
    (PODMAN, Kind::Podman),
];

#[derive(Debug, Clone)]
pub struct Program {
    /// Of the table's rows.
    pub name: &'static str,
    pub version: String,
    kind: Kind,
    path: PathBuf,
}

/// Those that are here, and the names of those that are not.
pub fn find(scratch: &Path) -> (Vec<Program>, Vec<&'static str>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (name, kind) in KNOWN {
        match program(name, kind, scratch) {
            Some(program) => found.push(program),
            None => missing.push(name),
        }
    }
    (found, missing)
}

fn program(name: &'static str, kind: Kind, scratch: &Path) -> Option<Program> {
    let (path, version) = match kind {
        Kind::Hafen => locate("hafen", "HAFEN").map(|p| (p.clone(), ask_version(&p, scratch)))?,
        Kind::Podman => {
            locate("podman", "PODMAN").map(|p| (p.clone(), ask_version(&p, scratch)))?
        }
        Kind::Umoci | Kind::UmociRaw => {
            let programs = [locate("skopeo", "SKOPEO")?, locate("umoci", "UMOCI")?];
            let versions = programs.map(|p| ask_version(&p, scratch));
            (PathBuf::from("/bin/sh"), versions.join(", "))
        }
    };
    Some(Program { name, version, kind, path })
}

/// Where everything is that a run of a program reads and writes.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// What the program makes.
    pub store: &'a Path,
    /// For files that it wants for a moment.
    pub scratch: &'a Path,
    /// An empty file. Covered by itself, it gives the program a mount namespace of its own.
    pub empty: &'a Path,
}

/// `verb` on a fresh store, which is removed again: at once, as most of it need not be written to the disk then.
/// What another program left to be written is on the disk before.
pub fn subject(
    program: &Program,
    verb: Verb,
    made: &Made,
    registry: &str,
    place: Place<'_>,
) -> Subject {
    // Podman leaves its store mounted on itself.
    let cover = (program.kind == Kind::Podman).then(|| (place.empty.into(), place.empty.into()));
    Subject {
        name: program.name.into(),
        before: vec![fresh(place.store)],
        measured: measured(program, verb, made, registry, place),
        after: vec![Job::shell(r#"rm -rf -- "$1""#, &[&place.store])],
        rescue: vec![],
        state: place.store.to_owned(),
        cover,
    }
}

const SHELL: &str = "/bin/sh";

fn fresh(store: &Path) -> Job {
    Job::shell(r#"rm -rf -- "$1" && mkdir -- "$1" && sync -f -- "$1""#, &[&store])
}

fn measured(program: &Program, verb: Verb, made: &Made, image: &str, place: Place<'_>) -> Job {
    match program.kind {
        Kind::Hafen => hafen(&program.path, verb, made, image, place.store),
        Kind::Umoci => umoci("umoci unpack", verb, made, image, place),
        Kind::UmociRaw => umoci("umoci raw unpack", verb, made, image, place),
        Kind::Podman => {
            let tls = (verb == Verb::Pull).then_some("--tls-verify=false");
            let mut arguments = podman(&program.path, place);
            arguments.extend(words(&[&"pull", &"--quiet"]));
            arguments.extend(tls.map(OsString::from));
            arguments.push(source(verb, made, image).into());
            Job::new(Path::new(ENV), arguments)
        }
    }
}

/// The name that an imported image has in our store.
pub fn imported(made: &Made) -> String {
    format!("localhost/{}:{TAG}", made.name)
}

fn hafen(program: &Path, verb: Verb, made: &Made, image: &str, store: &Path) -> Job {
    let mut arguments = words(&[&"--images", &store, &"image"]);
    let from = if verb == Verb::Folder { &made.layout } else { &made.archive };
    arguments.extend(match verb {
        Verb::Pull => {
            let host = image.split('/').next().unwrap_or(image);
            words(&[&"pull", &"--plain-http", &host, &image])
        }
        Verb::Folder | Verb::Import => words(&[&"import", &"--name", &imported(made), from]),
    });
    Job::new(program, arguments)
}

/// Two commands; of a layout in a folder umoci needs no copy.
fn umoci(unpack: &str, verb: Verb, made: &Made, image: &str, place: Place<'_>) -> Job {
    let copy = r#"skopeo --insecure-policy copy -q $3 "$2" "oci:$1/layout:made" && "#;
    let (copy, layout) = match verb {
        Verb::Folder => ("", r#""$2""#),
        Verb::Pull | Verb::Import => (copy, r#""$1/layout:made""#),
    };
    let script = format!(r#"{copy}{unpack} --image {layout} "$1/made""#);
    let from = match verb {
        Verb::Folder => format!("{}:{TAG}", made.layout.display()),
        Verb::Pull | Verb::Import => source(verb, made, image),
    };
    let tls = if verb == Verb::Pull { "--src-tls-verify=false" } else { "" };
    let mut arguments = temporary(place.scratch);
    arguments.extend(words(&[&SHELL, &"-c", &script, &SHELL, &place.store, &from, &tls]));
    Job::new(Path::new(ENV), arguments)
}

/// As skopeo and Podman name it.
fn source(verb: Verb, made: &Made, image: &str) -> String {
    match verb {
        Verb::Pull => format!("docker://{image}"),
        Verb::Folder => format!("oci:{}:{TAG}", made.layout.display()),
        Verb::Import => format!("oci-archive:{}:{TAG}", made.archive.display()),
    }
}

const ENV: &str = "/usr/bin/env";

fn temporary(scratch: &Path) -> Vec<OsString> {
    let mut word = OsString::from("TMPDIR=");
    word.push(scratch);
    vec![word]
}

/// Arguments of env(1): Podman with all that it keeps below the store.
fn podman(program: &Path, place: Place<'_>) -> Vec<OsString> {
    let [root, run, tmp] = ["root", "run", "tmp"].map(|name| place.store.join(name));
    let mut arguments = temporary(place.scratch);
    arguments.extend(words(&[&program, &"--root", &root, &"--runroot", &run, &"--tmpdir", &tmp]));
    arguments.extend(words(&[&"--storage-driver", &"overlay", &"--events-backend", &"none"]));
    arguments
}

/// A second start: `/bin/true` on the root file system that the words name.
pub fn start(
    name: &str,
    runtime: &Path,
    state: &Path,
    root: &[&dyn AsRef<std::ffi::OsStr>],
) -> Subject {
    let id = format!("hafen-bench-{}", std::process::id());
    let mut run = words(&[&"--root", &state, &"run", &"--id", &id]);
    run.extend(words(root));
    run.extend(words(&[&"--", &"/bin/true"]));
    Subject {
        name: name.to_owned(),
        before: vec![],
        measured: Job::new(runtime, run),
        after: vec![],
        rescue: vec![Job::new(runtime, words(&[&"--root", &state, &"delete", &"--force", &id]))],
        state: state.to_owned(),
        cover: None,
    }
}

/// Blocks that are allocated below a folder, in bytes; a file of several names counts once.
pub fn allocated(folder: &Path) -> io::Result<u64> {
    let (mut sum, mut linked) = (0, std::collections::BTreeSet::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(says("read", &folder))? {
            let (entry, call) = (entry?, says("stat in", &folder));
            let meta = entry.metadata().map_err(call)?;
            if meta.is_dir() {
                folders.push(entry.path());
            }
            if meta.is_dir() || meta.nlink() == 1 || linked.insert((meta.dev(), meta.ino())) {
                sum += meta.blocks() * 512;
            }
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_two_names_is_counted_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        let empty = allocated(folder.path()).unwrap();
        let file = folder.path().join("a/file");
        fs::write(&file, vec![1; 100_000]).unwrap();
        nix::unistd::sync();
        let one = allocated(folder.path()).unwrap();
        assert!(one >= empty + 100_000, "{one}");
        fs::hard_link(&file, folder.path().join("b")).unwrap();
        assert_eq!(allocated(folder.path()).unwrap(), one);
    }
}
