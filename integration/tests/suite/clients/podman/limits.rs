//! Limits that a client asks for: a process hits each.

use hafen_integration::{Case, Need, cgroup};

use super::super::Peer;
use super::{BOX, Podman, case};

pub(super) fn scenarios() -> Vec<Case> {
    let peer = Peer::Passes("runc");
    let clamps_none =
        Peer::Fails("runc", "it sets the rlimits as they are asked for, which is refused");
    let limits = || hafen_integration::needs![Limit("memory"), Limit("cpu"), Limit("pids")];
    vec![
        case("memory_cpu_and_pids", limits(), peer, memory_cpu_and_pids),
        case("stats_top_and_ps", limits(), peer, stats_top_and_ps),
        case("rlimits_are_clamped", vec![NO_MORE], clamps_none, rlimits_are_clamped),
    ]
}

const NO_MORE: Need =
    Need::That("a lack of CAP_SYS_RESOURCE", || !Need::Capability("CAP_SYS_RESOURCE").is_met());

fn memory_cpu_and_pids(p: &Podman<'_>) {
    p.call(["run", "--name", "eats", "--memory", "32m", BOX, "tail", "-n", "1", "/dev/zero"])
        .code(137);
    let forks = "i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done; wait";
    let forked = p.run(&["--pids-limit", "8"], &["sh", "-c", forks]);
    assert!(forked.stderr.contains("can't fork"), "{forked}");
    p.start("burns", &["--cpus", "0.2"], "while :; do :; done");
    let folder = p.cgroup("burns", "cpu");
    std::thread::sleep(std::time::Duration::from_secs(1));
    let stat = cgroup::value(&folder, "cpu.stat");
    let throttled =
        stat.lines().find_map(|l| l.strip_prefix("nr_throttled ")).map(str::parse::<u64>);
    assert!(matches!(throttled, Some(Ok(3..))), "{stat}");
}

fn stats_top_and_ps(p: &Podman<'_>) {
    p.start("c", &["--memory", "64m"], "sleep 60 & exec sleep 61");
    let format = "{{.MemUsage}} {{.PIDs}}";
    let stats = p.ok(["stats", "--no-stream", "--format", format, "c"]);
    assert!(stats.contains("/ 67.11MB") && stats.trim().ends_with(" 2"), "{stats}");
    let top = p.ok(["top", "c", "args"]);
    assert!(top.contains("sleep 60") && top.contains("sleep 61"), "{top}");
    // Without any limit there is still something to count.
    p.start("free", &[], "exec sleep 60");
    let free = p.ok(["stats", "--no-stream", "--format", format, "free"]);
    assert!(!free.starts_with("0B") && free.trim().ends_with(" 1"), "{free}");
    assert!(p.ok(["ps", "--format", "{{.Names}} {{.State}}"]).starts_with("c Up"));
}

/// Podman asks for a million open files, more than may be given here.
fn rlimits_are_clamped(p: &Podman<'_>) {
    p.configure(|text| {
        text.lines().filter(|l| !l.starts_with("default_ulimits")).collect::<Vec<_>>().join("\n")
    });
    assert_eq!(p.sh(&[], "echo fine"), "fine\n");
}
