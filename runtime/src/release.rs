//! The one way in which a container goes: claims in reverse, then its folder.

use hafen_isolator::cgroup;
use hafen_rootfs::release::remove_tree;
use hafen_spec::plan::Claim;
use hafen_sys::CallError;

use crate::journal::{Entry, Record};
use crate::{Error, fault};

/// Release everything that a record claims. Goes on after a failure, and may be repeated: what is
/// gone counts as released. The folder with the record goes last, so nothing is forgotten before.
///
/// # Errors
/// The first failure; the record is still there then.
pub(crate) fn release(entry: Entry, record: Option<&Record>) -> Result<(), Error> {
    let mut first: Option<CallError> = None;
    for claim in record.iter().flat_map(|r| &r.claims).rev() {
        fault::point();
        if let Err(e) = give_back(claim) {
            first.get_or_insert(e);
        }
    }
    fault::point();
    match first {
        Some(failure) => Err(failure.into()),
        None => Ok(entry.remove()?),
    }
}

fn give_back(claim: &Claim) -> Result<(), CallError> {
    match claim {
        Claim::Scratch { path } => remove_tree(path),
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
