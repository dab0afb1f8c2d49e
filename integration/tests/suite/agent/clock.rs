//! The machine's clock is set back while everything runs.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hafen_integration::{Case, Test, Value, cases, json, patience, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::Pid;

use super::ends::seconds;
use super::{Node, ends_with, exit_code, number};

pub(super) fn trials() -> Vec<Case> {
    let own = || Path::new("/run/vm/conf").exists();
    cases![set_back_by_an_hour(
        Root,
        Busybox,
        That("a virtual machine, whose clock may be set", own)
    )]
}

const HOUR: Duration = Duration::from_secs(3600);

/// Sets the clock right again when it is dropped.
struct SetBack;

impl SetBack {
    fn now() -> Self {
        set(|now| now - HOUR);
        Self
    }
}

impl Drop for SetBack {
    fn drop(&mut self) {
        set(|now| now + HOUR);
    }
}

fn set(to: impl Fn(Duration) -> Duration) {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("a clock");
    let to = to(Duration::from(now));
    clock_settime(ClockId::CLOCK_REALTIME, to.into()).expect("clock_settime");
}

/// A line each tenth of a second, until it is asked to end.
const COUNTS: &str =
    "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done";

fn set_back_by_an_hour(t: &Test) {
    let mut node = Node::new(t);
    node.run(&node.sh("counts", COUNTS));
    let (mut fails, starts) = node.with_file(node.sh("fails", "echo start >> /out; exit 1"), "n");
    fails["restart"] =
        json!({ "when": "WHEN_ON_FAILURE", "most": 4, "backOff": "1s", "backOffMost": "1s" });
    let mut checked = node.sh("checked", "touch /tmp/well; exec sleep 1000");
    checked["checks"] = json!([
        { "name": "well", "kind": "KIND_HEALTH", "interval": "0.2s", "timeout": "60s", "command": { "args": ["/bin/test", "-e", "/tmp/well"] } },
        { "name": "ready", "kind": "KIND_READINESS", "interval": "0.2s", "timeout": "60s", "command": { "args": ["/bin/true"] } },
    ]);
    checked["kill"] = json!({ "grace": "0.2s" });
    node.run(&checked);
    node.wait_for("checked", "became ready", |task| task["ready"] == true);
    node.run(&node.sh("short", "sleep 3; exit 3"));
    let mut bounded = node.sh("bounded", "exec sleep 1000");
    bounded["maxRunTime"] = json!("4s");
    bounded["kill"] = json!({ "grace": "0.2s" });
    node.run(&bounded);
    node.run(&node.sh("deaf", "trap '' TERM; echo ready; while :; do sleep 0.1; done"));
    node.wait_for("deaf", "wrote", |_| node.hafen(["logs", "deaf"]).stdout.contains("ready"));
    let mut following = node.call(["logs", "--follow", "counts"]).spawn();
    following.await_text("line 1\n");
    let waiting = node.call(["wait", "--timeout", "5s", "counts"]).spawn();
    node.run(&fails);
    let _ = node.http("POST", "/v1/tasks/deaf/stop", r#"{"grace": "2s"}"#).expect(200);
    let before = ["counts", "checked"].map(|id| node.wait_state(id, "STATE_RUNNING"));
    let lines = node.logs("counts").lines().count();
    let began = Instant::now();

    let clock = SetBack::now();
    // Whatever had a time to end in, ends.
    waiting.wait().code(7);
    let deaf = node.wait("deaf");
    assert_eq!(deaf["reason"]["exit"]["signal"], 9, "{deaf:#}");
    let bounded = node.wait("bounded");
    assert_eq!(bounded["reason"]["kind"], "KIND_TOO_LONG", "{bounded:#}");
    let short = node.wait("short");
    assert_eq!(exit_code(&short), Some(3), "{short:#}");
    let failed = node.wait("fails");
    assert_eq!((failed["attempt"].as_u64(), exit_code(&failed)), (Some(5), Some(1)), "{failed:#}");
    assert_eq!(fs::read_to_string(&starts).expect("read").lines().count(), 5);
    let most = patience(Duration::from_secs(30));
    assert!(began.elapsed() < most, "{:?}", began.elapsed());
    for (task, least) in [(&bounded, 4.0), (&short, 3.0)] {
        let ran = seconds(&task["reason"]["exit"]["ran"]);
        assert!((least..most.as_secs_f64()).contains(&ran), "{task:#}");
    }
    // What ran, runs on.
    for earlier in &before {
        let task = node.task(earlier["id"].as_str().expect("an id"));
        assert_eq!(
            (&task["pid"], &task["attempt"]),
            (&earlier["pid"], &earlier["attempt"]),
            "{task:#}"
        );
        assert_eq!(task["state"], "STATE_RUNNING", "{task:#}");
    }
    assert!(node.task("checked")["ready"] == true, "{:#}", node.task("checked"));
    ages_are_not_negative(&node);
    drop(following);
    logs_go_on(&node, lines);
    events_go_on(&node);
    // Whoever comes after finds everything.
    node.kill9();
    for keeper in node.keepers_of("counts") {
        kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("killed");
    }
    node.restart();
    assert_eq!(node.task("counts")["pid"], before[0]["pid"], "{}", node.said());
    ages_are_not_negative(&node);
    node.hafen(["exec", "checked", "/bin/rm", "/tmp/well"]).ok();
    assert_eq!(node.wait("checked")["reason"]["kind"], "KIND_UNHEALTHY");
    node.run(&node.sh("new", &ends_with(4)));
    node.wait_for("new", "wrote", |_| node.hafen(["logs", "new"]).stdout.contains("ready"));
    node.hafen(["stop", "new"]).ok();
    assert_eq!(exit_code(&node.task("new")), Some(4));
    drop(clock);
    node.hafen(["stop", "counts"]).ok();
    logs_go_on(&node, lines);
}

/// All lines are there, in their order, whatever their times are.
fn logs_go_on(node: &Node<'_>, at_least: usize) {
    let more = wait_until(Duration::from_secs(20), || {
        let text = node.hafen(["logs", "counts"]).stdout;
        (text.lines().count() > at_least + 5).then_some(text)
    });
    let text = more.expect("it writes on");
    // A keeper that is killed while it writes may leave a line twice.
    let mut numbers: Vec<usize> = text
        .lines()
        .map(|line| line.trim_start_matches("line ").parse().expect("a whole line"))
        .collect();
    numbers.dedup();
    assert!(numbers.iter().copied().eq(1..=numbers.len()), "{text}");
    assert!(times(node).windows(2).any(|two| two[1] < two[0]), "no line is of the time before");
}

fn times(node: &Node<'_>) -> Vec<String> {
    let lines = node.hafen(["logs", "--timestamps", "counts"]).ok().stdout;
    lines.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
}

fn events_go_on(node: &Node<'_>) {
    let text =
        node.hafen(["events", "--since", "1", "--no-follow", "--format", "json"]).ok().stdout;
    let events: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let numbers: Vec<Option<u64>> = events.iter().map(|event| number(&event["sequence"])).collect();
    assert!(numbers.windows(2).all(|two| two[0] < two[1]), "{text}");
    let ended = |id: &str| {
        events.iter().any(|event| {
            event["task"] == id
                && matches!(event["state"]["state"].as_str(), Some("STATE_FAILED" | "STATE_KILLED"))
        })
    };
    for id in ["deaf", "bounded", "short", "fails"] {
        assert!(ended(id), "the end of {id} is not told: {text}");
    }
}

fn ages_are_not_negative(node: &Node<'_>) {
    let table = node.hafen(["ps", "--all"]).ok().stdout;
    let column = table.find(" AGE").expect("a column") + 1;
    for line in table.lines().skip(1) {
        let age = line.get(column..).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        assert!(age.starts_with(|c: char| c.is_ascii_digit()), "{age:?}: {table}");
    }
    let metrics = node.http("GET", "/metrics", "").body;
    let uptime = metrics.lines().find_map(|line| line.strip_prefix("hafen_agent_uptime_seconds "));
    let uptime: f64 = uptime.and_then(|text| text.parse().ok()).expect("a number");
    assert!((0.0..HOUR.as_secs_f64()).contains(&uptime), "{uptime}");
}
