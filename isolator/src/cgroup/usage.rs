use std::path::Path;

use hafen_spec::keep::Usage;
use hafen_spec::plan::Claim;

use super::folder::Folder;

/// Read what the folders of a container tell, before they are released. Never fails: a number that cannot be had is
/// `None`, because usage is told about a container that has ended, which it did in any case.
#[must_use]
pub fn observe(claims: &[Claim]) -> Usage {
    let mut usage = Usage::default();
    for claim in claims {
        match claim {
            Claim::Cgroup { path, .. } => open(path, |f| unified(&mut usage, f)),
            Claim::LegacyCgroup { controller, path, .. } => {
                open(path, |f| controller.split(',').for_each(|c| legacy(&mut usage, c, f)));
            }
            Claim::Scratch { .. } | Claim::Resctrl { .. } | Claim::Use { .. } => {}
        }
    }
    usage
}

pub(super) fn open(path: &Path, read: impl FnOnce(&Folder)) {
    if let Ok(folder) = Folder::open(path) {
        read(&folder);
    }
}

pub(super) fn unified(usage: &mut Usage, folder: &Folder) {
    let cpu = Keyed::read(folder, "cpu.stat");
    usage.cpu_usec = cpu.get("usage_usec");
    // These lines are there only while the controller is enabled for the folder.
    fill(&mut usage.cpu_periods, cpu.get("nr_periods"));
    fill(&mut usage.cpu_throttled_periods, cpu.get("nr_throttled"));
    fill(&mut usage.cpu_throttled_usec, cpu.get("throttled_usec"));

    let memory = Keyed::read(folder, "memory.events");
    fill(&mut usage.oom_events, memory.get("oom"));
    fill(&mut usage.oom_kills, memory.get("oom_kill"));
    fill(&mut usage.memory_limit_bytes, number(folder, "memory.max"));
    fill(&mut usage.memory_peak_bytes, number(folder, "memory.peak"));
    pids(usage, folder);
}

pub(super) fn legacy(usage: &mut Usage, controller: &str, folder: &Folder) {
    match controller {
        "cpu" => {
            let cpu = Keyed::read(folder, "cpu.stat");
            fill(&mut usage.cpu_periods, cpu.get("nr_periods"));
            fill(&mut usage.cpu_throttled_periods, cpu.get("nr_throttled"));
            fill(
                &mut usage.cpu_throttled_usec,
                cpu.get("throttled_time").map(|nanos| nanos / 1000),
            );
        }
        "memory" => {
            let limit = number(folder, "memory.limit_in_bytes").filter(|l| *l < NO_LIMIT);
            fill(&mut usage.memory_limit_bytes, limit);
            fill(&mut usage.memory_peak_bytes, number(folder, "memory.max_usage_in_bytes"));
            fill(&mut usage.oom_kills, Keyed::read(folder, "memory.oom_control").get("oom_kill"));
        }
        "pids" => pids(usage, folder),
        _ => {}
    }
}

/// The same files in both kinds of hierarchy.
fn pids(usage: &mut Usage, folder: &Folder) {
    fill(&mut usage.pids_limit, number(folder, "pids.max"));
    fill(&mut usage.pids_peak, number(folder, "pids.peak"));
    fill(&mut usage.pids_limit_hits, Keyed::read(folder, "pids.events").get("max"));
}
/// v1 counts in pages and has no word for "no limit": it is the largest number of whole pages, whatever their size.
pub(super) const NO_LIMIT: u64 = (i64::MAX as u64) & !0xf_ffff;

/// One claim never takes away what another one told.
fn fill(slot: &mut Option<u64>, value: Option<u64>) {
    *slot = value.or(*slot);
}

/// `None` also for `max`.
pub(super) fn number(folder: &Folder, file: &str) -> Option<u64> {
    folder.read(file).ok()?.trim().parse().ok()
}

/// The number in a file; `None` also where there is no such file.
pub(super) fn count(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// A file of lines `KEY VALUE` (the kernel's "flat keyed").
pub(super) struct Keyed(String);

impl Keyed {
    pub(super) const fn of(text: String) -> Self {
        Self(text)
    }

    pub(super) fn read(folder: &Folder, file: &str) -> Self {
        Self(folder.read(file).unwrap_or_default())
    }

    pub(super) fn get(&self, key: &str) -> Option<u64> {
        let value = self.0.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
        value?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// Folders with files as the kernel writes them, removed at the end.
    struct Sample(PathBuf);

    impl Sample {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let path =
                std::env::temp_dir().join(format!("hafen-usage-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            for (file, text) in files {
                fs::write(path.join(file), text).unwrap();
            }
            Self(path)
        }
    }

    impl Drop for Sample {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn unified(sample: &Sample) -> Claim {
        Claim::Cgroup { path: sample.0.clone(), parents: Vec::new(), unit: None }
    }

    #[test]
    fn a_unified_folder() {
        let sample = Sample::new(
            "unified",
            &[
                (
                    "cpu.stat",
                    "usage_usec 500\nuser_usec 300\nsystem_usec 200\nnr_periods 9\nnr_throttled 4\nthrottled_usec 77\n",
                ),
                ("memory.events", "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"),
                ("memory.max", "67108864\n"),
                ("memory.peak", "67108000\n"),
                ("pids.max", "max\n"),
                ("pids.peak", "8\n"),
                ("pids.events", "max 6\n"),
            ],
        );
        let expected = Usage {
            cpu_usec: Some(500),
            memory_limit_bytes: Some(67_108_864),
            memory_peak_bytes: Some(67_108_000),
            oom_events: Some(3),
            oom_kills: Some(2),
            cpu_periods: Some(9),
            cpu_throttled_periods: Some(4),
            cpu_throttled_usec: Some(77),
            pids_limit: None,
            pids_peak: Some(8),
            pids_limit_hits: Some(6),
        };
        assert_eq!(observe(&[unified(&sample)]), expected);
    }

    #[test]
    fn legacy_folders_beside_a_bare_unified_one() {
        let tree = Sample::new("bare", &[("cpu.stat", "usage_usec 500\nuser_usec 300\n")]);
        let v1 = Sample::new(
            "legacy",
            &[
                ("cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 77999\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.max_usage_in_bytes", "4096\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
                ("pids.max", "32\n"),
                ("pids.events", "max 6\n"),
            ],
        );
        let claim = |controller: &str| Claim::LegacyCgroup {
            controller: controller.to_owned(),
            path: v1.0.clone(),
            parents: Vec::new(),
        };
        let expected = Usage {
            cpu_usec: Some(500),
            memory_peak_bytes: Some(4096),
            oom_kills: Some(1),
            cpu_periods: Some(9),
            cpu_throttled_periods: Some(4),
            cpu_throttled_usec: Some(77),
            pids_limit: Some(32),
            pids_limit_hits: Some(6),
            ..Usage::default()
        };
        let claims = [claim("cpuset,cpu"), claim("memory"), claim("pids"), unified(&tree)];
        assert_eq!(observe(&claims), expected);
    }

    #[test]
    fn a_folder_that_is_gone_tells_nothing() {
        let claim = Claim::Cgroup {
            path: "/sys/fs/cgroup/no/such".into(),
            parents: Vec::new(),
            unit: None,
        };
        assert_eq!(observe(&[claim]), Usage::default());
        let names = serde_json::to_value(Usage::default()).unwrap();
        assert_eq!(names.as_object().unwrap().len(), 11);
    }
}
