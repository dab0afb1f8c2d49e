//! A process more in a running container: for `exec`, and for hooks that run inside.
//!
//! The process is born in the container's cgroup and pid namespace and joins all other namespaces at once through the
//! pidfd of the container's first process. Before that it has closed all that is the host's, and is not dumpable:
//! in there somebody may wait for it (CVE-2016-9962, CVE-2024-21626).

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use hafen_isolator::{cgroup, seccomp};
use hafen_spec::HostFacts;
use hafen_spec::plan::{Attribute, ChildStep, Claim, HostStep};
use hafen_spec::resolved::{Hook, IdList, Namespace, Process};
use hafen_sys::child::Script;
use hafen_sys::file::{open_proc, read_text, write_knob};
use hafen_sys::spawn::{Birth, Launched, Outcome, launch as spawn, namespace_owner};
use hafen_sys::{CallError, Context, pidfd};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::sys::stat::{Mode, fstat, stat};
use nix::unistd::Pid;

use crate::encode::{Encoded, Encoder, Sources, give, needs_proc};
use crate::hooks::{self, Occasion, Standard, Started};
use crate::journal::{Record, Status};
use crate::launch::{explain, open_cgroup, open_tasks};
use crate::listener::{self, Listener};
use crate::state::State;
use crate::{Error, fault, plan, privilege};

/// Name in `/proc/PID/ns`, and the flag of setns(2). The pid namespace is not among them: it is for children.
const NAMESPACES: [(&str, i32); 7] = [
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("uts", libc::CLONE_NEWUTS),
    ("ipc", libc::CLONE_NEWIPC),
    ("net", libc::CLONE_NEWNET),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", 0x80),
];

/// A running container as those see it who join it.
#[derive(Debug)]
pub(crate) struct Container {
    pid: i32,
    handle: OwnedFd,
    /// Those of its namespaces that are not ours.
    namespaces: Vec<(&'static str, i32)>,
    /// Flags of those that must be joined before its user namespace, since they do not belong to it.
    foreign: i32,
    own_pids: bool,
    /// Its user namespace and its pid namespace, for a runtime without rights of its own: its user is root in there, and
    /// only from there may the others be joined.
    first: Vec<(OwnedFd, u64)>,
    root: OwnedFd,
    /// The folder of the cgroup2 tree, and those of v1 hierarchies.
    tree: Option<PathBuf>,
    legacy: Vec<PathBuf>,
}

impl Container {
    /// # Errors
    /// Names what could not be read: the container may have ended meanwhile.
    pub(crate) fn of(record: &Record, pid: i32, handle: OwnedFd) -> Result<Self, CallError> {
        let mut namespaces = Vec::new();
        for (name, flag) in NAMESPACES {
            if differs(pid, name)? {
                namespaces.push((name, flag));
            }
        }
        let own_pids = differs(pid, "pid")?;
        let first = if namespaces.iter().any(|(name, _)| *name == "user") && !may_join()? {
            namespaces.retain(|(name, _)| *name != "user");
            first(pid, own_pids)?
        } else {
            Vec::new()
        };
        let path = format!("/proc/{pid}/root");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(path.as_str(), flags, Mode::empty()).call(|| format!("open {path}"))?;
        let foreign = foreign(pid, &namespaces)?;
        // Asked last: as long as it lives, all that was read above was its own.
        pidfd::send_signal(&handle, 0)?;
        let legacy = record.claims.iter().filter_map(|claim| match claim {
            Claim::LegacyCgroup { path, .. } => Some(path.clone()),
            _ => None,
        });
        Ok(Self {
            pid,
            handle,
            namespaces,
            foreign,
            own_pids,
            first,
            root,
            tree: record.tree().map(Path::to_owned),
            legacy: legacy.collect(),
        })
    }

    /// Its root file system as its first process sees it.
    pub(crate) const fn root(&self) -> &OwnedFd {
        &self.root
    }

    fn own(&self) -> i32 {
        self.namespaces.iter().fold(0, |flags, (_, flag)| flags | flag) & !self.foreign
    }

    /// The machine as a process in the container finds it.
    pub(crate) fn facts(&self, facts: HostFacts) -> HostFacts {
        if self.has_own("user") { facts.in_user_namespace() } else { facts }
    }

    fn names(&self) -> Vec<&'static str> {
        self.namespaces.iter().map(|(name, _)| *name).collect()
    }

    fn has_own(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|(name, _)| *name == namespace)
    }

    fn sources(&self, standard: Option<[i32; 3]>) -> Result<Sources, CallError> {
        Ok(Sources {
            container: Some(self.handle.try_clone().call(|| "dup a pidfd".to_owned())?),
            container_root: Some(self.root.try_clone().call(|| "dup the root".to_owned())?),
            container_namespaces: [self.foreign, self.own()],
            standard,
            ..Sources::default()
        })
    }

    /// Into its folders in v1 hierarchies, with the last of what is held of the host's.
    fn enter(&self, steps: &mut Vec<ChildStep>) {
        let at = steps.iter().position(|s| matches!(s, ChildStep::CloseHost { .. })).unwrap_or(0);
        let folders = self.legacy.iter();
        steps.splice(at..at, folders.map(|f| ChildStep::EnterLegacy { cgroup: f.clone() }));
    }

    /// Below its folders, `sub` or nothing. It must be there in the tree with the processes; a v1 hierarchy that lacks it
    /// counts in the container's own folder.
    fn place(&mut self, sub: &Path) {
        if let Some(tree) = &mut self.tree {
            *tree = tree.join(sub);
        }
        for folder in self.legacy.iter_mut().filter(|folder| folder.join(sub).is_dir()) {
            *folder = folder.join(sub);
        }
    }
}

/// setns(2) wants CAP_SYS_ADMIN also in the namespace that one comes from.
fn may_join() -> Result<bool, CallError> {
    caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN)
        .map_err(|e| CallError::new("capget", std::io::Error::other(e)))
}

fn first(pid: i32, own_pids: bool) -> Result<Vec<(OwnedFd, u64)>, CallError> {
    let all = [Some(("user", Namespace::User)), own_pids.then_some(("pid", Namespace::Pid))];
    let open = |(name, kind): (&str, Namespace)| {
        let path = format!("/proc/{pid}/ns/{name}");
        let file = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        file.map(|file| (file, kind.flag())).call(|| format!("open {path}"))
    };
    all.into_iter().flatten().map(open).collect()
}

/// Whoever is in a user namespace may join those that belong to it only (user_namespaces(7)): a network namespace that
/// somebody made before may belong to the host's.
fn foreign(pid: i32, namespaces: &[(&'static str, i32)]) -> Result<i32, CallError> {
    if !namespaces.iter().any(|(name, _)| *name == "user") {
        return Ok(0);
    }
    let users = inode(&format!("/proc/{pid}/ns/user"))?;
    let mut flags = 0;
    for (name, flag) in namespaces.iter().filter(|(name, _)| *name != "user") {
        let path = format!("/proc/{pid}/ns/{name}");
        let file = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| format!("open {path}"))?;
        let owner = namespace_owner(&file)?;
        let owner = fstat(&owner).call(|| format!("stat the owner of {path}"))?;
        if (owner.st_dev, owner.st_ino) != users {
            flags |= flag;
        }
    }
    Ok(flags)
}

fn inode(path: &str) -> Result<(u64, u64), CallError> {
    stat(path).map(|s| (s.st_dev, s.st_ino)).call(|| format!("stat {path}"))
}

fn differs(pid: i32, name: &str) -> Result<bool, CallError> {
    // The kernel may have no such namespaces.
    if Path::new("/proc/self/ns").join(name).symlink_metadata().is_err() {
        return Ok(false);
    }
    Ok(inode(&format!("/proc/{pid}/ns/{name}"))? != inode(&format!("/proc/self/ns/{name}"))?)
}

/// What joins.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) process: &'a Process,
    pub(crate) filter: Option<&'a seccomp::Filter>,
    pub(crate) facts: &'a HostFacts,
    /// Where the master of its terminal goes.
    pub(crate) console: Option<OwnedFd>,
    /// Below the container's own cgroup.
    pub(crate) cgroup: PathBuf,
}

/// Run a program of the container in it.
///
/// # Errors
/// The step that failed; nothing is left of the process then.
pub(crate) fn join(
    record: &Record,
    mut container: Container,
    guest: Guest<'_>,
) -> Result<Launched, Error> {
    let Guest { process, filter, facts, console, cgroup } = guest;
    let process = &own_score(process, &container)?;
    let instructions = filter.map(seccomp::Filter::len);
    let own_root = !container.has_own("mnt");
    container.place(&cgroup);
    let mut steps = plan::join(&record.id, process, container.names(), own_root, instructions);
    let given = given(&container, &mut steps);
    container.enter(&mut steps);
    let Written { proc, listener } = written(record, &steps, filter, &container)?;
    let tasks = open_tasks(&steps)?;
    let sources = Sources { console, proc, listener, tasks, ..container.sources(None)? };
    // Before it is born in the container's cgroup.
    if let Some(initial) = &process.attributes.exec_affinity.initial {
        run_on(initial)?;
    }
    let encoder = Encoder::new(&sources, facts, process, Path::new("/"), filter);
    start(
        &container,
        encoder.encode(&steps)?,
        &Order { steps: &steps, given: &given },
        facts,
        process,
    )
}

/// What of the host the process still writes to.
struct Written {
    proc: Option<OwnedFd>,
    listener: Option<Listener>,
}

fn written(
    record: &Record,
    steps: &[ChildStep],
    filter: Option<&seccomp::Filter>,
    container: &Container,
) -> Result<Written, Error> {
    let state = State::of(record, Status::Running, Some(container.pid));
    let listener = listener::connect(filter, state)?;
    let needed = listener.is_some() || steps.iter().any(needs_proc);
    Ok(Written { proc: needed.then(open_proc).transpose()?, listener })
}

/// Children inherit it.
fn run_on(processors: &IdList) -> Result<(), CallError> {
    let call = || format!("process.execCPUAffinity.initial: run on processors {}", processors.text);
    let mut set = CpuSet::new();
    for (word, bits) in processors.bits.iter().enumerate() {
        for bit in (0..64).filter(|bit| bits >> bit & 1 == 1) {
            set.set(word * 64 + bit).call(call)?;
        }
    }
    sched_setaffinity(Pid::from_raw(0), &set).call(call)
}

/// On the way into a user namespace the process may not write to its own files in `/proc`: it inherits ours.
fn own_score(process: &Process, container: &Container) -> Result<Process, CallError> {
    let mut process = process.clone();
    if !container.first.is_empty()
        && let Some(value) = process.oom_score_adj.take()
    {
        write_knob(Path::new("/proc/self/oom_score_adj"), &value.to_string())?;
    }
    Ok(process)
}

/// What the runtime does for a process in a user namespace.
fn given(container: &Container, steps: &mut Vec<ChildStep>) -> Vec<Attribute> {
    if container.has_own("user") { plan::attributes::of_the_runtime(steps) } else { Vec::new() }
}

/// What a process does, and what is done for it.
struct Order<'a> {
    steps: &'a [ChildStep],
    given: &'a [Attribute],
}

fn start(
    container: &Container,
    encoded: Encoded,
    order: &Order<'_>,
    facts: &HostFacts,
    process: &Process,
) -> Result<Launched, Error> {
    // Never taken apart, as in a launch.
    let script = ManuallyDrop::new(Script { ops: encoded.ops, die_before: fault::child() });
    fault::point();
    let mut launched = clone(container, &script, facts)?;
    fault::point();
    let entered = enter(container, launched.pid, facts)
        .and_then(|()| raise_limits(container, launched.pid, process))
        .and_then(|()| order.given.iter().try_for_each(|wanted| give(launched.pid, wanted)));
    // A process that is gone already has said why in its report.
    let _ = launched.go();
    let program = process.args.first().map_or("", String::as_str);
    let judged = entered.map_err(Error::from).and_then(|()| match launched.outcome()? {
        Outcome::Executed | Outcome::Created | Outcome::Ready => Ok(()),
        Outcome::Failed(report) | Outcome::Refused(report) => {
            Err(explain(&report, order.steps, &encoded.origins, program))
        }
        Outcome::Vanished => {
            Err(Error::Vanished { program: program.to_owned(), hint: String::new() })
        }
    });
    fault::point();
    match judged {
        Ok(()) => Ok(launched),
        Err(failure) => {
            crate::launch::end(&launched)?;
            Err(failure)
        }
    }
}

/// Born among the container's processes, in their cgroup.
fn clone(container: &Container, script: &Script, facts: &HostFacts) -> Result<Launched, CallError> {
    let own = open("/proc/self/ns/pid", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| "open /proc/self/ns/pid".to_owned())?;
    let by_us = container.own_pids && container.first.is_empty();
    if by_us {
        // For our children only (pid_namespaces(7)).
        setns(&container.handle, CloneFlags::CLONE_NEWPID)
            .call(|| format!("setns to the pid namespace of process {}", container.pid))?;
    }
    let born = born(container, script, facts);
    if by_us {
        setns(own, CloneFlags::CLONE_NEWPID)
            .call(|| "setns to our own pid namespace".to_owned())?;
    }
    born
}

fn born(container: &Container, script: &Script, facts: &HostFacts) -> Result<Launched, CallError> {
    let classic = facts.lacks("clone3");
    let into = container.tree.as_deref().filter(|_| !classic && !facts.lacks("clone_into_cgroup"));
    let joins: Vec<_> = container.first.iter().map(|(file, flag)| (file.as_fd(), *flag)).collect();
    let birth = |cgroup: Option<&OwnedFd>| {
        let cgroup = cgroup.map(AsFd::as_fd);
        spawn(script, Birth { namespaces: 0, cgroup, classic, joins: &joins })
    };
    let Some(tree) = into else { return birth(None) };
    match birth(Some(&open_cgroup(tree)?)) {
        // The container has moved its processes into folders below, and this one may hold none (cgroups(7)).
        Err(e) if e.is(Errno::EBUSY) => birth(Some(&open_cgroup(&own_folder(container, facts)?)?)),
        answer => answer,
    }
}

/// The folder of the cgroup2 tree in which the container's first process is (proc_pid_cgroup(5)).
fn own_folder(container: &Container, facts: &HostFacts) -> Result<PathBuf, CallError> {
    let path = format!("/proc/{}/cgroup", container.pid);
    let text = read_text(Path::new(&path))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let tree = facts.cgroup.tree.as_deref();
    let (own, tree) =
        own.zip(tree).ok_or_else(|| CallError::errno(format!("read {path}"), Errno::ENOENT))?;
    Ok(tree.join(own))
}

fn enter(container: &Container, pid: i32, facts: &HostFacts) -> Result<(), CallError> {
    let by_hand = facts.lacks("clone3") || facts.lacks("clone_into_cgroup");
    for cgroup in container.tree.iter().filter(|_| by_hand) {
        cgroup::perform(&HostStep::Enter { cgroup: cgroup.clone() }, Some(pid))?;
        fault::point();
    }
    Ok(())
}

/// The hooks once the user's program runs.
///
/// # Errors
/// The hook that failed.
pub(crate) fn run_poststart_hooks(record: &Record, pid: i32) -> Result<(), Error> {
    if record.hooks.poststart.is_empty() {
        return Ok(());
    }
    let state = State::of(record, Status::Running, Some(pid)).json()?;
    let occasion = Occasion { kind: "poststart", state: &state, bundle: &record.bundle };
    if hooks::end_the_container(&record.oci_version) {
        return hooks::run(&record.hooks.poststart, occasion);
    }
    hooks::run_all(&record.hooks.poststart, occasion);
    Ok(())
}

/// The hooks just before the user's program.
///
/// # Errors
/// The hook that failed.
pub(crate) fn run_start_hooks(
    record: &Record,
    container: &Container,
    guest: &Guest<'_>,
) -> Result<(), Error> {
    let state = State::of(record, Status::Created, Some(container.pid)).json()?;
    let occasion = Occasion { kind: "startContainer", state: &state, bundle: &record.bundle };
    hooks::run_each(&record.hooks.start_container, occasion, |hook, standard| {
        hook_inside(record, container, hook, standard, guest)
    })
}

/// In a user namespace nobody can raise a limit (getrlimit(2)).
fn raise_limits(container: &Container, pid: i32, process: &Process) -> Result<(), CallError> {
    let limits = process.rlimits.iter().filter(|_| container.has_own("user"));
    limits.cloned().try_for_each(|limit| privilege::perform(&HostStep::HardLimit(limit), pid))
}

/// A hook that runs in the container with the rights of its program.
///
/// # Errors
/// As [`join`].
fn hook_inside(
    record: &Record,
    container: &Container,
    hook: &Hook,
    standard: &Standard,
    guest: &Guest<'_>,
) -> Result<Started, Error> {
    let process = as_hook(guest.process, hook);
    let instructions = guest.filter.map(seccomp::Filter::len);
    let mut steps = plan::join(
        &record.id,
        &process,
        container.names(),
        !container.has_own("mnt"),
        instructions,
    );
    let given = given(container, &mut steps);
    container.enter(&mut steps);
    for step in &mut steps {
        // Not what it is called, but what it is.
        if let ChildStep::FindProgram { candidates } = step {
            *candidates = vec![hook.path.to_string_lossy().into_owned()];
        }
    }
    let Written { proc, listener } = written(record, &steps, guest.filter, container)?;
    let tasks = open_tasks(&steps)?;
    let sources =
        Sources { proc, listener, tasks, ..container.sources(Some(descriptors(standard)))? };
    let encoder = Encoder::new(&sources, guest.facts, &process, Path::new("/"), guest.filter);
    let launched = start(
        container,
        encoder.encode(&steps)?,
        &Order { steps: &steps, given: &given },
        guest.facts,
        &process,
    )?;
    Ok((launched.pid, launched.pidfd))
}

/// A hook that is a program of the host, in the container's namespaces, while the host's files are still in sight.
///
/// # Errors
/// As [`join`].
pub(crate) fn hook_visiting(
    container: &Container,
    hook: &Hook,
    standard: &Standard,
    guest: &Guest<'_>,
) -> Result<Started, Error> {
    let process = as_hook(guest.process, hook);
    let program = hook.path.to_string_lossy();
    let mut steps =
        plan::visit(&program, container.names(), container.has_own("user"), process.keep_groups);
    container.enter(&mut steps);
    let tasks = open_tasks(&steps)?;
    let sources = Sources { tasks, ..container.sources(Some(descriptors(standard)))? };
    let encoder = Encoder::new(&sources, guest.facts, &process, Path::new("/"), None);
    let launched = start(
        container,
        encoder.encode(&steps)?,
        &Order { steps: &steps, given: &[] },
        guest.facts,
        &process,
    )?;
    Ok((launched.pid, launched.pidfd))
}

fn descriptors(standard: &Standard) -> [i32; 3] {
    let output = standard.output.as_raw_fd();
    [standard.input.as_raw_fd(), output, output]
}

/// What the bundle gives its hook, with the rest as its program has it.
fn as_hook(process: &Process, hook: &Hook) -> Process {
    Process {
        args: hook.args.clone(),
        env: hook.env.clone().unwrap_or_default(),
        terminal: None,
        preserve_fds: 0,
        ..process.clone()
    }
}
