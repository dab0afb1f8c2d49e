use super::*;

fn hybrid_host() -> HostFacts {
    let mut facts = HostFacts::default();
    facts.cgroup.tree = Some("/cg/unified".into());
    for (controller, mount) in [("cpu", "/cg/cpu"), ("memory", "/cg/memory"), ("pids", "/cg/pids")]
    {
        facts.cgroup.legacy.insert(controller.to_owned(), mount.into());
    }
    facts
}

fn tree(path: &str) -> Claim {
    Claim::Cgroup { path: path.into(), parents: Vec::new(), unit: None }
}

fn legacy(controller: &str) -> Claim {
    Claim::LegacyCgroup {
        controller: controller.to_owned(),
        path: format!("/cg/{controller}/hafen/c1").into(),
        parents: Vec::new(),
    }
}

fn written(change: &Change) -> Vec<(String, &str)> {
    change.knobs.iter().map(|k| (k.file.display().to_string(), k.value.as_str())).collect()
}

#[test]
fn a_folder_is_claimed_where_the_container_has_none_yet() {
    let mut limits = Limits { pids: Some(Amount::Of(32)), ..Limits::default() };
    limits.memory.limit = Some(Amount::Of(64 << 20));
    let claims = [legacy("memory"), tree("/cg/unified/hafen/c1")];
    let change = change(&limits, None, &claims, &hybrid_host()).unwrap();
    let claim = Claim::LegacyCgroup {
        controller: "pids".to_owned(),
        path: "/cg/pids/hafen/c1".into(),
        parents: vec!["/cg/pids/hafen".into()],
    };
    assert_eq!(change.claims, [claim]);
    assert_eq!(
        written(&change),
        [
            ("/cg/memory/hafen/c1/memory.limit_in_bytes".to_owned(), "67108864"),
            ("/cg/pids/hafen/c1/pids.max".to_owned(), "32"),
        ]
    );
    assert_eq!(change.rules, None);
}

#[test]
fn no_bound_on_memory_is_none_on_swap_where_v1_counts_both() {
    let mut limits = Limits::default();
    limits.memory.limit = Some(Amount::Max);
    let claims = [legacy("memory"), tree("/cg/unified/hafen/c1")];
    let change = change(&limits, None, &claims, &hybrid_host()).unwrap();
    let files: Vec<_> = written(&change).into_iter().map(|(_, value)| value).collect();
    assert_eq!(files, ["-1", "-1"]);
}

#[test]
fn a_unified_host_needs_its_controllers_switched_on_and_no_claim() {
    let mut facts = HostFacts::default();
    facts.cgroup.tree = Some("/cg".into());
    facts.cgroup.unified = ["cpuset", "memory"].map(str::to_owned).to_vec();
    let mut limits = Limits::default();
    limits.cpu.cpus = Some("0".to_owned());
    let change = change(&limits, Some(&[]), &[tree("/cg/hafen/c1")], &facts).unwrap();
    assert!(change.claims.is_empty());
    assert_eq!(change.controllers, ["cpuset"]);
    assert_eq!(written(&change), [("/cg/hafen/c1/cpuset.cpus".to_owned(), "0")]);
    assert_eq!(change.rules.as_deref(), Some(&[][..]));
}

#[test]
fn what_was_there_can_be_written_again() {
    let folder = std::env::temp_dir().join(format!("hafen-former-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let table = [
        ("cpu.max", "max 100000\n", "5 10", "max 100000"),
        ("pids.max", "max\n", "7", "max"),
        ("cpuset.cpus", "\n", "0", "\n"),
        ("io.max", "8:0 rbps=5 wbps=max\n", "8:0 rbps=1", "8:0 rbps=5 wbps=max"),
        ("io.max", "", "8:0 rbps=1", "8:0 rbps=max wbps=max riops=max wiops=max"),
        ("io.weight", "default 100\n8:0 7\n", "8:16 9", "8:16 default"),
        ("io.weight", "default 100\n8:0 7\n", "default 9", "default 100"),
        ("io.weight", "default 100\n8:0 7\n", "9", "default 100"),
        ("blkio.throttle.read_bps_device", "254:0 5\n", "254:0 9", "254:0 5"),
        ("blkio.throttle.read_bps_device", "", "254:0 9", "254:0 0"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", "1", "0"),
    ];
    for (name, text, value, wanted) in table {
        fs::write(folder.join(name), text).unwrap();
        let file = folder.join(name);
        let back = vec![(file.clone(), wanted.to_owned())];
        assert_eq!(former(&file, value), Some(back), "{name} {value}");
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn refused_values_are_tried_again_and_undone_when_nothing_helps() {
    let folder = std::env::temp_dir().join(format!("hafen-update-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("pids.max"), "max\n").unwrap();
    let knob = |file: &str, value: &str| Knob {
        file: folder.join(file),
        value: value.to_owned(),
        instead: None,
    };
    // A folder cannot be written to: EISDIR stands for the kernel's refusal.
    fs::create_dir_all(folder.join("memory.high")).unwrap();
    let change = Change {
        knobs: vec![knob("memory.high", "1"), knob("pids.max", "7")],
        ..Change::default()
    };
    let mut done = Done::default();
    let first = change.write(&mut done).unwrap_err();
    assert!(first.call.contains("memory.high"), "{first}");
    assert!(fs::read_to_string(folder.join("pids.max")).unwrap().starts_with('7'));
    assert_eq!(done.undo(), (Vec::new(), Vec::new()));
    assert!(fs::read_to_string(folder.join("pids.max")).unwrap().starts_with("max"));
    fs::remove_dir_all(&folder).unwrap();
}
