//! What tasks take now, from the kernel's own numbers.

use std::time::Duration;

use hafen_isolator::cgroup::{self, Stats};
use hafen_protocol::v1;
use hafen_spec::keep::Status;
use hafen_spec::plan::Claim;

use crate::resolve::duration;

/// Read the numbers of a container. What cannot be had is left at zero.
#[must_use]
pub fn usage(status: &Status) -> v1::Usage {
    let stats = cgroup::stats(&status.claims);
    let totals = cgroup::observe(&status.claims);
    let (received_bytes, sent_bytes) = network(status.pid).unwrap_or_default();
    let psi = |psi: Option<cgroup::Pressure>| psi.and_then(|psi| Some(psi.some?.avg10));
    v1::Usage {
        memory: stats.memory.usage.usage,
        memory_peak: totals.memory_peak_bytes.unwrap_or_default(),
        memory_limit: totals.memory_limit_bytes.unwrap_or_default(),
        memory_anon: raw(&stats, &["anon", "total_rss", "rss"]),
        memory_file: raw(&stats, &["file", "total_cache", "cache"]),
        swap: raw(&stats, &["swap", "total_swap"]),
        oom_events: totals.oom_events.unwrap_or_default(),
        oom_kills: totals.oom_kills.unwrap_or_default(),
        pids: stats.pids.current,
        pids_peak: totals.pids_peak.unwrap_or_default(),
        pids_limit: totals.pids_limit.unwrap_or_default(),
        pids_refused: totals.pids_limit_hits.unwrap_or_default(),
        read_bytes: sum(&stats.blkio.io_service_bytes_recursive, "read"),
        written_bytes: sum(&stats.blkio.io_service_bytes_recursive, "write"),
        reads: sum(&stats.blkio.io_serviced_recursive, "read"),
        writes: sum(&stats.blkio.io_serviced_recursive, "write"),
        received_bytes,
        sent_bytes,
        cpu_pressure: psi(stats.cpu.psi),
        memory_pressure: psi(stats.memory.psi),
        memory_pressure_full: stats.memory.psi.and_then(|psi| Some(psi.full?.avg10)),
        io_pressure: psi(stats.blkio.psi),
        ..processor(&stats)
    }
}

fn processor(stats: &Stats) -> v1::Usage {
    let nanos = |nanos| Some(duration(Duration::from_nanos(nanos)));
    let (usage, throttling) = (&stats.cpu.usage, &stats.cpu.throttling);
    v1::Usage {
        cpu: nanos(usage.total),
        cpu_user: nanos(usage.user),
        cpu_system: nanos(usage.kernel),
        cpu_periods: throttling.periods,
        cpu_throttled_periods: throttling.throttled_periods,
        cpu_throttled: nanos(throttling.throttled_time),
        ..v1::Usage::default()
    }
}

fn raw(stats: &Stats, keys: &[&str]) -> u64 {
    keys.iter().find_map(|key| stats.memory.raw.get(*key)).copied().unwrap_or_default()
}

fn sum(entries: &[cgroup::BlkioEntry], op: &str) -> u64 {
    entries.iter().filter(|entry| entry.op.eq_ignore_ascii_case(op)).map(|entry| entry.value).sum()
}

/// Bytes received and sent by all but the loopback; `None` where the network is the node's own.
fn network(pid: i32) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let namespace = |who: &str| std::fs::metadata(format!("/proc/{who}/ns/net")).map(|m| m.ino());
    if namespace(&pid.to_string()).ok()? == namespace("self").ok()? {
        return None;
    }
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    // A name, eight numbers about what was received, eight about what was sent (proc_pid_net(5)).
    let rows = table.lines().filter_map(|line| line.split_once(':'));
    let bytes = rows.filter(|(name, _)| name.trim() != "lo").filter_map(|(_, numbers)| {
        let mut numbers = numbers.split_whitespace().map(str::parse::<u64>);
        Some((numbers.next()?.ok()?, numbers.nth(7)?.ok()?))
    });
    Some(bytes.fold((0, 0), |(received, sent), (r, s)| (received + r, sent + s)))
}

/// Throttled periods and all, for watching: one file.
#[must_use]
pub fn throttling(claims: &[Claim]) -> (u64, u64) {
    let usage = cgroup::observe(claims);
    (usage.cpu_throttled_periods.unwrap_or_default(), usage.cpu_periods.unwrap_or_default())
}

/// Percent of the last minute in which some process of it waited for memory; `None` where the kernel does not count it.
#[must_use]
pub fn memory_pressure(claims: &[Claim]) -> Option<f64> {
    let folder = claims.iter().find_map(|claim| match claim {
        Claim::Cgroup { path, .. } => Some(path),
        _ => None,
    });
    some_of(&std::fs::read_to_string(folder?.join("memory.pressure")).ok()?, "avg60=")
}

/// A number of the line of a PSI file that counts when some process waited.
fn some_of(text: &str, key: &str) -> Option<f64> {
    let some = text.lines().find(|line| line.starts_with("some"))?;
    some.split_whitespace().find_map(|field| field.strip_prefix(key)?.parse().ok())
}

/// What the machine has: CPUs in thousandths, bytes of memory.
#[must_use]
pub fn machine() -> v1::Amounts {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    v1::Amounts {
        cpu_milli: Some(cpus * 1000),
        memory: meminfo("MemTotal:"),
        swap: meminfo("SwapTotal:"),
        pids: number("/proc/sys/kernel/pid_max"),
        disk: None,
    }
}

/// What of it is in use.
#[must_use]
pub fn in_use() -> v1::Amounts {
    let memory = meminfo("MemTotal:").zip(meminfo("MemAvailable:"));
    let swap = meminfo("SwapTotal:").zip(meminfo("SwapFree:"));
    v1::Amounts {
        memory: memory.map(|(total, free)| total.saturating_sub(free)),
        swap: swap.map(|(total, free)| total.saturating_sub(free)),
        ..v1::Amounts::default()
    }
}

/// Percent of the last ten seconds in which some process waited for it (Documentation/accounting/psi.rst).
#[must_use]
pub fn pressure(of: &str) -> Option<f64> {
    some_of(&std::fs::read_to_string(format!("/proc/pressure/{of}")).ok()?, "avg10=")
}

/// proc_meminfo(5), in bytes.
fn meminfo(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn number(file: &str) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}
