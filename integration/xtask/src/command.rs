//! Programs with a time limit, whose output is read while it appears.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A program in a process group of its own that gets SIGTERM after `limit` (whole seconds) and SIGKILL ten
/// seconds later, and SIGTERM when this program dies.
///
/// `env(1)`, `timeout(1)` and `setpriv(1)` are part of every Debian; doing the same here would need `unsafe`. What
/// left the process group, such as a container, is not reached: whoever starts one stops it.
pub(crate) fn limited(limit: Duration, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("env");
    let seconds = limit.as_secs().max(1).to_string();
    // A shell has what it starts in the background ignore SIGINT and SIGQUIT, and containers of others inherit that.
    command.args(["--default-signal", "setpriv", "--pdeathsig", "TERM"]);
    command.args(["timeout", "--kill-after", "10", &seconds]);
    command.arg(program).stdin(Stdio::null());
    command
}

/// How a [`limited`] program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With this exit code (128 and the signal's number when it was killed).
    Code(i32),
    /// At its time limit.
    TimedOut(Duration),
}

impl End {
    pub(crate) fn success(self) -> bool {
        self == Self::Code(0)
    }

    fn new(status: ExitStatus, started: Instant, limit: Duration) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        // 124 is how timeout(1) says it, 137 when SIGTERM was not enough; a program may give either by itself.
        let late = started.elapsed() >= limit && matches!(code, 124 | 137);
        if late { Self::TimedOut(limit) } else { Self::Code(code) }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::TimedOut(limit) => write!(f, "not done after {} s, stopped", limit.as_secs()),
        }
    }
}

/// Runs a command made by [`limited`] with the same `limit`.
pub(crate) fn run(limit: Duration, command: &mut Command) -> Result<End> {
    let started = Instant::now();
    let status = command.status().with_context(|| format!("run {}", line(command)))?;
    Ok(End::new(status, started, limit))
}

/// Like [`run`], and gives each line of the standard output to `each`.
pub(crate) fn read(
    limit: Duration,
    command: &mut Command,
    mut each: impl FnMut(&str),
) -> Result<End> {
    let started = Instant::now();
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("run {}", line(command)))?;
    let lines = child.stdout.take().map(lines).context("no pipe")?;
    let mut ended = None;
    // The pipe's end cannot be waited for alone: a process that was left behind may hold it open.
    loop {
        match lines.recv_timeout(Duration::from_millis(500)) {
            Ok(line) => each(&line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if ended.is_some() => break,
            Err(RecvTimeoutError::Timeout) => ended = child.try_wait().context("wait")?,
        }
    }
    let status = ended.map_or_else(|| child.wait(), Ok).context("wait")?;
    Ok(End::new(status, started, limit))
}

/// Lines as a thread reads them.
fn lines(pipe: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while pipe.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            if sender.send(line).is_err() {
                break;
            }
            bytes.clear();
        }
    });
    receiver
}

/// The command as a person would type it, without the words that limit it.
pub(crate) fn line(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let hidden = if words.first().is_some_and(|w| *w == "env") { 9 } else { 0 };
    let words: Vec<_> = words.iter().skip(hidden).map(|w| w.to_string_lossy()).collect();
    words.join(" ")
}

/// A program on `PATH` or in the folders of an administrator.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let folders = std::env::split_paths(&path).chain(extra);
    folders.map(|folder| folder.join(name)).find(|path| Path::is_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn code_and_lines_come_through() {
        let mut lines = Vec::new();
        let mut command = limited(LONG, "sh");
        command.args(["-c", "echo one; printf two; exit 7"]);
        let end = read(LONG, &mut command, |line| lines.push(line.to_owned())).unwrap();
        assert_eq!((end, lines), (End::Code(7), vec!["one".to_owned(), "two".to_owned()]));
    }

    #[test]
    fn a_hang_is_named_with_its_limit() {
        let limit = Duration::from_secs(1);
        let end = run(limit, limited(limit, "sleep").arg("30")).unwrap();
        assert_eq!(end, End::TimedOut(limit));
        assert_eq!(end.to_string(), "not done after 1 s, stopped");
    }

    #[test]
    fn an_output_held_open_is_not_waited_for() {
        let started = Instant::now();
        let mut command = limited(LONG, "sh");
        command.args(["-c", "setsid sleep 6 & echo out"]);
        let end = read(LONG, &mut command, |_| ()).unwrap();
        assert!(end.success() && started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_line_hides_the_limiting_words() {
        assert_eq!(line(limited(LONG, "cargo").args(["fmt", "--check"])), "cargo fmt --check");
    }
}
