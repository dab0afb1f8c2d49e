//! For whom it works: who listens in place of looking, who sees little, who has a small screen.

use hafen_integration::{Case, Test, Value, cases, json, wait_until, with};

use super::browser::{Browser, CHANGE, PROGRAM};
use super::cluster::{job, node, small, small_with_more};
use super::coordinator::Coordinator;
use super::{EVERYWHERE, go, opened};

pub(super) fn trials() -> Vec<Case> {
    cases![
        names_roles_and_contrast(Program(PROGRAM)),
        a_narrow_screen_and_large_text(Program(PROGRAM)),
    ]
}

/// What a screen reader is told: role and name of each thing.
fn told(browser: &mut Browser) -> Vec<(String, String)> {
    let tree = browser.call("Accessibility.getFullAXTree", &json!({}));
    let nodes = tree["nodes"].as_array().expect("nodes").iter();
    let text = |value: &Value| value["value"].as_str().unwrap_or_default().trim().to_owned();
    nodes
        .filter(|node| node["ignored"] != true)
        .map(|node| (text(&node["role"]), text(&node["name"])))
        .collect()
}

/// The same, once these roles are among it: the browser brings its tree up to date a moment after the page.
fn told_of(browser: &mut Browser, roles: &[&str], wherever: &str) -> Vec<(String, String)> {
    let has = |told: &[(String, String)], role: &str| told.iter().any(|(known, _)| known == role);
    let mut missing = Vec::new();
    wait_until(CHANGE, || {
        let told = told(browser);
        missing = roles.iter().filter(|role| !has(&told, role)).copied().collect();
        missing.is_empty().then_some(told)
    })
    .unwrap_or_else(|| panic!("{wherever}: no {missing:?}"))
}

fn names_roles_and_contrast(t: &Test) {
    const NAMED: [&str; 8] =
        ["button", "link", "textbox", "searchbox", "combobox", "checkbox", "table", "log"];
    let coordinator = small_with_more();
    let mut browser = opened(t, &coordinator.url, "");
    for (name, hash) in EVERYWHERE {
        go(&mut browser, &coordinator.url, hash);
        for scheme in ["light", "dark"] {
            browser.prefers(scheme, "no-preference");
            assert_eq!(browser.js("look.pale()"), json!([]), "{name}, {scheme}");
        }
        assert_eq!(browser.js("look.tablesWithoutNames()"), 0, "{name}");
        assert_eq!(browser.js("look.skippedHeadings()"), 0, "{name}");
        let mut roles = vec!["banner", "navigation", "main"];
        if name.ends_with('s') {
            roles.extend(["search", "table", "columnheader", "rowheader"]);
        }
        let told = told_of(&mut browser, &roles, name);
        let nameless =
            told.iter().find(|(role, name)| NAMED.contains(&role.as_str()) && name.is_empty());
        assert_eq!(nameless, None, "{name}");
    }
    browser.prefers("light", "reduce");
    go(&mut browser, &coordinator.url, "");
    let moves = "getComputedStyle(document.querySelector('.bar-used')).transitionProperty";
    assert_eq!(browser.js(moves), "none");
    browser.is_without_faults();
}

/// With names that have no place to break.
fn long(name: &str) -> Value {
    let mut shown = small(1);
    let attributes = json!({ "attributes": { "zone": name.repeat(3) } });
    shown["nodes"][1] = with(node(name, "PRESENCE_HERE", 3), &attributes);
    let words = json!({ "runs": name.repeat(4), "sentence": name.repeat(4) });
    shown["jobs"][1] = with(job(name, 3, 3), &words);
    with(shown, &json!({ "coordinator": name }))
}

fn a_narrow_screen_and_large_text(t: &Test) {
    let name = "anamewithoutanyplacetobreakit".repeat(2);
    let coordinator = Coordinator::start(long(&name));
    let mut browser = opened(t, &coordinator.url, "");
    for (view, hash) in EVERYWHERE {
        go(&mut browser, &coordinator.url, &hash.replace("api", &name).replace("n2", &name));
        // 640 pixels of a window at 200 % are 320 of the page's.
        for (width, scale) in [(320, 1.0), (320, 2.0), (834, 1.0), (1024, 1.0), (1920, 1.0)] {
            browser.size(width, 900, scale);
            assert_eq!(browser.js("look.tooWide()"), 0, "{view} at {width}");
        }
        browser.size(320, 900, 2.0);
        browser.picture(&format!("{view}-narrow"));
        browser.js("document.documentElement.style.fontSize = '200%'");
        browser.size(640, 900, 1.0);
        assert_eq!(browser.js("look.tooWide()"), 0, "{view} with large text");
        browser.size(1280, 900, 1.0);
    }
    go(&mut browser, &coordinator.url, "#/tasks");
    browser.size(320, 900, 1.0);
    let label = "getComputedStyle(document.querySelector('tbody td'), '::before').content";
    assert_eq!(browser.js(label), "\"State\"", "a card says what its parts are");
    let _ = told_of(&mut browser, &["rowheader"], "a card is a row of a table still");
    browser.is_without_faults();
}
