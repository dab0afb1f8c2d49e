//! How well limits hold: what is run under them, and what is said of it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::agent::{Error, call, says, wait_until};
use crate::cluster::report::Row;
use crate::sheet::{Plot, Sheet};
use crate::stats::{median, percentile, ratio};

/// Parts, as `--only` names them.
pub const CPU: &str = "cpu";
pub const MEMORY: &str = "memory";
pub const NEIGHBOUR: &str = "neighbour";

/// Bytes that the containers of [`MEMORY`] may take, and what each of them wants.
pub const LIMIT: u64 = 64 << 20;
const WANTED: u64 = 4 * LIMIT;

/// What fills memory, as fast as it can.
pub const FILLERS: [(&str, &str); 3] = [
    ("one process", "exec /bin/busybox dd if=/dev/zero of=/dev/null bs=WANTED count=1"),
    (
        "eight processes",
        "for i in 1 2 3 4 5 6 7 8; do /bin/busybox dd if=/dev/zero of=/dev/null bs=WANTED count=1 & done; wait",
    ),
    ("files in memory", "exec /bin/busybox dd if=/dev/zero of=/fill/file bs=1048576 count=256"),
];

/// Beside a neighbour that keeps this many processes busy for each processor.
const BUSY: usize = 4;
/// CPUs that the neighbour may take where it is limited.
pub const NEIGHBOUR_CPUS: f64 = 0.5;

/// Beside whom small periodic work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    Nobody,
    Unlimited,
    Limited,
}

impl Beside {
    pub const ALL: [Self; 3] = [Self::Nobody, Self::Unlimited, Self::Limited];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "alone",
            Self::Unlimited => "a neighbour without limits",
            Self::Limited => "a neighbour under a limit",
        }
    }
}

/// Containers of hafen-oci, one folder for all that they need.
#[derive(Debug)]
pub struct Scene<'a> {
    pub program: &'a Path,
    pub folder: &'a Path,
    /// Begins the names of all containers and of their cgroups.
    pub id: &'a str,
}

impl Scene<'_> {
    fn hafen(&self) -> Command {
        let mut command = Command::new(self.program);
        command.arg("--root").arg(self.folder.join("state"));
        command
    }

    fn container(&self, id: &str, more: &[&dyn AsRef<OsStr>], words: &[&str]) -> Command {
        let mut run = self.hafen();
        run.args(["run", "--id", id, "--cgroup", &format!("/{}/{id}", self.id)]);
        run.args(more).arg("--").args(words);
        run
    }

    /// CPU time that so many busy loops took in so long, divided by what they were allowed.
    ///
    /// # Errors
    /// Of the container.
    pub fn cpu(&self, cpus: f64, busy: usize, length: Duration) -> Result<f64, Error> {
        let script = format!("{} exec /bin/busybox sleep {}", loops(busy), length.as_secs_f64());
        let report = self.report("cpu", &[&"--cpus", &cpus.to_string()], &script)?;
        let wall = report["wall_usec"].as_f64();
        let used = report["usage"]["cpu_usec"].as_f64();
        ratio(used, wall.map(|wall| wall * cpus)).ok_or_else(|| "the report has no times".into())
    }

    /// The most memory that was taken, divided by the limit.
    ///
    /// # Errors
    /// Of the container.
    pub fn memory(&self, script: &str) -> Result<f64, Error> {
        let script = script.replace("WANTED", &WANTED.to_string());
        let limit = LIMIT.to_string();
        let more: [&dyn AsRef<OsStr>; 6] =
            [&"--memory", &limit, &"--memory-swap", &limit, &"--tmpfs", &"/fill"];
        let report = self.report("memory", &more, &script)?;
        let peak = report["usage"]["memory_peak_bytes"].as_f64();
        let peak =
            peak.ok_or("the report has no peak of memory: no controller, or an old kernel")?;
        Ok(peak / LIMIT as f64)
    }

    /// How it ended. That the OOM killer ends it is what is wanted, so its exit code says nothing.
    fn report(&self, id: &str, more: &[&dyn AsRef<OsStr>], script: &str) -> Result<Value, Error> {
        let (file, rootfs) = (self.folder.join("report"), self.folder.join("bundle/rootfs"));
        let _ = fs::remove_file(&file);
        let mut all: Vec<&dyn AsRef<OsStr>> = vec![&"--rootfs", &rootfs, &"--report", &file];
        all.extend(more);
        let mut run = self.container(id, &all, &["/bin/busybox", "sh", "-c", script]);
        let output = run.stdin(Stdio::null()).output().map_err(says("run", self.program))?;
        let Ok(text) = fs::read(&file) else {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{run:?}: {}: {}", output.status, said.trim()).into());
        };
        Ok(serde_json::from_slice(&text)?)
    }

    /// The 99th percentile of how late the work was done, in milliseconds.
    ///
    /// # Errors
    /// Of the containers.
    pub fn beat(&self, beside: Beside, own: &Path, words: &[String]) -> Result<f64, Error> {
        let neighbour = match beside {
            Beside::Nobody => None,
            Beside::Unlimited => Some(self.neighbour(&[])?),
            Beside::Limited => Some(self.neighbour(&[&"--cpus", &NEIGHBOUR_CPUS.to_string()])?),
        };
        // The host's libraries, and this program.
        let inside = format!("{}:/bench:ro", parent(own)?.display());
        let program = Path::new("/bench").join(own.file_name().unwrap_or_default());
        let program = program.display().to_string();
        let mut all = vec![program.as_str()];
        all.extend(words.iter().map(String::as_str));
        let more: [&dyn AsRef<OsStr>; 4] = [&"--rootfs", &"host", &"--volume", &inside];
        let said = call(&mut self.container("beat", &more, &all));
        drop(neighbour);
        let late: Vec<f64> = said?.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        let p99 = percentile(&late, 99.0).ok_or("no work was done")?;
        Ok(p99 / 1e3)
    }

    /// It is busy when this returns.
    fn neighbour(&self, more: &[&dyn AsRef<OsStr>]) -> Result<Neighbour<'_>, Error> {
        let (rootfs, pid_file) = (self.folder.join("bundle/rootfs"), self.folder.join("pid"));
        let _ = fs::remove_file(&pid_file);
        let mut all: Vec<&dyn AsRef<OsStr>> = vec![&"--rootfs", &rootfs, &"--pid-file", &pid_file];
        all.extend(more);
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let script = format!("{} exec /bin/busybox sleep 3600", loops(BUSY * processors));
        let mut run = self.container("neighbour", &all, &["/bin/busybox", "sh", "-c", &script]);
        let child = run.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let neighbour = Neighbour { scene: self, child: child.map_err(says("run", self.program))? };
        wait_until("the neighbour runs", || pid_file.exists())?;
        // So that what its launch costs is over.
        thread::sleep(Duration::from_millis(500));
        Ok(neighbour)
    }
}

fn loops(busy: usize) -> String {
    "while :; do :; done & ".repeat(busy)
}

fn parent(own: &Path) -> Result<PathBuf, Error> {
    own.parent().map(Path::to_owned).ok_or_else(|| "this program is in no folder".into())
}

/// It ends with this.
#[derive(Debug)]
struct Neighbour<'a> {
    scene: &'a Scene<'a>,
    child: Child,
}

impl Drop for Neighbour<'_> {
    fn drop(&mut self) {
        let ended = call(self.scene.hafen().args(["kill", "neighbour", "KILL"]));
        if let Err(e) = ended {
            eprintln!("bench-enforcement: {e}");
            // The container goes on then, until its cgroup is swept.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Small work at regular moments; how late each was done, in microseconds.
#[must_use]
pub fn work_regularly(every: Duration, rounds: u64, length: Duration) -> Vec<u128> {
    let begin = Instant::now();
    let mut late = Vec::new();
    let mut due = every;
    while due < length {
        thread::sleep(due.saturating_sub(begin.elapsed()));
        work(rounds);
        late.push(begin.elapsed().saturating_sub(due).as_micros());
        due += every;
    }
    late
}

/// The number of rounds that take so long where nobody disturbs.
#[must_use]
pub fn rounds_of(length: Duration) -> u64 {
    const TRIAL: u64 = 50_000;
    let trial = |_| {
        let begin = Instant::now();
        work(TRIAL);
        begin.elapsed()
    };
    let least = (0..50).map(trial).min().unwrap_or(length).max(Duration::from_nanos(1));
    (TRIAL as f64 * length.as_secs_f64() / least.as_secs_f64()) as u64
}

fn work(rounds: u64) {
    let mut state = 1_u64;
    for n in 0..rounds {
        state = std::hint::black_box(state.rotate_left(5) ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[derive(Debug, Default)]
pub struct Report {
    pub rows: Vec<Row>,
    /// Facts about the machine and the run.
    pub facts: Vec<(&'static str, Value)>,
    pub notes: Vec<String>,
}

impl Report {
    fn medians(&self, part: &str) -> impl Iterator<Item = f64> {
        self.rows.iter().filter(move |row| row.part == part).filter_map(|row| median(&row.values))
    }

    /// Ours divided by what was allowed, in the worst case.
    fn named(&self) -> Vec<(String, Option<f64>)> {
        let of = |beside: Beside| {
            let row = self.rows.iter().find(|r| r.part == NEIGHBOUR && r.case == beside.name())?;
            median(&row.values)
        };
        let alone = of(Beside::Nobody);
        [
            ("cpu_used_vs_allowed_most", self.medians(CPU).max_by(f64::total_cmp)),
            ("cpu_used_vs_allowed_least", self.medians(CPU).min_by(f64::total_cmp)),
            ("memory_peak_vs_limit", self.medians(MEMORY).max_by(f64::total_cmp)),
            ("neighbour_p99_vs_alone_unlimited", ratio(of(Beside::Unlimited), alone)),
            ("neighbour_p99_vs_alone_limited", ratio(of(Beside::Limited), alone)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// One object: what is looked for first, then what it comes from.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(Row::json).collect();
        self.sheet().report(self.named(), [("rows".into(), rows)])
    }

    #[must_use]
    pub fn text(&self) -> String {
        self.sheet().text()
    }

    fn sheet(&self) -> Sheet {
        let plot = |part: &str, title: &str, axis| Plot {
            name: part.to_owned(),
            title: title.to_owned(),
            axis,
            series: self
                .rows
                .iter()
                .filter(|row| row.part == part)
                .map(|row| (row.case.clone(), row.values.clone()))
                .collect(),
        };
        let plots = [
            plot(CPU, "CPU time under a limit", "used / allowed"),
            plot(MEMORY, "Memory under a limit", "peak / limit"),
            plot(NEIGHBOUR, "How late small periodic work is done", "99th percentile, ms"),
        ];
        Sheet {
            facts: self.facts.clone(),
            head: Row::HEAD.into(),
            named: 3,
            rows: self.rows.iter().map(Row::cells).collect(),
            others: self.named(),
            goals: Vec::new(),
            notes: self.notes.clone(),
            plots: plots.into_iter().filter(|plot| !plot.series.is_empty()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(part: &'static str, case: &str, values: &[f64]) -> Row {
        Row { part, case: case.to_owned(), what: "x", values: values.to_owned() }
    }

    #[test]
    fn the_worst_case_is_named() {
        let report = Report {
            rows: vec![
                row(CPU, "a", &[0.98, 1.0, 1.3]),
                row(CPU, "b", &[1.02]),
                row(MEMORY, "a", &[1.0]),
                row(NEIGHBOUR, Beside::Nobody.name(), &[2.0]),
                row(NEIGHBOUR, Beside::Unlimited.name(), &[10.0]),
            ],
            ..Report::default()
        };
        let json = report.json();
        assert_eq!(json["cpu_used_vs_allowed_most"], 1.02);
        assert_eq!(json["cpu_used_vs_allowed_least"], 1.0);
        assert_eq!(json["neighbour_p99_vs_alone_unlimited"], 5.0);
        assert!(json["neighbour_p99_vs_alone_limited"].is_null());
        assert_eq!(json["sheet"]["plots"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn regular_work_is_done_as_often_as_it_is_due() {
        let late = work_regularly(Duration::from_millis(2), 10, Duration::from_millis(21));
        assert_eq!(late.len(), 10);
    }

    #[test]
    fn there_are_as_many_loops_as_were_asked_for() {
        assert_eq!(loops(3).matches("done &").count(), 3);
    }
}
