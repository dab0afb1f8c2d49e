//! Waiting for what a coordinator has under way.

use std::time::Duration;

use clap::Args;
use hafen::amount;
use hafen::client::Cluster;
use hafen::failure::{Failure, Kind};
use hafen_protocol::v1::{self, instance::Phase, job::Rollout};

use super::show;
use crate::Error;
use crate::commands::control::duration;

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Do not wait until all of it is ready, or a batch has ended.
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Wait, as is done without it, too.
    #[arg(long, conflicts_with = "detach")]
    wait: bool,
    /// Give up waiting after that: exit code 7. What was asked for goes on.
    #[arg(long, value_name = "TIME", conflicts_with = "detach", value_parser = duration)]
    timeout: Option<Duration>,
}

/// In a row, and nobody waits for the next one.
const MOST_FAILURES: u32 = 3;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    /// How far it is.
    Not(String),
    /// It never will be.
    Never(String),
}

/// The view in which it is so.
pub(super) async fn until(
    client: &mut Cluster,
    most: Option<Duration>,
    verdict: impl Fn(&v1::ClusterView) -> Verdict,
) -> Result<v1::ClusterView, Error> {
    let mut last = String::new();
    let watch = watch(client, &verdict, &mut last);
    let Some(most) = most else { return watch.await };
    let watched = tokio::time::timeout(most, watch).await;
    watched.unwrap_or_else(|_| {
        let what = format!("not in {}: {last}", amount::say_duration(most));
        Err(Failure::new(Kind::Deadline, what).into())
    })
}

async fn watch(
    client: &mut Cluster,
    verdict: &impl Fn(&v1::ClusterView) -> Verdict,
    last: &mut String,
) -> Result<v1::ClusterView, Error> {
    // Of a coordinator that answers at once.
    const PAUSE: Duration = Duration::from_millis(200);
    let mut after = 0;
    loop {
        let request = v1::GetClusterRequest { after, namespace: String::new() };
        let view = client.get_cluster(request).await?.into_inner();
        if view.revision == after {
            tokio::time::sleep(PAUSE).await;
        }
        after = view.revision;
        match verdict(&view) {
            Verdict::Done => return Ok(view),
            Verdict::Never(why) => return Err(Error::Refused(why)),
            Verdict::Not(how_far) if how_far != *last => {
                show::errors(format!("{how_far}\n").as_bytes())?;
                *last = how_far;
            }
            Verdict::Not(_) => {}
        }
    }
}

impl WaitArgs {
    /// Until all of the job is as it is wanted, if that is to be waited for.
    pub(super) async fn settled(
        &self,
        client: &mut Cluster,
        job: &v1::Job,
    ) -> Result<Option<v1::ClusterView>, Error> {
        if self.detach {
            return Ok(None);
        }
        until(client, self.timeout, |view| settled(view, &job.name, job.version)).await.map(Some)
    }
}

/// Is this version of the job what runs, and all of it?
pub(super) fn settled(view: &v1::ClusterView, name: &str, version: u64) -> Verdict {
    let Some(job) = view.jobs.iter().find(|job| job.name == name) else {
        return Verdict::Never(format!("{name}: is not there any more"));
    };
    let of_it = view.instances.iter().filter(|instance| instance.job == name);
    let failing =
        of_it.clone().filter(|one| one.failures > 0).max_by_key(|instance| instance.failures);
    if let Some(why) = never(job, version, failing) {
        return Verdict::Never(format!("{name}: {why}"));
    }
    let is_settled = if job.kind == BATCH {
        job.finished >= job.wanted
    } else {
        job.rollout() == Rollout::Done && job.ready >= job.wanted
    };
    if is_settled { Verdict::Done } else { Verdict::Not(how_far(job, failing)) }
}

pub(super) const BATCH: &str = "batch";

fn never(job: &v1::Job, version: u64, failing: Option<&v1::Instance>) -> Option<String> {
    if job.stopped {
        return Some("was stopped".to_owned());
    }
    let why = failing.map(|one| format!(": {}", failure(one))).unwrap_or_default();
    match job.rollout() {
        Rollout::Failed => return Some(format!("version {version} has failed{why}")),
        Rollout::RollingBack => {
            let back = job.stable;
            return Some(format!("version {version} has failed, and goes back to {back}{why}"));
        }
        _ if job.version > version => {
            return Some(format!("version {version} has gone: it is {} now", job.version));
        }
        _ => {}
    }
    if job.kind == BATCH {
        let all_ended = job.finished + job.failed >= job.wanted;
        let failed = (job.failed, job.wanted);
        return (job.failed > 0 && all_ended)
            .then(|| format!("{} of {} runs have failed{why}", failed.0, failed.1));
    }
    let failing = failing.filter(|one| one.failures >= MOST_FAILURES && job.ready < job.wanted)?;
    Some(format!("{}; it is tried again, and nobody waits for it here", failure(failing)))
}

fn failure(instance: &v1::Instance) -> String {
    let (slot, times) = (&instance.slot, instance.failures);
    let node = if instance.node.is_empty() { "" } else { &format!(" on {}", instance.node) };
    let sentence = show::plain(&instance.sentence);
    format!("{}:{slot}{node} has failed {times} times: {sentence}", instance.job)
}

fn how_far(job: &v1::Job, failing: Option<&v1::Instance>) -> String {
    let mut text = match job.kind.as_str() {
        BATCH => format!("{}: {} of {} finished", job.name, job.finished, job.wanted),
        _ => format!("{}: {} of {} ready", job.name, job.ready, job.wanted),
    };
    for (count, what) in
        [(job.starting, "starting"), (job.waiting, "waiting"), (job.failed, "failed")]
    {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    if job.waiting > 0 && !job.sentence.is_empty() {
        text += &format!("; {}", show::plain(&job.sentence));
    }
    if let Some(failing) = failing {
        text += &format!("; {}", failure(failing));
    }
    text
}

/// Is it there, or about to be?
pub(super) fn is_alive(instance: &v1::Instance) -> bool {
    matches!(instance.phase(), Phase::Waiting | Phase::Starting | Phase::Ready | Phase::Stopping)
}
