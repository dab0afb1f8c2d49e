//! Time namespaces with the offsets of their clocks.

use oci_spec::runtime::Spec;

use crate::Problems;
use crate::resolved::{Clock, Namespace, Namespaces, TimeOffset};

const NANOSECONDS: u32 = 1_000_000_000;

pub(super) fn offsets(
    spec: &Spec,
    namespaces: &Namespaces,
    problems: &mut Problems,
) -> Vec<TimeOffset> {
    let listed = spec.linux().as_ref().and_then(|l| l.time_offsets().as_ref());
    let mut offsets = Vec::new();
    for (name, offset) in listed.into_iter().flatten() {
        let field = format!("linux.timeOffsets[{name:?}]");
        let clock = match name.as_str() {
            "monotonic" => Clock::Monotonic,
            "boottime" => Clock::Boottime,
            _ => {
                problems.add(field, "must be one of monotonic, boottime");
                continue;
            }
        };
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= NANOSECONDS {
            problems.add(
                format!("{field}.nanosecs"),
                format!("{nanoseconds} is not below {NANOSECONDS}"),
            );
        }
        offsets.push(TimeOffset { clock, seconds: offset.secs().unwrap_or(0), nanoseconds });
    }
    offsets.sort_by_key(|o| o.clock);
    if !offsets.is_empty() && !namespaces.is_new(Namespace::Time) {
        problems.add("linux.timeOffsets", "needs a new time namespace in linux.namespaces");
    }
    offsets
}
