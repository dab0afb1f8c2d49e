use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources, Spec};

use super::{linux, unsupported};
use crate::facts::Home;
use crate::resolved::{Amount, CpuLimits, DeviceRule, Limits, MemoryLimits};
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
    unsupported::check_resources(resources, &mut problems);
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
    let realtime = [
        ("realtimeRuntime", cpu.realtime_runtime().is_some_and(|r| r != 0)),
        ("realtimePeriod", cpu.realtime_period().is_some_and(|p| p != 0)),
    ];
    for (field, _) in realtime.iter().filter(|(_, present)| *present) {
        problems.add(format!("linux.resources.cpu.{field}"), "is not supported yet");
    }
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
