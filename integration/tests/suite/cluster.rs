//! Several machines as one: what the coordinator does when links break, machines die and programs are stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hafen_integration::cluster::{
    Cluster, Coordinator, Machine, Shape, Way, lines, secure, under_pressure, until,
};
use hafen_integration::person::{of, ready};
use hafen_integration::{Case, Test, Value, cases, json, patience, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) fn trials() -> Vec<Case> {
    cases![
        a_job_runs_on_all_machines(Root, Busybox, Program("ip")),
        a_dead_machine_is_replaced(Root, Busybox, Program("ip")),
        short_silences_change_nothing(Root, Busybox, Program("ip")),
        a_cut_machine_is_replaced_and_gives_way(Root, Busybox, Program("ip")),
        one_way_is_no_way(Root, Busybox, Program("ip"), Program("iptables")),
        the_coordinator_dies(Root, Busybox, Program("ip")),
        at_most_one_is_never_two(Root, Busybox, Program("ip")),
        a_drained_machine_is_left(Root, Busybox, Program("ip")),
        a_drain_has_an_end(Root, Busybox, Program("ip")),
        revocable_tasks_leave_under_pressure(
            Root,
            Busybox,
            Program("ip"),
            Program("unshare"),
            File("/proc/pressure/memory")
        ),
        a_removed_machine_stays_away(Root, Busybox, Program("ip")),
        a_person_is_sent_away(Root, Busybox, Program("ip")),
        people_attach_to_a_task_on_any_machine(Root, Busybox, Program("ip")),
        rights_reach_the_machine(Root, Busybox, Program("ip")),
        an_update_goes_on_or_back(Root, Busybox, Program("ip")),
        far_machines_are_one_cluster(Root, Busybox, Program("ip"), Netem),
        whatever_happens(Root, Busybox, Program("ip"), Program("iptables")),
        whatever_happens_to_disks(Root, Busybox, Program("ip")),
        whatever_happens_to_coordinators(Root, Busybox, Program("ip"), Program("etcd")),
    ]
}

const LEASE: Duration = Duration::from_millis(1500);
const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

/// A cluster, and a root for what runs in it.
pub(crate) struct Lab<'t> {
    pub(crate) cluster: Cluster<'t>,
    rootfs: PathBuf,
    /// Instances say here that they began, and what they find.
    pub(crate) told: PathBuf,
}

impl<'t> Lab<'t> {
    fn new(t: &'t Test, machines: usize) -> Self {
        Self::of(t, Cluster::start(t, Shape::new(machines, patience(LEASE))))
    }

    pub(crate) fn of(t: &'t Test, cluster: Cluster<'t>) -> Self {
        let told = t.dir().join("told");
        fs::write(&told, "").expect("a file");
        Self { rootfs: t.bundle().rootfs(), cluster, told }
    }

    pub(crate) fn task(&self, script: &str) -> Value {
        json!({
            "root": { "rootfs": self.rootfs },
            "command": ["/bin/sh", "-c", script],
            "kill": { "grace": "0.5s" },
            "mounts": [{ "host": self.told, "destination": "/told" }],
        })
    }

    pub(crate) fn job(&self, name: &str, replicas: u32) -> Value {
        let script = format!("echo {name} >> /told; {FOREVER}");
        json!({ "name": name, "replicas": replicas, "task": self.task(&script),
                "reschedule": { "first": "0.1s", "most": "1s" } })
    }

    /// Never two at a time: each says again and again that it lives.
    fn one(&self, name: &str) -> Value {
        let script = "read id < /proc/sys/kernel/random/uuid; \
                      while :; do read up rest < /proc/uptime; echo \"beat $id $up\" >> /told; sleep 0.05; done";
        let mut task = self.task(script);
        task["stopAfterDisconnect"] = json!("1s");
        json!({ "name": name, "replicas": 1, "atMostOne": true, "task": task,
                "reschedule": { "first": "0.1s", "most": "1s" } })
    }

    /// How many lived, one after the other.
    ///
    /// # Panics
    /// Two of them lived at a time.
    #[track_caller]
    fn lives(&self) -> usize {
        let text = fs::read_to_string(&self.told).expect("read");
        let mut lives: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some("beat"), Some(id), Some(up)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let up: f64 = up.parse().expect("seconds");
            let life = lives.entry(id).or_insert((up, up));
            life.1 = life.1.max(up);
        }
        let mut spans: Vec<(f64, f64)> = lives.into_values().collect();
        spans.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(
            spans.is_sorted_by(|before, after| before.1 <= after.0),
            "two at a time: {spans:?}"
        );
        spans.len()
    }

    fn machine(&self, name: &Value) -> &Machine<'t> {
        &self.cluster.machines[self.cluster.number(name)]
    }

    /// Nothing runs anywhere that the coordinator does not count.
    #[track_caller]
    fn all_is_told(&self) {
        let quiet = wait_until(Duration::from_secs(20), || {
            let view = self.cluster.view();
            let counted: BTreeSet<String> = of(&view, "instances", |one| {
                one["phase"] == "PHASE_READY" || one["phase"] == "PHASE_STARTING"
            })
            .into_iter()
            .map(|one| one["name"].as_str().expect("a name").to_owned())
            .collect();
            (self.running() == counted).then_some(())
        });
        assert!(quiet.is_some(), "{:?} run: {:#}", self.running(), self.cluster.view());
    }

    fn running(&self) -> BTreeSet<String> {
        let mut running = BTreeSet::new();
        for machine in &self.cluster.machines {
            let tasks = machine.agent.http("GET", "/v1/tasks", "").expect(200);
            let ids = tasks["tasks"].as_array().into_iter().flatten().map(|task| &task["id"]);
            running.extend(ids.map(|id| id.as_str().expect("a name").to_owned()));
        }
        running
    }
}

fn nodes(instances: &[Value]) -> BTreeSet<String> {
    instances.iter().map(|one| one["node"].as_str().unwrap_or_default().to_owned()).collect()
}

pub(crate) fn names(instances: &[Value]) -> BTreeSet<String> {
    instances.iter().map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect()
}

fn a_job_runs_on_all_machines(t: &Test) {
    let lab = Lab::new(t, 3);
    let mut job = lab.job("web", 3);
    job["mostPerNode"] = json!(1);
    lab.cluster.submit(&job);
    let instances = lab.cluster.ready("web", 3);
    assert_eq!(nodes(&instances).len(), 3, "{instances:?}");
    assert_eq!(lines(&lab.told, "web"), 3);
    let mut fourth = lab.job("web", 4);
    fourth["mostPerNode"] = json!(1);
    lab.cluster.submit(&fourth);
    let view = lab.cluster.wait("one waits", |view| view["jobs"][0]["waiting"] == 1);
    assert!(!view["jobs"][0]["sentence"].as_str().unwrap_or_default().is_empty(), "{view:#}");
    assert_eq!(names(&ready(&view, "web")), names(&instances), "the others stay as they are");
    let _ = lab.cluster.http("POST", "/v1/jobs/web/stop", &json!({ "purge": true })).expect(200);
    lab.cluster.wait("it is gone", |view| of(view, "jobs", |_| true).is_empty());
    lab.all_is_told();
}

fn a_dead_machine_is_replaced(t: &Test) {
    let mut lab = Lab::new(t, 3);
    lab.cluster.submit(&lab.job("web", 6));
    let before = lab.cluster.ready("web", 6);
    let dead = lab.cluster.number(&before[0]["node"]);
    let name = lab.cluster.machines[dead].name.clone();
    lab.cluster.machines[dead].agent.die();
    lab.cluster.wait("all run elsewhere", |view| {
        let ready = ready(view, "web");
        ready.len() == 6 && !nodes(&ready).contains(&name)
    });
    let after = lab.cluster.ready("web", 6);
    let stayed = names(&before).intersection(&names(&after)).count();
    let lost = before.iter().filter(|one| one["node"] == *name).count();
    assert_eq!(stayed, 6 - lost, "only what was there is replaced");
    lab.cluster.machines[dead].agent.restart();
    lab.cluster.hears(3);
    lab.all_is_told();
}

fn short_silences_change_nothing(t: &Test) {
    let lab = Lab::new(t, 2);
    lab.cluster.submit(&lab.job("web", 4));
    let before = names(&lab.cluster.ready("web", 4));
    let machine = &lab.cluster.machines[0];
    for _ in 0..3 {
        machine.stop();
        sleep(LEASE / 3);
        machine.go_on();
        sleep(LEASE / 3);
        lab.cluster.cut(1, true);
        sleep(LEASE / 3);
        lab.cluster.cut(1, false);
        sleep(LEASE / 3);
    }
    assert_eq!(names(&lab.cluster.ready("web", 4)), before);
    assert_eq!(lines(&lab.told, "web"), 4, "none was started again");
    lab.all_is_told();
}

fn a_cut_machine_is_replaced_and_gives_way(t: &Test) {
    let lab = Lab::new(t, 3);
    lab.cluster.submit(&lab.job("web", 6));
    let before = lab.cluster.ready("web", 6);
    let cut = lab.cluster.number(&before[0]["node"]);
    lab.cluster.cut(cut, true);
    let name = &lab.cluster.machines[cut].name;
    lab.cluster.wait("all run elsewhere", |view| {
        let ready = ready(view, "web");
        ready.len() == 6 && !nodes(&ready).contains(name)
    });
    assert!(lab.running().len() > 6, "what was there runs on meanwhile");
    lab.cluster.cut(cut, false);
    lab.all_is_told();
    lab.cluster.ready("web", 6);
}

fn one_way_is_no_way(t: &Test) {
    let lab = Lab::new(t, 2);
    lab.cluster.submit(&lab.job("web", 2));
    for way in [Way::ToIt, Way::FromIt] {
        let before = lab.cluster.ready("web", 2);
        let machine = lab.machine(&before[0]["node"]);
        machine.lose(way, true);
        lab.cluster.wait("all run elsewhere", |view| {
            let ready = ready(view, "web");
            ready.len() == 2 && !nodes(&ready).contains(&machine.name)
        });
        machine.lose(way, false);
        lab.cluster.hears(2);
        lab.all_is_told();
    }
}

fn the_coordinator_dies(t: &Test) {
    let mut lab = Lab::new(t, 2);
    lab.cluster.submit(&lab.job("web", 4));
    let before = names(&lab.cluster.ready("web", 4));
    lab.cluster.kill9();
    until(Instant::now(), LEASE * 2);
    assert_eq!(lab.running(), before, "nobody minds");
    lab.cluster.restart();
    lab.cluster.hears(2);
    assert_eq!(names(&lab.cluster.ready("web", 4)), before);
    assert_eq!(lines(&lab.told, "web"), 4, "none was started again");
    lab.cluster.scale("web", 1);
    lab.cluster.ready("web", 1);
    lab.all_is_told();
}

fn at_most_one_is_never_two(t: &Test) {
    let lab = Lab::new(t, 2);
    lab.cluster.submit(&lab.one("only"));
    for round in 1..=3 {
        let before = lab.cluster.ready("only", 1);
        let number = lab.cluster.number(&before[0]["node"]);
        let machine = &lab.cluster.machines[number];
        // Cut off, or stopped with all that it would have to do.
        match round {
            2 => machine.stop(),
            _ => lab.cluster.cut(number, true),
        }
        lab.cluster.wait("it runs elsewhere", |view| {
            let ready = ready(view, "only");
            ready.len() == 1 && ready[0]["node"] != *machine.name
        });
        match round {
            2 => machine.go_on(),
            _ => lab.cluster.cut(number, false),
        }
        lab.all_is_told();
        assert_eq!(lab.lives(), round + 1);
    }
}

fn a_drained_machine_is_left(t: &Test) {
    let lab = Lab::new(t, 3);
    let mut job = lab.job("web", 6);
    job["update"] = json!({ "mostParallel": 1 });
    lab.cluster.submit(&job);
    let before = lab.cluster.ready("web", 6);
    let name = before[0]["node"].as_str().expect("a name").to_owned();
    let path = format!("/v1/nodes/{name}/drain");
    let _ = lab.cluster.http("POST", &path, &json!({ "on": true })).expect(200);
    let mut fewest = 6;
    lab.cluster.wait("all run elsewhere", |view| {
        let ready = ready(view, "web");
        fewest = fewest.min(ready.len());
        ready.len() == 6 && !nodes(&ready).contains(&name)
    });
    assert!(fewest >= 5, "one at a time: {fewest}");
    lab.all_is_told();
    let _ = lab.cluster.http("POST", &path, &json!({ "on": false })).expect(200);
    let everywhere = json!({ "name": "all", "onePerNode": true, "task": lab.task(FOREVER) });
    lab.cluster.submit(&everywhere);
    assert_eq!(nodes(&lab.cluster.ready("all", 3)).len(), 3);
}

fn a_drain_has_an_end(t: &Test) {
    let lab = Lab::new(t, 2);
    // Two of them find no room elsewhere: the drain alone would wait for it.
    let mut job = lab.job("web", 4);
    job["mostPerNode"] = json!(2);
    lab.cluster.submit(&job);
    let name = lab.cluster.ready("web", 4)[0]["node"].clone();
    let drain = |body: &Value| {
        let path = format!("/v1/nodes/{}/drain", name.as_str().expect("a name"));
        lab.cluster.http("POST", &path, body).expect(200)
    };
    let _ = drain(&json!({ "on": true }));
    let view = lab.cluster.wait("one waits", |view| view["jobs"][0]["waiting"] == 1);
    assert_eq!(ready(&view, "web").len(), 3, "{view:#}");
    let left = || {
        let view = lab.cluster.wait("nothing is left", |view| {
            let node = of(view, "nodes", |node| node["name"] == name)[0];
            node["drainOverdue"] == true && node.get("instances").is_none_or(|n| *n == 0)
        });
        let ready = ready(&view, "web");
        assert!(ready.len() == 2 && nodes(&ready).len() == 1, "{view:#}");
        lab.all_is_told();
    };
    assert_eq!(drain(&json!({ "on": true, "within": "1s" }))["drainWithin"], "1s");
    left();
    let _ = drain(&json!({ "on": false }));
    lab.cluster.ready("web", 4);
    // By the machine itself, which is told how long in its configuration.
    lab.machine(&name).empty(true);
    left();
    lab.machine(&name).empty(false);
    lab.cluster.ready("web", 4);
}

/// As the kernel writes it (Documentation/accounting/psi.rst).
fn wait_for_memory(folder: &Path, percent: u32) {
    let line = |kind| format!("{kind} avg10={percent}.00 avg60=0.00 avg300=0.00 total=0\n");
    fs::create_dir_all(folder).expect("mkdir");
    fs::write(folder.join("memory"), line("some") + &line("full")).expect("written");
    fs::write(folder.join("cpu"), "some avg10=1.00 avg60=0.00 avg300=0.00 total=0\n")
        .expect("written");
}

fn revocable_tasks_leave_under_pressure(t: &Test) {
    let folders = ["m0", "m1"].map(|name| t.dir().join("pressure").join(name));
    wait_for_memory(&folders[0], 0);
    // The kernel of the other one counts none.
    fs::create_dir_all(&folders[1]).expect("mkdir");
    let pressed =
        |cluster: &Cluster<'_>, agent| under_pressure(agent, &folders[cluster.machines.len()]);
    let lab = Lab::of(t, Cluster::start_as(t, Shape::new(2, LEASE), pressed));
    let request = |memory: &str| json!({ "cpuMilli": "10", "memory": memory });
    let there = json!([{ "attribute": "node", "in": { "values": ["m0"] } }]);
    let jobs = [("firm", false, "1048576"), ("large", true, "3145728"), ("small", true, "1048576")];
    for (name, revocable, memory) in jobs {
        let mut job = lab.job(name, 1);
        job["task"]["resources"] = json!({ "request": request(memory), "revocable": revocable });
        job["constraints"] = there.clone();
        lab.cluster.submit(&job);
        lab.cluster.ready(name, 1);
    }
    let view = lab.cluster.view();
    let node = |view: &Value, name: &str| of(view, "nodes", |node| node["name"] == name)[0].clone();
    assert_eq!(node(&view, "m0")["capacity"]["cpuPressure"], 1.0, "{view:#}");
    assert!(node(&view, "m1")["capacity"].get("memoryPressure").is_none(), "{view:#}");
    wait_for_memory(&folders[0], 40);
    let mut smalls = Vec::new();
    let view = lab.cluster.wait("both have left", |view| {
        // One with each report: the larger one first.
        if ready(view, "large").is_empty() {
            smalls.push(ready(view, "small").len());
        }
        let counts = ["firm", "large", "small"].map(|job| ready(view, job).len());
        let waits = of(view, "instances", |one| one["phase"] == "PHASE_WAITING");
        counts == [1, 0, 0] && waits.len() == 2
    });
    assert_eq!(smalls.first(), Some(&1), "{view:#}");
    assert_eq!(node(&view, "m0")["pressure"][0]["of"], "memory", "{view:#}");
    let metrics = lab.cluster.http("GET", "/metrics", &Value::Null).body;
    for line in [
        "hafen_cluster_nodes_short{of=\"memory\"} 1.0",
        "hafen_cluster_node_pressure_full_percent{node=\"m0\",resource=\"memory\"} 40.0",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line}: {metrics}");
    }
    let stopped = lab.cluster.http("GET", "/v1/events?since=1", &Value::Null).body;
    assert!(stopped.contains("another one needs its room"), "{stopped}");
    wait_for_memory(&folders[0], 0);
    for (name, ..) in jobs {
        lab.cluster.ready(name, 1);
    }
    assert_eq!(lines(&lab.told, "firm"), 1, "it was left in peace");
    lab.all_is_told();
}

fn a_removed_machine_stays_away(t: &Test) {
    let mut lab = Lab::of(t, Cluster::start_as(t, Shape::new(2, LEASE), secure));
    lab.cluster.submit(&lab.job("web", 2));
    let before = lab.cluster.ready("web", 2);
    let gone = lab.cluster.number(&before[0]["node"]);
    let name = lab.cluster.machines[gone].name.clone();
    lab.cluster.machines[gone].stop();
    lab.cluster.wait("it is not heard", |view| {
        of(view, "nodes", |node| node["presence"] == "PRESENCE_UNREACHABLE").len() == 1
    });
    let _ = lab.cluster.http("DELETE", &format!("/v1/nodes/{name}"), &Value::Null).expect(200);
    lab.cluster.machines[gone].go_on();
    let agent = &lab.cluster.machines[gone].agent;
    let refused = wait_until(Duration::from_secs(20), || {
        agent.said().contains("KIND_IDENTITY").then_some(())
    });
    assert!(refused.is_some(), "{}", agent.said());
    let is_gone = |view: &Value| of(view, "nodes", |node| node["name"] == *name).is_empty();
    lab.cluster.wait("all run elsewhere", |view| is_gone(view) && ready(view, "web").len() == 2);
    // It is no other one after a start, and what it has of before says nothing.
    lab.cluster.machines[gone].agent.kill9();
    lab.cluster.machines[gone].agent.restart();
    sleep(LEASE * 2);
    assert!(is_gone(&lab.cluster.view()));
    // Somebody lets it join again: as a node that nobody knows.
    lab.cluster.machines[gone].agent.kill9();
    let link = lab.cluster.machines[gone].agent.state().join("agent/link");
    fs::remove_dir_all(&link).unwrap_or_else(|e| panic!("{}: {e}", link.display()));
    lab.cluster.machines[gone].agent.restart();
    lab.cluster.hears(2);
    lab.all_is_told();
}

fn a_person_is_sent_away(t: &Test) {
    let lab = Lab::new(t, 1);
    let person = lab.cluster.person("ann", 0);
    let seen = lab.cluster.hafen(&person).arg("nodes").output().expect("hafen");
    assert!(seen.status.success(), "{seen:?}");
    let mut listens = lab.cluster.hafen(&person);
    let mut listens = listens.args(["events", "--cluster"]).spawn().expect("hafen");
    sleep(Duration::from_millis(500));
    assert!(listens.try_wait().expect("wait").is_none(), "it listens");
    let path = "/v1/certificates/withdraw";
    let withdrawn = lab.cluster.http("POST", path, &json!({ "user": "ann" })).expect(200);
    assert_eq!(withdrawn["least"], "1", "{withdrawn:#}");
    let ended = wait_until(Duration::from_secs(10), || listens.try_wait().expect("wait"));
    let _ = listens.kill();
    let _ = listens.wait();
    assert!(ended.is_some_and(|status| !status.success()), "it was cut: {ended:?}");
    let denied = lab.cluster.hafen(&person).arg("nodes").output().expect("hafen");
    let words = String::from_utf8_lossy(&denied.stderr).into_owned();
    assert!(!denied.status.success() && words.contains("was withdrawn"), "{denied:?}");
    let next = lab.cluster.person("ann", 1);
    let told = lab.cluster.hafen(&next).args(["cert", "ls"]).output().expect("hafen");
    assert!(String::from_utf8_lossy(&told.stdout).contains("below 1"), "{told:?}");
    // One of several: the person goes on with the others.
    let all = lab.cluster.http("GET", "/v1/certificates", &Value::Null).expect(200);
    let of_next = of(&all, "certificates", |one| one["number"] == "1");
    let [leaked] = &*of_next else { panic!("{all:#}") };
    let other = lab.cluster.person("ann", 2);
    let serial = leaked["serial"].as_str().expect("a serial number");
    let words = ["cert", "withdraw", "--user", "ann", "--serial", serial];
    let withdrawn = lab.cluster.hafen(&other).args(words).output().expect("hafen");
    assert!(withdrawn.status.success(), "{withdrawn:?}");
    let denied = lab.cluster.hafen(&next).arg("nodes").output().expect("hafen");
    assert!(!denied.status.success(), "{denied:?}");
    let seen = lab.cluster.hafen(&other).arg("nodes").output().expect("hafen");
    assert!(seen.status.success(), "{seen:?}");
}

fn people_attach_to_a_task_on_any_machine(t: &Test) {
    let lab = Lab::new(t, 2);
    let person = lab.cluster.person("ann", 0);
    let batch = |name: &str, script: &str| {
        let mut task = lab.task(script);
        (task["stdin"], task["waitForAttach"]) = (json!(true), json!(true));
        let job = json!({ "name": name, "batch": { "runs": 1, "tries": 1 }, "task": task });
        lab.cluster.submit(&job);
        lab.cluster.ready(name, 1);
        let mut command = lab.cluster.hafen(&person);
        command.args(["attach", "--cluster", name]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().expect("hafen")
    };
    let mut told = batch("echo", "read word; echo \"<$word>\"; exit 5");
    let mut keys = told.stdin.take().expect("a pipe");
    keys.write_all(b"hello\n").expect("written");
    let told = told.wait_with_output().expect("hafen");
    assert_eq!(String::from_utf8_lossy(&told.stdout), "<hello>\n");
    assert_eq!(told.status.code(), Some(5), "as the program's");
    // What a person's terminal sends is the task's.
    let mut told =
        batch("trap", "trap 'echo caught; exit 6' INT; echo set; while :; do sleep 0.05; done");
    let mut line = [0; 4];
    told.stdout.as_mut().expect("a pipe").read_exact(&mut line).expect("it runs");
    assert_eq!(&line, b"set\n");
    kill(Pid::from_raw(i32::try_from(told.id()).expect("a pid")), Signal::SIGINT).expect("sent");
    let told = told.wait_with_output().expect("hafen");
    assert_eq!(String::from_utf8_lossy(&told.stdout), "caught\n");
    assert_eq!(told.status.code(), Some(6));
    lab.all_is_told();
}

/// What a task may ask of the kernel is part of the task, through all hands.
fn rights_reach_the_machine(t: &Test) {
    let lab = Lab::new(t, 1);
    let script =
        format!("grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status >> /told; {FOREVER}");
    let mut job = json!({ "name": "few", "replicas": 1, "task": lab.task(&script) });
    job["task"]["security"] = json!({
        "capabilities": { "add": ["NET_RAW"], "drop": ["ALL"] }, "noNewPrivileges": false,
        "seccomp": { "unconfined": true },
    });
    lab.cluster.submit(&job);
    lab.cluster.ready("few", 1);
    let wanted = "CapEff:\t0000000000002000\nNoNewPrivs:\t0\nSeccomp:\t0\n";
    let told = || fs::read_to_string(&lab.told).expect("read");
    wait_until(Duration::from_secs(10), || (told() == wanted).then_some(()));
    assert_eq!(told(), wanted);
    lab.all_is_told();
}

fn an_update_goes_on_or_back(t: &Test) {
    let lab = Lab::new(t, 2);
    lab.cluster.submit(&lab.job("web", 4));
    lab.cluster.ready("web", 4);
    lab.cluster.wait("it is stable", |view| view["jobs"][0]["rollout"] == "ROLLOUT_DONE");
    let mut second = lab.job("web", 4);
    second["task"] = lab.task(&format!("echo second >> /told; {FOREVER}"));
    lab.cluster.submit(&second);
    lab.cluster.wait("it is updated", |view| {
        view["jobs"][0]["rollout"] == "ROLLOUT_DONE" && lines(&lab.told, "second") == 4
    });
    let mut third = lab.job("web", 4);
    third["task"] = lab.task("echo third >> /told; exit 1");
    lab.cluster.submit(&third);
    let view = lab.cluster.wait("it went back", |view| {
        view["jobs"][0]["rollout"] == "ROLLOUT_DONE" && view["jobs"][0]["ready"] == 4
    });
    assert!(lines(&lab.told, "third") >= 1, "{view:#}");
    assert!(lines(&lab.told, "third") < 4, "it was stopped in time");
    lab.all_is_told();
}

/// Late and lossy links are no silence.
fn far_machines_are_one_cluster(t: &Test) {
    let lab = Lab::of(t, Cluster::start(t, Shape::new(2, patience(Duration::from_secs(5)))));
    lab.cluster.are_far("200ms", "5%");
    let mut job = lab.job("web", 4);
    job["mostPerNode"] = json!(3);
    lab.cluster.submit(&job);
    let before = names(&lab.cluster.ready("web", 4));
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        let view = lab.cluster.view();
        let lost = of(&view, "nodes", |node| node["presence"] == "PRESENCE_UNREACHABLE");
        assert!(lost.is_empty(), "{lost:?}\n{}", lab.cluster.said());
        assert_eq!(names(&ready(&view, "web")), before);
        sleep(Duration::from_millis(200));
    }
    lab.cluster.scale("web", 6);
    assert!(names(&lab.cluster.ready("web", 6)).is_superset(&before));
    assert_eq!(lines(&lab.told, "web"), 6, "none was started again");
    lab.all_is_told();
}

/// What can be wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Of a machine.
    Cut,
    Stopped,
    Deaf,
    Mute,
    Killed,
    /// Of what its agent writes down.
    FullDisk,
    CoordinatorKilled,
    CoordinatorStartedAgain,
    /// Of what the coordinator writes down.
    CoordinatorFullDisk,
    LeaderStopped,
    LeaderKilled,
    /// Of etcd: one, and more than may be missing.
    MemberKilled,
    MembersKilled,
}

/// Numbers that a seed gives again (xorshift).
struct Random(u64);

impl Random {
    /// From `HAFEN_SEED`, or from the clock.
    fn new(t: &Test) -> Self {
        let given = std::env::var("HAFEN_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = given.unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |d| d.as_secs())
        });
        eprintln!("{}: HAFEN_SEED={seed}", t.name());
        Self(seed | 1)
    }

    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % most as u64).unwrap_or_default()
    }
}

/// Faults at random, and then everything is as it is wanted: `HAFEN_CYCLES` of them, if that is said.
fn schedule(t: &Test, shape: Shape, faults: &[Fault], steps: usize) {
    let mut random = Random::new(t);
    let steps = std::env::var("HAFEN_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(steps);
    let mut lab = Lab::of(t, Cluster::start(t, shape));
    let mut web = lab.job("web", 5);
    web["mostPerNode"] = json!(3);
    lab.cluster.submit(&web);
    lab.cluster.submit(&lab.one("only"));
    lab.cluster.ready("web", 5);
    lab.cluster.ready("only", 1);
    let runs = lab.task("sleep 3; echo done >> /told");
    lab.cluster
        .submit(&json!({ "name": "runs", "batch": { "runs": 4, "tries": 1000 }, "task": runs,
                                "reschedule": { "first": "0.1s", "most": "1s" } }));
    for step in 0..steps {
        // Each comes in turn, and then whichever.
        let fault = faults.get(step).copied().unwrap_or_else(|| faults[random.below(faults.len())]);
        let at = random.below(shape.machines);
        let pause = Duration::from_millis(200 + random.below(3500) as u64);
        eprintln!("step {step}: {fault:?} at m{at} for {pause:?}");
        lab.suffers(fault, at, pause, &mut random);
        lab.lives();
    }
    lab.cluster.hears(shape.machines);
    lab.cluster.ready("web", 5);
    lab.cluster.ready("only", 1);
    lab.cluster.wait("all runs have ended well", |view| {
        of(view, "jobs", |job| job["name"] == "runs" && job["finished"] == 4).len() == 1
    });
    assert!(lines(&lab.told, "done") >= 4, "a run is counted that never was");
    lab.all_is_told();
    lab.lives();
}

impl Lab<'_> {
    fn suffers(&mut self, fault: Fault, at: usize, pause: Duration, random: &mut Random) {
        let cluster = &mut self.cluster;
        match fault {
            Fault::Cut => {
                cluster.cut(at, true);
                sleep(pause);
                cluster.cut(at, false);
            }
            Fault::Stopped => {
                cluster.machines[at].stop();
                sleep(pause);
                cluster.machines[at].go_on();
            }
            Fault::Deaf | Fault::Mute => {
                let way = if fault == Fault::Deaf { Way::ToIt } else { Way::FromIt };
                cluster.machines[at].lose(way, true);
                sleep(pause);
                cluster.machines[at].lose(way, false);
            }
            Fault::Killed => {
                cluster.machines[at].agent.kill9();
                sleep(pause);
                cluster.machines[at].agent.restart();
            }
            Fault::FullDisk => {
                cluster.machines[at].agent.disk().fill();
                sleep(pause / 2);
                if random.below(2) == 0 {
                    cluster.machines[at].agent.kill9();
                    cluster.machines[at].agent.begin();
                }
                sleep(pause / 2);
                cluster.machines[at].agent.disk().free();
                cluster.machines[at].agent.revive();
            }
            Fault::CoordinatorKilled => {
                cluster.kill9();
                sleep(pause);
                cluster.restart();
            }
            Fault::CoordinatorStartedAgain => {
                cluster.kill9();
                cluster.restart();
            }
            Fault::CoordinatorFullDisk => a_full_disk_is_said(cluster, pause),
            Fault::LeaderStopped => {
                let leader = leader(cluster);
                cluster.coordinators[leader].daemon.signal(Signal::SIGSTOP);
                sleep(LEADERS_LEASE + pause / 2);
                cluster.coordinators[leader].daemon.signal(Signal::SIGCONT);
            }
            Fault::LeaderKilled => {
                let leader = leader(cluster);
                cluster.coordinators[leader].daemon.kill9();
                sleep(pause);
                cluster.coordinators[leader].restart();
            }
            Fault::MemberKilled | Fault::MembersKilled => {
                let count = if fault == Fault::MemberKilled { 1 } else { 2 };
                let first = random.below(cluster.members.len());
                let dead: Vec<usize> =
                    (first..).map(|n| n % cluster.members.len()).take(count).collect();
                dead.iter().for_each(|n| cluster.members[*n].kill9());
                sleep(pause);
                dead.iter().for_each(|n| cluster.members[*n].begin());
            }
        }
    }
}

/// In etcd.
const LEADERS_LEASE: Duration = Duration::from_secs(2);

fn leader(cluster: &Cluster<'_>) -> usize {
    let found = wait_until(Duration::from_secs(20), || {
        cluster.coordinators.iter().position(Coordinator::directs)
    });
    found.unwrap_or_else(|| panic!("nobody directs: {}", cluster.said()))
}

/// Whoever cannot write down what it is told ends, and says why.
fn a_full_disk_is_said(cluster: &mut Cluster<'_>, pause: Duration) {
    let large = json!({ "name": "large", "replicas": 0, "task": {
        "root": { "host": true }, "command": ["true"], "env": { "LARGE": "x".repeat(2 << 20) } } });
    cluster.coordinators[0].disk.as_ref().expect("a disk of its own").fill();
    let answer = cluster.try_http("POST", "/v1/jobs", &json!({ "job": large }));
    let one = &mut cluster.coordinators[0];
    let ended = wait_until(Duration::from_secs(20), || one.daemon.ended());
    let said = one.daemon.said();
    let last = said.lines().last().unwrap_or_default();
    let why = last.contains("No space left on device");
    assert!(ended.is_some_and(|ended| !ended.success()) && why, "{answer:?}: {said}");
    assert!(answer.is_none_or(|answer| answer.status == 503), "what is not written is not done");
    sleep(pause);
    one.disk.as_ref().expect("a disk of its own").free();
    one.restart();
}

fn whatever_happens(t: &Test) {
    use Fault::{CoordinatorKilled, Cut, Deaf, Killed, Mute, Stopped};
    let faults = [Cut, Stopped, Deaf, Mute, Killed, CoordinatorKilled];
    schedule(t, Shape::new(3, LEASE), &faults, 12);
}

fn whatever_happens_to_disks(t: &Test) {
    use Fault::{
        CoordinatorFullDisk, CoordinatorKilled, CoordinatorStartedAgain, FullDisk, Killed,
    };
    let faults =
        [FullDisk, CoordinatorFullDisk, CoordinatorStartedAgain, Killed, CoordinatorKilled];
    let shape = Shape { disks: Some("mode=0755,size=32m"), ..Shape::new(2, LEASE) };
    schedule(t, shape, &faults, 6);
}

fn whatever_happens_to_coordinators(t: &Test) {
    use Fault::{Cut, LeaderKilled, LeaderStopped, MemberKilled, MembersKilled};
    let faults = [LeaderStopped, MemberKilled, LeaderKilled, MembersKilled, Cut];
    let shape = Shape { coordinators: 2, members: 3, ..Shape::new(2, LEASE) };
    schedule(t, shape, &faults, 5);
}
