//! What a container takes at this moment, for whoever asks about very many: few files, since opening them is what it
//! costs.

use std::path::Path;

use hafen_spec::keep::Usage;
use hafen_spec::plan::Claim;

use super::folder::Folder;
use super::stats::{Pressure, pressure, whole};
use super::usage::{self, Keyed, number};

/// Zero where it cannot be had.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Taken {
    pub totals: Usage,
    pub cpu_user_usec: u64,
    pub cpu_system_usec: u64,
    /// Bytes, with all below.
    pub memory: u64,
    pub memory_anon: u64,
    pub memory_file: u64,
    pub swap: u64,
    pub pids: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
}

/// Read what the folders of a container tell now.
#[must_use]
pub fn taken(claims: &[Claim]) -> Taken {
    let mut taken = Taken::default();
    for claim in claims {
        match claim {
            Claim::Cgroup { path, .. } => usage::open(path, |f| taken.unified(f)),
            Claim::LegacyCgroup { controller, path, .. } => {
                usage::open(path, |f| controller.split(',').for_each(|c| taken.legacy(c, f)));
            }
            Claim::Scratch { .. } | Claim::Resctrl { .. } | Claim::Use { .. } => {}
        }
    }
    taken
}

/// Throttled periods and all of them: one small file of each folder that has one.
#[must_use]
pub fn throttling(claims: &[Claim]) -> (u64, u64) {
    let mut periods = (0, 0);
    for claim in claims {
        let path = match claim {
            Claim::Cgroup { path, .. } => path,
            Claim::LegacyCgroup { controller, path, .. }
                if controller.split(',').any(|c| c == "cpu") =>
            {
                path
            }
            _ => continue,
        };
        usage::open(path, |f| {
            let cpu = Keyed::read(f, "cpu.stat");
            if let Some(all) = cpu.get("nr_periods") {
                periods = (cpu.get("nr_throttled").unwrap_or_default(), all);
            }
        });
    }
    periods
}

/// Of the whole container; `None` where the kernel does not count it.
#[must_use]
pub fn memory_pressure(claims: &[Claim]) -> Option<Pressure> {
    let path = claims.iter().find_map(|claim| match claim {
        Claim::Cgroup { path, .. } => Some(path),
        _ => None,
    });
    pressure(&Folder::open(path?).ok()?, "memory.pressure")
}

/// Of the whole machine: of `cpu`, `memory` or `io` (Documentation/accounting/psi.rst).
#[must_use]
pub fn machine_pressure(of: &str) -> Option<Pressure> {
    pressure(&Folder::open(Path::new("/proc/pressure")).ok()?, of)
}

impl Taken {
    fn unified(&mut self, folder: &Folder) {
        usage::unified(&mut self.totals, folder);
        let cpu = Keyed::read(folder, "cpu.stat");
        self.cpu_user_usec = cpu.get("user_usec").unwrap_or_default();
        self.cpu_system_usec = cpu.get("system_usec").unwrap_or_default();
        self.cpu_pressure = pressure(folder, "cpu.pressure");
        self.memory_pressure = pressure(folder, "memory.pressure");
        self.io_pressure = pressure(folder, "io.pressure");
        self.pids(folder);
        self.unified_io(folder);
        let Some(memory) = number(folder, "memory.current") else { return };
        self.memory = memory;
        self.memory(folder, ["anon", "file"]);
        self.swap = number(folder, "memory.swap.current").unwrap_or_default();
    }

    fn legacy(&mut self, controller: &str, folder: &Folder) {
        usage::legacy(&mut self.totals, controller, folder);
        match controller {
            "memory" => {
                self.memory = number(folder, "memory.usage_in_bytes").unwrap_or_default();
                let stat = self.memory(folder, ["total_rss", "total_cache"]);
                self.swap = stat.get("total_swap").unwrap_or_default();
            }
            "pids" => self.pids(folder),
            "blkio" => self.legacy_io(folder),
            _ => {}
        }
    }

    fn memory(&mut self, folder: &Folder, [anon, file]: [&str; 2]) -> Keyed {
        let stat = Keyed::of(whole(folder, "memory.stat"));
        self.memory_anon = stat.get(anon).unwrap_or_default();
        self.memory_file = stat.get(file).unwrap_or_default();
        stat
    }

    /// The same file in both kinds of hierarchy.
    fn pids(&mut self, folder: &Folder) {
        self.pids = number(folder, "pids.current").unwrap_or(self.pids);
    }

    /// Lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
    fn unified_io(&mut self, folder: &Folder) {
        for (key, value) in
            whole(folder, "io.stat").split_whitespace().filter_map(|w| w.split_once('='))
        {
            let sum = match key {
                "rbytes" => &mut self.read_bytes,
                "wbytes" => &mut self.written_bytes,
                "rios" => &mut self.reads,
                "wios" => &mut self.writes,
                _ => continue,
            };
            *sum += value.parse::<u64>().unwrap_or_default();
        }
    }

    /// Lines such as `8:0 Read 4096`, and a total at the end.
    fn legacy_io(&mut self, folder: &Folder) {
        let sum = |file: &str| {
            let text = whole(folder, file);
            let of = |op: &str| -> u64 {
                let lines = text.lines().map(|l| l.split(' ').collect::<Vec<_>>());
                let values = lines.filter(|w| w.len() == 3 && w[1] == op);
                values.filter_map(|w| w[2].parse::<u64>().ok()).sum()
            };
            (of("Read"), of("Write"))
        };
        (self.read_bytes, self.written_bytes) = sum("blkio.throttle.io_service_bytes_recursive");
        (self.reads, self.writes) = sum("blkio.throttle.io_serviced_recursive");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        files.iter().for_each(|(file, text)| fs::write(folder.join(file), text).unwrap());
    }

    #[test]
    fn a_unified_folder() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            (
                "cpu.stat",
                "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 9\nnr_throttled 4\n",
            ),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\n"),
            ("memory.current", "4096\n"),
            ("memory.stat", "anon 1024\nfile 2048\n"),
            ("memory.swap.current", "512\n"),
            ("pids.current", "3\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=10\n"),
        ];
        write(folder.path(), &files);
        let claim =
            Claim::Cgroup { path: folder.path().to_owned(), parents: Vec::new(), unit: None };
        let taken = taken(std::slice::from_ref(&claim));
        assert_eq!((taken.cpu_user_usec, taken.cpu_system_usec), (3, 2));
        assert_eq!((taken.memory, taken.memory_anon, taken.memory_file), (4096, 1024, 2048));
        assert_eq!((taken.swap, taken.pids), (512, 3));
        assert_eq!(
            (taken.read_bytes, taken.written_bytes, taken.reads, taken.writes),
            (11, 2, 3, 4)
        );
        assert_eq!(taken.totals.cpu_usec, Some(5));
        let some = taken.cpu_pressure.and_then(|p| p.some).map(|some| some.avg10);
        assert_eq!((some, taken.io_pressure), (Some(1.5), None));
        assert_eq!(throttling(&[claim]), (4, 9));
    }

    #[test]
    fn legacy_folders_beside_a_bare_unified_one() {
        let [tree, v1] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        write(tree.path(), &[("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\n")]);
        let files = [
            ("cpu.stat", "nr_periods 9\nnr_throttled 4\n"),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.stat", "cache 1\ntotal_cache 2048\ntotal_rss 1024\ntotal_swap 512\n"),
            ("pids.current", "3\n"),
            ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 1\n8:0 Write 2\nTotal 3\n"),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 3\n8:0 Write 4\nTotal 7\n"),
        ];
        write(v1.path(), &files);
        let legacy = |controller: &str| Claim::LegacyCgroup {
            controller: controller.to_owned(),
            path: v1.path().to_owned(),
            parents: Vec::new(),
        };
        let unified =
            Claim::Cgroup { path: tree.path().to_owned(), parents: Vec::new(), unit: None };
        let claims =
            [legacy("cpu,cpuacct"), legacy("memory"), legacy("pids"), legacy("blkio"), unified];
        let taken = taken(&claims);
        assert_eq!((taken.cpu_user_usec, taken.memory, taken.memory_anon), (3, 4096, 1024));
        assert_eq!((taken.memory_file, taken.swap, taken.pids), (2048, 512, 3));
        assert_eq!(
            (taken.read_bytes, taken.written_bytes, taken.reads, taken.writes),
            (1, 2, 3, 4)
        );
        assert_eq!(throttling(&claims), (4, 9));
    }
}
