//! Carrying out a plan.
//!
//! ```text
//!   runtime                                        first process
//!   ------------------------------------------     --------------------------------------------
//!   save the plan                         (1)
//!   steps before: cgroups, limits, scratch
//!   open root, bind sources, namespaces
//!   clone3 ------------------------------------->  born in its cgroup and namespaces
//!   steps beside: device program, v1 cgroups       mounts, devices, sysctl, masks, pivot_root
//!   save specification, pid and start time
//!   "g" -------------- go pipe ----------------->  AwaitGo; end of file here: exit       (2)
//!                                                  cgroup namespace, rlimits, ids, capabilities
//!                                                  close descriptors, find the program
//!   create: <---------- "created" --------------   AwaitStart: read the fifo `start`
//!           return 0; `start` writes the fifo -->  seccomp
//!   run:    <---------- "executing" ------------   execve
//!           <--- end of file: it worked ---------  (the pipe closes on exec)
//!           <---------- "failed op 14 EINVAL" ---  exit                                  (3)
//! ```
//!
//! (1) From here on a crash at any instruction leaves what `delete --force` finds and releases.
//! (2) Nothing runs unconfined, and nothing stays, when the runtime dies.
//! (3) The runtime owns the plan: it turns the number of the operation into a sentence.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hafen_isolator::cgroup::{self, Hold};
use hafen_isolator::{network, resctrl};
use hafen_rootfs::store::taken;
use hafen_rootfs::{scratch, source};
use hafen_spec::plan::{ChildStep, HostStep};
use hafen_spec::resolved::{Hooks, Mount, MountKind, Namespace};
use hafen_sys::child::{IN_PROCFS, MountCalls, Report, Script, terminal_words};
use hafen_sys::file::{boot_id, open_proc, replace};
use hafen_sys::spawn::{Birth, Launched, Outcome, launch as spawn};
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use crate::encode::{Encoded, Encoder, Sources, give, mount_calls, needs_proc};
use crate::fault;
use crate::filters::Compiled;
use crate::hooks::{self, Occasion};
use crate::join::{self, Container, Guest};
use crate::journal::{Entry, Record, Status};
use crate::notify::Notify;
use crate::prepare::Prepared;
use crate::process::Identity;
use crate::state::State;
use crate::supervise::Began;
use crate::{Error, apart, listener, notify, privilege, release, sources, volumes};

/// A container whose first process has done its part.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) entry: Entry,
    pub(crate) record: Record,
    pub(crate) process: Launched,
    pub(crate) began: Began,
    /// Where it says that it is ready; of a container that waits nobody listens before `start`.
    pub(crate) notify: Option<Notify>,
}

/// Launch. After a failure everything that was claimed is released, and the first failure is told.
///
/// # Errors
/// The step that failed.
pub(crate) fn launch(
    root: &Path,
    prepared: &Prepared,
    waits: bool,
    own: (Option<OwnedFd>, Option<OwnedFd>),
) -> Result<Running, Error> {
    fault::point();
    let entry = Entry::claim(root, &prepared.resolved.id)?;
    fault::point();
    let record = match record(prepared).and_then(|r| entry.save_plan(&r).map(|()| r)) {
        Ok(record) => record,
        // Nothing but the folder exists, and it holds no plan.
        Err(first) => return Err(release::after_failure(entry, None, first)),
    };
    fault::point();
    let mut made = Vec::new();
    let (copy, console) = own;
    let (mut hooked, mut notify) = (false, None);
    let own = Own {
        entry: &entry,
        record: &record,
        copy,
        console,
        hooked: &mut hooked,
        notify: &mut notify,
    };
    match carry_out(own, prepared, waits, &mut made) {
        Ok((process, began)) => {
            prepared.compiled.iter().for_each(Compiled::keep);
            Ok(Running { entry, record, process, began, notify })
        }
        Err(first) => {
            // What was not begun may be somebody else's: the release would kill what is in it.
            let mut begun = record;
            begun.claims.retain(|claim| made.iter().any(|path| path == claim.path()));
            if !hooked {
                begun.hooks = Hooks::default();
            }
            Err(release::after_failure(entry, Some(&begun), first))
        }
    }
}

fn record(prepared: &Prepared) -> Result<Record, Error> {
    let resolved = &prepared.resolved;
    Ok(Record {
        format: Record::format(),
        id: resolved.id.clone(),
        boot_id: boot_id()?,
        oci_version: resolved.oci_version.clone(),
        program: program(prepared).to_owned(),
        bundle: resolved.bundle.clone(),
        rootfs: resolved.root.path.clone(),
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        annotations: resolved.annotations.clone(),
        hooks: resolved.hooks.clone(),
        no_new_keyring: !resolved.process.new_keyring,
        claims: prepared.plan.claims.clone(),
    })
}

/// What the runtime holds and the first process must not.
struct Own<'a> {
    entry: &'a Entry,
    record: &'a Record,
    /// The mount that our program runs from.
    copy: Option<OwnedFd>,
    /// Where the master of the terminal goes.
    console: Option<OwnedFd>,
    /// Hooks have begun to run.
    hooked: &'a mut bool,
    notify: &'a mut Option<Notify>,
}

fn carry_out(
    mut own: Own<'_>,
    prepared: &Prepared,
    waits: bool,
    made: &mut Vec<PathBuf>,
) -> Result<(Launched, Began), Error> {
    let mut holds = Vec::new();
    for step in &prepared.plan.before {
        holds.extend(make(step, made)?);
        fault::point();
    }
    let sources = open_sources(&mut own, prepared, waits)?;
    let resolved = &prepared.resolved;
    let filter = prepared.filter();
    let encoder =
        Encoder::new(&sources, &prepared.facts, &resolved.process, &resolved.root.path, filter);
    let Encoded { ops, origins } = encoder.encode(&prepared.plan.child)?;
    // Never taken apart: its strings are written to then, on pages that would have to be copied for it.
    let script = ManuallyDrop::new(Script { ops, die_before: fault::child() });
    fault::point();
    let began = Began::now();
    let mut process = clone(prepared, &sources, &script)?;
    // The first process has its own: who waits for the end of the console or listener must not wait for us.
    drop(sources);
    fault::point();
    let outcome = accompany(own, prepared, holds, &mut process);
    match judge(outcome, prepared, &origins) {
        Ok(()) => Ok((process, began)),
        Err(failure) => {
            end(&process)?;
            Err(failure)
        }
    }
}

/// Do the runtime's part while the first process does its own, until it has done all.
fn accompany(
    own: Own<'_>,
    prepared: &Prepared,
    holds: Vec<Hold>,
    process: &mut Launched,
) -> Result<Outcome, Error> {
    for step in &prepared.plan.beside {
        perform(step, Some(process.pid))?;
        if matches!(step, HostStep::IdMaps(_)) {
            // One that is gone already has said why in its report.
            let _ = process.go();
        }
        fault::point();
    }
    // It is in all of its cgroups, where everybody sees it.
    drop(holds);
    own.entry.save_config(&prepared.config)?;
    let identity = Identity::of(process.pid)?;
    let creating = !prepared.resolved.hooks.none_before_root();
    own.entry.save_process(Identity { creating, ..identity })?;
    fault::point();
    let hooks = Occasions { record: own.record, prepared, pid: process.pid };
    if creating {
        match process.outcome()? {
            Outcome::Ready => {}
            other => return Ok(other),
        }
        *own.hooked = true;
        hooks.before_root(process)?;
        own.entry.save_process(identity)?;
        fault::point();
        let _ = process.go();
    }
    // A process that is gone already has said why in its report.
    let _ = process.go();
    // The first process is on its way: now nobody waits while the kernel takes the copy's mount apart.
    drop(own.copy);
    fault::point();
    match process.outcome()? {
        Outcome::Ready => {
            *own.hooked = true;
            hooks.before_program(process)?;
            let _ = process.go();
            Ok(process.outcome()?)
        }
        other => Ok(other),
    }
}

/// The hooks of a launch.
struct Occasions<'a> {
    record: &'a Record,
    prepared: &'a Prepared,
    pid: i32,
}

impl Occasions<'_> {
    fn guest(&self) -> Guest<'_> {
        Guest {
            process: &self.prepared.resolved.process,
            filter: self.prepared.filter(),
            facts: &self.prepared.facts,
            console: None,
            cgroup: PathBuf::new(),
        }
    }

    fn container(&self, process: &Launched) -> Result<Container, CallError> {
        let handle = process.pidfd.try_clone().call(|| "dup a pidfd".to_owned())?;
        Container::of(self.record, self.pid, handle)
    }

    fn before_root(&self, process: &Launched) -> Result<(), Error> {
        let (hooks, bundle) = (&self.record.hooks, self.record.bundle.as_path());
        // These are from the time when they were called by `start`, and were told so (runtime-spec 1.0).
        let state = State::of(self.record, Status::Created, Some(self.pid)).json()?;
        hooks::run(&hooks.prestart, Occasion { kind: "prestart", state: &state, bundle })?;
        let state = State::of(self.record, Status::Creating, Some(self.pid)).json()?;
        fault::point();
        hooks::run(
            &hooks.create_runtime,
            Occasion { kind: "createRuntime", state: &state, bundle },
        )?;
        fault::point();
        if hooks.create_container.is_empty() {
            return Ok(());
        }
        let (container, guest) = (self.container(process)?, self.guest());
        let occasion = Occasion { kind: "createContainer", state: &state, bundle };
        hooks::run_each(&hooks.create_container, occasion, |hook, standard| {
            join::hook_visiting(&container, hook, standard, &guest)
        })
    }

    fn before_program(&self, process: &Launched) -> Result<(), Error> {
        join::run_start_hooks(self.record, &self.container(process)?, &self.guest())
    }
}

/// After a failure the first process must be gone before anything is released.
pub(crate) fn end(process: &Launched) -> Result<(), CallError> {
    match hafen_sys::pidfd::send_signal(&process.pidfd, libc::SIGKILL) {
        Err(e) if !e.is(Errno::ESRCH) => return Err(e),
        _ => {}
    }
    hafen_sys::pidfd::wait(process.pid, true).map(|_| ())
}

/// Perform a step and note what it makes, also where it fails half-way; not where it was there already (EEXIST).
fn make(step: &HostStep, made: &mut Vec<PathBuf>) -> Result<Option<Hold>, CallError> {
    let performed = perform(step, None);
    let taken = performed.as_ref().is_err_and(|e| e.is(Errno::EEXIST));
    made.extend(step.makes().filter(|_| !taken).map(Path::to_owned));
    performed
}

fn perform(step: &HostStep, pid: Option<i32>) -> Result<Option<Hold>, CallError> {
    match step {
        HostStep::MakeScratch { path } => scratch::make(path).map(|()| None),
        HostStep::LimitScratch { path, bytes } => scratch::limit(path, *bytes).map(|()| None),
        HostStep::FillScratch { path, layers, owner } => {
            scratch::fill(path, layers, *owner).map(|()| None)
        }
        HostStep::WriteUse { path, text, touched } => {
            replace(path, text.as_bytes(), false)?;
            touched.as_deref().map_or(Ok(()), taken).map(|()| None)
        }
        HostStep::MakeVolume { root, name, seed } => volumes::make(root, name, seed).map(|()| None),
        HostStep::SeedFolder { path, seed } => volumes::seed(path, seed).map(|()| None),
        HostStep::IdMaps(_)
        | HostStep::CheckIdMaps(_)
        | HostStep::OomScoreAdj { .. }
        | HostStep::HardLimit(_) => privilege::perform(step, pid.unwrap_or(-1)).map(|()| None),
        HostStep::Attribute(attribute) => give(pid.unwrap_or(-1), attribute).map(|()| None),
        HostStep::Resctrl(step) => resctrl::perform(step, pid).map(|()| None),
        HostStep::MoveInterface { device, namespace } => {
            let own = || format!("/proc/{}/ns/net", pid.unwrap_or(-1)).into();
            let namespace = namespace.clone().unwrap_or_else(own);
            network::hand_over(&device.host, &device.inside, &namespace).map(|()| None)
        }
        _ => cgroup::perform(step, pid),
    }
}

fn open_sources(own: &mut Own<'_>, prepared: &Prepared, waits: bool) -> Result<Sources, Error> {
    notify::make_folder(&own.entry.path)?;
    if !waits {
        *own.notify = Notify::listen(&own.entry.path)?;
    }
    Ok(Sources {
        root: open_root(prepared)?,
        binds: sources::mounts(prepared)?,
        namespaces: open_namespaces(prepared)?,
        tasks: open_tasks(&prepared.plan.child)?,
        proc: prepared.plan.child.iter().any(needs_proc).then(open_proc).transpose()?,
        listener: listener::connect(
            prepared.filter(),
            State::of(own.record, if waits { Status::Created } else { Status::Creating }, None),
        )?,
        fifos: if waits { Some(own.entry.make_fifos()?) } else { None },
        private: own
            .entry
            .lock_fd()
            .into_iter()
            .chain(own.copy.as_ref().map(AsRawFd::as_raw_fd))
            .collect(),
        console: own.console.take(),
        ..Sources::default()
    })
}

/// For each v1 cgroup that is entered.
///
/// # Errors
/// The file that cannot be opened.
pub(crate) fn open_tasks(steps: &[ChildStep]) -> Result<Vec<OwnedFd>, CallError> {
    let folders = steps.iter().filter_map(|step| match step {
        ChildStep::EnterLegacy { cgroup } => Some(cgroup.join("tasks")),
        _ => None,
    });
    let open = |path: PathBuf| {
        open(&path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| format!("open {}", path.display()))
    };
    folders.map(open).collect()
}

/// A detached copy of the root's mounts to attach in the new namespace; the folder itself where there is none.
fn open_root(prepared: &Prepared) -> Result<Option<OwnedFd>, CallError> {
    let Some(folder) = &prepared.root else { return Ok(None) };
    let resolved = &prepared.resolved;
    if let Some(root) = apart::root(prepared)? {
        return Ok(Some(root));
    }
    if !resolved.namespaces.is_new(Namespace::Mount) {
        return folder.try_clone().map(Some).call(|| "dup the root file system".to_owned());
    }
    if resolved.root.overlay || mount_calls(&prepared.facts) == MountCalls::Classic {
        return Ok(None);
    }
    let tree = source::copy_of(folder, &resolved.root.path, prepared.resolved.root.apart())?;
    Ok(Some(tree))
}

fn open_namespaces(prepared: &Prepared) -> Result<Vec<(Namespace, OwnedFd)>, CallError> {
    let open = |(namespace, path): &(Namespace, std::path::PathBuf)| {
        let file = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let file =
            file.call(|| format!("open {} namespace {}", namespace.file(), path.display()))?;
        check_namespace(&file, *namespace, path)?;
        Ok((*namespace, file))
    };
    prepared.resolved.namespaces.joined.iter().map(open).collect()
}

/// setns(2) would say no more than EINVAL.
fn check_namespace(file: &OwnedFd, namespace: Namespace, path: &Path) -> Result<(), CallError> {
    let kind = hafen_sys::spawn::namespace_type(file);
    if kind == Some(namespace.flag()) {
        return Ok(());
    }
    let call = format!("join {} namespace {}", namespace.file(), path.display());
    Err(CallError::new(call, std::io::Error::other("is not a namespace of that type")))
}

fn clone(prepared: &Prepared, sources: &Sources, script: &Script) -> Result<Launched, CallError> {
    let plan = &prepared.plan;
    let by_us = plan.spawn.joins.is_empty();
    let join_pid =
        prepared.resolved.namespaces.joined.iter().find(|(n, _)| by_us && *n == Namespace::Pid);
    if let Some((_, path)) = join_pid {
        // For our children only (pid_namespaces(7)); we ourselves stay where we are.
        let file = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let file = file.call(|| format!("open pid namespace {}", path.display()))?;
        setns(file, CloneFlags::CLONE_NEWPID)
            .call(|| format!("setns pid namespace {}", path.display()))?;
    }
    let cgroup = plan.spawn.cgroup.as_deref().map(open_cgroup).transpose()?;
    let birth = Birth {
        namespaces: plan.spawn.namespaces.iter().fold(0, |flags, n| flags | n.flag()),
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
        classic: prepared.facts.lacks("clone3"),
        joins: &joins(prepared, sources),
    };
    spawn(script, birth)
        .map_err(|e| CallError::new(format!("{}: {}", plan.spawn, e.call), e.source))
}

fn joins<'a>(prepared: &Prepared, sources: &'a Sources) -> Vec<(BorrowedFd<'a>, u64)> {
    let opened = |namespace: &Namespace| {
        let found = sources.namespaces.iter().find(|(n, _)| n == namespace);
        found.map(|(n, fd)| (fd.as_fd(), n.flag()))
    };
    prepared.plan.spawn.joins.iter().filter_map(|(namespace, _)| opened(namespace)).collect()
}

pub(crate) fn open_cgroup(path: &Path) -> Result<OwnedFd, CallError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).call(|| format!("open {}", path.display()))
}

/// Turn what the first process said into what a person reads.
fn judge(
    outcome: Result<Outcome, Error>,
    prepared: &Prepared,
    origins: &[usize],
) -> Result<(), Error> {
    match outcome? {
        Outcome::Created | Outcome::Executed | Outcome::Ready => Ok(()),
        Outcome::Failed(report) | Outcome::Refused(report) => {
            Err(explain(&report, &prepared.plan.child, origins, program(prepared)))
        }
        Outcome::Vanished => Err(vanished(prepared)),
    }
}

fn program(prepared: &Prepared) -> &str {
    prepared.resolved.process.args.first().map_or("", String::as_str)
}

fn vanished(prepared: &Prepared) -> Error {
    let usage = cgroup::observe(&prepared.plan.claims);
    let hint = match usage.oom_kills {
        Some(kills) if kills > 0 => {
            " by the OOM killer: its memory limit is too low to start it".to_owned()
        }
        _ => String::new(),
    };
    Error::Vanished { program: program(prepared).to_owned(), hint }
}

/// The sentence about a failed operation: its step, and the kernel's words.
pub(crate) fn explain(
    report: &Report,
    steps: &[ChildStep],
    origins: &[usize],
    program: &str,
) -> Error {
    let index = origins.get(report.op as usize).copied().unwrap_or(0);
    let errno = Errno::from_raw(report.errno);
    let number = index + 1;
    let Some(step) = steps.get(index) else {
        return CallError::errno(format!("operation {} of the first process", report.op), errno)
            .into();
    };
    match step {
        ChildStep::FindProgram { .. } | ChildStep::Execute { .. } => no_program(program, errno),
        _ => {
            let words = report.words().or_else(|| hint(step, report));
            let step = match words {
                Some(words) => format!("{step} ({words})"),
                None => step.to_string(),
            };
            Error::Step { number, step, source: CallError::errno("", errno) }
        }
    }
}

/// The user's program cannot be found or executed.
pub(crate) fn no_program(program: &str, errno: Errno) -> Error {
    Error::Program {
        program: program.to_owned(),
        reason: program_reason(program, errno),
        found: errno != Errno::ENOENT,
    }
}

/// Clients tell exit codes 126 and 127 apart by these words of runc's.
fn program_reason(program: &str, errno: Errno) -> String {
    match errno {
        Errno::ENOENT if program.contains('/') => {
            format!("stat {program}: no such file or directory")
        }
        Errno::ENOENT => "executable file not found in $PATH".to_owned(),
        Errno::EACCES | Errno::EPERM => "permission denied".to_owned(),
        Errno::EISDIR => "is a directory".to_owned(),
        Errno::ENOEXEC => "exec format error".to_owned(),
        other => other.desc().to_lowercase(),
    }
}

fn hint(step: &ChildStep, report: &Report) -> Option<String> {
    match step {
        ChildStep::Mount(mount) if report.detail == IN_PROCFS => Some(format!(
            "{:?} leads into procfs: what is there must be the kernel's",
            mount.destination
        )),
        // runc's words.
        ChildStep::Mount(Mount { kind: MountKind::New { fstype, .. }, .. })
            if matches!(fstype.as_str(), "proc" | "sysfs")
                && matches!(report.errno, libc::ELOOP | libc::ENOTDIR) =>
        {
            Some(format!("filesystem {fstype:?} must be mounted on ordinary directory"))
        }
        ChildStep::Seccomp { listener: Some(_), .. } if report.detail == 1 => {
            Some("the listener could not be sent".to_owned())
        }
        ChildStep::WorkingDirectory { .. } if report.detail == 1 => {
            Some("leads out of the root file system".to_owned())
        }
        ChildStep::Terminal { .. } => terminal_words(report.detail).map(str::to_owned),
        ChildStep::Mount(Mount { kind: MountKind::New { options, .. }, .. })
            if report.detail > 0 =>
        {
            let (key, value) = options.get(report.detail as usize - 1)?;
            let value = value.as_deref().map_or_else(String::new, |v| format!("={v}"));
            Some(format!("option {key}{value}"))
        }
        _ => None,
    }
}
