use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxResources, Spec};

use super::linux;
use crate::facts::Home;
use crate::resolved::{
    Amount, BlockDevice, CpuLimits, DeviceRule, IoLimits, Limits, MemoryLimits, NetworkLimits,
    RdmaLimits, Throttle,
};
use crate::{HostFacts, Problems};

/// What a container is limited to already, for an update that names one half of a pair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    pub memory: Option<Amount>,
    pub quota: Option<Amount>,
    pub period: Option<u64>,
}

/// Limits for a container that exists, and rules for its devices if there are any.
///
/// # Errors
/// Every problem found, each with its field.
pub fn resolve_update(
    resources: &LinuxResources,
    facts: &HostFacts,
    held: &Held,
) -> Result<(Limits, Option<Vec<DeviceRule>>), Problems> {
    let mut problems = Problems::default();
    let limits = of_resources(resources, facts, held, &mut problems);
    let rules = resources.devices().as_deref().filter(|rules| !rules.is_empty());
    let rules = rules.map(|rules| linux::rules(rules, &mut problems));
    problems.into_result((limits, rules))
}

pub(super) fn limits(spec: &Spec, facts: &HostFacts, problems: &mut Problems) -> Limits {
    let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    let of = |resources| of_resources(resources, facts, &Held::default(), problems);
    resources.map(of).unwrap_or_default()
}

fn of_resources(
    resources: &LinuxResources,
    facts: &HostFacts,
    held: &Held,
    problems: &mut Problems,
) -> Limits {
    let limits = Limits {
        cpu: resources.cpu().as_ref().map(|c| cpu(c, held, problems)).unwrap_or_default(),
        memory: resources.memory().as_ref().map(|m| memory(m, held, problems)).unwrap_or_default(),
        // 0 was "no limit" in the first clients, and is still written so.
        pids: resources.pids().map(|p| {
            if p.limit() > 0 { Amount::Of(p.limit().unsigned_abs()) } else { Amount::Max }
        }),
        hugepages: hugepages(resources, problems),
        io: resources.block_io().as_ref().map(|io| block_io(io, problems)).unwrap_or_default(),
        rdma: rdma(resources, problems),
        network: resources.network().as_ref().map(|n| network(n, problems)).unwrap_or_default(),
        unified: resources
            .unified()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
    };
    check_unified(&limits, facts, problems);
    limits
}

fn cpu(cpu: &LinuxCpu, held: &Held, problems: &mut Problems) -> CpuLimits {
    if cpu.idle().is_some_and(|i| !(0..=1).contains(&i)) {
        problems.add("linux.resources.cpu.idle", "must be 0 or 1");
    }
    if cpu.period().is_some_and(|p| p != 0 && !(1_000..=1_000_000).contains(&p)) {
        problems.add("linux.resources.cpu.period", "must be between 1000 and 1000000 microseconds");
    }
    if cpu.quota().is_some_and(|q| q > 0 && q < 1_000) {
        problems.add("linux.resources.cpu.quota", "must be at least 1000 microseconds");
    }
    let quota = cpu.quota().filter(|q| *q != 0).map(amount);
    let period = cpu.period().filter(|p| *p != 0);
    // Written together, so what is named brings the other along.
    let (quota, period) = (
        quota.or(held.quota.filter(|_| period.is_some())),
        period.or(held.period.filter(|_| quota.is_some())),
    );
    if let (Some(burst), Some(Amount::Of(quota))) = (cpu.burst(), quota)
        && burst > quota
    {
        problems.add("linux.resources.cpu.burst", format!("{burst} is above the quota {quota}"));
    }
    CpuLimits {
        shares: cpu.shares().filter(|s| *s != 0),
        quota,
        period,
        burst: cpu.burst(),
        idle: cpu.idle().map(|i| i == 1),
        realtime_runtime: cpu.realtime_runtime().filter(|r| *r != 0),
        realtime_period: cpu.realtime_period().filter(|p| *p != 0),
        cpus: list(cpu.cpus().as_ref(), "linux.resources.cpu.cpus", problems),
        mems: list(cpu.mems().as_ref(), "linux.resources.cpu.mems", problems),
    }
}

/// A list as `0-3,7`: checked here, because the kernel says no more than EINVAL.
fn list(text: Option<&String>, field: &str, problems: &mut Problems) -> Option<String> {
    let text = text.filter(|t| !t.is_empty())?;
    let number = |n: &str| n.trim().parse::<u32>().is_ok();
    let range =
        |r: &str| r.split_once('-').map_or_else(|| number(r), |(a, b)| number(a) && number(b));
    if !text.split(',').all(range) {
        problems.add(field, format!("{text:?} is not a list as \"0-3,7\""));
    }
    Some(text.clone())
}

fn memory(memory: &LinuxMemory, held: &Held, problems: &mut Problems) -> MemoryLimits {
    for (field, value) in [("kernel", memory.kernel()), ("kernelTCP", memory.kernel_tcp())] {
        if value.is_some_and(|v| v > 0) {
            problems.add(
                format!("linux.resources.memory.{field}"),
                "is deprecated and no kernel from 5.16 on enforces it: leave it out",
            );
        }
    }
    if memory.swappiness().is_some_and(|s| s > 100) {
        problems.add("linux.resources.memory.swappiness", "must be between 0 and 100");
    }
    // Every kernel from 5.11 on counts hierarchically.
    if memory.use_hierarchy() == Some(false) {
        problems.add(
            "linux.resources.memory.useHierarchy",
            "cannot be false: the kernel always counts with all below",
        );
    }
    let swap = memory.swap().filter(|v| *v != 0).map(amount);
    let limit = memory.limit().filter(|v| *v != 0).map(amount);
    let resolved = MemoryLimits {
        limit: limit.or(held.memory.filter(|_| swap.is_some())),
        reservation: memory.reservation().filter(|v| *v != 0).map(amount),
        swap,
        swappiness: memory.swappiness(),
        disable_oom_killer: memory.disable_oom_killer().filter(|d| *d),
        check_before_update: memory.check_before_update() == Some(true),
    };
    check_swap(&resolved, problems);
    resolved
}

/// A size of huge pages as names of cgroup files have it (`2MB`), from `2MB` or the kernel's own `2048kB`.
#[must_use]
pub fn page_size(text: &str) -> Option<String> {
    const UNITS: [(&str, u32); 3] = [("GB", 30), ("MB", 20), ("KB", 10)];
    let upper = text.to_ascii_uppercase();
    let (number, shift) =
        UNITS.iter().find_map(|(unit, shift)| Some((upper.strip_suffix(unit)?, shift)))?;
    let bytes = number.parse::<u64>().ok().filter(|n| *n > 0)?.checked_mul(1 << shift)?;
    let (unit, shift) = UNITS.iter().find(|(_, shift)| bytes >> shift > 0)?;
    Some(format!("{}{unit}", bytes >> shift))
}

fn hugepages(resources: &LinuxResources, problems: &mut Problems) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for (i, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        let field = |name: &str| format!("linux.resources.hugepageLimits[{i}].{name}");
        let size = page_size(limit.page_size());
        if size.is_none() {
            let why = format!("{:?} is not a size of pages as 2MB or 1GB", limit.page_size());
            problems.add(field("pageSize"), why);
        }
        let bytes = u64::try_from(limit.limit());
        if bytes.is_err() {
            problems.add(field("limit"), "must not be negative");
        }
        if let (Some(size), Ok(bytes)) = (size, bytes)
            && found.insert(size.clone(), bytes).is_some()
        {
            problems.add(field("pageSize"), format!("{size} is listed twice"));
        }
    }
    found
}

fn block_io(io: &LinuxBlockIo, problems: &mut Problems) -> IoLimits {
    let mut limits = IoLimits::default();
    let mut weight = |weight: Option<u16>, field: String| {
        let weight = weight.filter(|w| *w != 0)?;
        if !(10..=1000).contains(&weight) {
            problems.add(field, format!("{weight} is not between 10 and 1000"));
        }
        Some(weight)
    };
    limits.weight = weight(io.weight(), "linux.resources.blockIO.weight".to_owned());
    let mut leaf_weights = vec![("leafWeight".to_owned(), io.leaf_weight())];
    let mut devices = Vec::new();
    for (i, device) in io.weight_device().iter().flatten().enumerate() {
        let name = format!("weightDevice[{i}]");
        let own = weight(device.weight(), format!("linux.resources.blockIO.{name}.weight"));
        devices.extend(own.map(|weight| (name.clone(), device.major(), device.minor(), weight)));
        leaf_weights.push((format!("{name}.leafWeight"), device.leaf_weight()));
    }
    for (name, major, minor, weight) in devices {
        let device = block_device(major, minor, &name, problems);
        limits.device_weights.extend(device.map(|device| (device, weight)));
    }
    for (name, _) in leaf_weights.iter().filter(|(_, weight)| weight.is_some_and(|w| w != 0)) {
        let why = "cannot be enforced: no kernel from 5.0 on has such a setting";
        problems.add(format!("linux.resources.blockIO.{name}"), why);
    }
    limits.throttles = throttles(io, problems);
    limits
}

fn throttles(io: &LinuxBlockIo, problems: &mut Problems) -> Vec<Throttle> {
    let lists = [
        ("throttleReadBpsDevice", io.throttle_read_bps_device(), false, false),
        ("throttleWriteBpsDevice", io.throttle_write_bps_device(), true, false),
        ("throttleReadIOPSDevice", io.throttle_read_iops_device(), false, true),
        ("throttleWriteIOPSDevice", io.throttle_write_iops_device(), true, true),
    ];
    let mut found = Vec::new();
    for (name, list, write, operations) in lists {
        for (i, throttle) in list.iter().flatten().enumerate() {
            let field = format!("{name}[{i}]");
            let device = block_device(throttle.major(), throttle.minor(), &field, problems);
            let rate = throttle.rate();
            found.extend(device.map(|device| Throttle { device, write, operations, rate }));
        }
    }
    found
}

fn block_device(
    major: i64,
    minor: i64,
    name: &str,
    problems: &mut Problems,
) -> Option<BlockDevice> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Some(BlockDevice(major, minor)),
        _ => {
            let why = format!("{major}:{minor} is not a device");
            problems.add(format!("linux.resources.blockIO.{name}"), why);
            None
        }
    }
}

fn rdma(resources: &LinuxResources, problems: &mut Problems) -> BTreeMap<String, RdmaLimits> {
    let mut found = BTreeMap::new();
    for (device, limit) in resources.rdma().iter().flatten() {
        if !is_one_word(device) {
            problems
                .add(format!("linux.resources.rdma[{device:?}]"), "is not the name of a device");
        }
        let limits = RdmaLimits { handles: limit.hca_handles(), objects: limit.hca_objects() };
        if limits != RdmaLimits::default() {
            found.insert(device.clone(), limits);
        }
    }
    found
}

fn network(network: &LinuxNetwork, problems: &mut Problems) -> NetworkLimits {
    let priorities = network.priorities().as_deref().unwrap_or_default();
    for (i, priority) in priorities.iter().enumerate().filter(|(_, p)| !is_one_word(p.name())) {
        let field = format!("linux.resources.network.priorities[{i}].name");
        problems.add(field, format!("{:?} is not the name of an interface", priority.name()));
    }
    NetworkLimits {
        class_id: network.class_id().filter(|id| *id != 0),
        priorities: priorities.iter().map(|p| (p.name().clone(), p.priority())).collect(),
    }
}

/// The kernel takes a name and values with blanks between them.
fn is_one_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '\0')
}

fn check_swap(memory: &MemoryLimits, problems: &mut Problems) {
    match (memory.swap, memory.limit) {
        (Some(Amount::Of(_)), None) => {
            problems.add(
                "linux.resources.memory.swap",
                "counts memory and swap together: set limit as well",
            );
        }
        (Some(Amount::Of(swap)), Some(Amount::Of(limit))) if swap < limit => {
            problems.add(
                "linux.resources.memory.swap",
                format!("{swap} is below limit {limit}: it counts memory and swap together"),
            );
        }
        (Some(Amount::Of(_)), Some(Amount::Max)) => {
            problems.add("linux.resources.memory.swap", "cannot be bounded while limit is not");
        }
        _ => {}
    }
}

fn check_unified(limits: &Limits, facts: &HostFacts, problems: &mut Problems) {
    for key in limits.unified.keys() {
        let field = format!("linux.resources.unified[{key:?}]");
        let Some((controller, _)) =
            key.split_once('.').filter(|_| !key.contains('/') && !key.contains('\0'))
        else {
            problems.add(field, "is not the name of a cgroup file");
            continue;
        };
        if controller != "cgroup" && facts.cgroup.home(controller) != Home::Unified {
            problems.add(
                field,
                format!("the controller {controller} is not in this host's cgroup2 tree"),
            );
        }
    }
}

fn amount(value: i64) -> Amount {
    u64::try_from(value).map_or(Amount::Max, Amount::Of)
}
