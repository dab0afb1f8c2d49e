//! What an agent finds again after it was killed, or was away, or after the machine was started again.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hafen_integration::{Agent, Case, Program, Test, Value, cases, json, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Node, ends_with, exit_code, sentence};

pub(super) fn trials() -> Vec<Case> {
    cases![
        what_runs_goes_on(Root, Busybox),
        ends_while_it_was_away_are_told(Root, Busybox),
        killed_while_a_task_is_stopped(Root, Busybox),
        killed_before_a_restart(Root, Busybox),
        followers_come_back(Root, Busybox),
        the_longest_run_goes_on(Root, Busybox),
        checks_go_on(Root, Busybox),
        a_keeper_is_killed(Root, Busybox),
        a_keeper_is_killed_while_the_agent_is_away(Root, Busybox),
        a_first_process_is_killed(Root, Busybox),
        the_runtime_dies_at_each_point_of_a_launch(Root, Busybox),
        cut_records_are_set_aside(Root, Busybox),
        another_boot(Root, Busybox),
        containers_of_nobody_are_released(Root, Busybox),
        two_agents_of_two_instances(Root, Busybox),
        a_state_folder_has_one_agent(Root, Busybox),
    ]
}

fn pid(task: &Value) -> Pid {
    Pid::from_raw(i32::try_from(task["pid"].as_i64().expect("a pid")).expect("it fits"))
}

/// Waits until the keeper has written down how it ended.
fn await_record(node: &Node<'_>, id: &str) {
    let path = node.task_folder(id).join("1/exit.json");
    let found = wait_until(Duration::from_secs(10), || path.exists().then_some(()));
    assert!(found.is_some(), "no {}", path.display());
}

fn what_runs_goes_on(t: &Test) {
    let mut node = Node::new(t);
    let (spec, file) =
        node.with_file(node.sh("a", &format!("echo start >> /out; {}", ends_with(5))), "starts");
    node.run(&spec);
    let before = node.wait_state("a", "STATE_RUNNING");
    for graceful in [false, true] {
        if graceful {
            node.terminate();
        } else {
            node.kill9();
        }
        assert!(fs::exists(format!("/proc/{}/root/bin", before["pid"])).expect("asked"));
        node.restart();
        let after = node.wait_state("a", "STATE_RUNNING");
        for field in ["pid", "attempt", "started", "created", "container"] {
            assert_eq!(before[field], after[field], "{field}");
        }
    }
    assert_eq!(node.hafen(["exec", "a", "/bin/echo", "hello"]).ok().stdout, "hello\n");
    node.hafen(["stop", "a"]).ok();
    assert_eq!(exit_code(&node.task("a")), Some(5));
    assert_eq!(fs::read_to_string(file).expect("read"), "start\n");
}

fn ends_while_it_was_away_are_told(t: &Test) {
    let mut node = Node::new(t);
    let codes: Vec<u8> = (0..8).collect();
    let path = t.dir().join("go");
    fs::write(&path, "").expect("written");
    for code in &codes {
        let id = format!("t{code}");
        let mut spec = node.sh(
            &id,
            &format!("until grep -q go /go; do sleep 0.02; done; echo last {code}; exit {code}"),
        );
        spec["mounts"] = json!([{ "host": path, "destination": "/go" }]);
        node.run(&spec);
        node.wait_state(&id, "STATE_RUNNING");
    }
    node.kill9();
    fs::write(&path, "go").expect("written");
    codes.iter().for_each(|code| await_record(&node, &format!("t{code}")));
    node.restart();
    for code in &codes {
        let id = format!("t{code}");
        let task = node.wait(&id);
        assert_eq!(exit_code(&task), Some((*code).into()), "{task:#}");
        assert_eq!(node.logs(&id), format!("last {code}\n"));
        assert_eq!(task["attempt"], 1);
    }
}

fn killed_while_a_task_is_stopped(t: &Test) {
    let mut node = Node::new(t);
    let mut spec = node.sh("a", "trap 'echo heard' TERM; echo ready; while :; do sleep 0.05; done");
    spec["kill"] = json!({ "grace": "2s" });
    node.run(&spec);
    node.wait_for("a", "is ready", |_| node.hafen(["logs", "a"]).stdout.contains("ready"));
    let began = Instant::now();
    let _ = node.http("POST", "/v1/tasks/a/stop", "").expect(200);
    node.wait_state("a", "STATE_KILLING");
    node.kill9();
    node.restart();
    let task = node.wait("a");
    assert_eq!(task["state"], "STATE_KILLED", "{task:#}");
    assert_eq!(task["reason"]["exit"]["signal"], 9);
    assert!(
        began.elapsed() >= Duration::from_secs(2) && began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert!(node.logs("a").contains("heard"));
}

fn killed_before_a_restart(t: &Test) {
    let mut node = Node::new(t);
    let (mut spec, file) = node.with_file(node.sh("a", "echo start >> /out; exit 3"), "starts");
    spec["restart"] = json!({ "when": "WHEN_ON_FAILURE", "most": 1, "backOff": "0.5s" });
    node.run(&spec);
    node.wait_state("a", "STATE_WAITING");
    node.kill9();
    node.restart();
    let task = node.wait("a");
    assert_eq!((task["attempt"].as_u64(), exit_code(&task)), (Some(2), Some(3)), "{task:#}");
    assert_eq!(fs::read_to_string(file).expect("read"), "start\nstart\n");
}

/// Who attaches again after the agent was killed goes on, and misses nothing of the log.
fn followers_come_back(t: &Test) {
    let mut node = Node::new(t);
    let mut spec = node.sh("a", "while read line; do echo got $line; done; exit 7");
    spec["stdin"] = json!(true);
    node.run(&spec);
    node.wait_state("a", "STATE_RUNNING");
    let mut attached = node.call(["attach", "--no-stdin", "a"]).spawn();
    node.kill9();
    let ended = wait_until(Duration::from_secs(10), || attached.has_ended().then_some(()));
    assert!(ended.is_some(), "it is told that the agent has gone");
    node.restart();
    node.call(["attach", "a"]).stdin("one\ntwo\n").output().code(7);
    assert_eq!(node.logs("a"), "got one\ngot two\n");
}

fn the_longest_run_goes_on(t: &Test) {
    let mut node = Node::new(t);
    let mut spec = node.sh("a", "exec sleep 1000");
    spec["maxRunTime"] = json!("2s");
    spec["kill"] = json!({ "grace": "0.1s" });
    node.run(&spec);
    node.wait_state("a", "STATE_RUNNING");
    let began = Instant::now();
    node.kill9();
    node.restart();
    let task = node.wait("a");
    assert_eq!(task["reason"]["kind"], "KIND_TOO_LONG", "{task:#}");
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "the time before counts: {:?}",
        began.elapsed()
    );
}

fn checks_go_on(t: &Test) {
    let mut node = Node::new(t);
    let (mut spec, file) = node.with_file(node.sh("a", "exec sleep 1000"), "well");
    fs::write(&file, "yes").expect("written");
    spec["checks"] = json!([{ "name": "well", "kind": "KIND_HEALTH", "interval": "0.1s", "failures": 2,
                              "command": { "args": ["/bin/grep", "-q", "yes", "/out"] } }]);
    spec["kill"] = json!({ "grace": "0.1s" });
    node.run(&spec);
    node.wait_for("a", "was asked", |task| task["checks"][0]["passing"] == true);
    node.kill9();
    node.restart();
    node.wait_for("a", "was asked again", |task| task["checks"][0]["passing"] == true);
    fs::write(&file, "no").expect("written");
    assert_eq!(node.wait("a")["reason"]["kind"], "KIND_UNHEALTHY");
}

/// Counts to 200 in some seconds, and says so.
const COUNTING: &str =
    "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; sleep 0.01; done; exit 4";

fn counted() -> String {
    (1..=200).map(|i| format!("line {i}\n")).collect()
}

fn a_keeper_is_killed(t: &Test) {
    let node = Node::new(t);
    node.run(&node.sh("a", COUNTING));
    let before = node.wait_state("a", "STATE_RUNNING");
    let keeper = node.keeper("a");
    kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("killed");
    let taken_over = wait_until(Duration::from_secs(10), || {
        node.keepers().into_iter().find(|pid| *pid != keeper)
    });
    assert!(taken_over.is_some(), "{:#}\n{}", node.task("a"), node.said());
    assert_eq!(node.task("a")["pid"], before["pid"]);
    let task = node.wait("a");
    assert_eq!(task["state"], "STATE_FAILED", "{task:#}");
    assert_eq!(task["attempt"], 1);
    assert_eq!(node.logs("a"), counted(), "{task:#}");
    told_truly(&task, 4);
}

/// Its parent is gone: nobody may know the code, but what is told is not wrong.
#[track_caller]
fn told_truly(task: &Value, code: i64) {
    match exit_code(task) {
        Some(told) => assert_eq!(told, code, "{task:#}"),
        None => assert!(sentence(task).contains("nobody saw how"), "{task:#}"),
    }
}

fn a_keeper_is_killed_while_the_agent_is_away(t: &Test) {
    let mut node = Node::new(t);
    node.run(&node.sh("a", COUNTING));
    let before = node.wait_state("a", "STATE_RUNNING");
    let keeper = node.keeper("a");
    node.kill9();
    kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("killed");
    node.restart();
    let task = node.task("a");
    assert_eq!((&task["pid"], &task["attempt"]), (&before["pid"], &before["attempt"]), "{task:#}");
    let task = node.wait("a");
    assert_eq!(node.logs("a"), counted(), "{task:#}");
    told_truly(&task, 4);
}

fn a_first_process_is_killed(t: &Test) {
    let mut node = Node::new(t);
    for away in [false, true] {
        let id = format!("a{away}");
        node.run(&node.sh(&id, "exec sleep 1000"));
        let running = node.wait_state(&id, "STATE_RUNNING");
        if away {
            node.kill9();
        }
        kill(pid(&running), Signal::SIGKILL).expect("killed");
        if away {
            await_record(&node, &id);
            node.restart();
        }
        let task = node.wait(&id);
        assert_eq!(
            (task["state"].as_str(), &task["reason"]["exit"]["signal"]),
            (Some("STATE_FAILED"), &json!(9)),
            "{task:#}"
        );
        assert!(sentence(&task).starts_with("killed by signal 9, after "), "{task:#}");
        assert_eq!(node.hafen(["wait", &id]).ok().stdout, "137\n");
    }
}

/// `HAFEN_FAULT` of the agent is that of its runtime.
fn the_runtime_dies_at_each_point_of_a_launch(t: &Test) {
    const STEPS: [usize; 7] = [0, 1, 3, 6, 10, 15, 21];
    let rootfs = t.bundle().rootfs();
    let mut died = 0;
    for point in STEPS {
        let mut agent =
            Agent::new(t, &format!("agent{point}")).variable("HAFEN_FAULT", point.to_string());
        agent.restart();
        let mut node = Node { agent, rootfs: rootfs.clone() };
        let (spec, file) = node.with_file(node.sh("a", "echo start >> /out; exit 3"), "starts");
        node.run(&spec);
        // The same fault strikes each launch, each release and each keeper that takes over.
        let last = node.http("POST", "/v1/tasks/a/wait", r#"{"timeout": "1s"}"#);
        if last.status != 200 || exit_code(&last.json()) != Some(3) {
            died += 1;
        }
        node.kill9();
        node.agent.forget_variable("HAFEN_FAULT");
        node.restart();
        let task = node.wait("a");
        let starts = fs::read_to_string(&file).expect("read").lines().count();
        assert!(starts <= 1, "started {starts} times, point {point}: {task:#}\n{}", node.said());
        match starts {
            // What has run is told as it was, or nobody can tell; it is never said that it did not.
            1 if task["state"] == "STATE_LOST" => {}
            1 => told_truly(&task, 3),
            _ => {
                assert_eq!(
                    task["state"],
                    "STATE_ERROR",
                    "point {point}: {task:#}\n{}",
                    node.said()
                );
            }
        }
    }
    assert!(died > 2, "built with --features fault-points?");
}

fn cut_records_are_set_aside(t: &Test) {
    let mut node = Node::new(t);
    node.run(&node.sh("whole", "exec sleep 1000"));
    node.run(&node.sh("torn", "exec sleep 1000"));
    node.run(&node.sh("over", "exit 3"));
    let (whole, torn) =
        (node.wait_state("whole", "STATE_RUNNING"), node.wait_state("torn", "STATE_RUNNING"));
    node.wait("over");
    node.terminate();
    let path = node.task_folder("torn").join("task.json");
    let text = fs::read(&path).expect("read");
    for length in [0, 1, text.len() / 3, text.len() / 2, text.len() - 1] {
        fs::write(&path, &text[..length]).expect("written");
        node.restart();
        let set_aside = node.task("torn");
        assert!(
            set_aside["quarantined"].as_str().is_some_and(|why| why.contains("task.json")),
            "{length}: {set_aside:#}"
        );
        assert_eq!(node.task("whole")["pid"], whole["pid"]);
        assert_eq!(exit_code(&node.task("over")), Some(3));
        let shown = node.hafen(["ps"]).ok().stdout;
        assert!(
            shown.lines().any(|line| line.starts_with("torn") && line.contains("task.json")),
            "{shown}"
        );
        assert!(node.http("GET", "/v1/node", "").expect(200)["quarantined"]["torn"].is_string());
        let again = node.http("POST", "/v1/tasks", &node.sh("torn", "exit 0").to_string());
        assert_eq!(again.status, 409, "{again:?}");
        node.hafen(["rm", "torn"]).failed_with(4, ["set aside", "--force"]);
        node.terminate();
        assert_eq!(fs::read(&path).expect("read"), &text[..length], "it is left as it is");
    }
    node.restart();
    node.hafen(["rm", "--force", "torn"]).ok();
    node.hafen(["inspect", "torn"]).code(3);
    let gone = wait_until(Duration::from_secs(10), || {
        (!Path::new(&format!("/proc/{}/root/bin", torn["pid"])).exists()).then_some(())
    });
    assert!(gone.is_some(), "what it was is released");
    node.run(&node.sh("torn", "exit 0"));
    assert_eq!(node.wait("torn")["state"], "STATE_FINISHED");
}

/// Of the revisions in a record of the agent.
fn latest(text: &[u8]) -> Value {
    let values = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
    let documents =
        values.map(|value| value.expect("JSON")).filter(|one| one["record"].is_object());
    documents.max_by_key(|one| one["record"]["revision"].as_u64()).expect("a revision")
}

/// As after a power cut: no process, nothing in memory, a record of a boot that is over.
fn another_boot(t: &Test) {
    let mut node = Node::new(t);
    let (mut again, file) =
        node.with_file(node.sh("again", "echo start >> /out; exec sleep 1000"), "starts");
    again["restart"] = json!({ "when": "WHEN_ON_FAILURE", "backOff": "0.05s" });
    again["kill"] = json!({ "grace": "0.1s" });
    node.run(&again);
    node.run(&node.sh("once", "exec sleep 1000"));
    node.run(&node.sh("over", "exit 5"));
    node.wait("over");
    for id in ["again", "once"] {
        node.wait_state(id, "STATE_RUNNING");
    }
    let keepers = [node.keeper("again"), node.keeper("once")];
    node.kill9();
    for keeper in keepers {
        kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("killed");
    }
    let oci = Program::Oci.find().expect("built");
    let root = node.run_folder().join("oci");
    for container in ["again+1", "once+1"] {
        let words = ["--root", root.to_str().expect("text"), "delete", "--force", container];
        t.program(oci.to_str().expect("text"), words).output().ok();
    }
    for entry in fs::read_dir(node.run_folder().join("sandboxes")).expect("read").flatten() {
        fs::remove_dir_all(entry.path()).expect("removed");
    }
    for id in ["again", "once", "over"] {
        let path = node.task_folder(id).join("task.json");
        let mut document = latest(&fs::read(&path).expect("read"));
        document["bootId"] = json!("00000000-0000-0000-0000-000000000000");
        fs::write(&path, document.to_string()).expect("written");
    }
    node.restart();
    let once = node.wait("once");
    assert_eq!(
        (once["state"].as_str(), once["reason"]["kind"].as_str()),
        (Some("STATE_FAILED"), Some("KIND_REBOOTED")),
        "{once:#}"
    );
    assert!(sentence(&once).contains("the machine was started again"), "{once:#}");
    assert_eq!(exit_code(&node.task("over")), Some(5));
    node.wait_for("again", "runs again", |task| {
        task["attempt"] == 2 && task["state"] == "STATE_RUNNING"
    });
    let started = wait_until(Duration::from_secs(10), || {
        (fs::read_to_string(&file).expect("read") == "start\nstart\n").then_some(())
    });
    assert!(started.is_some(), "{:?}", fs::read_to_string(&file));
}

fn containers_of_nobody_are_released(t: &Test) {
    let mut node = Node::new(t);
    node.run(&node.sh("kept", "exec sleep 1000"));
    node.run(&node.sh("nobodys", "exec sleep 1000"));
    let kept = node.wait_state("kept", "STATE_RUNNING");
    let nobodys = node.wait_state("nobodys", "STATE_RUNNING");
    let keeper = node.keeper("nobodys");
    node.kill9();
    fs::remove_file(node.task_folder("nobodys").join("task.json")).expect("removed");
    node.restart();
    let gone = wait_until(Duration::from_secs(15), || {
        let process = Path::new(&format!("/proc/{}/root/bin", nobodys["pid"])).exists();
        let kept = node.keepers().contains(&keeper);
        let state = node.run_folder().join("oci/nobodys+1").exists();
        (!process && !kept && !state && !node.task_folder("nobodys").exists()).then_some(())
    });
    assert!(gone.is_some(), "{}", node.said());
    assert_eq!(node.task("kept")["pid"], kept["pid"]);
    node.run(&node.sh("nobodys", "exit 0"));
    assert_eq!(node.wait("nobodys")["attempt"], 1);
}

fn two_agents_of_two_instances(t: &Test) {
    let mut one = Node::new(t);
    let mut agent = Agent::new(t, "other");
    agent.restart();
    let two = Node { agent, rootfs: one.rootfs.clone() };
    one.run(&one.sh("same", "exec sleep 1000"));
    two.run(&two.sh("same", "exec sleep 1000"));
    let (first, second) =
        (one.wait_state("same", "STATE_RUNNING"), two.wait_state("same", "STATE_RUNNING"));
    assert_ne!(first["pid"], second["pid"]);
    assert_ne!(one.cgroup("same", ""), two.cgroup("same", ""));
    one.kill9();
    one.restart();
    assert_eq!(two.task("same")["pid"], second["pid"]);
    one.hafen(["rm", "--force", "same"]).ok();
    assert_eq!(two.task("same")["state"], "STATE_RUNNING");
    assert_eq!(two.hafen(["exec", "same", "/bin/echo", "here"]).ok().stdout, "here\n");
}

fn a_state_folder_has_one_agent(t: &Test) {
    let node = Node::new(t);
    node.run(&node.sh("a", "exec sleep 1000"));
    let running = node.wait_state("a", "STATE_RUNNING");
    // The same everything.
    let second = node.fails();
    assert!(second.exit.is_some_and(|code| code != 0), "{second}");
    assert!(second.stderr.contains("agent.sock"), "{second}");
    // Another socket and run folder, the same state.
    let other = Agent::new(t, "other").variable("HAFEN_STATE", node.state().display().to_string());
    let second = other.fails();
    assert!(second.exit.is_some_and(|code| code != 0), "{second}");
    assert!(second.stderr.contains(node.state().to_str().expect("text")), "{second}");
    other.is_done();
    // The other way round.
    let other = Agent::new(t, "third")
        .variable("HAFEN_RUN", node.run_folder().display().to_string())
        .variable("HAFEN_SOCKET", t.dir().join("third/agent.sock").display().to_string());
    let second = other.fails();
    assert!(second.exit.is_some_and(|code| code != 0), "{second}");
    other.is_done();
    assert_eq!(node.task("a")["pid"], running["pid"]);
}
