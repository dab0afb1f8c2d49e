//! What the floor makes is a container, not only a quick one.

use std::fs;
use std::path::Path;
use std::process::Command;

use hafen_bench::bundle::{self, Kind};
use hafen_bench::host::{Delegation, Host};
use hafen_bench::launch_plan;
use serde_json::json;

/// Runs `script` in the floor's container; returns its exit code and output.
fn run(kind: Kind, script: &str) -> (Option<i32>, String) {
    let host = Host::read().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cgroup = format!("hafen-floor-{}-{kind:?}", std::process::id());
    let mut config = bundle::config(kind, &cgroup, &host).unwrap();
    config["process"]["args"] = json!(["/bin/busybox", "sh", "-c", script]);
    bundle::make(folder.path(), &config).unwrap();
    let plan = launch_plan::plan(&config, folder.path(), &cgroup, &host).unwrap();
    fs::write(folder.path().join("floor.plan"), plan.finish()).unwrap();
    let _delegation = Delegation::new(&host, &bundle::CONTROLLERS).unwrap();
    let floor = Command::new(env!("CARGO_BIN_EXE_floor")).arg(folder.path()).output().unwrap();
    let left = host.sweep(&cgroup);
    assert!(left.is_empty(), "left behind: {left:?}");
    let text = [floor.stdout, floor.stderr].concat();
    (floor.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
#[ignore = "needs root and a cgroup2 tree"]
fn it_ends_with_the_exit_code_of_the_container() {
    assert_eq!(run(Kind::Minimal, "exit 7"), (Some(7), String::new()));
}

#[test]
#[ignore = "needs root and a cgroup2 tree"]
fn the_bundle_is_honoured() {
    let script = "b=/bin/busybox; $b cat /proc/self/mountinfo; $b cat /proc/self/status; \
        $b hostname; $b ls -l /dev; $b ls /proc/self/fd; $b ip link; $b cat /proc/self/cgroup; echo $$";
    let (code, text) = run(Kind::Default, script);
    assert_eq!(code, Some(0), "{text}");
    let config = bundle::config(Kind::Default, "x", &Host::read().unwrap()).unwrap();
    let points = |list: &serde_json::Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
    };
    let mut wanted = points(&config["linux"]["readonlyPaths"]);
    wanted.extend(points(&config["linux"]["maskedPaths"]));
    wanted.retain(|path| Path::new(path).exists());
    for mount in config["mounts"].as_array().unwrap() {
        wanted.push(mount["destination"].as_str().unwrap().to_owned());
    }
    for point in wanted {
        assert!(text.contains(&format!(" {point} ")), "{point} is not mounted:\n{text}");
    }
    for fact in [
        "/rootfs / ro,",
        "CapEff:\t0000000020000420",
        "NoNewPrivs:\t1",
        "bench\n",
        "stdout",
        "LOOPBACK,UP",
    ] {
        assert!(text.contains(fact), "no {fact:?} in:\n{text}");
    }
    assert!(text.ends_with("\n1\n"), "the process is not the first of its namespace:\n{text}");
}

#[test]
#[ignore = "needs root and the memory, cpu and pids controllers"]
fn the_limits_hold() {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 \
        28 29 30 31 32 33 34 35 36; do /bin/busybox sleep 5 & done; echo forked";
    let (code, text) = run(Kind::Limits, script);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("can't fork"), "{text}");
}
