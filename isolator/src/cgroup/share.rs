use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use hafen_spec::facts::{CgroupLayout, Home};
use hafen_spec::plan::{Claim, HostStep, Knob};
use hafen_spec::resolved::Scope;
use hafen_spec::{HostFacts, Problem, Problems, Resolved};
use hafen_sys::CallError;

use super::knobs::{Setting, knobs};
use super::make;
use crate::device::{self, Confinement};
use crate::systemd;

/// The cgroups' part of a launch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// In the order of making, which is not that of need: the folder with the processes comes last, so that a release in
    /// reverse order kills first.
    pub claims: Vec<Claim>,
    /// Before the process exists.
    pub before: Vec<HostStep>,
    /// While it exists and waits.
    pub beside: Vec<HostStep>,
    /// The v1 folders that it goes into first of all.
    pub entered: Vec<PathBuf>,
    /// The folder that the process is to be born in (`CLONE_INTO_CGROUP`); without it [`Share::beside`] moves it there.
    pub born_in: Option<PathBuf>,
}

/// Enabled where the host has them, limits or not: they tell what a container took.
const ACCOUNTING: [&str; 3] = ["cpu", "memory", "pids"];

/// In v1 hierarchies the same, and what counts there beside them: clients read it in the folder that `/proc/PID/cgroup`
/// names, and would read the numbers of whoever started the container where it has none of its own. They are left out
/// where no folder can be made.
/// `cpu` counts nothing that `cpuacct` does not, and a folder of it takes realtime policies away (sched(7), RT groups).
const LEGACY_ACCOUNTING: [&str; 4] = ["blkio", "cpuacct", "memory", "pids"];

/// The top folder of all containers that did not ask for another place. Whoever is last takes it away.
const OWN_TOP: &str = "hafen";

/// Where it is, relative to a hierarchy.
pub(super) fn own_base(facts: &HostFacts) -> &Path {
    let granted = facts.cgroup.granted.as_ref();
    granted.and_then(|g| g.base.as_deref()).unwrap_or(Path::new(""))
}

/// Which of the container's folders, and of those above them, do not exist yet? Those above go away with it. Looks,
/// changes nothing.
#[must_use]
pub fn missing_parents(resolved: &Resolved, facts: &HostFacts) -> BTreeSet<PathBuf> {
    let mut missing = BTreeSet::new();
    for folder in folders(resolved, facts) {
        // From the top down: below a missing folder nothing needs to be looked up.
        let from_the_top = folder.above().into_iter().rev().chain([folder.path()]);
        missing.extend(from_the_top.skip_while(|f| f.exists()));
    }
    missing
}

/// Is one of the folders in use by somebody else? To be asked before the plan is saved: from then on its claims are
/// released with all that is in them. Looks, changes nothing.
///
/// # Errors
/// EEXIST, naming the folder and the processes in it.
pub fn check_free(
    resolved: &Resolved,
    facts: &HostFacts,
    missing: &BTreeSet<PathBuf>,
) -> Result<(), CallError> {
    for folder in folders(resolved, facts) {
        let path = folder.path();
        if missing.contains(&path) {
            continue;
        }
        if Some(folder.hierarchy) == facts.cgroup.tree.as_deref() {
            make::take_over(&path)?;
        } else {
            make::take_over_legacy(&path)?;
        }
    }
    Ok(())
}

/// What the limits of a container need, without looking at the machine.
///
/// # Errors
/// Each limit that this host cannot enforce, with its field; or the one sentence that there is no cgroup2 tree.
pub fn share(
    resolved: &Resolved,
    facts: &HostFacts,
    missing: &BTreeSet<PathBuf>,
) -> Result<Share, Problems> {
    let mut problems = Problems::default();
    let Some(tree) = &facts.cgroup.tree else {
        problems.add("linux.cgroupsPath", NO_TREE);
        return Err(problems);
    };
    if facts.cgroup.is_denied() {
        return knobs(&resolved.limits, &facts.cgroup).map(|_| Share::default()).map_err(denied);
    }
    let mut settings = knobs(&resolved.limits, &facts.cgroup)?;
    let outer = knobs(&resolved.outer, &facts.cgroup)?;
    let confinement = match device::confinement(&resolved.device_rules, facts) {
        Ok(confinement) => confinement,
        Err(why) => {
            problems.add("linux.resources.devices", why);
            return Err(problems);
        }
    };
    let rules = match confinement {
        Confinement::None => None,
        Confinement::Program(rules) => Some(rules),
        Confinement::Legacy(files) => {
            settings.extend(files);
            None
        }
    };

    let name = resolved.cgroup.as_str();
    let mut share = Share::default();
    let (base, scope) = (own_base(facts), resolved.scope.as_ref());
    let needed: Vec<Setting> = settings.iter().chain(&outer).cloned().collect();
    let limits = Limited { own: &settings, outer: &outer, needed: &needed };
    share.unified(&Place { hierarchy: tree, name, base }, facts, scope, &limits, rules, missing);
    for (hierarchy, controllers) in legacy_groups(&facts.cgroup, &needed, &LEGACY_ACCOUNTING) {
        share.legacy(&Place { hierarchy, name, base }, &controllers, &limits, missing);
    }
    share.claims.reverse();
    Ok(share)
}

/// No controller is missing, but the right to use it.
fn denied(problems: Problems) -> Problems {
    let denied = |mut problem: Problem| {
        DENIED.clone_into(&mut problem.reason);
        problem
    };
    Problems(problems.0.into_iter().map(denied).collect())
}

const DENIED: &str = "cannot be enforced: this user may make no cgroups, where the own one is not delegated (docs/rootless.md)";

const NO_TREE: &str = "this host has no cgroup2 file system mounted, which a container's processes live in: \
    mount one, for example with \"mount -t cgroup2 none /sys/fs/cgroup/unified\"";

/// What is to be written where.
struct Limited<'a> {
    own: &'a [Setting],
    /// To the folder above.
    outer: &'a [Setting],
    /// Both.
    needed: &'a [Setting],
}

impl Limited<'_> {
    /// Above first: of cpu.cfs_quota_us the kernel refuses one that is more than that above.
    fn knobs(&self, path: &Path, here: impl Fn(&&Setting) -> bool + Copy) -> Vec<HostStep> {
        let above = path.parent().unwrap_or(path);
        let outer = self.outer.iter().filter(here).map(|s| knob(above, s));
        let own = self.own.iter().filter(here).map(|s| knob(path, s));
        outer.chain(own).map(HostStep::Knob).collect()
    }
}

impl Share {
    fn unified(
        &mut self,
        place: &Place<'_>,
        facts: &HostFacts,
        scope: Option<&Scope>,
        limits: &Limited<'_>,
        rules: Option<Vec<hafen_spec::resolved::DeviceRule>>,
        missing: &BTreeSet<PathBuf>,
    ) {
        let path = place.path();
        if let Some(scope) = scope {
            self.scope(scope, &path, limits.own);
        } else {
            self.folder(place, facts, limits.needed, missing);
        }
        self.before.extend(limits.knobs(&path, |s| s.home == Home::Unified));
        if let Some(rules) = rules {
            self.before.push(HostStep::DeviceProgram { cgroup: path.clone(), rules });
        }
        // A scope holds a process until the first one is there: born in it, one of one would be one too many.
        let one = |s: &Setting| s.file == "pids.max" && s.value == "1";
        let full = scope.is_some() && limits.own.iter().any(one);
        if facts.lacks("clone3") || facts.lacks("clone_into_cgroup") || full {
            self.beside.push(HostStep::Enter { cgroup: path });
        } else {
            self.born_in = Some(path);
        }
    }

    /// systemd switches controllers on and makes the folders above by itself, and takes all of them away.
    fn scope(&mut self, scope: &Scope, path: &Path, settings: &[Setting]) {
        let (unit, path) = (scope.unit.clone(), path.to_owned());
        let claim =
            Claim::Cgroup { path: path.clone(), parents: Vec::new(), unit: Some(unit.clone()) };
        self.claims.push(claim);
        let properties = systemd::properties(settings);
        self.before.push(HostStep::MakeScope {
            unit,
            slice: scope.slice.clone(),
            path,
            properties,
        });
    }

    fn folder(
        &mut self,
        place: &Place<'_>,
        facts: &HostFacts,
        settings: &[Setting],
        missing: &BTreeSet<PathBuf>,
    ) {
        let path = place.path();
        let controllers = limited(settings, Home::Unified);
        let counts =
            |c: &&str| facts.cgroup.home(c) == Home::Unified && !controllers.iter().any(|l| l == c);
        let accounting = ACCOUNTING.into_iter().filter(counts).map(str::to_owned).collect();
        let parents = place.parents(missing);
        self.claims.push(Claim::Cgroup { path: path.clone(), parents, unit: None });
        let tree = place.hierarchy.to_owned();
        let premade = !missing.contains(&path);
        self.before.push(HostStep::MakeCgroup { tree, path, controllers, accounting, premade });
    }

    fn legacy(
        &mut self,
        place: &Place<'_>,
        controllers: &[&str],
        limits: &Limited<'_>,
        missing: &BTreeSet<PathBuf>,
    ) {
        let (path, controller) = (place.path(), controllers.join(","));
        let parents = place.parents(missing);
        self.claims.push(Claim::LegacyCgroup {
            controller: controller.clone(),
            path: path.clone(),
            parents,
        });
        self.before.push(HostStep::MakeLegacyCgroup { controller, path: path.clone() });
        let here =
            |s: &&Setting| s.home == Home::Legacy && controllers.contains(&s.controller.as_str());
        self.before.extend(limits.knobs(&path, here));
        self.entered.push(path);
    }
}

pub(super) fn knob(folder: &Path, setting: &Setting) -> Knob {
    let knob = |file: &str, value: &str, instead| Knob {
        file: folder.join(file),
        value: value.to_owned(),
        instead,
    };
    let instead = setting.instead.as_ref().map(|(file, value)| Box::new(knob(file, value, None)));
    knob(&setting.file, &setting.value, instead)
}

/// Controllers with something to write, each once. Files named `cgroup.*` need none.
pub(super) fn limited(settings: &[Setting], home: Home) -> Vec<String> {
    let mut controllers: Vec<String> = Vec::new();
    for setting in settings.iter().filter(|s| s.home == home && s.controller != "cgroup") {
        if !controllers.contains(&setting.controller) {
            controllers.push(setting.controller.clone());
        }
    }
    controllers
}

/// The v1 hierarchies with something to write or to count, and their controllers. A cpuset that is co-mounted with one of
/// them comes along: nothing can enter its folder before it has CPUs and memory nodes.
pub(super) fn legacy_groups<'a>(
    layout: &'a CgroupLayout,
    settings: &[Setting],
    accounting: &[&str],
) -> Vec<(&'a Path, Vec<&'a str>)> {
    let limited = limited(settings, Home::Legacy);
    let is_used = |hierarchy: &Path, c: &str| {
        (accounting.contains(&c) && !layout.closed.contains(hierarchy))
            || limited.iter().any(|l| l == c)
    };
    let mut groups: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    for (controller, hierarchy) in &layout.legacy {
        groups.entry(hierarchy).or_default().push(controller);
    }
    groups.retain(|hierarchy, controllers| controllers.iter().any(|c| is_used(hierarchy, c)));
    for (hierarchy, controllers) in &mut groups {
        controllers.retain(|c| is_used(hierarchy, c) || *c == "cpuset");
    }
    groups.into_iter().collect()
}

/// A container's folder in one hierarchy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) hierarchy: &'a Path,
    /// Relative, without `..`.
    pub(super) name: &'a str,
    /// [`own_base`].
    pub(super) base: &'a Path,
}

impl Place<'_> {
    pub(super) fn path(&self) -> PathBuf {
        self.hierarchy.join(self.name)
    }

    /// The folders between it and the top of the hierarchy, nearest first.
    pub(super) fn above(&self) -> Vec<PathBuf> {
        let names = Path::new(self.name).ancestors().skip(1).filter(|n| !n.as_os_str().is_empty());
        names.map(|n| self.hierarchy.join(n)).collect()
    }

    /// Those of them that go when the container goes.
    pub(super) fn parents(&self, missing: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
        let own = self.hierarchy.join(self.base).join(OWN_TOP);
        self.above().into_iter().filter(|f| *f == own || missing.contains(f)).collect()
    }
}

/// Every folder that [`share`] will claim.
fn folders<'a>(resolved: &'a Resolved, facts: &'a HostFacts) -> Vec<Place<'a>> {
    if facts.cgroup.is_denied() {
        return Vec::new();
    }
    // What cannot be enforced is told by `share`.
    let mut settings = knobs(&resolved.limits, &facts.cgroup).unwrap_or_default();
    settings.extend(knobs(&resolved.outer, &facts.cgroup).unwrap_or_default());
    if let Ok(Confinement::Legacy(files)) = device::confinement(&resolved.device_rules, facts) {
        settings.extend(files);
    }
    let legacy = legacy_groups(&facts.cgroup, &settings, &LEGACY_ACCOUNTING)
        .into_iter()
        .map(|(hierarchy, _)| hierarchy);
    let all = facts.cgroup.tree.iter().map(PathBuf::as_path).chain(legacy);
    let base = own_base(facts);
    all.map(|hierarchy| Place { hierarchy, name: &resolved.cgroup, base }).collect()
}

#[cfg(test)]
mod tests;
