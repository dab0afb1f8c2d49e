use hafen_spec::resolve::{Options, resolve};
use hafen_spec::resolved::{Amount, DeviceRule};

use super::*;

fn resolved(cgroup: &str) -> Resolved {
    let text = r#"{"ociVersion":"1.2.0","root":{"path":"rootfs"},"process":{"cwd":"/","args":["sh"],"user":{"uid":0,"gid":0}},
        "linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}"#;
    let spec = serde_json::from_str(text).unwrap();
    let options = Options { id: "c1".to_owned(), bundle: "/b".into(), ..Options::default() };
    let mut resolved = resolve(&spec, &HostFacts::default(), &options).unwrap();
    assert_eq!(resolved.cgroup, "hafen/c1");
    cgroup.clone_into(&mut resolved.cgroup);
    resolved.limits.pids = Some(Amount::Of(32));
    resolved.limits.memory.limit = Some(Amount::Of(64 << 20));
    resolved.limits.cpu.quota = Some(Amount::Of(50_000));
    resolved
}

fn unified_host() -> HostFacts {
    let mut facts = HostFacts::default();
    facts.cgroup.tree = Some("/sys/fs/cgroup".into());
    facts.cgroup.unified = ["cpuset", "cpu", "io", "memory", "pids"].map(str::to_owned).to_vec();
    facts
}

fn hybrid_host() -> HostFacts {
    let mut facts = HostFacts::default();
    facts.cgroup.tree = Some("/cg/unified".into());
    facts.cgroup.unified = vec!["hugetlb".to_owned()];
    for (controllers, mount) in
        [("cpu cpuacct cpuset", "/cg/cpu"), ("memory", "/cg/memory"), ("pids", "/cg/pids")]
    {
        for controller in controllers.split(' ') {
            facts.cgroup.legacy.insert(controller.to_owned(), mount.into());
        }
    }
    facts
}

fn text(share: &Share) -> String {
    let claims = share.claims.iter().map(|c| format!("claim {c}, then {:?}", parents(c)));
    let before = share.before.iter().map(|s| format!("before: {s}"));
    let entered = share.entered.iter().map(|p| format!("entered: {}", p.display()));
    let beside = share.beside.iter().map(|s| format!("beside: {s}"));
    let born = share.born_in.iter().map(|p| format!("born in {}", p.display()));
    claims.chain(before).chain(beside).chain(entered).chain(born).map(|l| l + "\n").collect()
}

fn parents(claim: &Claim) -> &[PathBuf] {
    match claim {
        Claim::Cgroup { parents, .. } | Claim::LegacyCgroup { parents, .. } => parents,
        Claim::Scratch { .. } | Claim::Resctrl { .. } | Claim::Use { .. } => &[],
    }
}

#[test]
fn golden_unified_host() {
    let mut resolved = resolved("hafen/c1");
    resolved.device_rules = vec![DeviceRule {
        allow: false,
        kind: None,
        major: None,
        minor: None,
        read: true,
        write: true,
        mknod: true,
    }];
    resolved.limits.memory.limit = None;
    let missing = [PathBuf::from("/sys/fs/cgroup/hafen/c1")].into();
    let share = share(&resolved, &unified_host(), &missing).unwrap();
    assert_eq!(text(&share), include_str!("golden/unified.txt"));
}

#[test]
fn golden_hybrid_host() {
    let mut facts = hybrid_host();
    facts.missing_calls.push("clone3".to_owned());
    let missing = ["/cg/unified/a/b", "/cg/memory/a", "/cg/memory/a/b"].map(PathBuf::from).into();
    let share = share(&resolved("a/b/c"), &facts, &missing).unwrap();
    assert_eq!(text(&share), include_str!("golden/hybrid.txt"));
}

/// Clients count in the folder that `/proc/PID/cgroup` names.
#[test]
fn without_limits_it_has_v1_folders_all_the_same() {
    let mut resolved = resolved("hafen/c1");
    resolved.limits = Default::default();
    let mut facts = hybrid_host();
    facts.cgroup.legacy.insert("net_cls".to_owned(), "/cg/net_cls".into());
    let share = share(&resolved, &facts, &BTreeSet::new()).unwrap();
    let folders = ["/cg/cpu", "/cg/memory", "/cg/pids"].map(|h| Path::new(h).join("hafen/c1"));
    assert_eq!(share.entered, folders);
    assert_eq!(share.claims.len(), 4);
    assert_eq!(share.beside, []);
    assert_eq!(share.born_in, Some("/cg/unified/hafen/c1".into()));
}

#[test]
fn where_no_folder_can_be_made_nothing_is_counted() {
    let mut resolved = resolved("hafen/c1");
    resolved.limits.memory = Default::default();
    let mut facts = hybrid_host();
    facts.cgroup.closed = ["/cg/memory", "/cg/pids"].map(PathBuf::from).into();
    let share = share(&resolved, &facts, &BTreeSet::new()).unwrap();
    // The pids limit is asked for: that it cannot be set is for the launch to say.
    let folders = ["/cg/cpu", "/cg/pids"].map(|h| Path::new(h).join("hafen/c1"));
    assert_eq!(share.entered, folders);
}

#[test]
fn the_tree_is_released_first() {
    let share = share(&resolved("x"), &hybrid_host(), &BTreeSet::new()).unwrap();
    let kinds: Vec<bool> =
        share.claims.iter().rev().map(|c| matches!(c, Claim::Cgroup { .. })).collect();
    assert_eq!(kinds, [true, false, false, false]);
}

#[test]
fn a_host_without_a_tree_is_refused_in_one_sentence() {
    let problems = share(&resolved("x"), &HostFacts::default(), &BTreeSet::new()).unwrap_err();
    assert_eq!(problems.0.len(), 1);
    assert!(problems.to_string().contains("no cgroup2 file system"), "{problems}");
}

#[test]
fn limits_that_cannot_hold_are_refused() {
    let mut facts = hybrid_host();
    facts.cgroup.legacy.clear();
    let problems = share(&resolved("x"), &facts, &BTreeSet::new()).unwrap_err();
    let fields: Vec<&str> = problems.0.iter().map(|p| p.field.as_str()).collect();
    let expected =
        ["linux.resources.cpu.quota", "linux.resources.memory.limit", "linux.resources.pids.limit"];
    assert_eq!(fields, expected);
}

#[test]
fn folders_above_are_looked_up_from_the_top() {
    let top = std::env::temp_dir().join(format!("hafen-share-{}", std::process::id()));
    std::fs::create_dir_all(top.join("a")).unwrap();
    let mut facts = unified_host();
    facts.cgroup.tree = Some(top.clone());
    let missing = missing_parents(&resolved("a/b/c/d"), &facts);
    let free = check_free(&resolved("a/b/c/d"), &facts, &missing);
    std::fs::remove_dir_all(&top).unwrap();
    assert_eq!(missing, ["a/b", "a/b/c", "a/b/c/d"].map(|f| top.join(f)).into());
    assert!(free.is_ok());
}
