//! What many agents that have nothing to say cost the coordinator.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use hafen_protocol::v1::cluster_node::Presence;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::coordinator::Coordinator;
use super::crowd::{Crowd, Tally};
use super::report::{HEARTBEAT, Report};
use super::{Error, pause};
use crate::agent::processes;

/// The goals are about so many, and about a lease of at most so long: with a longer one they say less.
const MANY: usize = 10_000;
const USUAL_LEASE: Duration = Duration::from_secs(5);
/// For all to be welcomed.
const GATHERING: Duration = Duration::from_secs(300);
/// Open files of the coordinator, and of us, that are no connection of an agent.
const OTHER_FILES: u64 = 200;
/// Ports that others on this machine may need.
const OTHER_PORTS: u64 = 1_000;

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub agents: usize,
    /// Agents that dial at the same time.
    pub wave: usize,
    /// For how long CPU time is counted.
    pub window: Duration,
    /// Of the coordinator.
    pub lease: Duration,
}

/// As many of `wanted` as this machine has files and ports for. What we begin after this has the same limit of files.
///
/// # Errors
/// Of the system's calls.
pub fn make_room(wanted: usize) -> Result<usize, Error> {
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| format!("getrlimit RLIMIT_NOFILE: {e}"))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|e| format!("setrlimit RLIMIT_NOFILE {hard}: {e}"))?;
    }
    const PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let range = fs::read_to_string(PORTS).map_err(|e| format!("read {PORTS}: {e}"))?;
    let ports = ports(&range).ok_or_else(|| format!("{PORTS}: {range:?} is no range"))?;
    Ok(fitting(wanted, hard, ports))
}

/// How many a connection may be made from.
fn ports(range: &str) -> Option<u64> {
    let mut ends = range.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    (last + 1).checked_sub(first)
}

fn fitting(wanted: usize, files: u64, ports: u64) -> usize {
    let room = files.saturating_sub(OTHER_FILES).min(ports.saturating_sub(OTHER_PORTS));
    wanted.min(usize::try_from(room).unwrap_or(usize::MAX))
}

/// # Errors
/// If not all are welcomed in time, or some are lost.
pub fn measure(
    report: &mut Report,
    coordinator: &Coordinator,
    settings: &Settings,
    interrupted: &AtomicBool,
) -> Result<(), Error> {
    let case = format!("{} agents, lease {} s", settings.agents, settings.lease.as_secs_f64());
    let begin = Instant::now();
    let handle = coordinator.runtime.handle();
    let crowd = Crowd::gather(handle, &coordinator.url, settings.agents, settings.wave)?;
    gather(&crowd.tally, settings.agents, interrupted)?;
    report.add(HEARTBEAT, &case, "all welcomed, s", vec![begin.elapsed().as_secs_f64()]);
    // What follows from joining is over then: the last are written down, all have said something since.
    pause(settings.lease, interrupted)?;
    let _ = crowd.tally.pings();
    let (ours, theirs) = (Clock::start(own_pid()), Clock::start(coordinator.pid()));
    pause(settings.window, interrupted)?;
    let cores = theirs.cores().ok_or("the coordinator has ended")?;
    let (pings, slowest) = crowd.tally.pings();
    let rate = pings as f64 / settings.window.as_secs_f64();
    let mib = |name| processes::status_kib(coordinator.pid(), name).map(|kib| kib as f64 / 1024.0);
    let pss = processes::pss_kib(&[coordinator.pid()]) as f64 / 1024.0;
    let resident = mib("VmRSS");
    let mut add = |what, value: Option<f64>| {
        report.add(HEARTBEAT, &case, what, value.into_iter().collect());
    };
    add("coordinator, cores", Some(cores));
    add("coordinator, resident MiB", resident);
    add("coordinator, proportional MiB", Some(pss));
    add("coordinator, most resident MiB", mib("VmHWM"));
    add("pings heard/s", Some(rate));
    add("slowest ping, ms", Some(slowest));
    add("made-up agents, cores", ours.cores());
    let lost = lost(&crowd.tally, coordinator, settings.agents)?;
    add("agents lost", Some(lost as f64));
    if let Some(why) = crowd.tally.first_loss() {
        return Err(
            format!("{lost} of {} agents were lost, the first: {why}", settings.agents).into()
        );
    }
    if lost > 0 {
        return Err(format!("the coordinator misses {lost} of {} agents", settings.agents).into());
    }
    if settings.agents >= MANY && settings.lease <= USUAL_LEASE {
        report.named.heartbeat_10k_cores = Some(cores);
        report.named.heartbeat_10k_rss_mib = resident;
    }
    Ok(())
}

fn gather(tally: &Tally, count: usize, interrupted: &AtomicBool) -> Result<(), Error> {
    let deadline = Instant::now() + GATHERING;
    while tally.welcomed() < count {
        pause(Duration::from_millis(20), interrupted)?;
        let why = match tally.first_loss() {
            Some(why) => why,
            None if Instant::now() > deadline => "it takes too long".to_owned(),
            None => continue,
        };
        return Err(format!("of {count} agents {} were welcomed: {why}", tally.welcomed()).into());
    }
    Ok(())
}

/// By either side.
fn lost(tally: &Tally, coordinator: &Coordinator, count: usize) -> Result<usize, Error> {
    let view = coordinator.view()?;
    let here = view.nodes.iter().filter(|node| node.presence() == Presence::Here).count();
    Ok(tally.lost().max(count.saturating_sub(here)))
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or_default()
}

/// CPU time of a process, from now on.
struct Clock {
    pid: i32,
    begin: Instant,
    ticks: Option<u64>,
}

impl Clock {
    fn start(pid: i32) -> Self {
        Self { pid, begin: Instant::now(), ticks: processes::ticks(pid) }
    }

    /// As many it kept busy; `None` if it has ended.
    fn cores(&self) -> Option<f64> {
        let ticks = processes::ticks(self.pid)?.checked_sub(self.ticks?)?;
        // A tick is a hundredth of a second.
        Some(ticks as f64 / 100.0 / self.begin.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_files_and_ports_allow() {
        assert_eq!(fitting(10_000, 20_000, 28_232), 10_000);
        assert_eq!(fitting(10_000, 1_024, 28_232), 824);
        assert_eq!(fitting(10_000, 20_000, 5_000), 4_000);
        assert_eq!(fitting(10_000, 100, 5_000), 0);
    }

    #[test]
    fn a_range_of_ports_has_both_ends() {
        assert_eq!(ports("32768\t60999\n"), Some(28_232));
        assert_eq!(ports("5 4 3").zip(ports("")), None);
        assert_eq!(ports("x 4"), None);
    }

    #[test]
    fn a_clock_counts_what_we_take() {
        let clock = Clock::start(own_pid());
        assert!(clock.cores().is_some());
        assert!(Clock::start(0).cores().is_none());
    }
}
