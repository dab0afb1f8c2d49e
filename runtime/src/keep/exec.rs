//! Programs that a keeper runs in its container for others.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hafen_spec::keep::Told;
use hafen_sys::pidfd::Ended;
use hafen_sys::{CallError, Context};

/// The same program; a path may be another one's by now.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// A program that somebody asked for.
#[derive(Debug)]
pub(crate) struct Exec {
    /// Of the client, and the client's own.
    pub(crate) client: u64,
    pub(crate) number: u64,
    /// The runtime that starts it, until it runs.
    starter: Option<i32>,
    pub(crate) pid: Option<i32>,
    /// Where the runtime writes down its pid.
    file: PathBuf,
}

/// What is asked for.
pub(crate) struct Wanted<'a> {
    pub(crate) root: &'a Path,
    pub(crate) folder: &'a Path,
    pub(crate) id: &'a str,
    pub(crate) process: &'a serde_json::Value,
    pub(crate) console: Option<&'a Path>,
    /// stdin, stdout, stderr.
    pub(crate) fds: Vec<OwnedFd>,
}

impl Exec {
    /// Begin to run a program: a runtime of its own does it, and goes.
    ///
    /// # Errors
    /// Names the file or the call.
    pub(crate) fn begin(client: u64, number: u64, wanted: &Wanted<'_>) -> Result<Self, CallError> {
        let name = format!("exec-{client}-{number}");
        let (document, file) =
            (wanted.folder.join(format!("{name}.json")), wanted.folder.join(format!("{name}.pid")));
        fs::write(&document, wanted.process.to_string())
            .call(|| format!("write {}", document.display()))?;
        let begun = start(wanted, &document, &file);
        if begun.is_err() {
            let _ = fs::remove_file(&document);
        }
        Ok(Self { client, number, starter: Some(begun?), pid: None, file })
    }

    /// A child has ended: is it of this program? `None`: it is not. What is to be told otherwise, and whether that is
    /// the end of it.
    pub(crate) fn ended(&mut self, pid: i32, end: Ended) -> Option<(Told, bool)> {
        let number = self.number;
        let over = Told::ExecEnded { number, code: end.code, signal: end.signal };
        if self.pid == Some(pid) {
            return Some((over, true));
        }
        if self.starter != Some(pid) {
            return None;
        }
        self.starter = None;
        let text = fs::read_to_string(&self.file).ok().filter(|_| end.code == Some(0));
        self.remove_files();
        self.pid = text.and_then(|text| text.trim().parse().ok());
        Some(match self.pid {
            Some(pid) => (Told::ExecStarted { number, pid }, false),
            None => (over, true),
        })
    }

    fn remove_files(&self) {
        // What stays goes with the folder.
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_file(self.file.with_extension("json"));
    }
}

fn start(wanted: &Wanted<'_>, document: &Path, file: &Path) -> Result<i32, CallError> {
    let mut command = Command::new(OWN_PROGRAM);
    // As ps(1) shows it.
    command.arg0("hafen-oci").arg("--root").arg(wanted.root).args([
        "exec",
        "--detach",
        "--pid-file",
    ]);
    command.arg(file).arg("--process").arg(document);
    let mut fds = wanted.fds.iter();
    let mut standard = || match fds.next() {
        Some(fd) => fd.try_clone().map(Stdio::from),
        None => Ok(Stdio::null()),
    };
    let clone = |e: std::io::Result<Stdio>| e.call(|| "dup".to_owned());
    command.stdin(clone(standard())?).stdout(clone(standard())?).stderr(clone(standard())?);
    if let Some(socket) = wanted.console {
        command.arg("--console-socket").arg(socket);
    }
    command.arg(wanted.id);
    let child = command.spawn().call(|| "run hafen-oci exec".to_owned())?;
    Ok(i32::try_from(child.id()).unwrap_or(-1))
}
