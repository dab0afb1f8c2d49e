use std::os::fd::OwnedFd;
use std::path::Path;

use hafen_isolator::cgroup;
use hafen_sys::{pidfd, signal};
use nix::errno::Errno;

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

fn number(text: &str) -> Result<i32, Error> {
    signal::number(text).ok_or_else(|| Error::Refused(format!("unknown signal {text:?}")))
}
