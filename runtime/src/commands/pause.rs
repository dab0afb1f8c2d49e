use std::path::Path;
use std::time::Duration;

use hafen_isolator::cgroup;

use crate::Error;
use crate::cli::Cli;
use crate::journal::{Entry, Record, Status};

/// For another process that is at work on the container just now.
const PATIENCE: Duration = Duration::from_secs(5);
/// For processes that are busy in the kernel.
const FREEZING: Duration = Duration::from_secs(10);

pub(super) fn pause(cli: &Cli, id: &str) -> Result<u8, Error> {
    let (mut entry, record) = hold(cli, id, |status| match status {
        Status::Created | Status::Running => Ok(()),
        _ => Err(Error::NotRunning),
    })?;
    let tree = tree(&record)?;
    cgroup::freeze(tree, true)?;
    // The lock is not held while we wait: a container that does not come to rest can be killed and deleted meanwhile.
    entry.unlock();
    let Err(failure) = cgroup::wait_frozen(tree, FREEZING) else { return Ok(0) };
    if entry.relock()? {
        cgroup::freeze(tree, false)?;
    }
    Err(failure.into())
}

pub(super) fn resume(cli: &Cli, id: &str) -> Result<u8, Error> {
    let (_entry, record) = hold(cli, id, |status| match status {
        Status::Paused => Ok(()),
        _ => Err(Error::NotPaused),
    })?;
    cgroup::freeze(tree(&record)?, false)?;
    Ok(0)
}

/// Lock a container whose state allows what is to be done.
pub(super) fn hold(
    cli: &Cli,
    id: &str,
    allowed: fn(Status) -> Result<(), Error>,
) -> Result<(Entry, Record), Error> {
    let mut entry = Entry::find(&cli.root, id)?;
    entry.lock_within(PATIENCE)?;
    let record = entry.record()?.ok_or(Error::NotRunning)?;
    allowed(entry.status(Some(&record))?)?;
    Ok((entry, record))
}

fn tree(record: &Record) -> Result<&Path, Error> {
    record.tree().ok_or_else(|| {
        Error::Refused("the container has no cgroup, which alone can be frozen".to_owned())
    })
}
