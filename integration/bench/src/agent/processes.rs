//! What processes take, by proc(5).

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Processes that name `folder` in their command line.
pub fn of(folder: &Path) -> Vec<i32> {
    let name = folder.as_os_str().as_encoded_bytes();
    let names = |line: &[u8]| line.windows(name.len()).any(|part| part == name);
    all().filter(|(_, line)| names(line)).map(|(pid, _)| pid).collect()
}

/// First processes of containers by the number of seconds that they sleep.
pub fn sleepers() -> HashMap<u64, i32> {
    let number = |line: &[u8]| {
        let rest = line.strip_prefix(b"/bin/busybox\0sleep\0")?.strip_suffix(b"\0")?;
        std::str::from_utf8(rest).ok()?.parse().ok()
    };
    all().filter_map(|(pid, line)| Some((number(&line)?, pid))).collect()
}

fn all() -> impl Iterator<Item = (i32, Vec<u8>)> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(move |pid| *pid != own)
        .filter_map(|pid: i32| Some((pid, fs::read(format!("/proc/{pid}/cmdline")).ok()?)))
}

/// Proportional set size in KiB; one that has ended takes nothing.
pub fn pss_kib(pids: &[i32]) -> u64 {
    let of = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    pids.iter().filter_map(of).sum()
}

/// A line of /proc/PID/status that is in KiB, as "VmRSS".
pub fn status_kib(pid: i32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time in ticks of 1/100 s, which is what the kernel counts in for programs.
pub fn ticks(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let mut fields = text.rsplit_once(") ")?.1.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

pub fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// What is to be had without swapping.
pub fn available_kib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok()
}
