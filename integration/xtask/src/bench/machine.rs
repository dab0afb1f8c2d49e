//! What machine this is, what is installed, and what it does beside what is measured.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::record::Look;
use crate::setup::{self, Group};
use crate::workspace;

/// Names and values.
pub(super) fn facts() -> Vec<(String, String)> {
    let cpuinfo = read("/proc/cpuinfo");
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let model = field(&cpuinfo, "model name").unwrap_or("unknown");
    let emulated =
        field(&cpuinfo, "flags").is_some_and(|f| f.split(' ').any(|f| f == "hypervisor"));
    let swap = read("/proc/swaps").lines().count() > 1;
    let facts = [
        ("processors", format!("{processors} x {model}")),
        ("machine", if emulated { "virtual" } else { "physical" }.to_owned()),
        ("memory", memory(&read("/proc/meminfo")).unwrap_or_else(|| "unknown".to_owned())),
        ("swap", if swap { "yes" } else { "none" }.to_owned()),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("cgroups", cgroups(&read("/proc/self/mountinfo")).to_owned()),
        ("system", system(&read("/etc/os-release")).to_owned()),
        (
            "systemd",
            if Path::new("/run/systemd/system").exists() { "runs" } else { "does not run" }
                .to_owned(),
        ),
    ];
    facts.map(|(name, value)| (name.to_owned(), value)).into()
}

fn read(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

/// Of the first processor.
fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let of = |line: &'a str| line.split_once(':').filter(|(key, _)| key.trim() == name);
    cpuinfo.lines().find_map(of).map(|(_, value)| value.trim())
}

fn memory(meminfo: &str) -> Option<String> {
    let kib: f64 = field(meminfo, "MemTotal")?.split(' ').next()?.parse().ok()?;
    Some(format!("{:.1} GiB", kib / f64::from(1 << 20)))
}

fn cgroups(mountinfo: &str) -> &'static str {
    let has = |fs_type: &str| mountinfo.contains(&format!(" - {fs_type} "));
    match (has("cgroup"), has("cgroup2")) {
        (true, true) => "hybrid",
        (true, false) => "version 1",
        (false, true) => "unified",
        (false, false) => "none",
    }
}

fn system(os_release: &str) -> &str {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or("unknown", |name| name.trim_matches('"'))
}

/// The version of what was built.
pub(super) const COMMIT: &str = "hafen (git)";

/// Of what was built from, and of all packages that are compared or stood upon.
pub(super) fn versions() -> Vec<(String, String)> {
    let groups = [Group::Bench, Group::BenchAgent, Group::BenchImages];
    let mut names: Vec<&str> = groups.into_iter().flat_map(Group::names).collect();
    names.sort_unstable();
    names.dedup();
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${Version}\\n"]).args(names);
    // It tells of those that are there, also when others are not.
    let packages = said(&mut query);
    let packages = packages.lines().filter_map(|line| line.split_once(' '));
    let packages = packages.filter(|(_, version)| !version.is_empty());
    let lock = read(&workspace::root().join("Cargo.lock").to_string_lossy());
    let mut all = vec![
        (COMMIT.to_owned(), commit()),
        ("rustc".to_owned(), said(Command::new("rustc").arg("--version"))),
        ("libcontainer".to_owned(), locked(&lock, "libcontainer").unwrap_or("unknown").to_owned()),
    ];
    if setup::youki().is_file() {
        let version = said(Command::new(setup::youki()).arg("--version"));
        let version = version.lines().next().unwrap_or_default().to_owned();
        all.push(("youki (crates.io)".to_owned(), version));
    }
    all.extend(packages.map(|(name, version)| (name.to_owned(), version.to_owned())));
    all
}

/// The version of a package in a Cargo.lock.
fn locked<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    rest.split('"').next()
}

/// Of the working tree; what was changed below `docs/` is not built.
fn commit() -> String {
    let git = |words: &[&str]| said(Command::new("git").current_dir(workspace::root()).args(words));
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"]);
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    match (commit.is_empty(), changed.is_empty()) {
        (true, _) => "unknown".to_owned(),
        (false, true) => commit,
        (false, false) => commit + ", changed",
    }
}

/// Its standard output; nothing where it cannot be run.
pub(super) fn said(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

/// One minute's.
pub(super) fn load() -> Option<f64> {
    read("/proc/loadavg").split(' ').next()?.parse().ok()
}

/// Counts from its beginning.
#[derive(Debug)]
pub(super) struct Watch {
    at: Instant,
    times: Option<Times>,
    waited_us: Option<u64>,
}

impl Watch {
    pub(super) fn begin() -> Self {
        Self { at: Instant::now(), times: times(&read("/proc/stat")), waited_us: waited() }
    }

    pub(super) fn end(&self) -> Look {
        let times = self.times.zip(times(&read("/proc/stat")));
        let share = |of: fn(&Times) -> u64| {
            let (before, now) = times?;
            let all = now.all.saturating_sub(before.all);
            (all > 0).then(|| percent(of(&now).saturating_sub(of(&before)) as f64 / all as f64))
        };
        let passed = self.at.elapsed().as_secs_f64() * 1e6;
        let waited = self.waited_us.zip(waited());
        Look {
            busy: share(|times| times.busy),
            steal: share(|times| times.steal),
            waiting: waited
                .map(|(before, now)| percent(now.saturating_sub(before) as f64 / passed)),
        }
    }
}

/// What the machine does while nothing of ours runs.
pub(super) fn look(length: Duration) -> Look {
    let watch = Watch::begin();
    thread::sleep(length);
    watch.end()
}

fn percent(share: f64) -> f64 {
    (share * 1000.0).round() / 10.0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    all: u64,
    busy: u64,
    steal: u64,
}

/// The first line of proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; what follows is in user and nice.
fn times(stat: &str) -> Option<Times> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let fields: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else {
        return None;
    };
    let busy = user + nice + system + irq + softirq;
    Some(Times { all: busy + idle + iowait + steal, busy, steal })
}

/// Microseconds in which some process waited for a processor.
fn waited() -> Option<u64> {
    let text = read("/proc/pressure/cpu");
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split(' ').find_map(|word| word.strip_prefix("total="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_user_is_not_counted_twice() {
        let times = times("cpu  10 1 5 80 4 2 3 7 9 1\ncpu0 1 1 1 1\n").unwrap();
        assert_eq!(times, Times { all: 112, busy: 21, steal: 7 });
        assert_eq!(super::times("intr 5"), None);
    }

    #[test]
    fn a_machine_is_described() {
        let cpuinfo = "processor : 0\nmodel name\t: Fast CPU\nflags\t\t: fpu hypervisor\n";
        assert_eq!(field(cpuinfo, "model name"), Some("Fast CPU"));
        assert_eq!(memory("MemTotal:       25276600 kB\n").as_deref(), Some("24.1 GiB"));
        let hybrid =
            "1 2 0:3 / /a rw - cgroup cgroup rw,cpu\n1 2 0:3 / /b rw - cgroup2 cgroup2 rw\n";
        assert_eq!((cgroups(hybrid), cgroups("")), ("hybrid", "none"));
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.2.3\"\n";
        assert_eq!((locked(lock, "a"), locked(lock, "b")), (Some("1.2.3"), None));
        assert_eq!(system("NAME=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }

    #[test]
    fn a_look_sees_work() {
        let watch = Watch::begin();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(200) {
            std::hint::spin_loop();
        }
        assert!(watch.end().busy.unwrap() > 0.0);
    }
}
