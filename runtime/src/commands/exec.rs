use std::path::{Component, Path, PathBuf};

use hafen_spec::Problems;
use hafen_sys::{Context, shield};
use serde_json::{Value, json};

use super::launch::tell;
use crate::cli::{Cli, ExecArgs};
use crate::guest::Document;
use crate::join::{self, Container};
use crate::journal::{Entry, Status};
use crate::supervise::{self, Signals, exit_code};
use crate::terminal::{self, Console, Relay};
use crate::{Error, fault, launch, log};

pub(super) fn exec(cli: &Cli, args: &ExecArgs) -> Result<u8, Error> {
    let copy = shield::run_from_read_only_copy(args.preserve_fds)?;
    let signals = Signals::block()?;
    let entry = Entry::find(&cli.root, &args.id)?;
    let record = entry.record()?.ok_or_else(|| Error::Busy(args.id.clone()))?;
    match entry.status(Some(&record))? {
        Status::Created | Status::Running => {}
        Status::Paused if args.ignore_paused => {}
        Status::Paused => return Err(Error::ExecPaused),
        Status::Creating | Status::Stopped => return Err(Error::ExecStopped),
    }
    let process = entry.process()?.ok_or(Error::ExecStopped)?;
    let handle = process.open()?.ok_or(Error::ExecStopped)?;
    let container = Container::of(&record, process.pid, handle)?;
    let mut document = Document::saved(&entry)?;
    describe(args, &mut document.spec)?;
    let guest = document.resolve(&record, args.preserve_fds, &container)?;
    for warning in &guest.warnings {
        log::warn(&cli.log, warning);
    }
    let wanted = guest.process.terminal.is_some();
    let mut console = terminal::console(wanted, args.detach, args.console_socket.as_deref())?;
    let theirs = console.as_mut().and_then(Console::give);
    let joining = join::Guest { cgroup: sub_group(args)?, ..guest.as_guest(theirs) };
    let launched = join::join(&record, container, joining)?;
    // Nobody waits any more while the kernel takes its mount apart.
    drop(copy);
    guest.keep_filter();
    fault::point();
    if let Err(e) = tell(&launched, args.pid_file.as_deref(), args.pidfd_socket.as_deref()) {
        launch::end(&launched)?;
        return Err(e.into());
    }
    if args.detach {
        return Ok(0);
    }
    let relay = console.and_then(|c| Relay::take(c).transpose()).transpose()?;
    let end = supervise::attend(&launched, &signals, relay, None)?;
    Ok(exit_code(end.code, end.signal))
}

/// A path below the container's cgroup; `controller:path` of cgroup v1 is taken for all controllers.
fn sub_group(args: &ExecArgs) -> Result<PathBuf, Error> {
    let Some(text) = &args.cgroup else { return Ok(PathBuf::new()) };
    let path = Path::new(text.rsplit_once(':').map_or(text.as_str(), |(_, path)| path));
    let relative = path.strip_prefix("/").unwrap_or(path);
    if relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Ok(relative.to_owned());
    }
    Err(Error::Refused(format!(
        "--cgroup: {text} is not a sub cgroup path: it must be one below the container's own"
    )))
}

/// Put the process that was asked for in place of the container's own.
fn describe(args: &ExecArgs, spec: &mut Value) -> Result<(), Error> {
    if let Some(path) = &args.process {
        let bytes = std::fs::read(path).call(|| format!("--process: read {}", path.display()))?;
        spec["process"] = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Refused(format!("--process: {}: {e}", path.display())))?;
        if !args.command.is_empty() {
            spec["process"]["args"] = json!(args.command);
        }
        // conmon names it on the command line as well.
        if args.tty {
            spec["process"]["terminal"] = json!(true);
        }
        return Ok(());
    }
    let mut problems = Problems::default();
    if args.command.is_empty() {
        problems.add("COMMAND", "is missing: what is to be run in the container?");
    }
    let process = &mut spec["process"];
    process["args"] = json!(args.command);
    process["terminal"] = json!(args.tty);
    // What the runtime was told of the container's first process only.
    if let Some(fields) = process.as_object_mut() {
        fields.remove("consoleSize");
        fields.remove("oomScoreAdj");
    }
    user(args, process, &mut problems);
    rights(args, process);
    if let Some(cwd) = &args.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(profile) = &args.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    if let Some(label) = &args.process_label {
        process["selinuxLabel"] = json!(label);
    }
    extend(&mut process["env"], &args.env);
    problems.into_result(()).map_err(Error::Options)
}

fn user(args: &ExecArgs, process: &mut Value, problems: &mut Problems) {
    if let Some(user) = &args.user {
        let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
        match (uid.parse::<u32>(), gid.parse::<u32>()) {
            (Ok(uid), Ok(gid)) => {
                process["user"]["uid"] = json!(uid);
                process["user"]["gid"] = json!(gid);
            }
            _ => problems.add("--user", format!("{user:?} is not UID or UID:GID in numbers")),
        }
    }
    if !args.additional_gids.is_empty() {
        extend(&mut process["user"]["additionalGids"], &args.additional_gids);
    }
}

fn rights(args: &ExecArgs, process: &mut Value) {
    if args.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    if !args.cap.is_empty() {
        // Not inheritable: that would outlive the program that asked for it (CVE-2022-24769).
        for set in ["bounding", "effective", "permitted"] {
            extend(&mut process["capabilities"][set], &args.cap);
        }
    }
}

fn extend(list: &mut Value, more: &[impl serde::Serialize]) {
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.extend(more.iter().map(|m| json!(m)));
    }
}
