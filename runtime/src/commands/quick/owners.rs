//! `--uidmap` and `--gidmap`: a user namespace.

use hafen_spec::Problems;
use serde_json::{Value, json};

use crate::cli::QuickArgs;

/// The mappings as a bundle has them, of users and of groups; nothing without a user namespace.
pub(super) fn maps(args: &QuickArgs, problems: &mut Problems) -> Option<[Value; 2]> {
    let mut all = |option: &str, lines: &[String]| -> Value {
        let parsed = lines.iter().filter_map(|line| match parse(line) {
            Some([inside, outside, size]) => {
                Some(json!({ "containerID": inside, "hostID": outside, "size": size }))
            }
            None => {
                problems.add(option, format!("{line:?} is not INSIDE:OUTSIDE:SIZE in numbers"));
                None
            }
        });
        parsed.collect()
    };
    if args.uidmap.is_empty() {
        return None;
    }
    let uids = all("--uidmap", &args.uidmap);
    let gids = if args.gidmap.is_empty() { uids.clone() } else { all("--gidmap", &args.gidmap) };
    Some([uids, gids])
}

fn parse(line: &str) -> Option<[u32; 3]> {
    let numbers: Vec<u32> = line.split(':').map_while(|n| n.parse().ok()).collect();
    numbers.try_into().ok().filter(|_| line.matches(':').count() == 2)
}

/// Have a user namespace with these mappings.
pub(super) fn add(maps: &[Value; 2], linux: &mut Value) {
    let [uids, gids] = maps;
    linux["uidMappings"] = uids.clone();
    linux["gidMappings"] = gids.clone();
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "user" }));
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn three_numbers() {
        assert_eq!(parse("0:100000:65536"), Some([0, 100_000, 65536]));
        for wrong in ["", "0", "0:1", "0:1:2:3", "0:1:x", "-1:0:1", "0:1:2:"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
