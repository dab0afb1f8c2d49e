//! An agent of a test's own: its folders, its instance, its process, and words with it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::disk::Disk;
use crate::{Call, Output, Program, Test, cgroup, wait_until};

const READY: Duration = Duration::from_secs(20);
/// Of a wait for what a task does.
const TASK: Duration = Duration::from_secs(30);

/// `hafen agent` with all its folders in one folder of the test's. When it is dropped everything is ended, and what is
/// left of it is a failure.
#[derive(Debug)]
pub struct Agent<'t> {
    test: &'t Test,
    folder: PathBuf,
    instance: String,
    variables: Vec<(String, String)>,
    /// What its program is started by.
    before: Vec<String>,
    process: Option<Daemon>,
    /// The test has said that it looks after what is left.
    is_over: bool,
    /// Of what it writes down, if that has one of its own.
    state: Option<Disk>,
    run: Disk,
}

/// An answer over HTTP.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// # Panics
    /// It has another status.
    #[must_use]
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }

    /// # Panics
    /// It is no JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("no JSON, {e}: {self:?}"))
    }
}

impl<'t> Agent<'t> {
    /// An agent that answers.
    #[must_use]
    pub fn start(test: &'t Test) -> Self {
        let mut agent = Self::new(test, "agent");
        agent.restart();
        agent
    }

    /// Folders for one, and no process yet. Its run folder is a tmpfs, as secrets want it.
    ///
    /// # Panics
    /// There is no place for it.
    #[must_use]
    pub fn new(test: &'t Test, name: &str) -> Self {
        let folder = test.dir().join(name);
        let run = Disk::mount(&folder.join("run"), "mode=0755,size=16m");
        Self {
            test,
            folder,
            instance: test.id(),
            variables: Vec::new(),
            before: Vec::new(),
            process: None,
            is_over: false,
            state: None,
            run,
        }
    }

    /// What it writes down is on a file system of its own, with these options of a tmpfs.
    #[must_use]
    pub fn state_on_a_disk(mut self, options: &str) -> Self {
        self.state = Some(Disk::mount(&self.state(), options));
        self
    }

    /// # Panics
    /// Its state has none of its own.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        self.state.as_ref().expect("a disk of its own")
    }

    /// Of what does not outlive a boot.
    #[must_use]
    pub const fn run_disk(&self) -> &Disk {
        &self.run
    }

    /// A key of its configuration, as `HAFEN_NAME`.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Started by these words, such as `unshare --net`, which become the program itself.
    #[must_use]
    pub fn within<I: IntoIterator<Item: Into<String>>>(mut self, words: I) -> Self {
        self.before = words.into_iter().map(Into::into).collect();
        self
    }

    /// The same, after what it runs in already.
    #[must_use]
    pub fn also_within<I: IntoIterator<Item: Into<String>>>(mut self, words: I) -> Self {
        self.before.extend(words.into_iter().map(Into::into));
        self
    }

    /// Take a variable back, for the next start.
    pub fn forget_variable(&mut self, name: &str) {
        self.variables.retain(|(known, _)| known != name);
    }

    /// It was never to run: its folders go.
    pub fn is_done(mut self) {
        self.clear();
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The folder of what does not outlive a boot.
    #[must_use]
    pub fn run_folder(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// What is written down of a task.
    #[must_use]
    pub fn task_folder(&self, id: &str) -> PathBuf {
        self.state().join("agent/tasks").join(id)
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_folder().join("agent.sock")
    }

    /// What it has logged.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// # Panics
    /// It does not run.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.as_ref().expect("the agent runs").pid()
    }

    fn environment(&self) -> Vec<(String, String)> {
        let own = |name: &str| self.folder.join(name).display().to_string();
        let program = |program: Program| {
            program.find().unwrap_or_else(|e| panic!("{e}")).display().to_string()
        };
        let mut all = vec![
            ("HAFEN_STATE".to_owned(), own("state")),
            ("HAFEN_RUN".to_owned(), own("run")),
            ("HAFEN_SOCKET".to_owned(), self.socket().display().to_string()),
            ("HAFEN_IMAGES".to_owned(), self.test.images().display().to_string()),
            ("HAFEN_VOLUMES".to_owned(), own("volumes")),
            ("HAFEN_RUNTIME".to_owned(), program(Program::Oci)),
            ("HAFEN_INSTANCE".to_owned(), self.instance.clone()),
            ("HAFEN_NAME".to_owned(), "testnode".to_owned()),
        ];
        for (name, value) in &self.variables {
            all.retain(|(known, _)| known != name);
            all.push((name.clone(), value.clone()));
        }
        all
    }

    fn daemon(&self) -> Daemon {
        let program = Program::Hafen.find().unwrap_or_else(|e| panic!("{e}"));
        let words = self.before.iter().map(OsString::from).chain([program.into(), "agent".into()]);
        let variables = self.environment().into_iter();
        variables.fold(Daemon::new(words, self.log()), |daemon, (name, value)| {
            daemon.variable(&name, value)
        })
    }

    /// Begin, and do not wait until it answers.
    ///
    /// # Panics
    /// It runs already.
    pub fn begin(&mut self) {
        assert!(self.process.is_none(), "the agent runs already");
        let mut daemon = self.daemon();
        daemon.begin();
        self.process = Some(daemon);
    }

    /// Begin, and wait until it answers.
    ///
    /// # Panics
    /// It does not come up in time.
    #[track_caller]
    pub fn restart(&mut self) {
        self.begin();
        self.answers();
    }

    #[track_caller]
    fn answers(&mut self) {
        let socket = self.socket();
        let daemon = self.process.as_mut().expect("the agent runs");
        daemon.answers(READY, |_| healthy(&socket));
    }

    /// Wait until it answers. Where it has ended by itself it is started again, as its supervisor would.
    ///
    /// # Panics
    /// It does not come up in time.
    #[track_caller]
    pub fn revive(&mut self) {
        if self.process.as_mut().and_then(Daemon::ended).is_some() {
            self.process = None;
            return self.restart();
        }
        self.answers();
    }

    /// `hafen agent` that is expected to end by itself.
    #[must_use]
    pub fn fails(&self) -> Output {
        let call = self
            .environment()
            .into_iter()
            .fold(self.call(["agent"]), |call, (name, value)| call.env(name, value));
        call.output()
    }

    /// End the process at once. What it keeps goes on.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill9(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// Ask the process to end. What it keeps goes on.
    ///
    /// # Panics
    /// It does not run, or does not end.
    pub fn terminate(&mut self) {
        self.end(Signal::SIGTERM);
    }

    fn end(&mut self, signal: Signal) {
        self.process.take().expect("the agent runs").end(signal, READY);
    }

    /// A call of `hafen` that is for this agent.
    pub fn call<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Call {
        let program = Program::Hafen.find().unwrap_or_else(|e| panic!("{e}"));
        let words = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let call = Call::any(program, words, self.test.dir().join("calls"));
        call.env("HAFEN_HOST", format!("unix://{}", self.socket().display()))
            .folder(self.test.dir())
    }

    /// Make the call, and wait for its end.
    pub fn hafen<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Output {
        self.call(words).output()
    }

    /// The same, and read what it prints.
    #[track_caller]
    pub fn json<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Value {
        self.hafen(words).ok().json()
    }

    /// A request over HTTP.
    ///
    /// # Panics
    /// There is no answer.
    #[must_use]
    #[track_caller]
    pub fn http(&self, method: &str, path: &str, body: &str) -> Answer {
        self.try_http(method, path, body)
            .unwrap_or_else(|| panic!("no answer to {method} {path}: {}", self.said()))
    }

    /// `None`: nobody answers, or not to the end.
    #[must_use]
    pub fn try_http(&self, method: &str, path: &str, body: &str) -> Option<Answer> {
        http(&self.socket(), method, path, body)
    }

    /// Run a task of a specification, and give what is said of it.
    #[track_caller]
    pub fn run(&self, spec: &Value) -> Value {
        self.http("POST", "/v1/tasks", &spec.to_string()).expect(201)
    }

    /// What is known of a task.
    #[must_use]
    #[track_caller]
    pub fn task(&self, id: &str) -> Value {
        self.http("GET", &format!("/v1/tasks/{id}"), "").expect(200)
    }

    /// Wait until it has ended, and give what is said of it.
    #[track_caller]
    pub fn wait(&self, id: &str) -> Value {
        self.wait_body(id, &json!({ "timeout": "30s" }))
    }

    /// Wait until it is in a state, such as `STATE_RUNNING`, or has ended.
    ///
    /// # Panics
    /// It is in another one.
    #[track_caller]
    pub fn wait_state(&self, id: &str, state: &str) -> Value {
        let task = self.wait_body(id, &json!({ "states": [state], "timeout": "30s" }));
        assert_eq!(task["state"], state, "{task:#}\n{}", self.said());
        task
    }

    #[track_caller]
    fn wait_body(&self, id: &str, body: &Value) -> Value {
        self.http("POST", &format!("/v1/tasks/{id}/wait"), &body.to_string()).expect(200)
    }

    /// Ask of a task again and again until something is so.
    ///
    /// # Panics
    /// It never is.
    #[track_caller]
    pub fn wait_for(&self, id: &str, what: &str, mut is_so: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = wait_until(TASK, || {
            last = self.task(id);
            is_so(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("{id} never {what}: {last:#}\n{}", self.said()))
    }

    /// What it has written, both streams.
    #[must_use]
    #[track_caller]
    pub fn logs(&self, id: &str) -> String {
        let output = self.hafen(["logs", id]).ok();
        output.stdout + &output.stderr
    }

    /// Kernel folder of a task's cgroup that has `controller`.
    ///
    /// # Panics
    /// It does not run.
    #[must_use]
    #[track_caller]
    pub fn cgroup(&self, id: &str, controller: &str) -> PathBuf {
        let pid = self.task(id)["pid"].as_i64().expect("a pid");
        cgroup::folder(i32::try_from(pid).expect("a pid fits"), controller)
    }

    /// Processes that keep containers of this agent: their pids.
    #[must_use]
    pub fn keepers(&self) -> Vec<i32> {
        let state = self.state().display().to_string();
        processes(|words| words.contains("\0keep\0") && words.contains(&state))
    }

    /// Those of one task, of whichever attempt.
    #[must_use]
    pub fn keepers_of(&self, id: &str) -> Vec<i32> {
        let folder = format!("{}/", self.task_folder(id).display());
        processes(|words| words.contains("\0keep\0") && words.contains(&folder))
    }

    /// Processes of the runtime that do something for this agent, and keep nothing.
    #[must_use]
    pub fn runtimes(&self) -> Vec<i32> {
        let root = format!("\0{}\0", self.run_folder().join("oci").display());
        processes(|words| !words.contains("\0keep\0") && words.contains(&root))
    }

    /// The keeper of a task.
    ///
    /// # Panics
    /// It has none.
    #[must_use]
    #[track_caller]
    pub fn keeper(&self, id: &str) -> i32 {
        let task = self.task(id);
        let folder = self.task_folder(id).join(task["attempt"].to_string());
        let named = format!("--dir={}\0", folder.display());
        let spaced = format!("--dir\0{}\0", folder.display());
        let found = processes(|words| {
            words.contains("\0keep\0") && (words.contains(&named) || words.contains(&spaced))
        });
        found.first().copied().unwrap_or_else(|| panic!("no keeper of {id}: {task:#}"))
    }

    /// End and forget all tasks and pods.
    #[track_caller]
    pub fn remove_all(&self) {
        for pod in
            self.http("GET", "/v1/pods", "").expect(200)["pods"].as_array().into_iter().flatten()
        {
            let id = pod["id"].as_str().expect("an id");
            let _ = self.http("DELETE", &format!("/v1/pods/{id}?force"), "").expect(200);
        }
        let tasks = self.http("GET", "/v1/tasks?all", "").expect(200);
        let ids = tasks["tasks"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|task| task["id"].as_str().expect("an id"));
        // All at once: some wait for their grace.
        let ids: Vec<String> = ids.map(str::to_owned).collect();
        std::thread::scope(|scope| {
            for some in ids.chunks(ids.len().div_ceil(8).max(1)) {
                scope.spawn(move || {
                    for id in some {
                        let _ =
                            self.http("DELETE", &format!("/v1/tasks/{id}?force"), "").expect(200);
                    }
                });
            }
        });
    }

    /// What there should not be any more: containers, sandboxes, records, keepers, cgroups.
    fn left(&self) -> Vec<String> {
        let names = |folder: PathBuf| -> Vec<String> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries
                .map(|e| e.path().display().to_string())
                .filter(|p| !p.ends_with("@seccomp"))
                .collect()
        };
        let look = || {
            let mut left = names(self.run_folder().join("oci"));
            left.extend(names(self.run_folder().join("sandboxes")));
            left.extend(names(self.state().join("agent/tasks")));
            left.extend(names(self.state().join("agent/pods")));
            left.extend(self.keepers().iter().map(|pid| format!("keeper {pid}")));
            left
        };
        // The keeper of a container goes a moment after its container.
        wait_until(Duration::from_secs(5), || look().is_empty().then_some(()))
            .map_or_else(look, |()| Vec::new())
    }

    /// As when its machine loses power: everything of it ends at once. What is on its disk stays.
    pub fn die(&mut self) {
        drop(self.process.take());
        // First who would write down how the others ended.
        for pid in self.keepers() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.release_all();
    }

    /// Whatever became of the test: nothing is to be in the way of the next one.
    fn clear(&mut self) {
        self.is_over = true;
        self.die();
        for mount in crate::host::mounts_below(&self.folder) {
            let _ = umount2(&mount, MntFlags::MNT_DETACH);
        }
    }

    fn release_all(&self) {
        let oci = Program::Oci.find().unwrap_or_else(|e| panic!("{e}"));
        let root = self.run_folder().join("oci");
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name != "@seccomp" {
                let mut delete = Command::new(&oci);
                delete.arg("--root").arg(&root).args(["delete", "--force"]).arg(&name);
                let _ = delete
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
            }
        }
    }
}

/// Processes with such words (proc_pid_cmdline(5)).
pub(crate) fn processes(are_such: impl Fn(&str) -> bool) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        are_such(&String::from_utf8_lossy(&words))
    })
    .collect()
}

/// Whoever listens there says that all is well.
pub(crate) fn healthy(socket: &Path) -> Option<Answer> {
    http(socket, "GET", "/healthz", "").filter(|answer| answer.status == 200)
}

/// A request over HTTP to whoever listens on a socket. `None`: nobody answers, or not to the end.
pub(crate) fn http(socket: &Path, method: &str, path: &str, body: &str) -> Option<Answer> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(crate::patience(TASK * 2))).ok()?;
    let length = body.len();
    // Who refuses a body does not read all of it, and says why.
    let _ = write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let mut all = Vec::new();
    // And who goes while the body is still sent breaks the connection, behind the answer.
    let _ = stream.read_to_end(&mut all);
    answer(&all)
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if std::thread::panicking() {
            eprintln!("the agent said: {}", self.said());
            return self.clear();
        }
        // What is left is to be known, and cleared, also where this fails.
        let outcome = crate::attempt(|| {
            if self.process.is_none() {
                self.restart();
            }
            self.remove_all();
            // What has gone is removed a moment later.
            let _ = self.left();
            self.terminate();
        });
        let left = self.left();
        self.clear();
        outcome.unwrap_or_else(|words| panic!("{words}"));
        assert!(left.is_empty(), "left by the agent: {left:#?}\n{}", self.said());
    }
}

/// Head and body, which may come in pieces (RFC 9112, section 7.1).
fn answer(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let rest = &bytes[end + 4..];
    let lower = head.to_ascii_lowercase();
    let field = |name: &str| lower.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let body = match (field("transfer-encoding:"), field("content-length:")) {
        (Some("chunked"), _) => pieces(rest)?,
        (_, Some(length)) => rest.get(..length.parse().ok()?)?.to_vec(),
        _ => rest.to_vec(),
    };
    Some(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() })
}

fn pieces(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let length =
            usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?.trim(), 16).ok()?;
        rest = &rest[end + 2..];
        if length == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(rest.get(..length)?);
        rest = rest.get(length + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::answer;

    #[test]
    fn a_body_may_come_in_pieces() {
        let whole = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("an answer");
        assert_eq!((whole.status, whole.body.as_str()), (200, "ok"));
        let text = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        let pieces = answer(text).expect("an answer");
        assert_eq!((pieces.status, pieces.body.as_str()), (404, "abcd"));
        assert!(answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab").is_none());
        assert!(answer(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab").is_none());
    }
}
