//! Several machines on this one: a network namespace for each, with a link to a switch in another one where the
//! coordinator is. The namespaces belong to processes, so nothing of them stays.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::agent::http;
use crate::{Agent, Answer, Program, Test, wait_until};

const READY: Duration = Duration::from_secs(20);
/// Of waits for what a cluster does.
const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 7800;
/// With TLS.
const SECURE: u16 = 7801;

/// A network of its own, for as long as its process lives.
#[derive(Debug)]
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]).stdin(Stdio::null());
        let space = Self(command.spawn().expect("unshare"));
        // Until it is another one than ours.
        let own = fs::read_link("/proc/self/ns/net").expect("a namespace");
        let other = || fs::read_link(space.path()).ok().filter(|other| *other != own);
        assert!(wait_until(READY, other).is_some(), "no namespace");
        space.run(&["ip", "link", "set", "lo", "up"]);
        space
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn within(&self) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net={}", self.path())]
    }

    #[track_caller]
    fn run(&self, words: &[&str]) {
        let [enter, space] = self.within();
        let output = Command::new(enter).arg(space).args(words).output().expect("nsenter");
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine.
#[derive(Debug)]
pub struct Machine<'t> {
    pub name: String,
    pub agent: Agent<'t>,
    space: Namespace,
    number: usize,
}

/// Where packets of a machine are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToIt,
    FromIt,
}

impl Machine<'_> {
    /// Packets in one direction are lost from now on, or not any more.
    pub fn lose(&self, way: Way, on: bool) {
        let (chain, side) = match way {
            Way::ToIt => ("INPUT", "-i"),
            Way::FromIt => ("OUTPUT", "-o"),
        };
        let action = if on { "-A" } else { "-D" };
        self.space.run(&["iptables", "-w", action, chain, side, "eth0", "-j", "DROP"]);
    }

    pub fn stop(&self) {
        kill(Pid::from_raw(self.agent.pid()), Signal::SIGSTOP).expect("stopped");
    }

    /// Somebody at the machine wants it to be empty, or not any more.
    pub fn empty(&self, on: bool) {
        let wish = if on { Signal::SIGUSR1 } else { Signal::SIGUSR2 };
        kill(Pid::from_raw(self.agent.pid()), wish).expect("wished");
    }

    pub fn go_on(&self) {
        kill(Pid::from_raw(self.agent.pid()), Signal::SIGCONT).expect("goes on");
    }
}

/// Machines, and the coordinator that directs them.
#[derive(Debug)]
pub struct Cluster<'t> {
    pub machines: Vec<Machine<'t>>,
    folder: PathBuf,
    lease: Duration,
    coordinator: Option<Child>,
    switch: Namespace,
}

impl<'t> Cluster<'t> {
    /// So many machines, named `m0` and so on, that the coordinator hears.
    ///
    /// # Panics
    /// They do not come up.
    #[must_use]
    #[track_caller]
    pub fn start(test: &'t Test, count: usize, lease: Duration) -> Self {
        Self::start_as(test, count, lease, |_, agent| agent)
    }

    /// As [`Self::start`], with something else about their agents: see [`secure`] and [`under_pressure`].
    ///
    /// # Panics
    /// They do not come up.
    #[must_use]
    #[track_caller]
    pub fn start_as(
        test: &'t Test,
        count: usize,
        lease: Duration,
        change: impl Fn(&Self, Agent<'t>) -> Agent<'t>,
    ) -> Self {
        let folder = test.dir().join("coordinator");
        fs::create_dir(&folder).expect("mkdir");
        let switch = Namespace::new();
        switch.run(&["ip", "link", "add", "switch", "type", "bridge"]);
        switch.run(&["ip", "address", "add", "10.88.0.1/24", "dev", "switch"]);
        switch.run(&["ip", "link", "set", "switch", "up"]);
        let mut cluster = Self { machines: Vec::new(), folder, lease, coordinator: None, switch };
        cluster.restart();
        for number in 0..count {
            let mut machine = cluster.machine(test, number);
            machine.agent = change(&cluster, machine.agent);
            cluster.machines.push(machine);
        }
        cluster.machines.iter_mut().for_each(|machine| machine.agent.restart());
        cluster.wait("all machines are heard", |view| {
            of(view, "nodes", |node| node["presence"] == "PRESENCE_HERE").len() == count
        });
        cluster
    }

    fn machine(&self, test: &'t Test, number: usize) -> Machine<'t> {
        let (name, space) = (format!("m{number}"), Namespace::new());
        let (link, pid) = (format!("link{number}"), space.0.id().to_string());
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", &pid];
        self.switch.run(&[&["ip", "link", "add", &link][..], &peer[..]].concat());
        self.switch.run(&["ip", "link", "set", &link, "master", "switch", "up"]);
        let address = format!("10.88.0.{}/24", 10 + number);
        space.run(&["ip", "address", "add", &address, "dev", "eth0"]);
        space.run(&["ip", "link", "set", "eth0", "up"]);
        let agent = Agent::new(test, &name)
            .within(space.within())
            .variable("HAFEN_NAME", &name)
            .variable("HAFEN_INSTANCE", format!("{}-{number}", test.id()))
            .variable("HAFEN_MASTER_URLS", format!("http://10.88.0.1:{PORT}"))
            .variable("HAFEN_MASTER_INSECURE", "true")
            .variable("HAFEN_MASTER_DRAIN_WITHIN", "2s")
            .variable("HAFEN_ATTRIBUTES", format!("rack=r{number}"));
        Machine { name, agent, space, number }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("coordinator.sock")
    }

    /// A person's certificate, its key and the authority, in a file.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    #[track_caller]
    pub fn person(&self, name: &str, number: u64) -> PathBuf {
        let program = Program::Hafen.find().unwrap_or_else(|e| panic!("{e}"));
        let mut command = Command::new(program);
        command.args(["coordinator", "cert", name, "--number", &number.to_string(), "--state"]);
        let output = command.arg(self.folder.join("state")).output().expect("hafen");
        assert!(output.status.success(), "{output:?}");
        let file = self.folder.join(format!("{name}-{number}.pem"));
        fs::write(&file, output.stdout).expect("written");
        file
    }

    /// `hafen` for somebody with such a file, where the coordinator is reached.
    ///
    /// # Panics
    /// It was not built.
    #[must_use]
    #[track_caller]
    pub fn hafen(&self, person: &Path) -> Command {
        let program = Program::Hafen.find().unwrap_or_else(|e| panic!("{e}"));
        let [enter, space] = self.switch.within();
        let mut command = Command::new(enter);
        command.arg(space).arg(program).stdin(Stdio::null());
        command.args(["--coordinator", &format!("https://10.88.0.1:{SECURE}")]);
        for flag in ["--tls-ca", "--tls-cert", "--tls-key"] {
            command.arg(flag).arg(person);
        }
        command
    }

    /// What the coordinator has logged.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Start the coordinator, where it went on before.
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    pub fn restart(&mut self) {
        assert!(self.coordinator.is_none(), "it runs");
        let program = Program::Hafen.find().unwrap_or_else(|e| panic!("{e}"));
        let [enter, space] = self.switch.within();
        let log = File::options().create(true).append(true).open(self.folder.join("log"));
        let log = log.expect("a log");
        let mut command = Command::new(enter);
        command.arg(space).arg(program).args(["coordinator", "--insecure", "--name", "test"]);
        command.args(["--listen", &format!("http://10.88.0.1:{PORT}")]);
        command.args(["--listen", &format!("https://10.88.0.1:{SECURE}")]);
        command.args(["--listen", &format!("unix://{}", self.socket().display())]);
        command.arg("--join-file").arg(self.folder.join("join"));
        command.args(["--lease", &format!("{}ms", self.lease.as_millis())]);
        command.arg("--state").arg(self.folder.join("state"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.coordinator = Some(command.spawn().expect("start hafen coordinator"));
        let up = wait_until(READY, || {
            let child = self.coordinator.as_mut()?;
            let ended = child.try_wait().expect("wait for the coordinator");
            assert!(ended.is_none(), "the coordinator has ended, {ended:?}: {}", self.said());
            http(&self.socket(), "GET", "/healthz", "").filter(|answer| answer.status == 200)
        });
        assert!(up.is_some(), "the coordinator does not answer: {}", self.said());
    }

    /// End the coordinator at once.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.coordinator.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The link of a machine is down, or up.
    pub fn cut(&self, machine: usize, on: bool) {
        let link = format!("link{}", self.machines[machine].number);
        self.switch.run(&["ip", "link", "set", &link, if on { "down" } else { "up" }]);
    }

    /// A request to the coordinator.
    ///
    /// # Panics
    /// There is no answer.
    #[must_use]
    #[track_caller]
    pub fn http(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        http(&self.socket(), method, path, &body)
            .unwrap_or_else(|| panic!("no answer to {method} {path}: {}", self.said()))
    }

    #[must_use]
    #[track_caller]
    pub fn view(&self) -> Value {
        self.http("GET", "/v1/cluster", &Value::Null).expect(200)
    }

    /// Look again and again until something is so.
    ///
    /// # Panics
    /// It never is.
    #[track_caller]
    pub fn wait(&self, what: &str, mut is_so: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = wait_until(SOON, || {
            last = self.view();
            is_so(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("never so: {what}: {last:#}\n{}", self.said()))
    }

    /// Take a job on.
    #[track_caller]
    pub fn submit(&self, job: &Value) -> Value {
        self.http("POST", "/v1/jobs", &serde_json::json!({ "job": job })).expect(201)
    }

    /// Wait until so many instances of a job are ready, and give them.
    #[track_caller]
    pub fn ready(&self, job: &str, count: usize) -> Vec<Value> {
        let mut found = Vec::new();
        self.wait(&format!("{count} of {job} are ready"), |view| {
            found = ready(view, job);
            found.len() == count
        });
        found
    }

    /// The machine of that name.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn number(&self, name: &Value) -> usize {
        let known = self.machines.iter().position(|machine| machine.name == *name);
        known.unwrap_or_else(|| panic!("no machine {name}"))
    }
}

impl Cluster<'_> {
    /// Stop all jobs, until no machine has anything of them.
    fn purge(&mut self) {
        let purge = serde_json::json!({ "purge": true });
        for job in of(&self.view(), "jobs", |_| true) {
            let name = job["name"].as_str().expect("a name");
            let _ = self.http("POST", &format!("/v1/jobs/{name}/stop"), &purge).expect(200);
        }
        for machine in &self.machines {
            let mut last = Value::Null;
            let empty = wait_until(SOON, || {
                last = machine.agent.http("GET", "/v1/tasks?all", "").expect(200);
                of(&last, "tasks", |_| true).is_empty().then_some(())
            });
            assert!(empty.is_some(), "{} has {last:#}\n{}", machine.name, machine.agent.said());
        }
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the coordinator said: {}", self.said());
            return self.kill9();
        }
        let outcome = crate::attempt(|| self.purge());
        // Before the agents, whom it would give new work.
        self.kill9();
        outcome.unwrap_or_else(|words| panic!("{words}\n{}", self.said()));
    }
}

/// In a mount namespace of its own, in which the kernel's numbers of pressure are in a folder.
#[must_use]
pub fn under_pressure<'t>(agent: Agent<'t>, folder: &Path) -> Agent<'t> {
    const COVER: &str = "mount -n --bind \"$0\" /proc/pressure && exec \"$@\"";
    let folder = folder.display().to_string();
    agent.also_within(["unshare", "--mount", "sh", "-c", COVER, &folder])
}

/// With a certificate that it gets for a token.
#[must_use]
pub fn secure<'t>(cluster: &Cluster<'t>, agent: Agent<'t>) -> Agent<'t> {
    let text = fs::read_to_string(cluster.folder.join("join")).expect("a token");
    let join: Value = serde_json::from_str(&text).expect("JSON");
    let word = |name: &str| join[name].as_str().expect("a word").to_owned();
    agent
        .variable("HAFEN_MASTER_URLS", format!("https://10.88.0.1:{SECURE}"))
        .variable("HAFEN_MASTER_TOKEN", word("token"))
        .variable("HAFEN_MASTER_AUTHORITY", word("authority"))
}

/// What of a list of the view is so.
pub fn of<'v>(view: &'v Value, list: &str, is_so: impl Fn(&Value) -> bool) -> Vec<&'v Value> {
    view[list].as_array().into_iter().flatten().filter(|one| is_so(one)).collect()
}

/// Instances of a job that are ready.
#[must_use]
pub fn ready(view: &Value, job: &str) -> Vec<Value> {
    let fits = |one: &Value| one["job"] == job && one["phase"] == "PHASE_READY";
    of(view, "instances", fits).into_iter().cloned().collect()
}

/// How often a line was written to a file.
#[must_use]
pub fn lines(path: &Path, line: &str) -> usize {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|other| *other == line).count()
}

/// Wait until so much time has passed since a moment.
pub fn until(since: Instant, after: Duration) {
    std::thread::sleep(after.saturating_sub(since.elapsed()));
}
