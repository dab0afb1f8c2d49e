use hafen_spec::Problems;
use hafen_spec::facts::{CgroupLayout, Home};
use hafen_spec::resolved::{Amount, CpuLimits, Limits, MemoryLimits};

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

/// A size of huge pages as names of cgroup files have it (`2MB`), from `2MB` or the kernel's own `2048kB`.
pub(super) fn page_size(text: &str) -> Option<String> {
    const UNITS: [(&str, u32); 3] = [("GB", 30), ("MB", 20), ("KB", 10)];
    let upper = text.to_ascii_uppercase();
    let (number, shift) =
        UNITS.iter().find_map(|(unit, shift)| Some((upper.strip_suffix(unit)?, shift)))?;
    let bytes = number.parse::<u64>().ok().filter(|n| *n > 0)?.checked_mul(1 << shift)?;
    let (unit, shift) = UNITS.iter().find(|(_, shift)| bytes >> shift > 0)?;
    Some(format!("{}{unit}", bytes >> shift))
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
        });
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
            }
            Home::Legacy => {
                self.set_if(home, "cpu.shares", cpu.shares);
                self.set_if(home, "cpu.cfs_period_us", legacy_period(cpu));
                self.set_if(home, "cpu.cfs_quota_us", cpu.quota.map(legacy));
                self.set_if(home, "cpu.cfs_burst_us", cpu.burst);
            }
            Home::Absent => {
                return self.absent(
                    "cpu",
                    &[
                        ("cpu.shares", cpu.shares.is_some()),
                        ("cpu.quota", matches!(cpu.quota, Some(Amount::Of(_)))),
                        ("cpu.burst", cpu.burst.is_some_and(|b| b > 0)),
                        ("cpu.idle", cpu.idle == Some(true)),
                    ],
                );
            }
        }
        self.set_if(home, "cpu.idle", cpu.idle.map(u8::from));
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
