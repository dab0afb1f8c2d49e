//! Containers that ask for the same cgroup, or for neighbours below the same folder.

use std::fs;
use std::path::PathBuf;

use hafen_integration::{Bundle, Case, Test, cases, cgroup, json};

use super::{limited, soon};

pub(super) fn trials() -> Vec<Case> {
    cases![
        two_launches_into_one_new_cgroup(Root, Busybox),
        two_launches_into_one_empty_cgroup(Root, Busybox),
        the_last_of_two_neighbours_takes_their_folder_away(Root, Busybox),
    ]
}

fn in_cgroup(t: &Test, path: &str, script: &str) -> Bundle {
    limited(t, script).set("/linux/cgroupsPath", json!(path))
}

/// In every hierarchy of this host.
fn folders(path: &str) -> Vec<PathBuf> {
    let all = cgroup::hierarchies().into_iter().map(|h| h.mount.join(path.trim_start_matches('/')));
    all.filter(|folder| folder.exists()).collect()
}

fn two_launches_into_one_new_cgroup(t: &Test) {
    race(t, |_| ());
}

/// As by a client that makes the folder beforehand.
fn two_launches_into_one_empty_cgroup(t: &Test) {
    race(t, |path| {
        let tree = cgroup::tree().expect("a cgroup2 tree");
        fs::create_dir(tree.join(path)).expect("make a cgroup");
    });
}

/// One gets it and comes to its own end; the other is refused, and neither kills nor removes anything.
fn race(t: &Test, prepare: impl Fn(&str)) {
    const ROUNDS: u32 = 12;
    for round in 0..ROUNDS {
        let path = t.id();
        prepare(&path);
        let bundle = in_cgroup(t, &path, "sleep 0.3; exit 5");
        let oci = t.oci();
        let calls = [0, 1].map(|_| {
            let words = ["run", "--bundle", &bundle.path().display().to_string(), &t.id()];
            oci.spawn(words)
        });
        let mut outputs = calls.map(hafen_integration::Running::wait);
        outputs.sort_by_key(|output| output.exit);
        let [refused, won] = outputs;
        assert_eq!(won.exit, Some(5), "round {round}: {won}\n{refused}");
        refused.error_with([path.as_str(), "File exists"]);
        assert!(soon(|| folders(&path).is_empty()), "round {round}: {:?}", folders(&path));
    }
}

fn the_last_of_two_neighbours_takes_their_folder_away(t: &Test) {
    let oci = t.oci();
    for last in [0, 1] {
        let (above, ids) = (t.id(), [t.id(), t.id()]);
        for id in &ids {
            let _ = oci.create(id, &in_cgroup(t, &format!("/{above}/between/{id}"), "true")).ok();
        }
        let _ = oci.delete_force(&ids[1 - last]).ok();
        assert!(!folders(&above).is_empty(), "{above} is in use");
        let _ = oci.delete_force(&ids[last]).ok();
        assert!(folders(&above).is_empty(), "still there: {:?}", folders(&above));
    }
}
