use std::collections::BTreeMap;
use std::fmt::Write;

use hafen_spec::resolved::{BlockDevice, Throttle};

use super::*;

fn layout(unified: &[&str], legacy: &[&str]) -> CgroupLayout {
    CgroupLayout {
        closed: Default::default(),
        tree: Some("/tree".into()),
        unified: unified.iter().map(|c| (*c).to_owned()).collect(),
        legacy: legacy.iter().map(|c| ((*c).to_owned(), format!("/v1/{c}").into())).collect(),
        named: BTreeMap::new(),
        granted: None,
    }
}

const ALL: [&str; 7] = ["cpuset", "cpu", "memory", "pids", "hugetlb", "io", "rdma"];
const ALL_V1: [&str; 9] =
    ["cpuset", "cpu", "memory", "pids", "hugetlb", "blkio", "rdma", "net_cls", "net_prio"];

fn everything() -> Limits {
    Limits {
        cpu: CpuLimits {
            shares: Some(512),
            quota: Some(Amount::Of(50_000)),
            period: Some(200_000),
            burst: Some(10_000),
            idle: Some(false),
            realtime_runtime: None,
            realtime_period: None,
            cpus: Some("0-1".to_owned()),
            mems: Some("0".to_owned()),
        },
        memory: MemoryLimits {
            limit: Some(Amount::Of(64 << 20)),
            reservation: Some(Amount::Of(32 << 20)),
            swap: Some(Amount::Of(96 << 20)),
            swappiness: None,
            disable_oom_killer: None,
            check_before_update: false,
        },
        pids: Some(Amount::Of(32)),
        hugepages: BTreeMap::from([("1GB".to_owned(), 0), ("2MB".to_owned(), 4 << 20)]),
        io: io(),
        rdma: BTreeMap::from([
            ("mlx5_0".to_owned(), RdmaLimits { handles: Some(2), objects: Some(2000) }),
            ("mlx5_1".to_owned(), RdmaLimits { handles: None, objects: Some(7) }),
        ]),
        network: NetworkLimits::default(),
        unified: BTreeMap::new(),
    }
}

fn io() -> IoLimits {
    let throttle =
        |write, operations, rate| Throttle { device: BlockDevice(8, 0), write, operations, rate };
    IoLimits {
        weight: Some(500),
        device_weights: vec![(BlockDevice(8, 16), 1000)],
        throttles: vec![
            throttle(false, false, 1 << 20),
            throttle(true, false, 0),
            throttle(false, true, 100),
            throttle(true, true, 200),
        ],
    }
}

/// One line per file, as a person would write them.
fn text(limits: &Limits, layout: &CgroupLayout) -> String {
    match knobs(limits, layout) {
        Ok(settings) => settings.iter().fold(String::new(), |mut out, s| {
            let _ = write!(out, "{:?} {}: {} = {}", s.home, s.controller, s.file, s.value);
            if let Some((file, value)) = &s.instead {
                let _ = write!(out, " (or {file} = {value})");
            }
            out.push('\n');
            out
        }),
        Err(problems) => problems.to_string().replace("; ", "\n"),
    }
}

#[test]
fn golden_unified() {
    let golden = include_str!("golden/unified.txt");
    assert_eq!(text(&everything(), &layout(&ALL, &[])), golden);
}

#[test]
fn golden_legacy() {
    let mut limits = everything();
    limits.memory.swappiness = Some(10);
    limits.memory.disable_oom_killer = Some(true);
    limits.cpu.realtime_runtime = Some(950_000);
    limits.cpu.realtime_period = Some(1_000_000);
    limits.network.class_id = Some(0x10_0001);
    limits.network.priorities = vec![("eth0".to_owned(), 5), ("lo".to_owned(), 0)];
    let golden = include_str!("golden/legacy.txt");
    assert_eq!(text(&limits, &layout(&[], &ALL_V1)), golden);
}

#[test]
fn golden_mixed() {
    let mut limits = everything();
    limits.unified = map(&[("hugetlb.2MB.max", "0"), ("pids.max", "7")]);
    let golden = include_str!("golden/mixed.txt");
    let v1 = ["cpu", "cpuset", "memory", "blkio", "rdma"];
    assert_eq!(text(&limits, &layout(&["hugetlb", "pids"], &v1)), golden);
}

#[test]
fn golden_nothing_enforces_it() {
    let mut limits = everything();
    limits.cpu.idle = Some(true);
    limits.cpu.realtime_runtime = Some(950_000);
    limits.network.class_id = Some(1);
    limits.network.priorities = vec![("eth0".to_owned(), 5)];
    limits.memory.swappiness = Some(10);
    limits.memory.disable_oom_killer = Some(true);
    limits.unified = map(&[
        ("cgroup.procs", "1"),
        ("memory.high", "1"),
        ("../x", "1"),
        ("cgroup.max.depth", ""),
    ]);
    let golden = include_str!("golden/absent.txt");
    assert_eq!(text(&limits, &layout(&[], &[])), golden.trim_end());
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn written(limits: &Limits, layout: &CgroupLayout) -> Vec<(String, String)> {
    knobs(limits, layout).unwrap().into_iter().map(|s| (s.file, s.value)).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn bandwidth_in_all_its_forms() {
    use Amount::{Max, Of};
    type Files<'a> = &'a [(&'a str, &'a str)];
    let table: [(Option<Amount>, Option<u64>, Files<'_>, Files<'_>); 6] = [
        (None, None, &[], &[]),
        (
            Some(Of(50_000)),
            None,
            &[("cpu.max", "50000 100000")],
            &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "50000")],
        ),
        (
            Some(Of(5_000)),
            Some(10_000),
            &[("cpu.max", "5000 10000")],
            &[("cpu.cfs_period_us", "10000"), ("cpu.cfs_quota_us", "5000")],
        ),
        (Some(Max), None, &[("cpu.max", "max 100000")], &[("cpu.cfs_quota_us", "-1")]),
        (
            Some(Max),
            Some(10_000),
            &[("cpu.max", "max 10000")],
            &[("cpu.cfs_period_us", "10000"), ("cpu.cfs_quota_us", "-1")],
        ),
        (None, Some(10_000), &[("cpu.max", "max 10000")], &[("cpu.cfs_period_us", "10000")]),
    ];
    for (quota, period, unified, legacy) in table {
        let cpu = CpuLimits { quota, period, ..Default::default() };
        let limits = Limits { cpu, ..Default::default() };
        assert_eq!(written(&limits, &layout(&ALL, &[])), pairs(unified), "{quota:?} {period:?}");
        assert_eq!(written(&limits, &layout(&[], &ALL)), pairs(legacy), "{quota:?} {period:?}");
    }
}

#[test]
fn swap_in_all_its_forms() {
    use Amount::{Max, Of};
    let table = [
        (Some(Of(100)), Some(Of(100)), Some("0")),
        (Some(Of(100)), Some(Of(150)), Some("50")),
        (Some(Of(100)), Some(Max), Some("max")),
        (None, Some(Max), Some("max")),
        (Some(Of(100)), Some(Of(99)), None),
        (Some(Max), Some(Of(99)), None),
        (None, Some(Of(99)), None),
    ];
    for (limit, swap, expected) in table {
        let memory = MemoryLimits { limit, swap, ..Default::default() };
        let limits = Limits { memory, ..Default::default() };
        match (knobs(&limits, &layout(&ALL, &[])), expected) {
            (Ok(settings), Some(value)) => assert_eq!(settings.last().unwrap().value, value),
            (Err(problems), None) => assert_eq!(problems.0[0].field, "linux.resources.memory.swap"),
            (result, _) => panic!("{limit:?} {swap:?}: {result:?}"),
        }
    }
}

#[test]
fn no_limit_needs_no_controller() {
    let mut limits = Limits { pids: Some(Amount::Max), ..Default::default() };
    limits.cpu.quota = Some(Amount::Max);
    limits.cpu.idle = Some(false);
    limits.memory.limit = Some(Amount::Max);
    limits.memory.swap = Some(Amount::Max);
    limits.memory.disable_oom_killer = Some(false);
    assert_eq!(knobs(&limits, &layout(&[], &[])), Ok(Vec::new()));
}

#[test]
fn verbatim_files_win_and_keep_the_order_of_writing() {
    let mut limits = everything();
    limits.memory = MemoryLimits::default();
    limits.pids = None;
    limits.hugepages.clear();
    limits.rdma.clear();
    limits.io = IoLimits::default();
    limits.unified = map(&[
        ("cpu.idle", "1"),
        ("cpu.max", "max"),
        ("cpu.weight", "7"),
        ("io.max", "8:0 rbps=1\n8:16 wbps=2\n"),
        ("memory.oom.group", "1"),
        ("cgroup.max.depth", "3"),
    ]);
    let expected = [
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("cpu.weight", "7"),
        ("cpu.idle", "1"),
        ("cpu.max", "max"),
        ("cpu.max.burst", "10000"),
        ("cgroup.max.depth", "3"),
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:16 wbps=2"),
        ("memory.oom.group", "1"),
    ];
    let layout = layout(&["cpuset", "cpu", "io", "memory"], &[]);
    assert_eq!(written(&limits, &layout), pairs(&expected));
}

#[test]
fn v2_has_no_realtime_groups_and_no_network_classes() {
    let mut limits = Limits::default();
    limits.cpu.realtime_runtime = Some(950_000);
    limits.network.class_id = Some(1);
    let problems = knobs(&limits, &layout(&ALL, &[])).unwrap_err();
    let fields: Vec<&str> = problems.0.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(fields, ["linux.resources.cpu.realtimeRuntime", "linux.resources.network.classID"]);
}

#[test]
fn io_weights_meet_at_both_ends() {
    assert_eq!([10, 100, 500, 1000].map(io_weight), [1, 910, 4950, 10_000]);
}

#[test]
fn weight_keeps_the_order_of_shares() {
    let mut last = 1;
    for shares in 2..=262_144 {
        let weight = weight_from_shares(shares);
        assert!((1..=10_000).contains(&weight), "{shares} -> {weight}");
        assert!(weight >= last, "{shares} -> {weight} after {last}");
        last = weight;
    }
    for (shares, weight) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
        assert_eq!(weight_from_shares(shares), weight, "{shares}");
    }
}
