//! JSON over HTTP, with nothing but a socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hafen_integration::{Case, Test, cases, json, patience, wait_until};

use super::{Node, exit_code, number};

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_tasks_life_over_http(Root, Busybox),
        failures_have_a_code_and_a_sentence(Root, Busybox),
        flows_come_line_by_line(Root, Busybox),
        the_node_tells_of_itself(Root, Busybox),
        metrics_are_open_metrics(Root, Busybox),
        others_may_not_call(Root, Busybox),
    ]
}

fn a_tasks_life_over_http(t: &Test) {
    let node = Node::new(t);
    let taken = node.run(&node.sh("a", "echo hello; exec sleep 1000"));
    assert_eq!(taken["id"], "a");
    let running = node.wait_state("a", "STATE_RUNNING");
    assert!(number(&running["sequence"]) > Some(0) && running["ready"] == true, "{running:#}");
    let listed = node.http("GET", "/v1/tasks", "").expect(200);
    assert_eq!(listed["tasks"][0]["pid"], running["pid"]);
    let stats = node.http("GET", "/v1/stats?id=a", "").expect(200);
    assert_eq!(number(&stats["tasks"][0]["usage"]["pids"]), Some(1), "{stats:#}");
    let limit = json!({ "resources": { "limit": { "pids": 7 } } }).to_string();
    let updated = node.http("POST", "/v1/tasks/a/update", &limit).expect(200);
    assert_eq!(number(&updated["spec"]["resources"]["limit"]["pids"]), Some(7), "{updated:#}");
    let _ = node.http("POST", "/v1/tasks/a/signal", r#"{"signal": "INT"}"#).expect(200);
    // Its first process does not hear what it has no handler for.
    assert_eq!(node.task("a")["state"], "STATE_RUNNING");
    let _ = node.http("POST", "/v1/tasks/a/stop", r#"{"grace": "0.1s"}"#).expect(200);
    let ended = node.wait("a");
    assert_eq!(ended["reason"]["exit"]["signal"], 9, "{ended:#}");
    let logs = node.http("GET", "/v1/tasks/a/logs", "");
    assert_eq!(logs.body.lines().count(), 1, "{logs:?}");
    let _ = node.http("DELETE", "/v1/tasks/a", "").expect(200);
    assert_eq!(node.http("GET", "/v1/tasks/a", "").status, 404);
}

fn failures_have_a_code_and_a_sentence(t: &Test) {
    let node = Node::new(t);
    let refused = |method: &str, path: &str, body: &str, status: u16, code: &str, word: &str| {
        let answer = node.http(method, path, body);
        let value = answer.clone().expect(status);
        let message = value["message"].as_str().unwrap_or_default();
        assert!(value["code"] == code && message.contains(word), "{path}: {answer:?}");
    };
    refused("GET", "/v1/tasks/none", "", 404, "not_found", "none");
    refused("GET", "/v1/nothing", "", 404, "not_found", "/v1/tasks");
    refused("GET", "/v1/tasks?alle", "", 400, "invalid_argument", "alle");
    refused("POST", "/v1/tasks", "{", 400, "invalid_argument", "body");
    refused("POST", "/v1/tasks", "", 400, "invalid_argument", "root");
    refused("POST", "/v1/tasks", r#"{"root": {"host": true}}"#, 400, "invalid_argument", "command");
    refused("POST", "/v1/tasks", r#"{"rot": {"host": true}}"#, 400, "invalid_argument", "rot");
    refused("GET", "/v1/events?since=99999999999999999999", "", 400, "invalid_argument", "since");
    refused("GET", "/v1/stats?id=none", "", 404, "not_found", "none");
    refused("DELETE", "/v1/pods/none", "", 404, "not_found", "none");
    // All that is wrong with it at once.
    let wrong = json!({ "id": "a", "root": { "rootfs": "relative" }, "command": ["true"], "kill": { "signal": "SIGNOT" },
                        "resources": { "limit": { "memory": 0 } }, "mounts": [{ "destination": "up/../there" }] });
    let message =
        node.http("POST", "/v1/tasks", &wrong.to_string()).expect(400)["message"].to_string();
    for field in ["root.rootfs", "kill.signal", "resources.limit.memory", "mounts[0]"] {
        assert!(message.contains(field), "{field}: {message}");
    }
    let listed = node.http("GET", "/v1/tasks?all", "").expect(200);
    assert!(listed["tasks"].as_array().is_none_or(Vec::is_empty), "{listed:#}");
}

fn flows_come_line_by_line(t: &Test) {
    let node = Node::new(t);
    node.run(&node.sh("a", "echo one; exec sleep 1000"));
    node.wait_state("a", "STATE_RUNNING");
    let mut stream = UnixStream::connect(node.socket()).expect("connect");
    stream.set_read_timeout(Some(patience(Duration::from_secs(20)))).expect("a time limit");
    stream
        .write_all(b"GET /v1/tasks/a/logs?follow HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
        .expect("written");
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while !text.contains("\"line\"") {
        let count = stream.read(&mut bytes).expect("a line before the end of the task");
        assert!(count > 0, "it ended early: {text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    // "one\n".
    assert!(text.contains("b25lCg=="), "{text}");
    let _ = node.http("POST", "/v1/tasks/a/signal", "").expect(200);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("it ends with the task");
    let events = node.http("GET", "/v1/events?since=1&id=a", "");
    let ended = events
        .body
        .lines()
        .any(|line| line.contains("STATE_FAILED") && line.contains("killed by signal 9"));
    assert!(ended, "{events:?}");
}

fn the_node_tells_of_itself(t: &Test) {
    let node = Node::new(t);
    let about = node.http("GET", "/v1/node", "").expect(200);
    assert_eq!(about["name"], "testnode");
    assert_eq!(about["instance"], node.instance());
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read");
    assert_eq!(about["bootId"].as_str(), Some(boot.trim()));
    assert!(number(&about["capacity"]["total"]["memory"]) > Some(1 << 20), "{about:#}");
    let mut spec = node.sh("a", "exec sleep 1000");
    spec["resources"] = json!({ "request": { "memory": 8 << 20, "cpuMilli": 100 } });
    node.run(&spec);
    node.wait_state("a", "STATE_RUNNING");
    let about = node.http("GET", "/v1/node", "").expect(200);
    assert_eq!(number(&about["capacity"]["allocated"]["memory"]), Some(8 << 20), "{about:#}");
    assert_eq!(about["tasks"]["running"], 1);
    let quiet = wait_until(Duration::from_secs(10), || {
        let debug = node.http("GET", "/v1/debug", "").expect(200);
        assert!(number(&debug["descriptors"]) > Some(3), "{debug:#}");
        debug["operations"].as_array().is_none_or(Vec::is_empty).then_some(())
    });
    assert!(quiet.is_some(), "nothing is under way: {}", node.http("GET", "/v1/debug", "").body);
}

fn metrics_are_open_metrics(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.sh("a", "exec sleep 1000");
    spec["resources"] = json!({ "limit": { "memory": 32 << 20 } });
    node.run(&spec);
    node.wait_state("a", "STATE_RUNNING");
    let answer = node.http("GET", "/metrics", "");
    assert_eq!(answer.status, 200);
    assert!(
        answer.head.to_ascii_lowercase().contains("application/openmetrics-text"),
        "{}",
        answer.head
    );
    assert!(answer.body.ends_with("# EOF\n"), "{}", answer.body);
    let limit = answer
        .body
        .lines()
        .find(|line| line.contains("memory") && line.contains("limit") && line.contains("\"a\""));
    assert!(
        limit.is_some_and(|line| line.contains("33554432") || line.contains("3.3554432e")),
        "{}",
        answer.body
    );
    for line in answer.body.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().and_then(|word| word.parse::<f64>().ok());
        assert!(value.is_some(), "{line}");
    }
}

fn others_may_not_call(t: &Test) {
    let node = Node::new(t);
    let denied = node.call(["ps"]).user(65534, 65534).output().code(5);
    assert!(denied.stderr.contains("root, or a member"), "{denied}");
    assert_eq!(exit_code(&node.http("GET", "/v1/node", "").expect(200)), None);
}
