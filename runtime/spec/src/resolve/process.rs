use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use caps::Capability;
use oci_spec::runtime::{
    Capabilities as Names, LinuxIdMapping, PosixRlimitType, Process as OciProcess, Spec,
};

use super::linux::has_user_namespace;
use super::{Options, attributes, check_nul};
use crate::resolved::{Attributes, Capabilities, Process, Rlimit, Terminal};
use crate::{HostFacts, Problems, rights};

/// Resource names with the kernel's numbers (getrlimit(2), include/uapi/asm-generic/resource.h).
pub const RLIMITS: [(&str, u32); 16] = [
    ("RLIMIT_CPU", 0),
    ("RLIMIT_FSIZE", 1),
    ("RLIMIT_DATA", 2),
    ("RLIMIT_STACK", 3),
    ("RLIMIT_CORE", 4),
    ("RLIMIT_RSS", 5),
    ("RLIMIT_NPROC", 6),
    ("RLIMIT_NOFILE", 7),
    ("RLIMIT_MEMLOCK", 8),
    ("RLIMIT_AS", 9),
    ("RLIMIT_LOCKS", 10),
    ("RLIMIT_SIGPENDING", 11),
    ("RLIMIT_MSGQUEUE", 12),
    ("RLIMIT_NICE", 13),
    ("RLIMIT_RTPRIO", 14),
    ("RLIMIT_RTTIME", 15),
];

const DEFAULT_UMASK: u32 = 0o022;

pub(super) fn process(
    spec: &Spec,
    facts: &HostFacts,
    options: &Options,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Process {
    let Some(process) = spec.process() else {
        problems.add("process", "is missing: there is nothing to run");
        return empty(options);
    };
    let user = process.user();
    check_umask(user.umask(), problems);
    Process {
        args: args(process, problems),
        env: env(process, problems),
        cwd: cwd(process, problems),
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        keep_groups: keep_groups(spec, facts, problems),
        umask: user.umask().unwrap_or(DEFAULT_UMASK),
        capabilities: capabilities(process, available(spec, facts), problems, warnings),
        rlimits: rlimits(process, facts, problems, warnings),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: oom_score_adj(process, facts, problems, warnings),
        attributes: attributes::attributes(spec, process, facts, problems),
        terminal: terminal(process, problems),
        ..empty(options)
    }
}

fn empty(options: &Options) -> Process {
    Process {
        args: Vec::new(),
        env: Vec::new(),
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        additional_gids: Vec::new(),
        keep_groups: false,
        umask: DEFAULT_UMASK,
        capabilities: Capabilities::default(),
        rlimits: Vec::new(),
        no_new_privileges: false,
        oom_score_adj: None,
        attributes: Attributes::default(),
        new_keyring: !options.no_new_keyring,
        preserve_fds: options.preserve_fds,
        terminal: None,
    }
}

/// A size without a terminal says nothing.
fn terminal(process: &OciProcess, problems: &mut Problems) -> Option<Terminal> {
    if process.terminal() != Some(true) {
        return None;
    }
    let mut number = |n: u64, name: &str| {
        u16::try_from(n).unwrap_or_else(|_| {
            problems
                .add(format!("process.consoleSize.{name}"), format!("{n} is above {}", u16::MAX));
            0
        })
    };
    let size = process.console_size();
    let size = size.as_ref().map(|s| (number(s.height(), "height"), number(s.width(), "width")));
    Some(Terminal { size })
}

fn check_umask(umask: Option<u32>, problems: &mut Problems) {
    if umask.is_some_and(|m| m > 0o777) {
        problems.add("process.user.umask", "must be at most 0777");
    }
}

fn args(process: &OciProcess, problems: &mut Problems) -> Vec<String> {
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        problems.add("process.args", "must name a program");
    }
    for (i, arg) in args.iter().enumerate() {
        check_nul(arg, &format!("process.args[{i}]"), problems);
    }
    args
}

/// Of several values of one name the last counts, as with runc and crun: many programs would find the first.
fn env(process: &OciProcess, problems: &mut Problems) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (i, entry) in process.env().iter().flatten().enumerate() {
        let field = format!("process.env[{i}]");
        check_nul(entry, &field, problems);
        if entry.find('=').is_none_or(|at| at == 0) {
            problems.add(field, format!("{entry:?} is not NAME=VALUE"));
        }
        let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
        match places.entry(name) {
            Entry::Occupied(place) => env[*place.get()].clone_from(entry),
            Entry::Vacant(place) => {
                place.insert(env.len());
                env.push(entry.clone());
            }
        }
    }
    env
}

fn cwd(process: &OciProcess, problems: &mut Problems) -> String {
    let cwd = process.cwd().to_string_lossy().into_owned();
    if !cwd.starts_with('/') {
        problems.add("process.cwd", format!("{cwd:?} must be an absolute path"));
    }
    check_nul(&cwd, "process.cwd", problems);
    cwd
}

/// Annotation by which Podman asks for the caller's groups (`--group-add keep-groups`).
const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

/// A user who maps no more than the own group may do so only where groups stay as they are.
fn keep_groups(spec: &Spec, facts: &HostFacts, problems: &mut Problems) -> bool {
    let annotations = spec.annotations().as_ref();
    if annotations.and_then(|all| all.get(KEEP_GROUPS)).is_some_and(|value| value == "1") {
        return true;
    }
    let map = spec.linux().as_ref().and_then(|l| l.gid_mappings().as_deref()).unwrap_or_default();
    let own = |m: &LinuxIdMapping| m.size() == 1 && m.host_id() == facts.egid;
    let keep = facts.enters() && map.len() == 1 && map.iter().all(own);
    let asked = spec.process().as_ref().and_then(|p| p.user().additional_gids().as_ref());
    if keep && asked.is_some_and(|gids| !gids.is_empty()) {
        problems.add(
            "process.user.additionalGids",
            "cannot be given: linux.gidMappings has one's own group only, and then groups stay as they are",
        );
    }
    keep
}

/// What can be given: in a user namespace everything, of which the runtime itself may have less.
fn available(spec: &Spec, facts: &HostFacts) -> u64 {
    if has_user_namespace(spec) {
        return facts.all_capabilities();
    }
    facts.bounding & facts.all_capabilities()
}

fn capabilities(
    process: &OciProcess,
    available: u64,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Capabilities {
    let Some(wanted) = process.capabilities() else { return Capabilities::default() };
    let mut set = |names: &Option<Names>, which: &str| -> u64 {
        let asked = names
            .iter()
            .flatten()
            .fold(0, |mask, name| mask | rights::bit(&name.to_string()).unwrap_or_default());
        let given = asked & available;
        if asked != given {
            warnings.push(format!(
                "process.capabilities.{which}: {} left out, not in the runtime's own bounding set",
                list(asked & !given)
            ));
        }
        given
    };
    let mut sets = Capabilities {
        bounding: set(wanted.bounding(), "bounding"),
        effective: set(wanted.effective(), "effective"),
        inheritable: set(wanted.inheritable(), "inheritable"),
        permitted: set(wanted.permitted(), "permitted"),
        ambient: set(wanted.ambient(), "ambient"),
    };
    let subsets = [
        ("effective", sets.effective & !sets.permitted, "not in the permitted set"),
        (
            "inheritable",
            sets.inheritable & !(sets.bounding | sets.permitted),
            "neither in the bounding nor in the permitted set",
        ),
    ];
    for (which, outside, reason) in subsets.into_iter().filter(|(_, outside, _)| *outside != 0) {
        problems.add(
            format!("process.capabilities.{which}"),
            format!("{} {reason} (capabilities(7))", list(outside)),
        );
    }
    // `runc spec` and `crun spec` of Debian 12 write such a set, and both run it so.
    let impossible = sets.ambient & !(sets.permitted & sets.inheritable);
    if impossible != 0 {
        warnings.push(format!(
            "process.capabilities.ambient: {} left out, not both permitted and inheritable",
            list(impossible)
        ));
        sets.ambient &= !impossible;
    }
    sets
}

fn list(mask: u64) -> String {
    rights::names(mask).join(", ")
}

fn rlimits(
    process: &OciProcess,
    facts: &HostFacts,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Vec<Rlimit> {
    let mut seen = HashSet::new();
    let mut limits = Vec::new();
    for (i, asked) in process.rlimits().iter().flatten().enumerate() {
        let (name, resource) = RLIMITS[rlimit_index(asked.typ())];
        if !seen.insert(resource) {
            problems.add(format!("process.rlimits[{i}].type"), format!("{name} is listed twice"));
        }
        if asked.soft() > asked.hard() {
            problems.add(
                format!("process.rlimits[{i}].soft"),
                format!("{name}: {} is above the hard limit {}", asked.soft(), asked.hard()),
            );
        }
        let mut limit =
            Rlimit { name: name.to_owned(), resource, soft: asked.soft(), hard: asked.hard() };
        clamp_rlimit(&mut limit, facts, warnings);
        limits.push(limit);
    }
    limits
}

fn clamp_rlimit(limit: &mut Rlimit, facts: &HostFacts, warnings: &mut Vec<String>) {
    let Some(own) = facts.hard_limits.get(&limit.name).copied() else { return };
    if limit.hard > own && !facts.has_capability(Capability::CAP_SYS_RESOURCE) {
        warnings.push(format!(
            "process.rlimits: {} {} lowered to {own}: raising it needs CAP_SYS_RESOURCE",
            limit.name, limit.hard
        ));
        limit.hard = own;
        limit.soft = limit.soft.min(own);
    }
}

const fn rlimit_index(kind: PosixRlimitType) -> usize {
    use PosixRlimitType as T;
    match kind {
        T::RlimitCpu => 0,
        T::RlimitFsize => 1,
        T::RlimitData => 2,
        T::RlimitStack => 3,
        T::RlimitCore => 4,
        T::RlimitRss => 5,
        T::RlimitNproc => 6,
        T::RlimitNofile => 7,
        T::RlimitMemlock => 8,
        T::RlimitAs => 9,
        T::RlimitLocks => 10,
        T::RlimitSigpending => 11,
        T::RlimitMsgqueue => 12,
        T::RlimitNice => 13,
        T::RlimitRtprio => 14,
        T::RlimitRttime => 15,
    }
}

fn oom_score_adj(
    process: &OciProcess,
    facts: &HostFacts,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Option<i32> {
    let asked = process.oom_score_adj()?;
    if !(-1000..=1000).contains(&asked) {
        problems.add("process.oomScoreAdj", format!("{asked} is not between -1000 and 1000"));
    }
    if asked < facts.oom_score_adj && !facts.has_capability(Capability::CAP_SYS_RESOURCE) {
        warnings.push(format!(
            "process.oomScoreAdj: {asked} raised to {}: lowering it needs CAP_SYS_RESOURCE",
            facts.oom_score_adj
        ));
        return Some(facts.oom_score_adj);
    }
    Some(asked)
}
