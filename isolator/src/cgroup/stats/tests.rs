use std::fs;
use std::path::PathBuf;

use super::*;

fn sample(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("hafen-stats-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    for (file, text) in files {
        fs::write(path.join(file), text).unwrap();
    }
    path
}

#[test]
fn a_unified_folder() {
    let path = sample(
        "unified",
        &[
            (
                "cpu.stat",
                "usage_usec 500\nuser_usec 300\nsystem_usec 200\nnr_periods 9\nnr_throttled 4\nthrottled_usec 77\n",
            ),
            ("cpu.pressure", "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n"),
            ("cpuset.cpus.effective", "0-1,7\n"),
            ("cpuset.mems.effective", "0\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 10\nfile 20\nkernel 30\n"),
            ("memory.swap.current", "8192\n"),
            ("memory.swap.max", "0\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n"),
        ],
    );
    let stats = stats(&[Claim::Cgroup { path: path.clone(), parents: Vec::new(), unit: None }]);
    fs::remove_dir_all(path).unwrap();
    assert_eq!(
        (stats.cpu.usage.total, stats.cpu.usage.user, stats.cpu.usage.kernel),
        (500_000, 300_000, 200_000)
    );
    assert_eq!(stats.cpu.throttling.throttled_time, 77_000);
    let some = stats.cpu.psi.unwrap().some.unwrap();
    assert_eq!((some.avg10, some.total), (1.5, 77));
    assert_eq!(stats.cpuset.cpus, [0, 1, 7]);
    assert_eq!((stats.memory.cache, stats.memory.kernel.usage), (20, 30));
    assert_eq!(stats.memory.usage.limit, u64::MAX);
    assert_eq!((stats.memory.swap.usage, stats.memory.swap.limit), (12_288, u64::MAX));
    assert_eq!((stats.pids.current, stats.pids.limit), (3, 0));
    let bytes: Vec<(&str, u64)> =
        stats.blkio.io_service_bytes_recursive.iter().map(|e| (e.op.as_str(), e.value)).collect();
    assert_eq!(bytes, [("Read", 1), ("Write", 2), ("Discard", 5)]);
    assert_eq!(stats.blkio.io_serviced_recursive.len(), 3);
}

#[test]
fn legacy_folders() {
    let path = sample(
        "legacy",
        &[
            ("cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 77999\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.failcnt", "2\n"),
            ("memory.stat", "cache 20\nrss 10\n"),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "254:0 Read 7\n254:0 Write 8\nTotal 15\n",
            ),
        ],
    );
    let claim = |controller: &str| Claim::LegacyCgroup {
        controller: controller.to_owned(),
        path: path.clone(),
        parents: Vec::new(),
    };
    let stats = stats(&[claim("cpu"), claim("memory"), claim("blkio")]);
    fs::remove_dir_all(&path).unwrap();
    assert_eq!(stats.cpu.throttling.throttled_time, 77_999);
    let usage = MemoryEntry { limit: u64::MAX, usage: 4096, max: 0, failcnt: 2 };
    assert_eq!(stats.memory.usage, usage);
    assert_eq!(stats.memory.cache, 20);
    let first = BlkioEntry { major: 254, minor: 0, op: "Read".to_owned(), value: 7 };
    assert_eq!(stats.blkio.io_service_bytes_recursive[0], first);
    assert_eq!(stats.blkio.io_service_bytes_recursive.len(), 2);
}

#[test]
fn names_are_those_that_clients_read() {
    let text = serde_json::to_value(Stats::default()).unwrap();
    for pointer in [
        "/cpu/usage/kernel",
        "/cpu/throttling",
        "/cpuset/sched_load_balance",
        "/memory/usage/limit",
        "/memory/kernelTCP/failcnt",
        "/pids",
        "/blkio",
        "/hugetlb",
        "/intel_rdt",
    ] {
        assert!(text.pointer(pointer).is_some(), "{pointer} in {text}");
    }
}
