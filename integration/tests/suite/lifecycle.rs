//! The states of a container, and the words and files that clients rely on.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen_integration::{Bundle, Case, Oci, Output, Test, Value, cases, cgroup, json, wait_until};

pub(crate) fn trials() -> Vec<Case> {
    let keyrings = || Path::new("/proc/keys").exists();
    cases![
        states_and_the_words_of_refusals(Launcher, Busybox),
        state_document_is_the_specs(Launcher, Busybox),
        an_unknown_container(Launcher),
        delete_force_ends_what_runs(Launcher, Busybox),
        delete_of_a_created_container(Launcher, Busybox),
        a_created_container_can_be_killed(Launcher, Busybox),
        the_first_process_is_an_orphan(Launcher, Busybox),
        nothing_holds_the_standard_streams(Root, Busybox),
        pid_file_holds_the_pid(Launcher, Busybox),
        signals_by_name_and_number(Launcher, Busybox),
        a_signal_that_does_not_exist(Launcher, Busybox),
        kill_all_reaches_every_process(Launcher, Busybox),
        kill_all_kills_what_stays_behind_its_parent(Launcher, OwnCgroup, Busybox),
        delete_removes_what_lingers(Launcher, OwnCgroup, Busybox),
        run_passes_signals_on(Launcher, Busybox),
        exit_codes(Launcher, Busybox),
        exit_codes_of_signals(Launcher, OwnCgroup, Busybox),
        run_ends_when_the_container_does(Launcher, OwnCgroup, Busybox),
        list_and_ps(Launcher, OwnCgroup, Busybox),
        preserved_descriptors(Launcher, Busybox),
        session_keyring(Root, Busybox, That("/proc/keys", keyrings)),
        without_pivot_root(Launcher, Busybox),
        log_file_in_json_and_in_text(Launcher, Busybox),
        log_file_holds_warnings(Root, Busybox),
        one_of_many_gets_the_id(Launcher, Busybox),
        fifty_at_once(Launcher, OwnCgroup, Busybox),
        cgroup_path_of_the_client(Launcher, OwnCgroup, Busybox),
        cgroup_folder_made_by_the_client(Root, Busybox),
        containers_share_a_parent_cgroup(Root, Busybox),
        namespaces_of_another_container(Root, Busybox),
        pid_namespace_of_another_container(Root, Busybox),
        cwd_is_made_and_may_be_closed_to_the_user(Launcher, Busybox),
        the_program_is_found_in_the_containers_path(Launcher, Busybox),
        global_options_of_clients(Launcher, OwnCgroup, Busybox),
        another_specification_of_the_bundle(Launcher, Busybox),
        run_keeps_the_container(Launcher, Busybox),
        capabilities_that_nobody_knows_are_left_out(Launcher, Busybox),
        groups_of_the_caller_are_kept_on_demand(Root, Busybox),
        delete_of_what_the_v1_freezer_holds(Root, Busybox, That("v1 freezer", has_v1_freezer)),
        version_lines(),
        spec_makes_a_bundle_that_runs(Root, Busybox),
        features_are_told(),
        doctor_tells_every_controller(Root),
        overlay_on_a_folder_writes_nothing_back(Root, Busybox, FileSystem("overlay")),
        overlay_on_the_host_writes_nothing_back(Root, Busybox, FileSystem("overlay")),
        overlay_has_limits(
            Root,
            Busybox,
            FileSystem("overlay"),
            Limit("memory"),
            Limit("pids"),
            Limit("cpu")
        ),
        overlay_options(Root, Busybox, FileSystem("overlay")),
        overlay_scratch_is_gone_when_it_fails(Root, Busybox, FileSystem("overlay")),
    ]
}

fn sleeper(t: &Test) -> Bundle {
    t.bundle().args(["/inside", "sleep", "600"])
}

/// A container that was started.
fn started(oci: &Oci, id: &str, bundle: &Bundle) -> i32 {
    let _ = oci.create(id, bundle).ok();
    let _ = oci.start(id).ok();
    oci.pid(id)
}

/// `VERB --bundle BUNDLE OPTIONS.. ID`.
fn words(verb: &str, bundle: &Bundle, options: &[&str], id: &str) -> Vec<String> {
    let path = bundle.path().display().to_string();
    let head = [verb, "--bundle", &path].into_iter();
    head.chain(options.iter().copied()).chain([id]).map(str::to_owned).collect()
}

fn states_and_the_words_of_refusals(t: &Test) {
    let (oci, id, bundle) = (t.oci(), t.id(), sleeper(t));
    let _ = oci.create(&id, &bundle).ok();
    assert_eq!(oci.status(&id).as_deref(), Some("created"));
    oci.create(&id, &bundle).error_with(["already exists"]);
    oci.delete(&id).error_with(["not stopped", "created"]);
    let _ = oci.start(&id).ok();
    assert_eq!(oci.status(&id).as_deref(), Some("running"));
    oci.start(&id).error_with(["cannot start an already running container"]);
    oci.delete(&id).error_with(["not stopped", "running"]);
    assert_eq!(oci.status(&id).as_deref(), Some("running"), "a refusal changed something");
    let _ = oci.kill(&id, "KILL").ok();
    oci.await_status(&id, "stopped");
    oci.kill(&id, "KILL").error_with(["not running"]);
    oci.kill(&id, "0").error_with(["not running"]);
    oci.start(&id).error_with(["cannot start a container that has stopped"]);
    let _ = oci.delete(&id).ok();
    assert_eq!(oci.status(&id), None);
    // The name is free again.
    let _ = oci.create(&id, &bundle).ok();
    let _ = oci.delete_force(&id).ok();
}

fn state_document_is_the_specs(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let notes = json!({ "org.example.key": "a value", "empty": "" });
    let bundle = sleeper(t).set("/annotations", notes.clone()).set("/ociVersion", json!("1.1.0"));
    let _ = oci.create(&id, &bundle).ok();
    let document = |status: &str, pid: Option<i32>| {
        let mut wanted = json!({
            "ociVersion": "1.1.0", "id": id, "status": status, "bundle": bundle.path(), "annotations": notes,
        });
        if let Some(pid) = pid {
            wanted["pid"] = json!(pid);
        }
        assert_eq!(oci.state(&id), wanted);
    };
    let pid = oci.pid(&id);
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    document("created", Some(pid));
    let _ = oci.start(&id).ok();
    document("running", Some(pid));
    let _ = oci.kill(&id, "KILL").ok();
    oci.await_status(&id, "stopped");
    document("stopped", None);
    let _ = oci.delete(&id).ok();
}

fn an_unknown_container(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    for verb in ["start", "state", "kill", "delete", "ps"] {
        oci.call([verb, &id]).error_with(["does not exist", &id]);
    }
    let quiet = oci.delete_force(&id).ok();
    assert_eq!((&*quiet.stdout, &*quiet.stderr), ("", ""));
    assert_eq!(oci.call(["list", "--format", "json"]).ok().json(), json!([]));
    assert!(!oci.root().exists(), "only looking made {}", oci.root().display());
}

fn delete_force_ends_what_runs(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let pid = started(&oci, &id, &sleeper(t));
    let _ = oci.delete_force(&id).ok();
    assert_eq!(oci.status(&id), None);
    assert!(is_gone(pid), "process {pid} is still there");
    let _ = oci.delete_force(&id).ok();
}

/// It does not run any more; the suite, its parent now, may not have waited for it yet.
fn is_gone(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty()
}

fn delete_of_a_created_container(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &t.bundle().sh("touch /mnt/ran")).ok();
    let _ = oci.delete_force(&id).ok();
    assert_eq!(oci.status(&id), None);
}

fn a_created_container_can_be_killed(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &sleeper(t)).ok();
    let _ = oci.kill(&id, "KILL").ok();
    oci.await_status(&id, "stopped");
    oci.start(&id).error_with(["cannot start a container that has stopped"]);
    let _ = oci.delete(&id).ok();
}

/// Clients are subreapers and wait for it themselves (conmon, containerd's shim): no monitor of ours stays.
fn the_first_process_is_an_orphan(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &sleeper(t)).ok();
    let pid = oci.pid(&id);
    let me = std::process::id();
    let children = || {
        let list = fs::read_to_string(format!("/proc/{me}/task/{me}/children")).unwrap_or_default();
        list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(children().contains(&pid.to_string()), "{pid} is not among {:?}", children());
    let _ = oci.start(&id).ok();
    let ours: Vec<String> = children()
        .into_iter()
        .filter(|p| {
            let line = fs::read_to_string(format!("/proc/{p}/cmdline")).unwrap_or_default();
            line.contains("hafen-oci")
        })
        .collect();
    assert!(ours.is_empty(), "processes {ours:?} of hafen-oci stay");
    let _ = oci.delete_force(&id).ok();
}

/// The reader of a pipe sees its end as soon as the container has ended, before it is deleted.
fn nothing_holds_the_standard_streams(t: &Test) {
    let (bundle, id) = (t.bundle().sh("echo out; echo err >&2"), t.id());
    let script = format!(
        "{{ $OCI create --bundle {b} {id} && $OCI start {id}; }} 2>&1 | cat; $OCI delete --force {id}",
        b = bundle.path().display()
    );
    let output = t.shell(&script).time_limit(Duration::from_secs(10)).output().ok();
    assert_eq!(output.stdout, "out\nerr\n", "{output}");
    // The streams of the caller are the container's own, not copies of the runtime's.
    let (oci, id) = (t.oci(), t.id());
    let facts = oci.create(&id, &t.bundle().args(["/inside", "fds"]));
    let _ = facts.ok();
    let pid = oci.pid(&id);
    let fds: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("list descriptors")
        .map(|e| fs::read_link(e.expect("an entry").path()).expect("read a link"))
        .collect();
    let state = oci.root().join(&id);
    let foreign: Vec<&PathBuf> = fds
        .iter()
        .filter(|p| p.is_absolute() && !p.starts_with(t.dir()) && !p.starts_with("/dev"))
        .collect();
    assert!(foreign.is_empty(), "besides its streams and {}: {foreign:?}", state.display());
    let _ = oci.delete_force(&id).ok();
}

fn pid_file_holds_the_pid(t: &Test) {
    let (oci, id, bundle) = (t.oci(), t.id(), sleeper(t));
    let file = t.dir().join("pid");
    let name = file.display().to_string();
    let _ = oci.call(words("create", &bundle, &["--pid-file", &name], &id)).ok();
    let text = fs::read_to_string(&file).expect("read the pid file");
    assert_eq!(text, oci.pid(&id).to_string());
    let _ = oci.delete_force(&id).ok();
    let id = t.id();
    let _ = oci.call(words("run", &t.bundle(), &["--pid-file", &name], &id)).ok();
    let second = fs::read_to_string(&file).expect("read the pid file");
    assert!(second != text && second.parse::<i32>().is_ok(), "{second:?} after {text:?}");
}

fn signals_by_name_and_number(t: &Test) {
    let oci = t.oci();
    for (typed, number) in
        [("10", "10"), ("USR1", "10"), ("SIGUSR1", "10"), ("sigusr2", "12"), ("term", "15")]
    {
        let id = t.id();
        let bundle = t.bundle().args(["/inside", "await", number, "5"]);
        let mut run = oci.spawn(words("run", &bundle, &[], &id));
        run.await_text("ready");
        let _ = oci.kill(&id, typed).ok();
        let _ = run.wait().code(5);
    }
    // Without a word it is TERM.
    let id = t.id();
    let mut run =
        oci.spawn(words("run", &t.bundle().args(["/inside", "await", "15", "6"]), &[], &id));
    run.await_text("ready");
    let _ = oci.call(["kill", &id]).ok();
    let _ = run.wait().code(6);
}

fn a_signal_that_does_not_exist(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &sleeper(t)).ok();
    for signal in ["MOON", "65", "-1", "", "SIG", "9x"] {
        oci.call(["kill", "--", &id, signal]).error_with(["unknown signal"]);
    }
    assert_eq!(oci.status(&id).as_deref(), Some("created"));
    let _ = oci.kill(&id, "0").ok();
    let _ = oci.delete_force(&id).ok();
}

fn pids_of(oci: &Oci, id: &str) -> Vec<i32> {
    serde_json::from_value(oci.call(["ps", "--format", "json", id]).ok().json()).expect("pids")
}

fn await_processes(oci: &Oci, id: &str, count: usize) -> Vec<i32> {
    let found = || Some(pids_of(oci, id)).filter(|pids| pids.len() == count);
    wait_until(Duration::from_secs(10), found)
        .unwrap_or_else(|| panic!("not {count} processes: {:?}", pids_of(oci, id)))
}

/// TERM does nothing to a first process without a handler (`pid_namespaces(7)`), but ends its children.
fn kill_all_reaches_every_process(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t.bundle().sh("sleep 600 & sleep 600 & wait; exit 4");
    let run = oci.spawn(words("run", &bundle, &[], &id));
    let there = wait_until(Duration::from_secs(10), || oci.status(&id).filter(|s| s == "running"));
    assert!(there.is_some(), "it does not run");
    let _ = await_processes(&oci, &id, 3);
    let _ = oci.call(["kill", "--all", &id, "TERM"]).ok();
    let _ = run.wait().code(4);
}

fn kill_all_kills_what_stays_behind_its_parent(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    // Without a pid namespace children outlive the first process.
    let bundle = t.bundle().without_namespace("pid").sh("sleep 600 & sleep 600 & exit 0");
    let _ = started_any(&oci, &id, &bundle);
    oci.await_status(&id, "stopped");
    let left = await_processes(&oci, &id, 2);
    oci.kill(&id, "KILL").error_with(["not running"]);
    let _ = oci.call(["kill", "--all", &id, "KILL"]).ok();
    let gone =
        wait_until(Duration::from_secs(10), || left.iter().all(|p| is_gone(*p)).then_some(()));
    assert!(gone.is_some(), "{left:?} are still there");
    let _ = oci.delete(&id).ok();
}

fn started_any(oci: &Oci, id: &str, bundle: &Bundle) -> Output {
    let _ = oci.create(id, bundle).ok();
    oci.start(id).ok()
}

/// `delete` without `--force`, too: the container is stopped, whatever its children do.
fn delete_removes_what_lingers(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t.bundle().without_namespace("pid").sh("sleep 600 & exit 0");
    let _ = started_any(&oci, &id, &bundle);
    oci.await_status(&id, "stopped");
    let left = await_processes(&oci, &id, 1);
    let _ = oci.delete(&id).ok();
    assert!(is_gone(left[0]), "{left:?} is still there");
}

fn run_passes_signals_on(t: &Test) {
    use nix::sys::signal::Signal;
    for (signal, number) in [
        (Signal::SIGTERM, "15"),
        (Signal::SIGINT, "2"),
        (Signal::SIGHUP, "1"),
        (Signal::SIGUSR1, "10"),
    ] {
        let bundle = t.bundle().args(["/inside", "await", number, "3"]);
        let mut run = t.oci().spawn(words("run", &bundle, &[], &t.id()));
        run.await_text("ready");
        run.signal(signal);
        let _ = run.wait().code(3);
    }
}

fn exit_codes(t: &Test) {
    for code in [0, 1, 2, 42, 125, 126, 127, 128, 137, 254, 255] {
        let bundle = t.bundle().args(["/inside".to_owned(), "exit".to_owned(), code.to_string()]);
        let output = t.oci().run(&t.id(), &bundle).code(code);
        assert_eq!((&*output.stdout, &*output.stderr), ("", ""));
    }
}

fn exit_codes_of_signals(t: &Test) {
    // A first process of a pid namespace does not die by a signal of its own.
    for signal in [1, 2, 6, 9, 15] {
        let bundle = t.bundle().without_namespace("pid");
        let bundle = bundle.args(["/inside".to_owned(), "die".to_owned(), signal.to_string()]);
        let bundle = bundle
            .set("/process/rlimits", json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]));
        let (output, record) = t.oci().run_with_report(&t.id(), &bundle);
        let _ = output.code(128 + signal);
        assert_eq!(
            (&record["signal"], &record["exit_code"]),
            (&json!(signal), &Value::Null),
            "{record}"
        );
    }
}

/// Its children may hold the streams and go on: they are ended with it.
fn run_ends_when_the_container_does(t: &Test) {
    let bundle = t.bundle().without_namespace("pid").sh("sleep 600 & exit 3");
    let output = t.oci().time_limit(Duration::from_secs(10)).run(&t.id(), &bundle);
    let _ = output.code(3);
}

fn list_and_ps(t: &Test) {
    let (oci, id, other) = (t.oci(), t.id(), t.id());
    let bundle = t.bundle().sh("sleep 600 & sleep 600 & wait");
    let pid = started(&oci, &id, &bundle);
    let _ = oci.create(&other, &sleeper(t)).ok();
    let pids = await_processes(&oci, &id, 3);
    assert!(pids.contains(&pid), "{pid} is not in {pids:?}");
    let tree = fs::read_to_string(cgroup::folder(pid, "").join("cgroup.procs")).expect("read");
    let held: Vec<i32> = tree.lines().map(|l| l.parse().expect("a pid")).collect();
    assert_eq!(pids, held);
    let table = oci.call(["ps", &id]).ok().stdout;
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    assert!(header.contains("PID") && header.contains("CMD"), "{table}");
    assert_eq!(lines.filter(|l| l.contains("sleep")).count(), 3, "{table}");

    let rows = oci.call(["list", "--format", "json"]).ok().json();
    let find = |id: &str| {
        let found = rows.as_array().expect("an array").iter().find(|row| row["id"] == id);
        found.unwrap_or_else(|| panic!("no {id} in {rows}")).clone()
    };
    assert_eq!((&find(&id)["status"], &find(&id)["pid"]), (&json!("running"), &json!(pid)));
    assert_eq!(find(&other)["status"], "created");
    assert_eq!(find(&id)["bundle"], json!(bundle.path()));
    for field in ["ociVersion", "rootfs", "created", "owner"] {
        assert!(find(&id)[field].is_string(), "no {field} in {rows}");
    }
    let table = oci.call(["list"]).ok().stdout;
    assert!(
        table
            .lines()
            .next()
            .is_some_and(|l| l.trim_start().starts_with("ID") && l.contains("STATUS")),
        "{table}"
    );
    assert_eq!(table.lines().count(), 3, "{table}");
    let mut names: Vec<String> =
        oci.call(["list", "-q"]).ok().stdout.lines().map(str::to_owned).collect();
    names.sort();
    let mut wanted = vec![id.clone(), other.clone()];
    wanted.sort();
    assert_eq!(names, wanted);
    for id in [id, other] {
        let _ = oci.delete_force(&id).ok();
    }
}

fn preserved_descriptors(t: &Test) {
    let bundle = t.bundle().args(["/inside", "fds"]);
    let call = |options: &str| {
        let script = format!(
            "exec 3</etc/passwd 4</etc/group 7</etc/hostname; exec $OCI run {options} --bundle {b} {id}",
            b = bundle.path().display(),
            id = t.id()
        );
        let output = t.shell(&script).output().ok();
        let fds: Vec<String> =
            output.json().as_object().expect("an object").keys().cloned().collect();
        fds
    };
    assert_eq!(call(""), ["0", "1", "2"]);
    assert_eq!(call("--preserve-fds 1"), ["0", "1", "2", "3"]);
    assert_eq!(call("--preserve-fds 2"), ["0", "1", "2", "3", "4"]);
    assert_eq!(call("--preserve-fds 5"), ["0", "1", "2", "3", "4", "7"]);
}

fn session_keyring(t: &Test) {
    let bundle = t.bundle().edit(|config| {
        let masked = config["linux"]["maskedPaths"].as_array_mut().expect("an array");
        masked.retain(|path| path != "/proc/keys");
    });
    let (oci, id) = (t.oci(), t.id());
    let own = oci.facts(&id, &bundle).session_keyrings.expect("/proc/keys can be read");
    assert!(own.contains(&format!("_ses.{id}")), "{own:?}");
    let id = t.id();
    let output = oci.call(words("run", &bundle, &["--no-new-keyring"], &id)).ok();
    let kept = output.facts().session_keyrings.expect("/proc/keys can be read");
    assert!(!kept.contains(&format!("_ses.{id}")), "{kept:?}");
}

fn without_pivot_root(t: &Test) {
    let (oci, bundle) = (t.oci(), t.bundle().file("/marker", "here"));
    let bundle = bundle.args(["/inside", "facts", "--list", "/", "--probe", "/marker"]);
    let output = oci.call(words("run", &bundle, &["--no-pivot"], &t.id())).ok();
    let facts = output.facts();
    assert_eq!(facts.probes["/marker"].read, "data");
    assert_eq!(facts.root_write, "EROFS");
    let pivoted = oci.facts(&t.id(), &bundle);
    assert_eq!(facts.files.keys().collect::<Vec<_>>(), pivoted.files.keys().collect::<Vec<_>>());
    // The root can be left by nobody: ".." of it is itself.
    let script =
        "cd ..; cd ../../../..; pwd; [ -e /marker ] && [ ! -e /proc/1/root/usr/lib/os-release ]";
    let bundle = bundle.sh(script);
    let output = oci.call(words("run", &bundle, &["--no-pivot"], &t.id())).ok();
    assert_eq!(output.stdout, "/\n");
}

fn last_line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().last().unwrap_or_else(|| panic!("{} is empty", path.display())).to_owned()
}

fn log_file_in_json_and_in_text(t: &Test) {
    let oci = t.oci();
    let log = t.dir().join("log");
    let name = log.display().to_string();
    let wrong = t.bundle().set("/process/cwd", json!("x \"quoted\""));
    let missing = t.bundle().args(["nosuch"]);
    for bundle in [&wrong, &missing] {
        let head = ["--log", &name, "--log-format", "json"].map(str::to_owned);
        let output = oci.call(head.into_iter().chain(words("create", bundle, &[], &t.id())));
        let line: Value = parsed(&last_line(&log));
        assert_eq!(line["level"], "error", "{line}");
        let message = line["msg"].as_str().expect("msg is a text");
        assert!(output.error_line().contains(message), "{message:?} is not in {output}");
        assert!(line["time"].is_string(), "{line}");
    }
    assert!(last_line(&log).contains("executable file not found in $PATH"));
    fs::remove_file(&log).expect("remove the log");
    let head = ["--log", &name].map(str::to_owned);
    let output = oci.call(head.into_iter().chain(words("create", &missing, &[], &t.id())));
    assert!(!output.error_line().is_empty());
    let line = last_line(&log);
    for part in ["time=\"", "level=error", "msg=\"", "executable file not found in $PATH"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
}

fn parsed(text: &str) -> Value {
    text.parse().unwrap_or_else(|e| panic!("{text:?} is not JSON: {e}"))
}

/// What was done otherwise than asked is in the log only: a client takes stderr for an error.
fn log_file_holds_warnings(t: &Test) {
    let log = t.dir().join("log");
    let name = log.display().to_string();
    let bundle = t
        .bundle()
        .args(["/inside", "exit", "0"])
        .set("/process/capabilities/ambient", json!(["CAP_KILL"]));
    let head = ["--log", &name, "--log-format", "json"].map(str::to_owned);
    let output = t.oci().call(head.into_iter().chain(words("run", &bundle, &[], &t.id()))).ok();
    assert_eq!(output.stderr, "");
    let line = parsed(&last_line(&log));
    assert_eq!(line["level"], "warning", "{line}");
    assert!(
        line["msg"].as_str().is_some_and(|m| m.contains("process.capabilities.ambient")),
        "{line}"
    );
}

fn one_of_many_gets_the_id(t: &Test) {
    let (oci, bundle) = (t.oci(), sleeper(t));
    for _ in 0..3 {
        let id = t.id();
        let calls: Vec<_> = (0..8).map(|_| oci.spawn(words("create", &bundle, &[], &id))).collect();
        let outputs: Vec<Output> =
            calls.into_iter().map(hafen_integration::Running::wait).collect();
        let (won, lost): (Vec<&Output>, Vec<&Output>) =
            outputs.iter().partition(|o| o.exit == Some(0));
        assert_eq!(won.len(), 1, "{outputs:?}");
        lost.iter().for_each(|output| output.error_with(["already exists", &id]));
        assert_eq!(oci.status(&id).as_deref(), Some("created"));
        let _ = oci.start(&id).ok();
        assert_eq!(oci.status(&id).as_deref(), Some("running"));
        let _ = oci.delete_force(&id).ok();
    }
}

fn fifty_at_once(t: &Test) {
    let (oci, bundle) = (t.oci(), sleeper(t).set("/linux/resources/pids/limit", json!(64)));
    let ids: Vec<String> = (0..50).map(|_| t.id()).collect();
    let all = |verb: &dyn Fn(&str) -> Vec<String>| {
        let calls: Vec<_> = ids.iter().map(|id| oci.spawn(verb(id))).collect();
        for call in calls {
            let _ = call.wait().ok();
        }
    };
    let plain = |first: &'static [&'static str]| {
        move |id: &str| first.iter().copied().chain([id]).map(str::to_owned).collect::<Vec<_>>()
    };
    all(&|id| words("create", &bundle, &[], id));
    all(&plain(&["start"]));
    let rows = oci.call(["list", "--format", "json"]).ok().json();
    let rows = rows.as_array().expect("an array");
    assert_eq!(rows.iter().filter(|row| row["status"] == "running").count(), 50);
    let pids: std::collections::BTreeSet<i64> =
        rows.iter().map(|row| row["pid"].as_i64().expect("a pid")).collect();
    assert_eq!(pids.len(), 50);
    all(&plain(&["delete", "--force"]));
    assert_eq!(oci.call(["list", "-q"]).ok().stdout, "");
}

fn cgroup_path_of_the_client(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let path = format!("/hafen-client/a/b/{id}");
    let bundle = sleeper(t)
        .set("/linux/cgroupsPath", json!(path))
        .set("/linux/resources/pids/limit", json!(32));
    let pid = started(&oci, &id, &bundle);
    for controller in ["", "pids"] {
        let folder = cgroup::folder(pid, controller);
        assert!(folder.ends_with(&path[1..]), "{}", folder.display());
    }
    let _ = oci.delete_force(&id).ok();
    // systemd's spelling, which some clients send without --systemd-cgroup: a literal name.
    let id = t.id();
    let name = format!("system.slice:hafen:{id}");
    let bundle = sleeper(t).set("/linux/cgroupsPath", json!(name));
    let pid = started(&oci, &id, &bundle);
    assert!(cgroup::folder(pid, "").ends_with(&name));
    let _ = oci.delete_force(&id).ok();
}

/// An empty folder that is there already is used, and removed with the container as runc does.
fn cgroup_folder_made_by_the_client(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let folder = cgroup::tree().expect("a cgroup2 tree").join(&id);
    fs::create_dir(&folder).expect("make a cgroup");
    let pid = started(&oci, &id, &sleeper(t).set("/linux/cgroupsPath", json!(format!("/{id}"))));
    assert_eq!(cgroup::folder(pid, ""), folder);
    let _ = oci.delete_force(&id).ok();
    assert!(!folder.exists(), "{} remains", folder.display());
}

fn containers_share_a_parent_cgroup(t: &Test) {
    let (oci, one, two) = (t.oci(), t.id(), t.id());
    // As a client does for a pod: the folder is its own, and so is the removal.
    let parent = format!("pod-{one}");
    let counted = ["blkio", "cpu", "cpuacct", "memory", "pids"].map(cgroup::v1);
    let mounts: BTreeSet<PathBuf> = counted.into_iter().chain([cgroup::tree()]).flatten().collect();
    let parents: Vec<PathBuf> = mounts.iter().map(|m| m.join(&parent)).collect();
    parents.iter().for_each(|p| fs::create_dir(p).expect("make a cgroup"));
    let bundle = |id: &str| {
        sleeper(t)
            .set("/linux/cgroupsPath", json!(format!("/{parent}/{id}")))
            .set("/linux/resources/pids/limit", json!(32))
    };
    let _ = started(&oci, &one, &bundle(&one));
    let pid = started(&oci, &two, &bundle(&two));
    let _ = oci.delete_force(&one).ok();
    assert_eq!(oci.status(&two).as_deref(), Some("running"), "its neighbour was deleted");
    assert_eq!(cgroup::value(&cgroup::folder(pid, "pids"), "pids.max"), "32");
    let _ = oci.delete_force(&two).ok();
    parents.iter().for_each(|p| fs::remove_dir(p).expect("remove the client's cgroup"));
}

fn inode(pid: i32, namespace: &str) -> u64 {
    let path = format!("/proc/{pid}/ns/{namespace}");
    fs::metadata(&path).unwrap_or_else(|e| panic!("{path}: {e}")).ino()
}

fn namespaces_of_another_container(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let pid = started(&oci, &id, &sleeper(t).set("/hostname", json!("first")));
    let join = |bundle: Bundle, kind: &str, file: &str| {
        bundle.namespace(kind, Some(&format!("/proc/{pid}/ns/{file}")))
    };
    let kinds = [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")];
    let bundle =
        kinds.iter().fold(t.bundle().remove("/hostname"), |b, (kind, file)| join(b, kind, file));
    let facts = oci.facts(&t.id(), &bundle);
    for (_, file) in kinds {
        assert_eq!(facts.namespaces[file], inode(pid, file), "{file}");
    }
    assert_eq!(facts.hostname, "first");
    for file in ["mnt", "pid"] {
        assert_ne!(facts.namespaces[file], inode(pid, file), "{file}");
    }
    let _ = oci.delete_force(&id).ok();
}

fn pid_namespace_of_another_container(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let pid = started(&oci, &id, &sleeper(t));
    let bundle = t.bundle().namespace("pid", Some(&format!("/proc/{pid}/ns/pid")));
    let facts = oci.facts(&t.id(), &bundle);
    assert_eq!(facts.namespaces["pid"], inode(pid, "pid"));
    assert!(facts.pid > 1, "it is {} there", facts.pid);
    let _ = oci.delete_force(&id).ok();
}

fn cwd_is_made_and_may_be_closed_to_the_user(t: &Test) {
    let bundle =
        t.bundle().set("/root/readonly", json!(false)).set("/process/cwd", json!("/new/place"));
    assert_eq!(t.oci().facts(&t.id(), &bundle).cwd.as_deref(), Some("/new/place"));
    // runc changes the folder before it gives up root's rights, where the user has none.
    let bundle = t
        .bundle()
        .sh("/bin/busybox pwd")
        .set("/process/cwd", json!("/root"))
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    fs::set_permissions(
        bundle.rootfs().join("root"),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .expect("chmod");
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "/root\n");
}

fn the_program_is_found_in_the_containers_path(t: &Test) {
    let bundle = t
        .bundle()
        .file("/opt/first/tool", "#!/bin/sh\necho first\n")
        .file("/opt/second/tool", "#!/bin/sh\necho second\n")
        .args(["tool"]);
    for file in ["opt/first/tool", "opt/second/tool"] {
        let path = bundle.rootfs().join(file);
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("chmod");
    }
    let path = |value: &str| bundle.clone().set("/process/env", json!([format!("PATH={value}")]));
    assert_eq!(t.oci().run(&t.id(), &path("/opt/second:/opt/first")).ok().stdout, "second\n");
    assert_eq!(t.oci().run(&t.id(), &path("/none:/opt/first")).ok().stdout, "first\n");
    // What may not be executed is passed over, as execvp(3) does.
    let file = bundle.rootfs().join("opt/first/tool");
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod");
    assert_eq!(t.oci().run(&t.id(), &path("/opt/first:/opt/second")).ok().stdout, "second\n");
    t.oci().run(&t.id(), &path("/opt/first")).error_with(["permission denied"]);
}

fn global_options_of_clients(t: &Test) {
    let (oci, bundle) = (t.oci(), t.bundle().args(["/inside", "exit", "0"]));
    let root = format!("--root={}", oci.root().display());
    for extra in [
        &["--debug"][..],
        &["--rootless=false"],
        &["--rootless=auto"],
        &["--log-format=text"],
        &["--cgroup-manager", "cgroupfs"],
    ] {
        let head = [root.as_str()].into_iter().chain(extra.iter().copied()).map(str::to_owned);
        let _ = oci.bare(head.chain(words("run", &bundle, &[], &t.id()))).output().ok();
    }
    // Clients give it to every verb; only making a container has to do with it.
    let _ = oci.bare([root.as_str(), "--systemd-cgroup", "list"]).output().ok();
}

fn another_specification_of_the_bundle(t: &Test) {
    let bundle = t.bundle().args(["/inside", "exit", "3"]);
    let rename = |from: &str, to: &str| {
        std::fs::rename(bundle.path().join(from), bundle.path().join(to)).expect("rename");
    };
    rename("config.json", "other.json");
    let oci = t.oci();
    oci.call(words("run", &bundle, &[], &t.id())).error_with(["config.json not found"]);
    oci.call(words("run", &bundle, &["--config", "else.json"], &t.id()))
        .error_with(["else.json not found"]);
    let _ = oci.call(words("run", &bundle, &["--config", "other.json"], &t.id())).code(3);
    let file = bundle.path().join("other.json").display().to_string();
    let _ = oci.call(words("run", &bundle, &["-f", &file], &t.id())).code(3);
}

fn run_keeps_the_container(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t.bundle().args(["/inside", "exit", "3"]);
    let _ = oci.call(words("run", &bundle, &["--keep"], &id)).code(3);
    assert_eq!(oci.status(&id).as_deref(), Some("stopped"));
    let _ = oci.delete(&id).ok();
}

fn capabilities_that_nobody_knows_are_left_out(t: &Test) {
    let (oci, id, log) = (t.oci(), t.id(), t.dir().join("log"));
    let bundle = t
        .bundle()
        .push("/process/capabilities/bounding", json!("CAP_MOON"))
        .args(["/inside", "sleep", "600"]);
    let name = log.display().to_string();
    let head = ["--log", &name].map(str::to_owned);
    let _ = oci.call(head.into_iter().chain(words("create", &bundle, &[], &id))).ok();
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(said.contains("process.capabilities.bounding") && said.contains("CAP_MOON"), "{said}");
    let _ = oci.start(&id).ok();
    let _ = oci.call(["exec", "--cap", "CAP_STAR", &id, "/inside", "exit", "4"]).code(4);
    let _ = oci.delete_force(&id).ok();
}

/// As Podman asks for it (`--group-add keep-groups`).
fn groups_of_the_caller_are_kept_on_demand(t: &Test) {
    let bundle = t.bundle().sh("grep Groups /proc/self/status");
    let run = |bundle: &Bundle| {
        let (path, id) = (bundle.path().display().to_string(), t.id());
        let oci = t.oci();
        let words = ["--groups", "7,8", "--"].map(str::to_owned);
        let root = format!("--root={}", oci.root().display());
        let call = [oci.program().display().to_string(), root].into_iter();
        let call = call.chain(["run", "--bundle", &path, &id].map(str::to_owned));
        t.program("setpriv", words.into_iter().chain(call)).output().ok().stdout
    };
    assert_eq!(run(&bundle).trim(), "Groups:");
    let kept = run(&bundle.set("/annotations", json!({ "run.oci.keep_original_groups": "1" })));
    assert_eq!(kept.split_whitespace().collect::<Vec<_>>(), ["Groups:", "7", "8"]);
}

fn has_v1_freezer() -> bool {
    cgroup::v1("freezer").is_some()
}

/// It is told at once, and nothing is lost: what is let go can be deleted.
fn delete_of_what_the_v1_freezer_holds(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let pid = started(&oci, &id, &sleeper(t));
    let folder = cgroup::v1("freezer").expect("it is there").join(&id);
    std::fs::create_dir(&folder).expect("mkdir");
    let write = |file: &str, value: &str| {
        std::fs::write(folder.join(file), value).unwrap_or_else(|e| panic!("{file}: {e}"));
    };
    write("tasks", &pid.to_string());
    write("freezer.state", "FROZEN");
    let refused = oci.call(["delete", "--force", &id]);
    write("freezer.state", "THAWED");
    let deleted = oci.delete_force(&id);
    let _ = std::fs::remove_dir(&folder);
    refused.error_with(["is frozen by", "freezer.state"]);
    let _ = deleted.ok();
}

fn version_lines(t: &Test) {
    let output = t.oci().bare(["--version"]).output().ok();
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert!(lines[0].starts_with("hafen-oci ") || lines[0].contains("version"), "{output}");
    assert!(lines.iter().any(|l| l.starts_with("commit: ")), "{output}");
    assert!(lines.iter().any(|l| l.starts_with("spec: 1.")), "{output}");
}

fn spec_makes_a_bundle_that_runs(t: &Test) {
    let (oci, bundle) = (t.oci(), t.bundle());
    fs::remove_file(bundle.path().join("config.json")).expect("remove config.json");
    let path = bundle.path().display().to_string();
    let _ = oci.bare(["spec", "--bundle", &path]).output().ok();
    let text = fs::read_to_string(bundle.path().join("config.json")).expect("read config.json");
    let config = parsed(&text);
    assert!(config["ociVersion"].as_str().is_some_and(|v| v.starts_with("1.")), "{text}");
    // As runc has it, for a person; nobody sits at a terminal here.
    assert_eq!(config["process"]["terminal"], true, "{text}");
    without_terminal(&bundle, config);
    let _ = oci.run(&t.id(), &bundle).ok();
    assert!(
        !oci.bare(["spec", "--bundle", &path]).output().error_line().is_empty(),
        "it overwrote"
    );
    // Without --bundle: the folder that one is in.
    let id = t.id();
    let root = oci.root().display().to_string();
    let _ = oci.bare(["--root", &root, "run", &id]).folder(bundle.path()).output().ok();
}

fn without_terminal(bundle: &Bundle, mut config: Value) {
    config["process"]["terminal"] = json!(false);
    fs::write(bundle.path().join("config.json"), config.to_string()).expect("write config.json");
}

fn features_are_told(t: &Test) {
    let features = t.oci().bare(["features"]).output().ok().json();
    for field in ["ociVersionMin", "ociVersionMax", "mountOptions", "linux", "hooks"] {
        assert!(!features[field].is_null(), "no {field} in {features}");
    }
    for option in ["ro", "rbind", "nosuid", "rprivate"] {
        let all = features["mountOptions"].as_array().expect("an array");
        assert!(all.contains(&json!(option)), "no {option} in {features}");
    }
}

fn doctor_tells_every_controller(t: &Test) {
    let text = t.oci().bare(["doctor"]).output().ok().stdout;
    for word in [
        "kernel",
        "cgroup2",
        "cgroup cpu",
        "cgroup memory",
        "cgroup pids",
        "cgroup cpuset",
        "overlay",
        "seccomp",
        "user namespaces",
    ] {
        assert!(text.contains(word), "no {word} in:\n{text}");
    }
    let findings = t.oci().bare(["doctor", "--format", "json"]).output().ok().json();
    let how = |what: &str| {
        let all = findings.as_array().expect("an array");
        let found = all.iter().find(|f| f["what"] == what);
        found.unwrap_or_else(|| panic!("no {what} in {findings}"))["found"].clone()
    };
    for controller in ["cpu", "memory", "pids", "cpuset"] {
        let found = how(&format!("cgroup {controller}"));
        let wanted = if cgroup::v1(controller).is_some() { "v1" } else { "cgroup2" };
        let there = !cgroup::has(controller) || found.as_str().is_some_and(|f| f.contains(wanted));
        assert!(there, "{controller}: {found}");
    }
}

/// `run --rootfs ROOT OPTIONS.. -- sh -c SCRIPT`.
fn quick(t: &Test, rootfs: &str, options: &[&str], script: &str) -> Output {
    let head = ["run", "--rootfs", rootfs].into_iter().chain(options.iter().copied());
    t.oci().call(head.chain(["--", "sh", "-c", script]))
}

fn overlay_on_a_folder_writes_nothing_back(t: &Test) {
    let bundle = t.bundle().file("/etc/motd", "before\n");
    let rootfs = bundle.rootfs();
    let script = "set -e; cat /etc/motd; echo after >/etc/motd; cat /etc/motd; rm /etc/passwd; \
                  mkdir -p /new/deep; echo x >/new/deep/file; rm -r /var; ls /new/deep";
    let output = quick(t, &rootfs.display().to_string(), &[], script).ok();
    assert_eq!(output.stdout, "before\nafter\nfile\n");
    assert_eq!(fs::read_to_string(rootfs.join("etc/motd")).expect("read"), "before\n");
    assert!(rootfs.join("etc/passwd").exists() && rootfs.join("var/tmp").exists());
    assert!(!rootfs.join("new").exists());
    assert_eq!(
        fs::read_dir(t.oci().root()).expect("list").count(),
        0,
        "the scratch folder remains"
    );
}

fn overlay_on_the_host_writes_nothing_back(t: &Test) {
    let name = format!("hafen-test-was-here-{}", t.id());
    let script = format!(
        "set -e; for d in / /etc /usr/bin /var/tmp /root; do echo x >$d/{name}; cat $d/{name}; done; \
         rm /etc/passwd; test ! -e /etc/passwd"
    );
    let output = quick(t, "host", &[], &script).ok();
    assert_eq!(output.stdout, "x\n".repeat(5), "{output}");
    for folder in ["/", "/etc", "/usr/bin", "/var/tmp", "/root"] {
        assert!(!Path::new(folder).join(&name).exists(), "{folder}/{name} is on the host");
    }
    assert!(Path::new("/etc/passwd").exists());
    let output = quick(t, "host", &["--read-only"], "touch /etc/x").code(1);
    assert!(output.stderr.contains("Read-only file system"), "{output}");
}

fn overlay_has_limits(t: &Test) {
    let rootfs = t.bundle().rootfs().display().to_string();
    let report = t.dir().join("report").display().to_string();
    let call = |options: &[&str], command: &[&str]| {
        let head = ["run", "--report", &report, "--rootfs", &rootfs].into_iter();
        let all = head.chain(options.iter().copied()).chain(["--"]).chain(command.iter().copied());
        let output = t.oci().call(all);
        (output, parsed(&fs::read_to_string(&report).expect("read the report")))
    };
    let (output, record) = call(&["--memory", "64M"], &["/inside", "eat", "268435456"]);
    let _ = output.code(137);
    assert!(record["usage"]["oom_kills"].as_u64() >= Some(1), "{record}");
    assert_eq!(record["usage"]["memory_limit_bytes"], 64 << 20, "{record}");
    let (output, record) = call(&["--pids", "16"], &["/inside", "fork", "100"]);
    assert!(output.ok().json()["started"].as_u64() < Some(16));
    assert!(record["usage"]["pids_limit_hits"].as_u64() >= Some(1), "{record}");
    let (output, record) = call(&["--cpus", "0.1"], &["/inside", "burn", "1", "2"]);
    let _ = output.ok();
    assert!(record["usage"]["cpu_throttled_periods"].as_u64() >= Some(3), "{record}");
}

fn overlay_options(t: &Test) {
    let rootfs = t.bundle().rootfs().display().to_string();
    let id = t.id();
    let options = [
        "--id",
        &id,
        "--env",
        "COLOUR=red",
        "--env",
        "SIZE=5",
        "--cwd",
        "/tmp",
        "--hostname",
        "quick",
        "--user",
        "1000:100",
    ];
    let script = "echo $COLOUR $SIZE; pwd; hostname; id -u; id -g";
    let output = quick(t, &rootfs, &options, script).ok();
    assert_eq!(output.stdout, "red 5\n/tmp\nquick\n1000\n100\n");
}

fn overlay_scratch_is_gone_when_it_fails(t: &Test) {
    let rootfs = t.bundle().rootfs().display().to_string();
    let id = t.id();
    let words = ["run", "--id", &id, "--rootfs", &rootfs, "--", "nosuch"];
    t.oci().call(words).error_with(["executable file not found in $PATH"]);
    assert!(!t.oci().root().join(&id).exists());
}
