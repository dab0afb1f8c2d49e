//! Calls of an OCI runtime's command line, each with a time limit.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{Bundle, Facts, patience, wait_until};

/// Most calls take some milliseconds; this is for a machine that is busy with something else.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// One runtime with one `--root`.
#[derive(Debug, Clone)]
pub struct Oci {
    program: PathBuf,
    root: PathBuf,
    scratch: PathBuf,
    env: Vec<(OsString, OsString)>,
    time_limit: Duration,
}

impl Oci {
    /// `scratch` takes the outputs of the calls.
    pub(crate) fn new(program: PathBuf, root: PathBuf, scratch: PathBuf) -> Self {
        Self { program, root, scratch, env: Vec::new(), time_limit: TIME_LIMIT }
    }

    /// The runtime's program file.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The folder given as `--root`. The runtime makes it.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The same state, another file as the runtime's program.
    #[must_use]
    pub fn with_program(&self, program: &Path) -> Self {
        Self { program: program.to_owned(), ..self.clone() }
    }

    /// A variable for all calls, such as `HAFEN_FAULT`.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Another time limit than 30 seconds (it is stretched by [`patience`]).
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// A call `PROGRAM --root ROOT WORDS..`, not yet made.
    pub fn command<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Call {
        let mut call = self.bare(["--root"]);
        call.words.push(self.root.clone().into());
        call.words.extend(words.into_iter().map(|w| w.as_ref().to_owned()));
        call
    }

    /// A call `PROGRAM WORDS..`, without `--root`, not yet made.
    pub fn bare<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Call {
        Call {
            program: self.program.clone(),
            words: words.into_iter().map(|w| w.as_ref().to_owned()).collect(),
            scratch: self.scratch.clone(),
            env: self.env.clone(),
            stdin: Vec::new(),
            folder: None,
            user: None,
            time_limit: self.time_limit,
        }
    }

    /// Makes the call `--root ROOT WORDS..`.
    pub fn call<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Output {
        self.command(words).output()
    }

    /// Begins the call `--root ROOT WORDS..` and goes on.
    pub fn spawn<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Running {
        self.command(words).spawn()
    }

    /// `run --bundle BUNDLE ID`.
    pub fn run(&self, id: &str, bundle: &Bundle) -> Output {
        self.call(["run".as_ref(), "--bundle".as_ref(), bundle.path().as_os_str(), id.as_ref()])
    }

    /// `run --bundle BUNDLE --report FILE ID`: the output, and the record, which is null when none was written.
    pub fn run_with_report(&self, id: &str, bundle: &Bundle) -> (Output, Value) {
        let report = self.scratch.join(format!("{id}.report"));
        let words: [&OsStr; 6] = [
            "run".as_ref(),
            "--bundle".as_ref(),
            bundle.path().as_os_str(),
            "--report".as_ref(),
            report.as_os_str(),
            id.as_ref(),
        ];
        let output = self.call(words);
        let record = fs::read(&report).ok().map_or(Value::Null, |bytes| {
            serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", report.display()))
        });
        (output, record)
    }

    /// Runs a bundle whose process prints [`Facts`], and reads them. Panics when the call fails.
    #[must_use]
    pub fn facts(&self, id: &str, bundle: &Bundle) -> Facts {
        self.run(id, bundle).ok().facts()
    }

    /// `create --bundle BUNDLE ID`.
    pub fn create(&self, id: &str, bundle: &Bundle) -> Output {
        self.call(["create".as_ref(), "--bundle".as_ref(), bundle.path().as_os_str(), id.as_ref()])
    }

    /// `start ID`.
    pub fn start(&self, id: &str) -> Output {
        self.call(["start", id])
    }

    /// `kill ID SIGNAL`.
    pub fn kill(&self, id: &str, signal: &str) -> Output {
        self.call(["kill", id, signal])
    }

    /// `delete ID`.
    pub fn delete(&self, id: &str) -> Output {
        self.call(["delete", id])
    }

    /// `delete --force ID`.
    pub fn delete_force(&self, id: &str) -> Output {
        self.call(["delete", "--force", id])
    }

    /// The document of `state ID`. Panics when the call fails.
    #[must_use]
    pub fn state(&self, id: &str) -> Value {
        self.call(["state", id]).ok().json()
    }

    /// The status in `state ID`, or `None` when there is no such container.
    #[must_use]
    pub fn status(&self, id: &str) -> Option<String> {
        let output = self.call(["state", id]);
        (output.exit == Some(0))
            .then(|| output.json()["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until `state ID` gives `status`. Panics after 10 seconds.
    pub fn await_status(&self, id: &str, status: &str) {
        let mut last = None;
        let found = wait_until(Duration::from_secs(10), || {
            last = self.status(id);
            (last.as_deref() == Some(status)).then_some(())
        });
        assert!(found.is_some(), "{id} did not become {status}, it is {last:?}");
    }

    /// The container process's id out of `state ID`. Panics when there is none.
    #[must_use]
    pub fn pid(&self, id: &str) -> i32 {
        let state = self.state(id);
        let pid = state["pid"].as_i64().unwrap_or_else(|| panic!("no pid in {state}"));
        i32::try_from(pid).expect("a pid fits")
    }
}

/// A call that is not yet made.
#[derive(Debug, Clone)]
#[must_use]
pub struct Call {
    program: PathBuf,
    words: Vec<OsString>,
    scratch: PathBuf,
    env: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    folder: Option<PathBuf>,
    user: Option<(u32, u32)>,
    time_limit: Duration,
}

impl Call {
    /// Any program at all, with the same limits and results.
    pub(crate) fn any(program: PathBuf, words: Vec<OsString>, scratch: PathBuf) -> Self {
        Self {
            program,
            words,
            scratch,
            env: Vec::new(),
            stdin: Vec::new(),
            folder: None,
            user: None,
            time_limit: TIME_LIMIT,
        }
    }

    /// A variable for this call.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// What the call reads from its standard input, which is otherwise empty.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// The working directory of the call.
    pub fn folder(mut self, path: impl Into<PathBuf>) -> Self {
        self.folder = Some(path.into());
        self
    }

    /// Makes the call as this user and group, without others.
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// Another time limit than 30 seconds (it is stretched by [`patience`]).
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Makes the call and waits for its end.
    pub fn output(self) -> Output {
        let limit = self.time_limit;
        self.spawn().wait_at_most(limit)
    }

    /// Begins the call and goes on. It is killed when the value is dropped before its end.
    pub fn spawn(self) -> Running {
        let said = self.to_string();
        // Files and not pipes: a container that is left behind would keep a pipe open and the reader waiting.
        let [stdin, stdout, stderr] = ["in", "out", "err"].map(|stream| self.stream(stream));
        let mut input = stdin.1;
        input
            .write_all(&self.stdin)
            .and_then(|()| input.rewind())
            .expect("fill the standard input");
        let mut command = self.command(&[]);
        command.stdin(input).stdout(Stdio::from(stdout.1)).stderr(Stdio::from(stderr.1));
        command.process_group(0);
        let child = command.spawn().unwrap_or_else(|e| panic!("{said}: {e}"));
        Running {
            child: Some(child),
            said,
            began: Instant::now(),
            stdout: stdout.0,
            stderr: stderr.0,
        }
    }

    /// Started by the words `before`, which become the program itself. It has no streams yet.
    pub(crate) fn command(&self, before: &[&str]) -> Command {
        let before = before.iter().map(|word| OsStr::new(*word));
        let mut words = before
            .chain([self.program.as_os_str()])
            .chain(self.words.iter().map(OsString::as_os_str));
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).envs(self.env.iter().map(|(k, v)| (k, v)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn stream(&self, name: &str) -> (PathBuf, File) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.scratch.join(format!("call-{number}.{name}"));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        (path.clone(), file.unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }
}

/// As it could be typed.
impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, value) in &self.env {
            write!(f, "{}={} ", name.display(), value.display())?;
        }
        write!(f, "{}", self.program.display())?;
        self.words.iter().try_for_each(|word| write!(f, " {}", word.display()))
    }
}

/// A call that goes on. Dropping it kills its process group.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    said: String,
    began: Instant,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Process id of the call itself (not of a container).
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.as_ref().map_or(0, |c| i32::try_from(c.id()).expect("a pid fits"))
    }

    /// What it has written to its standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has written to its standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Waits until the standard output holds `text`. Panics after 10 seconds, or when the call ends without it.
    pub fn await_text(&mut self, text: &str) {
        let found = wait_until(Duration::from_secs(10), || {
            let ended = self.has_ended();
            let found = self.stdout().contains(text);
            (found || ended).then_some(found)
        });
        let (said, stdout, stderr) = (&self.said, self.stdout(), self.stderr());
        assert!(
            found == Some(true),
            "{said}: never printed {text:?}; stdout: {stdout:?} stderr: {stderr:?}"
        );
    }

    /// Whether the call has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|c| c.try_wait().expect("wait for the call").is_some())
    }

    /// Sends a signal to the call itself.
    pub fn signal(&self, signal: Signal) {
        let _ = nix::sys::signal::kill(Pid::from_raw(self.pid()), signal);
    }

    /// Waits for the end, 30 seconds at most; then the call's process group is killed.
    pub fn wait(self) -> Output {
        self.wait_at_most(TIME_LIMIT)
    }

    /// Waits for the end with another limit.
    pub fn wait_at_most(mut self, limit: Duration) -> Output {
        let mut child = self.child.take().expect("a running call has its child");
        let status = wait_until(limit, || child.try_wait().expect("wait for the call"));
        if status.is_none() {
            end(&mut child);
        }
        Output {
            exit: status.and_then(|s| s.code()),
            signal: status.as_ref().and_then(ExitStatus::signal),
            timed_out: status.is_none(),
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
            wall: self.began.elapsed(),
            said: self.said.clone(),
            limit: patience(limit),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
    }
}

fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(None)) {
        let _ =
            killpg(Pid::from_raw(i32::try_from(child.id()).expect("a pid fits")), Signal::SIGKILL);
    }
    let _ = child.wait();
}

fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a call gave. The checks panic with everything that is known about the call, and give it back for more.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; `None` when a signal or the time limit ended it.
    pub exit: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the time limit ended it.
    pub timed_out: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub wall: Duration,
    said: String,
    limit: Duration,
}

impl Output {
    /// Checks that the exit code was 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// Checks the exit code.
    #[track_caller]
    pub fn code(self, wanted: i32) -> Self {
        assert!(self.exit == Some(wanted), "wanted exit code {wanted}: {self}");
        self
    }

    /// Checks that the call failed by itself with code 1 and exactly one line on standard error, and gives it.
    #[must_use]
    #[track_caller]
    pub fn error_line(&self) -> &str {
        self.error_line_of(1)
    }

    #[track_caller]
    fn error_line_of(&self, code: i32) -> &str {
        assert!(self.exit == Some(code), "wanted exit code {code}: {self}");
        let line = self.stderr.strip_suffix('\n').unwrap_or(&self.stderr);
        assert!(!line.is_empty() && !line.contains('\n'), "wanted one line on stderr: {self}");
        line
    }

    /// Checks that the call failed with one line on standard error that holds all the given texts.
    #[track_caller]
    pub fn error_with<'a>(&self, texts: impl IntoIterator<Item = &'a str>) {
        let line = self.error_line();
        for text in texts {
            assert!(line.contains(text), "wanted {text:?} in the error: {self}");
        }
    }

    /// The same with another exit code than 1.
    #[track_caller]
    pub fn failed_with<'a>(&self, code: i32, texts: impl IntoIterator<Item = &'a str>) {
        let line = self.error_line_of(code);
        for text in texts {
            assert!(line.contains(text), "wanted {text:?} in the error: {self}");
        }
    }

    /// Standard output as JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not JSON, {e}: {self}"))
    }

    /// Standard output as what `inside facts` prints.
    #[must_use]
    #[track_caller]
    pub fn facts(&self) -> Facts {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not facts, {e}: {self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = match (self.exit, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => format!("killed after {:?}", self.limit),
        };
        write!(
            f,
            "{}\n  {end}\n  stdout: {:?}\n  stderr: {:?}",
            self.said, self.stdout, self.stderr
        )
    }
}
