//! Who takes what a container writes, how each is told to, and what is said of them.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::measure::{Job, Sample, Subject};
use crate::programs::{OURS, ask_version, locate, words};
use crate::report::{Row, failures, number, rounded};
use crate::sheet::{Plot, Sheet};
use crate::stats::{Spread, median, ratio, spread};

/// Bytes of the file that the container writes again and again.
pub const PIECE: u64 = 16 << 20;
/// With its end.
const LINE: &str = "0123456789 a line of text as programs write them, of one hundred bytes with the end of the line ...\n";

const CONMON: &str = "conmon";

#[derive(Debug, Clone)]
enum Kind {
    /// The container writes to the file itself.
    File,
    /// `hafen-oci keep` with this format of its log.
    Keep(&'static str),
    /// conmon, with this runtime.
    Conmon { runtime: PathBuf, file: &'static str },
}

/// Who takes it.
#[derive(Debug, Clone)]
pub struct Taker {
    /// Of the table's rows.
    pub name: String,
    /// What the log looks like.
    pub log: &'static str,
    pub version: String,
    path: PathBuf,
    kind: Kind,
}

impl Taker {
    /// The runtime, as [`crate::host::Host::cover_for`] knows it.
    pub fn runtime(&self) -> &str {
        match &self.kind {
            Kind::File | Kind::Keep(_) => OURS,
            Kind::Conmon { file, .. } => file,
        }
    }
}

/// Those that are here, and the names of those that are not.
pub fn find(scratch: &Path) -> (Vec<Taker>, Vec<String>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let mut take =
        |name: String, log, program: Option<PathBuf>, kind: Option<Kind>| match program.zip(kind) {
            Some((path, kind)) => {
                let version = match &kind {
                    Kind::File | Kind::Keep(_) => ask_version(&path, scratch),
                    Kind::Conmon { runtime, .. } => {
                        [ask_version(&path, scratch), ask_version(runtime, scratch)].join(", ")
                    }
                };
                found.push(Taker { name, log, version, path, kind });
            }
            None => missing.push(name),
        };
    let ours = || locate(OURS, "HAFEN_OCI");
    take("no keeper".into(), "the file itself", ours(), Some(Kind::File));
    take(OURS.into(), JSON, ours(), Some(Kind::Keep(JSON)));
    take(OURS.into(), PLAIN, ours(), Some(Kind::Keep(PLAIN)));
    for (file, variable) in [("crun", "HAFEN_CRUN"), ("runc", "HAFEN_RUNC")] {
        let kind = locate(file, variable).map(|runtime| Kind::Conmon { runtime, file });
        let conmon = locate(CONMON, "HAFEN_CONMON");
        take(format!("{CONMON}+{file}"), "k8s-file", conmon, kind);
    }
    (found, missing)
}

const JSON: &str = "json";
const PLAIN: &str = "plain";

/// The file of lines, in the bundle's root file system.
///
/// # Errors
/// If it cannot be written.
pub fn write_piece(rootfs: &Path) -> io::Result<()> {
    let length = usize::try_from(PIECE).map_err(io::Error::other)?;
    let text: Vec<u8> = LINE.bytes().cycle().take(length - 1).chain(*b"\n").collect();
    fs::write(rootfs.join("piece"), text)
}

/// What the container runs to write the piece so many times.
pub fn command(pieces: u64) -> Value {
    let script =
        format!("i=0; while [ $i -lt {pieces} ]; do /bin/busybox cat /piece; i=$((i+1)); done");
    json!(["/bin/busybox", "sh", "-c", script])
}

/// Everything that a taker reads and writes.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub bundle: &'a Path,
    pub state: &'a Path,
    /// Emptied before each run.
    pub work: &'a Path,
    pub id: &'a str,
}

/// From the first call until the container has ended and is gone. A log that does not hold all that was written is a failure.
pub fn subject(taker: &Taker, bytes: u64, place: Place<'_>) -> Subject {
    let Place { state, work, id, .. } = place;
    let log = work.join("log");
    let fresh = r#"rm -rf -- "$1" && mkdir -- "$1""#;
    let whole = r#"size=$(stat -c %s -- "$1") && [ "$size" -ge "$2" ] || { echo "a log of $size bytes" >&2; exit 1; }"#;
    let runtime = match &taker.kind {
        Kind::File | Kind::Keep(_) => &taker.path,
        Kind::Conmon { runtime, .. } => runtime,
    };
    Subject {
        name: taker.name.clone(),
        before: vec![Job::shell(fresh, &[&work])],
        measured: measured(taker, &log, place),
        after: vec![Job::shell(whole, &[&log, &bytes.to_string()]), Job::shell(fresh, &[&work])],
        rescue: vec![Job::new(runtime, words(&[&"--root", &state, &"delete", &"--force", &id]))],
        state: state.to_owned(),
        cover: None,
    }
}

fn measured(taker: &Taker, log: &Path, place: Place<'_>) -> Job {
    let Place { bundle, state, work, id } = place;
    match &taker.kind {
        Kind::File => {
            let script = r#"exec "$1" --root "$2" run --bundle "$3" "$4" >"$5""#;
            Job::shell(script, &[&taker.path, &state, &bundle, &id, &log])
        }
        Kind::Keep(format) => {
            let keep = work.join("keep");
            let mut arguments = words(&[&"--root", &state, &"keep", &"--dir", &keep]);
            arguments.extend(words(&[&"--bundle", &bundle, &"--output", &log]));
            arguments.extend(words(&[&"--output-format", format, &"--output-max", &"1T", &id]));
            Job::new(&taker.path, arguments)
        }
        Kind::Conmon { runtime, .. } => {
            let paths: &[&dyn AsRef<OsStr>] =
                &[&taker.path, runtime, &state, &bundle, &work, &log, &id];
            Job::shell(WITH_CONMON, paths).with_descendants()
        }
    }
}

/// As Podman calls it: conmon makes the container and goes on in the background, somebody starts it once there is its pid, and
/// conmon has it removed at the end.
const WITH_CONMON: &str = r#"
conmon=$1 runtime=$2 state=$3 bundle=$4 work=$5 log=$6 id=$7
"$conmon" --api-version 1 --cid "$id" --cuuid "$id" --name "$id" --runtime "$runtime" \
  --runtime-arg --root --runtime-arg "$state" --bundle "$bundle" --container-pidfile "$work/pid" \
  --log-path "k8s-file:$log" --exit-dir "$work" --persist-dir "$work" --socket-dir-path "$work" \
  --exit-command "$runtime" --exit-command-arg --root --exit-command-arg "$state" \
  --exit-command-arg delete --exit-command-arg "$id" || exit
while [ ! -s "$work/pid" ]; do sleep 0.01; done
exec "$runtime" --root "$state" start "$id"
"#;

/// One taker's runs.
#[derive(Debug, Clone)]
pub struct Line {
    pub log: &'static str,
    pub row: Row,
}

impl Line {
    fn name(&self) -> &str {
        &self.row.series.name
    }

    /// Of the plots.
    fn label(&self) -> String {
        format!("{}, {}", self.name(), self.log)
    }

    /// MB of 1,000,000 bytes in a second, of each run.
    fn rates(&self, bytes: u64) -> Vec<f64> {
        self.row.values(|sample| bytes as f64 / 1e3 / sample.wall_ms())
    }

    /// CPU seconds for a GB, of each run.
    fn cpu(&self, bytes: u64) -> Vec<f64> {
        self.row.values(|sample: &Sample| sample.cpu_ms() / 1e3 / (bytes as f64 / 1e9))
    }
}

#[derive(Debug)]
pub struct Report {
    pub lines: Vec<Line>,
    /// What the container writes in a run.
    pub bytes: u64,
    /// Facts about the machine and the run.
    pub facts: Vec<(&'static str, Value)>,
    pub notes: Vec<String>,
}

impl Report {
    fn ours(&self, log: &str, of: impl Fn(&Line) -> Option<f64>) -> Option<f64> {
        of(self.lines.iter().find(|line| line.name() == OURS && line.log == log)?)
    }

    fn peers(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.name().starts_with(CONMON))
    }

    /// Ours divided by the best of conmon.
    fn ratios(&self) -> Vec<(String, Option<f64>)> {
        let rate = |line: &Line| median(&line.rates(self.bytes));
        let cpu = |line: &Line| median(&line.cpu(self.bytes));
        let fastest = self.peers().filter_map(rate).max_by(f64::total_cmp);
        let cheapest = self.peers().filter_map(cpu).min_by(f64::total_cmp);
        [JSON, PLAIN]
            .into_iter()
            .flat_map(|log| {
                [
                    (format!("{log}_rate_vs_conmon"), ratio(self.ours(log, rate), fastest)),
                    (format!("{log}_cpu_vs_conmon"), ratio(self.ours(log, cpu), cheapest)),
                ]
            })
            .collect()
    }

    /// One object: the ratios, then what they come from.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows = self.lines.iter().map(|line| self.line_json(line)).collect();
        self.sheet().report(self.ratios(), [("rows".into(), rows)])
    }

    fn line_json(&self, line: &Line) -> Value {
        let rate = spread(&line.rates(self.bytes));
        let mut all = line.row.json();
        all["program"] = line.name().into();
        all["version"] = line.row.version.clone().into();
        all["log"] = line.log.into();
        all["mb_per_s"] = rounded(rate.map(|s| s.median));
        all["cpu_s_per_gb"] = rounded(median(&line.cpu(self.bytes)));
        all
    }

    #[must_use]
    pub fn text(&self) -> String {
        self.sheet().text()
    }

    fn sheet(&self) -> Sheet {
        let plot = |name: &str, title: &str, axis, of: fn(&Line, u64) -> Vec<f64>| Plot {
            name: name.to_owned(),
            title: title.to_owned(),
            axis,
            series: self.lines.iter().map(|line| (line.label(), of(line, self.bytes))).collect(),
        };
        Sheet {
            facts: self.facts.clone(),
            head: vec![
                "program",
                "log",
                "version",
                "MB/s",
                "p10",
                "p90",
                "CPU s per GB",
                "runs",
                "failed",
            ],
            named: 3,
            rows: self.lines.iter().map(|line| self.cells(line)).collect(),
            others: self.ratios(),
            goals: Vec::new(),
            notes: self.all_notes(),
            plots: vec![
                plot("rate", "What a container writes, into a log", "MB per second", Line::rates),
                plot("cpu", "CPU time of all that takes part", "seconds per GB", Line::cpu),
            ],
        }
    }

    fn cells(&self, line: &Line) -> Vec<String> {
        let rate: Option<Spread> = spread(&line.rates(self.bytes));
        vec![
            line.name().to_owned(),
            line.log.to_owned(),
            line.row.version.clone(),
            number(rate.map(|s| s.median)),
            number(rate.map(|s| s.p10)),
            number(rate.map(|s| s.p90)),
            number(median(&line.cpu(self.bytes))),
            line.row.series.samples.len().to_string(),
            failures(&line.row.series),
        ]
    }

    fn all_notes(&self) -> Vec<String> {
        self.notes.iter().cloned().chain(self.lines.iter().flat_map(|l| l.row.notes())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Series;

    fn line(name: &str, log: &'static str, wall_ms: u64, cpu_ms: u64) -> Line {
        let sample = Sample {
            wall_ns: wall_ms * 1_000_000,
            user_us: cpu_ms * 1_000,
            sys_us: 0,
            peak_kib: 1,
        };
        let series = Series { name: name.into(), samples: vec![sample], ..Series::default() };
        Line { log, row: Row { version: "1".into(), series } }
    }

    #[test]
    fn the_best_of_conmon_counts() {
        let lines = vec![
            line(OURS, JSON, 500, 400),
            line(OURS, PLAIN, 250, 200),
            line("conmon+crun", "k8s-file", 1000, 800),
            line("conmon+runc", "k8s-file", 1250, 500),
        ];
        let report = Report { lines, bytes: 1_000_000_000, facts: vec![], notes: vec![] };
        let json = report.json();
        assert_eq!(json["json_rate_vs_conmon"], 2.0);
        assert_eq!(json["json_cpu_vs_conmon"], 0.8);
        assert_eq!(json["plain_rate_vs_conmon"], 4.0);
        assert_eq!(json["rows"][0]["mb_per_s"], 2000.0);
        assert_eq!(json["rows"][0]["cpu_s_per_gb"], 0.4);
    }

    #[test]
    fn the_piece_ends_with_a_line() {
        let folder = tempfile::tempdir().unwrap();
        write_piece(folder.path()).unwrap();
        let text = fs::read(folder.path().join("piece")).unwrap();
        assert_eq!((text.len() as u64, text.last()), (PIECE, Some(&b'\n')));
        assert_eq!(LINE.len(), 100);
    }
}
