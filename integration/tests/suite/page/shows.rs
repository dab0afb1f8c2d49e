//! What is seen.

use hafen_integration::{Case, Test, Value, cases, json, with};

use super::browser::PROGRAM;
use super::cluster::{job, large, node, small, small_with_more, task, view};
use super::coordinator::Coordinator;
use super::{Browser, EVERYWHERE, go, has_rows, opened, words};

pub(super) fn trials() -> Vec<Case> {
    cases![
        jobs_nodes_and_tasks(Program(PROGRAM)),
        a_change_touches_what_changed(Program(PROGRAM)),
        hostile_words_stay_words(Program(PROGRAM)),
        two_thousand_tasks(Program(PROGRAM)),
        filters_are_in_the_address(Program(PROGRAM)),
        a_log_is_followed(Program(PROGRAM)),
        a_lost_connection_is_told_and_mended(Program(PROGRAM)),
    ]
}

fn jobs_nodes_and_tasks(t: &Test) {
    let expected: [(usize, &[&str]); 6] = [
        (6, &["night-report", "5 finished", "Updating", "stable: 8", "priority 50"]),
        (4, &["n10", "Unreachable", "Draining", "zone=north", "5.2 of 7.5 CPUs", "I/O 11.8 %"]),
        (10, &["not placed yet", "on its node: staging", "exited with code 3", "3 h ago"]),
        (7, &["Job api", "under way", "shop/api:9.0", "2 starting"]),
        (2, &["Take tasks again", "fence", "8b1f0a52", "a1f41"]),
        (
            0,
            &[
                "10.88.0.17",
                "signal 9",
                "700 MiB",
                "ready: failing, connection refused",
                "INFO listening",
            ],
        ),
    ];
    let coordinator = small_with_more();
    let mut browser = opened(t, &coordinator.url, "");
    for ((name, hash), (rows, parts)) in EVERYWHERE.into_iter().zip(expected) {
        go(&mut browser, &coordinator.url, hash);
        has_rows(&mut browser, rows);
        for part in parts {
            browser.until(&format!("look.says({})", json!(part)));
        }
        for scheme in ["light", "dark"] {
            browser.prefers(scheme, "no-preference");
            browser.picture(&format!("{name}-{scheme}"));
        }
        browser.prefers("light", "no-preference");
    }
    assert_eq!(browser.text("document.title"), "a1f40 \u{b7} Tasks \u{b7} Hafen");
    the_cluster_is_one(&mut browser, &coordinator);
    go(&mut browser, &coordinator.url, "#/jobs/no-such");
    browser.until("look.says('There is no job of this name')");
    browser.is_without_faults();
}

fn the_cluster_is_one(browser: &mut Browser, coordinator: &Coordinator) {
    go(browser, &coordinator.url, "");
    assert_eq!(
        words(browser, "#summary"),
        "2 of 4 nodes here \u{b7} 6 jobs \u{b7} 8 of 16 tasks ready \u{b7} 1 waiting"
    );
    let capacity = words(browser, "#capacity");
    for part in [
        "69 % allocated",
        "Used 6.92",
        "Allocated 20.8",
        "Allocatable 30",
        "Reserved 2",
        "Total 32 CPUs",
        "Total 64 GiB",
    ] {
        assert!(capacity.contains(part), "{part}: {capacity}");
    }
    let attention = words(browser, "#attention");
    for part in ["Away", "n10", "Waiting", "ledger", "no node has 4 CPUs free", "Update failed"] {
        assert!(attention.contains(part), "{part}: {attention}");
    }
}

fn a_change_touches_what_changed(t: &Test) {
    let coordinator = Coordinator::start(small(1));
    let mut browser = opened(t, &coordinator.url, "#/tasks");
    browser.js("window.row = look.row('a2032'); row.querySelector('a').focus(); look.watch()");
    let mut changed = small(2);
    changed["instances"][5]["phase"] = json!("PHASE_READY");
    changed["instances"][5]["state"] = json!("STATE_RUNNING");
    changed["jobs"][1]["ready"] = json!(3);
    coordinator.publish(changed.clone());
    browser.until("row.innerText.includes('Ready')");
    assert_eq!(browser.js("row === look.row('a2032')"), true, "the row was made anew");
    assert_eq!(browser.js("row.contains(document.activeElement)"), true, "the focus went");
    let touched = browser.js("look.touched.length");
    assert!(touched.as_u64() < Some(20), "{touched}");
    browser.until("document.getElementById('announce').textContent.includes('9 of 16 tasks')");

    changed["revision"] = json!("3");
    changed["instances"].as_array_mut().expect("a list").remove(5);
    coordinator.publish(changed);
    has_rows(&mut browser, 9);
    assert_eq!(browser.js("document.activeElement.id"), "heading", "where the row was");
    browser.is_without_faults();
}

const EVIL: &str = "<img src=x onerror=\"window.owned=1\"><script>window.owned=2</script>";

fn hostile() -> Value {
    let turned = "safe\u{202e}live\u{2066}";
    let name = "\"><svg onload=window.owned=3>/../%2e%2e?x#y";
    let machine = with(
        node(EVIL, "PRESENCE_HERE", 1),
        &json!({ "attributes": { EVIL: EVIL }, "features": [EVIL], "software": EVIL }),
    );
    let work = with(
        job(name, 1, 1),
        &json!({ "sentence": EVIL, "runs": EVIL, "namespace": EVIL, "rollout": EVIL, "kind": EVIL }),
    );
    let one = with(
        task("javascript:window.owned=4", name, 0, EVIL),
        &json!({
            "sentence": EVIL, "slot": turned, "phase": EVIL, "started": EVIL, "addresses": [EVIL],
        }),
    );
    let other =
        with(task("__proto__", "constructor", 0, "toString"), &json!({ "phase": "constructor" }));
    with(view(1, vec![machine], vec![work], vec![one, other]), &json!({ "coordinator": EVIL }))
}

fn hostile_words_stay_words(t: &Test) {
    let coordinator = Coordinator::start(hostile());
    coordinator.say("STREAM_STDOUT", EVIL.as_bytes());
    coordinator.say(
        "STREAM_STDOUT",
        b"\x1b]8;;javascript:owned\x07link\x1b]8;;\x07 \xff\xfe \x1b[2J\x1b[1;31mred\x1b[m \x9b31m\n",
    );
    let mut browser = opened(t, &coordinator.url, "");
    for list in ["jobs", "nodes", "tasks"] {
        go(&mut browser, &coordinator.url, &format!("#/{list}"));
        assert!(words(&mut browser, "table").contains("<img src=x onerror"), "{list}");
        let links = browser.js("[...document.querySelectorAll('table a')].map((a) => a.hash)");
        for hash in links.as_array().expect("a list").iter().filter_map(Value::as_str) {
            go(&mut browser, &coordinator.url, hash);
            browser.until("document.querySelector('main h2 .name') !== null");
            assert_eq!(browser.js("look.isHarmless()"), true, "{hash}");
        }
    }
    go(&mut browser, &coordinator.url, "#/tasks/javascript%3Awindow.owned%3D4");
    browser.until("document.querySelectorAll('.line').length === 2");
    let said =
        browser.js("[...document.querySelectorAll('.said')].map((said) => said.textContent)");
    assert_eq!(said, json!([EVIL, "link \u{fffd}\u{fffd} red \u{fffd}31m"]));
    assert!(words(&mut browser, ".facts").contains("safe\u{fffd}live\u{fffd}"));
    assert_eq!(browser.js("look.isHarmless()"), true);
    browser.is_without_faults();
}

fn two_thousand_tasks(t: &Test) {
    let coordinator = Coordinator::start(large(1, 2_000));
    let mut browser = opened(t, &coordinator.url, "#/tasks");
    has_rows(&mut browser, 200);
    browser.until("look.says('2,000 tasks')");
    let elements = browser.js("document.querySelectorAll('*').length");
    assert!(elements.as_u64() < Some(5_000), "{elements}");

    browser.js("look.watch()");
    let mut changed = large(2, 2_000);
    for index in [3, 150, 1_999] {
        changed["instances"][index]["phase"] = json!("PHASE_STOPPING");
    }
    coordinator.publish(changed);
    browser.until("document.querySelectorAll('tbody [data-tone=busy]').length === 2");
    let touched = browser.js("look.touched.length");
    assert!(touched.as_u64() < Some(20), "{touched}");

    let time = browser.js("look.timeOfBothLists()");
    assert!(time.as_f64() < Some(3_000.0), "{time} ms");
    browser.js("look.filter('a0007cf')");
    has_rows(&mut browser, 1);
    browser.js("look.filter('')");
    has_rows(&mut browser, 200);
    browser.js("window.scrollTo(0, document.body.scrollHeight)");
    browser.until("look.rows() >= 500");
    browser.is_without_faults();
}

fn filters_are_in_the_address(t: &Test) {
    let coordinator = Coordinator::start(small(1));
    let mut browser = opened(t, &coordinator.url, "#/tasks?state=Ready&namespace=default&text=n1");
    has_rows(&mut browser, 3);
    browser.until("look.says('3 of 10 tasks')");
    browser.js("document.querySelector('.filters input').focus()");
    browser.write(" api");
    has_rows(&mut browser, 1);
    browser.until("location.hash === '#/tasks?text=n1+api&state=Ready&namespace=default'");
    browser.write(" nowhere");
    has_rows(&mut browser, 0);
    browser.until("look.says('No task fits the filters.')");
    coordinator.publish(with(small(2), &json!({ "coordinator": "harbour-2" })));
    browser.until("document.getElementById('coordinator').textContent.includes('harbour-2')");
    assert_eq!(browser.js("document.querySelector('.filters input').value"), "n1 api nowhere");
    go(&mut browser, &coordinator.url, "#/nodes?state=Draining");
    has_rows(&mut browser, 1);
    browser.is_without_faults();
}

/// Unless it has tried on its own in the meantime.
fn try_now(browser: &mut Browser) {
    browser.js("look.button('Try now')?.click()");
}

fn a_log_is_followed(t: &Test) {
    const LINES: &str = "document.querySelectorAll('.line').length";
    let coordinator = Coordinator::start(small(1));
    let mut browser = opened(t, &coordinator.url, "#/tasks/a1f40");
    browser.until("look.says('Nothing was written yet.')");
    for number in 0..2_500 {
        coordinator.say("STREAM_STDOUT", format!("line {number}\n").as_bytes());
    }
    coordinator.say("STREAM_STDERR", b"10 %\r50 %\r100 %\r\n");
    browser.until("look.lastLine().endsWith('err100 %') && look.logEnds()");
    assert_eq!(browser.js(LINES), 2_000);
    browser.js("document.querySelector('.log input').click()");
    browser.js("document.querySelector('.lines').scrollTop = 0");
    coordinator.say("STREAM_STDOUT", b"one more\n");
    browser.until("look.lastLine().endsWith('one more')");
    assert_eq!(browser.js("look.logEnds()"), false, "it stays where somebody reads");
    browser.picture("log");

    coordinator.is_down(true);
    browser.until("look.says('The connection to the log broke.')");
    assert_eq!(browser.js(LINES), 2_000, "what was read stays");
    coordinator.publish(small(2));
    coordinator.is_down(false);
    try_now(&mut browser);
    browser.until("!look.says('broke') && look.lastLine().endsWith('one more')");
    browser.is_without_faults();
}

fn a_lost_connection_is_told_and_mended(t: &Test) {
    const TOLD: &str = r"/^Connection lost: showing what was known at \d\d:\d\d:\d\d\.$/";
    let coordinator = Coordinator::start(small(1));
    let mut browser = opened(t, &coordinator.url, "");
    let live = "document.getElementById('connection').innerText.trim() === 'Live'";
    browser.until(live);
    coordinator.is_down(true);
    browser.until(&format!("{TOLD}.test(document.getElementById('connection-text').textContent)"));
    has_rows(&mut browser, 6);
    browser.picture("lost");
    browser.prefers("dark", "no-preference");
    browser.picture("lost-dark");
    coordinator.publish(large(5, 40));
    coordinator.is_down(false);
    try_now(&mut browser);
    has_rows(&mut browser, 2);
    browser.until(live);
    browser.is_without_faults();
}
