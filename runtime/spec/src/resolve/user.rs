//! User namespaces with their id maps, and everything in a bundle that names an id.

use oci_spec::runtime::{LinuxIdMapping, Spec};

use crate::Problems;
use crate::resolved::{IdMap, IdMaps, MountKind, Namespace, Namespaces, Resolved};

/// UID_GID_MAP_MAX_EXTENTS, Linux 4.15 (user_namespaces(7)).
const MOST_LINES: usize = 340;

/// The id maps of the bundle. Beside a user namespace that is joined they say what that one has.
pub(super) fn id_maps(
    spec: &Spec,
    namespaces: &Namespaces,
    problems: &mut Problems,
) -> Option<IdMaps> {
    let linux = spec.linux().as_ref();
    let maps = IdMaps {
        uids: list(linux.and_then(|l| l.uid_mappings().as_ref()), "uidMappings", problems),
        gids: list(linux.and_then(|l| l.gid_mappings().as_ref()), "gidMappings", problems),
    };
    let (new, joined) = (namespaces.is_new(Namespace::User), namespaces.is_joined(Namespace::User));
    for (name, map) in [("uidMappings", &maps.uids), ("gidMappings", &maps.gids)] {
        let field = format!("linux.{name}");
        match (map.is_empty(), new, joined) {
            (true, true, _) => problems.add(field, "is missing: a new user namespace needs it"),
            (false, false, false) => {
                problems.add(field, "needs a user namespace in linux.namespaces");
            }
            _ => {}
        }
    }
    if joined && maps.uids.is_empty() != maps.gids.is_empty() {
        problems.add("linux.uidMappings", "and linux.gidMappings are given together or not at all");
    }
    (!maps.uids.is_empty() || !maps.gids.is_empty()).then_some(maps)
}

fn list(listed: Option<&Vec<LinuxIdMapping>>, name: &str, problems: &mut Problems) -> Vec<IdMap> {
    let map: Vec<IdMap> = listed
        .into_iter()
        .flatten()
        .map(|m| IdMap { inside: m.container_id(), outside: m.host_id(), size: m.size() })
        .collect();
    check_map(&map, &format!("linux.{name}"), problems);
    map
}

/// What the kernel would refuse as a whole, without a word about which line (user_namespaces(7)).
pub(super) fn check_map(map: &[IdMap], field: &str, problems: &mut Problems) {
    if map.len() > MOST_LINES {
        problems.add(field, format!("has more than {MOST_LINES} entries"));
    }
    for (i, one) in map.iter().enumerate() {
        if one.size == 0 {
            problems.add(format!("{field}[{i}].size"), "must not be 0");
        }
        // The highest id is no id: -1 stands for "leave it".
        for (name, first) in [("containerID", one.inside), ("hostID", one.outside)] {
            if u64::from(first) + u64::from(one.size) > u64::from(u32::MAX) {
                problems.add(format!("{field}[{i}].{name}"), "leads beyond the highest id");
            }
        }
        for (k, other) in map.iter().enumerate().take(i) {
            let overlap = |a: u32, b: u32| {
                u64::from(a) < u64::from(b) + u64::from(other.size)
                    && u64::from(b) < u64::from(a) + u64::from(one.size)
            };
            if overlap(one.inside, other.inside) || overlap(one.outside, other.outside) {
                problems.add(format!("{field}[{i}]"), format!("overlaps {field}[{k}]"));
            }
        }
    }
}

/// An id that the container's user namespace does not have cannot be given to anything in it.
pub(super) fn check_ids(resolved: &Resolved, problems: &mut Problems) {
    let Some(maps) = &resolved.user else { return };
    let mut uid =
        |field: String, id: u32| check_id(&maps.uids, "linux.uidMappings", field, id, problems);
    uid("process.user.uid".to_owned(), resolved.process.uid);
    for (i, device) in resolved.devices.iter().enumerate() {
        uid(format!("linux.devices[{i}].uid"), device.uid);
    }
    for (i, key, id) in mount_ids(resolved) {
        if key == "uid" {
            uid(format!("mounts[{i}].options: uid"), id);
        }
    }
    let mut gid =
        |field: String, id: u32| check_id(&maps.gids, "linux.gidMappings", field, id, problems);
    gid("process.user.gid".to_owned(), resolved.process.gid);
    for (i, id) in resolved.process.additional_gids.iter().enumerate() {
        gid(format!("process.user.additionalGids[{i}]"), *id);
    }
    for (i, device) in resolved.devices.iter().enumerate() {
        gid(format!("linux.devices[{i}].gid"), device.gid);
    }
    for (i, key, id) in mount_ids(resolved) {
        if key == "gid" {
            gid(format!("mounts[{i}].options: gid"), id);
        }
    }
}

/// Owners that new file systems get by option (tmpfs(5), devpts).
fn mount_ids(resolved: &Resolved) -> Vec<(usize, &str, u32)> {
    let mut found = Vec::new();
    for (i, mount) in resolved.mounts.iter().enumerate() {
        let MountKind::New { options, .. } = &mount.kind else { continue };
        for (key, value) in options {
            let id = value.as_deref().and_then(|v| v.parse().ok());
            if let (true, Some(id)) = (matches!(key.as_str(), "uid" | "gid"), id) {
                found.push((i, key.as_str(), id));
            }
        }
    }
    found
}

fn check_id(map: &[IdMap], maps: &str, field: String, id: u32, problems: &mut Problems) {
    if !map.is_empty() && IdMaps::outside(map, id).is_none() {
        problems.add(field, format!("{id} is not mapped by {maps}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(map: &[(u32, u32, u32)]) -> String {
        let map: Vec<IdMap> =
            map.iter().map(|m| IdMap { inside: m.0, outside: m.1, size: m.2 }).collect();
        let mut problems = Problems::default();
        check_map(&map, "m", &mut problems);
        problems.to_string()
    }

    #[test]
    fn maps_that_the_kernel_would_refuse() {
        assert_eq!(problems(&[(0, 100_000, 1000), (1000, 1000, 1), (1001, 101_000, 64535)]), "");
        assert_eq!(problems(&[(0, u32::MAX - 1, 1)]), "");
        assert_eq!(problems(&[(0, 1, 0)]), "m[0].size: must not be 0");
        assert_eq!(problems(&[(0, u32::MAX, 1)]), "m[0].hostID: leads beyond the highest id");
        assert_eq!(problems(&[(0, 100, 10), (9, 200, 10)]), "m[1]: overlaps m[0]");
        assert_eq!(problems(&[(0, 100, 10), (10, 109, 10)]), "m[1]: overlaps m[0]");
        assert_eq!(problems(&[(10, 109, 10), (0, 100, 10)]), "m[1]: overlaps m[0]");
    }

    #[test]
    fn an_id_is_found_through_its_line() {
        let map = [
            IdMap { inside: 0, outside: 100_000, size: 1000 },
            IdMap { inside: 1000, outside: 1000, size: 1 },
        ];
        let outside = |id| IdMaps::outside(&map, id);
        assert_eq!(
            (outside(0), outside(999), outside(1000), outside(1001)),
            (Some(100_000), Some(100_999), Some(1000), None)
        );
    }
}
