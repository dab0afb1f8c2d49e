//! Tasks that do what they should not.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hafen_integration::{Case, Test, cases, json, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Node, exit_code, number, sentence};

pub(super) fn trials() -> Vec<Case> {
    cases![
        one_that_forks_without_end(Root, Busybox, Limit("pids")),
        one_that_fills_its_log(Root, Busybox),
        one_that_fills_its_log_without_lines(Root, Busybox),
        one_that_closes_its_stdio(Root, Busybox),
        one_whose_init_is_stopped(Root, Busybox),
        one_that_leaves_processes_behind(Root, Busybox),
        many_that_end_at_once(Root, Busybox),
        one_that_cannot_be_run(Root, Busybox),
        one_whose_keeper_dies_while_it_begins(Root, Busybox),
        one_that_fills_its_memory_folder(Root, Busybox, Limit("memory")),
    ]
}

fn one_that_forks_without_end(t: &Test) {
    let node = Node::new(t);
    let mut spec =
        node.sh("a", "f() { sleep 1000 & f & f & sleep 1000; }; f 2>/dev/null & exec sleep 1000");
    spec["resources"] = json!({ "limit": { "pids": 40, "cpuMilli": 300 } });
    spec["kill"] = json!({ "grace": "0.2s" });
    node.run(&spec);
    node.wait_state("a", "STATE_RUNNING");
    let file = node.cgroup("a", "pids").join("pids.events");
    let reached = wait_until(Duration::from_secs(20), || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let hits =
            text.strip_prefix("max ").and_then(|n| n.lines().next()?.trim().parse::<u64>().ok());
        (hits > Some(0)).then_some(())
    });
    assert!(reached.is_some(), "it never reached its limit");
    let stats = node.http("GET", "/v1/stats?id=a", "").expect(200);
    assert!(number(&stats["tasks"][0]["usage"]["pids"]) <= Some(40), "{stats:#}");
    let began = Instant::now();
    node.hafen(["stop", "a"]).ok();
    assert!(began.elapsed() < Duration::from_secs(10));
    let task = node.task("a");
    assert!(sentence(&task).contains("limit of 40 processes reached"), "{task:#}");
    assert!(!file.exists(), "its cgroup is gone");
}

fn log_files(node: &Node<'_>, id: &str) -> Vec<u64> {
    let entries = fs::read_dir(node.task_folder(id)).expect("read").flatten();
    let logs = entries.filter(|e| e.file_name().to_string_lossy().starts_with("log"));
    logs.map(|e| e.metadata().expect("about").len()).collect()
}

fn one_that_fills_its_log(t: &Test) {
    let node = Node::new(t);
    let mut spec =
        node.sh("a", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; exit 3");
    spec["log"] = json!({ "maxBytes": 16384, "maxFiles": 3 });
    node.run(&spec);
    assert_eq!(exit_code(&node.wait("a")), Some(3));
    let sizes = log_files(&node, "a");
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 16384 + 200), "{sizes:?}");
    let said = node.logs("a");
    let lines: Vec<u32> = said
        .lines()
        .map(|line| line.trim_start_matches("line ").parse().expect("a whole line"))
        .collect();
    assert_eq!(lines.last(), Some(&3000));
    assert!(lines.windows(2).all(|two| two[0] + 1 == two[1]), "the newest ones, all of them");
}

fn one_that_fills_its_log_without_lines(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.sh("a", "head -c 3000000 /dev/zero | tr '\\0' x; exit 3");
    spec["log"] = json!({ "maxBytes": 65536, "maxFiles": 2 });
    node.run(&spec);
    assert_eq!(exit_code(&node.wait("a")), Some(3));
    let sizes = log_files(&node, "a");
    assert!(sizes.len() <= 2 && sizes.iter().all(|size| *size <= 65536 * 2), "{sizes:?}");
    let said = node.logs("a");
    assert!(!said.is_empty() && said.chars().all(|c| c == 'x'), "{} bytes", said.len());
}

fn one_that_closes_its_stdio(t: &Test) {
    let node = Node::new(t);
    let (spec, file) = node.with_file(
        node.sh(
            "a",
            "echo before; exec 0<&- 1>&- 2>&-; until grep -q go /out; do sleep 0.05; done; exit 5",
        ),
        "go",
    );
    node.run(&spec);
    node.wait_for("a", "wrote", |_| node.hafen(["logs", "a"]).stdout == "before\n");
    // The keeper has seen the end of both, and does not spin or go.
    let keeper = node.keeper("a");
    let taken = || {
        let stat = fs::read_to_string(format!("/proc/{keeper}/stat")).expect("it lives");
        let fields: Vec<u64> = stat
            .rsplit(") ")
            .next()
            .expect("fields")
            .split(' ')
            .skip(11)
            .take(2)
            .map(|n| n.parse().expect("ticks"))
            .collect();
        fields.iter().sum::<u64>()
    };
    let before = taken();
    let spins = wait_until(Duration::from_millis(700), || (taken() > before + 20).then_some(()));
    assert!(spins.is_none(), "the keeper spins");
    assert_eq!(node.task("a")["state"], "STATE_RUNNING");
    fs::write(file, "go").expect("written");
    assert_eq!(exit_code(&node.wait("a")), Some(5));
    assert_eq!(node.logs("a"), "before\n");
}

fn one_whose_init_is_stopped(t: &Test) {
    let mut node = Node::new(t);
    let mut spec = node.sh("a", "exec sleep 1000");
    spec["kill"] = json!({ "grace": "0.5s" });
    node.run(&spec);
    let pid = node.wait_state("a", "STATE_RUNNING")["pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(i32::try_from(pid).expect("it fits")), Signal::SIGSTOP).expect("stopped");
    assert_eq!(node.task("a")["state"], "STATE_RUNNING");
    node.kill9();
    node.restart();
    assert_eq!(node.task("a")["state"], "STATE_RUNNING");
    node.hafen(["stop", "a"]).ok();
    assert_eq!(node.task("a")["reason"]["exit"]["signal"], 9);
}

fn one_that_leaves_processes_behind(t: &Test) {
    let node = Node::new(t);
    let script = "(trap '' TERM HUP INT; while :; do sleep 0.05; done) & (setsid sleep 1000 &) ; echo ready; exit 4";
    node.run(&node.sh("a", script));
    let task = node.wait("a");
    assert_eq!(exit_code(&task), Some(4), "{task:#}");
    let gone = wait_until(Duration::from_secs(5), || {
        (!node.run_folder().join("oci/a+1").exists()).then_some(())
    });
    assert!(gone.is_some(), "its container is released");
}

fn many_that_end_at_once(t: &Test) {
    let node = Node::new(t);
    let ids: Vec<String> = (0..20).map(|i| format!("t{i}")).collect();
    std::thread::scope(|scope| {
        for some in ids.chunks(5) {
            let node = &node;
            scope.spawn(move || {
                for id in some {
                    node.run(&node.sh(id, &format!("echo {id}; exit 9")));
                }
            });
        }
    });
    for id in &ids {
        let task = node.wait(id);
        assert_eq!((exit_code(&task), task["attempt"].as_u64()), (Some(9), Some(1)), "{task:#}");
        assert_eq!(node.logs(id), format!("{id}\n"));
    }
}

fn one_that_cannot_be_run(t: &Test) {
    let node = Node::new(t);
    fs::write(node.rootfs.join("not-executable"), "x").expect("written");
    for (id, program, word) in [
        ("a", "/no/such", "/no/such"),
        ("b", "/not-executable", "/not-executable"),
        ("c", "/etc", "/etc"),
    ] {
        node.run(&node.task_of(id, &[program]));
        let task = node.wait(id);
        assert_eq!(
            (task["state"].as_str(), task["reason"]["kind"].as_str()),
            (Some("STATE_ERROR"), Some("KIND_NOT_LAUNCHED")),
            "{task:#}"
        );
        assert!(
            sentence(&task).starts_with("could not be started: ") && sentence(&task).contains(word),
            "{task:#}"
        );
    }
    let mut user = node.sh("u", "true");
    user["user"] = json!("nobody-here");
    node.run(&user);
    assert!(sentence(&node.wait("u")).contains("nobody-here"));
}

/// What it writes to its tmpfs is its memory: it is killed, and not the node.
fn one_that_fills_its_memory_folder(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.sh("a", "head -c 200000000 /dev/zero > /mem/f; exit 3");
    spec["mounts"] = json!([{ "tmpfs": 0, "destination": "/mem" }]);
    spec["resources"] = json!({ "limit": { "memory": 32 << 20, "swap": 0 } });
    node.run(&spec);
    let task = node.wait("a");
    assert!(sentence(&task).contains("memory limit 32 MiB reached"), "{task:#}");
    assert!(Path::new("/proc/self").exists());
}

/// Its first process has the word to go on, and still has mounts to make: it runs, whatever its keeper could tell.
fn one_whose_keeper_dies_while_it_begins(t: &Test) {
    const MOUNTS: usize = 2000;
    let node = Node::new(t);
    let mut spec = node.sh("a", "echo start > /out; exit 7");
    let mounts = (0..MOUNTS).map(|n| json!({ "tmpfs": 1 << 20, "destination": format!("/m/{n}") }));
    spec["mounts"] = mounts.collect();
    let (spec, file) = node.with_file(spec, "ran");
    node.run(&spec);
    let made = |pid: &str| {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        mounts.lines().any(|line| line.contains("/m/"))
    };
    let keeper = wait_until(Duration::from_secs(20), || node.keepers_of("a").first().copied());
    let keeper = keeper.expect("a keeper");
    let children = format!("/proc/{keeper}/task/{keeper}/children");
    // Its mounts are made in less time than a pause of others takes.
    let began = Instant::now();
    while !fs::read_to_string(&children).is_ok_and(|all| all.split_whitespace().any(made)) {
        assert!(began.elapsed() < Duration::from_secs(20), "it makes no mounts");
    }
    kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("killed");
    let task = node.wait("a");
    let ran = fs::read_to_string(file).expect("read");
    assert_eq!(ran, "start\n", "{task:#}");
    assert_ne!(task["state"], "STATE_ERROR", "it is told that it never ran: {task:#}");
    assert!(exit_code(&task).is_none_or(|code| code == 7), "{task:#}");
}
