use std::path::Path;

use hafen_spec::plan::Plan;
use hafen_spec::resolve::Options;
use hafen_sys::Context;

use super::{print, print_json, quick};
use crate::Error;
use crate::cli::{CONFIG, Cli, ExplainArgs, Rootless, TextFormat};
use crate::prepare::{Request, prepare, read_bundle};

/// The name that a container without one has in an explanation.
const EXAMPLE: &str = "example";

pub(super) fn explain(cli: &Cli, args: &ExplainArgs) -> Result<u8, Error> {
    let overlay = quick::is_meant(&args.quick);
    let bundle = if overlay {
        quick::bundle(&args.quick)?
    } else {
        quick::refuse_beside_a_bundle(&args.quick)?;
        read_bundle(&args.bundle, Path::new(CONFIG))?
    };
    let root = std::path::absolute(&cli.root).call(|| format!("--root {}", cli.root.display()))?;
    let options = Options {
        id: EXAMPLE.to_owned(),
        bundle: bundle.path.clone(),
        overlay,
        below: bundle.below(),
        systemd_cgroup: cli.wants_systemd(),
        ..Options::default()
    };
    let request = Request {
        options,
        state: root.join(EXAMPLE),
        waits: false,
        real: false,
        needs_cgroup: cli.rootless == Some(Rootless::False),
    };
    let prepared = prepare(bundle, &request)?;
    match args.format {
        TextFormat::Json => print_json(&prepared.plan)?,
        TextFormat::Text => print(&text(&prepared.plan, &prepared.resolved.warnings)),
    }
    Ok(0)
}

fn text(plan: &Plan, warnings: &[String]) -> String {
    let mut lines: Vec<String> = warnings.iter().map(|w| format!("note: {w}")).collect();
    lines.push("claims, saved before the first effect and released in reverse:".to_owned());
    lines.extend(plan.claims.iter().map(|c| format!("      {c}")));
    lines.push("the runtime:".to_owned());
    lines.extend(plan.before.iter().map(|s| format!("      {s}")));
    lines.push(format!("      {}", plan.spawn));
    lines.extend(plan.beside.iter().map(|s| format!("      {s}")));
    lines.push("the first process of the container:".to_owned());
    lines.extend(plan.child.iter().enumerate().map(|(i, s)| format!("  {:>3} {s}", i + 1)));
    lines.join("\n")
}
