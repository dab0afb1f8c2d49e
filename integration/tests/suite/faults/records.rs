//! Records that are torn, foreign, old or wrong.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use hafen_integration::{Case, Oci, Test, Value, cases, json};

use super::{assert_gone, cgroups_of, delete_force, running, stopped};

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_plan_that_is_torn(Root),
        a_plan_that_is_empty(Root),
        a_plan_of_another_format(Root),
        a_folder_without_a_plan(Root),
        a_process_record_that_is_torn(Root, Busybox),
        a_pid_that_belongs_to_another_process(Root, Busybox),
        a_record_of_an_earlier_boot(Root, Busybox),
        a_record_of_an_earlier_boot_claims_no_cgroup(Root, Busybox),
    ]
}

fn file(oci: &Oci, id: &str, name: &str) -> PathBuf {
    oci.root().join(id).join(name)
}

fn read(oci: &Oci, id: &str, name: &str) -> Value {
    let path = file(oci, id, name);
    let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn write(oci: &Oci, id: &str, name: &str, value: &Value) {
    fs::write(file(oci, id, name), value.to_string()).expect("write a record");
}

/// A container of which there is only this plan.
fn planned(t: &Test, text: &str) -> (Oci, String) {
    let (oci, id) = (t.oci(), t.id());
    fs::create_dir_all(oci.root().join(&id)).expect("make a state folder");
    fs::write(file(&oci, &id, "plan.json"), text).expect("write a plan");
    (oci, id)
}

fn is_refused_and_then_forced(oci: &Oci, id: &str) {
    for call in [oci.delete(id), oci.call(["state", id]), oci.start(id), oci.kill(id, "TERM")] {
        call.error_with([id, "plan.json"]);
    }
    assert!(file(oci, id, "plan.json").exists());
    delete_force(oci, id, "by force");
}

fn a_plan_that_is_torn(t: &Test) {
    let (oci, id) = planned(t, r#"{"format":1,"id":"x","bootId":"7f"#);
    is_refused_and_then_forced(&oci, &id);
}

fn a_plan_that_is_empty(t: &Test) {
    let (oci, id) = planned(t, "");
    is_refused_and_then_forced(&oci, &id);
}

/// Its claims are not understood either.
fn a_plan_of_another_format(t: &Test) {
    let (oci, id) = planned(t, r#"{"format":999,"claims":[{"something":"new"}]}"#);
    is_refused_and_then_forced(&oci, &id);
    let (oci, id) = planned(
        t,
        r#"{"format":999,"id":"x","bootId":"b","ociVersion":"1.0.2","bundle":"/b","rootfs":"/r",
            "created":"2000-01-01T00:00:00Z","annotations":{},"claims":[]}"#,
    );
    is_refused_and_then_forced(&oci, &id);
}

/// The runtime died before it had planned anything.
fn a_folder_without_a_plan(t: &Test) {
    let (oci, id) = planned(t, "");
    fs::remove_file(file(&oci, &id, "plan.json")).expect("remove the plan");
    let _ = oci.start(&id).error_line();
    let _ = oci.kill(&id, "TERM").error_line();
    delete_force(&oci, &id, "without a plan");
}

/// The plan alone is enough to release everything.
fn a_process_record_that_is_torn(t: &Test) {
    for text in ["", r#"{"pid":1,"sta"#] {
        let id = t.id();
        let oci = running(t, &id);
        fs::write(file(&oci, &id, "state.json"), text).expect("tear the record");
        oci.delete(&id).error_with([id.as_str(), "state.json"]);
        delete_force(&oci, &id, "with a torn process record");
    }
}

/// A process of the test's that no runtime may touch.
struct Bystander(Child);

impl Bystander {
    fn new() -> Self {
        Self(Command::new("sleep").arg("300").spawn().expect("start sleep"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    #[track_caller]
    fn assert_unharmed(&mut self) {
        let ended = self.0.try_wait().expect("wait for sleep");
        assert!(ended.is_none(), "a process that is not the container's was ended: {ended:?}");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The pid was used again: the start time tells.
fn a_pid_that_belongs_to_another_process(t: &Test) {
    let mut bystander = Bystander::new();
    let id = t.id();
    let oci = stopped(t, &id);
    let mut process = read(&oci, &id, "state.json");
    process["pid"] = json!(bystander.pid());
    write(&oci, &id, "state.json", &process);
    assert_eq!(oci.status(&id).as_deref(), Some("stopped"));
    oci.kill(&id, "KILL").error_with(["container not running"]);
    oci.kill(&id, "0").error_with(["container not running"]);
    let _ = oci.call(["kill", "--all", &id, "KILL"]);
    bystander.assert_unharmed();
    let _ = oci.delete(&id).ok();
    assert_gone(&oci, &id, "delete");
    bystander.assert_unharmed();
}

/// Makes a container look as after a reboot: only its folder is left, and in it another boot's id.
fn rebooted(t: &Test, id: &str) -> Oci {
    let oci = running(t, id);
    let names = ["plan.json", "state.json"];
    let [mut plan, state] = names.map(|name| read(&oci, id, name));
    delete_force(&oci, id, "before the reboot");
    plan["bootId"] = json!("00000000-0000-4000-8000-000000000000");
    let scratch = oci.root().join(id).join("scratch");
    fs::create_dir_all(scratch.join("upper/a/b")).expect("make a scratch folder");
    let claims = plan["claims"].as_array_mut().expect("claims are an array");
    claims.insert(0, json!({ "kind": "scratch", "path": scratch }));
    write(&oci, id, "plan.json", &plan);
    write(&oci, id, "state.json", &state);
    oci
}

fn a_record_of_an_earlier_boot(t: &Test) {
    let mut bystander = Bystander::new();
    let id = t.id();
    let oci = rebooted(t, &id);
    // Pid and start time may fit by chance in another boot.
    let stat = fs::read_to_string(format!("/proc/{}/stat", bystander.pid())).expect("read stat");
    let start: u64 = stat.split(' ').nth(21).and_then(|t| t.parse().ok()).expect("a start time");
    write(&oci, &id, "state.json", &json!({ "pid": bystander.pid(), "startTime": start }));
    assert_eq!(oci.status(&id).as_deref(), Some("stopped"));
    oci.kill(&id, "KILL").error_with(["container not running"]);
    oci.start(&id).error_with(["stopped"]);
    bystander.assert_unharmed();
    let _ = oci.delete(&id).ok();
    assert_gone(&oci, &id, "delete");
    bystander.assert_unharmed();
}

/// Cgroups do not outlive a boot: a folder of the same name is somebody else's, such as a container of the same id
/// below another `--root`.
fn a_record_of_an_earlier_boot_claims_no_cgroup(t: &Test) {
    let id = t.id();
    let old = rebooted(t, &id);
    let moved = t.dir().join("old");
    fs::rename(old.root(), &moved).expect("move the state folder");
    let new = running(t, &id);
    let before = cgroups_of(&id);
    let old =
        old.bare(["--root"].into_iter().chain([moved.to_str().expect("UTF-8"), "delete", &id]));
    let _ = old.output().ok();
    assert_eq!(new.status(&id).as_deref(), Some("running"), "it was killed for a record of its id");
    assert_eq!(cgroups_of(&id), before);
    delete_force(&new, &id, "the new container");
}
