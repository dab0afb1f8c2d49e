use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hafen_isolator::cgroup;
use hafen_spec::resolve::{Options, valid_id};
use hafen_sys::file::replace;
use hafen_sys::spawn::{Launched, Outcome, read_outcome};
use hafen_sys::{CallError, Context, shield, socket};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::quick;
use crate::cli::{Cli, CreateArgs, LaunchArgs, Rootless, RunArgs, StartArgs};
use crate::guest;
use crate::join::Container;
use crate::journal::{Entry, Record, Status};
use crate::launch::{self, Running};
use crate::notify::Notify;
use crate::prepare::{Bundle, Prepared, Request, prepare, read_bundle};
use crate::process::Identity;
use crate::supervise::{self, Signals, exit_code};
use crate::terminal::{self, Console, Relay};
use crate::{Error, activation, fault, join, log, release};

pub(super) fn create(cli: &Cli, args: &CreateArgs) -> Result<u8, Error> {
    let copy = shield::run_from_read_only_copy(kept(&args.launch))?;
    let bundle = read_bundle(&args.launch.bundle, &args.launch.config)?;
    let prepared = ready(cli, &args.launch, bundle, &args.id, true)?;
    let theirs = console(&prepared, &args.launch, true)?.and_then(|mut c| c.give());
    let own = (copy, theirs);
    let running = launch::launch(&cli.root, &prepared, true, own)?;
    announce(&args.launch, running).map(|_| 0)
}

pub(super) fn run(cli: &Cli, args: &RunArgs) -> Result<u8, Error> {
    let copy = shield::run_from_read_only_copy(kept(&args.what.launch))?;
    let signals = Signals::block()?;
    let mut prepared = prepare_start(cli, &args.what)?;
    let mut console = console(&prepared, &args.what.launch, args.detach)?;
    let theirs = console.as_mut().and_then(Console::give);
    let running = launch::launch(&cli.root, &prepared, false, (copy, theirs))?;
    prepared.stores.clear();
    let mut running = after_start(announce(&args.what.launch, running)?)?;
    if args.detach {
        if let Some(notify) = running.notify {
            notify.await_ready(running.process.pid, running.process.pidfd.as_fd())?;
        }
        return Ok(0);
    }
    let relay = console.and_then(|c| Relay::take(c).transpose()).transpose()?;
    fault::point();
    let notify = running.notify.take();
    let end = supervise::attend(&running.process, &signals, relay, notify.as_ref())?;
    let code = exit_code(end.code, end.signal);
    fault::point();
    let report = |path| supervise::save(&supervise::record(&running, &end), path);
    let saved = args.report.as_deref().map_or(Ok(()), report);
    let Running { mut entry, record, .. } = running;
    if args.keep {
        saved?;
        return Ok(code);
    }
    // Who deleted it under us has released it; a container that has its id now is not ours.
    if entry.relock()? {
        // An update may have added to what it claims.
        let now = entry.record()?.unwrap_or(record);
        release::release(entry, Some(&now))?;
    }
    saved?;
    Ok(code)
}

/// Descriptors after the three standard ones: those of a service manager come first, as with runc.
pub(super) fn kept(args: &LaunchArgs) -> u32 {
    args.preserve_fds.saturating_add(activation::listening())
}

fn console(
    prepared: &Prepared,
    args: &LaunchArgs,
    detached: bool,
) -> Result<Option<Console>, Error> {
    let wanted = prepared.resolved.process.terminal.is_some();
    terminal::console(wanted, detached, args.console_socket.as_deref())
}

/// The container runs: a hook that fails now ends it.
pub(super) fn after_start(mut running: Running) -> Result<Running, Error> {
    let pid = running.process.pid;
    match join::run_poststart_hooks(&running.record, pid) {
        Ok(()) => Ok(running),
        Err(failure) => {
            launch::end(&running.process)?;
            if running.entry.relock()? {
                return Err(release::after_failure(running.entry, Some(&running.record), failure));
            }
            Err(failure)
        }
    }
}

pub(super) fn prepare_start(cli: &Cli, args: &StartArgs) -> Result<Prepared, Error> {
    if quick::is_meant(&args.quick) {
        let id = args.named.clone().unwrap_or_else(quick::made_up_id);
        return ready(cli, &args.launch, quick::bundle(&args.quick)?, &id, false);
    }
    quick::refuse_beside_a_bundle(&args.quick)?;
    let missing =
        "the name of the container is missing: ID, or --rootfs or --image for one without a bundle";
    let id = args.id.as_deref().ok_or_else(|| Error::Refused(missing.to_owned()))?;
    let bundle = read_bundle(&args.launch.bundle, &args.launch.config)?;
    ready(cli, &args.launch, bundle, id, false)
}

fn ready(
    cli: &Cli,
    args: &LaunchArgs,
    bundle: Bundle,
    id: &str,
    waits: bool,
) -> Result<Prepared, Error> {
    // Before the name is used for any path.
    valid_id(id).map_err(Error::Refused)?;
    let root = std::path::absolute(&cli.root).call(|| format!("--root {}", cli.root.display()))?;
    if root.join(id).exists() {
        return Err(Error::Exists(id.to_owned()));
    }
    let request = Request {
        options: Options {
            id: id.to_owned(),
            overlay: bundle.path == Path::new(quick::NO_BUNDLE),
            below: bundle.below(),
            bundle: bundle.path.clone(),
            no_pivot: args.no_pivot,
            systemd_cgroup: cli.wants_systemd(),
            no_new_keyring: args.no_new_keyring,
            preserve_fds: kept(args),
        },
        state: root.join(id),
        waits,
        real: true,
        needs_cgroup: cli.rootless == Some(Rootless::False),
    };
    // Whoever took the id meanwhile has its cgroup as well: that is the reason to tell.
    let taken = |e| if root.join(id).exists() { Error::Exists(id.to_owned()) } else { e };
    let prepared = prepare(bundle, &request).map_err(taken)?;
    for warning in &prepared.resolved.warnings {
        log::warn(&cli.log, warning);
    }
    Ok(prepared)
}

/// In the file and through the socket that the caller named.
///
/// # Errors
/// Names the file or the socket.
pub(super) fn tell(
    process: &Launched,
    file: Option<&Path>,
    socket: Option<&Path>,
) -> Result<(), CallError> {
    if let Some(path) = socket {
        let send = |handle: BorrowedFd<'_>| socket::send(&socket::connect(path)?, handle, b"pidfd");
        send(process.pidfd.as_fd()).call(|| format!("--pidfd-socket {}", path.display()))?;
    }
    file.map_or(Ok(()), |path| replace(path, process.pid.to_string().as_bytes(), false))
}

/// Tell others the pid. From here on they may act on the container, so the lock is given up.
pub(super) fn announce(args: &LaunchArgs, mut running: Running) -> Result<Running, Error> {
    let process = &running.process;
    if let Err(e) = tell(process, args.pid_file.as_deref(), args.pidfd_socket.as_deref()) {
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
    let record = record.ok_or_else(|| Error::Busy(id.to_owned()))?;
    let process = entry.process()?.ok_or(Error::StartStopped)?;
    if !record.hooks.start_container.is_empty()
        && let Err(failure) = start_hooks(&entry, &record, process)
    {
        return Err(end_all(&entry, &record, failure));
    }
    let notify = Notify::listen(&entry.path)?;
    let handle = process.open()?;
    fault::point();
    let outcome = let_go(&entry);
    fault::point();
    entry.remove_fifos()?;
    fault::point();
    let program = record.program.clone();
    match outcome? {
        Outcome::Executed | Outcome::Created | Outcome::Ready => {
            if let Err(failure) = join::run_poststart_hooks(&record, process.pid) {
                return Err(end_all(&entry, &record, failure));
            }
            drop(entry);
            if let Some((notify, handle)) = notify.zip(handle) {
                notify.await_ready(process.pid, handle.as_fd())?;
            }
            Ok(0)
        }
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

fn start_hooks(entry: &Entry, record: &Record, process: Identity) -> Result<(), Error> {
    let handle = process.open()?.ok_or(Error::StartStopped)?;
    let container = Container::of(record, process.pid, handle)?;
    let guest = guest::Document::saved(entry)?.resolve(record, 0, &container)?;
    join::run_start_hooks(record, &container, &guest.as_guest(None))
}

/// A container whose hooks fail has no processes any more; `delete` finds the rest.
fn end_all(entry: &Entry, record: &Record, failure: Error) -> Error {
    let killed = match record.tree() {
        Some(tree) => cgroup::kill(tree).map_err(Error::from),
        None => entry.process().and_then(|p| Ok(p.map_or(Ok(()), |process| process.end())?)),
    };
    match killed {
        Ok(()) => failure,
        Err(e) => Error::CleanUp { first: failure.chain(), second: e.chain() },
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
