//! Tasks of random kinds under random kills, and a comparison of what was reported with what happened.
//!
//! Each task writes to a file of its own, on a folder of the node's, when it starts and when it ends, with the code that it
//! ends with. What was reported may know less than that, but never anything else.
//!
//! Where the agent itself is spared, what it takes is looked at: it does not grow with what it has done.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hafen_integration::{Case, Test, Value, cases, json, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Node, exit_code};

pub(super) fn trials() -> Vec<Case> {
    cases![random(Root, Busybox), random_before_one_agent(Root, Busybox)]
}

/// Tasks that are there at the same time.
const BATCH: u32 = 10;
/// Between two words about how far it is.
const TOLD: Duration = Duration::from_secs(60);

/// xorshift: the same seed gives the same choices.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// A number that somebody has said in the environment.
fn said<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: is no number")))
}

/// `HAFEN_SEED`, or one of the time.
fn seed() -> u64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_micros());
    said("HAFEN_SEED").unwrap_or_else(|| u64::try_from(now).unwrap_or(1)).max(1)
}

/// `HAFEN_CYCLES`, or so many. The virtual machine is emulated: there it is about the kernel, not about numbers.
fn cycles(here: u32) -> u32 {
    const SLOWER: u32 = 10;
    let is_vm = std::env::var("NEEDS").is_ok_and(|needs| needs.starts_with("vm"));
    said("HAFEN_CYCLES").unwrap_or(if is_vm { here / SLOWER } else { here })
}

/// Who may be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victims {
    All,
    /// All but the agent.
    OfTheTasks,
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Ends with this code.
    Ends(u8),
    /// Runs a while, and ends with this code.
    Works(u8),
    /// Runs until it is asked to end.
    Serves,
    /// Does not hear.
    Deaf,
    /// Fails, and is started once more.
    Fails(u8),
}

impl Kind {
    fn chosen(chance: &mut Chance) -> Self {
        let code = u8::try_from(chance.below(100)).expect("small") + 1;
        match chance.below(5) {
            0 => Self::Ends(code),
            1 => Self::Works(code),
            2 => Self::Serves,
            3 => Self::Deaf,
            _ => Self::Fails(code),
        }
    }

    fn script(self) -> String {
        let ends = |code| format!("echo end {code} >> /out; echo last; exit {code}");
        match self {
            Self::Ends(code) | Self::Fails(code) => ends(code),
            Self::Works(code) => format!(
                "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo line $i; sleep 0.02; done; {}",
                ends(code)
            ),
            Self::Serves => format!("trap '{}' TERM; while :; do sleep 0.02; done", ends(7)),
            Self::Deaf => "trap '' TERM; while :; do sleep 0.02; done".to_owned(),
        }
    }

    /// Somebody has to end it.
    const fn is_endless(self) -> bool {
        matches!(self, Self::Serves | Self::Deaf)
    }

    const fn most_starts(self) -> usize {
        if matches!(self, Self::Fails(_)) { 2 } else { 1 }
    }
}

struct Cycle {
    id: String,
    kind: Kind,
    file: PathBuf,
    /// A signal from outside may have ended it.
    was_killed: bool,
    /// The agent has said that it took it on.
    is_taken_on: bool,
    kept_badly: bool,
}

/// Everybody dies.
fn random(t: &Test) {
    run(t, Victims::All, cycles(400));
}

/// One agent sees all of it.
fn random_before_one_agent(t: &Test) {
    run(t, Victims::OfTheTasks, cycles(100));
}

fn run(t: &Test, victims: Victims, cycles: u32) {
    let (seed, size) = (seed(), said("HAFEN_BATCH").unwrap_or(BATCH).max(1));
    eprintln!("{}: HAFEN_SEED={seed} HAFEN_CYCLES={cycles} HAFEN_BATCH={size}", t.name());
    let mut chance = Chance(seed);
    let outcome = hafen_integration::attempt(|| {
        let mut node = Node::new(t);
        let (mut growth, mut told) = (Growth::default(), Instant::now());
        let mut number = 0;
        while number < cycles {
            let size = size.min(cycles - number);
            let mut batch: Vec<Cycle> =
                (0..size).map(|i| cycle(&node, number + i, &mut chance)).collect();
            number += size;
            play(&mut node, &mut batch, victims, &mut chance);
            batch.iter().for_each(|cycle| judge(&node, cycle));
            node.remove_all();
            batch.iter().for_each(|cycle| fs::remove_file(&cycle.file).expect("removed"));
            if victims == Victims::OfTheTasks {
                growth.0.push(Holding::of(&node));
            }
            if told.elapsed() > TOLD {
                eprintln!("{}: {number} of {cycles} cycles{growth}", t.name());
                told = Instant::now();
            }
        }
        growth.judge(cycles);
    });
    outcome.unwrap_or_else(|words| panic!("HAFEN_SEED={seed}: {words}"));
}

/// What an agent holds when it has nothing to do.
#[derive(Debug, Clone, Copy)]
struct Holding {
    kibibytes: u64,
    descriptors: usize,
}

impl Holding {
    fn of(node: &Node<'_>) -> Self {
        let process = format!("/proc/{}", node.pid());
        let status = fs::read_to_string(format!("{process}/status")).expect("read");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = resident
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
            .expect("a size");
        let descriptors = fs::read_dir(format!("{process}/fd")).expect("read").count();
        Self { kibibytes, descriptors }
    }
}

/// After each batch.
#[derive(Debug, Default)]
struct Growth(Vec<Holding>);

impl Growth {
    /// Between a quarter of the way, when everything was done once, and its end. Events are kept up to a number, so that
    /// some growth has an end.
    fn judge(&self, cycles: u32) {
        const EVENTS: u64 = 24 << 10;
        const OF_A_CYCLE: u64 = 8;
        const ALLOWED: u64 = 4 << 10;
        let quarter = self.0.len() / 4;
        if quarter == 0 {
            return;
        }
        let (early, late) = (self.0[quarter], &self.0[self.0.len() - quarter..]);
        let least = |of: fn(&Holding) -> u64| late.iter().map(of).min().unwrap_or_default();
        let kibibytes = least(|held| held.kibibytes);
        let allowed = ALLOWED + (u64::from(cycles) * OF_A_CYCLE).min(EVENTS);
        assert!(kibibytes <= early.kibibytes + allowed, "its memory grows: {:?}", self.0);
        let descriptors = least(|held| held.descriptors as u64);
        assert!(descriptors <= early.descriptors as u64 + 4, "descriptors stay open: {:?}", self.0);
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Holding { kibibytes, descriptors }) = self.0.last() else { return Ok(()) };
        write!(f, ", the agent holds {kibibytes} KiB and {descriptors} descriptors")
    }
}

fn cycle(node: &Node<'_>, number: u32, chance: &mut Chance) -> Cycle {
    let id = format!("t{number}");
    let file = node.folder().join(&id);
    fs::write(&file, "").expect("written");
    Cycle {
        id,
        kind: Kind::chosen(chance),
        file,
        was_killed: false,
        is_taken_on: false,
        kept_badly: false,
    }
}

fn spec(node: &Node<'_>, cycle: &Cycle) -> Value {
    let mut spec =
        node.sh(&cycle.id, &format!("echo start >> /out; echo first; {}", cycle.kind.script()));
    spec["mounts"] = json!([{ "host": cycle.file, "destination": "/out" }]);
    spec["kill"] = json!({ "grace": "0.3s" });
    if matches!(cycle.kind, Kind::Fails(_)) {
        spec["restart"] = json!({ "when": "WHEN_ON_FAILURE", "most": 1, "backOff": "0.05s" });
    }
    spec
}

/// Submit them all, with kills between; then stop those that do not end by themselves, with kills between.
fn play(node: &mut Node<'_>, batch: &mut [Cycle], victims: Victims, chance: &mut Chance) {
    for cycle in batch.iter_mut() {
        let answer = node.try_http("POST", "/v1/tasks", &spec(node, cycle).to_string());
        cycle.is_taken_on = answer.is_some_and(|answer| answer.status == 201);
        disturb(node, cycle, victims, chance);
    }
    for cycle in batch.iter_mut().filter(|cycle| cycle.kind.is_endless()) {
        let path = format!("/v1/tasks/{}/stop", cycle.id);
        let answer = node.http("POST", &path, "");
        assert!(answer.status == 200 || (answer.status == 404 && !cycle.is_taken_on), "{answer:?}");
        disturb(node, cycle, victims, chance);
    }
}

/// At a random moment, one of what is there dies. The moments are what is random: nothing is waited for.
fn disturb(node: &mut Node<'_>, cycle: &mut Cycle, victims: Victims, chance: &mut Chance) {
    std::thread::sleep(Duration::from_millis(chance.below(60)));
    let strike = |pid: i32| {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    };
    match chance.below(8) {
        0 | 1 if victims == Victims::All => {
            node.kill9();
            std::thread::sleep(Duration::from_millis(chance.below(80)));
            node.restart();
        }
        2 => {
            // Its keeper, wherever it is in its work.
            for pid in node.keepers_of(&cycle.id) {
                cycle.kept_badly = true;
                strike(pid);
            }
        }
        3 => {
            let pid =
                node.http("GET", &format!("/v1/tasks/{}", cycle.id), "").json()["pid"].as_i64();
            if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0) {
                cycle.was_killed = true;
                strike(pid);
            }
        }
        // Any other work of the runtime: it is done again.
        4 => node.runtimes().into_iter().for_each(strike),
        _ => {}
    }
}

fn judge(node: &Node<'_>, cycle: &Cycle) {
    let Cycle { id, kind, .. } = cycle;
    let happened = fs::read_to_string(&cycle.file).expect("read");
    if node.http("GET", &format!("/v1/tasks/{id}"), "").status == 404 {
        assert!(
            !cycle.is_taken_on,
            "{id} was taken on and is forgotten; happened: {happened:?}\n{}",
            node.said()
        );
        assert_eq!(happened, "", "{id} ran, and nobody knows");
        return;
    }
    let task = node.wait(id);
    let happened = fs::read_to_string(&cycle.file).expect("read");
    let starts = happened.lines().filter(|line| *line == "start").count();
    let last = happened
        .lines()
        .last()
        .and_then(|line| line.strip_prefix("end "))
        .and_then(|code| code.parse().ok());
    let context = || {
        format!(
            "{id} {kind:?} killed {} keeper {} happened {happened:?}: {task:#}\n{}",
            cycle.was_killed,
            cycle.kept_badly,
            said_of(node, id)
        )
    };
    let attempts = task["attempt"].as_u64().unwrap_or(0);
    assert!(starts <= kind.most_starts(), "started {starts} times: {}", context());
    assert!(starts as u64 <= attempts, "{starts} starts of {attempts} attempts: {}", context());
    if let (Some(told), Some(wrote)) = (exit_code(&task), last) {
        assert_eq!(told, wrote, "{}", context());
    }
    // Nobody was there who could know: less is told then, but nothing else.
    if !cycle.was_killed && !cycle.kept_badly {
        assert_ne!(task["state"], "STATE_LOST", "{}", context());
        assert_ne!(task["state"], "STATE_ERROR", "{}", context());
        told_in_full(kind, last, &task, &context);
        logged(node, kind, starts, id, &context);
    }
    // Its keeper was there to see the kill.
    if cycle.was_killed && !cycle.kept_badly && matches!(kind, Kind::Ends(_) | Kind::Works(_)) {
        let signal = task["reason"]["exit"]["signal"].as_i64();
        assert!(signal == Some(9) || exit_code(&task).is_some(), "{}", context());
    }
    // An attempt before may have run.
    if task["state"] == "STATE_ERROR" {
        let is_so = (starts as u64) < attempts;
        assert!(is_so, "it is told that the last attempt never ran: {}", context());
    }
    if task["state"] != "STATE_LOST" {
        nothing_is_left(node, id, &context);
    }
}

fn told_in_full(kind: &Kind, last: Option<i64>, task: &Value, context: &dyn Fn() -> String) {
    match kind {
        Kind::Ends(code) | Kind::Works(code) | Kind::Fails(code) => {
            assert_eq!(exit_code(task), Some((*code).into()), "{}", context());
            assert_eq!(task["state"], "STATE_FAILED", "{}", context());
            assert_eq!(last, Some((*code).into()), "{}", context());
        }
        // It may be stopped before it runs, or before it hears.
        Kind::Serves | Kind::Deaf => assert_eq!(task["state"], "STATE_KILLED", "{}", context()),
    }
}

fn logged(node: &Node<'_>, kind: &Kind, starts: usize, id: &str, context: &dyn Fn() -> String) {
    let text = node.logs(id);
    let count = |wanted: &str| text.lines().filter(|line| *line == wanted).count();
    if !kind.is_endless() {
        assert_eq!(
            (count("first"), count("last")),
            (starts, starts),
            "log {text:?}: {}",
            context()
        );
    }
    if matches!(kind, Kind::Works(_)) {
        let lines = text.lines().filter(|line| line.starts_with("line ")).count();
        assert_eq!(lines, 20, "log {text:?}: {}", context());
    }
}

/// Its container goes a moment after its end was told.
fn nothing_is_left(node: &Node<'_>, id: &str, context: &dyn Fn() -> String) {
    let of_it = |path: &Path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{id}+")))
    };
    let oci = node.run_folder().join("oci");
    let gone = wait_until(Duration::from_secs(10), || {
        let mut entries = fs::read_dir(&oci).into_iter().flatten().flatten();
        (!entries.any(|entry| of_it(&entry.path()))).then_some(())
    });
    assert!(gone.is_some(), "its container is left: {}", context());
}

fn said_of(node: &Node<'_>, id: &str) -> String {
    let said = node.said();
    let lines = said
        .lines()
        .filter(|line| line.contains(&format!("{id} ")) || line.contains(&format!("{id}+")));
    lines.map(|line| format!("  {line}\n")).collect()
}
