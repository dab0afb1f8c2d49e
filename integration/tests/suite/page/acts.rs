//! What can be done.

use std::time::Duration;

use hafen_integration::{Case, Test, Value, cases, json, wait_until};

use super::browser::{Browser, ENTER, ESCAPE, PROGRAM, SPACE, TAB};
use super::cluster::{small, small_with_more};
use super::coordinator::{Asked, Coordinator};
use super::{click, go, has_rows, opened, words};

pub(super) fn trials() -> Vec<Case> {
    cases![
        the_keyboard_is_enough(Program(PROGRAM)),
        nothing_is_done_without_a_question(Program(PROGRAM)),
        who_may_only_look_is_told_so(Program(PROGRAM)),
    ]
}

const IS_OPEN: &str = "document.getElementById('confirm').open";

fn focused(browser: &mut Browser) -> String {
    browser.text("look.focused()")
}

fn tab_to(browser: &mut Browser, name: &str) {
    let found = (0..60).any(|_| {
        let there = focused(browser) == name;
        if !there {
            browser.press(TAB);
        }
        there
    });
    assert!(found, "the tabulator does not come to {name}");
}

fn the_keyboard_is_enough(t: &Test) {
    let coordinator = small_with_more();
    let mut browser = opened(t, &coordinator.url, "");
    browser.press(TAB);
    assert_eq!(focused(&mut browser), "Skip to content");
    let top = browser.js("document.activeElement.getBoundingClientRect().top");
    assert!(top.as_f64() >= Some(0.0), "it is out of sight: {top}");
    browser.press(ENTER);
    assert_eq!(browser.js("document.activeElement.id"), "main");
    assert_eq!(browser.js("location.hash"), "", "the skip link is no view");
    tab_to(&mut browser, "Text");
    let outline = browser.js("getComputedStyle(document.activeElement).outlineStyle");
    assert_eq!(outline, "solid", "the focus is seen");
    browser.write("api");
    has_rows(&mut browser, 1);
    tab_to(&mut browser, "api");
    browser.press(ENTER);
    browser.until("document.activeElement.id === 'heading' && location.hash === '#/jobs/api'");

    tab_to(&mut browser, "Stop");
    browser.press(ENTER);
    browser.until(IS_OPEN);
    assert_eq!(focused(&mut browser), "Cancel", "what does no harm");
    browser.press(ESCAPE);
    browser.until(&format!("!{IS_OPEN}"));
    assert_eq!(focused(&mut browser), "Stop");

    tab_to(&mut browser, "a2030");
    browser.press(ENTER);
    browser.until("location.hash === '#/tasks/a2030' && document.activeElement.id === 'heading'");
    tab_to(&mut browser, "Follow");
    browser.press(SPACE);
    assert_eq!(browser.js("document.querySelector('.log input').checked"), false);
    browser.press(TAB);
    assert_eq!(focused(&mut browser), "Log of a2030", "it can be scrolled");
    browser.is_without_faults();
}

/// What the coordinator was asked to do as the `count`th.
fn order(coordinator: &Coordinator, count: usize) -> (String, Value) {
    let last = wait_until(Duration::from_secs(10), || {
        let asked = coordinator.asked();
        (asked.len() == count).then(|| asked[count - 1].clone())
    });
    let Asked { path, body } =
        last.unwrap_or_else(|| panic!("not {count} orders: {:?}", coordinator.asked()));
    (path, body)
}

fn confirm(browser: &mut Browser) {
    browser.until(IS_OPEN);
    browser.js("document.getElementById('confirm-do').click()");
}

fn nothing_is_done_without_a_question(t: &Test) {
    let coordinator = small_with_more();
    let mut browser = opened(t, &coordinator.url, "#/nodes/n1");
    click(&mut browser, "Drain");
    browser.until(IS_OPEN);
    assert!(words(&mut browser, "#confirm").contains("Drain n1?"));
    click(&mut browser, "Cancel");
    assert_eq!(coordinator.asked(), []);
    click(&mut browser, "Drain");
    confirm(&mut browser);
    assert_eq!(order(&coordinator, 1), ("/v1/nodes/n1/drain".to_owned(), json!({ "on": true })));
    browser.until("document.getElementById('announce').textContent === 'n1 is draining.'");

    go(&mut browser, &coordinator.url, "#/nodes/n2");
    click(&mut browser, "Take tasks again");
    confirm(&mut browser);
    assert_eq!(order(&coordinator, 2), ("/v1/nodes/n2/drain".to_owned(), json!({ "on": false })));

    go(&mut browser, &coordinator.url, "#/jobs/api");
    click(&mut browser, "Scale");
    assert_eq!(browser.js("document.activeElement.value"), "4");
    browser.picture("scale");
    browser.js("document.activeElement.value = ''");
    confirm(&mut browser);
    assert_eq!(browser.js(IS_OPEN), true, "no number is none");
    browser.js("document.activeElement.value = '7'");
    browser.press(ENTER);
    assert_eq!(order(&coordinator, 3), ("/v1/jobs/api/scale".to_owned(), json!({ "replicas": 7 })));

    browser.until("document.querySelectorAll('.of-versions tbody tr').length === 3");
    browser.until(&format!("!{IS_OPEN}"));
    click(&mut browser, "Roll back");
    browser.js("document.activeElement.value = '7'");
    confirm(&mut browser);
    let to_seven = ("/v1/jobs/api/rollback".to_owned(), json!({ "version": 7 }));
    assert_eq!(order(&coordinator, 4), to_seven);

    browser.until(&format!("!{IS_OPEN}"));
    click(&mut browser, "Stop");
    browser.picture("stop");
    confirm(&mut browser);
    assert_eq!(order(&coordinator, 5), ("/v1/jobs/api/stop".to_owned(), json!({ "purge": false })));
    browser.is_without_faults();
}

fn who_may_only_look_is_told_so(t: &Test) {
    let coordinator = Coordinator::start(small(1));
    coordinator.refuse();
    let mut browser = opened(t, &coordinator.url, "#/nodes/n1");
    click(&mut browser, "Drain");
    confirm(&mut browser);
    browser.until("document.getElementById('confirm-error').innerText === 'you may only look'");
    browser.picture("refused");
    click(&mut browser, "Cancel");
    browser.until("!look.button('Drain')");
    browser.is_without_faults();
}
