use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hafen_spec::resolve::{Options, valid_id};
use hafen_sys::file::replace;
use hafen_sys::spawn::{Outcome, read_outcome};
use hafen_sys::{CallError, Context, shield};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use oci_spec::runtime::Spec;

use super::quick;
use crate::cli::{Cli, CreateArgs, LaunchArgs, RunArgs};
use crate::journal::{Entry, Status};
use crate::launch::{self, Running};
use crate::prepare::{Prepared, Request, prepare, read_bundle};
use crate::supervise::{self, Signals};
use crate::{Error, fault, log, release};

pub(super) fn create(cli: &Cli, args: &CreateArgs) -> Result<u8, Error> {
    let copy = shield::run_from_read_only_copy(args.launch.preserve_fds)?;
    let (bundle, spec) = read_bundle(&args.launch.bundle)?;
    let prepared = ready(cli, &args.launch, &spec, bundle, &args.id, true)?;
    let running = launch::launch(&cli.root, &prepared, true, copy)?;
    announce(&args.launch, running).map(|_| 0)
}

pub(super) fn run(cli: &Cli, args: &RunArgs) -> Result<u8, Error> {
    let copy = shield::run_from_read_only_copy(args.launch.preserve_fds)?;
    let signals = Signals::block()?;
    let prepared = prepare_run(cli, args)?;
    let running = announce(&args.launch, launch::launch(&cli.root, &prepared, false, copy)?)?;
    fault::point();
    let end = supervise::wait(&running, &signals)?;
    fault::point();
    let saved = args.report.as_deref().map_or(Ok(()), |path| end.save(path));
    let Running { mut entry, record, .. } = running;
    // Who deleted it under us has released it; a container that has its id now is not ours.
    if entry.relock()? {
        // An update may have added to what it claims.
        let now = entry.record()?.unwrap_or(record);
        release::release(entry, Some(&now))?;
    }
    saved?;
    Ok(end.code())
}

fn prepare_run(cli: &Cli, args: &RunArgs) -> Result<Prepared, Error> {
    if args.quick.rootfs.is_some() {
        let id = args.named.clone().unwrap_or_else(quick::made_up_id);
        let (spec, bundle) = quick::spec(&args.quick)?;
        return ready(cli, &args.launch, &spec, bundle, &id, false);
    }
    quick::refuse_beside_a_bundle(&args.quick)?;
    let (bundle, spec) = read_bundle(&args.launch.bundle)?;
    ready(cli, &args.launch, &spec, bundle, args.id.as_deref().unwrap_or_default(), false)
}

fn ready(
    cli: &Cli,
    args: &LaunchArgs,
    spec: &Spec,
    bundle: PathBuf,
    id: &str,
    waits: bool,
) -> Result<Prepared, Error> {
    if args.console_socket.is_some() {
        return Err(Error::Refused(
            "--console-socket is not supported yet: terminals come with the complete OCI runtime"
                .to_owned(),
        ));
    }
    // Before the name is used for any path.
    valid_id(id).map_err(Error::Refused)?;
    let root = std::path::absolute(&cli.root).call(|| format!("--root {}", cli.root.display()))?;
    if root.join(id).exists() {
        return Err(Error::Exists(id.to_owned()));
    }
    let request = Request {
        options: Options {
            id: id.to_owned(),
            overlay: bundle == Path::new(quick::NO_BUNDLE),
            bundle,
            no_pivot: args.no_pivot,
            no_new_keyring: args.no_new_keyring,
            preserve_fds: args.preserve_fds,
        },
        scratch: root.join(id).join("scratch"),
        waits,
    };
    // Whoever took the id meanwhile has its cgroup as well: that is the reason to tell.
    let taken = |e| if root.join(id).exists() { Error::Exists(id.to_owned()) } else { e };
    let prepared = prepare(spec, &request).map_err(taken)?;
    for warning in &prepared.resolved.warnings {
        log::warn(&cli.log, warning);
    }
    Ok(prepared)
}

/// Tell others the pid. From here on they may act on the container, so the lock is given up.
fn announce(args: &LaunchArgs, mut running: Running) -> Result<Running, Error> {
    if let Some(path) = &args.pid_file
        && let Err(e) = replace(path, running.process.pid.to_string().as_bytes(), false)
    {
        return Err(release::after_failure(running.entry, Some(&running.record), e.into()));
    }
    running.entry.unlock();
    Ok(running)
}

pub(super) fn start(cli: &Cli, id: &str) -> Result<u8, Error> {
    let mut entry = Entry::find(&cli.root, id)?;
    entry.lock()?;
    let record = entry.record()?;
    match entry.status(record.as_ref())? {
        Status::Created => {}
        Status::Running => return Err(Error::StartRunning),
        Status::Paused => return Err(Error::StartPaused),
        Status::Creating | Status::Stopped => return Err(Error::StartStopped),
    }
    let program = record.map(|r| r.program).unwrap_or_default();
    fault::point();
    let outcome = let_go(&entry);
    fault::point();
    entry.remove_fifos()?;
    fault::point();
    match outcome? {
        Outcome::Executed | Outcome::Created => Ok(0),
        Outcome::Vanished => Err(Error::Vanished { program, hint: String::new() }),
        Outcome::Refused(report) => {
            Err(launch::no_program(&program, Errno::from_raw(report.errno)))
        }
        Outcome::Failed(report) => {
            let call = format!("start: operation {} of the first process", report.op);
            Err(CallError::errno(call, Errno::from_raw(report.errno)).into())
        }
    }
}

/// Open the way back first, then let the process go: its silence until the end of file is success.
fn let_go(entry: &Entry) -> Result<Outcome, Error> {
    let nonblocking = |path: &Path, write: bool| {
        let file = OpenOptions::new()
            .read(!write)
            .write(write)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path);
        file.call(|| format!("open {}", path.display()))
    };
    let mut reports = nonblocking(&entry.report_fifo(), false)?;
    // ENXIO: nobody reads, the process is gone.
    let mut go = match nonblocking(&entry.start_fifo(), true) {
        Err(e) if e.is(Errno::ENXIO) => return Err(Error::StartStopped),
        answer => answer?,
    };
    fcntl(&reports, FcntlArg::F_SETFL(OFlag::empty())).call(|| "fcntl F_SETFL".to_owned())?;
    go.write_all(b"g").call(|| format!("write {}", entry.start_fifo().display()))?;
    fault::point();
    Ok(read_outcome(&mut reports).call(|| format!("read {}", entry.report_fifo().display()))?)
}
