//! What differs between two versions of a job.

use serde_json::{Map, Value};

use crate::v1::JobSpec;

/// A field that is not the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// In JSON, as "task.command".
    pub path: String,
    pub old: Option<Value>,
    pub new: Option<Value>,
}

/// By their paths.
#[must_use]
pub fn between(old: &JobSpec, new: &JobSpec) -> Vec<Change> {
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
        let of = |of: &Map<String, Value>| of.get(key).cloned().unwrap_or_default();
        compare(&path, &of(before), &of(after), changes);
    }
}
