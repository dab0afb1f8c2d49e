//! Attributes that the kernel keeps for each process, seen from inside.

use hafen_integration::{Bundle, Case, Output, Test, Value, cases, json, with};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        scheduler_policies(Root, Busybox, Capability("CAP_SYS_NICE")),
        scheduler_resets_on_fork(Root, Busybox, Capability("CAP_SYS_NICE")),
        scheduler_with_deadlines(Root, Busybox, Capability("CAP_SYS_NICE")),
        scheduler_that_the_kernel_refuses(Launcher, Busybox),
        io_priorities(Root, Busybox, Capability("CAP_SYS_NICE")),
        attributes_are_there_after_create_and_start(Root, Busybox, Capability("CAP_SYS_NICE")),
        a_user_namespace_is_no_hindrance(Root, Busybox, UserNamespaces, Capability("CAP_SYS_NICE")),
        personality(Launcher, Busybox),
        memory_policies(Launcher, Busybox, File("/proc/self/numa_maps")),
        memory_policy_with_a_node_that_is_not_there(
            Launcher,
            Busybox,
            File("/proc/self/numa_maps")
        ),
        exec_affinity_is_not_for_the_first_process(Launcher, Busybox),
        exec_affinity(Launcher, Busybox, Cpus(2)),
        exec_affinity_that_is_not_there(Launcher, Busybox),
        exec_has_attributes_of_its_own(Root, Busybox, Capability("CAP_SYS_NICE")),
        fields_that_make_no_sense(Launcher, Busybox),
        intel_rdt_without_resctrl(Root, Busybox, That("no resctrl", no_resctrl)),
        labels_without_their_security_module(
            Launcher,
            Busybox,
            That("no AppArmor, no SELinux", no_module)
        ),
        an_apparmor_profile_that_is_not_loaded(Launcher, Busybox, That("AppArmor", apparmor)),
        an_apparmor_profile_confines(
            Root,
            Busybox,
            That("AppArmor", apparmor),
            Program("apparmor_parser")
        ),
    ]
}

fn apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t == "Y\n")
}

fn no_module() -> bool {
    !apparmor() && !std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

fn run(t: &Test, bundle: &Bundle) -> Output {
    t.oci().run(&t.id(), bundle)
}

fn scheduler_policies(t: &Test) {
    let table = [
        (json!({ "policy": "SCHED_OTHER", "nice": 7 }), 0, 7),
        (json!({ "policy": "SCHED_OTHER", "nice": -5 }), 0, -5),
        (json!({ "policy": "SCHED_FIFO", "priority": 3 }), 1, 0),
        (json!({ "policy": "SCHED_RR", "priority": 99, "nice": 4 }), 2, 4),
        (json!({ "policy": "SCHED_BATCH", "priority": 0, "nice": 19 }), 3, 19),
        (json!({ "policy": "SCHED_IDLE" }), 5, 0),
    ];
    for (scheduler, policy, nice) in table {
        let bundle = t.bundle().set("/process/scheduler", scheduler.clone());
        let facts = t.oci().facts(&t.id(), &bundle);
        assert_eq!((facts.policy, facts.nice), (Some(policy), Some(nice)), "{scheduler}");
    }
    let bundle = t
        .bundle()
        .set("/process/scheduler", json!({ "policy": "SCHED_RR", "priority": 42, "flags": [] }));
    let priority = run(t, &bundle.sh("exec cut -d' ' -f40 /proc/self/stat")).ok();
    assert_eq!(priority.stdout, "42\n");
}

fn scheduler_resets_on_fork(t: &Test) {
    let policy = "cut -d' ' -f41 /proc/self/stat";
    let script = format!("{policy}; exec {policy}");
    for (flags, seen) in [(json!([]), "1\n1\n"), (json!(["SCHED_FLAG_RESET_ON_FORK"]), "0\n1\n")] {
        let scheduler = json!({ "policy": "SCHED_FIFO", "priority": 1, "flags": flags });
        let bundle = t.bundle().sh(&script).set("/process/scheduler", scheduler);
        assert_eq!(run(t, &bundle).ok().stdout, seen, "{flags}");
    }
}

fn scheduler_with_deadlines(t: &Test) {
    let bundle = t.bundle().set(
        "/process/scheduler",
        json!({ "policy": "SCHED_DEADLINE", "nice": 19, "runtime": 1_000_000, "deadline": 10_000_000,
                "period": 20_000_000, "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"] }),
    );
    let facts = t.oci().facts(&t.id(), &bundle);
    assert_eq!((facts.policy, facts.nice), (Some(6), Some(19)));
    let seen = run(t, &bundle.sh("exec grep -E 'dl.(runtime|deadline|period)' /proc/self/sched"));
    if seen.exit == Some(0) {
        assert!(seen.stdout.contains("dl.runtime"), "{seen}");
    }
}

/// More CPU time in each period than there is (sched(7), admission test).
fn scheduler_that_the_kernel_refuses(t: &Test) {
    let bundle = t.bundle().set(
        "/process/scheduler",
        json!({ "policy": "SCHED_DEADLINE", "runtime": 5_000_000_000_u64, "deadline": 5_000_000_000_u64 }),
    );
    run(t, &bundle).error_with(["set scheduler SCHED_DEADLINE"]);
}

fn io_priorities(t: &Test) {
    let table = [
        (json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 }), "best-effort: prio 6\n"),
        (json!({ "class": "IOPRIO_CLASS_RT", "priority": 0 }), "realtime: prio 0\n"),
        (json!({ "class": "IOPRIO_CLASS_IDLE" }), "idle\n"),
        (json!({ "priority": 2 }), "best-effort: prio 2\n"),
    ];
    for (asked, seen) in table {
        let bundle = t.bundle().args(["/bin/ionice"]).set("/process/ioPriority", asked.clone());
        let output = run(t, &bundle).ok();
        assert!(output.stdout.starts_with(seen.trim_end()), "{asked}: {output}");
    }
}

/// Also for a user without any capability: they are given before the rights go.
fn attributes_are_there_after_create_and_start(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t
        .bundle()
        .args(["/inside", "await", "15", "3"])
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        .set("/process/capabilities", json!({}))
        .set("/process/scheduler", json!({ "policy": "SCHED_FIFO", "priority": 5 }))
        .set("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_RT", "priority": 1 }));
    let _ = oci.create(&id, &bundle).ok();
    let stat = format!("/proc/{}/stat", oci.pid(&id));
    let fields = || std::fs::read_to_string(&stat).expect("a process");
    let seen = |text: &str| {
        let rest = text.rsplit_once(") ").expect("a stat line").1.to_owned();
        let all: Vec<&str> = rest.split(' ').collect();
        (all[40 - 3].to_owned(), all[41 - 3].to_owned())
    };
    let expected = ("5".to_owned(), "1".to_owned());
    assert_eq!(seen(&fields()), expected);
    let _ = oci.start(&id).ok();
    assert_eq!(seen(&fields()), expected);
    let _ = oci.delete_force(&id).ok();
}

/// There the process may not give itself any of these (capabilities(7), CAP_SYS_NICE).
fn a_user_namespace_is_no_hindrance(t: &Test) {
    let attributes = json!({
        "scheduler": { "policy": "SCHED_RR", "priority": 9, "nice": -7 },
        "ioPriority": { "class": "IOPRIO_CLASS_RT", "priority": 2 },
        "args": ["/bin/sh", "-c", "ionice; exec cut -d' ' -f19,40,41 /proc/self/stat"],
    });
    let bundle = t.bundle().user_namespace(100_000, 65_536);
    let process = with(bundle.config()["process"].clone(), &attributes);
    let own = run(t, &bundle.clone().set("/process", process)).ok();
    assert_eq!(own.stdout, "realtime: prio 2\n-7 9 2\n");
    assert_eq!(exec(t, &bundle, &attributes).ok().stdout, own.stdout);
}

fn personality(t: &Test) {
    let bundle = t.bundle().args(["/bin/uname", "-m"]);
    let native = run(t, &bundle).ok().stdout;
    let with = |value: Value| run(t, &bundle.clone().set("/linux/personality", value)).ok().stdout;
    assert_eq!(with(json!({ "domain": "LINUX" })), native);
    let narrow = with(json!({ "domain": "LINUX32" }));
    assert!(["i686\n", "armv8l\n"].contains(&&*narrow), "{narrow}");
    run(
        t,
        &bundle.set("/linux/personality", json!({ "domain": "LINUX", "flags": ["SHORT_INODE"] })),
    )
    .error_with(["linux.personality.flags"]);
}

fn memory_policies(t: &Test) {
    let bundle = t.bundle().sh("exec head -n1 /proc/self/numa_maps");
    let table = [
        (json!({ "mode": "MPOL_BIND", "nodes": "0" }), "bind:0"),
        (
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] }),
            "bind=static:0",
        ),
        (
            json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"] }),
            "interleave=relative:0",
        ),
        (json!({ "mode": "MPOL_PREFERRED", "nodes": "0" }), "prefer:0"),
        (json!({ "mode": "MPOL_PREFERRED" }), "local"),
        (json!({ "mode": "MPOL_LOCAL" }), "local"),
        (json!({ "mode": "MPOL_DEFAULT" }), "default"),
        (
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"] }),
            "bind=balancing:0",
        ),
    ];
    for (policy, seen) in table {
        let output = run(t, &bundle.clone().set("/linux/memoryPolicy", policy.clone())).ok();
        let word = output.stdout.split(' ').nth(1).unwrap_or_default().trim_end();
        // Kernels up to 6.13 do not print the balancing flag.
        assert!(word == seen || word == seen.replace("=balancing", ""), "{policy}: {output}");
    }
}

fn memory_policy_with_a_node_that_is_not_there(t: &Test) {
    let bundle =
        t.bundle().set("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND", "nodes": "1000" }));
    run(t, &bundle).error_with(["set memory policy MPOL_BIND nodes \"1000\""]);
}

/// runtime-spec, config, "execCPUAffinity": "not applicable to the container's init process".
fn exec_affinity_is_not_for_the_first_process(t: &Test) {
    let own = t.oci().facts(&t.id(), &t.bundle()).status.cpus_allowed;
    let bundle = t.bundle().set("/process/execCPUAffinity", json!({ "initial": "0", "final": "" }));
    assert_eq!(t.oci().facts(&t.id(), &bundle).status.cpus_allowed, own);
}

/// Run `process`, a change of the bundle's own, in a running container of the bundle.
fn exec(t: &Test, bundle: &Bundle, process: &Value) -> Output {
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &bundle.clone().args(["/inside", "sleep", "60"])).ok();
    let _ = oci.start(&id).ok();
    let document = with(bundle.config()["process"].clone(), process);
    let file = t.dir().join("process.json");
    std::fs::write(&file, document.to_string()).expect("write the process");
    let output = oci.call(["exec".as_ref(), "--process".as_ref(), file.as_os_str(), id.as_ref()]);
    let _ = oci.delete_force(&id).ok();
    output
}

fn exec_affinity(t: &Test) {
    let all = t.oci().facts(&t.id(), &t.bundle()).status.cpus_allowed;
    for (affinity, seen) in [
        (json!({ "final": "1" }), "1"),
        (json!({ "initial": "1", "final": "0" }), "0"),
        // Nothing changes it afterwards in a cgroup without a cpuset.
        (json!({ "initial": "1" }), "1"),
        (json!({ "initial": "0-1" }), "0-1"),
        (json!({}), &*all),
    ] {
        let output = exec(t, &t.bundle(), &json!({ "execCPUAffinity": affinity })).ok();
        assert_eq!(output.facts().status.cpus_allowed, seen, "{affinity}");
    }
}

fn exec_affinity_that_is_not_there(t: &Test) {
    for (which, words) in
        [("initial", "process.execCPUAffinity.initial"), ("final", "run on processors 900")]
    {
        let output = exec(t, &t.bundle(), &json!({ "execCPUAffinity": { which: "900" } }));
        // As runc does for whatever is wrong before the program runs.
        assert!(output.code(255).stderr.contains(words));
    }
}

fn exec_has_attributes_of_its_own(t: &Test) {
    let bundle = t.bundle().set("/process/scheduler", json!({ "policy": "SCHED_BATCH" }));
    let bundle = bundle.set("/linux/personality", json!({ "domain": "LINUX32" }));
    let bundle = bundle.set("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND", "nodes": "0" }));
    let process = json!({
        "scheduler": { "policy": "SCHED_RR", "priority": 9, "flags": ["SCHED_FLAG_RESET_ON_FORK"] },
        "ioPriority": { "class": "IOPRIO_CLASS_IDLE" },
        "args": ["/bin/sh", "-c", "ionice -p 1; ionice -p $$; uname -m; head -n1 /proc/self/numa_maps; exec cut -d' ' -f40,41 /proc/self/stat"],
    });
    let output = exec(t, &bundle, &process).ok();
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert!(lines[0].starts_with("none") && lines[1].starts_with("idle"), "{output}");
    assert!(["i686", "armv8l"].contains(&lines[2]) && lines[3].contains("bind:0"), "{output}");
    assert_eq!(lines[4], "9 2", "{output}");
}

fn fields_that_make_no_sense(t: &Test) {
    let table = [
        ("/process/scheduler", json!({ "policy": "SCHED_RR" }), "process.scheduler.priority"),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_OTHER", "nice": 50 }),
            "process.scheduler.nice",
        ),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_NONSENSE"] }),
            "process.scheduler.flags[0]",
        ),
        (
            "/process/ioPriority",
            json!({ "class": "IOPRIO_CLASS_BE", "priority": 9 }),
            "process.ioPriority.priority",
        ),
        ("/process/execCPUAffinity", json!({ "final": "7-3" }), "process.execCPUAffinity.final"),
        ("/process/execCPUAffinity", json!({ "initial": "a" }), "process.execCPUAffinity.initial"),
        ("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND" }), "linux.memoryPolicy.nodes"),
        ("/linux/memoryPolicy", json!({ "mode": "MPOL_X" }), "linux.memoryPolicy.mode"),
    ];
    for (pointer, value, field) in table {
        run(t, &t.bundle().set(pointer, value)).error_with([field]);
    }
}

fn no_resctrl() -> bool {
    !std::fs::read_to_string("/proc/mounts").unwrap_or_default().contains(" resctrl ")
}

fn intel_rdt_without_resctrl(t: &Test) {
    let bundle = t.bundle().set("/linux/intelRdt", json!({ "l3CacheSchema": "L3:0=f" }));
    run(t, &bundle).error_with(["linux.intelRdt", "no resctrl file system is mounted"]);
    let bundle = bundle.set("/linux/intelRdt", json!({ "closID": "a/b" }));
    run(t, &bundle).error_with(["linux.intelRdt.closID"]);
}

fn labels_without_their_security_module(t: &Test) {
    let table = [
        (
            "/process/apparmorProfile",
            "docker-default",
            "process.apparmorProfile: apparmor is not enabled",
        ),
        (
            "/process/selinuxLabel",
            "system_u:system_r:x_t:s0",
            "process.selinuxLabel: selinux is not enabled",
        ),
    ];
    for (pointer, value, text) in table {
        run(t, &t.bundle().set(pointer, json!(value))).error_with([text]);
    }
    for (pointer, value) in
        [("/process/apparmorProfile", "unconfined"), ("/process/selinuxLabel", "")]
    {
        let _ = run(t, &t.bundle().set(pointer, json!(value))).ok();
    }
    let bundle = t.bundle().set("/linux/mountLabel", json!("system_u:object_r:x_t:s0"));
    let (oci, log) = (t.oci(), t.dir().join("log"));
    let (file, folder) = (log.display().to_string(), bundle.path().display().to_string());
    let _ = oci.call(["--log", &file, "run", "--bundle", &folder, &t.id()]).ok();
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(said.contains("linux.mountLabel: left out: selinux is not enabled"), "{said}");
}

fn an_apparmor_profile_that_is_not_loaded(t: &Test) {
    let bundle = t.bundle().set("/process/apparmorProfile", json!("no-such-profile"));
    run(t, &bundle).error_with(["apparmor profile", "no-such-profile"]);
    let _ = run(t, &bundle.set("/process/apparmorProfile", json!("unconfined"))).ok();
}

/// Everything is allowed but one file.
const PROFILE: &str = "profile hafen-test flags=(attach_disconnected,mediate_deleted) {
    file, capability, network, signal, ptrace, mount, umount, pivot_root, unix,
    deny /etc/secret r,
}
";

fn an_apparmor_profile_confines(t: &Test) {
    let file = t.dir().join("profile");
    std::fs::write(&file, PROFILE).expect("write the profile");
    let parser = |verb: &str| {
        let _ = t.program("apparmor_parser", [verb, &file.display().to_string()]).output().ok();
    };
    let (oci, id) = (t.oci(), t.id());
    let script = "cat /etc/secret; cat /proc/self/attr/current";
    let bundle = t.bundle().set("/process/apparmorProfile", json!("hafen-test"));
    std::fs::write(bundle.path().join("rootfs/etc/secret"), "x").expect("write a secret");
    parser("-r");
    let confined = run(t, &bundle.clone().sh(script));
    let created = oci.create(&id, &bundle.sh("sleep 600"));
    let started = oci.start(&id);
    let joined = oci.call(["exec", &id, "sh", "-c", script]);
    let deleted = oci.delete_force(&id);
    parser("-R");
    for output in [confined, joined] {
        assert_eq!(output.stdout, "hafen-test (enforce)\n", "{output}");
        assert!(output.stderr.contains("Permission denied"), "{output}");
    }
    let _ = (created.ok(), started.ok(), deleted.ok());
}
