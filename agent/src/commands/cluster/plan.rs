//! `hafen job plan`.

use std::process::ExitCode;

use clap::Args;
use hafen::client::Cluster;
use hafen::failure::{Failure, Kind};
use hafen_protocol::{change, v1};

use super::{HostArgs, block_on, changes, job, show};
use crate::Error;
use crate::cli::Format;

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    file: job::FileArgs,
    /// End with 0 if nothing would change, with 2 if something would, and with 1 for every failure.
    #[arg(long)]
    pub(super) detailed_exitcode: bool,
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

pub(super) fn plan(host: &HostArgs, args: &PlanArgs) -> Result<ExitCode, Error> {
    const CHANGES: u8 = 2;
    let spec = args.file.read()?;
    let (plan, old) = block_on(async {
        let mut client = host.cluster().await?;
        let request = v1::PlanJobRequest { job: Some(spec.clone()) };
        let plan = client.plan_job(request).await?.into_inner();
        let old = if plan.is_new { None } else { known(&mut client, &spec.name).await? };
        Ok((plan, old))
    })?;
    match args.format {
        Format::Json => show::json(&plan)?,
        Format::Table => show::line(&told(&plan, old.as_ref(), &spec))?,
    }
    let is_change = args.detailed_exitcode && changes(&plan);
    Ok(if is_change { ExitCode::from(CHANGES) } else { ExitCode::SUCCESS })
}

async fn known(client: &mut Cluster, name: &str) -> Result<Option<v1::JobSpec>, Error> {
    match job::get(client, name).await {
        Ok(job) => Ok(job.spec),
        Err(Error::Failure(Failure { kind: Kind::NotFound, .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

const fn changes(plan: &v1::JobPlan) -> bool {
    plan.is_new || !plan.changes.is_empty() || !plan.stops.is_empty()
}

pub(super) fn told(plan: &v1::JobPlan, old: Option<&v1::JobSpec>, new: &v1::JobSpec) -> String {
    let mut lines = vec![headline(plan, &new.name)];
    let values = old.map(|old| change::between(old, new)).unwrap_or_default();
    for path in &plan.changes {
        let mut at: Vec<_> = values.iter().filter(|value| changes::is_at(value, path)).collect();
        at.dedup_by_key(|change| &change.path);
        if at.is_empty() {
            lines.push(format!("  {}", show::plain(path)));
        }
        lines.extend(at.into_iter().map(|change| format!("  {}", changes::sentence(change))));
    }
    lines.dedup();
    if !plan.placements.is_empty() {
        let rows = plan.placements.iter().map(|placement| row(placement, &new.name));
        lines.push(show::render(["TASK", "NODE", "WHY", "PUSHES OUT"], rows.collect()));
    }
    if !plan.stops.is_empty() {
        lines.push(format!("stops: {}", plan.stops.join(" ")));
    }
    lines.join("\n")
}

fn headline(plan: &v1::JobPlan, name: &str) -> String {
    let nowhere = plan.placements.iter().filter(|one| one.node.is_empty()).count();
    let homeless = match nowhere {
        0 => String::new(),
        count => format!("; {count} of {} would wait for a node", plan.placements.len()),
    };
    if plan.is_new {
        format!("{name}: is new{homeless}")
    } else if changes(plan) {
        format!("{name}: would be version {}{homeless}", plan.version)
    } else {
        format!("{name}: nothing changes{homeless}")
    }
}

fn row(placement: &v1::Placement, job: &str) -> [String; 4] {
    let node = if placement.node.is_empty() { "-" } else { &placement.node };
    let why = show::plain(&placement.sentence);
    [format!("{job}:{}", placement.slot), node.to_owned(), why, placement.preempts.join(" ")]
}
