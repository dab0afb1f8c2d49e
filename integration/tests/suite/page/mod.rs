//! The coordinator's page in a browser, in front of a coordinator that says what a test wants, and of a real one.

mod access;
mod acts;
mod browser;
mod cluster;
mod coordinator;
mod real;
mod shows;

use hafen_integration::{Case, Test, json};

use browser::Browser;

pub(crate) fn trials() -> Vec<Case> {
    let all = [shows::trials(), acts::trials(), access::trials(), real::trials()];
    all.into_iter().flatten().collect()
}

/// Lists, and one of each: a name, and where it is.
const EVERYWHERE: [(&str, &str); 6] = [
    ("jobs", ""),
    ("nodes", "#/nodes"),
    ("tasks", "#/tasks"),
    ("job", "#/jobs/api"),
    ("node", "#/nodes/n2"),
    ("task", "#/tasks/a1f40"),
];

/// A page that has shown its first view.
fn opened(t: &Test, url: &str, hash: &str) -> Browser {
    let mut browser = Browser::start(t);
    browser.size(1280, 900, 1.0);
    browser.prefers("light", "no-preference");
    go(&mut browser, url, hash);
    browser
}

/// As somebody who follows a link from elsewhere.
fn go(browser: &mut Browser, url: &str, hash: &str) {
    browser.open("about:blank");
    browser.open(&format!("{url}/{hash}"));
    browser.until("document.getElementById('loading')?.hidden");
}

/// The words of an element, with ordinary spaces.
fn words(browser: &mut Browser, selector: &str) -> String {
    let text = browser.text(&format!("document.querySelector({}).innerText", json!(selector)));
    text.replace(['\u{a0}', '\n'], " ")
}

fn has_rows(browser: &mut Browser, count: usize) {
    browser.until(&format!("look.rows() === {count}"));
}

fn click(browser: &mut Browser, words: &str) {
    browser.until(&format!("Boolean(look.button({}))", json!(words)));
    browser.js(&format!("look.button({}).click()", json!(words)));
}
