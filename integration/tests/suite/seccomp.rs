//! Every action, flag, operator and architecture of a seccomp profile, met by a real process.

mod agent;
mod kept;

use hafen_integration::{Bundle, Case, Output, Test, Value, cases, json};

pub(crate) fn trials() -> Vec<Case> {
    let mut trials = kept::trials();
    trials.extend(cases![
        actions(Launcher, Busybox),
        kill_thread_and_kill_process(Launcher, Busybox),
        a_profile_that_allows_little_is_no_failure_of_the_launch(Launcher, Busybox),
        operators(Launcher, Busybox),
        flags(Launcher, Busybox),
        unknown_calls_are_passed_over(Launcher, Busybox),
        calls_of_another_architecture(
            Launcher,
            Busybox,
            That("32-bit calls of x86", has_32_bit_calls)
        ),
        what_makes_no_sense(Launcher, Busybox),
        listener_gets_notifications(Launcher, Busybox),
        listener_after_create_and_start(Launcher, Busybox),
        listener_of_every_call(Launcher, Busybox),
        listener_of_a_user_without_rights(Launcher, Busybox),
        listener_on_one_processor_with_a_realtime_policy(Root, Busybox, Capability("CAP_SYS_NICE")),
        listener_of_an_exec(Launcher, Busybox),
        listener_where_no_agent_is(Launcher, Busybox),
        listener_whose_agent_has_gone(Launcher, Busybox),
    ]);
    trials
}

fn profile(action: &str, errno: Option<u32>) -> Value {
    let mut rule = json!({ "names": ["mkdir", "mkdirat"], "action": action });
    if let Some(errno) = errno {
        rule["errnoRet"] = json!(errno);
    }
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] })
}

fn run(t: &Test, bundle: &Bundle, profile: &Value) -> Output {
    t.oci().run(&t.id(), &bundle.clone().set("/linux/seccomp", profile.clone()))
}

fn actions(t: &Test) {
    let bundle = t.bundle().sh("mkdir /dev/shm/x; echo $?");
    let table = [
        ("SCMP_ACT_ALLOW", None, "0\n", ""),
        ("SCMP_ACT_LOG", None, "0\n", ""),
        ("SCMP_ACT_ERRNO", None, "1\n", "Operation not permitted"),
        ("SCMP_ACT_ERRNO", Some(95), "1\n", "Operation not supported"),
        ("SCMP_ACT_ERRNO", Some(4094), "1\n", "4094"),
        // Nobody traces.
        ("SCMP_ACT_TRACE", Some(7), "1\n", "Function not implemented"),
        ("SCMP_ACT_TRAP", None, "159\n", "Bad system call"),
        ("SCMP_ACT_KILL", None, "159\n", "Bad system call"),
        ("SCMP_ACT_KILL_THREAD", None, "159\n", "Bad system call"),
        ("SCMP_ACT_KILL_PROCESS", None, "159\n", "Bad system call"),
    ];
    for (action, errno, code, words) in table {
        let output = run(t, &bundle, &profile(action, errno)).ok();
        assert_eq!(output.stdout, code, "{action}: {output}");
        assert!(output.stderr.contains(words), "{action}: {output}");
    }
    // The other way round: nothing but what is listed goes through.
    let mut refusing = profile("SCMP_ACT_ALLOW", None);
    refusing["defaultAction"] = json!("SCMP_ACT_LOG");
    assert_eq!(run(t, &bundle, &refusing).ok().stdout, "0\n");
}

fn kill_thread_and_kill_process(t: &Test) {
    let bundle = t.bundle().args(["/inside", "thread", "/dev/shm/x"]);
    for (action, code, stdout) in [
        ("SCMP_ACT_ALLOW", 0, "ok\n"),
        ("SCMP_ACT_KILL", 0, "thread killed\n"),
        ("SCMP_ACT_KILL_THREAD", 0, "thread killed\n"),
        ("SCMP_ACT_KILL_PROCESS", 159, ""),
    ] {
        let output = run(t, &bundle, &profile(action, None)).code(code);
        assert_eq!(output.stdout, stdout, "{action}: {output}");
    }
}

/// What the runtime itself still has to do under the filter is execve, and nothing else.
fn a_profile_that_allows_little_is_no_failure_of_the_launch(t: &Test) {
    let program = little_program(&[0xb8, 60, 0, 0, 0, 0xbf, 33, 0, 0, 0, 0x0f, 0x05], 64);
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let bundle = executable(t.bundle(), &program);
    let allowed = |action: &str| {
        json!({ "defaultAction": action, "syscalls": [
            { "names": ["execve", "exit"], "action": "SCMP_ACT_ALLOW" } ] })
    };
    for action in ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let _ = run(t, &bundle, &allowed(action)).code(33);
    }
}

/// `ionice -c 2 -n 4|5|6` calls ioprio_set(2) with class 2 (0x4000) and that level as third argument.
fn operators(t: &Test) {
    let bundle = t
        .bundle()
        .sh("for n in 4 5 6; do ionice -c 2 -n $n true 2> /dev/null && printf y || printf n; done; echo");
    for (operator, value, two, seen) in [
        ("SCMP_CMP_EQ", 0x4005, None, "yny"),
        ("SCMP_CMP_NE", 0x4005, None, "nyn"),
        ("SCMP_CMP_LT", 0x4005, None, "nyy"),
        ("SCMP_CMP_LE", 0x4005, None, "nny"),
        ("SCMP_CMP_GE", 0x4005, None, "ynn"),
        ("SCMP_CMP_GT", 0x4005, None, "yyn"),
        // The mask, and what is expected under it.
        ("SCMP_CMP_MASKED_EQ", 2, Some(2), "yyn"),
    ] {
        let mut argument = json!({ "index": 2, "value": value, "op": operator });
        if let Some(two) = two {
            argument["valueTwo"] = json!(two);
        }
        let rule =
            json!({ "names": ["ioprio_set"], "action": "SCMP_ACT_ERRNO", "args": [argument] });
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
        let output = run(t, &bundle, &profile).ok();
        assert_eq!(output.stdout.trim_end(), seen, "{operator}: {output}");
    }
}

fn flags(t: &Test) {
    let bundle = t.bundle().sh("mkdir /dev/shm/x; grep Seccomp: /proc/self/status");
    for flag in ["LOG", "SPEC_ALLOW", "TSYNC"] {
        let mut profile = profile("SCMP_ACT_ERRNO", Some(38));
        profile["flags"] = json!([format!("SECCOMP_FILTER_FLAG_{flag}")]);
        let output = run(t, &bundle, &profile).ok();
        assert!(output.stderr.contains("Function not implemented"), "{flag}: {output}");
        assert_eq!(output.stdout, "Seccomp:\t2\n", "{flag}: {output}");
    }
}

fn unknown_calls_are_passed_over(t: &Test) {
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["no_such_call", "mkdir", "mkdirat", "of_a_kernel_to_come"], "action": "SCMP_ACT_ERRNO" }] });
    let output = run(t, &t.bundle().sh("mkdir /dev/shm/x; echo $?"), &profile).ok();
    assert_eq!(output.stdout, "1\n");
}

fn has_32_bit_calls() -> bool {
    let found = nix::sys::utsname::uname().is_ok_and(|u| u.machine() == "x86_64");
    let off =
        std::fs::read_to_string("/proc/cmdline").unwrap_or_default().contains("ia32_emulation=off");
    // The auxiliary vector's vdso for such programs is there with the emulation only.
    found && !off
}

/// mkdir("/dev/shm/x") of i386; ends with the errno of it.
const MKDIR_BY_INT_80: [u8; 28] = [
    0xb8, 39, 0, 0, 0, // mov eax, mkdir
    0xbb, 0x70, 0x80, 0x04, 0x08, // mov ebx, path
    0xb9, 0xed, 0x01, 0, 0, // mov ecx, 0755
    0xcd, 0x80, // int 0x80
    0xf7, 0xd8, // neg eax
    0x93, // xchg ebx, eax
    0x31, 0xc0, // xor eax, eax
    0x40, // inc eax: exit
    0xcd, 0x80, // int 0x80
    0x90, 0x90, 0x90,
];

fn calls_of_another_architecture(t: &Test) {
    let mut code = MKDIR_BY_INT_80.to_vec();
    code.extend(b"/dev/shm/x\0");
    let program = little_program(&code, 32);
    let bundle = executable(t.bundle(), &program);
    let with = |architectures: Value| {
        let mut profile = profile("SCMP_ACT_ERRNO", Some(38));
        profile["architectures"] = architectures;
        profile
    };
    let _ = run(
        t,
        &bundle,
        &json!({ "defaultAction": "SCMP_ACT_ALLOW" , "architectures": ["SCMP_ARCH_X86"] }),
    )
    .code(0);
    let _ = run(t, &bundle, &with(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])))
        .code(38);
    // A call of an architecture that the profile does not list is the end of it.
    let _ = run(t, &bundle, &with(json!(["SCMP_ARCH_X86_64"]))).code(159);
}

/// A program of one segment: an ELF header, a program header, and code for the processor in `bits` mode.
pub(crate) fn little_program(code: &[u8], bits: u32) -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    let wide = bits == 64;
    let (header, entry) = if wide { (64_u16, 56_u16) } else { (52, 32) };
    let start = header + entry;
    let size = u32::from(start) + u32::try_from(code.len()).unwrap_or(0);
    let mut file =
        vec![0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let word = |file: &mut Vec<u8>, value: u32| {
        file.extend(value.to_le_bytes());
        if wide {
            file.extend([0; 4]);
        }
    };
    file.extend(2_u16.to_le_bytes());
    file.extend(if wide { 62_u16 } else { 3 }.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    word(&mut file, BASE + u32::from(start));
    word(&mut file, u32::from(header));
    word(&mut file, 0);
    file.extend(0_u32.to_le_bytes());
    for value in [header, entry, 1, 0, 0, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    if wide {
        file.extend(5_u32.to_le_bytes());
    }
    for value in [0, BASE, BASE, size, size] {
        word(&mut file, value);
    }
    if !wide {
        file.extend(5_u32.to_le_bytes());
    }
    word(&mut file, 0x1000);
    assert_eq!(file.len(), usize::from(start));
    file.extend(code);
    file
}

fn executable(bundle: Bundle, program: &[u8]) -> Bundle {
    use std::os::unix::fs::PermissionsExt;
    let bundle = bundle.file("/little", program).args(["/little"]);
    let path = bundle.rootfs().join("little");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    bundle
}

fn what_makes_no_sense(t: &Test) {
    let notify = profile("SCMP_ACT_NOTIFY", None);
    let with = |mut profile: Value, key: &str, value: Value| {
        profile[key] = value;
        profile
    };
    let plain = profile("SCMP_ACT_ERRNO", None);
    let table = [
        (notify.clone(), "linux.seccomp.listenerPath"),
        (with(notify, "listenerPath", json!("run/agent")), "linux.seccomp.listenerPath"),
        (with(plain.clone(), "listenerMetadata", json!("x")), "linux.seccomp.listenerMetadata"),
        (
            with(plain.clone(), "flags", json!(["SECCOMP_FILTER_FLAG_NONSENSE"])),
            "linux.seccomp.flags[0]",
        ),
        (
            with(plain.clone(), "flags", json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])),
            "linux.seccomp.flags[0]",
        ),
        (
            with(plain.clone(), "architectures", json!(["SCMP_ARCH_PDP11"])),
            "linux.seccomp.architectures[0]",
        ),
        (
            with(plain.clone(), "defaultAction", json!("SCMP_ACT_SMILE")),
            "linux.seccomp.defaultAction",
        ),
        (with(plain, "defaultErrnoRet", json!(5)), "linux.seccomp.defaultErrnoRet"),
        (profile("SCMP_ACT_KILL", Some(5)), "linux.seccomp.syscalls[0].errnoRet"),
        (profile("SCMP_ACT_ERRNO", Some(4095)), "linux.seccomp.syscalls[0].errnoRet"),
    ];
    for (profile, field) in table {
        run(t, &t.bundle(), &profile).error_with([field]);
    }
}

fn notifying(t: &Test, bundle: Bundle) -> (Bundle, std::path::PathBuf) {
    let socket = t.dir().join("agent.sock");
    let mut profile = profile("SCMP_ACT_NOTIFY", None);
    profile["listenerPath"] = json!(socket);
    profile["listenerMetadata"] = json!("meta \"pid\":0 data");
    (bundle.set("/linux/seccomp", profile), socket)
}

fn listener_gets_notifications(t: &Test) {
    let bundle = t.bundle().sh(
        "mkdir /dev/shm/x; echo $?; grep -E 'Seccomp:|Threads' /proc/1/status; ls /proc/1/fd; :",
    );
    let (bundle, socket) = notifying(t, bundle.set("/annotations", json!({ "a": "b" })));
    for (deny, code) in [(Some(95), "1\n"), (None, "0\n")] {
        let agent = agent::serve(&socket, deny);
        let id = t.id();
        let output = t.oci().run(&id, &bundle).ok();
        let seen = agent.join().expect("the agent lives").expect("what it wants");
        assert_eq!(output.stdout, format!("{code}Threads:\t1\nSeccomp:\t2\n0\n1\n2\n"), "{output}");
        assert_eq!(output.stderr.contains("Operation not supported"), deny.is_some(), "{output}");
        assert!(seen.calls.len() == 1 && agent::is_mkdir(seen.calls[0]), "{seen:?}");
        check_document(&seen.document, &id, &bundle, "creating");
        std::fs::remove_file(&socket).expect("remove the socket");
    }
}

fn check_document(document: &Value, id: &str, bundle: &Bundle, status: &str) {
    let pid = &document["pid"];
    assert!(pid.as_i64().is_some_and(|pid| pid > 1), "{document}");
    let mut state = json!({
        "ociVersion": "1.0.2", "id": id, "status": status, "pid": pid, "bundle": bundle.path(),
    });
    if let Some(annotations) = bundle.config().get("annotations") {
        state["annotations"] = annotations.clone();
    }
    let wanted = json!({
        "ociVersion": "1.0.2", "fds": ["seccompFd"], "pid": pid,
        "metadata": "meta \"pid\":0 data", "state": state,
    });
    assert_eq!(*document, wanted);
}

fn listener_after_create_and_start(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let (bundle, socket) = notifying(t, t.bundle().sh("mkdir /dev/shm/x; exec sleep 60"));
    let agent = agent::serve(&socket, None);
    let _ = oci.create(&id, &bundle).ok();
    let pid = oci.pid(&id);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    assert!(status.contains("Seccomp:\t0"), "the filter is there before start: {status}");
    let _ = oci.start(&id).ok();
    let _ = oci.delete_force(&id).ok();
    let seen = agent.join().expect("the agent lives").expect("what it wants");
    assert_eq!(seen.document["pid"], pid);
    check_document(&seen.document, &id, &bundle, "created");
}

/// Not even a call of the runtime's own may wait for an agent that has no listener yet.
fn listener_of_every_call(t: &Test) {
    let (bundle, socket) = notifying(t, t.bundle().sh("mkdir /dev/shm/x; echo $?"));
    let bundle = bundle.edit(|config| {
        config["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_NOTIFY");
        config["linux"]["seccomp"]["syscalls"] = json!([]);
        config["linux"]["seccomp"]["flags"] =
            json!(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    });
    // Linux 5.19
    let bundle = if hafen_integration::Need::Kernel(5, 19).is_met() {
        bundle
    } else {
        bundle.set("/linux/seccomp/flags", json!(["SECCOMP_FILTER_FLAG_TSYNC"]))
    };
    let agent = agent::serve(&socket, None);
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "0\n");
    let seen = agent.join().expect("the agent lives").expect("what it wants");
    assert_eq!(seen.calls.first().copied(), agent::number("execve"), "{seen:?}");
    assert!(seen.calls.iter().any(|call| agent::is_mkdir(*call)));
}

/// Without no_new_privs the filter goes in before the capabilities go.
fn listener_of_a_user_without_rights(t: &Test) {
    for (no_new_privs, user) in [(true, 1000), (false, 1000), (false, 0)] {
        let bundle = t
            .bundle()
            .sh("mkdir /dev/shm/x; echo $?")
            .set("/process/noNewPrivileges", json!(no_new_privs))
            .set("/process/capabilities", json!({}))
            .set("/process/user", json!({ "uid": user, "gid": user }));
        let (bundle, socket) = notifying(t, bundle);
        let agent = agent::serve(&socket, Some(95));
        assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "1\n");
        assert_eq!(agent.join().expect("the agent lives").expect("what it wants").calls.len(), 1);
        std::fs::remove_file(&socket).expect("remove the socket");
    }
}

fn listener_on_one_processor_with_a_realtime_policy(t: &Test) {
    let bundle = t
        .bundle()
        .sh("mkdir /dev/shm/x; echo $?")
        .set("/process/scheduler", json!({ "policy": "SCHED_FIFO", "priority": 10 }))
        .set("/linux/resources/cpu", json!({ "cpus": "0" }));
    let (bundle, socket) = notifying(t, bundle);
    let agent = agent::serve(&socket, Some(95));
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "1\n");
    assert_eq!(agent.join().expect("the agent lives").expect("what it wants").calls.len(), 1);
}

/// Each process has a filter, and so a listener, of its own.
fn listener_of_an_exec(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let (bundle, socket) = notifying(t, t.bundle().args(["/inside", "sleep", "60"]));
    let first = agent::serve(&socket, None);
    let _ = oci.create(&id, &bundle).ok();
    let _ = oci.start(&id).ok();
    std::fs::remove_file(&socket).expect("remove the socket");
    let second = agent::serve(&socket, Some(95));
    let output = oci.call(["exec", &id, "/bin/sh", "-c", "mkdir /dev/shm/x; echo $?"]).ok();
    assert_eq!(output.stdout, "1\n", "{output}");
    let seen = second.join().expect("the agent lives").expect("what it wants");
    let pid = oci.pid(&id);
    let _ = oci.delete_force(&id).ok();
    assert_eq!((&seen.document["state"]["pid"], seen.calls.len()), (&json!(pid), 1), "{seen:?}");
    assert_eq!(seen.document["state"]["status"], "running");
    assert!(seen.document["pid"].as_i64().is_some_and(|own| own > 1 && own != i64::from(pid)));
    assert!(first.join().expect("the agent lives").expect("what it wants").calls.is_empty());
}

fn listener_where_no_agent_is(t: &Test) {
    let (bundle, socket) = notifying(t, t.bundle());
    let path = socket.to_string_lossy().into_owned();
    t.oci().run(&t.id(), &bundle).error_with(["linux.seccomp.listenerPath", &path, "No such file"]);
}

/// It hung up between create and start: the program must not run without anybody to ask.
fn listener_whose_agent_has_gone(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let (bundle, socket) = notifying(t, t.bundle());
    let agent = std::os::unix::net::UnixListener::bind(&socket).expect("bind the agent's socket");
    let _ = oci.create(&id, &bundle).ok();
    drop(agent.accept().expect("a connection"));
    oci.start(&id).error_with(["Broken pipe"]);
    oci.await_status(&id, "stopped");
    let _ = oci.delete(&id).ok();
}
