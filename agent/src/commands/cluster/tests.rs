use std::collections::BTreeMap;
use std::time::Duration;

use clap::Parser;
use hafen_protocol::v1::{self, JobSpec, cluster_node::Presence, instance::Phase, job::Rollout};
use serde_json::json;

use super::publish::PublishArgs;
use super::wait::{Verdict, settled};
use super::{events, history, job, nodes, plan, quota, tasks, top};

fn read<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn job(more: serde_json::Value) -> v1::Job {
    let mut all = json!({ "name": "web", "version": "2", "kind": "replicas", "wanted": 3 });
    let serde_json::Value::Object(more) = more else { panic!("{more}") };
    all.as_object_mut().unwrap().extend(more);
    read(all)
}

fn verdict(job: v1::Job, instances: Vec<v1::Instance>) -> Verdict {
    settled(&v1::ClusterView { jobs: vec![job], instances, ..Default::default() }, "web", 2)
}

#[test]
fn nodes_are_lines() {
    let amounts = |cpu_milli, memory| {
        Some(v1::Amounts { cpu_milli: Some(cpu_milli), memory: Some(memory), ..Default::default() })
    };
    let mut node = v1::ClusterNode { name: "n1".to_owned(), instances: 2, ..Default::default() };
    node.capacity = Some(v1::Capacity {
        allocated: amounts(1500, 1 << 30),
        allocatable: amounts(4000, 8 << 30),
        ..Default::default()
    });
    node.software = "hafen 0.1.0\u{1b}[2J".to_owned();
    node.set_presence(Presence::Here);
    let wanted = ["n1", "here", "2", "1.5 / 4", "1.00 GiB / 8.00 GiB", "", "", "hafen 0.1.0 [2J"];
    assert_eq!(nodes::row(&node), wanted);
    let capacity = node.capacity.as_mut().unwrap();
    capacity.total = amounts(4000, 8 << 30);
    assert_eq!(nodes::row(&node)[5], "not counted");
    let capacity = node.capacity.as_mut().unwrap();
    (capacity.cpu_pressure, capacity.memory_pressure) = (Some(0.4), Some(34.6));
    node.pressure = vec![v1::Pressure { of: "memory".to_owned(), ..Default::default() }];
    let row = nodes::row(&node);
    assert_eq!((row[1].as_str(), row[5].as_str()), ("here (short of memory)", "memory 35%"));
    node.pressure.clear();
    node.set_presence(Presence::Unreachable);
    node.draining = true;
    assert_eq!(nodes::row(&node)[1], "unreachable (draining)");
    node.drain_overdue = true;
    assert_eq!(nodes::row(&node)[1], "unreachable (draining, overdue)");
}

#[test]
fn jobs_and_tasks_are_lines() {
    let mut web = job(json!({ "ready": 2, "runs": "img", "sentence": "no node has room" }));
    web.set_rollout(Rollout::Done);
    let wanted = ["web", "", "replicas", "2", "2/3", "not ready", "img", "no node has room"];
    assert_eq!(job::row(&web), wanted);
    let states = [
        (json!({ "ready": 3, "rollout": "ROLLOUT_DONE" }), "ready"),
        (json!({ "rollout": "ROLLOUT_UNDER_WAY" }), "under way"),
        (json!({ "rollout": "ROLLOUT_ROLLING_BACK" }), "going back"),
        (json!({ "rollout": "ROLLOUT_FAILED" }), "failed"),
        (json!({ "stopped": true, "ready": 3 }), "stopped"),
        (json!({ "kind": "batch", "finished": 3 }), "finished"),
        (json!({ "kind": "batch", "finished": 2, "failed": 1 }), "failed"),
        (json!({ "kind": "batch", "finished": 2 }), "running"),
    ];
    for (more, wanted) in states {
        assert_eq!(job::row(&job(more.clone()))[5], wanted, "{more}");
    }
    let one: v1::Instance = read(json!({
        "name": "a1f", "job": "web", "slot": "0", "node": "n1", "phase": "PHASE_STARTING", "failures": 2,
        "sentence": "exited with code 1", "ports": [{ "host": 4000, "container": 80 }]
    }));
    let why = "failed 2 times: exited with code 1";
    assert_eq!(tasks::row(&one), ["a1f", "web:0", "n1", "starting", "", "4000->80/tcp", why]);
    let waiting: v1::Instance =
        read(json!({ "job": "web", "slot": "1", "phase": "PHASE_WAITING", "sentence": "no room" }));
    assert_eq!(tasks::row(&waiting), ["-", "web:1", "-", "waiting", "", "", "no room"]);
}

#[test]
fn quotas_and_events_are_lines() {
    let one: v1::Quota = read(json!({
        "namespace": "shop", "most": { "cpuMilli": "2000", "pids": "9" }, "used": { "cpuMilli": "250" }
    }));
    assert_eq!(quota::row(&one), ["shop", "0.25 / 2", "0 B / -", "0 B / -", "0 / 9"]);
    let event: v1::ClusterEvent = read(json!({
        "sequence": "7", "node": "n1", "job": "web", "what": "task failed", "sentence": "exited\u{7} with 1",
        "time": "2026-11-23T00:00:00Z"
    }));
    let wanted = "2026-11-23T00:00:00.000Z 7 web n1 task failed: exited  with 1";
    assert_eq!(events::sentence(&event), wanted);
}

#[test]
fn a_job_is_settled_when_all_of_it_is_as_it_is_wanted() {
    let not = |text: &str| Verdict::Not(text.to_owned());
    let under_way = json!({
        "rollout": "ROLLOUT_UNDER_WAY", "ready": 1, "starting": 1, "waiting": 1, "sentence": "no room"
    });
    let far = "web: 1 of 3 ready, 1 starting, 1 waiting; no room";
    assert_eq!(verdict(job(under_way), vec![]), not(far));
    let old = json!({ "rollout": "ROLLOUT_UNDER_WAY", "ready": 3 });
    assert_eq!(verdict(job(old), vec![]), not("web: 3 of 3 ready"), "of the version before");
    let done = json!({ "rollout": "ROLLOUT_DONE", "ready": 3 });
    assert_eq!(verdict(job(done), vec![]), Verdict::Done);
    let batch =
        json!({ "kind": "batch", "rollout": "ROLLOUT_UNDER_WAY", "finished": 2, "failed": 0 });
    assert_eq!(verdict(job(batch), vec![]), not("web: 2 of 3 finished"));
    let batch = json!({ "kind": "batch", "finished": 3 });
    assert_eq!(verdict(job(batch), vec![]), Verdict::Done);
}

#[test]
fn nobody_waits_for_what_never_comes() {
    let failing: v1::Instance = read(json!({
        "name": "a2", "job": "web", "slot": "1", "node": "n2", "failures": 3, "sentence": "exited with code 1"
    }));
    let cases = [
        (json!({ "stopped": true }), vec![], "was stopped"),
        (json!({ "rollout": "ROLLOUT_FAILED" }), vec![], "version 2 has failed"),
        (json!({ "rollout": "ROLLOUT_ROLLING_BACK", "stable": "1" }), vec![], "goes back to 1"),
        (json!({ "rollout": "ROLLOUT_DONE", "version": "3", "ready": 3 }), vec![], "it is 3 now"),
        (
            json!({ "rollout": "ROLLOUT_UNDER_WAY", "ready": 2 }),
            vec![failing],
            "web:1 on n2 has failed 3 times: exited with code 1",
        ),
        (json!({ "kind": "batch", "finished": 2, "failed": 1 }), vec![], "1 of 3 runs have failed"),
    ];
    for (more, instances, part) in cases {
        match verdict(job(more.clone()), instances) {
            Verdict::Never(why) => assert!(why.contains(part), "{more}: {why}"),
            other => panic!("{more}: {other:?}"),
        }
    }
    let gone = settled(&v1::ClusterView::default(), "web", 2);
    assert_eq!(gone, Verdict::Never("web: is not there any more".to_owned()));
}

fn spec(more: serde_json::Value) -> JobSpec {
    let mut all = json!({ "name": "web", "replicas": 2 });
    let serde_json::Value::Object(more) = more else { panic!("{more}") };
    all.as_object_mut().unwrap().extend(more);
    read(all)
}

#[test]
fn a_plan_tells_what_changes_and_where_it_goes() {
    let old = spec(json!({ "task": { "command": ["a"], "secrets": [{ "content": "b2xk" }] } }));
    let new = spec(json!({
        "replicas": 3, "task": { "command": ["b", "c"], "secrets": [{ "content": "bmV3" }], "user": "7" }
    }));
    let made: v1::JobPlan = read(json!({
        "changes": ["replicas", "task.command", "task.secrets", "task.user", "task.stop_after_disconnect"],
        "version": "4",
        "placements": [
            { "slot": "0", "node": "n1", "preempts": ["a9"] }, { "slot": "1", "sentence": "memory: 2 of 3 nodes" }
        ],
        "stops": ["a1", "a2"]
    }));
    let wanted = r#"web: would be version 4; 1 of 2 would wait for a node
  replicas: 2 -> 3
  task.command: ["a"] -> ["b","c"]
  task.secrets
  task.user: - -> "7"
  task.stop_after_disconnect
TASK   NODE  WHY                   PUSHES OUT
web:0  n1                          a9
web:1  -     memory: 2 of 3 nodes
stops: a1 a2"#;
    assert_eq!(plan::told(&made, Some(&old), &new), wanted);
    let nothing: v1::JobPlan = read(json!({ "version": "3" }));
    assert_eq!(plan::told(&nothing, Some(&old), &old), "web: nothing changes");
    let first: v1::JobPlan = read(json!({ "version": "1", "isNew": true }));
    assert_eq!(plan::told(&first, None, &old), "web: is new");
}

#[test]
fn history_says_what_changed_in_each_version() {
    let mut web = job(json!({ "version": "3", "stable": "2" }));
    web.versions = [
        (2, json!({ "task": { "command": ["a"] } })),
        (3, json!({ "task": { "command": ["b"], "user": "7" }, "priority": 1 })),
    ]
    .map(|(version, more)| v1::JobVersion { version, spec: Some(spec(more)), instances: 1 })
    .into();
    let wanted =
        [["3", "1", "present", "priority, task.command, task.user"], ["2", "1", "stable", ""]];
    assert_eq!(history::rows(&web), wanted);
}

#[test]
fn shares_of_a_cpu_are_between_two_reports() {
    let view = |seconds: i64, cpu: u64| {
        let usage = v1::Usage {
            cpu: Some(Duration::from_millis(cpu).into()),
            memory: 1 << 20,
            ..Default::default()
        };
        let mut one =
            v1::Instance { name: "a1".to_owned(), usage: Some(usage), ..Default::default() };
        one.set_phase(Phase::Ready);
        let time = Some(pbjson_types::Timestamp { seconds, nanos: 0 });
        v1::ClusterView { time, instances: vec![one], ..Default::default() }
    };
    let mut seen = BTreeMap::new();
    let steps =
        [(0, 0, "-"), (2, 0, "-"), (10, 5_000, "50.0%"), (12, 5_000, "50.0%"), (40, 5_000, "0.0%")];
    for (seconds, cpu, wanted) in steps {
        let view = view(seconds, cpu);
        seen = top::look(&seen, &view);
        let row = top::row(&view.instances[0], seen.get("a1").copied());
        assert_eq!(row[3], wanted, "after {seconds} s");
    }
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    publish: PublishArgs,
}

fn published(line: &str) -> Result<JobSpec, hafen_spec::Problems> {
    let words = std::iter::once("publish").chain(line.split_whitespace());
    let variable = |name: &str| (name == "HOME").then(|| "/root".to_owned());
    Line::try_parse_from(words).unwrap().publish.job(&variable)
}

#[test]
fn words_are_a_job() {
    let wanted = spec(json!({
        "name": "web", "namespace": "shop", "replicas": 3, "priority": -1, "spread": { "attribute": "zone" },
        "task": {
            "root": { "image": "quay.io/team/web:2" }, "command": ["httpd", "-f"],
            "env": { "A": "b=c", "HOME": "/root" },
            "resources": {
                "request": { "cpuMilli": "500", "memory": "134217728" },
                "limit": { "cpuMilli": "500", "memory": "134217728" }
            },
            "network": {
                "mode": "MODE_CNI",
                "ports": [{ "host": 80, "container": 80 }, { "host": 0, "container": 53, "protocol": "udp" }]
            },
            "checks": [{
                "name": "port-80", "kind": "KIND_READINESS", "tcp": { "port": 80 }, "interval": "2s"
            }]
        },
        "constraints": [
            { "attribute": "zone", "in": { "values": ["a", "b"] } },
            { "attribute": "zone", "notIn": { "values": ["c"] } },
            { "attribute": "gpus", "atLeast": "2" }, { "attribute": "gpus", "atMost": "4" },
            { "attribute": "ssd", "present": true }, { "attribute": "old", "present": false }
        ]
    }));
    let line = "quay.io/team/web:2 --namespace shop --replicas 3 --priority -1 --spread zone --cpus .5 --memory 128M \
                --port 80 --port 0:53/udp --ready tcp --env A=b=c --env HOME --env NONE --constraint zone=a,b \
                --constraint zone!=c --constraint gpus>=2 --constraint gpus<=4 --constraint ssd --constraint !old \
                -- httpd -f";
    assert_eq!(published(line), Ok(wanted));
    let one = published("busybox@sha256:00 --one-per-node --name b").unwrap();
    assert_eq!(
        one,
        read(json!({
            "name": "b", "onePerNode": true, "task": { "root": { "image": "busybox@sha256:00" } }
        }))
    );
    assert_eq!(published("localhost:5000/a/b:1").unwrap().name, "b");
    let wrong =
        "i --cpus 0 --memory x --port 80:0 --port 99999 --env =1 --constraint =a --constraint a>=b";
    let told = published(wrong).unwrap_err();
    let fields: Vec<&str> = told.0.iter().map(|problem| problem.field.as_str()).collect();
    let constraint = "--constraint";
    assert_eq!(fields, ["--cpus", "--memory", "--port", "--port", "--env", constraint, constraint]);
}
