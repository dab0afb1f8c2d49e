//! `explain` does nothing, and tells the truth about what a launch will do.

use std::path::{Path, PathBuf};

use hafen_integration::{Bundle, Case, Host, Need, Test, Value, cases, cgroup, json, needs};

const MIB: u64 = 1 << 20;

pub(crate) fn trials() -> Vec<Case> {
    let mut all = cases![
        it_does_nothing(OwnCgroup, Busybox),
        text_names_what_json_names(OwnCgroup, Busybox),
        its_steps_are_in_the_order_of_a_launch(Launcher, Busybox),
        a_wrong_bundle_is_refused_as_by_run(Launcher, Busybox),
        without_a_bundle_it_explains_an_overlay(Root, Busybox, FileSystem("overlay")),
        claims_are_what_then_exists(Launcher, Busybox, Limit("memory"), Limit("pids")),
    ];
    all.extend(files_hold_what_was_said());
    all
}

/// One case per group of limits, so that a host without a controller still shows the others.
fn files_hold_what_was_said() -> Vec<Case> {
    let table: [(&str, Vec<Need>, Value); 8] = [
        ("memory", needs![Limit("memory")], json!({ "memory": { "limit": 64 * MIB } })),
        (
            "reservation",
            needs![Limit("memory")],
            json!({ "memory": { "limit": 64 * MIB, "reservation": 32 * MIB } }),
        ),
        (
            "swap",
            needs![Limit("memory"), That("accounting of swap", counts_swap)],
            json!({ "memory": { "limit": 64 * MIB, "swap": 96 * MIB } }),
        ),
        (
            "cpu",
            needs![Limit("cpu")],
            json!({ "cpu": { "quota": 50_000, "period": 200_000, "shares": 512, "burst": 10_000 } }),
        ),
        ("quota_alone", needs![Limit("cpu")], json!({ "cpu": { "quota": 75_000 } })),
        ("cpuset", needs![Limit("cpuset")], json!({ "cpu": { "cpus": "0", "mems": "0" } })),
        ("pids", needs![Limit("pids")], json!({ "pids": { "limit": 32 } })),
        (
            "unified_map",
            needs![Unified, Cgroup2("memory")],
            json!({ "unified": { "memory.high": "50331648", "memory.oom.group": "1", "cpu.weight": "77" } }),
        ),
    ];
    let case = |(name, more, resources): (&str, Vec<Need>, Value)| {
        let mut all = needs![Root, Busybox];
        all.extend(more);
        let name = format!("explain::files_hold_what_was_said::{name}");
        Case::new(name, all, move |t| compare_files(t, &resources))
    };
    table.into_iter().map(case).collect()
}

fn counts_swap() -> bool {
    let folder = cgroup::v1("memory").map(|m| m.join("memory.memsw.limit_in_bytes"));
    folder.is_none_or(|file| file.exists())
}

/// The plan of a bundle.
fn plan(t: &Test, bundle: &Bundle) -> Value {
    let words = ["explain".as_ref(), "--format".as_ref(), "json".as_ref()];
    t.oci().call(words.into_iter().chain([bundle.path().as_os_str()])).ok().json()
}

fn text(t: &Test, bundle: &Bundle) -> String {
    t.oci().call(["explain".as_ref(), bundle.path().as_os_str()]).ok().stdout
}

fn steps<'a>(plan: &'a Value, list: &str, kind: &str) -> Vec<&'a Value> {
    let all = plan[list].as_array().unwrap_or_else(|| panic!("no {list} in {plan}"));
    all.iter().filter(|step| step["do"] == kind).collect()
}

/// Every kernel file with its value.
fn knobs(plan: &Value) -> Vec<(PathBuf, String)> {
    let both = ["before", "beside"].into_iter().flat_map(|list| steps(plan, list, "knob"));
    let word = |step: &Value, name: &str| step[name].as_str().expect("text").to_owned();
    both.map(|step| (word(step, "file").into(), word(step, "value"))).collect()
}

/// `explain` knows no id, so the folder's name is given.
fn named(t: &Test, resources: &Value) -> (String, Bundle) {
    let id = t.id();
    let bundle = t
        .bundle()
        .edit(|config| {
            let all = resources.as_object().expect("an object").clone();
            all.into_iter().for_each(|(k, v)| config["linux"]["resources"][k] = v);
        })
        .set("/linux/cgroupsPath", json!(format!("/hafen-explained/{id}")));
    (id, bundle)
}

fn compare_files(t: &Test, resources: &Value) {
    let (id, bundle) = named(t, resources);
    let said = knobs(&plan(t, &bundle));
    assert!(!said.is_empty(), "no file is named for {resources}");
    let lines = text(t, &bundle);
    let oci = t.oci();
    let _ = oci.create(&id, &bundle).ok();
    for (file, value) in &said {
        let read = |file: &Path| {
            let held = std::fs::read_to_string(file);
            held.unwrap_or_else(|e| panic!("{}: {e}", file.display()))
        };
        if file.ends_with("devices.allow") || file.ends_with("devices.deny") {
            // These are for writing.
            let list = read(&file.with_file_name("devices.list"));
            let allowed = list.lines().any(|l| l == value);
            assert_eq!(allowed, file.ends_with("devices.allow"), "{value}: {list}");
        } else {
            assert_eq!(read(file).trim(), value, "{}", file.display());
        }
        let line = format!("write {value:?} to {}", file.display());
        assert!(lines.contains(&line), "{line:?} is not in the text:\n{lines}");
    }
    let _ = oci.delete_force(&id).ok();
}

fn it_does_nothing(t: &Test) {
    let bundle = t.bundle().set("/linux/resources/pids", json!({ "limit": 32 }));
    let before = (Host::snapshot(), files(bundle.path()));
    let _ = plan(t, &bundle);
    let _ = text(t, &bundle);
    let after = (Host::snapshot(), files(bundle.path()));
    assert_eq!(before.0.difference(&after.0), Vec::<String>::new());
    assert_eq!(before.1, after.1, "the bundle was changed");
    assert!(!t.oci().root().exists(), "the folder of --root was made");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("read a folder") {
        let entry = entry.expect("read a folder");
        if entry.file_type().expect("a type").is_dir() {
            found.extend(files(&entry.path()));
        }
        found.push(entry.path());
    }
    found.sort();
    found
}

fn text_names_what_json_names(t: &Test) {
    let (_, bundle) = named(t, &json!({ "pids": { "limit": 32 } }));
    let lines = text(t, &bundle);
    let plan = plan(t, &bundle);
    for claim in plan["claims"].as_array().expect("claims") {
        let path = claim["path"].as_str().expect("a path");
        assert!(lines.contains(path), "claim {path} is not in:\n{lines}");
    }
    let child = plan["child"].as_array().expect("steps").len();
    let numbered = lines.lines().filter(|l| l.trim_start().starts_with(char::is_numeric)).count();
    assert_eq!(numbered, child, "{lines}");
    for mount in bundle.config()["mounts"].as_array().expect("mounts") {
        let destination = format!("{}", mount["destination"]);
        assert!(lines.contains(&destination), "mount {destination} is not in:\n{lines}");
    }
}

fn its_steps_are_in_the_order_of_a_launch(t: &Test) {
    let plan = plan(t, &t.bundle().args(["/inside", "exit", "0"]));
    let steps: Vec<&str> = plan["child"]
        .as_array()
        .expect("steps")
        .iter()
        .map(|step| step["do"].as_str().expect("a name"))
        .collect();
    let place = |name: &str| {
        steps.iter().position(|s| *s == name).unwrap_or_else(|| panic!("no {name} in {steps:?}"))
    };
    let order = ["mount", "changeRoot", "ids", "capabilities", "execute"];
    let places = order.map(place);
    assert!(places.is_sorted(), "{order:?} are at {places:?} in {steps:?}");
    // The runtime's part is done before any right is given up.
    assert!(place("awaitGo") < place("rlimit"), "{steps:?}");
    assert_eq!(steps.last(), Some(&"execute"));
}

fn a_wrong_bundle_is_refused_as_by_run(t: &Test) {
    let bundle = t
        .bundle()
        .set("/process/cwd", json!("relative"))
        .set("/hooks", json!({ "prestart": [{ "path": "bin/true" }] }));
    let explained = t.oci().call(["explain".as_ref(), bundle.path().as_os_str()]);
    explained.error_with(["process.cwd", "hooks.prestart[0].path"]);
    let ran = t.oci().run(&t.id(), &bundle);
    assert_eq!(explained.error_line(), ran.error_line());
}

fn without_a_bundle_it_explains_an_overlay(t: &Test) {
    let bundle = t.bundle();
    let rootfs = bundle.rootfs().display().to_string();
    let words = ["explain", "--rootfs", &rootfs, "--pids", "32", "--", "/inside", "exit", "0"];
    let output = t.oci().call(words).ok();
    for part in ["overlay", &rootfs, "pids.max", "\"32\"", "scratch"] {
        assert!(output.stdout.contains(part), "no {part:?} in {output}");
    }
    assert!(!t.oci().root().exists(), "the folder of --root was made");
}

fn claims_are_what_then_exists(t: &Test) {
    let resources = json!({ "memory": { "limit": 64 * MIB }, "pids": { "limit": 32 } });
    let (id, bundle) = named(t, &resources);
    let plan = plan(t, &bundle);
    let oci = t.oci();
    let before = Host::snapshot();
    let _ = oci.create(&id, &bundle).ok();
    let came: Vec<String> = before
        .difference(&Host::snapshot())
        .iter()
        .filter_map(|line| line.strip_prefix("+ cgroup "))
        .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
        .filter(|path| path.contains("hafen"))
        .collect();
    let mut claimed: Vec<String> = plan["claims"]
        .as_array()
        .expect("claims")
        .iter()
        .flat_map(|c| [&c["path"]].into_iter().chain(c["parents"].as_array().expect("parents")))
        .map(|path| path.as_str().expect("a path").to_owned())
        .collect();
    claimed.sort();
    assert_eq!(came, claimed);
    let _ = oci.delete_force(&id).ok();
}
