//! What differs between two versions of a job.

use hafen_protocol::v1;
use serde_json::Value;

/// A field that is not the same.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// As "task.command".
    pub(super) path: String,
    pub(super) old: Option<Value>,
    pub(super) new: Option<Value>,
}

/// By their paths.
pub(super) fn between(old: &v1::JobSpec, new: &v1::JobSpec) -> Vec<Change> {
    let value = |spec| serde_json::to_value(spec).unwrap_or_default();
    let mut changes = Vec::new();
    compare("", &value(old), &value(new), &mut changes);
    changes.sort_by(|one, other| one.path.cmp(&other.path));
    changes
}

fn compare(path: &str, old: &Value, new: &Value, changes: &mut Vec<Change>) {
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        if old != new {
            let some = |value: &Value| Some(value.clone()).filter(|value| !value.is_null());
            changes.push(Change { path: path.to_owned(), old: some(old), new: some(new) });
        }
        return;
    };
    let added = after.keys().filter(|key| !before.contains_key(*key));
    for key in before.keys().chain(added) {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let of = |of: &serde_json::Map<String, Value>| of.get(key).cloned().unwrap_or_default();
        compare(&path, &of(before), &of(after), changes);
    }
}

impl Change {
    /// Is it this field, or in it, or does it hold it? Names may be those of JSON or of the `.proto` files.
    pub(super) fn is_at(&self, path: &str) -> bool {
        let plain = |path: &str| path.replace('_', "").to_ascii_lowercase();
        let (own, path) = (plain(&self.path), plain(path));
        let is_in = |inner: &str, outer: &str| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        is_in(&own, &path) || is_in(&path, &own)
    }

    pub(super) fn sentence(&self) -> String {
        // What is secret is not told.
        if self.path.split('.').any(|part| part == "secrets") {
            return self.path.clone();
        }
        let say = |value: &Option<Value>| match value {
            Some(value) => super::show::plain(&value.to_string()),
            None => "-".to_owned(),
        };
        format!("{}: {} -> {}", self.path, say(&self.old), say(&self.new))
    }
}
