use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use comfy_table::{Table, presets};
use hafen_isolator::cgroup;
use hafen_sys::Context;
use serde::Serialize;

use super::containers::look;
use super::{print, print_line};
use crate::Error;
use crate::cli::{Cli, Format, ListArgs, PsArgs};
use crate::journal::{Entry, Record};
use crate::process;

/// A row as runc's `list --format json` has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    oci_version: String,
    id: String,
    pid: i32,
    status: &'static str,
    bundle: PathBuf,
    rootfs: PathBuf,
    created: String,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<String, String>,
    owner: String,
}

pub(super) fn list(cli: &Cli, args: &ListArgs) -> Result<u8, Error> {
    let mut rows = Vec::new();
    for entry in Entry::all(&cli.root)? {
        match look(&entry) {
            Ok((record, state)) => rows.push(row(&entry, record, state)),
            // Gone or being made while we look; and one bad record hides no other container.
            Err(Error::Busy(_) | Error::Unknown(_)) => {}
            Err(e) => eprintln!("hafen-oci: {}", e.chain()),
        }
    }
    match (args.quiet, args.format) {
        (true, _) => rows.iter().for_each(|row| print(&row.id)),
        (false, Format::Json) => print_line(&rows)?,
        (false, Format::Table) => print(&table(&rows)),
    }
    Ok(0)
}

fn row(entry: &Entry, record: Record, state: crate::state::State) -> Row {
    Row {
        oci_version: state.oci_version,
        id: state.id,
        pid: state.pid.unwrap_or(0),
        status: state.status,
        bundle: state.bundle,
        rootfs: record.rootfs,
        created: record.created,
        annotations: state.annotations,
        owner: owner_of(&entry.path).map_or_else(|| "?".to_owned(), user_name),
    }
}

/// Who made the container.
fn owner_of(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|m| m.uid())
}

/// From the file alone: a statically linked program has no other source of names.
fn user_name(uid: u32) -> String {
    let table = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    table
}

/// Without the blank that stands for a border.
fn lines(table: &Table) -> String {
    table.lines().map(|line| line.trim_matches(' ').to_owned()).collect::<Vec<_>>().join("\n")
}

fn table(rows: &[Row]) -> String {
    let mut table = plain(&["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    for row in rows {
        let bundle = row.bundle.display().to_string();
        table.add_row([
            &row.id,
            &row.pid.to_string(),
            row.status,
            &bundle,
            &row.created,
            &row.owner,
        ]);
    }
    lines(&table)
}

pub(super) fn ps(cli: &Cli, args: &PsArgs) -> Result<u8, Error> {
    let entry = Entry::find(&cli.root, &args.id)?;
    let record = entry.record()?.ok_or_else(|| Error::Busy(args.id.clone()))?;
    let pids = match (record.tree(), entry.process()?) {
        (Some(tree), _) if tree.exists() => cgroup::processes(tree)?,
        (None, Some(process)) if process.alive()? => process::of_namespace(process.pid)?,
        _ => Vec::new(),
    };
    if args.format == Format::Json {
        print_line(&pids)?;
        return Ok(0);
    }
    if !args.options.is_empty() {
        print(&by_program(&args.options, &pids)?);
        return Ok(0);
    }
    // As runc has it; a machine without ps(1) has the table below.
    if let Ok(table) = by_program(&["-ef".to_owned()], &pids) {
        print(&table);
        return Ok(0);
    }
    let mut table = plain(&["UID", "PID", "CMD"]);
    for pid in pids {
        table.add_row([owner(pid), pid.to_string(), command(pid)]);
    }
    print(&lines(&table));
    Ok(0)
}

/// What ps(1) prints about everything, less the lines that are not about these processes.
fn by_program(options: &[String], pids: &[i32]) -> Result<String, Error> {
    let command = || format!("ps {}", options.join(" "));
    let output = Command::new("ps").args(options).output().call(command)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Refused(format!("{}: {}", command(), words.trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header.split_whitespace().position(|title| title == "PID");
    let column = column.ok_or_else(|| {
        Error::Refused(format!("{}: has no column PID to tell processes by", command()))
    })?;
    let wanted = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    Ok(std::iter::once(header).chain(lines.filter(wanted)).collect::<Vec<_>>().join("\n"))
}

fn owner(pid: i32) -> String {
    owner_of(Path::new(&format!("/proc/{pid}")))
        .map_or_else(|| "?".to_owned(), |uid| uid.to_string())
}

fn command(pid: i32) -> String {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if line.is_empty() {
        return fs::read_to_string(format!("/proc/{pid}/comm"))
            .map_or_else(|_| "?".to_owned(), |c| format!("[{}]", c.trim()));
    }
    line.trim_end_matches('\0').replace('\0', " ")
}
