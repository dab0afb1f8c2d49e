//! Bundles as umoci unpacks them, run by hand.

use std::fs;

use hafen_integration::{Case, Oci, Test, Value, json};

use super::{Peer, QUICK, Runtime, image, tell_apart};

pub(super) fn trials() -> Vec<Case> {
    let needs = hafen_integration::needs![Root, Busybox, Program("umoci"), Program("runc")];
    let needs = [needs, vec![QUICK]].concat();
    vec![Case::new("clients::umoci::bundle", needs, |t| {
        tell_apart(t, Peer::Passes("runc"), |runtime| bundle(t, runtime));
    })]
}

fn bundle(t: &Test, runtime: &Runtime) {
    let folder = t.dir().join(format!("bundle-{}", runtime.name));
    let image = format!("{}:box", image::layout(t).display());
    t.program("umoci", ["unpack", "--image", &image, &folder.display().to_string()]).output().ok();
    let file = folder.join("config.json");
    let text = fs::read_to_string(&file).expect("umoci wrote config.json");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    // A terminal needs a console socket. Without CAP_SYS_RESOURCE a hard limit cannot be raised by runc.
    config["process"]["terminal"] = json!(false);
    config["process"]["rlimits"] = json!([]);
    config["process"]["args"] =
        json!(["sh", "-c", "echo $FROM_IMAGE; cat /data/seed; touch /new; exit 7"]);
    fs::write(&file, config.to_string()).expect("write config.json");
    let oci: Oci = if runtime.name == "hafen-oci" { t.oci() } else { t.peer(runtime.name) };
    let words = ["run".as_ref(), "--bundle".as_ref(), folder.as_os_str(), "umoci".as_ref()];
    assert_eq!(oci.call(words).code(7).stdout, "yes\nseed\n");
    // What it wrote is seen by umoci.
    let repacked = format!("{image}-new");
    t.program("umoci", ["repack", "--image", &repacked, &folder.display().to_string()])
        .output()
        .ok();
}
