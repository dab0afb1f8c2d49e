//! What would become of a job.

use hafen_door::failure::{Failure, Kind};
use hafen_protocol::{change, v1};

use crate::cluster::{Core, Rehearsed};
use crate::model::{Job, task_name};
use crate::wire;

/// Nothing is done: this core is nobody's.
pub(super) fn plan(core: Core, job: Job) -> Result<v1::JobPlan, Failure> {
    let spec = wire::job::spec(&job);
    let before = core.job(&job.id).map(|record| (record.version, wire::job::spec(record.job())));
    let changes = before.as_ref().map(|(_, old)| change::between(old, &spec)).unwrap_or_default();
    let invalid = |why: crate::cluster::Rejected| Failure::new(Kind::Invalid, why.to_string());
    let Rehearsed { version, places, stops, pushed } = core.rehearse(job).map_err(invalid)?;
    let names = |all: Vec<_>| all.into_iter().map(task_name).collect::<Vec<_>>();
    let mut placements: Vec<v1::Placement> = places
        .into_iter()
        .map(|(slot, node)| {
            let (node, sentence) = match node {
                Ok(node) => (node.0, String::new()),
                Err(why) => (String::new(), super::view::why_not(why.as_ref())),
            };
            v1::Placement { slot: slot.to_string(), node, sentence, preempts: Vec::new() }
        })
        .collect();
    // Which of the places needs the room is not kept: it is told with the first.
    if let Some(first) = placements.first_mut() {
        first.preempts = names(pushed);
    }
    Ok(v1::JobPlan {
        changes: changes.into_iter().map(|change| change.path).collect(),
        version,
        is_new: before.is_none(),
        placements,
        stops: names(stops),
    })
}
