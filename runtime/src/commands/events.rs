use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use hafen_isolator::cgroup::{self, OomWatch, Stats};
use hafen_isolator::interface::{self, Interface};
use hafen_sys::CallError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use serde::Serialize;

use crate::Error;
use crate::cli::{Cli, EventsArgs};
use crate::journal::{Entry, Record};
use crate::supervise::until;

/// One line of output, by the names that clients read in runc's.
#[derive(Debug, Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data>,
}

#[derive(Debug, Serialize)]
struct Data {
    #[serde(flatten)]
    stats: Stats,
    network_interfaces: Option<Vec<Interface>>,
}

pub(super) fn events(cli: &Cli, args: &EventsArgs) -> Result<u8, Error> {
    let entry = Entry::find(&cli.root, &args.id)?;
    let gone = || Error::Refused(format!("container with id {} is not running", args.id));
    let record = entry.record()?.ok_or_else(gone)?;
    if !entry.status(Some(&record))?.is_alive() {
        return Err(gone());
    }
    let process = entry.process()?.ok_or_else(gone)?;
    let handle = process.open()?.ok_or_else(gone)?;
    if args.stats {
        say(&statistics(&args.id, &record, process.pid));
        return Ok(0);
    }
    let stream = Stream { id: &args.id, record: &record, pid: process.pid, handle };
    stream.follow(interval(&args.interval)?)?;
    Ok(0)
}

/// `5s`, `1m30s`, `500ms`.
fn interval(text: &str) -> Result<Duration, Error> {
    let wrong = || Error::Refused(format!("--interval: {text:?} is not a duration above 0, as 5s"));
    humantime::parse_duration(text).ok().filter(|d| !d.is_zero()).ok_or_else(wrong)
}

struct Stream<'a> {
    id: &'a str,
    record: &'a Record,
    pid: i32,
    handle: OwnedFd,
}

impl Stream<'_> {
    /// Until the container ends, or nobody reads any more.
    fn follow(&self, interval: Duration) -> Result<(), Error> {
        let mut oom = OomWatch::new(&self.record.claims)?;
        let mut next = Instant::now() + interval;
        loop {
            let ended = self.wait(oom.as_ref(), next)?;
            let mut heard = true;
            if oom.as_mut().is_some_and(OomWatch::happened) {
                heard = say(&Event { kind: "oom", id: self.id, data: None });
            }
            if Instant::now() >= next && !ended {
                heard &= say(&statistics(self.id, self.record, self.pid));
                next += interval;
            }
            if ended || !heard {
                return Ok(());
            }
        }
    }

    /// For the next event or tick. `true`: the container has ended.
    fn wait(&self, oom: Option<&OomWatch>, next: Instant) -> Result<bool, CallError> {
        let mut fds = vec![PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)];
        fds.extend(oom.map(OomWatch::poll).map(|(fd, flags)| PollFd::new(fd, flags)));
        match poll(&mut fds, until(next)) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
            Err(e) => Err(CallError::errno("poll", e)),
        }
    }
}

fn statistics<'a>(id: &'a str, record: &Record, pid: i32) -> Event<'a> {
    let stats = cgroup::stats(&record.claims);
    Event { kind: "stats", id, data: Some(Data { stats, network_interfaces: interface::of(pid) }) }
}

/// One line each. `false`: nobody reads it.
fn say(event: &Event<'_>) -> bool {
    let Ok(line) = serde_json::to_string(event) else { return false };
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    !written.is_err_and(|e| e.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_as_people_write_them() {
        assert_eq!(interval("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(interval("1m30s").unwrap(), Duration::from_secs(90));
        for wrong in ["0s", "", "5", "-1s"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
