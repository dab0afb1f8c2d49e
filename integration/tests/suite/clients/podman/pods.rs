//! Containers that share namespaces.

use std::fs;

use hafen_integration::Case;

use super::super::Peer;
use super::{BOX, Podman, case};

pub(super) fn scenarios() -> Vec<Case> {
    let peer = Peer::Passes("runc");
    // On unified cgroups Podman 4.3 with its cgroupfs manager forbids every device to a pod's cgroup, so that with any
    // runtime no container of the pod starts.
    let needs = || hafen_integration::needs![Hybrid, Program("catatonit")];
    vec![case("pod", vec![], peer, pod), case("play_kube", needs(), peer, play_kube)]
}

fn namespace(pid: i32, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a namespace").display().to_string()
}

/// The image of the process that holds the namespaces is made by Podman, of catatonit.
fn pod(p: &Podman<'_>) {
    p.ok([
        "pod",
        "create",
        "--name",
        "pod",
        "--network",
        "none",
        "--share",
        "net,ipc,uts,pid",
        "--hostname",
        "pea",
    ]);
    p.start("one", &["--pod", "pod"], "exec sleep 60");
    p.start("two", &["--pod", "pod"], "exec sleep 61");
    let (one, two) = (p.pid("one"), p.pid("two"));
    for name in ["net", "ipc", "uts", "pid"] {
        assert_eq!(namespace(one, name), namespace(two, name), "{name}");
    }
    assert!(namespace(one, "mnt") != namespace(two, "mnt"));
    assert_eq!(p.ok(["exec", "two", "hostname"]), "pea\n");
    let seen = p.ok(["exec", "one", "ps", "-o", "args"]);
    assert!(seen.contains("sleep 61") && seen.contains("catatonit"), "{seen}");
    p.ok(["pod", "pause", "pod"]);
    assert_eq!(p.inspect("one", "State.Status"), "paused");
    p.ok(["pod", "unpause", "pod"]);
    p.ok(["pod", "restart", "pod"]);
    assert_eq!(p.inspect("one", "State.Status"), "running");
    p.ok(["pod", "stop", "--time", "0", "pod"]);
    // It is `stopped` until conmon's own Podman has cleaned up.
    p.await_status("two", "exited");
    p.ok(["pod", "rm", "--force", "pod"]);
}

fn play_kube(p: &Podman<'_>) {
    let file = p.folder.join("pod.yaml");
    let text = format!(
        r#"apiVersion: v1
kind: Pod
metadata:
  name: kube
spec:
  restartPolicy: Never
  initContainers:
  - name: first
    image: {BOX}
    command: ["sh", "-c", "echo from-init >/shared/f"]
    volumeMounts:
    - {{name: shared, mountPath: /shared}}
  containers:
  - name: main
    image: {BOX}
    command: ["sh", "-c", "cat /shared/f; exec sleep 60"]
    resources:
      limits: {{memory: 64Mi, cpu: "0.5"}}
    securityContext:
      capabilities: {{drop: ["ALL"]}}
      readOnlyRootFilesystem: true
    volumeMounts:
    - {{name: shared, mountPath: /shared}}
  volumes:
  - name: shared
    emptyDir: {{}}
"#
    );
    fs::write(&file, text).expect("write pod.yaml");
    let path = file.display().to_string();
    p.ok(["play", "kube", "--network", "none", &path]);
    p.await_log("kube-main", "from-init");
    assert_eq!(p.inspect("kube-main", "HostConfig.Memory"), (64 << 20).to_string());
    p.ok(["play", "kube", "--down", &path]);
}
