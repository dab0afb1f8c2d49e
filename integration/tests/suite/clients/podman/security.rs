//! What a container may do, and what it sees.

use std::fs;

use hafen_integration::{Case, cgroup};

use super::super::Peer;
use super::{Podman, case};

pub(super) fn scenarios() -> Vec<Case> {
    let peer = Peer::Passes("runc");
    vec![
        case("read_only", vec![], peer, read_only),
        case("capabilities", vec![], peer, capabilities),
        case("seccomp_profile", vec![], peer, seccomp_profile),
        case("masked_paths", vec![], peer, masked_paths),
        case("privileged_and_devices", vec![], peer, privileged_and_devices),
        case("settings_of_the_process", vec![], peer, settings_of_the_process),
        case("namespaces_of_the_host", vec![], peer, namespaces_of_the_host),
        case("user_namespaces", hafen_integration::needs![UserNamespaces], peer, user_namespaces),
        case("init", vec![], peer, init),
        case("hooks", vec![], peer, hooks),
    ]
}

fn read_only(p: &Podman<'_>) {
    let script = "touch /x 2>&1; touch /tmp/x /run/x && echo fine";
    let seen = p.sh(&["--read-only"], script);
    assert_eq!(seen, "touch: /x: Read-only file system\nfine\n");
    let seen = p.sh(&["--read-only", "--read-only-tmpfs=false"], "touch /tmp/x 2>&1 || echo kept");
    assert_eq!(seen, "touch: /tmp/x: Read-only file system\nkept\n");
}

fn capabilities(p: &Podman<'_>) {
    let script = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status";
    let few = p.sh(&["--cap-drop", "all", "--cap-add", "chown,kill"], script);
    let values: Vec<&str> = few.split_whitespace().skip(1).step_by(2).collect();
    let (none, two) = ("0000000000000000", "0000000000000021");
    assert_eq!(values, [none, two, two, two, none], "{few}");
    let user = p.sh(&["--user", "app"], script);
    assert!(user.contains(&format!("CapEff:\t{none}")), "{user}");
    let no_new =
        p.sh(&["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status");
    assert_eq!(no_new, "NoNewPrivs:\t1\n");
}

/// mkdir(2) gives an unusual errno, so that it is the filter that is seen.
fn seccomp_profile(p: &Podman<'_>) {
    let profile = p.folder.join("profile.json");
    let text = hafen_integration::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }],
    });
    fs::write(&profile, text.to_string()).expect("write a profile");
    let option = format!("seccomp={}", profile.display());
    let script = "mkdir /tmp/x 2>&1; grep Seccomp: /proc/self/status";
    let seen = p.sh(&["--security-opt", &option], script);
    assert!(seen.contains("Function not implemented") && seen.contains("Seccomp:\t2"), "{seen}");
    let none = p.sh(&["--security-opt", "seccomp=unconfined"], script);
    assert_eq!(none, "Seccomp:\t0\n");
    // Podman's own profile, with hundreds of rules and arguments.
    assert_eq!(p.sh(&[], script), "Seccomp:\t2\n");
}

fn masked_paths(p: &Podman<'_>) {
    let script =
        "head -c 1 /proc/kcore 2>/dev/null | wc -c; echo 1 >/proc/sys/kernel/panic && echo open";
    let closed = p.run(&[], &["sh", "-c", script]);
    assert_eq!(closed.stdout, "0\n");
    let seen = p.sh(&["--security-opt", "mask=/data"], "ls /data | wc -l");
    assert_eq!(seen, "0\n");
    let seen = p.sh(&["--security-opt", "unmask=ALL"], "grep -c ' /proc/.* ro' /proc/mounts || :");
    assert_eq!(seen, "0\n");
}

fn privileged_and_devices(p: &Podman<'_>) {
    let seen = p.sh(
        &["--privileged"],
        "grep CapBnd /proc/self/status; ls /dev/kmsg; grep -c 'sysfs.*rw' /proc/mounts",
    );
    let own = fs::read_to_string("/proc/self/status").expect("/proc is there");
    let all = own.lines().find(|l| l.starts_with("CapBnd")).expect("CapBnd");
    assert_eq!(seen, format!("{all}\n/dev/kmsg\n1\n"));
    // One that containers do not have anyway.
    let script = "(: </dev/copy) && echo read; (: >/dev/copy) 2>/dev/null || echo refused";
    assert_eq!(p.sh(&["--device", "/dev/fuse:/dev/copy:r"], script), "read\nrefused\n");
    let made = p.run(&["--cap-add", "mknod"], &["sh", "-c", "mknod /d b 7 0 && cat /d"]);
    assert!(made.exit != Some(0) && made.stderr.contains("not permitted"), "{made}");
}

fn settings_of_the_process(p: &Podman<'_>) {
    let options = [
        "--ulimit",
        "nofile=100:200",
        "--ulimit",
        "nproc=4000:4000",
        "--oom-score-adj",
        "500",
        "--shm-size",
        "1m",
        "--sysctl",
        "kernel.msgmax=9000",
        "--annotation",
        "a=b",
        "--label",
        "c=d",
    ];
    let script = "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj /proc/sys/kernel/msgmax; \
        grep -o 'shm.*size=1024k' /proc/mounts | wc -l";
    assert_eq!(p.sh(&options, script), "100\n200\n500\n9000\n1\n");
}

fn namespaces_of_the_host(p: &Podman<'_>) {
    let script = "for n in net pid ipc uts; do readlink /proc/self/ns/$n; done";
    let seen = p.sh(&["--network=host", "--pid=host", "--ipc=host", "--uts=host"], script);
    let own: Vec<String> = ["net", "pid", "ipc", "uts"]
        .iter()
        .map(|n| {
            fs::read_link(format!("/proc/self/ns/{n}")).expect("a namespace").display().to_string()
        })
        .collect();
    assert_eq!(seen.lines().collect::<Vec<_>>(), own);
    p.start("one", &["--ipc=shareable"], "hostname joined; exec sleep 60");
    let pid = p.pid("one");
    let joined =
        p.sh(&["--network=container:one", "--pid=container:one", "--ipc=container:one"], script);
    let others: Vec<String> = ["net", "pid", "ipc"]
        .iter()
        .map(|n| {
            fs::read_link(format!("/proc/{pid}/ns/{n}")).expect("a namespace").display().to_string()
        })
        .collect();
    assert_eq!(joined.lines().take(3).collect::<Vec<_>>(), others);
    if cgroup::v1("memory").is_none() {
        let private = p.sh(&["--cgroupns=private"], "cat /proc/self/cgroup");
        assert_eq!(private, "0::/\n");
    }
}

fn init(p: &Podman<'_>) {
    p.start("one", &["--init"], "exec sleep 60");
    let first = p.ok(["exec", "one", "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline"]);
    assert!(first.contains("-- sh -c exec sleep 60"), "{first}");
    assert_eq!(p.run(&["--init"], &["sh", "-c", "exit 9"]).exit, Some(9));
}

fn hooks(p: &Podman<'_>) {
    let folder = p.folder.join("hooks");
    fs::create_dir_all(&folder).expect("mkdir hooks");
    let said = p.folder.join("said");
    let script = p.folder.join("hook.sh");
    let text = format!("#!/bin/sh\necho $1 >>{}\ngrep -q '\"id\"'\n", said.display());
    fs::write(&script, text).expect("write a hook");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    for stage in ["prestart", "createRuntime", "poststart", "poststop"] {
        let hook = hafen_integration::json!({
            "version": "1.0.0",
            "hook": { "path": script, "args": ["hook", stage] },
            "when": { "always": true },
            "stages": [stage],
        });
        fs::write(folder.join(format!("{stage}.json")), hook.to_string()).expect("write a hook");
    }
    let option = folder.display().to_string();
    p.call(["--hooks-dir", &option, "run", "--rm", super::BOX, "true"]).ok();
    let said = fs::read_to_string(&said).expect("what the hooks said");
    assert_eq!(said, "prestart\ncreateRuntime\npoststart\npoststop\n");
}

fn user_namespaces(p: &Podman<'_>) {
    let options = ["--uidmap", "0:100000:5000", "--gidmap", "0:200000:5000"];
    let script =
        "cat /proc/self/uid_map /proc/self/gid_map; touch /x && stat -c %u:%g /x /bin/busybox";
    let seen = p.sh(&options, script);
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "5000", "0", "200000", "5000", "0:0", "0:0"]);
    p.start("one", &options, "exec sleep 60");
    assert_eq!(p.ok(["exec", "--user", "app", "one", "id", "-u"]), "1000\n");
    let status = fs::read_to_string(format!("/proc/{}/status", p.pid("one"))).expect("its status");
    assert!(status.contains("Uid:\t100000\t100000"), "{status}");
}
