use std::error::Error as _;
use std::path::PathBuf;

use hafen_rootfs::store::StoreError;
use hafen_spec::Problems;
use hafen_sys::CallError;

/// Why a command did not do what it was asked to.
///
/// The words of the variants about states follow runc where clients match them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", path.display())]
    Bundle { path: PathBuf, source: Problems },
    #[error("options")]
    Options(#[source] Problems),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Image(#[from] StoreError),
    /// A step of the plan failed in the container's first process.
    #[error("step {number}: {step}")]
    Step { number: usize, step: String, source: CallError },
    /// The same, worded as clients expect to read it.
    #[error("exec: {program:?}: {reason}")]
    Program { program: String, reason: String, found: bool },
    /// In runc's words as far as clients know them.
    #[error("error running {kind} hook #{index} {}: {reason}", path.display())]
    Hook { kind: &'static str, index: usize, path: PathBuf, reason: String },
    #[error("the container's first process was killed before it became {program:?}{hint}")]
    Vanished { program: String, hint: String },
    #[error("container with given ID already exists: {0}")]
    Exists(String),
    #[error("container {0:?} does not exist")]
    Unknown(String),
    #[error("container {0:?} is being created or deleted by another process")]
    Busy(String),
    #[error("cannot start a container that has stopped")]
    StartStopped,
    #[error("cannot start an already running container")]
    StartRunning,
    #[error("cannot start a container in the paused state")]
    StartPaused,
    /// For `exec`, which may be told to go on all the same.
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    ExecPaused,
    #[error("container not paused")]
    NotPaused,
    #[error("cannot exec in a stopped container")]
    ExecStopped,
    #[error("container not running")]
    NotRunning,
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped { id: String, status: &'static str },
    #[error("record of container {id:?} cannot be read: {reason}")]
    Record { id: String, reason: String },
    /// The first failure, after which the clean-up failed as well.
    #[error("{first} (and clean-up failed, `delete --force` tries again: {second})")]
    CleanUp { first: String, second: String },
    /// An update that failed half-way.
    #[error("{first}{}", remains(left))]
    Update { first: String, left: Vec<String> },
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// The whole story on one line: what failed, and what the kernel or the parser said.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            let words = plain(&cause.to_string());
            // A step says all about its call: what failed in it names none of its own.
            text = match (text.is_empty(), words.is_empty()) {
                (_, true) => text,
                (true, false) => words,
                (false, false) => format!("{text}: {words}"),
            };
            source = cause.source();
        }
        text.replace('\n', " ")
    }
}

fn remains(left: &[String]) -> String {
    if left.is_empty() {
        return " (the container is as it was before)".to_owned();
    }
    format!(" (the rest was undone, except that {})", left.join(", "))
}

/// "Invalid argument (os error 22)" says nothing more than "Invalid argument".
fn plain(text: &str) -> String {
    match text.rsplit_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text.to_owned(),
    }
}
