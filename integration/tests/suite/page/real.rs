//! Of a cluster that runs something.

use hafen_integration::{Case, Test, Up, Value, cases, json};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::browser::PROGRAM;
use super::{Browser, click, go, has_rows, opened, words};

pub(super) fn trials() -> Vec<Case> {
    cases![what_runs_is_shown_as_it_changes(Root, Busybox, Program(PROGRAM))]
}

const READY: &str = "document.querySelectorAll('tbody [data-tone=good]').length";

/// The question is gone when the coordinator has answered.
fn confirm(browser: &mut Browser) {
    browser.js("document.getElementById('confirm-do').click()");
    browser.until("!document.getElementById('confirm').open");
}

fn has_ready(browser: &mut Browser, count: usize) {
    browser.until(&format!("{READY} === {count}"));
}

/// A job that can run nowhere stays in the list as one row more.
fn what_runs_is_shown_as_it_changes(t: &Test) {
    let mut up = Up::start(t, 1);
    let task = |request: Value| {
        let script =
            "echo hello from $HAFEN_TASK; trap 'exit 0' TERM; while :; do sleep 0.05; done";
        json!({ "root": { "rootfs": t.bundle().rootfs() }, "command": ["/bin/sh", "-c", script],
                "env": { "HAFEN_TASK": "the task" }, "kill": { "grace": "0.5s" },
                "resources": { "request": request } })
    };
    let web = json!({ "name": "web", "replicas": 2, "task": task(json!({ "memory": 1 << 20 })),
                      "reschedule": { "first": "0.1s", "most": "1s" } });
    up.submit(&web);
    let huge = task(json!({ "cpuMilli": 9_000_000 }));
    up.submit(&json!({ "name": "huge", "replicas": 1, "task": huge }));
    let before = up.ready("web", 2);

    let page = up.page();
    let mut browser = opened(t, &page, "");
    has_rows(&mut browser, 2);
    browser.until("look.says('2 of 2') && look.says('1 waiting')");
    assert!(words(&mut browser, "#attention").contains("huge"));
    browser.picture("real-jobs");
    go(&mut browser, &page, "#/nodes");
    has_rows(&mut browser, 1);
    browser.until("look.says('Here')");

    go(&mut browser, &page, "#/tasks");
    has_rows(&mut browser, 3);
    has_ready(&mut browser, 2);
    browser.until("look.row('huge').innerText.includes('1 node: ')");
    browser.picture("real-tasks");

    // Whatever changes is shown without a new look.
    up.scale("web", 4);
    has_rows(&mut browser, 5);
    has_ready(&mut browser, 4);
    let name = before[0]["name"].as_str().expect("a name");
    let pid = up.ask("", "GET", &format!("/v1/tasks/{name}")).expect(200)["pid"].as_i64();
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    browser.until(&format!(
        "!look.row({}) || look.row({0}).innerText.includes('signal 9')",
        json!(name)
    ));
    has_ready(&mut browser, 4);

    let name = before[1]["name"].as_str().expect("a name");
    go(&mut browser, &page, &format!("#/tasks/{name}"));
    browser.until("look.lastLine().endsWith('hello from the task')");
    browser.until("look.says('web') && look.says('Ready')");
    browser.picture("real-log");

    // By a hand on the page.
    go(&mut browser, &page, "#/jobs/web");
    click(&mut browser, "Scale");
    browser.js("document.activeElement.value = '1'");
    confirm(&mut browser);
    up.ready("web", 1);
    has_ready(&mut browser, 1);
    click(&mut browser, "Stop");
    confirm(&mut browser);
    up.ready("web", 0);
    browser.is_without_faults();
    drop(browser);
    assert!(up.end().success(), "{}", up.daemon.said());
}
