//! What tasks take now, from the kernel's own numbers.

use std::time::Duration;

use hafen_isolator::cgroup::{self, Pressure};
use hafen_isolator::interface;
use hafen_protocol::v1;
use hafen_spec::keep::Status;

use crate::time::span;

/// Read the numbers of a container. What cannot be had is left at zero.
#[must_use]
pub fn usage(status: &Status) -> v1::Usage {
    let taken = cgroup::taken(&status.claims);
    let totals = &taken.totals;
    let interfaces = interface::of(status.pid).unwrap_or_default();
    let micros = |usec: u64| Some(span(Duration::from_micros(usec)));
    let some = |psi: Option<Pressure>| psi.and_then(|psi| Some(psi.some?.avg10));
    v1::Usage {
        cpu: micros(totals.cpu_usec.unwrap_or_default()),
        cpu_user: micros(taken.cpu_user_usec),
        cpu_system: micros(taken.cpu_system_usec),
        cpu_periods: totals.cpu_periods.unwrap_or_default(),
        cpu_throttled_periods: totals.cpu_throttled_periods.unwrap_or_default(),
        cpu_throttled: micros(totals.cpu_throttled_usec.unwrap_or_default()),
        memory: taken.memory,
        memory_peak: totals.memory_peak_bytes.unwrap_or_default(),
        memory_limit: totals.memory_limit_bytes.unwrap_or_default(),
        memory_anon: taken.memory_anon,
        memory_file: taken.memory_file,
        swap: taken.swap,
        oom_events: totals.oom_events.unwrap_or_default(),
        oom_kills: totals.oom_kills.unwrap_or_default(),
        pids: taken.pids,
        pids_peak: totals.pids_peak.unwrap_or_default(),
        pids_limit: totals.pids_limit.unwrap_or_default(),
        pids_refused: totals.pids_limit_hits.unwrap_or_default(),
        read_bytes: taken.read_bytes,
        written_bytes: taken.written_bytes,
        reads: taken.reads,
        writes: taken.writes,
        received_bytes: interfaces.iter().map(|interface| interface.rx_bytes).sum(),
        sent_bytes: interfaces.iter().map(|interface| interface.tx_bytes).sum(),
        cpu_pressure: some(taken.cpu_pressure),
        memory_pressure: some(taken.memory_pressure),
        memory_pressure_full: taken.memory_pressure.and_then(|psi| Some(psi.full?.avg10)),
        io_pressure: some(taken.io_pressure),
    }
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

/// Percent of the last ten seconds in which some process of the machine waited for it, and in which all did; `None` where the
/// kernel does not count it.
#[must_use]
pub fn pressure(of: &str) -> (Option<f64>, Option<f64>) {
    let psi = cgroup::machine_pressure(of);
    let (some, full) = (psi.and_then(|psi| psi.some), psi.and_then(|psi| psi.full));
    (some.map(|waits| waits.avg10), full.map(|waits| waits.avg10))
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
