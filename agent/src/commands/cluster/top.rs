//! `hafen top` of a cluster.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use hafen::{amount, time};
use hafen_protocol::v1;

use super::{HostArgs, block_on, show, view};
use crate::Error;
use crate::commands::stats::{Sort, clear, percent};

/// Nodes report every 10 s: whoever took nothing more for longer takes nothing.
const STALE: Duration = Duration::from_secs(15);

/// What was known of a task when its numbers changed last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    taken: Duration,
    at: Duration,
    /// Percent of one CPU.
    cpu: Option<f64>,
}

pub(in crate::commands) fn top(
    host: &HostArgs,
    by: Sort,
    delay: Duration,
) -> Result<ExitCode, Error> {
    block_on(async {
        let mut client = host.cluster().await?;
        let mut seen = BTreeMap::new();
        loop {
            let view = view(&mut client, "").await?;
            seen = look(&seen, &view);
            let running = view.instances.iter().filter(|one| one.usage.is_some());
            let mut rows: Vec<_> = running.map(|one| (one, seen.get(&one.name).copied())).collect();
            sort(&mut rows, by);
            // One line is the header, one stays for the cursor.
            let lines = hafen_sys::terminal::size(std::io::stdout())
                .map_or(usize::MAX, |size| usize::from(size.rows).saturating_sub(3));
            let shown = rows.iter().take(lines).map(|(one, seen)| row(one, *seen)).collect();
            let table = show::render(HEADER, shown);
            let head = format!("{} tasks run, by {by:?}; Ctrl-C ends", rows.len());
            show::line(&format!("{}{head}\n{table}", clear()))?;
            tokio::time::sleep(delay).await;
        }
    })
}

pub(super) fn look(
    before: &BTreeMap<String, Seen>,
    view: &v1::ClusterView,
) -> BTreeMap<String, Seen> {
    let since_1970 =
        |stamp| time::system(stamp).duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let at = view.time.as_ref().map(since_1970).unwrap_or_default();
    let running = view.instances.iter().filter_map(|one| Some((one, one.usage.as_ref()?)));
    running
        .map(|(one, usage)| {
            let taken = usage.cpu.as_ref().map(time::duration).unwrap_or_default();
            (one.name.clone(), seen(before.get(&one.name).copied(), taken, at))
        })
        .collect()
}

fn seen(before: Option<Seen>, taken: Duration, at: Duration) -> Seen {
    match before {
        None => Seen { taken, at, cpu: None },
        Some(old) if old.taken != taken => {
            Seen { taken, at, cpu: percent((old.taken, old.at), (taken, at)) }
        }
        Some(old) if at.saturating_sub(old.at) > STALE => Seen { cpu: Some(0.0), ..old },
        Some(old) => old,
    }
}

fn sort(rows: &mut [(&v1::Instance, Option<Seen>)], by: Sort) {
    let memory = |one: &v1::Instance| one.usage.as_ref().map_or(0, |usage| usage.memory);
    let cpu = |seen: &Option<Seen>| seen.and_then(|seen| seen.cpu).unwrap_or_default();
    match by {
        Sort::Cpu => rows.sort_by(|a, b| cpu(&b.1).total_cmp(&cpu(&a.1))),
        Sort::Memory => rows.sort_by_key(|(one, _)| std::cmp::Reverse(memory(one))),
    }
}

const HEADER: [&str; 7] = ["TASK", "JOB", "NODE", "CPU", "MEMORY", "LIMIT", "PIDS"];

pub(super) fn row(one: &v1::Instance, seen: Option<Seen>) -> [String; 7] {
    let usage = one.usage.unwrap_or_default();
    let limit = match usage.memory_limit {
        0 | u64::MAX => "-".to_owned(),
        bytes => amount::say_bytes(bytes),
    };
    let cpu = seen.and_then(|seen| seen.cpu);
    [
        one.name.clone(),
        format!("{}:{}", one.job, one.slot),
        one.node.clone(),
        cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}%")),
        amount::say_bytes(usage.memory),
        limit,
        usage.pids.to_string(),
    ]
}
