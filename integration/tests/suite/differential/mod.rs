//! The same bundles through `hafen-oci` and through another engine (youki's `libcontainer`), and what the container's
//! process saw in each.
//!
//! A [`recipe`](recipes) makes a bundle whose process prints its facts. Both engines run it, each with a bundle of its
//! own, since an engine may make folders in the root filesystem. The facts are brought into a
//! [comparable form](normal), and each difference must be in the table of [accepted ones](accepted) with its reason. An
//! entry there that never occurs is a failure, too. A bundle that the other engine cannot run is in a table of
//! its own; for these it is checked that ours runs it and that the other still does not.

mod accepted;
mod normal;
mod recipes;
mod stage;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use hafen_integration::{Case, Need, Oci, Output, Test};

use accepted::{ACCEPTED, Accepted, KNOWN_FAILURES, KnownFailure};
use normal::Difference;
use recipes::Recipe;
use stage::Stage;

/// The library has been seen to hang; a run takes a tenth of a second.
const REFERENCE_LIMIT: Duration = Duration::from_secs(10);
const REFERENCE_ATTEMPTS: u32 = 3;

pub(crate) fn trials() -> Vec<Case> {
    let mut cases: Vec<Case> = recipes::all().into_iter().map(case).collect();
    cases.push(Case::new(
        "differential::every_accepted_difference_occurs",
        common_needs(),
        every_entry_occurs,
    ));
    cases
}

fn common_needs() -> Vec<Need> {
    hafen_integration::needs![Root, Busybox, Reference]
}

fn case(recipe: Recipe) -> Case {
    let mut needs = common_needs();
    needs.extend(recipe.needs.iter().copied());
    Case::new(format!("differential::{}", recipe.name), needs, move |t| {
        match known_failure(&recipe) {
            Some(known) => reference_still_fails(t, &recipe, known),
            None => engines_agree(t, &recipe),
        }
    })
}

fn known_failure(recipe: &Recipe) -> Option<&'static KnownFailure> {
    KNOWN_FAILURES.iter().find(|known| known.recipe == recipe.name && known.layout.holds())
}

fn engines_agree(t: &Test, recipe: &Recipe) {
    let differences = compare(t, recipe);
    let unknown: Vec<String> = differences
        .iter()
        .filter(|d| !ACCEPTED.iter().any(|a| a.matches(recipe.name, d)))
        .map(Difference::to_string)
        .collect();
    assert!(unknown.is_empty(), "differences that are not accepted:\n  {}", unknown.join("\n  "));
}

/// There is nothing to compare with: ours must run, and the entry in the table must still be true.
fn reference_still_fails(t: &Test, recipe: &Recipe, known: &KnownFailure) {
    let id = t.id();
    let stage = Stage::new(t, &id, recipe);
    let output = attempt_reference(&t.reference(), &id, &stage);
    drop(stage);
    t.sweep();
    assert!(
        output.exit != Some(0),
        "the reference engine is said to fail ({}), and does not",
        known.why
    );
    let _ = ours(t, recipe);
}

/// Results by recipe: the last test wants those of all others and does not run them twice.
static RESULTS: Mutex<BTreeMap<&'static str, Vec<Difference>>> = Mutex::new(BTreeMap::new());

fn compare(t: &Test, recipe: &Recipe) -> Vec<Difference> {
    if let Some(known) = RESULTS.lock().expect("no panic while it is held").get(recipe.name) {
        return known.clone();
    }
    // Ours comes last: what it leaves on the host must be found, and what the reference leaves is swept before.
    let theirs = theirs(t, recipe);
    t.sweep();
    let differences = normal::differences(&ours(t, recipe), &theirs);
    RESULTS.lock().expect("no panic while it is held").insert(recipe.name, differences.clone());
    differences
}

fn ours(t: &Test, recipe: &Recipe) -> normal::Table {
    let id = t.id();
    let stage = Stage::new(t, &id, recipe);
    normal::normalise(&t.oci().facts(&id, &stage.bundle), &stage)
}

fn theirs(t: &Test, recipe: &Recipe) -> normal::Table {
    let mut last = None;
    for _ in 0..REFERENCE_ATTEMPTS {
        let id = t.id();
        let stage = Stage::new(t, &id, recipe);
        let output = attempt_reference(&t.reference(), &id, &stage);
        if output.exit == Some(0) {
            return normal::normalise(&output.facts(), &stage);
        }
        drop(stage);
        t.sweep();
        last = Some(output);
    }
    panic!(
        "the reference engine failed {REFERENCE_ATTEMPTS} times: {}",
        last.expect("it was tried")
    );
}

/// What a run that failed leaves in the engine's state folder is removed: that is the engine's fault, and known.
fn attempt_reference(reference: &Oci, id: &str, stage: &Stage<'_>) -> Output {
    let words = ["run".as_ref(), "--bundle".as_ref(), stage.bundle.path().as_os_str(), id.as_ref()];
    let output = reference.command(words).time_limit(REFERENCE_LIMIT).output();
    if output.exit != Some(0) {
        let _ = reference.command(["delete", "--force", id]).time_limit(REFERENCE_LIMIT).output();
        let _ = std::fs::remove_dir_all(reference.root());
    }
    output
}

fn every_entry_occurs(t: &Test) {
    let mut unused: Vec<&Accepted> = ACCEPTED.iter().filter(|a| a.layout.holds()).collect();
    let runnable = recipes::all().into_iter().filter(|r| r.needs.iter().all(|n| n.is_met()));
    for recipe in runnable.filter(|r| known_failure(r).is_none()) {
        let differences = compare(t, &recipe);
        unused.retain(|a| !differences.iter().any(|d| a.matches(recipe.name, d)));
    }
    let lines: Vec<String> = unused.iter().map(|a| format!("{a:?}")).collect();
    assert!(lines.is_empty(), "accepted, and never seen:\n  {}", lines.join("\n  "));
}
