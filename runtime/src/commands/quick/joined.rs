//! What a container shares with others, and what no option says.

use hafen_spec::Problems;
use hafen_sys::Context;
use serde_json::{Value, json};

use crate::Error;
use crate::cli::QuickArgs;
use crate::patch::merge;

const NAMESPACE: &str = "--namespace";

/// Change the specification as `--namespace`, `--cgroup`, `--tty` and, last, `--patch` say.
///
/// # Errors
/// Names the file that cannot be read; what is wrong with an option is a problem.
pub(super) fn apply(
    args: &QuickArgs,
    spec: &mut Value,
    problems: &mut Problems,
) -> Result<(), Error> {
    for text in &args.namespace {
        if let Err(why) = join(text, &mut spec["linux"]["namespaces"]) {
            problems.add(NAMESPACE, why);
        }
    }
    if let Some(path) = &args.cgroup {
        spec["linux"]["cgroupsPath"] = json!(path);
    }
    if args.tty {
        spec["process"]["terminal"] = json!(true);
    }
    let Some(path) = &args.patch else { return Ok(()) };
    let text = std::fs::read(path).call(|| format!("--patch: read {}", path.display()))?;
    match serde_json::from_slice(&text) {
        Ok(patch) => merge(spec, patch),
        Err(e) => problems.add("--patch", format!("{}: {e}", path.display())),
    }
    Ok(())
}

/// `TYPE=host`: none of its own. `TYPE=PATH`: that one.
fn join(text: &str, namespaces: &mut Value) -> Result<(), String> {
    const TYPES: [&str; 7] = ["network", "ipc", "uts", "pid", "mount", "cgroup", "time"];
    let (kind, place) = text.split_once('=').ok_or_else(|| format!("{text:?} is not TYPE=PATH"))?;
    if !TYPES.contains(&kind) {
        return Err(format!("{kind:?} is none of {}", TYPES.join(", ")));
    }
    let Some(all) = namespaces.as_array_mut() else { return Ok(()) };
    all.retain(|namespace| namespace["type"] != kind);
    match place {
        "host" => {}
        path if path.starts_with('/') => all.push(json!({ "type": kind, "path": path })),
        _ => return Err(format!("{place:?} is neither an absolute path nor host")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_others() {
        let mut all = json!([{ "type": "pid" }, { "type": "network" }]);
        join("network=/run/netns/x", &mut all).unwrap();
        join("pid=host", &mut all).unwrap();
        assert_eq!(all, json!([{ "type": "network", "path": "/run/netns/x" }]));
        for wrong in ["network", "net=/x", "network=x"] {
            assert!(join(wrong, &mut all).is_err(), "{wrong}");
        }
    }
}
