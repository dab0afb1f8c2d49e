//! The commands, each as a person uses it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hafen_integration::{Case, Test, Value, cases, cgroup, json, wait_until};

use super::{Node, ends_with, exit_code, number, sentence};

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_task_in_the_foreground(Root, Busybox),
        its_input_is_ours(Root, Busybox),
        a_task_in_the_background(Root, Busybox),
        one_that_cannot_begin(Root, Busybox),
        names_and_their_beginnings(Root, Busybox),
        exit_codes_tell_failures_apart(Root, Busybox),
        logs_of_both_streams(Root, Busybox),
        logs_are_followed_to_the_end(Root, Busybox),
        hundreds_follow_and_others_are_served(Root, Busybox),
        exec_runs_beside_it(Root, Busybox),
        attach_speaks_with_it(Root, Busybox),
        stop_asks_and_then_kills(Root, Busybox),
        kill_sends_signals(Root, Busybox),
        a_task_that_runs_is_removed_by_force_only(Root, Busybox),
        one_that_removes_itself(Root, Busybox),
        stats_are_the_kernels(Root, Busybox, Limit("memory")),
        limits_change_while_it_runs(Root, Busybox, Limit("memory"), Limit("cpu")),
        events_go_on_from_a_number(Root, Busybox),
        files_are_copied_both_ways(Root, Busybox),
        labels_pick_tasks(Root, Busybox),
    ]
}

fn a_task_in_the_foreground(t: &Test) {
    let node = Node::new(t);
    node.hafen(node.run_words(&["--name", "a"], "sleep 0.1; exit 7")).code(7);
    assert_eq!(node.wait("a")["state"], "STATE_FAILED");
    let missing = ["run", "--rootfs", node.rootfs.to_str().expect("text"), "/no/such"];
    let output = node.hafen(missing);
    assert!(output.exit == Some(125) || output.exit == Some(127), "{output}");
    assert!(output.stderr.contains("/no/such"), "{output}");
}

fn its_input_is_ours(t: &Test) {
    let node = Node::new(t);
    let words = node.run_words(&["-i", "--name", "a"], "cat; exit 4");
    let output = node.call(words).stdin("one\ntwo\n").output().code(4);
    assert_eq!(output.stdout, "one\ntwo\n");
    assert_eq!(node.logs("a"), "one\ntwo\n");
}

fn a_task_in_the_background(t: &Test) {
    let node = Node::new(t);
    let output = node.hafen(node.run_words(&["-d", "--name", "a"], &ends_with(3))).ok();
    assert_eq!(output.stdout, "a\n");
    let task = node.json(["inspect", "a"]);
    assert_eq!(task["state"], "STATE_RUNNING", "{task:#}");
    let pid = task["pid"].as_i64().expect("a pid");
    assert!(fs::exists(format!("/proc/{pid}")).expect("asked"), "{task:#}");
    assert_eq!(node.hafen(["ps", "--quiet"]).ok().stdout, "a\n");
    let table = node.hafen(["ps"]).ok().stdout;
    assert!(table.contains("running"), "{table}");
    let listed = node.json(["ps", "--format", "json"]);
    assert_eq!(listed[0]["id"], "a", "{listed:#}");
    node.hafen(["wait", "--timeout", "1", "a"]).failed_with(7, ["a is"]);
    node.hafen(["stop", "a"]).ok();
    assert_eq!(node.hafen(["wait", "a"]).ok().stdout, "3\n");
    assert_eq!(node.hafen(["ps", "--quiet"]).ok().stdout, "");
    assert_eq!(node.hafen(["ps", "--all", "--quiet"]).ok().stdout, "a\n");
    let task = node.json(["inspect", "a"]);
    assert_eq!(task["state"], "STATE_KILLED", "{task:#}");
    assert_eq!(exit_code(&task), Some(3));
    assert!(sentence(&task).starts_with("stopped: exited with code 3, after "), "{task:#}");
    assert!(task["started"].is_string() && task["ended"].is_string(), "{task:#}");
    node.hafen(["rm", "a"]).ok();
    assert_eq!(node.hafen(["ps", "--all", "--quiet"]).ok().stdout, "");
    assert!(!node.task_folder("a").exists());
}

/// Who does not wait for its end is told all the same that there was no beginning.
fn one_that_cannot_begin(t: &Test) {
    let node = Node::new(t);
    let rootfs = node.rootfs.to_str().expect("text").to_owned();
    let run = |name: &str, more: &[&str]| {
        let words = ["run", "-d", "--name", name, "--rootfs", &rootfs];
        node.hafen([&words, more, &["/no/such"][..]].concat())
    };
    for (name, more) in [("a", &[][..]), ("b", &["--restart", "always"])] {
        let output = run(name, more).code(127);
        assert_eq!(output.stdout, format!("{name}\n"), "{output}");
        assert!(output.stderr.contains("/no/such"), "{output}");
    }
    let _ = run("c", &["--no-wait"]).ok();
    assert_eq!(node.wait("c")["state"], "STATE_ERROR");
}

fn names_and_their_beginnings(t: &Test) {
    let node = Node::new(t);
    for id in ["web-1", "web-2", "db"] {
        node.run(&node.sh(id, "exit 0"));
        node.wait(id);
    }
    assert_eq!(node.json(["inspect", "d"])["id"], "db");
    let output = node.hafen(["inspect", "web"]);
    output.failed_with(2, ["web-1", "web-2"]);
    node.run(&node.sh("web", "exit 0"));
    assert_eq!(node.json(["inspect", "web"])["id"], "web", "a whole name goes first");
    let taken = node.http("POST", "/v1/tasks", &node.sh("web", "exit 0").to_string());
    assert_eq!(taken.expect(409)["code"], "already_exists");
    let made_up = node.run(&node.sh("", "exit 0"));
    assert!(!made_up["id"].as_str().expect("a name").is_empty());
    for wrong in ["a/b", "..", "a+b", ".a", &"x".repeat(64)] {
        let answer = node.http("POST", "/v1/tasks", &node.sh(wrong, "exit 0").to_string());
        assert_eq!(answer.status, 400, "{wrong}: {answer:?}");
    }
}

fn exit_codes_tell_failures_apart(t: &Test) {
    let mut node = Node::new(t);
    node.run(&node.sh("a", "exec sleep 1000"));
    node.wait_state("a", "STATE_RUNNING");
    node.hafen(["inspect", "nobody"]).failed_with(3, ["nobody", "hafen ps -a"]);
    node.hafen(["stop", "nobody"]).failed_with(3, ["nobody"]);
    node.hafen(["rm", "a"]).failed_with(4, ["hafen stop a"]);
    node.hafen(["update", "--memory", "none", "a"]).code(2);
    node.hafen(["no-such-command"]).code(2);
    node.hafen(["exec", "a", "exit-with-nothing"]).code(127);
    node.hafen(["exec", "nobody", "true"]).code(125);
    node.hafen(["wait", "--timeout", "0.2s", "a"]).code(7);
    node.call(["ps"]).user(65534, 65534).output().code(5);
    node.terminate();
    node.hafen(["ps"]).failed_with(6, ["no agent listens", "hafen agent"]);
    node.restart();
    node.hafen(["kill", "a"]).ok();
    node.wait("a");
    node.hafen(["kill", "a"]).failed_with(4, ["hafen inspect a"]);
}

fn logs_of_both_streams(t: &Test) {
    let node = Node::new(t);
    let script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done; printf open";
    node.run(&node.sh("a", script));
    node.wait("a");
    let output = node.hafen(["logs", "a"]).ok();
    assert_eq!(output.stdout, "out 1\nout 2\nout 3\nopen");
    assert_eq!(output.stderr, "err 1\nerr 2\nerr 3\n");
    assert_eq!(node.hafen(["logs", "--tail", "1", "a"]).ok().stdout, "open");
    let all = node.hafen(["logs", "--timestamps", "a"]).ok();
    let year = all.stdout.lines().all(|line| line.starts_with("20") && line.contains("Z "));
    assert!(year, "{all}");
    assert_eq!(node.hafen(["logs", "--since", "2999-01-01T00:00:00Z", "a"]).ok().stdout, "");
    let mut plain = node.sh("p", "echo plain; printf end");
    plain["log"] = json!({ "format": "FORMAT_PLAIN" });
    node.run(&plain);
    node.wait("p");
    assert_eq!(node.logs("p"), "plain\nend");
    let mut none = node.sh("n", "echo none");
    none["log"] = json!({ "format": "FORMAT_NONE" });
    node.run(&none);
    node.wait("n");
    node.hafen(["logs", "n"]).failed_with(4, ["keeps no log"]);
}

/// Who follows a task that is silent holds a connection, and no thread of the agent.
fn hundreds_follow_and_others_are_served(t: &Test) {
    const MANY: usize = 480;
    let node = Node::new(t);
    node.run(&node.sh("a", "echo first; until [ -e /tmp/go ]; do sleep 0.2; done; echo last"));
    node.wait_state("a", "STATE_RUNNING");
    let follow = |_| {
        let mut stream = UnixStream::connect(node.socket()).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("an option");
        let request =
            "GET /v1/tasks/a/logs?follow HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("sent");
        stream
    };
    let mut following: Vec<_> = (0..MANY).map(follow).collect();
    for stream in &mut following {
        let mut said = String::new();
        while !said.contains("Zmlyc3Q") {
            let mut some = [0; 1024];
            let length = stream.read(&mut some).expect("more");
            assert!(length > 0, "it ended: {said}");
            said.push_str(&String::from_utf8_lossy(&some[..length]));
        }
    }
    let begin = Instant::now();
    assert!(node.hafen(["ps"]).ok().stdout.contains("running"));
    let _ = node.hafen(["logs", "a"]).ok();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let threads = || fs::read_dir(format!("/proc/{}/task", node.pid())).expect("read").count();
    // Those that have read the beginning end after 10 s without work (tokio, "thread_keep_alive").
    let few = wait_until(Duration::from_secs(40), || (threads() < 60).then_some(()));
    assert!(few.is_some(), "{} threads", threads());
    node.hafen(["exec", "a", "sh", "-c", "echo go > /tmp/go"]).ok();
    for mut stream in following {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("the end");
        assert!(rest.contains("bGFzdA"), "{rest}");
    }
}

fn logs_are_followed_to_the_end(t: &Test) {
    let node = Node::new(t);
    let (spec, file) = node.with_file(
        node.sh("a", "echo first; until grep -q go /out; do sleep 0.02; done; echo second; exit 2"),
        "go",
    );
    node.run(&spec);
    let mut following = node.call(["logs", "--follow", "a"]).spawn();
    following.await_text("first\n");
    assert!(!following.has_ended());
    fs::write(file, "go").expect("written");
    assert_eq!(following.wait().ok().stdout, "first\nsecond\n");
}

fn exec_runs_beside_it(t: &Test) {
    let node = Node::new(t);
    node.run(&node.sh("a", "exec sleep 1000"));
    node.wait_state("a", "STATE_RUNNING");
    let exec = |words: &[&str]| node.hafen([&["exec"], words].concat());
    let output = exec(&["a", "/bin/sh", "-c", "echo out; echo err >&2; exit 5"]).code(5);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    exec(&["a", "/bin/sh", "-c", "kill -9 $$"]).code(137);
    let read = node.call(["exec", "-i", "a", "/bin/cat"]).stdin("words\n").output().ok();
    assert_eq!(read.stdout, "words\n");
    assert_eq!(exec(&["--user", "nobody", "a", "/bin/id", "-u"]).ok().stdout, "65534\n");
    assert_eq!(
        exec(&["--user", "7:8", "a", "/bin/sh", "-c", "id -u; id -g"]).ok().stdout,
        "7\n8\n"
    );
    exec(&["--user", "no-such-user", "a", "/bin/id"]).failed_with(125, ["no-such-user"]);
    assert_eq!(exec(&["--env", "A=b", "a", "/bin/sh", "-c", "echo $A"]).ok().stdout, "b\n");
    assert_eq!(exec(&["--workdir", "/etc", "a", "/bin/pwd"]).ok().stdout, "/etc\n");
    let many = exec(&[
        "a",
        "/bin/sh",
        "-c",
        "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done",
    ]);
    assert_eq!(many.ok().stdout.lines().count(), 2000);
    node.hafen(["kill", "a"]).ok();
    node.wait("a");
    exec(&["a", "/bin/true"]).failed_with(125, ["a does not run"]);
}

fn attach_speaks_with_it(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.sh("a", "echo begun; read x; echo got $x; read y; echo and $y; exit 6");
    spec["stdin"] = json!(true);
    node.run(&spec);
    node.wait_state("a", "STATE_RUNNING");
    let attached = node.call(["attach", "a"]).stdin("one\ntwo\n").output().code(6);
    assert!(attached.stdout.ends_with("got one\nand two\n"), "{attached}");
    assert_eq!(node.logs("a"), "begun\ngot one\nand two\n");
}

fn stop_asks_and_then_kills(t: &Test) {
    let node = Node::new(t);
    node.run(&node.sh("polite", &ends_with(9)));
    let mut other = node
        .sh("other", "trap 'exit 8' USR1; trap '' TERM; echo ready; while :; do sleep 0.05; done");
    other["kill"] = json!({ "signal": "SIGUSR1" });
    node.run(&other);
    node.run(&node.sh("deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done"));
    for id in ["polite", "other", "deaf"] {
        await_log(&node, id, "ready");
    }
    node.hafen(["stop", "polite"]).ok();
    assert_eq!(exit_code(&node.task("polite")), Some(9));
    node.hafen(["stop", "other"]).ok();
    assert_eq!(exit_code(&node.task("other")), Some(8));
    let began = Instant::now();
    node.hafen(["stop", "--time", "1s", "deaf"]).ok();
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(8), "{took:?}");
    let deaf = node.task("deaf");
    assert_eq!(deaf["reason"]["exit"]["signal"], 9, "{deaf:#}");
    assert_eq!(deaf["state"], "STATE_KILLED");
    assert_eq!(deaf["reason"]["kind"], "KIND_STOPPED");
    // Once more changes nothing.
    node.hafen(["stop", "deaf"]).ok();
}

fn await_log(node: &Node<'_>, id: &str, text: &str) {
    let found = wait_until(Duration::from_secs(10), || {
        let output = node.hafen(["logs", id]);
        output.stdout.contains(text).then_some(())
    });
    assert!(found.is_some(), "{id} never wrote {text:?}: {}", node.said());
}

fn kill_sends_signals(t: &Test) {
    let node = Node::new(t);
    node.run(&node.sh(
        "a",
        "trap 'echo usr1' USR1; trap 'exit 5' HUP; echo ready; while :; do sleep 0.05; done",
    ));
    await_log(&node, "a", "ready");
    node.hafen(["kill", "--signal", "USR1", "a"]).ok();
    await_log(&node, "a", "usr1");
    node.hafen(["kill", "--signal", "NONE", "a"]).failed_with(2, ["NONE"]);
    node.hafen(["kill", "--signal", "1", "a"]).ok();
    let ended = node.wait("a");
    // Nobody asked the agent to stop it.
    assert_eq!((exit_code(&ended), ended["state"].as_str()), (Some(5), Some("STATE_FAILED")));
    node.run(&node.sh("b", "exec sleep 1000"));
    node.wait_state("b", "STATE_RUNNING");
    node.hafen(["kill", "b"]).ok();
    assert_eq!(node.wait("b")["reason"]["exit"]["signal"], 9);
    assert_eq!(node.hafen(["wait", "b"]).ok().stdout, "137\n");
}

fn a_task_that_runs_is_removed_by_force_only(t: &Test) {
    let node = Node::new(t);
    let task = node.sh("a", "trap '' TERM; while :; do sleep 0.05; done");
    node.run(&task);
    let pid = node.wait_state("a", "STATE_RUNNING")["pid"].as_i64().expect("a pid");
    node.hafen(["rm", "a"]).failed_with(4, ["has not ended"]);
    let began = Instant::now();
    node.hafen(["rm", "--force", "a"]).ok();
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}: no grace was asked for",
        began.elapsed()
    );
    assert!(!fs::exists(format!("/proc/{pid}/root/bin")).unwrap_or(false));
    node.hafen(["inspect", "a"]).code(3);
    // The name is free again.
    node.run(&node.sh("a", "exit 0"));
    assert_eq!(node.wait("a")["state"], "STATE_FINISHED");
}

fn one_that_removes_itself(t: &Test) {
    let node = Node::new(t);
    node.hafen(node.run_words(&["--rm", "--name", "a"], "sleep 0.1; exit 6")).code(6);
    let gone = wait_until(Duration::from_secs(10), || {
        let is_unknown = node.http("GET", "/v1/tasks/a", "").status == 404;
        (is_unknown && !node.task_folder("a").exists()).then_some(())
    });
    assert!(gone.is_some(), "{}", node.said());
}

fn stats_are_the_kernels(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.task_of("a", &["/inside", "eat", "33554432", "1000"]);
    spec["resources"] = json!({ "limit": { "memory": 128 << 20, "pids": 50 } });
    node.run(&spec);
    await_log(&node, "a", "ate");
    let line = node.hafen(["stats", "--no-stream", "--format", "json", "a"]).ok();
    let stats: Value = line.json();
    let usage = &stats["usage"];
    let memory = number(&usage["memory"]).expect("memory");
    assert!((32 << 20..128 << 20).contains(&memory), "{stats:#}");
    assert_eq!(number(&usage["memoryLimit"]), Some(128 << 20), "{stats:#}");
    assert_eq!(number(&usage["pidsLimit"]), Some(50), "{stats:#}");
    assert_eq!(number(&usage["pids"]), Some(1), "{stats:#}");
    let table = node.hafen(["stats", "--no-stream"]).ok().stdout;
    assert!(table.contains("128") && table.lines().count() == 2, "{table}");
    node.hafen(["kill", "a"]).ok();
    node.wait("a");
    node.hafen(["stats", "--no-stream", "a"]).failed_with(4, ["does not run"]);
    assert_eq!(node.hafen(["stats", "--no-stream", "--format", "json"]).ok().stdout, "");
}

fn limits_change_while_it_runs(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.sh("a", "exec sleep 1000");
    spec["resources"] = json!({ "limit": { "memory": 64 << 20, "cpuMilli": 500 } });
    node.run(&spec);
    node.wait_state("a", "STATE_RUNNING");
    let memory = || {
        let folder = node.cgroup("a", "memory");
        let file =
            if cgroup::v1("memory").is_some() { "memory.limit_in_bytes" } else { "memory.max" };
        cgroup::value(&folder, file)
    };
    let cpu = || {
        let folder = node.cgroup("a", "cpu");
        match cgroup::v1("cpu") {
            Some(_) => cgroup::value(&folder, "cpu.cfs_quota_us"),
            None => cgroup::value(&folder, "cpu.max").split(' ').next().expect("a word").to_owned(),
        }
    };
    assert_eq!((memory(), cpu()), ((64 << 20).to_string(), "50000".to_owned()));
    node.hafen(["update", "--memory", "96M", "a"]).ok();
    assert_eq!((memory(), cpu()), ((96 << 20).to_string(), "50000".to_owned()));
    node.hafen(["update", "--cpus", "0.25", "a"]).ok();
    assert_eq!((memory(), cpu()), ((96 << 20).to_string(), "25000".to_owned()));
    let limit = &node.task("a")["spec"]["resources"]["limit"];
    assert_eq!((number(&limit["memory"]), number(&limit["cpuMilli"])), (Some(96 << 20), Some(250)));
    node.hafen(["update", "a"]).code(2);
}

fn events_go_on_from_a_number(t: &Test) {
    let mut node = Node::new(t);
    let mut following = node.call(["events", "--format", "json"]).spawn();
    // Whether it listens is seen by what it tells.
    let begun = wait_until(Duration::from_secs(10), || {
        let id = format!("probe{}", following.stdout().len());
        let answer = node.http("POST", "/v1/tasks", &node.sh(&id, "exit 0").to_string());
        if answer.status == 201 {
            node.wait(&id);
        }
        (!following.stdout().is_empty()).then_some(())
    });
    assert!(begun.is_some(), "{}", following.stderr());
    node.run(&node.sh("a", "exit 3"));
    node.wait("a");
    following.await_text("STATE_FAILED");
    drop(following);
    let all = node.events(&["--since", "1", "--no-follow"]);
    let sequences: Vec<u64> = all.iter().filter_map(|event| number(&event["sequence"])).collect();
    assert!(sequences.windows(2).all(|two| two[0] < two[1]), "{sequences:?}");
    let of = |all: &[Value]| -> Vec<String> {
        let of_task = all.iter().filter(|event| event["task"] == "a");
        of_task.filter_map(|event| Some(event["state"]["state"].as_str()?.to_owned())).collect()
    };
    assert_eq!(of(&all), ["STATE_STARTING", "STATE_RUNNING", "STATE_FAILED"]);
    let middle = sequences[sequences.len() - 2];
    let rest = node.events(&["--since", &middle.to_string(), "--no-follow"]);
    assert_eq!(rest.len(), 2, "{rest:#?}");
    assert!(node.events(&["--since", "1", "--no-follow", "--task", "a"]).len() >= 3);
    node.terminate();
    node.restart();
    let again = node.events(&["--since", "1", "--no-follow"]);
    assert_eq!(again[..all.len()], all, "what was told stays told");
    node.run(&node.sh("b", "exit 0"));
    node.wait("b");
    let later = node.events(&["--since", &middle.to_string(), "--no-follow"]);
    let sequences: Vec<u64> = later.iter().filter_map(|event| number(&event["sequence"])).collect();
    assert!(sequences.windows(2).all(|two| two[0] < two[1]), "{sequences:?}");
}

impl Node<'_> {
    fn events(&self, words: &[&str]) -> Vec<Value> {
        let output = self.hafen([&["events", "--format", "json"], words].concat()).ok();
        let lines = output.stdout.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
            .collect()
    }
}

fn files_are_copied_both_ways(t: &Test) {
    let node = Node::new(t);
    node.run(&node.sh("a", "mkdir -p /tmp/d/e; echo inside > /tmp/d/e/f; ln -s /etc/passwd /tmp/d/link; echo ready; exec sleep 1000"));
    await_log(&node, "a", "ready");
    let here = t.dir().join("copied");
    node.hafen(["cp", "a:/tmp/d", here.to_str().expect("text")]).ok();
    assert_eq!(fs::read_to_string(here.join("e/f")).expect("copied"), "inside\n");
    assert_eq!(
        fs::read_link(here.join("link")).expect("a link"),
        std::path::Path::new("/etc/passwd")
    );
    fs::write(here.join("g"), "from here").expect("written");
    node.hafen(["cp", here.join("g").to_str().expect("text"), "a:/tmp/d"]).ok();
    let read = node.hafen(["exec", "a", "/bin/cat", "/tmp/d/g"]).ok();
    assert_eq!(read.stdout, "from here");
    node.hafen(["cp", "a:/no/such", "."]).error_with(["/no/such"]);
    node.hafen(["cp", "nobody:/etc", "."]).failed_with(3, ["nobody"]);
}

fn labels_pick_tasks(t: &Test) {
    let node = Node::new(t);
    for (id, tier) in [("a", "front"), ("b", "back")] {
        let mut spec = node.sh(id, "exit 0");
        spec["labels"] = json!({ "tier": tier });
        node.run(&spec);
        node.wait(id);
    }
    let picked = node.hafen(["ps", "--all", "--quiet", "--filter", "label=tier=front"]).ok();
    assert_eq!(picked.stdout, "a\n");
    assert_eq!(node.hafen(["ps", "--quiet", "--filter", "state=finished"]).ok().stdout, "a\nb\n");
    let tasks = node.http("GET", "/v1/tasks?all&label=tier=back", "").expect(200);
    assert_eq!(tasks["tasks"][0]["id"], "b");
    assert_eq!(tasks["tasks"].as_array().map(Vec::len), Some(1));
}
