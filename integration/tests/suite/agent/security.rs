//! What a task may ask of the kernel: capabilities, system calls, devices. The kernel is asked, from inside.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use hafen_integration::{Case, Facts, Test, Value, cases, json, with};

use super::{Node, exit_code, sentence};
use crate::seccomp::little_program;

pub(super) fn trials() -> Vec<Case> {
    cases![
        rights_of_root(Root, Busybox),
        rights_of_another_user(Root, Busybox),
        files_change_hands_and_users_change(Root, Busybox),
        calls_that_few_miss(Root, Busybox, That("calls of x86-64", is_x86_64)),
        a_profile_of_its_own(Root, Busybox),
        more_rights_by_execve(Root, Busybox),
        devices_of_the_node(Root, Busybox),
        options_of_other_engines(Root, Busybox),
    ]
}

/// What a container needs to become a service, as Podman gives it.
const USUAL: [&str; 11] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| format!("CAP_{name}")).collect()
}

/// Of a task that is `/inside facts`.
fn facts(node: &Node<'_>, id: &str, more: &Value) -> Facts {
    node.run(&with(node.task_of(id, &["/inside", "facts"]), more));
    let task = node.wait(id);
    assert_eq!(exit_code(&task), Some(0), "{task:#}");
    node.hafen(["logs", id]).ok().facts()
}

fn capabilities(add: &[&str], drop: &[&str]) -> Value {
    json!({ "security": { "capabilities": { "add": add, "drop": drop } } })
}

fn rights_of_root(t: &Test) {
    let node = Node::new(t);
    let without = |names: &[&str]| &set(&USUAL) - &set(names);
    let cases = [
        (json!({}), set(&USUAL)),
        (capabilities(&["NET_RAW", "cap_mknod"], &[]), &set(&USUAL) | &set(&["NET_RAW", "MKNOD"])),
        (capabilities(&[], &["CAP_CHOWN", "KILL"]), without(&["CHOWN", "KILL"])),
        (capabilities(&[], &["ALL"]), set(&[])),
        (capabilities(&["NET_RAW"], &["ALL"]), set(&["NET_RAW"])),
    ];
    for (n, (more, wanted)) in cases.into_iter().enumerate() {
        let status = facts(&node, &format!("r{n}"), &more).status;
        for (name, found) in [
            ("bounding", &status.bounding),
            ("permitted", &status.permitted),
            ("effective", &status.effective),
        ] {
            assert_eq!(*found, wanted, "{name} of {more}");
        }
        assert!(status.inheritable.is_empty() && status.ambient.is_empty(), "{status:?}");
        assert_eq!((status.no_new_privs, status.seccomp), (1, 2), "{more}");
    }
    let all = facts(&node, "all", &capabilities(&["ALL"], &["SYS_MODULE"])).status.effective;
    assert!(
        all.is_superset(&set(&["SYS_ADMIN", "NET_RAW"])) && all.is_disjoint(&set(&["SYS_MODULE"]))
    );
    // The files of the machine are not those of an image: KILL, NET_BIND_SERVICE and AUDIT_WRITE.
    let grep = ["grep", "Cap[PEB]", "/proc/self/status"];
    node.run(&json!({ "id": "host", "root": { "host": true }, "command": grep }));
    let task = node.wait("host");
    let few = "0000000020000420";
    let wanted = format!("CapPrm:\t{few}\nCapEff:\t{few}\nCapBnd:\t{few}\n");
    assert_eq!(node.logs("host"), wanted, "{task:#}");
}

fn rights_of_another_user(t: &Test) {
    let node = Node::new(t);
    let user = |mut more: Value| {
        more["user"] = json!("1000:1000");
        more
    };
    let status = facts(&node, "none", &user(json!({}))).status;
    assert_eq!(status.uid, [1000; 4]);
    assert_eq!(status.bounding, set(&USUAL));
    for found in [&status.permitted, &status.effective, &status.inheritable, &status.ambient] {
        assert!(found.is_empty(), "{status:?}");
    }
    let status = facts(&node, "one", &user(capabilities(&["NET_BIND_SERVICE"], &["ALL"]))).status;
    for found in [&status.bounding, &status.permitted, &status.effective, &status.ambient] {
        assert_eq!(*found, set(&["NET_BIND_SERVICE"]), "{status:?}");
    }
    let mut spec = node.sh("exec", "exec sleep 1000");
    spec["user"] = json!("65534:65534");
    node.run(&spec);
    node.wait_state("exec", "STATE_RUNNING");
    let of =
        |user: &str| node.hafen(["exec", "--user", user, "exec", "/inside", "facts"]).ok().facts();
    assert_eq!(of("1000").status.effective, set(&[]));
    assert_eq!(of("0").status.effective, set(&USUAL), "as in a task of root");
}

/// As servers begin: as root, who gives the data to a user, and becomes it.
fn files_change_hands_and_users_change(t: &Test) {
    let node = Node::new(t);
    let script = "mkdir /data && echo kept > /data/f && chown -R nobody:nogroup /data && chmod 700 /data && \
                  exec su -s /bin/sh nobody -c 'id -u; cat /data/f; chown root /data/f 2> /dev/null || echo no way back'";
    node.run(&node.sh("a", script));
    let task = node.wait("a");
    assert_eq!(node.logs("a"), "65534\nkept\nno way back\n", "{task:#}");
    let mut few = node.sh("b", script);
    few["security"] = json!({ "capabilities": { "drop": ["CHOWN"] } });
    node.run(&few);
    assert_ne!(exit_code(&node.wait("b")), Some(0), "{}", node.logs("b"));
}

/// A program that ends with the error of this call, 0 if there is none.
fn program(call: u32, arguments: [u32; 3]) -> Vec<u8> {
    const MOV: [u8; 4] = [0xb8, 0xbf, 0xbe, 0xba];
    let words = [call, arguments[0], arguments[1], arguments[2]];
    let load = MOV
        .iter()
        .zip(words)
        .flat_map(|(mov, word)| std::iter::once(*mov).chain(word.to_le_bytes()));
    let mut code: Vec<u8> = load.collect();
    // xor r10d, r10d; syscall; neg eax; mov edi, eax; mov eax, 60 (exit); syscall
    code.extend([
        0x45, 0x31, 0xd2, 0x0f, 0x05, 0xf7, 0xd8, 0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05,
    ]);
    little_program(&code, 64)
}

fn is_x86_64() -> bool {
    cfg!(target_arch = "x86_64")
}

const EPERM: i32 = nix::libc::EPERM;
const EFAULT: i32 = nix::libc::EFAULT;
const EINVAL: i32 = nix::libc::EINVAL;
const ENOSYS: i32 = nix::libc::ENOSYS;
const EOPNOTSUPP: i32 = nix::libc::EOPNOTSUPP;

/// Calls that make no sense, so that the kernel's answer is not the profile's. Then: of the profile, with CAP_SYS_ADMIN,
/// and without a profile.
const CALLS: [(&str, u32, [u32; 3], [i32; 3]); 8] = [
    ("keyctl", 250, [0xffff, 0, 0], [EPERM, EPERM, EOPNOTSUPP]),
    ("mount", 165, [0, 0, 0], [EPERM, EFAULT, EFAULT]),
    // CLONE_NEWUTS with what is no flag, and CLONE_FS.
    ("unshare-namespace", 272, [0x0400_0001, 0, 0], [EPERM, EINVAL, EINVAL]),
    ("unshare-folder", 272, [0x200, 0, 0], [0, 0, 0]),
    ("clone3", 435, [0, 0, 0], [ENOSYS, EINVAL, EINVAL]),
    // ADDR_NO_RANDOMIZE
    ("personality", 135, [0x4_0000, 0, 0], [EPERM, EPERM, 0]),
    ("chroot", 161, [0, 0, 0], [EFAULT, EFAULT, EFAULT]),
    ("later", 9999, [0, 0, 0], [ENOSYS, ENOSYS, ENOSYS]),
];

fn calls_that_few_miss(t: &Test) {
    let node = Node::new(t);
    for (name, call, arguments, _) in CALLS {
        let path = node.rootfs.join(name);
        fs::write(&path, program(call, arguments)).expect("written");
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("chmod");
    }
    let names = CALLS.map(|(name, ..)| name).join(" ");
    let script = format!("for call in {names}; do /$call; echo $call $?; done");
    let said = |id: &str, security: Value| {
        let mut spec = node.sh(id, &script);
        spec["security"] = security;
        node.run(&spec);
        node.wait(id);
        node.logs(id)
    };
    let columns = [
        ("usual", json!({})),
        ("admin", json!({ "capabilities": { "add": ["SYS_ADMIN"] } })),
        ("unconfined", json!({ "seccomp": { "unconfined": true } })),
    ];
    for (n, (id, security)) in columns.into_iter().enumerate() {
        let wanted = CALLS.map(|(name, _, _, codes)| format!("{name} {}\n", codes[n])).concat();
        assert_eq!(said(id, security), wanted, "{id}");
    }
    let dropped = said("dropped", json!({ "capabilities": { "drop": ["SYS_CHROOT"] } }));
    assert!(dropped.contains(&format!("chroot {EPERM}\n")), "{dropped}");
}

fn a_profile_of_its_own(t: &Test) {
    let node = Node::new(t);
    let rule = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": EOPNOTSUPP });
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }).to_string();
    let path = t.dir().join("profile.json");
    fs::write(&path, &profile).expect("written");
    let mut spec = node.sh("a", "mkdir /x; grep Seccomp: /proc/self/status");
    spec["security"] = json!({ "seccomp": { "profile": profile } });
    node.run(&spec);
    node.wait("a");
    let by_option = format!("seccomp={}", path.display());
    let words = ["--name", "b", "--security-opt", &by_option];
    node.hafen(node.run_words(&words, "mkdir /x; grep Seccomp: /proc/self/status")).ok();
    for id in ["a", "b"] {
        let said = node.hafen(["logs", id]).ok();
        assert!(said.stderr.contains("not supported"), "{said}");
        assert_eq!(said.stdout, "Seccomp:\t2\n");
    }
}

fn more_rights_by_execve(t: &Test) {
    let node = Node::new(t);
    for (id, said, wanted) in [("a", json!(false), 0), ("b", json!(true), 1)] {
        let security = json!({ "security": { "noNewPrivileges": said } });
        let status = facts(&node, id, &security).status;
        assert_eq!((status.no_new_privs, status.seccomp), (wanted, 2));
    }
    let more = json!({ "security": { "noNewPrivileges": false }, "user": "1000" });
    let status = facts(&node, "c", &more).status;
    assert_eq!((status.no_new_privs, status.seccomp, status.effective), (0, 2, set(&[])));
}

/// Opened for writing only, and nothing is written.
fn devices_of_the_node(t: &Test) {
    let node = Node::new(t);
    let open = "test -c /dev/shown || echo missing; ( : > /dev/shown ) 2> /dev/null && echo open || echo closed";
    let said = |id: &str, devices: Value| {
        let mut spec = node.sh(id, open);
        spec["security"] = json!({ "devices": devices });
        node.run(&spec);
        let task = node.wait(id);
        assert_eq!(exit_code(&task), Some(0), "{task:#}");
        node.logs(id)
    };
    let device = |access: &str| json!([{ "path": "/dev/kmsg", "destination": "/dev/shown", "access": access }]);
    assert_eq!(said("all", device("")), "open\n");
    assert_eq!(said("write", device("w")), "open\n");
    assert_eq!(said("read", device("r")), "closed\n");
    let mut missing = node.sh("missing", "exit 0");
    missing["security"] = json!({ "devices": [{ "path": "/dev/no-such-device" }] });
    node.run(&missing);
    let task = node.wait("missing");
    assert_eq!(task["reason"]["kind"], "KIND_NOT_LAUNCHED", "{task:#}");
    assert!(sentence(&task).contains("/dev/no-such-device"), "{task:#}");
}

fn options_of_other_engines(t: &Test) {
    let node = Node::new(t);
    let root = node.rootfs.display().to_string();
    let words = [
        "run",
        "--name",
        "a",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "NET_RAW",
        "--security-opt",
        "seccomp=unconfined",
        "--security-opt",
        "no-new-privileges=false",
        "--read-only",
        "--device",
        "/dev/kmsg:/dev/shown:r",
        "--rootfs",
        &root,
        "/inside",
        "facts",
        "--list",
        "/dev",
    ];
    let facts = node.hafen(words).ok().facts();
    let status = facts.status;
    assert_eq!(status.effective, set(&["NET_RAW"]));
    assert_eq!((status.no_new_privs, status.seccomp), (0, 0));
    assert_eq!(facts.root_write, "EROFS");
    assert!(facts.files.contains_key("/dev/shown"), "{:?}", facts.files.keys());
    let security = &node.json(["inspect", "a"])["spec"]["security"];
    let wanted = json!({
        "capabilities": { "add": ["NET_RAW"], "drop": ["ALL"] }, "noNewPrivileges": false,
        "seccomp": { "unconfined": true },
        "devices": [{ "path": "/dev/kmsg", "destination": "/dev/shown", "access": "r" }],
    });
    assert_eq!(*security, wanted);
    let file = t.dir().join("task.yaml");
    let text = format!(
        "id: b\nroot: {{rootfs: {root}}}\ncommand: [/inside, facts]\nsecurity:\n  capabilities: {{drop: [ALL]}}\n  seccomp: {{unconfined: true}}\n"
    );
    fs::write(&file, text).expect("written");
    let status = node.hafen(["run", "-f", file.to_str().expect("text")]).ok().facts().status;
    assert_eq!((status.effective, status.seccomp), (set(&[]), 0));
}
