//! The one way in which a container goes: claims in reverse, then its folder.

use hafen_isolator::{cgroup, resctrl};
use hafen_rootfs::{scratch, store};
use hafen_spec::plan::Claim;
use hafen_sys::CallError;
use hafen_sys::file::boot_id;

use crate::hooks::{self, Occasion};
use crate::journal::{Entry, Record, Status};
use crate::state::State;
use crate::{Error, fault};

/// Release everything that a record claims. Goes on after a failure, unless processes are left, which use the rest; and
/// may be repeated: what is gone counts as released. The folder with the record goes last, so nothing is forgotten before.
///
/// # Errors
/// The first failure; the record is still there then.
pub(crate) fn release(entry: Entry, record: Option<&Record>) -> Result<(), Error> {
    let mut first: Option<CallError> = None;
    record.map_or(Ok(()), |record| end_process(&entry, record))?;
    for claim in record.iter().flat_map(|r| &r.claims).rev() {
        fault::point();
        if let Err(e) = give_back(claim) {
            first.get_or_insert(e);
            if matches!(claim, Claim::Cgroup { .. }) {
                break;
            }
        }
    }
    fault::point();
    if let Some(failure) = first {
        return Err(failure.into());
    }
    // Before the record goes: whoever dies here runs them again, rather than never.
    if let Some(record) = record.filter(|r| !r.hooks.poststop.is_empty()) {
        run_poststop(record)?;
        fault::point();
    }
    Ok(entry.remove()?)
}

/// Where no cgroup holds the processes, the first one of their pid namespace takes all with it.
fn end_process(entry: &Entry, record: &Record) -> Result<(), Error> {
    if record.tree().is_some() || record.boot_id != boot_id()? {
        return Ok(());
    }
    Ok(entry.process()?.map_or(Ok(()), |process| process.end())?)
}

/// A hook that fails keeps no container from going (runtime-spec, runtime, "Lifecycle").
fn run_poststop(record: &Record) -> Result<(), Error> {
    let state = State::of(record, Status::Stopped, None).json()?;
    let occasion = Occasion { kind: "poststop", state: &state, bundle: &record.bundle };
    hooks::run_all(&record.hooks.poststop, occasion);
    Ok(())
}

fn give_back(claim: &Claim) -> Result<(), CallError> {
    match claim {
        Claim::Scratch { path } => scratch::remove(path),
        Claim::Resctrl { path } => resctrl::release(path),
        Claim::Use { path } => store::forget(path),
        _ => cgroup::release(claim),
    }
}

/// Clean up after a failed launch and tell both stories if the clean-up fails too.
pub(crate) fn after_failure(entry: Entry, record: Option<&Record>, first: Error) -> Error {
    match release(entry, record) {
        Ok(()) => first,
        Err(second) => Error::CleanUp { first: first.chain(), second: second.chain() },
    }
}
