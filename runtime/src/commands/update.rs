use std::fs;
use std::io::Read;
use std::path::Path;

use hafen_isolator::cgroup::{self, Change, Failure};
use hafen_spec::resolve::resolve_update;
use hafen_spec::{Problems, parse};
use hafen_sys::Context;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::pause::hold;
use super::quick::size;
use crate::cli::{Cli, LimitArgs, UpdateArgs};
use crate::journal::{Entry, Record, Status};
use crate::{Error, facts, fault};

pub(super) fn update(cli: &Cli, args: &UpdateArgs) -> Result<u8, Error> {
    let document = match &args.resources {
        Some(file) => read(file)?,
        None => document(&args.limits)?,
    };
    let resources = resources(&document)?;
    let facts = facts::gather()?;
    let (entry, record) = hold(cli, &args.id, |status| match status {
        Status::Created | Status::Running | Status::Paused => Ok(()),
        Status::Creating | Status::Stopped => Err(Error::NotRunning),
    })?;
    let held = cgroup::held(&record.claims);
    let (limits, rules) = resolve_update(&resources, &facts, &held).map_err(Error::Options)?;
    let change = cgroup::change(&limits, rules.as_deref(), &record.claims, &facts);
    carry_out(&entry, &record, &change.map_err(Error::Options)?)?;
    Ok(0)
}

/// Folders that the container gets with this are claimed before they are made.
fn carry_out(entry: &Entry, record: &Record, change: &Change) -> Result<(), Error> {
    let claiming = |wanted: &dyn Fn(&Path) -> bool| {
        let new = change.claims.iter().filter(|claim| wanted(claim.path())).cloned();
        // In front of the tree, which is released first: that ends the processes.
        Record { claims: new.chain(record.claims.clone()).collect(), ..record.clone() }
    };
    if !change.claims.is_empty() {
        entry.save_plan(&claiming(&|_| true))?;
        fault::point();
    }
    let Err(Failure { first, left, kept }) = cgroup::apply(change) else { return Ok(()) };
    if !change.claims.is_empty() {
        entry.save_plan(&claiming(&|path| kept.iter().any(|k| k == path)))?;
    }
    Err(Error::Update { first: Error::Call(first).chain(), left })
}

fn read(file: &Path) -> Result<Value, Error> {
    let name = file.display();
    let mut bytes = Vec::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().read_to_end(&mut bytes).map(|_| bytes),
        _ => fs::read(file),
    };
    let bytes = read.call(|| format!("--resources: read {name}"))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::Refused(format!("--resources {name}: not JSON: {e}")))
}

/// `linux.resources` from a file.
///
/// # Errors
/// Names the file, or each field that is wrong.
pub(super) fn read_resources(file: &Path) -> Result<LinuxResources, Error> {
    resources(&read(file)?)
}

/// Parsed as a part of a specification, so that fields have the same names and the same checks.
fn resources(document: &Value) -> Result<LinuxResources, Error> {
    let spec = json!({ "ociVersion": "1.0.0", "linux": { "resources": document } });
    let bytes = serde_json::to_vec(&spec).map_err(|e| Error::Refused(e.to_string()))?;
    let spec = parse::parse(&bytes).map_err(Error::Options)?;
    Ok(spec.linux().as_ref().and_then(|l| l.resources().clone()).unwrap_or_default())
}

/// The options as the document that they stand for.
fn document(args: &LimitArgs) -> Result<Value, Error> {
    let mut problems = Problems::default();
    let mut size =
        |option: &str, text: &Option<String>| size(option, text.as_deref()?, &mut problems);
    let document = json!({
        "memory": {
            "limit": size("--memory", &args.memory),
            "swap": size("--memory-swap", &args.memory_swap),
            "reservation": size("--memory-reservation", &args.memory_reservation),
            "kernel": size("--kernel-memory", &args.kernel_memory),
            "kernelTCP": size("--kernel-memory-tcp", &args.kernel_memory_tcp),
        },
        "cpu": {
            "shares": args.cpu_share,
            "quota": args.cpu_quota,
            "period": args.cpu_period,
            "burst": args.cpu_burst,
            "idle": args.cpu_idle,
            "realtimeRuntime": args.cpu_rt_runtime,
            "realtimePeriod": args.cpu_rt_period,
            "cpus": args.cpuset_cpus,
            "mems": args.cpuset_mems,
        },
        "pids": args.pids_limit.map(|limit| json!({ "limit": limit })),
        "blockIO": { "weight": args.blkio_weight },
    });
    problems.into_result(document).map_err(Error::Options)
}
