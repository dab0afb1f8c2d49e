//! `hafen up`: a cluster by one command.

use std::collections::BTreeSet;
use std::time::Duration;

use hafen_integration::person::ready;
use hafen_integration::{Case, Test, Up, Value, cases, json, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) fn trials() -> Vec<Case> {
    cases![
        one_node_goes_on_where_it_was(Root, Busybox),
        of_three_nodes_one_dies(Root, Busybox, Program("ip")),
    ]
}

fn web(t: &Test, replicas: u32) -> Value {
    let script = "trap 'exit 0' TERM; while :; do sleep 0.05; done";
    json!({ "name": "web", "replicas": replicas,
            "task": { "root": { "rootfs": t.bundle().rootfs() }, "kill": { "grace": "0.5s" },
                      "command": ["/bin/sh", "-c", script] } })
}

/// What `hafen WORDS` prints for the coordinator.
fn hafen(t: &Test, up: &Up, words: &[&str]) -> String {
    let host = format!("unix://{}", up.socket().display());
    t.hafen(words).env("HAFEN_COORDINATOR", host).output().ok().stdout
}

fn one_node_goes_on_where_it_was(t: &Test) {
    let mut up = Up::start(t, 1);
    up.submit(&web(t, 2));
    let before = up.ready("web", 2);
    let table = hafen(t, &up, &["nodes"]);
    assert_eq!(table.lines().count(), 2, "{table}");
    let nodes: Value =
        serde_json::from_str(&hafen(t, &up, &["nodes", "--format", "json"])).expect("JSON");
    assert_eq!(nodes[0]["presence"], "PRESENCE_HERE", "{nodes:#}");
    let pids = |up: &Up| -> BTreeSet<String> {
        let tasks = up.ask("", "GET", "/v1/tasks").expect(200);
        let all = tasks["tasks"].as_array().expect("tasks");
        all.iter().map(|task| format!("{} {}", task["id"], task["pid"])).collect()
    };
    let running = pids(&up);
    assert_eq!(running.len(), 2, "{running:?}");
    assert!(up.daemon.terminate().success(), "{}", up.daemon.said());
    up.daemon.begin();
    let again = wait_until(Duration::from_secs(20), || {
        let answer = up.try_http("GET", "/v1/cluster", &Value::Null)?;
        let view = answer.expect(200);
        (ready(&view, "web").len() == 2 && view["nodes"][0]["presence"] == "PRESENCE_HERE")
            .then_some(view)
    });
    let again = again.unwrap_or_else(|| panic!("it does not come back: {}", up.daemon.said()));
    let names = |all: &[Value]| -> BTreeSet<String> {
        all.iter().map(|one| one["name"].to_string()).collect()
    };
    assert_eq!(names(&ready(&again, "web")), names(&before));
    assert_eq!(pids(&up), running, "the containers ran on");
    assert!(up.end().success(), "{}", up.daemon.said());
}

fn of_three_nodes_one_dies(t: &Test) {
    let mut up = Up::start(t, 3);
    let page = up.page();
    assert!(!page.ends_with(":0"), "{page}");
    // As the coordinator itself says it.
    assert!(up.daemon.said().contains(&format!("address={page}\n")), "{}", up.daemon.said());
    up.submit(&web(t, 6));
    let nodes = |view: &Value| -> BTreeSet<String> {
        ready(view, "web").iter().map(|one| one["node"].to_string()).collect()
    };
    let before = up.ready("web", 6);
    let first = before[0]["node"].as_str().expect("a name").to_owned();
    kill(Pid::from_raw(up.agent(&first)), Signal::SIGKILL).expect("it runs");
    let view = up.wait("all run elsewhere", |view| {
        ready(view, "web").len() == 6 && !nodes(view).contains(&format!("{first:?}"))
    });
    let gone = view["nodes"].as_array().into_iter().flatten().find(|node| node["name"] == first);
    assert_eq!(gone.expect("it is known")["presence"], "PRESENCE_UNREACHABLE");
    assert!(up.daemon.said().contains(&format!("{first} has ended")), "{}", up.daemon.said());
    let table = hafen(t, &up, &["nodes"]);
    assert_eq!(table.lines().count(), 4, "{table}");
    // What runs goes as well, also that of the one that is dead.
    let status = up.daemon.terminate();
    assert!(status.success(), "{status}: {}", up.daemon.said());
    for folder in ["state", "run"] {
        assert!(!up.folder().join(folder).exists(), "{folder} was left");
    }
}
