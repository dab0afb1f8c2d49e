use std::collections::BTreeMap;

use hafen_spec::Problems;
use hafen_spec::facts::{CgroupLayout, Home};
use hafen_spec::resolved::{
    Amount, CpuLimits, IoLimits, Limits, MemoryLimits, NetworkLimits, RdmaLimits,
};

/// One file that gets one value. The file is in the container's folder of the cgroup2 tree ([`Home::Unified`]) or of
/// the controller's v1 hierarchy ([`Home::Legacy`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `cgroup` stands for files that belong to no controller.
    pub controller: String,
    pub home: Home,
    /// Name in the folder.
    pub file: String,
    pub value: String,
    /// File and value where the kernel lacks that file.
    pub instead: Option<(String, String)>,
}

/// The period that a quota counts for when none is given, in microseconds: the kernel's own default.
const DEFAULT_PERIOD: u64 = 100_000;

/// The kernel checks each value against what was written before: weight before `cpu.idle` (which locks the weight),
/// period before quota before burst, memory before memory and swap together. Files not named here come last.
const ORDER: [&str; 19] = [
    "cpuset.cpus",
    "cpuset.mems",
    "cpu.weight",
    "cpu.weight.nice",
    "cpu.shares",
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.cfs_burst_us",
    "memory.max",
    "memory.swap.max",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.low",
    "memory.soft_limit_in_bytes",
    "memory.swappiness",
    "memory.oom_control",
];

/// Files of the tree itself: a container's processes and folders are the runtime's business.
const RESERVED: [&str; 6] = ["freeze", "kill", "procs", "subtree_control", "threads", "type"];

/// Limits as files and values, in the order of writing.
///
/// # Errors
/// Each limit that was asked for and that nothing on this host would enforce, with its field.
pub fn knobs(limits: &Limits, layout: &CgroupLayout) -> Result<Vec<Setting>, Problems> {
    let mut draft = Draft { layout, settings: Vec::new(), problems: Problems::default() };
    draft.cpuset(&limits.cpu);
    draft.cpu(&limits.cpu);
    draft.memory(&limits.memory);
    draft.pids(limits.pids);
    draft.hugepages(&limits.hugepages);
    draft.io(&limits.io);
    draft.rdma(&limits.rdma);
    draft.network(&limits.network);
    draft.verbatim(limits);
    draft.settings.sort_by_key(|s| ORDER.iter().position(|f| *f == s.file).unwrap_or(ORDER.len()));
    draft.problems.into_result(draft.settings)
}

/// `cpu.weight` (1 to 10000, default 100) from v1 shares (2 to 262144, default 1024): the curve of second degree in
/// log2(shares) that meets both ends and the default, as runc (from 1.3.2) and crun (from 1.23) use it.
#[must_use]
pub fn weight_from_shares(shares: u64) -> u64 {
    const FEWEST: u64 = 2;
    const MOST: u64 = 262_144;
    if shares >= MOST {
        return 10_000;
    }
    let log = (shares.max(FEWEST) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

struct Draft<'a> {
    layout: &'a CgroupLayout,
    settings: Vec<Setting>,
    problems: Problems,
}

impl Draft<'_> {
    fn set(&mut self, home: Home, file: &str, value: &impl ToString) {
        let controller = file.split('.').next().unwrap_or(file).to_owned();
        self.settings.push(Setting {
            controller,
            home,
            file: file.to_owned(),
            value: value.to_string(),
            instead: None,
        });
    }

    fn set_or(&mut self, home: Home, [file, value]: [&str; 2], [other, its]: [&str; 2]) {
        self.set(home, file, &value);
        if let Some(setting) = self.settings.last_mut() {
            setting.instead = Some((other.to_owned(), its.to_owned()));
        }
    }

    fn set_if(&mut self, home: Home, file: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.set(home, file, &value);
        }
    }

    /// There is nowhere to write: a problem for each limit that was asked for.
    fn absent(&mut self, controller: &str, asked: &[(&str, bool)]) {
        for (field, _) in asked.iter().filter(|(_, asked)| *asked) {
            let why = format!(
                "cannot be enforced: the {controller} controller is neither in this host's cgroup2 tree nor mounted as cgroup v1"
            );
            self.problems.add(format!("linux.resources.{field}"), why);
        }
    }

    fn cpuset(&mut self, cpu: &CpuLimits) {
        let home = self.layout.home("cpuset");
        if home == Home::Absent {
            let asked = [("cpu.cpus", cpu.cpus.is_some()), ("cpu.mems", cpu.mems.is_some())];
            return self.absent("cpuset", &asked);
        }
        self.set_if(home, "cpuset.cpus", cpu.cpus.as_deref());
        self.set_if(home, "cpuset.mems", cpu.mems.as_deref());
    }

    fn cpu(&mut self, cpu: &CpuLimits) {
        let home = self.layout.home("cpu");
        match home {
            Home::Unified => {
                self.set_if(home, "cpu.weight", cpu.shares.map(weight_from_shares));
                self.set_if(home, "cpu.max", unified_bandwidth(cpu));
                self.set_if(home, "cpu.max.burst", cpu.burst);
                self.refuse_realtime(cpu);
            }
            Home::Legacy => {
                self.set_if(home, "cpu.shares", cpu.shares);
                self.set_if(home, "cpu.cfs_period_us", legacy_period(cpu));
                self.set_if(home, "cpu.cfs_quota_us", cpu.quota.map(legacy));
                self.set_if(home, "cpu.cfs_burst_us", cpu.burst);
                self.set_if(home, "cpu.rt_period_us", cpu.realtime_period);
                self.set_if(home, "cpu.rt_runtime_us", cpu.realtime_runtime);
            }
            Home::Absent => {
                return self.absent(
                    "cpu",
                    &[
                        ("cpu.shares", cpu.shares.is_some()),
                        ("cpu.quota", matches!(cpu.quota, Some(Amount::Of(_)))),
                        ("cpu.burst", cpu.burst.is_some_and(|b| b > 0)),
                        ("cpu.idle", cpu.idle == Some(true)),
                        ("cpu.realtimePeriod", cpu.realtime_period.is_some()),
                        ("cpu.realtimeRuntime", cpu.realtime_runtime.is_some()),
                    ],
                );
            }
        }
        self.set_if(home, "cpu.idle", cpu.idle.map(u8::from));
    }

    /// Realtime groups exist in v1 only (Documentation/scheduler/sched-rt-group.rst).
    fn refuse_realtime(&mut self, cpu: &CpuLimits) {
        let asked = [
            ("realtimePeriod", cpu.realtime_period.is_some()),
            ("realtimeRuntime", cpu.realtime_runtime.is_some()),
        ];
        for (field, _) in asked.iter().filter(|(_, asked)| *asked) {
            let why = "cannot be enforced: this host's cpu controller is cgroup v2, which has no such setting";
            self.problems.add(format!("linux.resources.cpu.{field}"), why);
        }
    }

    fn memory(&mut self, memory: &MemoryLimits) {
        match self.layout.home("memory") {
            Home::Unified => self.unified_memory(memory),
            Home::Legacy => self.legacy_memory(memory),
            Home::Absent => {
                let bounded = |a: Option<Amount>| matches!(a, Some(Amount::Of(_)));
                self.absent(
                    "memory",
                    &[
                        ("memory.limit", bounded(memory.limit)),
                        ("memory.reservation", bounded(memory.reservation)),
                        ("memory.swap", bounded(memory.swap)),
                        ("memory.swappiness", memory.swappiness.is_some()),
                        ("memory.disableOOMKiller", memory.disable_oom_killer == Some(true)),
                    ],
                );
            }
        }
    }

    fn unified_memory(&mut self, memory: &MemoryLimits) {
        let home = Home::Unified;
        self.set_if(home, "memory.max", memory.limit);
        match (memory.swap, memory.limit) {
            (None, _) => {}
            (Some(Amount::Max), _) => self.set(home, "memory.swap.max", &Amount::Max),
            (Some(Amount::Of(both)), Some(Amount::Of(memory))) if both >= memory => {
                self.set(home, "memory.swap.max", &(both - memory));
            }
            (Some(Amount::Of(_)), _) => self.problems.add(
                "linux.resources.memory.swap",
                "counts memory and swap together, so it needs a limit that is not above it",
            ),
        }
        self.set_if(home, "memory.low", memory.reservation);
        let cannot = "cannot be enforced: this host's memory controller is cgroup v2, which has no such setting";
        if memory.swappiness.is_some() {
            self.problems.add("linux.resources.memory.swappiness", cannot);
        }
        if memory.disable_oom_killer == Some(true) {
            self.problems.add("linux.resources.memory.disableOOMKiller", cannot);
        }
    }

    fn legacy_memory(&mut self, memory: &MemoryLimits) {
        let home = Home::Legacy;
        self.set_if(home, "memory.limit_in_bytes", memory.limit.map(legacy));
        self.set_if(home, "memory.memsw.limit_in_bytes", memory.swap.map(legacy));
        self.set_if(home, "memory.soft_limit_in_bytes", memory.reservation.map(legacy));
        self.set_if(home, "memory.swappiness", memory.swappiness);
        self.set_if(home, "memory.oom_control", memory.disable_oom_killer.map(u8::from));
    }

    fn pids(&mut self, pids: Option<Amount>) {
        match self.layout.home("pids") {
            Home::Absent => {
                self.absent("pids", &[("pids.limit", matches!(pids, Some(Amount::Of(_))))]);
            }
            home => self.set_if(home, "pids.max", pids),
        }
    }

    /// Pages are counted when they are reserved and when they are used (`rsvd`, Linux 5.7): both are bounded.
    fn hugepages(&mut self, limits: &BTreeMap<String, u64>) {
        let home = self.layout.home("hugetlb");
        if home == Home::Absent {
            return self.absent("hugetlb", &[("hugepageLimits", !limits.is_empty())]);
        }
        let names = if home == Home::Unified {
            ["max", "rsvd.max"]
        } else {
            ["limit_in_bytes", "rsvd.limit_in_bytes"]
        };
        for (size, bytes) in limits {
            for name in names {
                self.set(home, &format!("hugetlb.{size}.{name}"), bytes);
            }
        }
    }

    fn io(&mut self, io: &IoLimits) {
        if self.layout.home("io") == Home::Unified {
            self.unified_io(io);
        } else if self.layout.home("blkio") == Home::Legacy {
            self.legacy_io(io);
        } else {
            self.absent(
                "io",
                &[
                    ("blockIO.weight", io.weight.is_some()),
                    ("blockIO.weightDevice", !io.device_weights.is_empty()),
                    ("blockIO.throttle*Device", io.throttles.iter().any(|t| t.rate > 0)),
                ],
            );
        }
    }

    /// The BFQ scheduler has a weight of its own; where the kernel lacks it, that of the io.cost controller counts.
    fn unified_io(&mut self, io: &IoLimits) {
        let home = Home::Unified;
        if let Some(weight) = io.weight {
            let other = io_weight(weight).to_string();
            self.set_or(home, ["io.bfq.weight", &weight.to_string()], ["io.weight", &other]);
        }
        for (device, weight) in &io.device_weights {
            let value = |weight: &dyn std::fmt::Display| format!("{device} {weight}");
            let (bfq, other) = (value(weight), value(&io_weight(*weight)));
            self.set_or(home, ["io.bfq.weight", &bfq], ["io.weight", &other]);
        }
        for throttle in &io.throttles {
            let key = match (throttle.write, throttle.operations) {
                (false, false) => "rbps",
                (true, false) => "wbps",
                (false, true) => "riops",
                (true, true) => "wiops",
            };
            let rate = if throttle.rate == 0 { Amount::Max } else { Amount::Of(throttle.rate) };
            self.set(home, "io.max", &format!("{} {key}={rate}", throttle.device));
        }
    }

    /// `blkio.weight` is the name of it up to Linux 5.3.
    fn legacy_io(&mut self, io: &IoLimits) {
        let home = Home::Legacy;
        if let Some(weight) = io.weight.map(|w| w.to_string()) {
            self.set_or(home, ["blkio.bfq.weight", &weight], ["blkio.weight", &weight]);
        }
        for (device, weight) in &io.device_weights {
            let value = format!("{device} {weight}");
            let other = ["blkio.weight_device", &value];
            self.set_or(home, ["blkio.bfq.weight_device", &value], other);
        }
        for throttle in &io.throttles {
            let what = if throttle.write { "write" } else { "read" };
            let unit = if throttle.operations { "iops" } else { "bps" };
            let file = format!("blkio.throttle.{what}_{unit}_device");
            self.set(home, &file, &format!("{} {}", throttle.device, throttle.rate));
        }
    }

    fn rdma(&mut self, limits: &BTreeMap<String, RdmaLimits>) {
        let home = self.layout.home("rdma");
        if home == Home::Absent {
            return self.absent("rdma", &[("rdma", !limits.is_empty())]);
        }
        for (device, limit) in limits {
            let word = |key: &str, value: Option<u32>| value.map(|v| format!(" {key}={v}"));
            let words = [word("hca_handle", limit.handles), word("hca_object", limit.objects)];
            let words: String = words.into_iter().flatten().collect();
            self.set(home, "rdma.max", &format!("{device}{words}"));
        }
    }

    /// Unified hosts classify with eBPF programs instead, which the runtime spec does not know.
    fn network(&mut self, network: &NetworkLimits) {
        match self.layout.home("net_cls") {
            Home::Absent => {
                self.absent("net_cls", &[("network.classID", network.class_id.is_some())]);
            }
            home => self.set_if(home, "net_cls.classid", network.class_id),
        }
        match self.layout.home("net_prio") {
            Home::Absent => {
                let asked = !network.priorities.is_empty();
                self.absent("net_prio", &[("network.priorities", asked)]);
            }
            home => {
                for (interface, priority) in &network.priorities {
                    self.set(home, "net_prio.ifpriomap", &format!("{interface} {priority}"));
                }
            }
        }
    }

    /// `unified`: cgroup2 files by name, which go before anything that another field says about the same file. Each
    /// line is a value of its own: the kernel takes one per write.
    fn verbatim(&mut self, limits: &Limits) {
        for (file, value) in &limits.unified {
            if let Err(why) = self.check_verbatim(file, value) {
                self.problems.add(format!("linux.resources.unified[{file:?}]"), why);
                continue;
            }
            self.settings.retain(|s| s.file != *file);
            for line in value.lines() {
                self.set(Home::Unified, file, &line);
            }
        }
    }

    fn check_verbatim(&self, file: &str, value: &str) -> Result<(), String> {
        let Some((controller, name)) = file.split_once('.').filter(|_| !file.contains(['/', '\0']))
        else {
            return Err("is not the name of a cgroup file".to_owned());
        };
        if value.trim().is_empty() {
            return Err("has no value".to_owned());
        }
        if controller == "cgroup" && RESERVED.contains(&name) {
            return Err("belongs to the runtime".to_owned());
        }
        match self.layout.home(controller) {
            _ if controller == "cgroup" => Ok(()),
            Home::Unified => Ok(()),
            Home::Legacy => Err(format!(
                "the {controller} controller of this host is cgroup v1, use the other fields of linux.resources"
            )),
            Home::Absent => Err(format!("this host's cgroup2 tree has no {controller} controller")),
        }
    }
}

/// `io.weight` (1 to 10000) from a weight of the runtime spec (10 to 1000), both ends on each other as runc has it.
fn io_weight(weight: u16) -> u32 {
    1 + (u32::from(weight).saturating_sub(10)) * 9999 / 990
}

fn unified_bandwidth(cpu: &CpuLimits) -> Option<String> {
    if cpu.quota.is_none() && cpu.period.is_none() {
        return None;
    }
    let quota = cpu.quota.unwrap_or(Amount::Max);
    Some(format!("{quota} {}", cpu.period.unwrap_or(DEFAULT_PERIOD)))
}

fn legacy_period(cpu: &CpuLimits) -> Option<u64> {
    match cpu.quota {
        Some(Amount::Of(_)) => Some(cpu.period.unwrap_or(DEFAULT_PERIOD)),
        _ => cpu.period,
    }
}

/// cgroup v1 writes "no limit" as -1.
fn legacy(amount: Amount) -> String {
    match amount {
        Amount::Max => "-1".to_owned(),
        Amount::Of(n) => n.to_string(),
    }
}

#[cfg(test)]
mod tests;
