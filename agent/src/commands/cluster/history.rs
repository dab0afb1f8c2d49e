//! `hafen job history`.

use hafen_protocol::{change, v1};

use super::{HostArgs, block_on, job, show};
use crate::Error;
use crate::cli::Format;

pub(super) fn history(host: &HostArgs, name: &str, format: Format) -> Result<(), Error> {
    let job = block_on(async { job::get(&mut host.cluster().await?, name).await })?;
    match format {
        Format::Json => show::json(&job.versions),
        Format::Table => show::table(["VERSION", "TASKS", "", "CHANGES"], rows(&job)),
    }
}

/// The latest first.
pub(super) fn rows(job: &v1::Job) -> Vec<[String; 4]> {
    let before = std::iter::once(None).chain(job.versions.iter().map(Some));
    let rows = job.versions.iter().zip(before).map(|(version, before)| {
        let mut marks = Vec::new();
        if version.version == job.version {
            marks.push("present");
        }
        if version.version == job.stable {
            marks.push("stable");
        }
        let (number, count) = (version.version.to_string(), version.instances.to_string());
        [number, count, marks.join(", "), changed(before, version)]
    });
    let mut rows: Vec<_> = rows.collect();
    rows.reverse();
    rows
}

fn changed(before: Option<&v1::JobVersion>, version: &v1::JobVersion) -> String {
    let (Some(old), Some(new)) = (before.and_then(|one| one.spec.as_ref()), version.spec.as_ref())
    else {
        return String::new();
    };
    let changes = change::between(old, new);
    changes.iter().map(|change| change.path.as_str()).collect::<Vec<_>>().join(", ")
}
