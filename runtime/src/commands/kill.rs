use std::os::fd::OwnedFd;
use std::path::Path;

use hafen_isolator::cgroup;
use hafen_sys::pidfd;
use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::Error;
use crate::cli::{Cli, KillArgs};
use crate::journal::{Entry, Record, Status};
use crate::process::{self, Identity};

pub(super) fn kill(cli: &Cli, args: &KillArgs) -> Result<u8, Error> {
    let entry = Entry::find(&cli.root, &args.id)?;
    let signal = number(&args.signal)?;
    let record = entry.record()?;
    let status = entry.status(record.as_ref())?;
    let tree = record.as_ref().and_then(Record::tree);
    if args.all {
        match (tree, entry.process()?) {
            (None, Some(process)) if process.alive()? => kill_namespace(process, signal)?,
            _ => kill_all(tree, signal)?,
        }
        return Ok(0);
    }
    if matches!(status, Status::Stopped | Status::Creating) {
        return Err(Error::NotRunning);
    }
    let process = entry.process()?.ok_or(Error::NotRunning)?;
    let handle = process.open()?.ok_or(Error::NotRunning)?;
    match pidfd::send_signal(&handle, signal) {
        Err(e) if e.is(Errno::ESRCH) => Err(Error::NotRunning),
        answer => Ok(answer.map(|()| 0)?),
    }
}

/// There is no cgroup: the processes are those of the container's pid namespace.
fn kill_namespace(first: Identity, signal: i32) -> Result<(), Error> {
    if signal == libc::SIGKILL {
        // It takes all others with it (pid_namespaces(7)).
        return Ok(first.end()?);
    }
    for pid in process::of_namespace(first.pid)? {
        let Ok(handle) = pidfd::open(pid) else { continue };
        if process::of_namespace(first.pid)?.contains(&pid) {
            send(&handle, signal)?;
        }
    }
    Ok(())
}

fn send(handle: &OwnedFd, signal: i32) -> Result<(), Error> {
    match pidfd::send_signal(handle, signal) {
        Err(e) if !e.is(Errno::ESRCH) => Err(e.into()),
        _ => Ok(()),
    }
}

/// Every process of a cgroup.
///
/// # Errors
/// Of sending; what has ended meanwhile is none.
pub(crate) fn signal_all(tree: &Path, signal: i32) -> Result<(), Error> {
    kill_all(Some(tree), signal)
}

fn kill_all(tree: Option<&Path>, signal: i32) -> Result<(), Error> {
    let tree = tree.ok_or(Error::NotRunning)?;
    if !tree.exists() {
        return Err(Error::NotRunning);
    }
    if signal == libc::SIGKILL {
        return Ok(cgroup::kill(tree)?);
    }
    for pid in cgroup::processes(tree)? {
        // It may have ended meanwhile, and its pid may be anybody's: a pidfd is checked against the cgroup again.
        let Ok(handle) = pidfd::open(pid) else { continue };
        if cgroup::processes(tree)?.contains(&pid) {
            send(&handle, signal)?;
        }
    }
    Ok(())
}

/// `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+3`.
fn number(text: &str) -> Result<i32, Error> {
    const LAST: i32 = 64;
    const RTMIN: i32 = 34;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str| {
        name.strip_prefix(prefix)
            .and_then(|n| if n.is_empty() { Some(0) } else { n.parse::<i32>().ok() })
    };
    let found = name
        .parse::<i32>()
        .ok()
        .or_else(|| offset("RTMIN").map(|n| RTMIN + n))
        .or_else(|| offset("RTMAX").map(|n| LAST + n))
        .or_else(|| format!("SIG{name}").parse::<Signal>().ok().map(|s| s as i32));
    found
        .filter(|n| (0..=LAST).contains(n))
        .ok_or_else(|| Error::Refused(format!("unknown signal {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_by_number_and_name() {
        for (text, wanted) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("0", 0),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(number(text).unwrap(), wanted, "{text}");
        }
        for wrong in ["", "SIGNOPE", "65", "-1", "RTMAX+1"] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
    }
}
