//! What an ordinary user can do: look at everything, run nothing (yet), break nothing.

use hafen_integration::{Case, Test, cases};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        may_look_at_everything(Unprivileged),
        plans_a_launch(Unprivileged, Busybox),
        a_launch_is_refused_and_leaves_nothing(Unprivileged, Busybox),
    ]
}

fn may_look_at_everything(t: &Test) {
    let oci = t.oci();
    let found = oci.call(["doctor", "--format", "json"]).ok().json();
    let privilege = found.as_array().and_then(|all| all.iter().find(|f| f["what"] == "privilege"));
    assert_eq!(privilege.map(|p| &p["ok"]), Some(&false.into()), "{found}");
    assert_eq!(oci.call(["features"]).ok().json()["linux"]["cgroup"]["v2"], true);
    assert_eq!(oci.call(["list", "--format", "json"]).ok().json(), serde_json::json!([]));
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

fn a_launch_is_refused_and_leaves_nothing(t: &Test) {
    let (oci, id, bundle) = (t.oci(), t.id(), t.bundle());
    let output = oci.run(&id, &bundle).code(1);
    output.error_with(["cgroup", "Permission denied"]);
    oci.create(&id, &bundle).code(1);
    assert!(!oci.root().join(&id).exists(), "the state folder is still there");
}
