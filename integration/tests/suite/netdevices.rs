//! Network interfaces that a container gets. Each test makes them in a network namespace of its own.

use hafen_integration::{Bundle, Case, Output, Test, Value, cases, json};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        interfaces_move_with_their_addresses(Root, Busybox, Program("ip"), Program("unshare")),
        a_name_of_its_own_is_kept(Root, Busybox, Program("ip"), Program("unshare")),
        settings_of_an_interface_that_moves(Root, Busybox, Program("ip"), Program("unshare")),
        a_joined_namespace_gets_it(Root, Busybox, Program("ip"), Program("unshare")),
        what_cannot_be_moved_stays(Root, Busybox, Program("ip"), Program("unshare")),
        names_that_make_no_sense(Root, Busybox),
    ]
}

/// `script` in a network namespace with the interfaces `hafen0` (in use) and `hafen1`, the ends of a cable.
fn in_namespace(t: &Test, script: &str) -> Output {
    let script = format!(
        "set -e\nip link add hafen0 mtu 1400 type veth peer name hafen1\n\
         ip link set hafen0 address 02:00:00:00:00:01\n\
         ip address add 192.0.2.7/24 broadcast 192.0.2.255 dev hafen0\n\
         ip address add 2001:db8::7/64 dev hafen0 nodad\nip link set hafen0 up\n{script}"
    );
    t.shell("exec unshare -n sh -c \"$INNER\"").env("INNER", script).output()
}

fn with_devices(t: &Test, devices: Value) -> Bundle {
    let bundle = t.bundle().sh("ip -o link show $DEV; ip -o address show $DEV scope global");
    bundle.set("/linux/netDevices", devices)
}

fn named(bundle: Bundle, name: &str) -> Bundle {
    bundle.push("/process/env", json!(format!("DEV={name}")))
}

fn interfaces_move_with_their_addresses(t: &Test) {
    let bundle =
        named(with_devices(t, json!({ "hafen0": { "name": "eth0" }, "hafen1": {} })), "eth0");
    let run = format!("$OCI run --bundle {} {}\nip -o link", bundle.path().display(), t.id());
    let output = in_namespace(t, &run).ok();
    for text in [
        "eth0",
        "mtu 1400",
        ",UP",
        "02:00:00:00:00:01",
        "192.0.2.7/24 brd 192.0.2.255",
        "2001:db8::7/64",
    ] {
        assert!(output.stdout.contains(text), "no {text} in {output}");
    }
    // With the namespace the kernel takes the cable away.
    assert!(!output.stdout.contains(" hafen"), "{output}");
}

fn a_name_of_its_own_is_kept(t: &Test) {
    let bundle = named(with_devices(t, json!({ "hafen0": {} })), "hafen0");
    let run = format!("$OCI run --bundle {} {}", bundle.path().display(), t.id());
    let output = in_namespace(t, &run).ok();
    assert!(output.stdout.contains("hafen0") && output.stdout.contains("192.0.2.7/24"), "{output}");
}

/// The settings of an interface are there once it is.
fn settings_of_an_interface_that_moves(t: &Test) {
    let bundle = with_devices(t, json!({ "hafen0": { "name": "eth0" } }))
        .set("/linux/sysctl", json!({ "net.ipv4.conf.eth0.forwarding": "1" }))
        .sh("cat /proc/sys/net/ipv4/conf/eth0/forwarding");
    let run = format!("$OCI run --bundle {} {}", bundle.path().display(), t.id());
    assert_eq!(in_namespace(t, &run).ok().stdout, "1\n");
}

fn a_joined_namespace_gets_it(t: &Test) {
    let path = t.dir().join("joined");
    std::fs::write(&path, "").expect("make a file");
    let path = path.to_string_lossy().into_owned();
    let bundle = named(with_devices(t, json!({ "hafen0": { "name": "eth7" } })), "eth7");
    let bundle = bundle.namespace("network", Some(&path));
    let script = format!(
        "unshare --net={path} true\n$OCI run --bundle {} {}\n\
         nsenter --net={path} ip -o link show eth7\nip -o link show hafen1",
        bundle.path().display(),
        t.id()
    );
    // The mount that keeps the namespace alive is nobody else's.
    let script = format!("exec unshare -m sh -c '{script}; umount -n {path}'");
    let output = in_namespace(t, &script).ok();
    assert!(output.stdout.contains("192.0.2.7/24"), "{output}");
    let outside = output.stdout.lines().rev().nth(1).unwrap_or_default();
    assert!(outside.contains("eth7@") && !outside.contains("hafen0"), "{output}");
}

/// It is looked at first: with the failed container the interface would be gone.
fn what_cannot_be_moved_stays(t: &Test) {
    for (devices, words) in [
        (json!({ "nowhere0": {} }), ["interface nowhere0", "No such device"]),
        (json!({ "hafen0": { "name": "lo" } }), ["interface hafen0: call it lo", "File exists"]),
    ] {
        let bundle = with_devices(t, devices);
        let run = format!(
            "$OCI run --bundle {} {} || echo failed\nip -o address show hafen0",
            bundle.path().display(),
            t.id()
        );
        let output = in_namespace(t, &run).ok();
        assert!(words.iter().all(|word| output.stderr.contains(word)), "{output}");
        assert!(
            output.stdout.starts_with("failed\n") && output.stdout.contains("192.0.2.7/24"),
            "{output}"
        );
    }
}

fn names_that_make_no_sense(t: &Test) {
    let field = |name: &str| format!("linux.netDevices[{name:?}]");
    let table = [
        (json!({ "a/b": {} }), field("a/b")),
        (json!({ "sixteen-letters-": {} }), field("sixteen-letters-")),
        (json!({ "eth0": { "name": "eth%d" } }), field("eth0") + ".name"),
        (json!({ "eth0": { "name": ".." } }), field("eth0") + ".name"),
        (json!({ "eth0": { "name": "a b" } }), field("eth0") + ".name"),
        (json!({ "eth0": { "name": "x0" }, "eth1": { "name": "x0" } }), field("eth1") + ".name"),
    ];
    for (devices, field) in table {
        t.oci().run(&t.id(), &with_devices(t, devices)).error_with([&*field]);
    }
    let shared = with_devices(t, json!({ "eth0": {} })).without_namespace("network");
    t.oci().run(&t.id(), &shared).error_with(["linux.netDevices", "network namespace"]);
}
