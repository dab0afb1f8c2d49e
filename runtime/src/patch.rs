use serde_json::{Value, json};

/// A JSON merge patch (RFC 7396): null takes a member away, an object is merged, everything else is put in place.
pub(crate) fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        match (value, target.as_object_mut()) {
            (Value::Null, Some(object)) => drop(object.remove(&key)),
            (value, _) => merge(&mut target[key], value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_adds_changes_and_takes_away() {
        let mut spec = json!({ "a": { "b": 1, "c": 2 }, "d": [1], "e": 5 });
        merge(&mut spec, json!({ "a": { "b": null, "x": { "y": 3 } }, "d": [2] }));
        assert_eq!(spec, json!({ "a": { "c": 2, "x": { "y": 3 } }, "d": [2], "e": 5 }));
    }
}
