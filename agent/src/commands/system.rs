//! `hafen system`, `doctor`, `debug` and `version`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use hafen::{amount, config, time};
use hafen_protocol::v1;
use hafen_rootfs::store::Store;
use hafen_rootfs::volumes::Volumes;
use hafen_sys::file::boot_id;
use serde_json::json;

use super::{HostArgs, block_on, show};
use crate::cli::{Cli, Format};
use crate::{Error, chain};

#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Print all that is known of the node, as JSON.
    Info,
    /// Show what takes the disk.
    Df {
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: Format,
    },
    /// Forget all tasks that have ended, with their logs. For images there is "hafen image prune".
    Prune,
}

#[derive(Debug, Args)]
pub(crate) struct DebugArgs {
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

pub(super) fn system(cli: &Cli, command: &SystemCommand) -> Result<ExitCode, Error> {
    match command {
        SystemCommand::Info => info(&cli.host)?,
        SystemCommand::Df { format } => df(cli, *format)?,
        SystemCommand::Prune => return prune(&cli.host),
    }
    Ok(ExitCode::SUCCESS)
}

fn info(host: &HostArgs) -> Result<(), Error> {
    let node = block_on(async {
        Ok(host.connect().await?.get_node(v1::GetNodeRequest {}).await?.into_inner())
    })?;
    show::json(&node)
}

/// One line of `df`.
struct Taken {
    what: &'static str,
    count: usize,
    bytes: u64,
    folder: String,
}

fn df(cli: &Cli, format: Format) -> Result<(), Error> {
    if !cli.host.host().is_local() {
        let what = "df looks at the disk, and works on the node itself only: run it there";
        return Err(Error::Refused(what.to_owned()));
    }
    let (image_folder, volume_folder) = folders(cli);
    let all = [images(&image_folder)?, volumes(&volume_folder)?];
    if format == Format::Json {
        let all: Vec<_> = all
            .iter()
            .map(|t| json!({ "what": t.what, "count": t.count, "bytes": t.bytes, "folder": t.folder }))
            .collect();
        return show::json(&all);
    }
    let rows = all.into_iter().map(|taken| {
        [
            taken.what.to_owned(),
            taken.count.to_string(),
            amount::say_bytes(taken.bytes),
            taken.folder,
        ]
    });
    show::table(["WHAT", "COUNT", "SIZE", "FOLDER"], rows.collect())
}

/// Those that were named; else those of the agent, where one answers; else the usual ones.
fn folders(cli: &Cli) -> (PathBuf, PathBuf) {
    let node = block_on(async {
        Ok(cli.host.connect().await?.get_node(v1::GetNodeRequest {}).await?.into_inner())
    });
    let node = node.unwrap_or_default();
    let folder = |named: &Option<PathBuf>, theirs: String, usual: PathBuf| {
        let theirs = (!theirs.is_empty()).then(|| theirs.into());
        named.clone().or(theirs).unwrap_or(usual)
    };
    (
        folder(&cli.images, node.images, cli.images()),
        folder(&cli.volumes, node.volumes, cli.volumes()),
    )
}

/// Of names that share an image it is counted once. Layers count as they are sent.
fn images(root: &Path) -> Result<Taken, Error> {
    let store = Store::at(root.to_owned());
    let named = store.all_named()?;
    let targets: BTreeMap<String, u64> = named
        .iter()
        .filter_map(|named| {
            Some((named.target.digest.to_string(), store.image(&named.target).ok()?.size()))
        })
        .collect();
    let folder = root.display().to_string();
    Ok(Taken { what: "images", count: named.len(), bytes: targets.values().sum(), folder })
}

fn volumes(root: &Path) -> Result<Taken, Error> {
    let all = Volumes::at(root.to_owned()).list(&boot_id()?)?;
    let bytes = all.iter().map(|volume| size_of(&volume.path)).sum();
    Ok(Taken { what: "volumes", count: all.len(), bytes, folder: root.display().to_string() })
}

/// On the disk, without following links; what cannot be read or has gone meanwhile is not counted.
fn size_of(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    const BLOCK: u64 = 512;
    let mut sum = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(about) = entry.metadata() else { continue };
            sum += about.blocks() * BLOCK;
            if about.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    sum
}

fn prune(host: &HostArgs) -> Result<ExitCode, Error> {
    block_on(async {
        let mut client = host.connect().await?;
        let all = v1::ListTasksRequest { all: true, ..Default::default() };
        let tasks = client.list_tasks(all).await?.into_inner().tasks;
        // What is lost may still run: that is for a person to say.
        let ended = tasks
            .into_iter()
            .filter(|task| show::has_ended(task.state) && task.state() != v1::State::Lost)
            .map(|task| task.id);
        super::each(&ended.collect::<Vec<_>>(), |id| {
            let mut client = client.clone();
            async move {
                client.remove_task(v1::RemoveTaskRequest { id: id.clone(), force: false }).await?;
                Ok(id)
            }
        })
        .await
    })
}

pub(super) fn doctor(options: &[String]) -> Result<ExitCode, Error> {
    let what = "hafen-oci is neither beside this program nor in PATH: install it there";
    let program = config::find_runtime().ok_or_else(|| Error::Refused(what.to_owned()))?;
    let status = std::process::Command::new(&program).arg("doctor").args(options).status();
    let status = status.map_err(|e| Error::Refused(format!("run {}: {e}", program.display())))?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

pub(super) fn debug(host: &HostArgs, args: &DebugArgs) -> Result<ExitCode, Error> {
    let answer = block_on(async {
        Ok(host.connect().await?.debug(v1::DebugRequest {}).await?.into_inner())
    })?;
    if args.format == Format::Json {
        show::json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let memory = amount::say_bytes(answer.memory);
    let (connections, descriptors) = (answer.connections, answer.descriptors);
    show::line(&format!("connections {connections}, descriptors {descriptors}, memory {memory}"))?;
    let rows = answer.operations.iter().map(|operation| {
        let deadline = operation.deadline.as_ref().map(time::duration).map(amount::say_duration);
        let late = if operation.late { "late" } else { "" };
        [
            operation.task.clone(),
            operation.phase.clone(),
            show::age(operation.since.as_ref()),
            deadline.unwrap_or_default(),
            late.to_owned(),
            show::plain(&operation.last_error),
        ]
    });
    show::table(["TASK", "PHASE", "FOR", "DEADLINE", "", "LAST ERROR"], rows.collect())?;
    Ok(ExitCode::SUCCESS)
}

/// That there is no agent is told, and no failure.
pub(super) fn version(host: &HostArgs, args: &VersionArgs) -> Result<ExitCode, Error> {
    let own = env!("CARGO_PKG_VERSION");
    let node = block_on(async {
        Ok(host.connect().await?.get_node(v1::GetNodeRequest {}).await?.into_inner())
    });
    if args.format == Format::Json {
        let agent = node.as_ref().ok().map(
            |node| json!({ "version": node.version, "kernel": node.kernel, "name": node.name }),
        );
        show::json(&json!({ "version": own, "agent": agent }))?;
        return Ok(ExitCode::SUCCESS);
    }
    show::line(&format!("hafen {own}"))?;
    match node {
        Ok(node) => {
            show::line(&format!("agent {} of {}, Linux {}", node.version, node.name, node.kernel))?;
        }
        Err(error) => show::line(&format!("agent unknown: {}", chain(&error)))?,
    }
    Ok(ExitCode::SUCCESS)
}
