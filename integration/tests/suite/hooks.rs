//! Hooks, in their order, with the container's state, and what their failure ends.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hafen_integration::{Bundle, Case, Test, Value, cases, json, patience};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        each_is_called_once_and_in_order(Root, Busybox),
        run_calls_them_as_well(Root, Busybox),
        the_state_is_on_stdin(Root, Busybox),
        namespaces_in_which_they_run(Root, Busybox),
        arguments_and_environment(Root, Busybox),
        a_hook_of_the_container_has_its_rights(Root, Busybox),
        a_failure_before_the_start_ends_the_launch(Root, Busybox),
        a_failure_at_the_start_ends_the_container(Root, Busybox),
        a_failure_beside_the_program_is_told(Root, Busybox),
        a_failure_after_the_end_is_told(Root, Busybox),
        a_hook_that_takes_too_long_is_killed(Root, Busybox),
        a_hook_that_is_not_there(Root, Busybox),
        much_output_stops_nobody(Root, Busybox),
        the_container_can_be_asked_for_meanwhile(Root, Busybox),
    ]
}

const ALL: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A script of the host, or of the container for startContainer.
fn hook(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] })
}

/// The container sees the file through a volume of the same path.
fn with_log(t: &Test, bundle: Bundle) -> (Bundle, std::path::PathBuf) {
    let folder = t.dir().join("volume");
    fs::create_dir(&folder).expect("mkdir");
    let path = folder.to_string_lossy().into_owned();
    let mount =
        json!({ "destination": path, "type": "bind", "source": path, "options": ["bind", "rw"] });
    (bundle.push("/mounts", mount), folder.join("log"))
}

fn logging(t: &Test) -> (Bundle, std::path::PathBuf) {
    let (mut bundle, log) = with_log(t, t.bundle().args(["/inside", "exit", "3"]));
    for kind in ALL {
        for number in 1..3 {
            let script = format!("echo {kind} {number} >> {}", log.display());
            bundle = bundle.push(&format!("/hooks/{kind}"), hook(&script));
        }
    }
    (bundle, log)
}

fn lines(log: &Path) -> Vec<String> {
    fs::read_to_string(log).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn expected(kinds: &[&str]) -> Vec<String> {
    kinds.iter().flat_map(|kind| (1..3).map(move |n| format!("{kind} {n}"))).collect()
}

fn each_is_called_once_and_in_order(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let (bundle, log) = logging(t);
    let bundle = bundle.args(["/inside", "sleep", "600"]);
    let _ = oci.create(&id, &bundle).ok();
    assert_eq!(lines(&log), expected(&ALL[..3]));
    let _ = oci.start(&id).ok();
    assert_eq!(lines(&log), expected(&ALL[..5]));
    let _ = oci.kill(&id, "KILL").ok();
    oci.await_status(&id, "stopped");
    let _ = oci.delete(&id).ok();
    assert_eq!(lines(&log), expected(&ALL));
}

fn run_calls_them_as_well(t: &Test) {
    let (bundle, log) = logging(t);
    let _ = t.oci().run(&t.id(), &bundle).code(3);
    assert_eq!(lines(&log), expected(&ALL));
}

fn the_state_is_on_stdin(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let (mut bundle, log) = with_log(t, t.bundle().args(["/inside", "sleep", "600"]));
    for kind in ALL {
        let script = format!("cat >> {0}; echo >> {0}", log.display());
        bundle = bundle.push(&format!("/hooks/{kind}"), hook(&script));
    }
    let bundle = bundle.set("/annotations", json!({ "org.example.a": "b" }));
    let _ = oci.create(&id, &bundle).ok();
    let pid = oci.pid(&id);
    let _ = oci.start(&id).ok();
    let _ = oci.delete_force(&id).ok();
    let states: Vec<Value> =
        lines(&log).iter().map(|l| serde_json::from_str(l).expect("a state")).collect();
    let statuses: Vec<&str> = states.iter().filter_map(|s| s["status"].as_str()).collect();
    assert_eq!(statuses, ["created", "creating", "creating", "created", "running", "stopped"]);
    for state in &states {
        assert_eq!(state["id"], json!(id));
        assert_eq!(state["ociVersion"], bundle.config()["ociVersion"]);
        assert_eq!(state["bundle"], json!(bundle.path().to_string_lossy()));
        assert_eq!(state["annotations"], json!({ "org.example.a": "b" }));
    }
    assert!(states[..5].iter().all(|s| s["pid"] == json!(pid)), "{states:?}");
    assert!(states[5].get("pid").is_none(), "{states:?}");
}

fn namespaces_in_which_they_run(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let (mut bundle, log) = with_log(t, t.bundle().args(["/inside", "sleep", "600"]));
    for kind in ALL {
        let script = format!(
            "readlink /proc/self/ns/net >> {}; ls / >> {}.{kind}",
            log.display(),
            log.display()
        );
        bundle = bundle.push(&format!("/hooks/{kind}"), hook(&script));
    }
    let _ = oci.create(&id, &bundle).ok();
    let _ = oci.start(&id).ok();
    let link = |pid: &str| {
        fs::read_link(format!("/proc/{pid}/ns/net")).expect("a namespace").display().to_string()
    };
    let (own, theirs) = (link("self"), link(&oci.pid(&id).to_string()));
    let _ = oci.delete_force(&id).ok();
    assert_eq!(lines(&log).iter().collect::<Vec<_>>(), [&own, &own, &theirs, &theirs, &own, &own]);
    let sees_the_container = |kind: &str| {
        let listed = fs::read_to_string(format!("{}.{kind}", log.display())).expect("a list");
        listed.lines().any(|l| l == "inside")
    };
    let inside: Vec<&str> = ALL.into_iter().filter(|k| sees_the_container(k)).collect();
    assert_eq!(inside, ["startContainer"]);
}

fn arguments_and_environment(t: &Test) {
    let (bundle, log) = with_log(t, t.bundle().args(["/inside", "exit", "0"]));
    let script = format!("echo \"$0 $1 $A ${{HOME-none}}\" >> {}", log.display());
    let hook =
        json!({ "path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"], "env": ["A=b"] });
    let bundle =
        bundle.push("/hooks/createRuntime", hook.clone()).push("/hooks/startContainer", hook);
    let _ = t.oci().run(&t.id(), &bundle).ok();
    assert_eq!(lines(&log), ["zero one b none", "zero one b none"]);
}

/// The program comes from the container's own root: it must not have more rights than the container.
fn a_hook_of_the_container_has_its_rights(t: &Test) {
    let bundle = t.bundle().set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let bundle = bundle.set("/process/capabilities", json!({ "bounding": ["CAP_KILL"] }));
    let (bundle, log) = with_log(t, bundle.args(["/inside", "exit", "0"]));
    let _ =
        t.shell(&format!("chmod 777 {}", log.parent().expect("a folder").display())).output().ok();
    let script = format!(
        "(id -u; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status) > {}",
        log.display()
    );
    let bundle = bundle.push("/hooks/startContainer", hook(&script));
    let _ = t.oci().run(&t.id(), &bundle).ok();
    assert_eq!(
        lines(&log),
        ["1000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000020", "NoNewPrivs:\t1"]
    );
}

fn a_failure_before_the_start_ends_the_launch(t: &Test) {
    for kind in &ALL[..3] {
        let (oci, id) = (t.oci(), t.id());
        let log = t.dir().join(format!("{kind}.log"));
        let bundle = t
            .bundle()
            .push(&format!("/hooks/{kind}"), hook("true"))
            .push(&format!("/hooks/{kind}"), hook("echo some words; echo more >&2; exit 9"))
            .push("/hooks/poststop", hook(&format!("echo stopped > {}", log.display())));
        oci.create(&id, &bundle).error_with([kind, "hook #1", "exit status 9", "some words more"]);
        assert_eq!(oci.status(&id), None);
        assert_eq!(lines(&log), ["stopped"], "{kind}");
    }
}

fn a_failure_at_the_start_ends_the_container(t: &Test) {
    for kind in &ALL[3..5] {
        let (oci, id) = (t.oci(), t.id());
        let bundle = t
            .bundle()
            .set("/ociVersion", json!("1.2.1"))
            .args(["/inside", "sleep", "600"])
            .push(&format!("/hooks/{kind}"), hook("echo no; exit 9"));
        let _ = oci.create(&id, &bundle).ok();
        oci.start(&id).error_with([kind, "hook #0", "exit status 9", "no"]);
        oci.await_status(&id, "stopped");
        let _ = oci.delete(&id).ok();
        t.oci().run(&t.id(), &bundle).error_with([kind, "exit status 9"]);
    }
}

/// As the spec had it before 1.2.1.
fn a_failure_beside_the_program_is_told(t: &Test) {
    let log = t.dir().join("log");
    let bundle = t
        .bundle()
        .set("/ociVersion", json!("1.2.0"))
        .args(["/inside", "exit", "5"])
        .push("/hooks/poststart", hook("exit 9"))
        .push("/hooks/poststart", hook(&format!("echo second > {}", log.display())));
    let output = t.oci().run(&t.id(), &bundle).code(5);
    assert!(output.stderr.contains("poststart hook #0"), "{output}");
    assert_eq!(lines(&log), ["second"]);
}

fn a_failure_after_the_end_is_told(t: &Test) {
    let log = t.dir().join("log");
    let bundle = t
        .bundle()
        .args(["/inside", "exit", "0"])
        .push("/hooks/poststop", hook("exit 9"))
        .push("/hooks/poststop", hook(&format!("echo second > {}", log.display())));
    let output = t.oci().run(&t.id(), &bundle).ok();
    assert!(output.stderr.contains("poststop hook #0"), "{output}");
    assert_eq!(lines(&log), ["second"]);
}

fn a_hook_that_takes_too_long_is_killed(t: &Test) {
    for kind in ["createRuntime", "createContainer", "startContainer"] {
        let slow = json!({ "path": "/bin/sleep", "args": ["sleep", "600"], "timeout": 1 });
        let bundle =
            t.bundle().args(["/inside", "exit", "0"]).push(&format!("/hooks/{kind}"), slow);
        let began = Instant::now();
        t.oci().run(&t.id(), &bundle).error_with([kind, "took longer than 1 seconds"]);
        assert!(began.elapsed() < patience(Duration::from_secs(20)), "{kind}");
    }
}

fn a_hook_that_is_not_there(t: &Test) {
    for kind in &ALL[..4] {
        let gone = json!({ "path": "/no/such/hook" });
        let bundle = t.bundle().push(&format!("/hooks/{kind}"), gone);
        t.oci().run(&t.id(), &bundle).error_with([*kind, "/no/such/hook"]);
    }
}

fn much_output_stops_nobody(t: &Test) {
    let script = "i=0; while [ $i -lt 5000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done";
    let bundle =
        t.bundle().args(["/inside", "exit", "4"]).push("/hooks/createRuntime", hook(script));
    let _ = t.oci().run(&t.id(), &bundle).code(4);
}

fn the_container_can_be_asked_for_meanwhile(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let log = t.dir().join("log");
    let ask = format!(
        "{} --root {} state {id} > {}",
        oci.program().display(),
        oci.root().display(),
        log.display()
    );
    let bundle = t.bundle().args(["/inside", "exit", "0"]).push("/hooks/createRuntime", hook(&ask));
    let _ = oci.run(&id, &bundle).ok();
    let state: Value =
        serde_json::from_str(&fs::read_to_string(&log).expect("a state")).expect("JSON");
    assert_eq!((&state["id"], &state["status"]), (&json!(id), &json!("creating")));
}
