//! What a container may ask of the kernel: `--capabilities`, `--ambient`, `--seccomp` and `--device`.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use hafen_spec::{Problems, rights, seccomp};
use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use crate::cli::{Profile, QuickArgs};
use crate::upper::Upper;

/// Change the specification, in which the user is known already.
pub(super) fn apply(args: &QuickArgs, spec: &mut Value, problems: &mut Problems) {
    let mut read = |option: &str, text: &Option<String>| {
        let mask = rights::list(text.as_deref()?);
        mask.map_err(|why| problems.add(option, why)).ok()
    };
    let wanted = read("--capabilities", &args.capabilities);
    let ambient = read("--ambient", &args.ambient);
    let most = wanted.unwrap_or(rights::FEW);
    let is_root = spec["process"]["user"]["uid"] == 0;
    if wanted.is_some() {
        // Of another user execve(2) leaves none but the ambient ones (capabilities(7)).
        spec["process"]["capabilities"] =
            sets(most, if is_root { 0 } else { ambient.unwrap_or(0) });
    }
    let keep_projects = args.upper.is_some_and(Upper::has_quota);
    match args.seccomp {
        Profile::Default => spec["linux"]["seccomp"] = seccomp::usual(most, keep_projects),
        Profile::None if keep_projects => spec["linux"]["seccomp"] = seccomp::keep_projects(),
        Profile::None => {}
    }
    for text in &args.device {
        match device(text) {
            Ok(found) => found.add(&mut spec["linux"]),
            Err(why) => problems.add("--device", why),
        }
    }
}

fn sets(most: u64, ambient: u64) -> Value {
    let (most, ambient) = (rights::names(most), rights::names(ambient));
    json!({
        "bounding": most, "effective": most, "permitted": most, "inheritable": ambient, "ambient": ambient,
    })
}

/// A device of the host, and the rule that opens it.
struct Device {
    node: Value,
    rule: Value,
}

impl Device {
    fn add(self, linux: &mut Value) {
        push(&mut linux["devices"], self.node);
        push(&mut linux["resources"]["devices"], self.rule);
    }
}

fn push(list: &mut Value, entry: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(entry),
        None => *list = json!([entry]),
    }
}

/// `PATH[:DESTINATION[:ACCESS]]`
fn device(text: &str) -> Result<Device, String> {
    let mut parts = text.splitn(3, ':');
    let path = parts.next().unwrap_or_default();
    let inside = parts.next().unwrap_or(path);
    let access = parts.next().unwrap_or("rwm");
    if !inside.starts_with('/') || access.is_empty() || access.contains(|c| !"rwm".contains(c)) {
        return Err(format!(
            "{text:?} is not PATH[:DESTINATION[:ACCESS]], with ACCESS of r, w and m"
        ));
    }
    let found = std::fs::metadata(path).map_err(|e| format!("{path}: {e}"))?;
    let kind = match found.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return Err(format!("{path} is no device")),
    };
    let (major, minor) = (major(found.rdev()), minor(found.rdev()));
    Ok(Device {
        node: json!({ "path": inside, "type": kind, "major": major, "minor": minor,
                      "fileMode": found.mode() & 0o777, "uid": found.uid(), "gid": found.gid() }),
        rule: json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": access }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_and_its_rule() {
        let mut linux =
            json!({ "resources": { "devices": [{ "allow": false, "access": "rwm" }] } });
        device("/dev/full:/dev/brim:rw").unwrap().add(&mut linux);
        assert_eq!(linux["devices"][0]["path"], "/dev/brim");
        assert_eq!(linux["devices"][0]["minor"], 7);
        let rule = json!({ "allow": true, "type": "c", "major": 1, "minor": 7, "access": "rw" });
        assert_eq!(linux["resources"]["devices"][1], rule);
        for wrong in
            ["/dev", "/dev/none-of-it", "/dev/full:relative", "/dev/full:/x:rx", "/dev/full:/x:"]
        {
            assert!(device(wrong).is_err(), "{wrong}");
        }
    }
}
