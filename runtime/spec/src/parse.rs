//! `config.json` bytes to `oci_spec` types, naming *every* field of a wrong type.

use oci_spec::runtime::{Capability, Spec};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Problems;

/// More wrong fields than this are not a slip of the pen.
const MOST_PROBLEMS: usize = 64;

/// Read a runtime specification.
///
/// # Errors
/// Names the line and column of broken JSON, or each field that does not fit the schema of runtime-spec 1.x.
pub fn parse(bytes: &[u8]) -> Result<Spec, Problems> {
    parse_noting(bytes, &mut Vec::new())
}

/// The same, and what is passed over is told in words.
///
/// # Errors
/// As [`parse`].
pub fn parse_noting(bytes: &[u8], warnings: &mut Vec<String>) -> Result<Spec, Problems> {
    match serde_json::from_slice::<Spec>(bytes) {
        Ok(spec) if spec.linux().as_ref().is_none_or(|l| l.intel_rdt().is_none()) => {
            return Ok(spec);
        }
        _ => {}
    }
    let mut problems = Problems::default();
    match serde_json::from_slice(bytes) {
        Ok(mut value) => {
            if let Some(process) = Value::get_mut(&mut value, "process") {
                mend_process(process);
                drop_unknown_capabilities(process, warnings);
            }
            mend_rdt(&mut value);
            match serde_json::from_value(value.clone()) {
                Ok(spec) => return Ok(spec),
                Err(_) => collect(value, &mut problems),
            }
        }
        Err(e) => problems.add("config.json", format!("not JSON: {e}")),
    }
    Err(problems)
}

/// Names of the runtime spec that `oci_spec` 0.10 spells otherwise.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// These are not read under their own names, and would be passed over.
fn mend_rdt(spec: &mut Value) {
    let Some(Value::Object(rdt)) = spec.pointer_mut("/linux/intelRdt") else { return };
    for (name, known) in [("enableCMT", "enableCmt"), ("enableMBM", "enableMbm")] {
        if let Some(value) = rdt.remove(name) {
            rdt.insert(known.to_owned(), value);
        }
    }
}

/// Bring a `process` of the runtime spec into the form that `oci_spec` 0.10 reads.
pub fn mend_process(process: &mut Value) {
    // runc and crun take a process without a user for root's.
    if let Value::Object(fields) = process {
        fields.entry("user").or_insert_with(|| json!({ "uid": 0, "gid": 0 }));
    }
    if let Some(flags) = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut) {
        for flag in flags {
            if let Some((_, known)) = SCHEDULER_FLAGS.iter().find(|(name, _)| flag == name) {
                *flag = Value::from(*known);
            }
        }
    }
    if let Some(Value::Object(affinity)) = process.get_mut("execCPUAffinity") {
        // "If omitted or empty": there only the former can be read.
        affinity.retain(|_, list| list != "");
    }
}

/// What no capability is called nobody can be given: runc and crun pass it over, so that a client may ask for those of a
/// newer kernel.
fn drop_unknown_capabilities(process: &mut Value, warnings: &mut Vec<String>) {
    let Some(Value::Object(sets)) = process.get_mut("capabilities") else { return };
    for (set, names) in sets {
        let Some(names) = names.as_array_mut() else { continue };
        names.retain(|name| {
            let known = !name.is_string() || Capability::deserialize(name).is_ok();
            if !known {
                warnings.push(format!("process.capabilities.{set}: {name} left out, not known"));
            }
            known
        });
    }
}

/// Deserialise again and again, each time without the part that was wrong before.
fn collect(mut value: Value, problems: &mut Problems) {
    for _ in 0..MOST_PROBLEMS {
        let error = match serde_path_to_error::deserialize::<_, Spec>(&value) {
            Ok(_) => return,
            Err(e) => e,
        };
        let path = error.path().to_string();
        let reason = error.into_inner().to_string();
        if !is_consequence(&path, problems) {
            problems.add(name(&path, &reason), reason);
        }
        if !cut(&mut value, &path) {
            return;
        }
    }
}

/// A missing field is reported at its parent: name the field itself.
fn name(path: &str, reason: &str) -> String {
    let missing = reason.strip_prefix("missing field `").and_then(|r| r.split('`').next());
    match (path, missing) {
        (".", Some(field)) => field.to_owned(),
        (".", None) => "config.json".to_owned(),
        (_, Some(field)) => format!("{path}.{field}"),
        (_, None) => path.to_owned(),
    }
}

/// Cutting a wrong required field makes its parent incomplete: that is no news.
fn is_consequence(path: &str, problems: &Problems) -> bool {
    problems.0.iter().any(|p| {
        p.field
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.') || rest.starts_with('['))
    })
}

/// Remove the node at `path`; false where nothing smaller than the document could go.
fn cut(value: &mut Value, path: &str) -> bool {
    if path == "." {
        return false;
    }
    let keys = split(path);
    let Some((last, parents)) = keys.split_last() else { return false };
    let mut node = value;
    for key in parents {
        let next = match key.parse::<usize>() {
            Ok(i) if node.is_array() => node.get_mut(i),
            _ => node.get_mut(key.as_str()),
        };
        match next {
            Some(n) => node = n,
            None => return false,
        }
    }
    match node {
        Value::Object(map) => map.remove(last.as_str()).is_some(),
        Value::Array(list) => match last.parse::<usize>() {
            // Replacing would need a valid element; a null keeps the numbering only for
            // arrays of options, so the rest of a wrong list is judged once it is mended.
            Ok(i) if i < list.len() => {
                list.truncate(i);
                true
            }
            _ => false,
        },
        _ => false,
    }
}

fn split(path: &str) -> Vec<String> {
    path.split(['.', '[', ']']).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Vec<String> {
        parse(json.as_bytes()).unwrap_err().0.into_iter().map(|p| p.field).collect()
    }

    #[test]
    fn every_wrong_field_is_named_once() {
        let found = fields(
            r#"{"ociVersion":"1.0.2","hostname":5,
                "process":{"cwd":7,"user":{"uid":"root","gid":0},"args":["true"]},
                "linux":{"namespaces":[{"type":"mount"},{"type":"moon"}]}}"#,
        );
        for field in ["hostname", "process.cwd", "process.user.uid", "linux.namespaces[1].type"] {
            assert_eq!(found.iter().filter(|f| *f == field).count(), 1, "{field} in {found:?}");
        }
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn a_missing_field_is_named() {
        assert_eq!(
            fields(r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0}}}"#),
            ["process.cwd"]
        );
    }

    #[test]
    fn broken_json_has_a_place() {
        let problems = parse(b"{\n \"ociVersion\": \"1.0.2\",\n").unwrap_err();
        assert_eq!(problems.0[0].field, "config.json");
        assert!(problems.0[0].reason.contains("line 3"), "{problems}");
    }

    #[test]
    fn unknown_fields_are_ignored() {
        assert!(parse(br#"{"ociVersion":"1.3.0","newThing":{"a":1}}"#).is_ok());
    }
}
