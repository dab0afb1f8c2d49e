//! `hafen events` of a cluster.

use std::process::ExitCode;

use hafen_protocol::v1;

use super::{HostArgs, block_on, show};
use crate::Error;
use crate::cli::Format;

/// `task`: of this one only, unless it is empty.
pub(in crate::commands) fn events(
    host: &HostArgs,
    request: v1::ClusterEventsRequest,
    task: &str,
    format: Format,
) -> Result<ExitCode, Error> {
    block_on(async {
        let mut events = host.cluster().await?.events(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if !task.is_empty() && event.instance != task {
                continue;
            }
            match format {
                Format::Json => show::json_line(&event)?,
                Format::Table => show::line(&sentence(&event))?,
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn sentence(event: &v1::ClusterEvent) -> String {
    let about = [&event.job, &event.instance, &event.node];
    let about: Vec<&str> =
        about.into_iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    let sign = if event.sentence.is_empty() { "" } else { ": " };
    let moment = show::moment(event.time.as_ref());
    let (number, what) = (event.sequence, show::plain(&event.what));
    let sentence = show::plain(&event.sentence);
    format!("{moment} {number} {} {what}{sign}{sentence}", about.join(" "))
}
