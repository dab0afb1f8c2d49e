//! Tasks that begin and end together.

use std::fs;

use hafen_integration::{Case, Test, Value, cases, cgroup, json};

use super::{Node, ends_with, sentence};

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_pod_shares_network_and_ipc(Root, Busybox),
        limits_of_each_and_of_all(Root, Busybox, Limit("memory")),
        the_limit_of_all_is_explained(Root, Busybox, Limit("memory")),
        tasks_of_a_pod_end_together(Root, Busybox),
        a_pod_outlives_the_agent(Root, Busybox),
        a_pod_is_taken_on_whole_or_not_at_all(Root, Busybox),
    ]
}

fn run(node: &Node<'_>, pod: &Value) -> Value {
    node.http("POST", "/v1/pods", &pod.to_string()).expect(201)
}

fn namespace(task: &Value, kind: &str) -> String {
    let path = format!("/proc/{}/ns/{kind}", task["pid"]);
    fs::read_link(&path).unwrap_or_else(|e| panic!("{path}: {e}")).display().to_string()
}

fn pair(node: &Node<'_>) -> Value {
    json!({ "id": "p", "tasks": [node.sh("a", &ends_with(2)), node.sh("b", &ends_with(3))] })
}

fn a_pod_shares_network_and_ipc(t: &Test) {
    let node = Node::new(t);
    let path = t.dir().join("pod.json");
    fs::write(&path, pair(&node).to_string()).expect("written");
    node.hafen(["pod", "run", path.to_str().expect("text")]).ok();
    let (a, b) = (member(&node, "a"), member(&node, "b"));
    for kind in ["net", "ipc"] {
        assert_eq!(namespace(&a, kind), namespace(&b, kind), "{kind}");
    }
    for kind in ["pid", "mnt", "cgroup"] {
        assert_ne!(namespace(&a, kind), namespace(&b, kind), "{kind}");
    }
    let own = fs::read_link("/proc/self/ns/net").expect("a link").display().to_string();
    assert_ne!(namespace(&a, "net"), own);
    let list = node.hafen(["pod", "ls"]).ok().stdout;
    assert!(list.contains("p ") && list.contains("running"), "{list}");
    let pod = node.json(["pod", "inspect", "p"]);
    assert_eq!(pod["state"], "STATE_RUNNING", "{pod:#}");
    node.hafen(["pod", "rm", "p"]).failed_with(4, ["hafen pod stop p"]);
    node.hafen(["pod", "stop", "p"]).ok();
    let ids: Vec<String> = pod["tasks"]
        .as_array()
        .expect("tasks")
        .iter()
        .map(|t| t["id"].as_str().expect("an id").to_owned())
        .collect();
    for id in &ids {
        let task = node.wait(id);
        assert_eq!(task["state"], "STATE_KILLED", "{task:#}");
    }
    node.hafen(["pod", "rm", "p"]).ok();
    for id in &ids {
        assert_eq!(node.http("GET", &format!("/v1/tasks/{id}"), "").status, 404);
    }
    node.hafen(["pod", "inspect", "p"]).code(3);
}

/// A task of the pod by its own name, whatever the pod has made of it, once it runs.
fn member(node: &Node<'_>, name: &str) -> Value {
    let pod = node.http("GET", "/v1/pods/p", "").expect(200);
    let tasks = pod["tasks"].as_array().expect("tasks");
    let ids = tasks.iter().filter_map(|task| task["id"].as_str());
    let id = ids
        .into_iter()
        .find(|id| id.ends_with(name))
        .unwrap_or_else(|| panic!("no {name}: {pod:#}"));
    node.wait_state(id, "STATE_RUNNING")
}

fn limits_of_each_and_of_all(t: &Test) {
    let node = Node::new(t);
    let mut pod = pair(&node);
    pod["limit"] = json!({ "memory": 96 << 20 });
    pod["tasks"][0]["resources"] = json!({ "limit": { "memory": 32 << 20 } });
    run(&node, &pod);
    let (a, b) = (member(&node, "a"), member(&node, "b"));
    let file = if cgroup::v1("memory").is_some() { "memory.limit_in_bytes" } else { "memory.max" };
    let folder = |task: &Value| {
        cgroup::folder(
            i32::try_from(task["pid"].as_i64().expect("a pid")).expect("it fits"),
            "memory",
        )
    };
    assert_eq!(cgroup::value(&folder(&a), file), (32 << 20).to_string());
    let above = |task: &Value| folder(task).parent().expect("a folder").to_owned();
    assert_eq!(above(&a), above(&b));
    assert_eq!(
        cgroup::value(&above(&a), file),
        (96 << 20).to_string(),
        "the limit of all together"
    );
}

/// It has none of its own, or one that is larger.
fn the_limit_of_all_is_explained(t: &Test) {
    let node = Node::new(t);
    for own in [None, Some(256 << 20)] {
        let mut greedy = node.task_of("a", &["/inside", "eat", "134217728", "60"]);
        if let Some(own) = own {
            greedy["resources"] = json!({ "limit": { "memory": own } });
        }
        let limit = json!({ "memory": 48 << 20, "swap": 0 });
        run(&node, &json!({ "id": "p", "tasks": [greedy], "limit": limit }));
        let task = node.wait("p.a");
        assert_eq!(task["reason"]["exit"]["signal"], 9, "{task:#}");
        let said = sentence(&task);
        assert!(
            said.starts_with("killed: memory limit 48 MiB of its pod reached, peak "),
            "{said}"
        );
        assert!(said.contains("largest process \"inside\""), "{said}");
        let events = node.hafen(["events", "--since", "1", "--no-follow"]).ok().stdout;
        let told = "out of memory: memory limit 48 MiB of its pod reached";
        assert!(own.is_some() || events.contains(told), "{events}");
        node.hafen(["pod", "rm", "p"]).ok();
    }
}

fn tasks_of_a_pod_end_together(t: &Test) {
    let node = Node::new(t);
    let mut pod = pair(&node);
    let (failing, file) =
        node.with_file(node.sh("a", "until grep -q go /out; do sleep 0.02; done; exit 7"), "go");
    pod["tasks"][0] = failing;
    run(&node, &pod);
    let (a, b) = (member(&node, "a"), member(&node, "b"));
    fs::write(file, "go").expect("written");
    let id = |task: &Value| task["id"].as_str().expect("an id").to_owned();
    assert_eq!(node.wait(&id(&a))["reason"]["exit"]["code"], 7);
    let other = node.wait(&id(&b));
    assert_eq!(other["state"], "STATE_KILLED", "{other:#}");
    assert!(
        sentence(&other).starts_with(&format!(
            "stopped: {} of its group has ended: exited with code 3",
            id(&a)
        )),
        "{other:#}"
    );
}

fn a_pod_outlives_the_agent(t: &Test) {
    let mut node = Node::new(t);
    run(&node, &pair(&node));
    let (a, b) = (member(&node, "a"), member(&node, "b"));
    node.kill9();
    node.restart();
    let again = (member(&node, "a"), member(&node, "b"));
    assert_eq!((&a["pid"], &b["pid"]), (&again.0["pid"], &again.1["pid"]));
    assert_eq!(again.0["pod"], "p");
    assert_eq!(namespace(&again.0, "net"), namespace(&again.1, "net"));
    node.hafen(["pod", "rm", "--force", "p"]).ok();
}

fn a_pod_is_taken_on_whole_or_not_at_all(t: &Test) {
    let node = Node::new(t);
    let mut pod = pair(&node);
    pod["tasks"][1]["kill"] = json!({ "signal": "SIGNOT" });
    let answer = node.http("POST", "/v1/pods", &pod.to_string());
    assert!(answer.status == 400 && answer.body.contains("kill.signal"), "{answer:?}");
    let listed = node.http("GET", "/v1/tasks?all", "").expect(200);
    assert!(listed["tasks"].as_array().is_none_or(Vec::is_empty), "{listed:#}");
    assert_eq!(node.http("GET", "/v1/pods/p", "").status, 404);
    let mut twice = pair(&node);
    twice["tasks"][1]["id"] = json!("a");
    assert_eq!(node.http("POST", "/v1/pods", &twice.to_string()).status, 400);
    run(&node, &pair(&node));
    assert_eq!(node.http("POST", "/v1/pods", &pair(&node).to_string()).status, 409);
}
