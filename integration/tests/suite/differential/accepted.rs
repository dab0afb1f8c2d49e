//! The differences that are meant, each with its reason.

use super::normal::Difference;
use super::stage::Layout;

/// A difference that is meant. Texts are patterns in which `*` stands for anything; `-` is a fact that is missing.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) layout: Layout,
    recipe: &'static str,
    fact: &'static str,
    ours: &'static str,
    theirs: &'static str,
    #[expect(dead_code, reason = "printed by the Debug of a stale entry, and read by people")]
    why: &'static str,
}

impl Accepted {
    pub(super) fn matches(&self, recipe: &str, difference: &Difference) -> bool {
        self.layout.holds()
            && matches(self.recipe, recipe)
            && matches(self.fact, &difference.fact)
            && matches(self.ours, difference.ours.as_deref().unwrap_or("-"))
            && matches(self.theirs, difference.theirs.as_deref().unwrap_or("-"))
    }
}

/// A recipe that the reference engine cannot run.
#[derive(Debug)]
pub(super) struct KnownFailure {
    pub(super) layout: Layout,
    pub(super) recipe: &'static str,
    pub(super) why: &'static str,
}

pub(super) const KNOWN_FAILURES: &[KnownFailure] = &[
    KnownFailure {
        layout: Layout::Any,
        recipe: "environment_without_path",
        why: "it wants PATH also for a program that is named by its full path",
    },
    KnownFailure {
        layout: Layout::Any,
        recipe: "working_directory_is_made",
        why: "it does not make the working directory, as runc and crun do",
    },
    KnownFailure {
        layout: Layout::Any,
        recipe: "tmpfs_without_options",
        why: "it wants a mount's source, which the runtime specification leaves out for file systems without one",
    },
];

pub(super) const ACCEPTED: &[Accepted] = &[];

fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}
