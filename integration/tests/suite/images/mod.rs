//! Images: taken in from files, unpacked, run, and removed again.

mod collect;
mod compare;
mod crash;
mod facts;
mod folder;
mod hostile;
pub(crate) mod made;
mod owners;
mod registry;
mod run;
mod server;
mod store;
mod upper;
mod volumes;

use hafen_integration::{Case, Output, Test};

pub(crate) fn trials() -> Vec<Case> {
    let modules = [
        run::trials(),
        upper::trials(),
        store::trials(),
        registry::trials(),
        hostile::trials(),
        crash::trials(),
        collect::trials(),
        volumes::trials(),
        owners::trials(),
        folder::trials(),
        compare::trials(),
    ];
    modules.into_iter().flatten().collect()
}

/// `hafen-oci run` with the test's store.
fn run(t: &Test, words: &[&str]) -> Output {
    t.oci().call(run_words(t, words))
}

fn run_words(t: &Test, words: &[&str]) -> Vec<String> {
    let store = t.images().display().to_string();
    let all = ["run", "--images", &store].into_iter().chain(words.iter().copied());
    all.map(str::to_owned).collect()
}

/// Take the layout `made` in as `localhost/NAME:made`.
fn import(t: &Test, layout: &std::path::Path) -> Output {
    t.hafen(["image".as_ref(), "import".as_ref(), layout.as_os_str()]).output()
}
