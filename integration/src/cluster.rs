//! Several machines on this one: a network namespace for each, with a link to a switch in another one where the
//! coordinator is. The namespaces belong to processes, so nothing of them stays.

use std::ffi::OsString;
use std::fs::{self, File};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::agent::{healthy, http};
use crate::daemon::Daemon;
use crate::disk::Disk;
use crate::person::{Person, SOON, of};
use crate::{Agent, Program, Test, wait_until};

const READY: Duration = Duration::from_secs(20);
/// Of the first coordinator, and of the first member of etcd, with its peers behind.
const PORT: u16 = 7800;
const SECURE_PORT: u16 = 8800;
const ETCD: u16 = 2379;

/// A network of its own, for as long as its process lives.
#[derive(Debug)]
pub struct Namespace(Child);

impl Namespace {
    /// # Panics
    /// There is none to be had.
    #[must_use]
    pub fn new() -> Self {
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

    /// Do something in there, by a thread of its own.
    ///
    /// # Panics
    /// As `act` does.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).expect("a namespace");
        let enter = || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(file.as_fd(), kind).expect("setns");
            act()
        };
        std::thread::scope(|scope| scope.spawn(enter).join()).expect("no panic")
    }

    /// What a program is started by, to be in there.
    #[must_use]
    pub fn within(&self) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net={}", self.path())]
    }

    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn run(&self, words: &[&str]) {
        let [enter, space] = self.within();
        let output = Command::new(enter).arg(space).args(words).output().expect("nsenter");
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
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
    pub space: Namespace,
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

/// What a cluster is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub machines: usize,
    pub lease: Duration,
    pub coordinators: usize,
    /// Of etcd; with none the coordinator has a file of its own.
    pub members: usize,
    /// Coordinators and agents keep what they write down on disks of their own, with these options of a tmpfs.
    pub disks: Option<&'static str>,
    /// What coordinators are started by, such as `prlimit`.
    pub before: &'static [&'static str],
}

impl Shape {
    /// With one coordinator.
    #[must_use]
    pub const fn new(machines: usize, lease: Duration) -> Self {
        Self { machines, lease, coordinators: 1, members: 0, disks: None, before: &[] }
    }
}

/// One of those that may direct.
#[derive(Debug)]
pub struct Coordinator {
    pub daemon: Daemon,
    /// Of its state, if it has one of its own.
    pub disk: Option<Disk>,
    socket: PathBuf,
}

impl Coordinator {
    fn new(folder: &Path, number: usize, before: &[String], words: &[String]) -> Self {
        fs::create_dir(folder).expect("mkdir");
        let (socket, state) = (folder.join("coordinator.sock"), folder.join("state"));
        let program = Program::Hafen.find().unwrap_or_else(|e| panic!("{e}"));
        let mut all: Vec<OsString> = before.iter().map(Into::into).collect();
        all.extend([program.into(), "coordinator".into(), "--insecure".into()]);
        let mut say = |name: &str, value: OsString| all.extend([name.into(), value]);
        say("--name", format!("test{number}").into());
        say("--listen", url(number).into());
        say("--listen", secure_url(number).into());
        say("--listen", format!("unix://{}", socket.display()).into());
        say("--state", state.into());
        // Of several only the one that directs has tokens.
        if !words.iter().any(|word| word == "--etcd") {
            say("--join-file", folder.join("join").into());
        }
        all.extend(words.iter().map(Into::into));
        Self { daemon: Daemon::new(all, folder.join("log")), disk: None, socket }
    }

    /// Start it, where it went on before.
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    pub fn restart(&mut self) {
        self.daemon.begin();
        self.daemon.answers(READY, |_| healthy(&self.socket));
    }

    /// Nobody else does.
    #[must_use]
    pub fn directs(&self) -> bool {
        http(&self.socket, "GET", "/v1/cluster", "").is_some_and(|answer| answer.status == 200)
    }

    fn folder(&self) -> &Path {
        self.socket.parent().expect("a folder")
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The certificate of the authority that signs it and its nodes.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.socket.with_file_name("state").join("ca/ca.pem")
    }

    /// The file that it logs to.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.socket.with_file_name("log")
    }
}

/// Of a coordinator.
fn url(number: usize) -> String {
    format!("http://10.88.0.1:{}", usize::from(PORT) + number)
}

fn secure_url(number: usize) -> String {
    format!("https://10.88.0.1:{}", usize::from(SECURE_PORT) + number)
}

/// Of a member of etcd: for clients, and for the others.
fn member_urls(number: usize) -> [String; 2] {
    [0, 1].map(|kind| format!("http://127.0.0.1:{}", usize::from(ETCD) + 2 * number + kind))
}

fn member(folder: &Path, number: usize, of: usize, within: [String; 2]) -> Daemon {
    let [client, peer] = member_urls(number);
    let peers = (0..of).map(|other| format!("e{other}={}", member_urls(other)[1]));
    let peers = peers.collect::<Vec<_>>().join(",");
    let mut words: Vec<OsString> = within.map(Into::into).into();
    words.extend(["etcd", "--name", &format!("e{number}")].map(Into::into));
    words.extend(["--initial-cluster", &peers].map(Into::into));
    words.extend(["--listen-client-urls", &client].map(Into::into));
    words.extend(["--advertise-client-urls", &client].map(Into::into));
    words.extend(["--listen-peer-urls", &peer].map(Into::into));
    words.extend(["--initial-advertise-peer-urls", &peer, "--data-dir"].map(Into::into));
    words.push(folder.join(format!("e{number}")).into());
    Daemon::new(words, folder.join(format!("e{number}.log")))
}

/// Machines, and who directs them. As a person, one talks to it.
#[derive(Debug)]
pub struct Cluster<'t> {
    pub machines: Vec<Machine<'t>>,
    pub coordinators: Vec<Coordinator>,
    /// Of etcd.
    pub members: Vec<Daemon>,
    person: Person,
    switch: Namespace,
}

impl Deref for Cluster<'_> {
    type Target = Person;

    fn deref(&self) -> &Person {
        &self.person
    }
}

impl<'t> Cluster<'t> {
    /// Machines named `m0` and so on, all of which are heard.
    ///
    /// # Panics
    /// They do not come up.
    #[must_use]
    #[track_caller]
    pub fn start(test: &'t Test, shape: Shape) -> Self {
        Self::start_as(test, shape, |_, agent| agent)
    }

    /// As [`Self::start`], with something else about their agents: see [`secure`] and [`under_pressure`].
    ///
    /// # Panics
    /// They do not come up.
    #[must_use]
    #[track_caller]
    pub fn start_as(
        test: &'t Test,
        shape: Shape,
        change: impl Fn(&Self, Agent<'t>) -> Agent<'t>,
    ) -> Self {
        let folder = test.dir().join("coordinators");
        fs::create_dir(&folder).expect("mkdir");
        let switch = Namespace::new();
        // Of its own: else it is that of one of its cables, and may be another one with each that is added.
        let address = ["address", "02:00:00:88:00:01"];
        switch.run(&[&["ip", "link", "add", "switch"][..], &address, &["type", "bridge"]].concat());
        switch.run(&["ip", "address", "add", "10.88.0.1/24", "dev", "switch"]);
        switch.run(&["ip", "link", "set", "switch", "up"]);
        let members: Vec<Daemon> = (0..shape.members)
            .map(|number| member(&folder, number, shape.members, switch.within()))
            .collect();
        let mut words = vec!["--lease".to_owned(), format!("{}ms", shape.lease.as_millis())];
        for number in 0..shape.members {
            let [client, _] = member_urls(number);
            words.extend(["--etcd".to_owned(), client]);
        }
        let before = shape.before.iter().map(|word| (*word).to_owned());
        let before: Vec<String> = switch.within().into_iter().chain(before).collect();
        let coordinators: Vec<Coordinator> = (0..shape.coordinators)
            .map(|number| {
                let folder = folder.join(number.to_string());
                let mut one = Coordinator::new(&folder, number, &before, &words);
                one.disk = shape.disks.map(|options| Disk::mount(&folder.join("state"), options));
                one
            })
            .collect();
        let known = (0..shape.coordinators).map(|number| {
            let folder = folder.join(number.to_string());
            (folder.join("coordinator.sock"), folder.join("log"))
        });
        let person = Person { coordinators: known.collect() };
        let mut cluster = Self { machines: Vec::new(), coordinators, members, person, switch };
        cluster.members.iter_mut().for_each(Daemon::begin);
        cluster.coordinators.iter_mut().for_each(Coordinator::restart);
        for number in 0..shape.machines {
            let mut machine = cluster.machine(test, number, shape);
            machine.agent = change(&cluster, machine.agent);
            cluster.machines.push(machine);
        }
        cluster.machines.iter_mut().for_each(|machine| machine.agent.restart());
        cluster.hears(shape.machines);
        cluster
    }

    fn machine(&self, test: &'t Test, number: usize, shape: Shape) -> Machine<'t> {
        let urls: Vec<String> = (0..shape.coordinators).map(url).collect();
        let machine = self.connect(test, number);
        let agent = machine.agent.variable("HAFEN_MASTER_URLS", urls.join(","));
        let agent = agent.variable("HAFEN_MASTER_INSECURE", "true");
        let agent = agent.variable("HAFEN_MASTER_DRAIN_WITHIN", "2s");
        let agent = match shape.disks {
            Some(options) => agent.state_on_a_disk(options),
            None => agent,
        };
        Machine { agent, ..machine }
    }

    /// One more, on which nothing runs yet, and whose agent knows no master.
    #[must_use]
    pub fn connect(&self, test: &'t Test, number: usize) -> Machine<'t> {
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
            .variable("HAFEN_ATTRIBUTES", format!("rack=r{number}"));
        Machine { name, agent, space, number }
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
        let output =
            command.arg(self.coordinators[0].folder().join("state")).output().expect("hafen");
        assert!(output.status.success(), "{output:?}");
        let file = self.coordinators[0].folder().join(format!("{name}-{number}.pem"));
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
        command.args(["--coordinator", &self.secure_url()]);
        for flag in ["--tls-ca", "--tls-cert", "--tls-key"] {
            command.arg(flag).arg(person);
        }
        command
    }

    /// Where nodes with a certificate find the first coordinator.
    #[must_use]
    pub fn secure_url(&self) -> String {
        secure_url(0)
    }

    /// Start the first coordinator, where it went on before.
    #[track_caller]
    pub fn restart(&mut self) {
        self.coordinators[0].restart();
    }

    /// End the first coordinator at once.
    pub fn kill9(&mut self) {
        self.coordinators[0].daemon.kill9();
    }

    /// The link of a machine is down, or up.
    pub fn cut(&self, machine: usize, on: bool) {
        let link = format!("link{}", self.machines[machine].number);
        self.switch.run(&["ip", "link", "set", &link, if on { "down" } else { "up" }]);
    }

    /// Every packet to and from any machine is late by this, and so much of them is lost: words of tc-netem(8).
    pub fn are_far(&self, delay: &str, loss: &str) {
        let netem = ["root", "netem", "delay", delay, "loss", loss];
        for machine in &self.machines {
            let link = format!("link{}", machine.number);
            self.switch.run(&[&["tc", "qdisc", "add", "dev", &link][..], &netem].concat());
            machine.space.run(&[&["tc", "qdisc", "add", "dev", "eth0"][..], &netem].concat());
        }
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

    /// Stop all jobs, until no machine has anything of them.
    fn empty(&self) {
        self.person.purge();
        for machine in &self.machines {
            let mut last = Value::Null;
            let empty = wait_until(SOON, || {
                last = machine.agent.http("GET", "/v1/tasks?all", "").expect(200);
                // A folder goes a moment after its task; an agent that ends now would leave it to the next one.
                let folders = fs::read_dir(machine.agent.state().join("agent/tasks"));
                let is_bare = folders.into_iter().flatten().next().is_none();
                (is_bare && of(&last, "tasks", |_| true).is_empty()).then_some(())
            });
            assert!(empty.is_some(), "{} has {last:#}\n{}", machine.name, machine.agent.said());
        }
    }

    /// All that directs, at once.
    fn end(&mut self) {
        self.coordinators.iter_mut().for_each(|one| one.daemon.kill9());
        self.members.iter_mut().for_each(Daemon::kill9);
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the coordinator said: {}", self.said());
            return self.end();
        }
        let outcome = crate::attempt(|| self.empty());
        // Before the agents, whom it would give new work.
        self.end();
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
    let text = fs::read_to_string(cluster.coordinators[0].folder().join("join")).expect("a token");
    let join: Value = serde_json::from_str(&text).expect("JSON");
    let word = |name: &str| join[name].as_str().expect("a word").to_owned();
    agent
        .variable("HAFEN_MASTER_URLS", cluster.secure_url())
        .variable("HAFEN_MASTER_TOKEN", word("token"))
        .variable("HAFEN_MASTER_AUTHORITY", word("authority"))
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
