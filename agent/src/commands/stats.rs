//! `hafen stats` and `hafen top`.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hafen::client::Client;
use hafen::{amount, time};
use hafen_protocol::v1;

use super::{HostArgs, Whose, block_on, cluster, show};
use crate::Error;
use crate::cli::Format;

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Once, and not again and again.
    #[arg(long)]
    no_stream: bool,
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// All that run, if none is named.
    #[arg(value_name = "TASK")]
    ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    whose: Whose,
    #[arg(short, long, default_value = "cpu")]
    sort: Sort,
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    delay: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    Cpu,
    Memory,
}

/// From the upper left, over an empty screen (ECMA-48: CUP, ED); for a pipe, what comes follows what was.
pub(super) fn clear() -> &'static str {
    if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" }
}

const HEADER: [&str; 7] =
    ["TASK", "CPU", "MEMORY", "LIMIT", "PIDS", "DISK READ/WRITTEN", "NET IN/OUT"];

/// CPU time of each task, and when it was.
type Before = BTreeMap<String, (Duration, Duration)>;

struct Look {
    task: v1::TaskUsage,
    /// Percent of one CPU.
    cpu: Option<f64>,
}

async fn look(
    client: &mut Client,
    ids: &[String],
    before: &mut Before,
) -> Result<Vec<Look>, Error> {
    let request = v1::StatsRequest { ids: ids.to_vec() };
    let tasks = client.stats(request).await?.into_inner().tasks;
    let mut now = Before::new();
    let looks = tasks
        .into_iter()
        .map(|task| {
            let taken = cpu(&task);
            let cpu = before.get(&task.id).and_then(|earlier| percent(*earlier, taken));
            now.insert(task.id.clone(), taken);
            Look { task, cpu }
        })
        .collect();
    *before = now;
    Ok(looks)
}

fn cpu(task: &v1::TaskUsage) -> (Duration, Duration) {
    let taken = task.usage.as_ref().and_then(|usage| usage.cpu.as_ref());
    let at = task
        .time
        .as_ref()
        .map(time::system)
        .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    (taken.map(time::duration).unwrap_or_default(), at.unwrap_or_default())
}

pub(super) fn percent(before: (Duration, Duration), now: (Duration, Duration)) -> Option<f64> {
    let (taken, passed) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
    (!passed.is_zero()).then(|| 100.0 * taken.as_secs_f64() / passed.as_secs_f64())
}

fn row(look: &Look) -> [String; 7] {
    let usage = look.task.usage.unwrap_or_default();
    let limit =
        |n: u64| if n == 0 || n == u64::MAX { "-".to_owned() } else { amount::say_bytes(n) };
    let pair = |a, b| format!("{} / {}", amount::say_bytes(a), amount::say_bytes(b));
    [
        look.task.id.clone(),
        look.cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}%")),
        amount::say_bytes(usage.memory),
        limit(usage.memory_limit),
        usage.pids.to_string(),
        pair(usage.read_bytes, usage.written_bytes),
        pair(usage.received_bytes, usage.sent_bytes),
    ]
}

pub(super) fn stats(host: &HostArgs, args: &StatsArgs) -> Result<ExitCode, Error> {
    const PAUSE: Duration = Duration::from_secs(1);
    block_on(async {
        let mut client = host.connect().await?;
        let mut before = Before::new();
        let is_table = args.format == Format::Table;
        if is_table {
            // The share of a CPU is between two looks.
            look(&mut client, &args.ids, &mut before).await?;
            tokio::time::sleep(PAUSE).await;
        }
        loop {
            let looks = look(&mut client, &args.ids, &mut before).await?;
            if is_table {
                let clear = if args.no_stream { "" } else { clear() };
                let table = show::render(HEADER, looks.iter().map(row).collect());
                show::line(&format!("{clear}{table}"))?;
            } else {
                looks.iter().try_for_each(|look| show::json_line(&look.task))?;
            }
            if args.no_stream {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
}

pub(super) fn top(host: &HostArgs, args: &TopArgs) -> Result<ExitCode, Error> {
    if args.whose.is_cluster(host) {
        return cluster::top(host, args.sort, Duration::from_secs(args.delay));
    }
    block_on(async {
        let mut client = host.connect().await?;
        let mut before = Before::new();
        loop {
            let mut looks = look(&mut client, &[], &mut before).await?;
            sort(&mut looks, args.sort);
            // One line is the header, one stays for the cursor.
            let rows =
                hafen_sys::terminal::size(std::io::stdout()).map(|size| usize::from(size.rows));
            let shown = rows.map_or(usize::MAX, |rows| rows.saturating_sub(3));
            let table = show::render(HEADER, looks.iter().take(shown).map(row).collect());
            let head = format!("{} tasks run, by {:?}; Ctrl-C ends", looks.len(), args.sort);
            show::line(&format!("{}{head}\n{table}", clear()))?;
            tokio::time::sleep(Duration::from_secs(args.delay)).await;
        }
    })
}

fn sort(looks: &mut [Look], by: Sort) {
    let memory = |look: &Look| look.task.usage.as_ref().map_or(0, |usage| usage.memory);
    match by {
        Sort::Cpu => looks.sort_by(|a, b| b.cpu.unwrap_or(0.0).total_cmp(&a.cpu.unwrap_or(0.0))),
        Sort::Memory => looks.sort_by_key(|look| std::cmp::Reverse(memory(look))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_cpu_is_between_two_looks() {
        let at = |taken, time| (Duration::from_millis(taken), Duration::from_millis(time));
        assert_eq!(percent(at(0, 0), at(500, 1000)), Some(50.0));
        assert_eq!(percent(at(0, 1000), at(500, 1000)), None);
        // It was started again.
        assert_eq!(percent(at(500, 0), at(0, 1000)), Some(0.0));
    }
}
