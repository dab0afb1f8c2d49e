use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hafen_spec::facts::{CgroupLayout, Home};
use hafen_spec::plan::{Claim, Knob, Property};
use hafen_spec::resolve::Held;
use hafen_spec::resolved::{Amount, DeviceRule, Limits};
use hafen_spec::{HostFacts, Problems};
use hafen_sys::CallError;
use hafen_sys::file::{read_text, write_knob};
use nix::errno::Errno;

use super::knobs::{Setting, knobs};
use super::make::{self, Wanted};
use super::processes::{place_of, processes};
use super::release::remove_parents;
use super::share::{Place, knob, legacy_groups, limited, own_base};
use super::usage::{NO_LIMIT, count};
use crate::device::{self, Confinement, Exchange};
use crate::systemd;

/// Other limits for a container that exists: what is to be done, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Folders that it gets with this: to be saved with its other claims before [`apply`], and to be dropped from them
    /// again where that fails and nothing is left of them.
    pub claims: Vec<Claim>,
    /// The folder of the cgroup2 tree.
    folder: PathBuf,
    /// Controllers to be switched on above it.
    tree: PathBuf,
    controllers: Vec<String>,
    knobs: Vec<Knob>,
    /// What systemd must know of it.
    unit: Option<(String, Vec<Property>)>,
    /// For the program. Empty: it allows every device.
    rules: Option<Vec<DeviceRule>>,
}

/// An update that failed half-way and was undone.
#[derive(Debug)]
pub struct Failure {
    pub first: CallError,
    /// What could not be undone, in words; it holds from now on.
    pub left: Vec<String>,
    /// Folders of [`Change::claims`] that are still there and ours.
    pub kept: Vec<PathBuf>,
}

/// The limits that a container has, as far as an update may need them to complete what it says.
#[must_use]
pub fn held(claims: &[Claim]) -> Held {
    let mut held = Held::default();
    for claim in claims {
        match claim {
            Claim::Cgroup { path, .. } => held_unified(path, &mut held),
            Claim::LegacyCgroup { path, .. } => held_legacy(path, &mut held),
            Claim::Scratch { .. } | Claim::Resctrl { .. } | Claim::Use { .. } => {}
        }
    }
    held
}

fn held_unified(path: &Path, held: &mut Held) {
    if let Ok(text) = read_text(&path.join("cpu.max")) {
        let mut words = text.split_whitespace();
        held.quota = words.next().map(|q| q.parse().map_or(Amount::Max, Amount::Of));
        held.period = words.next().and_then(|p| p.parse().ok());
    }
    if let Ok(text) = read_text(&path.join("memory.max")) {
        held.memory = Some(text.trim().parse().map_or(Amount::Max, Amount::Of));
    }
}

fn held_legacy(path: &Path, held: &mut Held) {
    if let Some(period) = count(&path.join("cpu.cfs_period_us")) {
        held.period = Some(period);
        held.quota = Some(count(&path.join("cpu.cfs_quota_us")).map_or(Amount::Max, Amount::Of));
    }
    if let Some(limit) = count(&path.join("memory.limit_in_bytes")) {
        held.memory = Some(if limit < NO_LIMIT { Amount::Of(limit) } else { Amount::Max });
    }
}

/// What an update needs on this host. Looks, changes nothing.
///
/// # Errors
/// Each limit that cannot be enforced, with its field; a folder to be made that somebody else uses.
pub fn change(
    limits: &Limits,
    rules: Option<&[DeviceRule]>,
    claims: &[Claim],
    facts: &HostFacts,
) -> Result<Change, Problems> {
    let Some((tree, folder)) = own_tree(claims, &facts.cgroup) else {
        return Err(problem(
            "linux.resources",
            "the container has no folder in this host's cgroup2 tree",
        ));
    };
    let name =
        folder.strip_prefix(&tree).map(Path::to_string_lossy).unwrap_or_default().into_owned();
    let mut settings = knobs(&with_swap_lifted(limits, &facts.cgroup), &facts.cgroup)?;
    check_usage(limits, claims)?;
    let mut change = Change { folder, tree, ..Change::default() };
    if let Some(rules) = rules {
        let (files, rules) = other_rules(rules, claims, facts)?;
        settings.extend(files);
        change.rules = Some(rules);
    }
    change.unified(&settings);
    change.unit = unit(claims).map(|unit| (unit, systemd::properties(&settings)));
    for (hierarchy, controllers) in legacy_groups(&facts.cgroup, &settings, &[]) {
        let place = Place { hierarchy, name: &name, base: own_base(facts) };
        change.legacy(&place, &controllers, &settings, claims)?;
    }
    Ok(change)
}

fn unit(claims: &[Claim]) -> Option<String> {
    claims.iter().find_map(|claim| match claim {
        Claim::Cgroup { unit, .. } => unit.clone(),
        _ => None,
    })
}

fn problem(field: &str, why: impl Into<String>) -> Problems {
    let mut problems = Problems::default();
    problems.add(field, why.into());
    problems
}

fn own_tree(claims: &[Claim], layout: &CgroupLayout) -> Option<(PathBuf, PathBuf)> {
    let tree = layout.tree.clone()?;
    let folder = claims.iter().find_map(|claim| match claim {
        Claim::Cgroup { path, .. } if path.starts_with(&tree) => Some(path.clone()),
        _ => None,
    })?;
    Some((tree, folder))
}

/// v1 holds memory below memory with swap: without a bound on the one there is none on the other, as runc has it.
fn with_swap_lifted(limits: &Limits, layout: &CgroupLayout) -> Limits {
    let mut limits = limits.clone();
    if layout.home("memory") == Home::Legacy && limits.memory.limit == Some(Amount::Max) {
        limits.memory.swap = limits.memory.swap.or(Some(Amount::Max));
    }
    limits
}

/// The kernel would reclaim, and in the end kill, until the limit holds: `checkBeforeUpdate` rather has an error.
fn check_usage(limits: &Limits, claims: &[Claim]) -> Result<(), Problems> {
    let (true, Some(Amount::Of(limit))) = (limits.memory.check_before_update, limits.memory.limit)
    else {
        return Ok(());
    };
    let files = claims.iter().filter_map(|claim| match claim {
        Claim::Cgroup { path, .. } => Some(path.join("memory.current")),
        Claim::LegacyCgroup { path, .. } => Some(path.join("memory.usage_in_bytes")),
        Claim::Scratch { .. } | Claim::Resctrl { .. } | Claim::Use { .. } => None,
    });
    match files.filter_map(|file| count(&file)).find(|usage| *usage > limit) {
        Some(usage) => Err(problem(
            "linux.resources.memory.limit",
            format!("unable to set memory limit to {limit} (current usage: {usage})"),
        )),
        None => Ok(()),
    }
}

/// What is to be written to the v1 controller, and the rules for the program.
fn other_rules(
    rules: &[DeviceRule],
    claims: &[Claim],
    facts: &HostFacts,
) -> Result<(Vec<Setting>, Vec<DeviceRule>), Problems> {
    let field = "linux.resources.devices";
    if facts.rootless {
        return Err(problem(field, "cannot be changed: only root of the machine confines devices"));
    }
    let confinement = device::confinement(rules, facts).map_err(|why| problem(field, why))?;
    if let Some(list) = devices_list(claims, &facts.cgroup) {
        let files = device::transition(&list, rules).map_err(|why| problem(field, why))?;
        return Ok((files, Vec::new()));
    }
    Ok(match confinement {
        Confinement::None => (Vec::new(), Vec::new()),
        Confinement::Program(rules) => (Vec::new(), rules),
        Confinement::Legacy(files) => (files, Vec::new()),
    })
}

/// Of the container's folder in the v1 hierarchy, where it has one.
fn devices_list(claims: &[Claim], layout: &CgroupLayout) -> Option<String> {
    let hierarchy = layout.legacy.get("devices")?;
    let folder = claims.iter().find_map(|claim| match claim {
        Claim::LegacyCgroup { path, .. } if path.starts_with(hierarchy) => Some(path),
        _ => None,
    })?;
    read_text(&folder.join("devices.list")).ok()
}

impl Change {
    fn unified(&mut self, settings: &[Setting]) {
        self.controllers = limited(settings, Home::Unified);
        let own = settings.iter().filter(|s| s.home == Home::Unified);
        self.knobs.extend(own.map(|s| knob(&self.folder, s)));
    }

    fn legacy(
        &mut self,
        place: &Place<'_>,
        controllers: &[&str],
        settings: &[Setting],
        claims: &[Claim],
    ) -> Result<(), Problems> {
        let path = place.path();
        let here =
            |s: &&Setting| s.home == Home::Legacy && controllers.contains(&s.controller.as_str());
        self.knobs.extend(settings.iter().filter(here).map(|s| knob(&path, s)));
        if claims.iter().any(|claim| claim.path() == path) {
            return Ok(());
        }
        make::take_over_legacy(&path)
            .map_err(|e| problem("linux.resources", format!("{}: {}", e.call, e.source)))?;
        let missing = place.above().into_iter().filter(|f| !f.exists()).collect();
        let parents = place.parents(&missing);
        self.claims.push(Claim::LegacyCgroup { controller: controllers.join(","), path, parents });
        Ok(())
    }
}

/// Do what [`change`] says. Whatever fails, what was done before it is undone.
///
/// # Errors
/// The first failure.
pub fn apply(change: &Change) -> Result<(), Failure> {
    let mut done = Done::default();
    match change.carry_out(&mut done) {
        Ok(()) => Ok(()),
        Err(first) => {
            let (left, kept) = done.undo();
            Err(Failure { first, left, kept })
        }
    }
}

/// What an update has done so far.
#[derive(Debug, Default)]
struct Done {
    /// Folders with those above them that go with them.
    made: Vec<(PathBuf, Vec<PathBuf>)>,
    /// Nobody else takes those folders until the processes are in them.
    holds: Vec<make::Hold>,
    written: Vec<Former>,
    exchange: Option<Exchange>,
    /// Process, where it is now, and where it was.
    moved: Vec<(i32, PathBuf, PathBuf)>,
}

/// A file, what was written to it, and what must be written where to have it as before.
#[derive(Debug)]
struct Former {
    file: PathBuf,
    value: String,
    former: Option<Vec<(PathBuf, String)>>,
}

impl Change {
    fn carry_out(&self, done: &mut Done) -> Result<(), CallError> {
        // Controllers that are on for nothing do no harm: they are not switched off again. systemd has them all on for
        // what it delegates.
        let wanted = Wanted { controllers: &self.controllers, accounting: &[] };
        if self.unit.is_none() {
            make::enable_above(&self.tree, &self.folder, &wanted)?;
        }
        for claim in &self.claims {
            if let Claim::LegacyCgroup { controller, path, parents } = claim {
                let made = make::legacy(controller, path);
                // Somebody else's is neither removed nor claimed.
                if !made.as_ref().is_err_and(|e| e.is(Errno::EEXIST)) {
                    done.made.push((path.clone(), parents.clone()));
                }
                done.holds.push(made?);
            }
        }
        self.write(done)?;
        if let Some(rules) = &self.rules {
            done.exchange = Some(device::reconfine(&self.folder, rules)?);
        }
        for claim in &self.claims {
            if let Claim::LegacyCgroup { controller, path, .. } = claim {
                self.gather(controller, path, done)?;
            }
        }
        match &self.unit {
            Some((unit, properties)) if !properties.is_empty() => {
                systemd::set_properties(unit, properties)
            }
            _ => Ok(()),
        }
    }

    /// Which order the kernel takes depends on what the files hold: memory stays below memory with swap, burst below
    /// quota, a period fits a quota. So what is refused is tried again as long as anything else succeeds.
    fn write(&self, done: &mut Done) -> Result<(), CallError> {
        let mut pending: Vec<&Knob> = self.knobs.iter().collect();
        while !pending.is_empty() {
            let (mut refused, mut first) = (Vec::new(), None);
            let before = pending.len();
            for knob in pending {
                let knob = actual(knob);
                let former = former(&knob.file, &knob.value);
                match super::write(knob) {
                    Ok(()) => done.written.push(Former {
                        file: knob.file.clone(),
                        value: knob.value.clone(),
                        former,
                    }),
                    Err(e) => {
                        first = first.or(Some(e));
                        refused.push(knob);
                    }
                }
            }
            if let Some(e) = first.filter(|_| refused.len() == before) {
                return Err(e);
            }
            pending = refused;
        }
        Ok(())
    }

    /// Have every process of the container in a folder that it did not have when they were born. Children of those that
    /// are there already are born there.
    fn gather(&self, controllers: &str, path: &Path, done: &mut Done) -> Result<(), CallError> {
        const ROUNDS: u32 = 64;
        let controller = controllers.split(',').next().unwrap_or_default();
        let name = self.folder.strip_prefix(&self.tree).unwrap_or(Path::new(""));
        let hierarchy = path.ancestors().nth(name.components().count()).unwrap_or(path);
        for _ in 0..ROUNDS {
            let inside = processes(path)?;
            let all = processes(&self.folder)?;
            let outside: Vec<i32> = all.into_iter().filter(|pid| !inside.contains(pid)).collect();
            if outside.is_empty() {
                return Ok(());
            }
            for pid in outside {
                let from = place_of(pid, controller, hierarchy)?;
                match make::enter(path, pid) {
                    Ok(()) => done.moved.extend(from.map(|from| (pid, path.to_owned(), from))),
                    Err(e) if e.is(Errno::ESRCH) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        let call = format!(
            "move all processes to {} (they fork too fast: pause the container first)",
            path.display()
        );
        Err(CallError::errno(call, Errno::EAGAIN))
    }
}

impl Done {
    /// Backwards. Gives what remains, in words, and the folders.
    fn undo(self) -> (Vec<String>, Vec<PathBuf>) {
        let (mut left, mut kept) = (Vec::new(), Vec::new());
        for (pid, to, from) in self.moved.into_iter().rev() {
            match make::enter(&from, pid) {
                Err(e) if !e.is(Errno::ESRCH) => {
                    left.push(format!("process {pid} is in {}", to.display()));
                }
                _ => {}
            }
        }
        if self.exchange.is_some_and(|e| e.undo().is_err()) {
            left.push("the device rules are the new ones".to_owned());
        }
        left.extend(undo_written(self.written));
        for (path, parents) in self.made.iter().rev() {
            match fs::remove_dir(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    left.push(format!("{} is there", path.display()));
                    kept.push(path.clone());
                }
                // Of no consequence where they stay: they are empty.
                _ => drop(remove_parents(path, parents)),
            }
        }
        (left, kept)
    }
}

/// In any order that the kernel takes, beginning with the last.
fn undo_written(written: Vec<Former>) -> Vec<String> {
    let back = |w: &Former| {
        let former = w.former.as_deref();
        former.is_some_and(|f| f.iter().all(|(file, value)| write_knob(file, value).is_ok()))
    };
    let mut pending: Vec<Former> = written.into_iter().rev().collect();
    loop {
        let before = pending.len();
        pending.retain(|w| !back(w));
        if pending.is_empty() || pending.len() == before {
            break;
        }
    }
    pending.iter().map(|w| format!("{} has {:?}", w.file.display(), w.value)).collect()
}

/// The one of two files that the kernel has.
fn actual(knob: &Knob) -> &Knob {
    knob.instead
        .as_deref()
        .filter(|other| !knob.file.exists() && other.file.exists())
        .unwrap_or(knob)
}

/// What to write so that a file says again what it says now. A file with a line for each device keeps the others.
fn former(file: &Path, value: &str) -> Option<Vec<(PathBuf, String)>> {
    let name = file.file_name()?.to_str()?;
    if name.starts_with("devices.") {
        let list = read_text(&file.with_file_name("devices.list")).ok()?;
        let back = device::way_back(name, value, &list)?;
        return Some(back.into_iter().map(|s| (file.with_file_name(s.file), s.value)).collect());
    }
    Some(vec![(file.to_owned(), former_text(file, name, value)?)])
}

fn former_text(file: &Path, name: &str, value: &str) -> Option<String> {
    let text = read_text(file).ok()?;
    let key = value.split_once(' ').map(|(key, _)| key).filter(|_| name != "cpu.max");
    let line = |key: &str| {
        text.lines().find(|l| l.split_once(' ').is_some_and(|(k, _)| k == key)).map(str::to_owned)
    };
    match key {
        Some(key) => line(key).or_else(|| Some(format!("{key} {}", nothing_said(name)))),
        // The first line of several: "oom_kill_disable 0".
        None if name == "memory.oom_control" => {
            line("oom_kill_disable")?.split_once(' ').map(|(_, v)| v.to_owned())
        }
        None if text.starts_with("default ") => line("default"),
        // Written as nothing at all it would not arrive.
        None if text.trim().is_empty() => Some("\n".to_owned()),
        None => Some(text.trim().to_owned()),
    }
}

/// How a file with a line for each device takes one back.
fn nothing_said(name: &str) -> &'static str {
    match name {
        "io.max" => "rbps=max wbps=max riops=max wiops=max",
        "io.weight" | "io.bfq.weight" => "default",
        "rdma.max" => "hca_handle=max hca_object=max",
        _ => "0",
    }
}

#[cfg(test)]
mod tests;
