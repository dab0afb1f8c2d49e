//! Definitions that nobody should send, by both ways in: each is refused with the name of its field, and leaves nothing.

use std::fs;
use std::path::Path;

use hafen_integration::{Case, Test, Value, cases, json, with};

use super::roots::{serve, sha256};
use super::{Node, sentence};
use crate::images::made;

pub(super) fn trials() -> Vec<Case> {
    cases![
        definitions_are_refused_by_their_field(Root, Busybox),
        all_problems_are_told_at_once(Root, Busybox),
        options_are_refused_by_their_name(Root, Busybox),
        pods_are_refused_by_their_field(Root, Busybox),
        mounts_stay_in_their_root(Root, Busybox),
        artifacts_are_bounded(Root, Busybox),
    ]
}

const NUL: &str = "a\0b";
/// Longer than the kernel takes in one word.
fn long() -> String {
    "x".repeat(200_000)
}

/// What is changed in a task that is well, and the field that must be named.
type Changes = Vec<(Value, &'static str)>;

const TOO_MUCH: u64 = u64::MAX;

fn definitions() -> Changes {
    [names_and_words(), amounts(), places(), policies(), rights()].concat()
}

fn names_and_words() -> Changes {
    let many: serde_json::Map<String, Value> =
        (0..40).map(|n| (format!("N{n}"), json!("x".repeat(100_000)))).collect();
    vec![
        (json!({ "id": "a\u{1b}[2Jb" }), "id"),
        (json!({ "id": "a\nb" }), "id"),
        (json!({ "id": "../b" }), "id"),
        (json!({ "id": "x".repeat(64) }), "id"),
        (json!({ "id": 5 }), "id"),
        (json!({ "env": { "A": long() } }), "env"),
        (json!({ "env": many }), "env"),
        (json!({ "env": { "A": NUL } }), "env"),
        (json!({ "env": { "A\nB": "x" } }), "env"),
        (json!({ "env": { "A=B": "x" } }), "env"),
        (json!({ "env": { "": "x" } }), "env"),
        (json!({ "command": [long()] }), "command"),
        (json!({ "command": ["sh", NUL] }), "command"),
        (json!({ "command": vec!["x".repeat(100_000); 30] }), "command"),
        (json!({ "cwd": NUL }), "cwd"),
        (json!({ "cwd": "relative" }), "cwd"),
        (json!({ "user": "a\nb" }), "user"),
        (json!({ "labels": { "a\u{7}": "x" } }), "labels"),
        (json!({ "root": { "rootfs": "../etc" } }), "root.rootfs"),
        (json!({ "root": { "host": true, "upper": "tmpfs:-1" } }), "root.upper"),
        (json!({ "root": { "host": true, "upper": "floppy" } }), "root.upper"),
        (json!({ "root": { "image": "a b" } }), "root.image"),
    ]
}

fn amounts() -> Changes {
    let limit = |field: &str, amount: Value| json!({ "resources": { "limit": { field: amount } } });
    let request =
        |field: &str, amount: Value| json!({ "resources": { "request": { field: amount } } });
    vec![
        (limit("memory", json!(-1)), "resources.limit.memory"),
        (limit("memory", json!("-1")), "resources.limit.memory"),
        (limit("memory", json!("99999999999999999999")), "resources.limit.memory"),
        (limit("memory", json!(TOO_MUCH)), "resources.limit.memory"),
        (limit("memory", json!(0)), "resources.limit.memory"),
        (limit("memory", json!(1.5)), "resources.limit.memory"),
        (limit("swap", json!(1)), "resources.limit.swap"),
        (limit("pids", json!(TOO_MUCH)), "resources.limit.pids"),
        (limit("pids", json!(0)), "resources.limit.pids"),
        (limit("disk", json!(TOO_MUCH)), "resources.limit.disk"),
        (limit("cpuMilli", json!(TOO_MUCH)), "resources.limit.cpuMilli"),
        (limit("cpuMilli", json!(1)), "resources.limit.cpuMilli"),
        (request("memory", json!(TOO_MUCH)), "resources.request.memory"),
        (request("cpuMilli", json!(TOO_MUCH)), "resources.request.cpuMilli"),
        (
            json!({ "resources": { "io": [{ "device": "/dev/null", "readBps": 1 }] } }),
            "resources.io",
        ),
        (
            json!({ "resources": { "io": [{ "device": "/etc/passwd", "readBps": 1 }] } }),
            "resources.io",
        ),
    ]
}

fn places() -> Changes {
    let mount = |source: &str, what: Value, to: &str| json!({ "mounts": [{ source: what, "destination": to }] });
    let port = |host: Value| json!({ "host": host, "container": 80 });
    let ports = |ports: Value| json!({ "network": { "mode": "MODE_CNI", "ports": ports } });
    let artifact = |field: &str, value: Value| {
        let mut artifact = json!({ "source": "file:///etc/hostname", "destination": "/a" });
        artifact[field] = value;
        json!({ "artifacts": [artifact] })
    };
    vec![
        (mount("host", json!("/etc"), "relative"), "mounts[0].destination"),
        (mount("host", json!("/etc"), "/a/../../etc"), "mounts[0].destination"),
        (mount("host", json!("/etc"), "/"), "mounts[0].destination"),
        (mount("host", json!("/etc"), "/a\nb"), "mounts[0].destination"),
        (mount("host", json!("etc"), "/a"), "mounts[0].host"),
        (mount("host", json!(NUL), "/a"), "mounts[0]"),
        (mount("host", json!("/etc:/b"), "/a"), "mounts[0]"),
        (mount("volume", json!("../../etc"), "/a"), "mounts[0].volume"),
        (mount("volume", json!(""), "/a"), "mounts[0].volume"),
        (mount("tmpfs", json!(-1), "/a"), "mounts[0].tmpfs"),
        (mount("tmpfs", json!(TOO_MUCH), "/a"), "mounts[0].tmpfs"),
        (json!({ "mounts": [{ "destination": "/a" }] }), "mounts[0]"),
        (
            json!({ "mounts": [{ "host": "/etc", "destination": "/a", "options": ["ro,suid"] }] }),
            "mounts[0]",
        ),
        (ports(json!([port(json!(80)), port(json!(80))])), "network.ports[1].host"),
        (ports(json!([port(json!(70_000))])), "network.ports[0].host"),
        (ports(json!([port(json!(-1))])), "network.ports[0].host"),
        (ports(json!([{ "host": 1, "container": 0 }])), "network.ports[0].container"),
        (
            json!({ "network": { "mode": "MODE_NONE", "ports": [port(json!(80))] } }),
            "network.ports",
        ),
        (
            json!({ "network": { "mode": "MODE_HOST", "hosts": { "a\nb": "1.2.3.4" } } }),
            "network.hosts",
        ),
        (
            json!({ "network": { "mode": "MODE_HOST", "dns": ["1.2.3.4\noptions x"] } }),
            "network.dns[0]",
        ),
        (json!({ "network": { "mode": "MODE_HOST", "hostname": "a b" } }), "network.hostname"),
        (
            json!({ "secrets": [{ "destination": "/a/../../b", "content": "" }] }),
            "secrets[0].destination",
        ),
        (
            json!({ "secrets": [{ "destination": "/a", "content": "", "mode": 0o4755 }] }),
            "secrets[0].mode",
        ),
        (
            json!({ "secrets": [{ "destination": "/a" }, { "destination": "/a" }] }),
            "secrets[1].destination",
        ),
        (artifact("source", json!("gopher://a/b")), "artifacts[0].source"),
        (artifact("source", json!("http://a/b")), "artifacts[0].sha256"),
        (artifact("sha256", json!("00")), "artifacts[0].sha256"),
        (artifact("destination", json!("/../b")), "artifacts[0].destination"),
        (artifact("maxBytes", json!(-1)), "artifacts[0].maxBytes"),
    ]
}

fn policies() -> Changes {
    let check = |field: &str, value: Value| {
        let mut check =
            json!({ "name": "c", "kind": "KIND_HEALTH", "command": { "args": ["true"] } });
        check[field] = value;
        json!({ "checks": [check] })
    };
    vec![
        (check("name", json!("a\u{1b}[2J")), "checks[0].name"),
        (check("interval", json!("0s")), "checks[0].interval"),
        (check("interval", json!("-1s")), "checks[0].interval"),
        (check("initialDelay", json!("9000000000s")), "checks[0].initial"),
        (check("failures", json!(-1)), "checks[0].failures"),
        (json!({ "maxRunTime": "-1s" }), "maxRunTime"),
        (json!({ "maxRunTime": "9223372036854775807s" }), "maxRunTime"),
        (json!({ "kill": { "grace": "-0.5s" } }), "kill.grace"),
        (json!({ "kill": { "signal": "SIGNOT" } }), "kill.signal"),
        (json!({ "restart": { "when": "WHEN_ALWAYS", "backOff": "-1s" } }), "restart.backOff"),
        (
            json!({ "restart": { "when": "WHEN_ALWAYS", "backOff": "2s", "backOffMost": "1s" } }),
            "restart.backOffMost",
        ),
        (json!({ "restart": { "when": "WHEN_SOMETIMES" } }), "restart.when"),
        (json!({ "restart": { "most": -1 } }), "restart.most"),
        (json!({ "log": { "maxBytes": 1 } }), "log.maxBytes"),
        (json!({ "log": { "maxBytes": TOO_MUCH } }), "log.maxBytes"),
        (json!({ "log": { "maxFiles": 1_000_000 } }), "log.maxFiles"),
        (json!({ "nonsense": 1 }), "nonsense"),
    ]
}

fn rights() -> Changes {
    let capabilities = |add: Value, drop: Value| json!({ "security": { "capabilities": { "add": add, "drop": drop } } });
    let calls = |kind: &str, value: Value| json!({ "security": { "seccomp": { kind: value } } });
    let device = |field: &str, value: &str| {
        let mut device = json!({ "path": "/dev/null" });
        device[field] = json!(value);
        json!({ "security": { "devices": [device] } })
    };
    let rule = json!({ "names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } });
    let conditional = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule] }).to_string();
    let all = json!({ "defaultAction": "SCMP_ACT_ALLOW" }).to_string();
    let mut bounded = calls("profile", json!(all));
    bounded["resources"] = json!({ "limit": { "disk": "1048576" } });
    vec![
        (capabilities(json!(["KILL", "NOT"]), json!([])), "security.capabilities.add[1]"),
        (capabilities(json!([]), json!(["CAP_CAP_KILL"])), "security.capabilities.drop[0]"),
        (capabilities(json!([""]), json!([])), "security.capabilities.add[0]"),
        (capabilities(json!(["\u{1b}[2J"]), json!([])), "security.capabilities.add[0]"),
        (
            capabilities(json!(["KILL"]), json!(["cap_kill"])),
            "security.capabilities.drop: CAP_KILL",
        ),
        (capabilities(json!(["ALL"]), json!(["ALL"])), "security.capabilities.drop: ALL"),
        (capabilities(json!("KILL"), json!([])), "security.capabilities.add"),
        (calls("unconfined", json!(false)), "security.seccomp.unconfined"),
        (calls("profile", json!("{")), "security.seccomp.profile: not JSON"),
        (calls("profile", json!("{}")), "security.seccomp.profile: "),
        (calls("profile", json!(conditional)), "security.seccomp.profile: syscalls[0].includes"),
        (
            calls("profile", json!(format!("{all}{}", " ".repeat(200_000)))),
            "security.seccomp.profile",
        ),
        (bounded, "security.seccomp.profile"),
        (device("path", "dev/null"), "security.devices[0].path"),
        (device("path", "/dev/../etc/passwd"), "security.devices[0].path"),
        (device("destination", "relative"), "security.devices[0].destination"),
        (device("destination", "/dev/a:rwm"), "security.devices[0].destination"),
        (device("access", "rx"), "security.devices[0].access"),
        (json!({ "security": { "privileged": true } }), "privileged"),
    ]
}

fn changed(node: &Node<'_>, change: &Value) -> Value {
    with(node.sh("a", "exit 0"), change)
}

#[track_caller]
fn nothing_was_taken_on(node: &Node<'_>) {
    let listed = node.http("GET", "/v1/tasks?all", "").expect(200);
    assert!(listed["tasks"].as_array().is_none_or(Vec::is_empty), "{listed:#}");
    let entries = fs::read_dir(node.state().join("agent/tasks")).expect("read");
    assert_eq!(entries.count(), 0);
}

/// All that is wrong with the answers, and not the first only.
fn wrong(all: &[String]) {
    assert!(all.is_empty(), "{}", all.join("\n"));
}

fn definitions_are_refused_by_their_field(t: &Test) {
    let node = Node::new(t);
    let mut faults = Vec::new();
    for (change, field) in definitions() {
        let answer = node.http("POST", "/v1/tasks", &changed(&node, &change).to_string());
        let said: String = answer.body.chars().take(400).collect();
        if answer.status != 400 || !answer.body.contains(field) {
            let change: String = change.to_string().chars().take(100).collect();
            faults.push(format!("{field}: {} to {change}: {said}", answer.status));
        }
        if said.contains('\u{1b}') || said.contains('\n') {
            faults.push(format!("{field}: control characters are told as they are: {said:?}"));
        }
    }
    wrong(&faults);
    nothing_was_taken_on(&node);
    let large = json!({ "labels": { "a": "x".repeat(5 << 20) } });
    // It does not read what is too much, and so may not be heard either.
    let answer = node.try_http("POST", "/v1/tasks", &changed(&node, &large).to_string());
    assert!(answer.as_ref().is_none_or(|answer| answer.status == 429), "{answer:?}");
    nothing_was_taken_on(&node);
    assert_eq!(node.http("GET", "/healthz", "").status, 200);
}

fn all_problems_are_told_at_once(t: &Test) {
    let node = Node::new(t);
    let mut spec = json!({ "root": { "host": true }, "command": ["true"] });
    let fields = [
        "env",
        "cwd",
        "resources.limit.pids",
        "mounts[0].volume",
        "network.ports[1].host",
        "artifacts[0].source",
        "checks[0].interval",
        "secrets[0].mode",
        "maxRunTime",
    ];
    for (change, field) in definitions() {
        if fields.contains(&field) {
            for (key, value) in change.as_object().expect("an object") {
                // What is no text or number of its kind is told first, and alone.
                if !matches!(value.to_string().as_str(), text if text.contains(":-1")) {
                    spec[key] = value.clone();
                }
            }
        }
    }
    let answer = node.http("POST", "/v1/tasks", &spec.to_string());
    assert_eq!(answer.status, 400, "{answer:?}");
    for field in fields {
        assert!(answer.body.contains(field), "{field}: {}", answer.body);
    }
}

fn options_are_refused_by_their_name(t: &Test) {
    let node = Node::new(t);
    let cases: &[(&[&str], &str)] = &[
        (&["--memory", "-1"], "--memory"),
        (&["--memory", "99999999999999999999"], "--memory"),
        (&["--memory", "16E"], "--memory"),
        (&["--memory", "0"], "memory"),
        (&["--memory", "8M", "--memory-swap", "1M"], "--memory-swap"),
        (&["--cpus", "-1"], "--cpus"),
        (&["--cpus", "nan"], "--cpus"),
        (&["--cpus", "1e9"], "--cpus"),
        (&["--cpus", "18446744073709551"], "cpuMilli"),
        (&["--pids-limit", "-1"], "--pids-limit"),
        (&["--pids-limit", "18446744073709551615"], "pids"),
        (&["--name", "a\u{1b}[2J"], "id"),
        (&["--name", "../a"], "id"),
        (&["--env", "A\nB=x"], "env"),
        (&["--env", "=x"], "env"),
        (&["--user", "a\nb"], "user"),
        (&["--workdir", "relative"], "cwd"),
        (&["--volume", "/etc:relative"], "relative"),
        (&["--volume", "x y:/a"], "x y"),
        (&["--publish", "80:80", "--publish", "80:81", "--network", "default"], "ports[1]"),
        (&["--publish", "70000:80"], "70000"),
        (&["--publish", "-1:80"], "--publish"),
        (&["--restart", "sometimes"], "--restart"),
        (&["--stop-signal", "SIGNOT"], "SIGNOT"),
        (&["--log-max-size", "1"], "log.maxBytes"),
        (&["--cap-add", "NOT"], "security.capabilities.add[0]"),
        (&["--cap-add", "KILL", "--cap-drop", "KILL"], "security.capabilities.drop"),
        (&["--security-opt", "apparmor=none"], "--security-opt"),
        (&["--security-opt", "seccomp=/no/such/file"], "/no/such/file"),
        (&["--security-opt", "no-new-privileges=maybe"], "--security-opt"),
        (&["--device", "null"], "--device"),
        (&["--no-such-option"], "--no-such-option"),
    ];
    let mut faults = Vec::new();
    for (words, named) in cases {
        let output = node.hafen(node.run_words(&[&["-d"], *words].concat(), "exit 0"));
        let is_refused = matches!(output.exit, Some(2 | 125));
        if !is_refused || !output.stderr.contains(named) || output.stderr.contains('\u{1b}') {
            let said: String = output.stderr.chars().take(300).collect();
            faults.push(format!("{named}: {:?}: {said:?}", output.exit));
        }
    }
    wrong(&faults);
    nothing_was_taken_on(&node);
}

fn pods_are_refused_by_their_field(t: &Test) {
    let node = Node::new(t);
    let port = json!({ "host": 80, "container": 80 });
    let cases = [
        (json!({ "id": "a/b" }), "id"),
        (json!({ "tasks": [] }), "tasks"),
        (json!({ "limit": { "memory": -1 } }), "limit.memory"),
        (json!({ "limit": { "memory": 0 } }), "limit.memory"),
        (json!({ "limit": { "pids": u64::MAX } }), "limit.pids"),
        (
            json!({ "network": { "mode": "MODE_CNI", "ports": [port, port] } }),
            "network.ports[1].host",
        ),
        (json!({ "network": { "mode": "MODE_HOST", "dns": ["x"] } }), "network.dns[0]"),
        (json!({ "tasks": [node.sh("a", "exit 0"), node.sh("a", "exit 0")] }), "tasks"),
        (json!({ "tasks": [changed(&node, &json!({ "env": { "A": NUL } }))] }), "tasks[0]: env"),
        (
            json!({ "tasks": [changed(&node, &json!({ "maxRunTime": "-1s" }))] }),
            "tasks[0]: maxRunTime",
        ),
    ];
    let mut faults = Vec::new();
    for (change, field) in cases {
        let pod = with(json!({ "id": "p", "tasks": [node.sh("a", "exit 0")] }), &change);
        let answer = node.http("POST", "/v1/pods", &pod.to_string());
        if answer.status != 400 || !answer.body.contains(field) {
            faults.push(format!("{field}: {answer:?}"));
        }
    }
    wrong(&faults);
    nothing_was_taken_on(&node);
    let pods = node.http("GET", "/v1/pods", "").expect(200);
    assert!(pods["pods"].as_array().is_none_or(Vec::is_empty), "{pods:#}");
}

/// Links of the root lead within it, and what the kernel shows of itself is not covered.
fn mounts_stay_in_their_root(t: &Test) {
    let node = Node::new(t);
    let victim = t.dir().join("victim");
    fs::create_dir(&victim).expect("mkdir");
    let up = "../".repeat(20);
    let links = [
        ("absolute", victim.display().to_string()),
        ("up", format!("{up}{}", &victim.display().to_string()[1..])),
    ];
    for (name, to) in &links {
        std::os::unix::fs::symlink(to, node.rootfs.join(name)).expect("a link");
    }
    for (number, (name, _)) in links.iter().enumerate() {
        let mut spec = node
            .sh(&format!("l{number}"), &format!("mount | grep -c victim; touch /{name}/inside"));
        spec["mounts"] = json!([{ "tmpfs": 1 << 20, "destination": format!("/{name}") }]);
        node.run(&spec);
        let _ = node.wait(&format!("l{number}"));
        assert_eq!(fs::read_dir(&victim).expect("read").count(), 0, "{name} leads out");
    }
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read");
    assert!(!table.contains(victim.to_str().expect("text")), "{table}");
    for (number, to) in ["/proc", "/proc/sys", "/proc/self/attr", "/sys/fs"].iter().enumerate() {
        let id = format!("p{number}");
        let mut spec = node.sh(&id, "exit 0");
        spec["mounts"] = json!([{ "tmpfs": 1 << 20, "destination": to }]);
        let answer = node.http("POST", "/v1/tasks", &spec.to_string());
        if answer.status == 201 && *to != "/sys/fs" {
            let task = node.wait(&id);
            assert_eq!(task["state"], "STATE_ERROR", "{to}: {task:#}");
            assert!(sentence(&task).contains("/proc"), "{task:#}");
        }
    }
    // The node's own is reached by whoever may call, who is root; a link in it is one of the node's.
    assert!(Path::new("/proc/self").exists());
}

/// Archives that are small and become large, or lead out.
fn artifacts_are_bounded(t: &Test) {
    let node = Node::new(t);
    let folder = t.dir().join("offered");
    fs::create_dir(&folder).expect("mkdir");
    let bomb = made::Tar::new().file("zeros", "\0".repeat(64 << 20)).layer().gzip();
    assert!(bomb.packed.len() < 1 << 20);
    fs::write(folder.join("bomb.tar.gz"), bomb.packed).expect("written");
    let out = made::Tar::new().symlink("out", "/etc").file("out/owned", "x").layer().gzip();
    fs::write(folder.join("out.tar.gz"), out.packed).expect("written");
    let up = made::Tar::new().file("../../../../../../../../etc/owned", "x").layer().gzip();
    fs::write(folder.join("up.tar.gz"), up.packed).expect("written");
    let server = serve(&folder);
    for (id, name, most) in
        [("bomb", "bomb.tar.gz", 8 << 20), ("out", "out.tar.gz", 0), ("up", "up.tar.gz", 0)]
    {
        let mut spec = node.sh(id, "ls /a");
        spec["artifacts"] = json!([{ "source": format!("{server}/{name}"), "destination": "/a",
                                     "sha256": sha256(&folder.join(name)), "maxBytes": most }]);
        node.run(&spec);
        let task = node.wait(id);
        assert_eq!(task["reason"]["kind"], "KIND_NOT_STAGED", "{id}: {task:#}");
        assert!(sentence(&task).contains(name), "{task:#}");
        let left = fs::read_dir(node.task_folder(id).join("artifacts")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{id}");
    }
    assert!(!Path::new("/etc/owned").exists());
}
