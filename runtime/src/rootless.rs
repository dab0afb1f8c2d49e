//! Without root of the machine: the runtime goes into the container's user namespace itself and is root there.
//!
//! ```text
//!   runtime (uid 1000)                          holder
//!   ----------------------------------------    ---------------------------
//!   clone3 with CLONE_NEWUSER --------------->  waits
//!   newuidmap, newgidmap, or one line each
//!   setns(holder), unshare(CLONE_NEWNS)
//!   ------------- end of file -------------->   exits
//!   goes on with every right in the namespace
//! ```
//!
//! Only a process that stayed outside may map more than one id (user_namespaces(7)), hence the holder.

use std::io::{Error as IoError, ErrorKind};
use std::process::{Command, Stdio};

use hafen_spec::resolved::{IdMap, IdMaps, Namespace, Resolved};
use hafen_spec::{HostFacts, Problems};
use hafen_sys::child::{Op, Script};
use hafen_sys::file::write_knob;
use hafen_sys::spawn::{Birth, Launched, launch as spawn};
use hafen_sys::{CallError, Context, pidfd};
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid};

use crate::prepare::Request;
use crate::privilege::{file, text};

const NO_NAMESPACE: &str = "an ordinary user needs a user namespace here, with linux.uidMappings and linux.gidMappings, as \"spec --rootless\" writes them";
const NO_KILL: &str = "without a cgroup, which this user may not make, a new pid namespace is needed: nothing else holds all processes of the container";

/// What a launch without root needs of a bundle; what is left out is told.
pub(crate) fn check(
    resolved: &mut Resolved,
    facts: &HostFacts,
    request: &Request,
) -> Result<(), Problems> {
    let mut problems = Problems::default();
    if request.real && resolved.born_inside() && !resolved.in_user_namespace() {
        problems.add("linux.namespaces", NO_NAMESPACE);
    }
    if facts.cgroup.is_denied() && request.needs_cgroup {
        problems
            .add("--rootless=false", "this user may make no cgroups, and is not to run without");
    }
    if facts.cgroup.is_denied() && !resolved.namespaces.is_new(Namespace::Pid) {
        problems.add("linux.namespaces", NO_KILL);
    }
    if !resolved.device_rules.is_empty() {
        resolved.warnings.push(
            "linux.resources.devices: left to the rights of the user: only root of the machine loads device programs"
                .to_owned(),
        );
    }
    problems.into_result(())
}

/// Go into the user namespace, and a mount namespace that belongs to it.
///
/// # Errors
/// Names the call, the program, or the range of ids that is not there.
pub(crate) fn enter(resolved: &Resolved) -> Result<(), CallError> {
    let joined = resolved.namespaces.joined.iter().find(|(n, _)| *n == Namespace::User);
    match (joined, &resolved.user) {
        (Some((_, path)), _) => {
            let file = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
            let file = file.call(|| format!("open user namespace {}", path.display()))?;
            setns(file, CloneFlags::CLONE_NEWUSER)
                .call(|| format!("join user namespace {}", path.display()))?;
        }
        (None, Some(maps)) => enter_new(maps)?,
        (None, None) => {}
    }
    unshare(CloneFlags::CLONE_NEWNS).call(|| "unshare the mount namespace".to_owned())
}

fn enter_new(maps: &IdMaps) -> Result<(), CallError> {
    let holder = hold()?;
    let entered = map(holder.pid, maps).and_then(|()| {
        setns(&holder.pidfd, CloneFlags::CLONE_NEWUSER)
            .call(|| "setns to the new user namespace".to_owned())
    });
    let pid = holder.pid;
    drop(holder);
    pidfd::wait(pid, true)?;
    entered
}

/// A process in a new user namespace, until it is dropped.
fn hold() -> Result<Launched, CallError> {
    let script = Script { ops: vec![Op::AwaitGo], die_before: None };
    let birth =
        Birth { namespaces: Namespace::User.flag(), cgroup: None, classic: false, joins: &[] };
    spawn(&script, birth).map_err(|e| {
        let hint = "make a user namespace (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)";
        CallError::new(format!("{hint}: {}", e.call), e.source)
    })
}

fn map(pid: i32, maps: &IdMaps) -> Result<(), CallError> {
    if is_own(&maps.uids, geteuid().as_raw()) {
        write_knob(&file(pid, "uid_map"), &text(&maps.uids))?;
    } else {
        run("newuidmap", "/etc/subuid", pid, &maps.uids)?;
    }
    if is_own(&maps.gids, getegid().as_raw()) {
        // Nobody may shed a group by which a file is closed to its members.
        write_knob(&file(pid, "setgroups"), "deny")?;
        return write_knob(&file(pid, "gid_map"), &text(&maps.gids));
    }
    run("newgidmap", "/etc/subgid", pid, &maps.gids)
}

/// One's own id needs nobody's permission.
fn is_own(map: &[IdMap], id: u32) -> bool {
    matches!(map, [line] if line.outside == id && line.size == 1)
}

/// The set-user-ID programs that know which ids belong to whom (newuidmap(1)).
fn run(program: &str, ranges: &str, pid: i32, map: &[IdMap]) -> Result<(), CallError> {
    let words = map.iter().flat_map(|l| [l.inside, l.outside, l.size].map(|n| n.to_string()));
    let mut command = Command::new(program);
    command.arg(pid.to_string()).args(words).stdin(Stdio::null());
    let lines = text(map);
    let call = || format!("{program} with {:?}", lines.trim());
    let output = match command.output() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let words = "the program is not installed (package uidmap), and only it may map more than one's own id";
            return Err(CallError::new(call(), IoError::other(words)));
        }
        answer => answer.call(call)?,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let words = format!("{said} (is there a range for this user in {ranges}?)");
    Err(CallError::new(call(), IoError::other(words)))
}
