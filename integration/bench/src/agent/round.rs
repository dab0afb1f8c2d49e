//! One program with so many containers: started, looked at, and destroyed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::gate::Gate;
use super::{Error, Node, Wanted, processes};

/// Calls of `stats` in a round.
const STATS: u32 = 5;
/// Between the last start and the look at what is there without a request.
const SETTLED: Duration = Duration::from_secs(8);
/// Between two looks at the host's memory, which after many ends the kernel frees for a while.
const FREED: Duration = Duration::from_secs(2);
const MOST_LOOKS: u32 = 15;
/// Less than this is gained by others, too.
const STILL_KIB: u64 = 2048;
/// An end that is not told within this is not told.
const LATEST: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Requests under way at the same time.
    pub at_once: usize,
    /// Containers that are started one after the other, and ended so.
    pub singles: usize,
    /// How long the CPU time of idle processes is counted.
    pub idle: Duration,
}

/// What was seen in a round. Milliseconds unless it says otherwise.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// From the request to the first words of the container, one at a time.
    pub start: Vec<f64>,
    /// Containers in a second.
    pub start_rate: f64,
    pub destroy_rate: f64,
    /// From the kill of the first process until the end is told.
    pub exit: Vec<f64>,
    /// Of all processes that are not the containers', for each container.
    pub kib_each: f64,
    /// What the host has less memory for each container: kernel and the container's own process are in it.
    pub host_kib_each: Option<f64>,
    /// Of the process that answers.
    pub daemon_kib: Option<f64>,
    pub stats: Vec<f64>,
    /// Percent of one CPU: of the process that answers, and of all.
    pub idle_daemon: Option<f64>,
    pub idle_all: f64,
    pub recover: Option<f64>,
}

/// What all rounds share.
#[derive(Debug)]
pub struct Scene<'a> {
    pub settings: Settings,
    pub gate: &'a Gate,
    /// Processes of a program name the folder of its name in it.
    pub mark: &'a Path,
    pub serial: &'a AtomicU64,
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Scene<'_> {
    fn wanted(&self, name: &str) -> Wanted {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        // A number that no other process sleeps for.
        let sleep = u64::from(std::process::id()) * 10_000_000 + serial;
        Wanted { name: format!("b-{name}-{serial}"), sleep }
    }

    /// # Errors
    /// Of the program; what it started is left to its `Drop`.
    pub fn round(&self, node: &mut dyn Node, count: usize) -> Result<Seen, Error> {
        let mut seen = Seen::default();
        let singles = self.start_singles(node, &mut seen)?;
        node.destroy(&singles)?;
        // What the kernel still frees of those, and of earlier rounds, would be counted as gained.
        let before = when_still();
        let wanted = self.start_all(node, count, &mut seen)?;
        // What follows from a start is over then: what launches takes more than what keeps.
        thread::sleep(SETTLED);
        let processes = processes::of(&self.mark.join(node.name()));
        let taken = before.zip(processes::available_kib());
        // What was freed by others meanwhile hides it.
        let taken = taken.and_then(|(before, now)| before.checked_sub(now));
        seen.host_kib_each = taken.map(|kib| kib as f64 / count as f64);
        seen.kib_each = processes::pss_kib(&processes) as f64 / count as f64;
        seen.daemon_kib = node.daemon().map(|pid| processes::pss_kib(&[pid]) as f64);
        seen.stats = ask_for_stats(node, count)?;
        self.idle(node, &processes, &mut seen);
        seen.exit = self.end_some(node, &wanted)?;
        let left = count - seen.exit.len();
        seen.recover = node.recover(left)?.map(ms);
        let names: Vec<String> = wanted.into_iter().map(|w| w.name).collect();
        let begun = Instant::now();
        self.each(&names, 16, |some| node.destroy(some))?;
        seen.destroy_rate = count as f64 / begun.elapsed().as_secs_f64();
        Ok(seen)
    }

    fn start_singles(&self, node: &dyn Node, seen: &mut Seen) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for _ in 0..self.settings.singles {
            let wanted = self.wanted(node.name());
            let begun = Instant::now();
            node.start(&wanted)?;
            let first = self.gate.await_all(1)?;
            let at = first.get(&wanted.name).ok_or("somebody else came to the gate")?;
            seen.start.push(ms(at.duration_since(begun)));
            names.push(wanted.name);
        }
        Ok(names)
    }

    fn start_all(
        &self,
        node: &dyn Node,
        count: usize,
        seen: &mut Seen,
    ) -> Result<Vec<Wanted>, Error> {
        let all: Vec<Wanted> = (0..count).map(|_| self.wanted(node.name())).collect();
        let begun = Instant::now();
        self.each(&all, 1, |some| some.iter().try_for_each(|wanted| node.start(wanted)))?;
        let heard = self.gate.await_all(count)?;
        let last = heard.values().max().ok_or("no container")?;
        seen.start_rate = count as f64 / last.duration_since(begun).as_secs_f64();
        Ok(all)
    }

    /// As many calls at once as is said, each with at most so many.
    fn each<T: Sync>(
        &self,
        all: &[T],
        most: usize,
        act: impl Fn(&[T]) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let parts: Vec<&[T]> = all.chunks(most).collect();
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        thread::scope(|scope| {
            for _ in 0..self.settings.at_once {
                scope.spawn(|| {
                    while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(e) = act(part) {
                            next.store(parts.len(), Ordering::Relaxed);
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                        }
                    }
                });
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn idle(&self, node: &dyn Node, processes: &[i32], seen: &mut Seen) {
        let ticks =
            |pids: &[i32]| -> u64 { pids.iter().filter_map(|p| processes::ticks(*p)).sum() };
        let daemon: Vec<i32> = node.daemon().into_iter().collect();
        let before = (ticks(&daemon), ticks(processes));
        thread::sleep(self.settings.idle);
        let after = (ticks(&daemon), ticks(processes));
        // A tick is a hundredth of a second.
        let percent = |before: u64, after: u64| {
            after.saturating_sub(before) as f64 / self.settings.idle.as_secs_f64()
        };
        seen.idle_daemon = node.daemon().map(|_| percent(before.0, after.0));
        seen.idle_all = percent(before.1, after.1);
    }

    /// Kills as many as there are singles, one by one.
    fn end_some(&self, node: &dyn Node, all: &[Wanted]) -> Result<Vec<f64>, Error> {
        let pids = processes::sleepers();
        let mut ends = node.ends()?;
        let mut took = Vec::new();
        for wanted in all.iter().take(self.settings.singles) {
            let pid = *pids
                .get(&wanted.sleep)
                .ok_or_else(|| format!("{} has no process", wanted.name))?;
            let begun = Instant::now();
            kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(|e| format!("kill {pid}: {e}"))?;
            let mut told = HashMap::new();
            while !told.contains_key(&wanted.name) {
                let end = ends.told.recv_timeout(LATEST);
                let end = end.map_err(|_| format!("nobody tells of the end of {}", wanted.name))?;
                told.insert(end.name, end.at);
            }
            took.push(ms(told[&wanted.name].duration_since(begun)));
            // What follows an end is over before the next one.
            thread::sleep(Duration::from_millis(50));
        }
        if let Some(listener) = &mut ends.listener {
            listener.end(Signal::SIGTERM);
        }
        Ok(took)
    }
}

/// What the host has to give, once that does not grow any more.
fn when_still() -> Option<u64> {
    let mut last = processes::available_kib()?;
    for _ in 0..MOST_LOOKS {
        thread::sleep(FREED);
        let now = processes::available_kib()?;
        if now < last + STILL_KIB {
            return Some(now);
        }
        last = now;
    }
    Some(last)
}

fn ask_for_stats(node: &dyn Node, count: usize) -> Result<Vec<f64>, Error> {
    // The last ones said their names before the program knew that they run.
    let deadline = Instant::now() + LATEST;
    while node.stats()?.is_some_and(|found| found < count) {
        if Instant::now() > deadline {
            return Err(format!("stats tell of fewer than {count} containers").into());
        }
    }
    let mut took = Vec::new();
    for _ in 0..STATS {
        let begun = Instant::now();
        if node.stats()?.is_none() {
            break;
        }
        took.push(ms(begun.elapsed()));
    }
    Ok(took)
}
