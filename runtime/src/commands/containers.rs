use std::time::Duration;

use super::print_json;
use crate::cli::{Cli, DeleteArgs};
use crate::journal::{Entry, Record};
use crate::state::State;
use crate::{Error, release};

/// For `delete --force`, while another process is at work on the container.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything known about a container.
pub(super) fn look(entry: &Entry) -> Result<(Record, State), Error> {
    let record = entry.record()?.ok_or_else(|| Error::Busy(entry.id.clone()))?;
    let status = entry.status(Some(&record))?;
    let pid = if status.is_alive() { entry.process()?.map(|p| p.pid) } else { None };
    let state = State::of(&record, status, pid);
    Ok((record, state))
}

pub(super) fn state(cli: &Cli, id: &str) -> Result<u8, Error> {
    let entry = Entry::find(&cli.root, id)?;
    print_json(&look(&entry)?.1)?;
    Ok(0)
}

pub(super) fn delete(cli: &Cli, args: &DeleteArgs) -> Result<u8, Error> {
    let mut entry = match Entry::find(&cli.root, &args.id) {
        Err(Error::Unknown(_)) if args.force => return Ok(0),
        answer => answer?,
    };
    match entry.lock_within(if args.force { PATIENCE } else { Duration::ZERO }) {
        // Somebody else deleted it just now.
        Err(Error::Unknown(_)) if args.force => return Ok(0),
        answer => answer?,
    }
    let record = match entry.record() {
        // A document is torn only by a crash of the whole machine, after which nothing is left that it claimed
        // but this folder.
        Err(Error::Record { .. }) if args.force => None,
        answer => answer?,
    };
    // With the lock in our hands nobody is creating it: whoever began has died. What its process does is of no
    // interest to who wants it gone anyway.
    if !args.force {
        let status = entry.status(record.as_ref())?;
        if status.is_alive() {
            return Err(Error::NotStopped { id: args.id.clone(), status: status.name() });
        }
    }
    release::release(entry, record.as_ref())?;
    Ok(0)
}
