//! What an ordinary user can do: run containers in a user namespace, with limits where a cgroup is delegated.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hafen_integration::{Bundle, Case, Test, cases, cgroup, json};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        may_look_at_everything(Unprivileged),
        plans_a_launch(Unprivileged, Busybox),
        a_bundle_without_a_user_namespace_is_refused(Unprivileged, Busybox),
        root_of_the_container_is_the_user(Unprivileged, Busybox, UserNamespaces),
        subordinate_ids(Unprivileged, Busybox, UserNamespaces, SubordinateIds),
        ids_of_others_are_refused(Unprivileged, Busybox, UserNamespaces, SubordinateIds),
        one_id_needs_no_help(Unprivileged, Busybox, UserNamespaces),
        without_newuidmap(Unprivileged, Busybox, UserNamespaces, SubordinateIds),
        spec_for_a_user(Unprivileged, Busybox, UserNamespaces),
        state_is_the_users(Unprivileged, Busybox, UserNamespaces),
        limits_hold_where_a_cgroup_is_delegated(Unprivileged, Busybox, UserNamespaces, OwnCgroup),
        limits_of_the_whole_machine_stay(Unprivileged, Busybox, UserNamespaces, OwnCgroup),
        without_a_cgroup(Root, Busybox, UserNamespaces, Program("setpriv")),
        time_namespace_of_a_user(Unprivileged, Busybox, UserNamespaces),
        exec_as_a_user(Unprivileged, Busybox, UserNamespaces),
        joined_by_a_second_container(Unprivileged, Busybox, UserNamespaces),
    ]
}

fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn may_look_at_everything(t: &Test) {
    let oci = t.oci();
    let found = oci.call(["doctor", "--format", "json"]).ok().json();
    let all = found.as_array().expect("an array");
    let how = |what: &str| {
        let found = all.iter().find(|f| f["what"] == what);
        found.unwrap_or_else(|| panic!("no {what} in {found:?}"))
    };
    assert_eq!(how("privilege")["ok"], false, "{found}");
    assert_eq!(how("user namespaces")["ok"], true, "{found}");
    assert_eq!(how("delegated cgroup")["ok"], cgroup::delegated().is_some(), "{found}");
    let _ = how("subordinate ids");
    assert_eq!(oci.call(["features"]).ok().json()["linux"]["cgroup"]["v2"], true);
    assert_eq!(oci.call(["list", "--format", "json"]).ok().json(), json!([]));
    oci.call(["state", "nobody"]).code(1).error_with(["does not exist"]);
    oci.call(["delete", "--force", "nobody"]).ok();
}

fn plans_a_launch(t: &Test) {
    let bundle = t.bundle();
    let plan =
        t.oci().call(["explain", "--format", "json", &bundle.path().to_string_lossy()]).ok().json();
    assert!(plan["child"].as_array().is_some_and(|steps| steps.len() > 20), "{plan}");
    assert!(!t.oci().root().exists(), "explain made a state folder");
}

fn a_bundle_without_a_user_namespace_is_refused(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t
        .bundle()
        .without_namespace("user")
        .remove("/linux/uidMappings")
        .remove("/linux/gidMappings");
    for output in [oci.run(&id, &bundle), oci.create(&id, &bundle)] {
        output.code(1).error_with(["linux.namespaces", "user namespace", "spec --rootless"]);
    }
    assert!(!oci.root().join(&id).exists(), "the state folder is still there");
}

fn root_of_the_container_is_the_user(t: &Test) {
    let bundle = t.bundle().set("/root/readonly", json!(false)).sh("id -u; touch /tmp/mine");
    let made = bundle.rootfs().join("tmp/mine");
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "0\n");
    assert_eq!(fs::metadata(made).expect("the file is there").uid(), own_uid());
    let facts = t.oci().facts(&t.id(), &t.bundle());
    assert_eq!((facts.pid, facts.status.uid[0]), (1, 0));
    assert!(facts.interfaces.get("lo").is_some_and(|up| *up), "{:?}", facts.interfaces);
}

fn subordinate_ids(t: &Test) {
    let user = json!({ "uid": 1000, "gid": 1001, "additionalGids": [7] });
    let bundle = t.bundle().set("/process/user", user);
    let facts = t.oci().facts(&t.id(), &bundle);
    assert_eq!((facts.status.uid[0], facts.status.gid[0]), (1000, 1001));
    assert_eq!(facts.status.groups, [7]);
    let (oci, id) = (t.oci(), t.id());
    let _ =
        oci.create(&id, &t.bundle().set("/process/user", json!({ "uid": 1000, "gid": 1000 }))).ok();
    let _ = oci.start(&id);
    let _ = oci.delete_force(&id).ok();
}

fn ids_of_others_are_refused(t: &Test) {
    let foreign = json!([{ "containerID": 0, "hostID": 0, "size": 10 }]);
    let bundle = t.bundle().without_mount("/dev/pts").set("/linux/uidMappings", foreign);
    t.oci().run(&t.id(), &bundle).error_with(["newuidmap", "/etc/subuid"]);
}

fn one_id(bundle: Bundle) -> Bundle {
    let map = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
    bundle
        .without_mount("/dev/pts")
        .set("/linux/uidMappings", map(own_uid()))
        .set("/linux/gidMappings", map(nix::unistd::getegid().as_raw()))
}

fn one_id_needs_no_help(t: &Test) {
    let bundle = one_id(t.bundle()).sh("cat /proc/self/setgroups; id -u");
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "deny\n0\n");
    let groups = one_id(t.bundle())
        .set("/process/user", json!({ "uid": 0, "gid": 0, "additionalGids": [0] }));
    t.oci().run(&t.id(), &groups).error_with(["process.user.additionalGids", "linux.gidMappings"]);
}

fn without_newuidmap(t: &Test) {
    let (oci, bundle) = (t.oci().env("PATH", "/nowhere"), t.bundle());
    oci.run(&t.id(), &bundle).error_with(["newuidmap", "not installed", "uidmap"]);
    let _ = oci.run(&t.id(), &one_id(bundle)).ok();
}

fn spec_for_a_user(t: &Test) {
    let (oci, bundle) = (t.oci(), t.bundle());
    fs::remove_file(bundle.path().join("config.json")).expect("remove config.json");
    let path = bundle.path().display().to_string();
    let _ = oci.bare(["spec", "--rootless", "--bundle", &path]).output().ok();
    let file = bundle.path().join("config.json");
    let text = fs::read_to_string(&file).expect("read config.json");
    fs::write(&file, text.replace("\"terminal\": true", "\"terminal\": false")).expect("write");
    let _ = oci.run(&t.id(), &bundle).ok();
}

fn state_is_the_users(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let home = t.dir().join("runtime");
    let bundle = t.bundle().args(["/inside", "sleep", "600"]);
    let path = bundle.path().display().to_string();
    let call = |words: &[&str]| oci.bare(words).env("XDG_RUNTIME_DIR", &home).output();
    let _ = call(&["create", "--bundle", &path, &id]).ok();
    assert!(home.join("hafen-oci").join(&id).join("plan.json").exists());
    assert_eq!(call(&["list", "-q"]).ok().stdout, format!("{id}\n"));
    let _ = call(&["delete", "--force", &id]).ok();
    oci.bare(["list"])
        .env("XDG_RUNTIME_DIR", "")
        .output()
        .error_with(["--root", "XDG_RUNTIME_DIR"]);
}

fn limits_hold_where_a_cgroup_is_delegated(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let eater = t
        .bundle()
        .args(["/inside", "eat", "134217728"])
        .set("/linux/resources/memory", json!({ "limit": 32 << 20, "swap": 32 << 20 }));
    let _ = oci.run(&t.id(), &eater).code(137);
    let sleeper = t
        .bundle()
        .args(["/inside", "sleep", "600"])
        .set("/linux/resources/pids", json!({ "limit": 9 }));
    let _ = oci.create(&id, &sleeper).ok();
    let _ = oci.start(&id).ok();
    let folder = cgroup::folder(oci.pid(&id), "pids");
    assert!(folder.starts_with(cgroup::delegated().expect("asked for")), "{}", folder.display());
    assert_eq!(cgroup::value(&folder, "pids.max"), "9");
    let _ = oci.call(["pause", &id]).ok();
    assert_eq!(oci.status(&id).as_deref(), Some("paused"));
    let _ = oci.call(["resume", &id]).ok();
    let _ = oci.delete_force(&id).ok();
    assert!(!folder.exists());
}

/// What is not the user's to give away is refused, and nothing outside of the delegated folder is touched.
fn limits_of_the_whole_machine_stay(t: &Test) {
    let bundle = t.bundle().set("/linux/cgroupsPath", json!("/hafen-elsewhere/x")).sh("true");
    let _ = t.oci().run(&t.id(), &bundle).ok();
    let top = cgroup::tree().expect("a tree").join("hafen-elsewhere");
    assert!(!Path::new(&top).exists(), "{} was made", top.display());
}

/// As a user to whom nothing was delegated.
fn without_a_cgroup(t: &Test) {
    const SOMEBODY: u32 = 54_321;
    let map = json!([{ "containerID": 0, "hostID": SOMEBODY, "size": 1 }]);
    let bundle = || {
        t.bundle()
            .user_namespace(SOMEBODY, 1)
            .without_mount("/dev/pts")
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map.clone())
    };
    let state = t.dir().join("somebody");
    fs::create_dir(&state).expect("mkdir");
    std::os::unix::fs::chown(&state, Some(SOMEBODY), Some(SOMEBODY)).expect("chown");
    let program = t.oci().program().display().to_string();
    let call = |words: &str| {
        let script = format!(
            "exec 9<{program}; exec setpriv --reuid {SOMEBODY} --regid {SOMEBODY} --clear-groups \
             /proc/self/fd/9 --root {} {words}",
            state.display()
        );
        t.shell(&script).output()
    };
    let run = |bundle: &Bundle, verb: &str, id: &str| {
        call(&format!("{verb} --bundle {} {id}", bundle.path().display()))
    };
    let id = t.id();
    let sleeper = bundle().args(["/bin/sh", "-c", "sleep 600 & sleep 600"]);
    let _ = run(&sleeper, "create", &id).ok();
    let _ = call(&format!("start {id}")).ok();
    let pid = call(&format!("state {id}")).ok().json()["pid"].as_i64().expect("a pid");
    let own = i32::try_from(std::process::id()).expect("a pid fits");
    let pid = i32::try_from(pid).expect("a pid fits");
    assert_eq!(cgroup::folder(pid, ""), cgroup::folder(own, ""), "it has a cgroup of its own");
    let listed = hafen_integration::wait_until(std::time::Duration::from_secs(5), || {
        let pids = call(&format!("ps --format json {id}")).ok().json();
        pids.as_array().is_some_and(|all| all.len() == 2).then_some(pids)
    });
    assert!(listed.is_some(), "ps does not show both processes");
    call(&format!("pause {id}")).error_with(["no cgroup"]);
    let _ = call(&format!("kill --all {id} KILL")).ok();
    let _ = call(&format!("delete --force {id}")).ok();
    // It may not have been reaped yet.
    let left = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert_eq!(left, "", "{pid} is alive");
    let limited = bundle().set("/linux/resources/memory", json!({ "limit": 64 << 20 }));
    run(&limited, "run", &t.id()).error_with(["linux.resources.memory.limit", "no cgroups"]);
    let shared = bundle().without_namespace("pid");
    run(&shared, "run", &t.id()).error_with(["linux.namespaces", "pid namespace"]);
    let words = format!("--rootless=false run --bundle {} x", bundle().path().display());
    call(&words).error_with(["--rootless=false"]);
}

fn time_namespace_of_a_user(t: &Test) {
    let bundle = t
        .bundle()
        .namespace("time", None)
        .set("/linux/timeOffsets", json!({ "boottime": { "secs": 864_000 } }))
        .set("/process/oomScoreAdj", json!(700))
        .sh("cat /proc/self/timens_offsets /proc/self/oom_score_adj");
    let seen = t.oci().run(&t.id(), &bundle).ok().stdout;
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(words, ["monotonic", "0", "0", "boottime", "864000", "0", "700"]);
}

fn exec_as_a_user(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle =
        t.bundle().args(["/inside", "sleep", "600"]).set("/process/oomScoreAdj", json!(300));
    let _ = oci.create(&id, &bundle).ok();
    let _ = oci.start(&id).ok();
    let script = "id -u; cat /proc/1/comm; cat /proc/self/oom_score_adj; hostname";
    let process = json!({ "args": ["/bin/sh", "-c", script], "cwd": "/", "oomScoreAdj": 300,
                          "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } });
    let file = t.dir().join("process.json");
    fs::write(&file, process.to_string()).expect("write process.json");
    let output = oci.call(["exec", "--process", &file.to_string_lossy(), &id]).ok();
    assert_eq!(output.stdout, "0\ninside\n300\nhafen-test\n");
    let _ = oci.delete_force(&id).ok();
}

fn joined_by_a_second_container(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &t.bundle().args(["/inside", "sleep", "600"])).ok();
    let _ = oci.start(&id).ok();
    let pid = oci.pid(&id);
    let kinds = [("user", "user"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")];
    let bundle = kinds.iter().fold(t.bundle().remove("/hostname"), |b, (kind, file)| {
        b.namespace(kind, Some(&format!("/proc/{pid}/ns/{file}")))
    });
    let facts = oci.facts(&t.id(), &bundle);
    for (_, file) in kinds {
        let inode = fs::metadata(format!("/proc/{pid}/ns/{file}")).expect("a namespace").ino();
        assert_eq!(facts.namespaces[file], inode, "{file}");
    }
    assert_eq!(facts.hostname, "hafen-test");
    let _ = oci.delete_force(&id).ok();
}
