//! The order of a launch. This is the only place where it is decided.

pub(crate) mod attributes;
mod labels;

use std::path::PathBuf;

use hafen_isolator::cgroup;
use hafen_rootfs as rootfs;
use hafen_spec::plan::{ChangeRoot, ChildStep, Claim, HostStep, Plan, Spawn};
use hafen_spec::resolved::{Hooks, Namespace, NetDevice, Process, Resolved};

/// Needed to install a seccomp filter without no_new_privs (seccomp(2)).
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Order the shares of every room into one plan. Pure.
pub(crate) fn order(
    resolved: &Resolved,
    cgroup: cgroup::Share,
    rootfs: rootfs::Share,
    filter: Option<usize>,
    waits: bool,
) -> Plan {
    let enter = |cgroup| ChildStep::EnterLegacy { cgroup };
    let child = [
        own_files(resolved),
        identity(resolved),
        cgroup.entered.into_iter().map(enter).collect(),
        user_namespace(resolved),
        namespaces(resolved),
        if resolved.namespaces.is_new(Namespace::Mount) {
            labels::mounts(rootfs.child, resolved.mount_label.as_deref())
        } else {
            Vec::new()
        },
        terminal(resolved).into_iter().collect(),
        rootfs.last,
        inside(resolved),
        hooks_before_root(&resolved.hooks).into_iter().collect(),
        new_root(resolved),
        // The runtime's side goes on beside all this, and is done before the container's own view of the
        // cgroups is fixed and before anything is given up.
        own_cgroups(resolved),
        sysctl(resolved),
        rights(&resolved.process, filter, start(resolved, waits)),
    ];
    // Steps are large: growing would leave as much memory behind once more.
    let mut all = Vec::with_capacity(child.iter().map(Vec::len).sum());
    all.extend(child.into_iter().flatten());
    let mut child: Vec<ChildStep> = all;
    let given = if resolved.in_user_namespace() {
        attributes::of_the_runtime(&mut child)
    } else {
        Vec::new()
    };
    let mut claims: Vec<Claim> = rootfs.claims.into_iter().chain(cgroup.claims).collect();
    // Claims are released in reverse, and the tree that carries the processes must go first: that ends them.
    claims.sort_by_key(|claim| matches!(claim, Claim::Cgroup { .. }));
    // The device program guards the user's program and lets every node be made: it is loaded while the first
    // process does its part. Limits are there before it is born.
    let (devices, limits): (Vec<_>, Vec<_>) =
        cgroup.before.into_iter().partition(|step| matches!(step, HostStep::DeviceProgram { .. }));
    Plan {
        claims,
        before: limits.into_iter().chain(rootfs.before).collect(),
        spawn: spawn(resolved, cgroup.born_in),
        // Moves first, where it is not born in its place: they wait for a grace period.
        beside: privileges(resolved)
            .into_iter()
            .chain(cgroup.beside)
            .chain(devices)
            .chain(given.into_iter().map(HostStep::Attribute))
            .chain(interfaces(resolved))
            .collect(),
        child: listening(child, resolved),
    }
}

/// The cgroup namespace shows the folder in which it is made, the clocks of a time namespace are set before anybody is in
/// it, and whoever makes an ipc namespace owns its message queues: the process makes these itself.
fn spawn(resolved: &Resolved, cgroup: Option<PathBuf>) -> Spawn {
    let mut joins = Vec::new();
    if resolved.in_user_namespace() && !resolved.born_inside() {
        let all = resolved.namespaces.joined.iter();
        joins.extend(all.filter(|(n, _)| *n != Namespace::Cgroup).cloned());
        joins.sort_by_key(|(n, _)| (*n == Namespace::User, *n == Namespace::Mount));
    }
    let itself = |n: &Namespace| {
        matches!(n, Namespace::Cgroup | Namespace::Time)
            || (resolved.born_inside() && *n == Namespace::User)
            || (resolved.in_user_namespace() && *n == Namespace::Ipc)
    };
    let new = resolved.namespaces.new.iter().copied().filter(|n| !itself(n));
    Spawn { namespaces: new.collect(), cgroup, joins }
}

/// What only the runtime may do for a process in a user namespace. The maps come first: it waits for them.
fn privileges(resolved: &Resolved) -> Vec<HostStep> {
    if !resolved.in_user_namespace() {
        return Vec::new();
    }
    let maps = match resolved.namespaces.is_new(Namespace::User) {
        true if resolved.born_inside() => None,
        true => resolved.user.clone().map(HostStep::IdMaps),
        false => resolved.user.clone().map(HostStep::CheckIdMaps),
    };
    if resolved.rootless.is_some() {
        return maps.into_iter().collect();
    }
    let process = &resolved.process;
    let adjust = process.oom_score_adj.map(|value| HostStep::OomScoreAdj { value });
    let limits = process.rlimits.iter().cloned().map(HostStep::HardLimit);
    maps.into_iter().chain(adjust).chain(limits).collect()
}

/// First of all: a process that is not dumpable, or becomes another user, may not write to its own files in `/proc`.
fn own_files(resolved: &Resolved) -> Vec<ChildStep> {
    let offsets = resolved.time_offsets.clone();
    let time = resolved.namespaces.is_new(Namespace::Time);
    let time = time.then_some(ChildStep::TimeNamespace { offsets });
    let adjust = resolved.process.oom_score_adj.filter(|_| resolved.rootless.is_some());
    time.into_iter().chain(adjust.map(|value| ChildStep::OomScoreAdj { value })).collect()
}

fn user_namespace(resolved: &Resolved) -> Vec<ChildStep> {
    if !resolved.in_user_namespace() {
        return Vec::new();
    }
    let (uid, gid) = resolved.namespace_root();
    let waits = resolved.namespaces.is_new(Namespace::User) && !resolved.born_inside();
    let maps = waits.then_some(ChildStep::AwaitMaps);
    let keep_groups = resolved.process.keep_groups;
    let root = ChildStep::NamespaceRoot { uid, gid, keep_groups };
    let ipc = resolved.namespaces.is_new(Namespace::Ipc).then_some(ChildStep::UnshareIpc);
    maps.into_iter().chain([root]).chain(ipc).collect()
}

/// Last: should the launch fail, a physical interface comes back with another name.
fn interfaces(resolved: &Resolved) -> Vec<HostStep> {
    let joined = resolved.namespaces.joined.iter().find(|(n, _)| *n == Namespace::Network);
    let namespace = joined.map(|(_, path)| path.clone());
    let step = |device: &NetDevice| HostStep::MoveInterface {
        device: device.clone(),
        namespace: namespace.clone(),
    };
    resolved.net_devices.iter().map(step).collect()
}

/// Say where the filter's listener goes.
fn listening(mut steps: Vec<ChildStep>, resolved: &Resolved) -> Vec<ChildStep> {
    let path = resolved.seccomp.as_ref().and_then(|s| s.listener_path().clone());
    for step in &mut steps {
        if let ChildStep::Seccomp { listener, .. } = step {
            listener.clone_from(&path);
        }
    }
    steps
}

fn identity(resolved: &Resolved) -> Vec<ChildStep> {
    // Whoever shares the pid namespace could find the runtime's descriptors and program in /proc (CVE-2016-9962).
    let mut steps = vec![ChildStep::ResetSignals, ChildStep::NotDumpable, ChildStep::NewSession];
    if resolved.process.new_keyring {
        steps.extend(attributes::keyring(&resolved.process, keyring(&resolved.id)));
    }
    let by_itself = !resolved.in_user_namespace() && resolved.rootless.is_none();
    if let Some(value) = resolved.process.oom_score_adj.filter(|_| by_itself) {
        steps.push(ChildStep::OomScoreAdj { value });
    }
    steps.extend(attributes::labels(&resolved.process));
    steps
}

/// As runc and crun call it.
fn keyring(id: &str) -> String {
    format!("_ses.{id}")
}

/// The pid namespace is joined by the runtime, for its children (and most others on the way into a user namespace); the
/// mount namespace last, because the others are named by paths of the host.
fn namespaces(resolved: &Resolved) -> Vec<ChildStep> {
    let before = |n: Namespace| match n {
        Namespace::Pid => true,
        Namespace::Cgroup => false,
        Namespace::User => resolved.in_user_namespace(),
        _ => resolved.in_user_namespace() && !resolved.born_inside(),
    };
    let mut joined: Vec<_> =
        resolved.namespaces.joined.iter().filter(|(n, _)| !before(*n)).collect();
    joined.sort_by_key(|(namespace, _)| *namespace == Namespace::Mount);
    let mut steps: Vec<ChildStep> = joined
        .into_iter()
        .map(|(namespace, path)| ChildStep::Join { namespace: *namespace, path: path.clone() })
        .collect();
    if resolved.namespaces.is_new(Namespace::Network) {
        steps.push(ChildStep::LoopbackUp);
    }
    if resolved.namespaces.is_new(Namespace::Mount) {
        steps.push(ChildStep::HostPropagation { propagation: resolved.root.apart() });
    }
    steps
}

/// The order in which a process joins a running container. Pure.
pub(crate) fn join(
    id: &str,
    process: &Process,
    namespaces: Vec<&'static str>,
    own_root: bool,
    filter: Option<usize>,
) -> Vec<ChildStep> {
    let mut steps = vec![ChildStep::ResetSignals, ChildStep::NewSession];
    if process.new_keyring {
        steps.extend(attributes::keyring(process, keyring(id)));
    }
    steps.extend(process.oom_score_adj.map(|value| ChildStep::OomScoreAdj { value }));
    steps.extend(attributes::labels(process));
    // The container is not to be trusted: from the moment in which it can see us it must find nothing of the host's.
    steps
        .extend([ChildStep::NotDumpable, ChildStep::CloseHost { preserved: process.preserve_fds }]);
    steps.push(ChildStep::JoinContainer { namespaces });
    if own_root {
        steps.push(ChildStep::JoinRoot);
    }
    steps.extend(process.terminal.map(|terminal| ChildStep::Terminal {
        size: terminal.size,
        uid: process.uid,
        console: false,
    }));
    steps.push(ChildStep::AwaitGo);
    steps.extend(attributes::last_affinity(process));
    steps.extend(rights(process, filter, Vec::new()));
    steps
}

/// The order for a program of the host that runs in the container's namespaces. Pure.
pub(crate) fn visit(
    program: &str,
    namespaces: Vec<&'static str>,
    own_users: bool,
    keep_groups: bool,
) -> Vec<ChildStep> {
    let mut steps = vec![
        ChildStep::ResetSignals,
        ChildStep::NewSession,
        ChildStep::CloseHost { preserved: 0 },
        ChildStep::JoinContainer { namespaces },
        ChildStep::AwaitGo,
    ];
    if own_users {
        steps.push(ChildStep::Ids { uid: 0, gid: 0, additional_gids: Vec::new(), keep_groups });
    }
    steps.extend([
        ChildStep::CloseDescriptors { preserved: 0 },
        ChildStep::FindProgram { candidates: vec![program.to_owned()] },
        ChildStep::Execute { program: program.to_owned() },
    ]);
    steps
}

/// After the mounts, of which one is devpts, and before `/dev` may become read-only.
fn terminal(resolved: &Resolved) -> Option<ChildStep> {
    let wanted = resolved.process.terminal?;
    Some(ChildStep::Terminal {
        size: wanted.size,
        uid: resolved.process.uid,
        console: resolved.namespaces.is_new(Namespace::Mount),
    })
}

/// What holds the user's program back, beside the filter.
fn start(resolved: &Resolved, waits: bool) -> Vec<ChildStep> {
    match (waits, resolved.hooks.start_container.is_empty()) {
        (true, _) => vec![ChildStep::AwaitStart],
        (false, false) => vec![ChildStep::AwaitHooks { kinds: vec!["startContainer"] }],
        (false, true) => Vec::new(),
    }
}

fn hooks_before_root(hooks: &Hooks) -> Option<ChildStep> {
    let all = [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
    ];
    let kinds: Vec<&str> =
        all.iter().filter(|(_, list)| !list.is_empty()).map(|(k, _)| *k).collect();
    (!kinds.is_empty()).then_some(ChildStep::AwaitHooks { kinds })
}

/// What is done inside the root file system while the host's is still in sight.
fn inside(resolved: &Resolved) -> Vec<ChildStep> {
    let mut steps = Vec::new();
    if resolved.namespaces.is_new(Namespace::Mount) {
        steps.push(ChildStep::Folder { path: resolved.process.cwd.clone() });
    }
    steps.extend(
        resolved.readonly_paths.iter().map(|path| ChildStep::ReadonlyPath { path: path.clone() }),
    );
    steps.extend(resolved.masked_paths.iter().map(|path| ChildStep::Mask { path: path.clone() }));
    steps.extend(resolved.hostname.iter().map(|name| ChildStep::Hostname { name: name.clone() }));
    steps.extend(
        resolved.domainname.iter().map(|name| ChildStep::Domainname { name: name.clone() }),
    );
    steps
}

fn new_root(resolved: &Resolved) -> Vec<ChildStep> {
    let how = match (resolved.namespaces.is_new(Namespace::Mount), resolved.root.pivot) {
        (false, _) => ChangeRoot::Chroot,
        (true, true) => ChangeRoot::Pivot,
        (true, false) => ChangeRoot::Move,
    };
    let mut steps = vec![ChildStep::ChangeRoot { how }];
    steps.extend(
        resolved.root.propagation.map(|propagation| ChildStep::RootPropagation { propagation }),
    );
    if resolved.root.readonly {
        steps.push(ChildStep::RootReadonly);
    }
    steps
}

fn own_cgroups(resolved: &Resolved) -> Vec<ChildStep> {
    let unshare = resolved.namespaces.is_new(Namespace::Cgroup).then_some(ChildStep::UnshareCgroup);
    std::iter::once(ChildStep::AwaitGo).chain(unshare).collect()
}

/// After the runtime's part: that may bring the network interfaces whose settings these are.
fn sysctl(resolved: &Resolved) -> Vec<ChildStep> {
    let step = |(key, value): (&String, &String)| ChildStep::Sysctl {
        key: hafen_spec::resolve::sysctl_path(key),
        value: value.clone(),
    };
    resolved.sysctl.iter().map(step).collect()
}

/// Rights are given up in an order in which each step still has what it needs.
fn rights(process: &Process, filter: Option<usize>, start: Vec<ChildStep>) -> Vec<ChildStep> {
    let mut steps: Vec<ChildStep> =
        process.rlimits.iter().cloned().map(ChildStep::Rlimit).collect();
    steps.extend(attributes::steps(&process.attributes));
    if process.no_new_privileges {
        steps.push(ChildStep::NoNewPrivileges);
    }
    if process.terminal.is_none() && process.uid != 0 {
        steps.push(ChildStep::OwnStandard { uid: process.uid });
    }
    steps.push(ChildStep::BoundingSet { keep: process.capabilities.bounding });
    steps.push(ChildStep::Ids {
        uid: process.uid,
        gid: process.gid,
        additional_gids: process.additional_gids.clone(),
        keep_groups: process.keep_groups,
    });
    // Without no_new_privs the filter needs CAP_SYS_ADMIN: where the container will not have it,
    // the filter goes in just before the last capabilities go.
    let filter_first = filter.is_some()
        && !process.no_new_privileges
        && process.capabilities.effective & CAP_SYS_ADMIN == 0;
    let capabilities = ChildStep::Capabilities(process.capabilities);
    let seccomp = filter.map(|instructions| ChildStep::Seccomp { instructions, listener: None });
    if !filter_first {
        steps.push(capabilities.clone());
    }
    steps.push(ChildStep::WorkingDirectory { path: process.cwd.clone() });
    steps.push(ChildStep::Umask { mask: process.umask });
    steps.push(ChildStep::CloseDescriptors { preserved: process.preserve_fds });
    steps.push(ChildStep::FindProgram { candidates: candidates(process) });
    steps.extend(start);
    steps.extend(seccomp);
    if filter_first {
        steps.push(capabilities);
    }
    steps.push(ChildStep::Execute { program: process.args.first().cloned().unwrap_or_default() });
    steps
}

/// As execvp(3): a name with a slash is a path, any other is looked for in the container's own PATH.
fn candidates(process: &Process) -> Vec<String> {
    const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let Some(program) = process.args.first() else { return Vec::new() };
    if program.contains('/') {
        return vec![program.clone()];
    }
    let path =
        process.env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let folder = |name: &str| {
        if name.is_empty() { ".".to_owned() } else { name.trim_end_matches('/').to_owned() }
    };
    path.split(':').map(|name| format!("{}/{program}", folder(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process {
            args: vec!["sh".into()],
            env: vec!["PATH=/bin:/usr/bin/".into()],
            cwd: "/".into(),
            uid: 1000,
            gid: 1000,
            additional_gids: Vec::new(),
            keep_groups: false,
            umask: 0o022,
            capabilities: hafen_spec::resolved::Capabilities::default(),
            rlimits: Vec::new(),
            no_new_privileges: false,
            oom_score_adj: None,
            attributes: hafen_spec::resolved::Attributes::default(),
            new_keyring: true,
            preserve_fds: 0,
            terminal: None,
        }
    }

    fn position(steps: &[ChildStep], wanted: fn(&ChildStep) -> bool) -> usize {
        steps.iter().position(wanted).unwrap()
    }

    const SECCOMP: fn(&ChildStep) -> bool = |s| matches!(s, ChildStep::Seccomp { .. });
    const CAPABILITIES: fn(&ChildStep) -> bool = |s| matches!(s, ChildStep::Capabilities(_));
    const IDS: fn(&ChildStep) -> bool = |s| matches!(s, ChildStep::Ids { .. });

    #[test]
    fn the_filter_is_the_last_thing_before_the_program() {
        let mut process = process();
        process.no_new_privileges = true;
        let steps = rights(&process, Some(10), vec![ChildStep::AwaitStart]);
        assert_eq!(position(&steps, SECCOMP), steps.len() - 2);
        assert!(position(&steps, CAPABILITIES) < position(&steps, SECCOMP));
        assert!(position(&steps, IDS) < position(&steps, CAPABILITIES));
    }

    #[test]
    fn without_no_new_privs_the_filter_goes_in_before_the_right_to_install_it_goes() {
        let steps = rights(&process(), Some(10), Vec::new());
        assert_eq!(position(&steps, SECCOMP) + 1, position(&steps, CAPABILITIES));
        assert_eq!(position(&steps, CAPABILITIES), steps.len() - 2);
    }

    #[test]
    fn programs_are_looked_for_as_execvp_does() {
        assert_eq!(candidates(&process()), ["/bin/sh", "/usr/bin/sh"]);
        let path = Process { args: vec!["./run".into()], ..process() };
        assert_eq!(candidates(&path), ["./run"]);
    }
}
