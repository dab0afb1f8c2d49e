//! What a container takes at this moment, by the names that clients read in runc's `events`.

use std::collections::BTreeMap;
use std::path::Path;

use hafen_spec::plan::Claim;
use serde::Serialize;

use super::folder::{Folder, read_whole};
use super::usage::{Keyed, NO_LIMIT, number};

/// v1 has no word for "no limit"; clients take the largest number for it.
const UNLIMITED: u64 = u64::MAX;

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    pub cpu: Cpu,
    pub cpuset: Cpuset,
    pub memory: Memory,
    pub pids: Pids,
    pub blkio: Blkio,
    /// By page size, as `2MB`.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    pub intel_rdt: IntelRdt,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cpu {
    pub usage: CpuUsage,
    pub throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    pub total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    pub kernel: u64,
    pub user: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    pub periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_periods: u64,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_time: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cpuset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub cpu_exclusive: u64,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Page cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    pub usage: MemoryEntry,
    /// Memory and swap together, also on a unified host.
    pub swap: MemoryEntry,
    pub kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// `memory.stat`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEntry {
    pub limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    pub failcnt: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// 0: none.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlkioEntry {
    #[serde(skip_serializing_if = "is_zero")]
    pub major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub minor: u64,
    pub op: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub value: u64,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Hugetlb {
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    pub failcnt: u64,
}

/// No container of this runtime is in a monitoring group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct IntelRdt {}

/// Share of time in which some, or all, processes waited (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Pressure {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub some: Option<Waits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<Waits>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Waits {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    /// Microseconds.
    pub total: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Read what the folders of a container tell now. What cannot be had is left at zero.
#[must_use]
pub fn stats(claims: &[Claim]) -> Stats {
    let mut stats = Stats::default();
    for claim in claims {
        match claim {
            Claim::Cgroup { path, .. } => look(path, |f| stats.unified(f)),
            Claim::LegacyCgroup { controller, path, .. } => {
                look(path, |f| controller.split(',').for_each(|c| stats.legacy(c, f)));
            }
            Claim::Scratch { .. } | Claim::Resctrl { .. } | Claim::Use { .. } => {}
        }
    }
    stats
}

fn look(path: &Path, read: impl FnOnce(&Folder)) {
    if let Ok(folder) = Folder::open(path) {
        read(&folder);
    }
}

impl Stats {
    fn unified(&mut self, folder: &Folder) {
        const NANOS: u64 = 1000;
        let cpu = Keyed::read(folder, "cpu.stat");
        let nanos = |key: &str| cpu.get(key).unwrap_or_default() * NANOS;
        self.cpu.usage.total = nanos("usage_usec");
        self.cpu.usage.user = nanos("user_usec");
        self.cpu.usage.kernel = nanos("system_usec");
        if let Some(periods) = cpu.get("nr_periods") {
            let throttled_periods = cpu.get("nr_throttled").unwrap_or_default();
            self.cpu.throttling =
                Throttling { periods, throttled_periods, throttled_time: nanos("throttled_usec") };
        }
        self.cpu.psi = pressure(folder, "cpu.pressure");
        self.memory.psi = pressure(folder, "memory.pressure");
        self.blkio.psi = pressure(folder, "io.pressure");
        self.cpuset(folder, "cpuset.cpus.effective", "cpuset.mems.effective");
        self.unified_memory(folder);
        self.pids(folder);
        self.unified_io(folder);
        self.hugetlb(folder, ["current", "", "events"]);
    }

    fn unified_memory(&mut self, folder: &Folder) {
        let Some(usage) = number(folder, "memory.current") else { return };
        let limit = |file| number(folder, file).unwrap_or(UNLIMITED);
        let memory = &mut self.memory;
        memory.raw = numbers(folder, "memory.stat");
        memory.cache = memory.raw.get("file").copied().unwrap_or_default();
        memory.usage = MemoryEntry {
            limit: limit("memory.max"),
            usage,
            max: number(folder, "memory.peak").unwrap_or_default(),
            failcnt: Keyed::read(folder, "memory.events").get("max").unwrap_or_default(),
        };
        memory.kernel.usage = memory.raw.get("kernel").copied().unwrap_or_default();
        if let Some(swap) = number(folder, "memory.swap.current") {
            memory.swap.usage = usage + swap;
            memory.swap.limit = limit("memory.swap.max").saturating_add(memory.usage.limit);
        }
    }

    /// Lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
    fn unified_io(&mut self, folder: &Folder) {
        let text = whole(folder, "io.stat");
        for (device, rest) in text.lines().filter_map(|l| l.split_once(' ')) {
            for (key, value) in rest.split(' ').filter_map(|w| w.split_once('=')) {
                let (list, op) = match key {
                    "rbytes" => (&mut self.blkio.io_service_bytes_recursive, "Read"),
                    "wbytes" => (&mut self.blkio.io_service_bytes_recursive, "Write"),
                    "dbytes" => (&mut self.blkio.io_service_bytes_recursive, "Discard"),
                    "rios" => (&mut self.blkio.io_serviced_recursive, "Read"),
                    "wios" => (&mut self.blkio.io_serviced_recursive, "Write"),
                    "dios" => (&mut self.blkio.io_serviced_recursive, "Discard"),
                    _ => continue,
                };
                list.extend(entry(device, op, value));
            }
        }
    }

    fn legacy(&mut self, controller: &str, folder: &Folder) {
        match controller {
            "cpu" => self.legacy_cpu(folder),
            "cpuset" => self.legacy_cpuset(folder),
            "memory" => self.legacy_memory(folder),
            "pids" => self.pids(folder),
            "blkio" => self.legacy_io(folder),
            "hugetlb" => self.hugetlb(folder, ["usage_in_bytes", "max_usage_in_bytes", "failcnt"]),
            _ => {}
        }
    }

    fn legacy_cpu(&mut self, folder: &Folder) {
        let cpu = Keyed::read(folder, "cpu.stat");
        let get = |key: &str| cpu.get(key).unwrap_or_default();
        self.cpu.throttling = Throttling {
            periods: get("nr_periods"),
            throttled_periods: get("nr_throttled"),
            throttled_time: get("throttled_time"),
        };
    }

    fn legacy_cpuset(&mut self, folder: &Folder) {
        self.cpuset(folder, "cpuset.cpus", "cpuset.mems");
        let get = |file| number(folder, file).unwrap_or_default();
        let level = folder.read("cpuset.sched_relax_domain_level").unwrap_or_default();
        let cpuset = &mut self.cpuset;
        cpuset.cpu_exclusive = get("cpuset.cpu_exclusive");
        cpuset.mem_hardwall = get("cpuset.mem_hardwall");
        cpuset.mem_exclusive = get("cpuset.mem_exclusive");
        cpuset.memory_migrate = get("cpuset.memory_migrate");
        cpuset.memory_spread_page = get("cpuset.memory_spread_page");
        cpuset.memory_spread_slab = get("cpuset.memory_spread_slab");
        cpuset.memory_pressure = get("cpuset.memory_pressure");
        cpuset.sched_load_balance = get("cpuset.sched_load_balance");
        cpuset.sched_relax_domain_level = level.trim().parse().unwrap_or_default();
    }

    fn legacy_memory(&mut self, folder: &Folder) {
        let entry = |prefix: &str| {
            let get = |name: &str| number(folder, &format!("{prefix}.{name}")).unwrap_or_default();
            let limit = get("limit_in_bytes");
            MemoryEntry {
                limit: if limit < NO_LIMIT { limit } else { UNLIMITED },
                usage: get("usage_in_bytes"),
                max: get("max_usage_in_bytes"),
                failcnt: get("failcnt"),
            }
        };
        self.memory.raw = numbers(folder, "memory.stat");
        self.memory.cache = self.memory.raw.get("cache").copied().unwrap_or_default();
        self.memory.usage = entry("memory");
        self.memory.swap = entry("memory.memsw");
        self.memory.kernel = entry("memory.kmem");
        self.memory.kernel_tcp = entry("memory.kmem.tcp");
    }

    /// Lines such as `8:0 Read 4096`, and a total at the end.
    fn legacy_io(&mut self, folder: &Folder) {
        let read = |file: &str| -> Vec<BlkioEntry> {
            let text = whole(folder, file);
            let words = text.lines().map(|l| l.split(' ').collect::<Vec<_>>());
            let line = |w: Vec<&str>| match w[..] {
                [device, op, value] => entry(device, op, value),
                _ => None,
            };
            words.filter_map(line).collect()
        };
        let blkio = &mut self.blkio;
        blkio.io_service_bytes_recursive = read("blkio.throttle.io_service_bytes_recursive");
        blkio.io_serviced_recursive = read("blkio.throttle.io_serviced_recursive");
    }

    /// The same files in both kinds of hierarchy.
    fn pids(&mut self, folder: &Folder) {
        let Some(current) = number(folder, "pids.current") else { return };
        self.pids = Pids { current, limit: number(folder, "pids.max").unwrap_or_default() };
    }

    fn cpuset(&mut self, folder: &Folder, cpus: &str, mems: &str) {
        let numbers = |file: &str| list(&folder.read(file).unwrap_or_default());
        if folder.read(cpus).is_ok() {
            self.cpuset.cpus = numbers(cpus);
            self.cpuset.mems = numbers(mems);
        }
    }

    /// Files of usage, highest usage and count of failures for each size of pages. A unified host knows no highest.
    fn hugetlb(&mut self, folder: &Folder, [usage, max, failures]: [&str; 3]) {
        for size in page_sizes() {
            let file = |name: &str| format!("hugetlb.{size}.{name}");
            let Some(used) = number(folder, &file(usage)) else { continue };
            let failcnt = if failures == "events" {
                Keyed::read(folder, &file(failures)).get("max")
            } else {
                number(folder, &file(failures))
            };
            let max = number(folder, &file(max)).unwrap_or(0);
            let entry = Hugetlb { usage: used, max, failcnt: failcnt.unwrap_or(0) };
            self.hugetlb.insert(size, entry);
        }
    }
}

/// Sizes of huge pages as names of cgroup files have them: `hugepages-2048kB` is `2MB`.
fn page_sizes() -> Vec<String> {
    let folders = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten();
    let names = folders.flatten().map(|f| f.file_name().to_string_lossy().into_owned());
    names
        .filter_map(|name| hafen_spec::resolve::page_size(name.strip_prefix("hugepages-")?))
        .collect()
}

fn entry(device: &str, op: &str, value: &str) -> Option<BlkioEntry> {
    let (major, minor) = device.split_once(':')?;
    let number = |text: &str| text.parse().ok();
    Some(BlkioEntry {
        major: number(major)?,
        minor: number(minor)?,
        op: op.to_owned(),
        value: number(value.trim())?,
    })
}

/// `0-3,7` one by one.
fn list(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// Longer than one read.
pub(super) fn whole(folder: &Folder, file: &str) -> String {
    use nix::fcntl::{OFlag, openat};
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let text = openat(folder, file, flags, nix::sys::stat::Mode::empty()).and_then(read_whole);
    text.map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default()
}

fn numbers(folder: &Folder, file: &str) -> BTreeMap<String, u64> {
    let line = |l: &str| {
        let (key, value) = l.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    whole(folder, file).lines().filter_map(line).collect()
}

/// Lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`; `None` where the kernel counts no pressure.
pub(super) fn pressure(folder: &Folder, file: &str) -> Option<Pressure> {
    let text = folder.read(file).ok()?;
    let waits = |kind: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(kind)?.strip_prefix(' '))?;
        let get = |key: &str| {
            line.split(' ').find_map(|w| w.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
        };
        let average = |key: &str| get(key).parse().unwrap_or_default();
        Some(Waits {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: get("total").parse().unwrap_or_default(),
        })
    };
    Some(Pressure { some: waits("some"), full: waits("full") })
}

#[cfg(test)]
mod tests;
