//! How a change of a job is said to people.

use hafen_protocol::change::Change;
use serde_json::Value;

/// Is it this field, or in it, or does it hold it? Names may be those of JSON or of the `.proto` files.
pub(super) fn is_at(change: &Change, path: &str) -> bool {
    let plain = |path: &str| path.replace('_', "").to_ascii_lowercase();
    let (own, path) = (plain(&change.path), plain(path));
    let is_in = |inner: &str, outer: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    is_in(&own, &path) || is_in(&path, &own)
}

pub(super) fn sentence(change: &Change) -> String {
    // What is secret is not told.
    if change.path.split('.').any(|part| part == "secrets") {
        return change.path.clone();
    }
    let say = |value: &Option<Value>| match value {
        Some(value) => super::show::plain(&value.to_string()),
        None => "-".to_owned(),
    };
    format!("{}: {} -> {}", change.path, say(&change.old), say(&change.new))
}
