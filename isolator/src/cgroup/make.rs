use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::devices::DevicesController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Controller, error};
use hafen_sys::{CallError, Context, xattr};
use nix::errno::Errno;
use nix::fcntl::{self, Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;

use super::folder::Folder;
use super::processes::{self, names_of};
use crate::systemd::Placeholder;

/// Another container's release may remove an empty folder above ours at any moment; then all is begun again. One that
/// does so this often in a row is no coincidence.
const ATTEMPTS: u32 = 64;

/// Make a folder in the cgroup2 tree with all that is missing above it.
pub(super) fn cgroup(
    tree: &Path,
    path: &Path,
    wanted: &Wanted<'_>,
    premade: bool,
) -> Result<Hold, CallError> {
    let call = || format!("make cgroup {}", path.display());
    let (Ok(way), Some(name)) = (path.strip_prefix(tree), path.file_name().map(Path::new)) else {
        return Err(CallError::errno(call(), Errno::EINVAL));
    };
    let above = way.parent().unwrap_or(Path::new(""));
    for _ in 0..ATTEMPTS {
        let made = match attempt(tree, above, name, wanted) {
            Err(e) if e.is(Errno::EEXIST) && premade => Ok(()),
            answer => answer,
        };
        match made.and_then(|()| Hold::take(path)).and_then(|hold| take_over(path).map(|()| hold)) {
            Err(e) if is_gone(&e) && tree.exists() => {}
            answer => return answer,
        }
    }
    let why = format!("{} (a folder above it kept vanishing)", call());
    Err(CallError::errno(why, Errno::ENOENT))
}

/// A folder that nobody else takes while this lives: until the first process is in it, and everybody can see that.
///
/// Two launches that ask for the same folder at the same moment would both find it empty. The lock (flock(2)) is the
/// kernel's to let go when the runtime dies.
#[derive(Debug)]
pub struct Hold {
    lock: Flock<OwnedFd>,
    _placeholder: Option<Placeholder>,
}

impl Hold {
    pub(super) fn of_scope(path: &Path, placeholder: Placeholder) -> Result<Self, CallError> {
        Ok(Self { _placeholder: Some(placeholder), ..Self::take(path)? })
    }

    fn take(path: &Path) -> Result<Self, CallError> {
        let call = || format!("make cgroup {}", path.display());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let folder = fcntl::open(path, flags, Mode::empty()).call(call)?;
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { lock, _placeholder: None }),
            Err((_, Errno::EWOULDBLOCK)) => {
                let why = format!("{} (another launch is taking it)", call());
                Err(CallError::errno(why, Errno::EEXIST))
            }
            Err((_, e)) => Err(e).call(|| format!("flock {}", path.display())),
        }
    }

    /// Is no process in the folder itself? A new one has no folders below it.
    fn is_alone(&self) -> bool {
        Folder::pids(self.lock.as_fd()).is_ok_and(|pids| pids.is_empty())
    }
}

/// Says of a folder above a container's that the runtime made it (xattr(7)): whoever is last below it takes it away,
/// also if another container made it. A kernel that takes no mark leaves it to that other one.
const MARK: &str = "hafen.made";

pub(super) fn is_marked(path: &Path) -> bool {
    xattr::is_set(path, MARK)
}

/// ENODEV is the answer of a file whose folder was removed while it was open.
fn is_gone(e: &CallError) -> bool {
    e.is(Errno::ENOENT) || e.is(Errno::ENODEV)
}

fn attempt(tree: &Path, above: &Path, name: &Path, wanted: &Wanted<'_>) -> Result<(), CallError> {
    let parent = match ready(&tree.join(above), wanted) {
        Some(parent) => parent,
        None => prepare(tree, above, wanted)?,
    };
    parent.make(name).call(|| format!("make cgroup {}", parent.path.join(name).display()))
}

/// The usual case after the first container: everything above is there, with all its controllers. What a folder
/// enables for those below it, the folders above it enable too.
fn ready(parent: &Path, wanted: &Wanted<'_>) -> Option<Folder> {
    let parent = Folder::open(parent).ok()?;
    let enabled = parent.read("cgroup.subtree_control").ok()?;
    wanted.missing_from(&enabled).is_empty().then_some(parent)
}

/// From the root down: enable, make, step in.
fn prepare(tree: &Path, above: &Path, wanted: &Wanted<'_>) -> Result<Folder, CallError> {
    let mut here = Folder::open(tree).call(|| format!("open {}", tree.display()))?;
    for name in above {
        wanted.enable(&here)?;
        let name = Path::new(name);
        match here.make(name) {
            Ok(()) => xattr::set(&here.path.join(name), MARK),
            Err(Errno::EEXIST) => {}
            Err(e) => {
                return Err(e).call(|| format!("make cgroup {}", here.path.join(name).display()));
            }
        }
        here = here.enter(name).call(|| format!("open {}", here.path.join(name).display()))?;
    }
    wanted.enable(&here)?;
    Ok(here)
}

/// Have controllers in a folder that is there already.
pub(super) fn enable_above(tree: &Path, path: &Path, wanted: &Wanted<'_>) -> Result<(), CallError> {
    let call = || format!("enable controllers of cgroup {}", path.display());
    let way = path.strip_prefix(tree).ok().and_then(Path::parent);
    let above = way.ok_or_else(|| CallError::errno(call(), Errno::EINVAL))?;
    match ready(&tree.join(above), wanted) {
        Some(_) => Ok(()),
        None => prepare(tree, above, wanted).map(|_| ()),
    }
}

/// Controllers that the folder is to have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) controllers: &'a [String],
    /// Not an error if they cannot be had.
    pub(super) accounting: &'a [String],
}

impl Wanted<'_> {
    fn missing_from(&self, enabled: &str) -> Vec<&str> {
        let enabled: BTreeSet<&str> = enabled.split_whitespace().collect();
        let all = self.controllers.iter().chain(self.accounting);
        all.map(String::as_str).filter(|c| !enabled.contains(c)).collect()
    }

    /// Have the controllers in the folders below this one. All at once, and one by one only if that fails: then those
    /// that merely count may be left out.
    fn enable(&self, folder: &Folder) -> Result<(), CallError> {
        let enabled =
            folder.read(CONTROL).call(|| format!("read {}/{CONTROL}", folder.path.display()))?;
        let missing = self.missing_from(&enabled);
        if missing.is_empty() {
            return Ok(());
        }
        if holds_processes(folder) {
            return self.refuse(folder, &missing);
        }
        if folder.write(CONTROL, &add(&missing)).is_ok() {
            return Ok(());
        }
        for controller in missing {
            match folder.write(CONTROL, &add(&[controller])) {
                Err(e) if self.needs(controller) => return Err(explain(e, folder, controller)),
                _ => {}
            }
        }
        Ok(())
    }

    fn needs(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    /// The kernel would refuse some controllers (memory), and for the others (cpu, pids) make this a threaded cgroup,
    /// below which no container can live.
    fn refuse(&self, folder: &Folder, missing: &[&str]) -> Result<(), CallError> {
        match missing.iter().find(|c| self.needs(c)) {
            None => Ok(()),
            Some(controller) => {
                let call = format!(
                    "write {:?} to {}",
                    add(&[controller]),
                    folder.path.join(CONTROL).display()
                );
                Err(explain(CallError::errno(call, Errno::EBUSY), folder, controller))
            }
        }
    }
}

const CONTROL: &str = "cgroup.subtree_control";

/// The "no internal process" rule (cgroups(7)) does not hold for the root of all cgroups, which has no type. Processes
/// of other pid namespaces count, which are listed as 0.
fn holds_processes(folder: &Folder) -> bool {
    let is_root = || folder.read("cgroup.type") == Err(Errno::ENOENT);
    folder.read("cgroup.procs").map_or(true, |pids| !pids.is_empty()) && !is_root()
}

fn add(controllers: &[&str]) -> String {
    let signed: Vec<String> = controllers.iter().map(|c| format!("+{c}")).collect();
    signed.join(" ")
}

/// Who holds it up: the kernel's answer alone tells nobody what to do.
fn explain(e: CallError, folder: &Folder, controller: &str) -> CallError {
    let path = folder.path.display();
    let why = match Errno::from_raw(e.raw()) {
        Errno::EBUSY => {
            let pids = processes::names_of(&processes::own(folder).unwrap_or_default());
            format!(
                "{pids} in {path} itself, and a cgroup that holds processes cannot pass controllers on to those below it"
            )
        }
        Errno::ENOENT if folder.path.exists() => {
            format!("{path} has no {controller} controller, see its cgroup.controllers")
        }
        Errno::EOPNOTSUPP => format!("{path} is a threaded cgroup"),
        _ => return e,
    };
    CallError::new(format!("{} ({why})", e.call), e.source)
}

/// A client may have made the folder for us. One with processes is in use by somebody else.
pub(super) fn take_over(path: &Path) -> Result<(), CallError> {
    let call = || format!("make cgroup {}", path.display());
    let folder = Folder::open(path).call(call)?;
    let events =
        folder.read("cgroup.events").call(|| format!("read {}/cgroup.events", path.display()))?;
    if events.lines().any(|l| l == "frozen 1") {
        // Whatever is born in it would never run its first instruction.
        return Err(CallError::errno(
            format!("{} (it is there already, and frozen)", call()),
            Errno::EEXIST,
        ));
    }
    if events.lines().any(|l| l == "populated 0") { Ok(()) } else { Err(in_use(path)) }
}

fn in_use(path: &Path) -> CallError {
    let pids = processes::processes(path).unwrap_or_default();
    let call = format!("make cgroup {} (in use by {})", path.display(), names_of(&pids));
    CallError::errno(call, Errno::EEXIST)
}

/// The same in a v1 hierarchy.
pub(super) fn take_over_legacy(path: &Path) -> Result<(), CallError> {
    match processes::processes(path) {
        Ok(pids) if !pids.is_empty() => Err(in_use(path)),
        Err(e) if !is_gone(&e) => Err(e),
        _ => Ok(()),
    }
}

/// Make a folder in a v1 hierarchy with all that is missing above it. A new cpuset is useless until it has CPUs and
/// memory nodes: cgroups-rs copies them from above, also into new folders on the way.
pub(super) fn legacy(controllers: &str, path: &Path) -> Result<Hold, CallError> {
    let controller = controller(controllers, path);
    let call = || format!("make v1 cgroup {}", path.display());
    let mut result = Err(CallError::errno(call(), Errno::ENOENT));
    for _ in 0..ATTEMPTS {
        let is_new = !needs_values(controllers) && fs::create_dir(path).is_ok();
        let made = if is_new || controller.exists() {
            Ok(())
        } else {
            make_all(controller.as_ref(), path).map_err(|e| CallError::new(call(), cause(e)))
        };
        let held = made.and_then(|()| Hold::take(path));
        result = held.and_then(|hold| match is_new && hold.is_alone() {
            true => Ok(hold),
            false => take_over_legacy(path).map(|()| hold),
        });
        match &result {
            Err(e) if is_gone(e) => {}
            _ => break,
        }
    }
    result
}

fn make_all(controller: &dyn Controller, path: &Path) -> error::Result<()> {
    let missing: Vec<&Path> =
        path.ancestors().skip(1).take_while(|folder| !folder.exists()).collect();
    controller.create()?;
    missing.into_iter().for_each(|folder| xattr::set(folder, MARK));
    Ok(())
}

fn needs_values(controllers: &str) -> bool {
    has(controllers, "cpuset")
}

fn has(controllers: &str, name: &str) -> bool {
    controllers.split(',').any(|c| c == name)
}

/// Move a process; the kernel takes one pid per write.
pub(super) fn enter(path: &Path, pid: i32) -> Result<(), CallError> {
    let call = || format!("write \"{pid}\" to {}/cgroup.procs", path.display());
    let Ok(number) = u64::try_from(pid) else {
        return Err(CallError::errno(call(), Errno::ESRCH));
    };
    let entered = controller("", path).add_task_by_tgid(&number.into());
    entered.map_err(|e| CallError::new(call(), cause(e)))
}

/// The view of cgroups-rs on a folder. Co-mounted controllers share one; of them only cpuset asks for more than
/// a folder.
fn controller(controllers: &str, path: &Path) -> Box<dyn Controller> {
    let has = |name: &str| has(controllers, name);
    let (path, root) = (path.to_owned(), Path::new("/").to_owned());
    if needs_values(controllers) {
        Box::new(CpuSetController::new(path, root, false))
    } else if has("cpu") {
        Box::new(CpuController::new(path, root, false))
    } else if has("memory") {
        Box::new(MemController::new(path, root, false))
    } else if has("devices") {
        Box::new(DevicesController::new(path, root))
    } else if has("blkio") {
        Box::new(BlkIoController::new(path, root, false))
    } else {
        Box::new(PidController::new(path, root, false))
    }
}

/// cgroups-rs names the file but not its folder, and keeps the kernel's answer inside: only that is taken.
fn cause(e: error::Error) -> io::Error {
    let answer =
        e.source().and_then(|s| s.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    answer.map_or_else(|| io::Error::other(e), io::Error::from_raw_os_error)
}
