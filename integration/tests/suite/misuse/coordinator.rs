//! Of nodes and people against the coordinator.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hafen_integration::cluster::Machine;
use hafen_integration::{Case, Test, Value, cases, json, wait_until};
use hafen_protocol::v1;
use hafen_protocol::v1::from_agent::What as Up;
use hafen_protocol::v1::refused::Kind;
use tonic::Code;

use super::stream::{Node, hello, refused, runtime};
use super::{Peace, has_not_grown, memory};

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_name_has_one_owner(Root, Busybox, Program("ip")),
        what_is_too_large_or_too_deep_is_named(Root, Busybox, Program("ip")),
        one_that_floods_costs_little(Root, Busybox, Program("ip")),
        who_does_not_read_is_let_go(Root, Busybox, Program("ip")),
    ]
}

fn a_name_has_one_owner(t: &Test) {
    let peace = Peace::new(t);
    let view = peace.lab.cluster.view();
    let known = &view["nodes"][0];
    let text = |name: &str| known[name].as_str().expect("text").to_owned();
    let own = v1::Hello {
        instance: text("instance"),
        boot_id: text("bootId"),
        incarnation: text("incarnation").parse().expect("a number"),
        ..hello("m0")
    };
    // Another disk; a Hello that is said again; one of an earlier start; one of a node that knows a later master.
    let other = v1::Hello { instance: "another".into(), incarnation: u64::MAX, ..own.clone() };
    let earlier = v1::Hello { incarnation: 0, connection: u64::MAX, ..own.clone() };
    let later = v1::Hello { connection: u64::MAX, epoch_seen: u64::MAX, ..own.clone() };
    let wanted =
        [(other, Kind::Taken), (own, Kind::Stale), (earlier, Kind::Stale), (later, Kind::Epoch)];
    runtime().block_on(async {
        for (hello, kind) in wanted {
            let (_, told) = Node::dial(&peace.socket(), hello).await.expect("an answer");
            let (is, sentence) = refused(&told);
            assert!(is == kind && !sentence.is_empty(), "{is:?} {sentence}");
        }
    });
    peace.holds();
    a_certificate_is_for_one_name(t, &peace);
    peace.holds();
}

/// One that has joined, and thieves with its certificate.
fn a_certificate_is_for_one_name(t: &Test, peace: &Peace<'_>) {
    let cluster = &peace.lab.cluster;
    let token = cluster.http("POST", "/v1/tokens", &json!({ "uses": 1 })).expect(200);
    let said = |field: &str| token[field].as_str().expect("text").to_owned();
    let secure = |number, name: &str| {
        let Machine { agent, space, .. } = cluster.connect(t, number);
        let agent = agent.variable("HAFEN_MASTER_URLS", cluster.secure_url());
        (agent.variable("HAFEN_NAME", name), space)
    };
    let (owner, _space) = secure(1, "owner");
    let owner = owner.variable("HAFEN_MASTER_TOKEN", said("token"));
    let mut owner = owner.variable("HAFEN_MASTER_AUTHORITY", said("authority"));
    owner.restart();
    cluster.hears(2);
    let identity = owner.state().join("agent/link/identity.pem").display().to_string();
    let authority = cluster.coordinators[0].authority().display().to_string();
    for (number, name, word) in [(2, "owner", "KIND_TAKEN"), (3, "m0", "KIND_IDENTITY")] {
        let (thief, _space) = secure(number, name);
        let thief = thief.variable("HAFEN_MASTER_CERT", &identity);
        let thief = thief.variable("HAFEN_MASTER_KEY", &identity);
        let mut thief = thief.variable("HAFEN_MASTER_CA", &authority);
        thief.restart();
        let told =
            wait_until(Duration::from_secs(20), || thief.said().contains(word).then_some(()));
        assert!(told.is_some(), "not {word}: {}", thief.said());
        cluster.hears(2);
    }
    let said = cluster.said();
    assert!(said.contains("the certificate is not for m0: node owner at"), "{said}");
}

fn nested(piece: &str, times: usize) -> String {
    piece.repeat(times)
}

/// Whatever it is, the answer names what is wrong with it.
fn what_is_too_large_or_too_deep_is_named(t: &Test) {
    let peace = Peace::new(t);
    let agent = &peace.lab.cluster.machines[0].agent;
    let (coordinator, node) = (peace.memory(), memory(agent.pid()));
    let job = |more: &str| {
        format!(
            r#"{{"job": {{"name": "a", "task": {{"root": {{"host": true}}, "command": ["x"]}}, {more}}}}}"#
        )
    };
    let many: Vec<Value> =
        (0..70).map(|n| json!({ "attribute": n.to_string(), "present": true })).collect();
    let bodies = [
        (nested("[", 200_000), 400, "body"),
        (nested(r#"{"job":"#, 100_000), 400, "body"),
        (" ".repeat(5 << 20), 429, "4194304 bytes are the most"),
        (format!(r#"{{"job": {{"name": "{}"}}}}"#, "x".repeat(1 << 20)), 400, "name"),
        (r#"{"job": {"name": "../../etc"}}"#.to_owned(), 400, "name: "),
        (r#"{"job": {"name": "a\u0000b"}}"#.to_owned(), 400, "name: "),
        (r#"{"job": {"name": "\ud800"}}"#.to_owned(), 400, "body"),
        (job(r#""name": "b""#), 400, "name"),
        (job(r#""nonsense": 1"#), 400, "nonsense"),
        (job(r#""replicas": 4294967296"#), 400, "body"),
        (job(r#""replicas": -1"#), 400, "body"),
        (job(r#""replicas": 1e999"#), 400, "body"),
        (job(r#""replicas": 4294967295"#), 400, "replicas: "),
        (job(r#""batch": {"runs": 4294967295}"#), 400, "batch.runs: "),
        (job(&format!(r#""constraints": {}"#, Value::from(many))), 400, "constraints: "),
        (job(r#""grace": "-1s""#), 400, "grace"),
    ];
    for (body, status, word) in &bodies {
        is_named(&peace.lab.cluster.raw("POST", "/v1/jobs", body), body, *status, word);
    }
    let scale = json!({ "replicas": u32::MAX });
    let answer = peace.lab.cluster.http("POST", "/v1/jobs/web/scale", &scale);
    is_named(&answer, "scale", 400, "replicas: ");
    let bodies = [
        (nested("[", 200_000), 400, "body"),
        (nested(r#"{"root":"#, 100_000), 400, "body"),
        (" ".repeat(5 << 20), 429, "4194304 bytes are the most"),
        (format!(r#"{{"id": "{}"}}"#, "x".repeat(1 << 20)), 400, "id"),
        (r#"{"id": "../../etc"}"#.to_owned(), 400, "id"),
    ];
    for (body, status, word) in &bodies {
        is_named(&agent.http("POST", "/v1/tasks", body), body, *status, word);
    }
    runtime().block_on(async {
        let sentence = "x".repeat((4 << 20) + 1);
        let mut large = Node::join(&peace.socket(), "large").await;
        large.say(Up::Leaving(v1::Leaving { sentence: sentence.clone() })).await;
        let end = large.last().await.expect_err("it is ended");
        assert!(
            end.code() == Code::ResourceExhausted && end.message().contains("4194304"),
            "{end:?}"
        );
        let hello = v1::Hello { software: sentence, ..hello("first") };
        let end = Node::dial(&peace.socket(), hello).await.err().expect("it is refused");
        assert!(
            end.code() == Code::ResourceExhausted && end.message().contains("4194304"),
            "{end:?}"
        );
    });
    has_not_grown("what is too large", coordinator, peace.memory(), 64);
    has_not_grown("what is too large", node, memory(agent.pid()), 64);
    peace.holds();
}

#[track_caller]
fn is_named(answer: &hafen_integration::Answer, body: &str, status: u16, word: &str) {
    let body = body.get(..80).unwrap_or(body);
    let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
    assert!(answer.status == status && message.contains(word), "{body}: {answer:?}");
    assert!(message.len() <= 4096, "{body}: the answer is as long as what was wrong");
}

/// As fast as it can, for so long; whoever is sent away comes back.
async fn flood(peace: &Peace<'_>, name: &str, what: impl Fn(u64) -> Up) -> u64 {
    let end = Instant::now() + Duration::from_secs(1);
    let (mut sent, mut connection) = (0, 0);
    while Instant::now() < end {
        connection += 1;
        let hello = v1::Hello { connection, ..hello(name) };
        let Ok((mut node, _)) = Node::dial(&peace.socket(), hello).await else { continue };
        while Instant::now() < end && node.say(what(sent)).await {
            sent += 1;
        }
    }
    sent
}

fn one_that_floods_costs_little(t: &Test) {
    let peace = Peace::new(t);
    let runtime = runtime();
    let before = peace.memory();
    // Of tasks that nobody knows, so that each has an answer.
    let update = |n| {
        let status = v1::TaskStatus { state: v1::State::Running.into(), ..Default::default() };
        let task = format!("a{n:x}");
        Up::Update(v1::TaskUpdate { task, sequence: 1, status: Some(status), epoch: 0 })
    };
    let report = |n| {
        let usage = |i| v1::TaskUsage { id: format!("a{n:x}{i}"), ..Default::default() };
        let tasks = (0..20_000).map(usage).collect();
        Up::Report(v1::NodeReport { tasks, ..Default::default() })
    };
    let leaving = |_| Up::Leaving(v1::Leaving { sentence: "x".repeat(64 << 10) });
    let wish = |n| Up::Drain(v1::DrainWish { on: n % 2 == 0, ..Default::default() });
    let result =
        |n| Up::Result(v1::CommandResult { command: format!("{n}"), ..Default::default() });
    let kinds: [(&str, &(dyn Fn(u64) -> Up + Sync)); 5] = [
        ("updates", &update),
        ("reports", &report),
        ("leaving", &leaving),
        ("wishes", &wish),
        ("results", &result),
    ];
    for (name, what) in kinds {
        let sent = std::thread::scope(|scope| {
            let flooding = scope.spawn(|| runtime.block_on(flood(&peace, name, what)));
            while !flooding.is_finished() {
                peace.is_served();
                std::thread::sleep(Duration::from_millis(50));
            }
            flooding.join().expect("no panic")
        });
        eprintln!("{sent} {name}, {} MiB", peace.memory());
        assert!(sent > 0, "{name}");
        has_not_grown(name, before, peace.memory(), 160);
    }
    let log = fs::metadata(peace.lab.cluster.coordinators[0].log()).expect("a log").len();
    assert!(log < 16 << 20, "the log has {log} bytes");
    peace.holds();
}

/// Nodes on their streams, and people who follow.
fn who_does_not_read_is_let_go(t: &Test) {
    let peace = Peace::new(t);
    let before = peace.memory();
    let followers: Vec<UnixStream> = (0..50)
        .map(|_| {
            let mut stream = UnixStream::connect(peace.socket()).expect("connect");
            let request = "GET /v1/events?follow&since=1 HTTP/1.1\r\nHost: localhost\r\n\r\n";
            stream.write_all(request.as_bytes()).expect("written");
            stream
        })
        .collect();
    runtime().block_on(async {
        let mut deaf = Node::join(&peace.socket(), "deaf").await;
        let mut sent = 0;
        while deaf.say(Up::Ping(v1::Ping {})).await {
            sent += 1;
            assert!(sent < 2_000_000, "it is heard for ever");
        }
    });
    let said = peace.lab.cluster.said();
    assert!(said.contains("the node does not read"), "{said}");
    // Each is told to all who follow.
    for n in 0..300 {
        let on = json!({ "on": n % 2 == 0 });
        let _ = peace.lab.cluster.http("POST", "/v1/nodes/deaf/drain", &on).expect(200);
    }
    has_not_grown("those who do not read", before, peace.memory(), 96);
    drop(followers);
    peace.holds();
}
