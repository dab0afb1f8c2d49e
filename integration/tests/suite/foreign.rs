//! Bundles as other programs make them, run unchanged.

use hafen_integration::{Bundle, Case, Facts, Test, Value, cases, cgroup, json};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        made_by_runc_spec(Root, Busybox, Program("runc")),
        made_by_crun_spec(Root, Busybox, Program("crun")),
        made_by_podman(Root, Busybox, Limit("pids")),
        podmans_profile_refuses_what_it_should(Root, Busybox, Limit("pids")),
        made_by_containerd(Root, Busybox, Limit("cpu"), Limit("memory")),
        empty_sections_ask_for_nothing(Root, Busybox),
        unknown_fields_are_ignored(Root, Busybox),
        mount_options_beyond_the_spec(Root, Busybox),
    ]
}

/// `RUNTIME spec`, without its terminal, running our program.
fn made_by(t: &Test, runtime: &str) -> Bundle {
    let bundle = t.bundle();
    let file = bundle.path().join("config.json");
    std::fs::remove_file(&file).expect("remove config.json");
    let _ = t.program(runtime, ["spec"]).folder(bundle.path()).output().ok();
    let text = std::fs::read_to_string(&file).expect("read what it made");
    let mut config: Value = serde_json::from_str(&text).expect("it made JSON");
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/inside", "facts"]);
    bundle.edit(|whole| *whole = config)
}

fn as_specified(facts: &Facts, bundle: &Bundle) {
    assert_eq!(json!(facts.hostname), bundle.config()["hostname"]);
    assert_eq!(facts.pid, 1);
    assert_eq!(facts.root_write, "EROFS");
    assert_eq!(facts.status.no_new_privs, 1);
    for mount in bundle.config()["mounts"].as_array().expect("mounts") {
        let target = mount["destination"].as_str().expect("a destination");
        assert!(facts.mount(target).is_some(), "nothing is mounted on {target}");
    }
    let capabilities = &bundle.config()["process"]["capabilities"];
    let sets = [
        ("bounding", &facts.status.bounding),
        ("effective", &facts.status.effective),
        ("permitted", &facts.status.permitted),
    ];
    for (name, held) in sets {
        let mut asked: Vec<&str> = capabilities[name]
            .as_array()
            .expect("a list")
            .iter()
            .map(|c| c.as_str().expect("a name"))
            .collect();
        asked.sort_unstable();
        assert_eq!(held.iter().map(String::as_str).collect::<Vec<_>>(), asked, "{name}");
    }
}

fn made_by_runc_spec(t: &Test) {
    let bundle = made_by(t, "runc");
    as_specified(&t.oci().facts(&t.id(), &bundle), &bundle);
}

fn made_by_crun_spec(t: &Test) {
    let bundle = made_by(t, "crun");
    as_specified(&t.oci().facts(&t.id(), &bundle), &bundle);
}

fn mount(destination: &str, fstype: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": fstype, "source": source, "options": options })
}

/// What `podman run` (4.3, cgroupfs manager, root) gives to its runtime: files of its own bound into `/etc` and
/// `/run`, its profile, its annotations, an absolute root.
fn podman(t: &Test, id: &str) -> Bundle {
    let bundle = t.bundle();
    let own = t.dir().join("userdata");
    std::fs::create_dir_all(own.join("shm")).expect("make a folder");
    let files = ["resolv.conf", "hosts", "hostname", ".containerenv"];
    for file in files {
        std::fs::write(own.join(file), format!("{file} of the container\n")).expect("write a file");
    }
    let own = |name: &str| own.join(name).display().to_string();
    let bind = |to: &str, name: &str| mount(to, "bind", &own(name), &["bind", "rprivate"]);
    let capabilities: Vec<&str> =
        "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_NET_BIND_SERVICE \
        CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT"
            .split_whitespace()
            .collect();
    let config = json!({
        "ociVersion": "1.0.2-dev",
        "process": {
            "user": { "uid": 0, "gid": 0, "umask": 18, "additionalGids": [10] },
            "args": ["/inside", "facts", "--sysctl", "net.ipv4.ping_group_range", "--probe", "/proc/kcore",
                "--probe", "/etc/hosts", "--probe", "/run/.containerenv"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm",
                "container=podman", "HOME=/root", "HOSTNAME=0c9a3bd4f4fc"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
            "rlimits": [
                { "type": "RLIMIT_NOFILE", "hard": 4096, "soft": 4096 },
                { "type": "RLIMIT_NPROC", "hard": 4194304, "soft": 4194304 }
            ],
            "oomScoreAdj": 0
        },
        "root": { "path": bundle.rootfs() },
        "hostname": "0c9a3bd4f4fc",
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            bind("/etc/resolv.conf", "resolv.conf"),
            bind("/etc/hosts", "hosts"),
            mount("/dev/shm", "bind", &own("shm"), &["bind", "rprivate", "nosuid", "noexec", "nodev"]),
            bind("/etc/hostname", "hostname"),
            bind("/run/.containerenv", ".containerenv"),
            mount("/sys/fs/cgroup", "cgroup", "cgroup",
                &["rprivate", "nosuid", "noexec", "nodev", "relatime", "ro"])
        ],
        "annotations": {
            "io.container.manager": "libpod",
            "io.kubernetes.cri-o.Created": "2026-11-22T01:00:00.000000000Z",
            "io.kubernetes.cri-o.TTY": "false",
            "io.podman.annotations.autoremove": "FALSE",
            "io.podman.annotations.init": "FALSE",
            "io.podman.annotations.privileged": "FALSE",
            "io.podman.annotations.publish-all": "FALSE",
            "org.opencontainers.image.stopSignal": "15"
        },
        "linux": {
            "sysctl": { "net.ipv4.ping_group_range": "0 0" },
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }],
                "pids": { "limit": 2048 }
            },
            "cgroupsPath": format!("/libpod_parent/libpod-{id}"),
            "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" }, { "type": "cgroup" }],
            "seccomp": profile(),
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/fs/selinux",
                "/sys/dev/block"],
            "readonlyPaths": ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                "/proc/sysrq-trigger"]
        }
    });
    bundle.edit(|whole| *whole = config)
}

/// A profile of the shape of containers-common's: an allow list with conditions, another error for what is unknown.
fn profile() -> Value {
    let refused: Vec<&str> = "bdflush io_pgetevents kexec_file_load kexec_load migrate_pages move_pages nfsservctl \
        nice oldfstat oldlstat oldolduname oldstat olduname pciconfig_iobase pciconfig_read pciconfig_write sgetmask \
        ssetmask swapoff swapon sysfs uselib userfaultfd ustat vm86 vm86old vmsplice mount umount2 unshare setns"
        .split_whitespace()
        .collect();
    let allowed: Vec<&str> = ALLOWED.split_whitespace().collect();
    let when =
        |value: u64| json!([{ "index": 0, "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ" }]);
    let personality = |value: u64| {
        json!({ "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": when(value), "comment": "",
            "includes": {}, "excludes": {} })
    };
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 },
            { "names": allowed, "action": "SCMP_ACT_ALLOW" },
            personality(0), personality(8), personality(131_072), personality(131_080),
            personality(4_294_967_295),
            { "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "args": [
                { "index": 0, "value": 16, "op": "SCMP_CMP_EQ" }, { "index": 2, "value": 9, "op": "SCMP_CMP_EQ" }] },
            { "names": ["socket"], "action": "SCMP_ACT_ALLOW",
                "args": [{ "index": 2, "value": 9, "op": "SCMP_CMP_NE" }] },
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 0, "value": 2_114_060_288_u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }] },
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }
        ]
    })
}

/// Names of several architectures, also such as this machine's kernel has never heard of.
const ALLOWED: &str = "_llseek _newselect accept accept4 access adjtimex alarm arch_prctl arm_fadvise64_64 bind brk \
    cacheflush capget capset chdir chmod chown chown32 chroot clock_adjtime clock_adjtime64 clock_getres \
    clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect \
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
    epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 \
    fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 \
    fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync \
    ftruncate ftruncate64 futex futex_time64 futimesat get_robust_list get_thread_area getcpu getcwd getdents \
    getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer get_mempolicy \
    getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 \
    getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr inotify_add_watch \
    inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_setup io_submit ioctl ioprio_get \
    ioprio_set ipc keyctl kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 \
    lgetxattr link linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise mbind \
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect \
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink \
    mremap msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open \
    openat openat2 pause pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll \
    ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev \
    pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv reboot recv \
    recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr rename renameat renameat2 restart_syscall \
    rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity \
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop \
    semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_mempolicy set_robust_list \
    set_thread_area set_tid_address set_tls setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups \
    setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 \
    setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr shmat shmctl shmdt shmget shutdown \
    sigaction sigaltstack signal signalfd signalfd4 sigpending sigprocmask sigreturn sigsuspend socketcall socketpair \
    splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range sync_file_range2 syncfs syscall \
    sysinfo syslog tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 \
    timer_settime timer_settime64 timerfd timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat utime utimensat \
    utimensat_time64 utimes vfork wait4 waitid waitpid write writev call_of_a_kernel_to_come";

fn made_by_podman(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = podman(t, &id);
    let facts = oci.facts(&id, &bundle);
    assert_eq!(facts.hostname, "0c9a3bd4f4fc");
    assert_eq!((facts.status.seccomp, facts.status.no_new_privs), (2, 0));
    assert_eq!(facts.status.groups, [10]);
    assert_eq!(facts.status.umask, "0022");
    assert_eq!(facts.status.effective.len(), 11);
    assert_eq!(facts.rlimits["RLIMIT_NOFILE"], ("4096".to_owned(), "4096".to_owned()));
    let range = facts.sysctls["net.ipv4.ping_group_range"].as_deref().unwrap_or_default();
    assert_eq!(range.split_whitespace().collect::<Vec<_>>(), ["0", "0"]);
    assert_eq!(facts.root_write, "ok");
    for bound in ["/etc/hosts", "/run/.containerenv"] {
        assert_eq!(
            (&*facts.probes[bound].kind, &*facts.probes[bound].read),
            ("file", "data"),
            "{bound}"
        );
    }
    // Masked, where this kernel has it at all.
    let has_it = std::path::Path::new("/proc/kcore").exists();
    assert_eq!(facts.probes["/proc/kcore"].kind, if has_it { "char" } else { "missing" });
    assert!(facts.mount("/proc/sys").is_some_and(|m| m.options.contains("ro")));
    // What it looks like while it runs, and to the client.
    let id = t.id();
    let bundle = podman(t, &id).args(["/inside", "sleep", "600"]);
    let _ = oci.create(&id, &bundle).ok();
    let pid = oci.pid(&id);
    for controller in ["", "pids"] {
        let folder = cgroup::folder(pid, controller);
        assert!(folder.ends_with(format!("libpod_parent/libpod-{id}")), "{}", folder.display());
    }
    assert_eq!(cgroup::value(&cgroup::folder(pid, "pids"), "pids.max"), "2048");
    assert_eq!(oci.state(&id)["annotations"]["io.container.manager"], "libpod");
    let _ = oci.delete_force(&id).ok();
}

fn podmans_profile_refuses_what_it_should(t: &Test) {
    let id = t.id();
    let script = "unshare -u true; echo $?; mount -t tmpfs none /mnt; echo $?; /inside burn 0.01 2 >/dev/null; echo $?";
    let output = t.oci().run(&id, &podman(t, &id).sh(script)).ok();
    let codes: Vec<&str> = output.stdout.lines().collect();
    assert!(codes.len() == 3 && codes[0] != "0" && codes[1] != "0" && codes[2] == "0", "{output}");
    assert!(output.stderr.contains("Operation not permitted"), "{output}");
}

/// What containerd's CRI gives for a container of a pod with requests and limits.
fn made_by_containerd(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t
        .bundle()
        .args(["/inside", "sleep", "600"])
        .set("/ociVersion", json!("1.2.0"))
        .set("/process/oomScoreAdj", json!(985))
        .set("/process/apparmorProfile", json!("unconfined"))
        .set("/process/noNewPrivileges", json!(false))
        .set("/linux/cgroupsPath", json!(format!("/kubepods/burstable/pod-{id}/{id}")))
        .set(
            "/linux/resources",
            json!({
                "devices": [{ "allow": false, "access": "rwm" }],
                "memory": { "limit": 134_217_728, "swap": 134_217_728 },
                "cpu": { "shares": 102, "quota": 20_000, "period": 100_000 },
                "pids": { "limit": 0 },
                "blockIO": {}, "network": {}, "rdma": {}, "hugepageLimits": []
            }),
        )
        .push("/mounts", mount("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]))
        .set(
            "/annotations",
            json!({ "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "abc" }),
        );
    let bundle =
        if swap_is_counted() { bundle } else { bundle.remove("/linux/resources/memory/swap") };
    let _ = oci.create(&id, &bundle).ok();
    let _ = oci.start(&id).ok();
    let pid = oci.pid(&id);
    let unified = cgroup::v1("memory").is_none();
    let (memory, cpu) = (cgroup::folder(pid, "memory"), cgroup::folder(pid, "cpu"));
    if unified {
        assert_eq!(cgroup::value(&memory, "memory.max"), "134217728");
        assert_eq!(cgroup::value(&memory, "memory.swap.max"), "0");
        assert_eq!(cgroup::value(&cpu, "cpu.max"), "20000 100000");
    } else {
        assert_eq!(cgroup::value(&memory, "memory.limit_in_bytes"), "134217728");
        assert_eq!(cgroup::value(&cpu, "cpu.cfs_quota_us"), "20000");
    }
    let path = format!("/proc/{pid}/oom_score_adj");
    assert_eq!(std::fs::read_to_string(path).expect("read").trim(), "985");
    let _ = oci.delete_force(&id).ok();
}

fn swap_is_counted() -> bool {
    let file = cgroup::v1("memory").map(|m| m.join("memory.memsw.limit_in_bytes"));
    file.is_none_or(|file| file.exists())
}

/// Clients write a section for everything, also for what they do not use.
fn empty_sections_ask_for_nothing(t: &Test) {
    let bundle = t
        .bundle()
        .args(["/inside", "exit", "0"])
        .set("/hooks", json!({ "prestart": [], "poststop": [] }))
        .set("/process/apparmorProfile", json!(""))
        .set("/process/selinuxLabel", json!(""))
        .set("/linux/mountLabel", json!(""))
        .set("/linux/uidMappings", json!([]))
        .set("/linux/gidMappings", json!([]))
        .set("/linux/sysctl", json!({}))
        .set("/linux/devices", json!([]))
        .set("/linux/cgroupsPath", json!(""))
        .set("/linux/rootfsPropagation", json!(""))
        .set("/linux/personality", json!({ "domain": "LINUX" }))
        .set(
            "/linux/resources",
            json!({
                "memory": {}, "cpu": { "shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": "" },
                "pids": { "limit": 0 }, "blockIO": { "weight": 0 }, "hugepageLimits": [], "network": { "priorities": [] },
                "unified": {}, "rdma": {}, "devices": []
            }),
        )
        .set("/annotations", json!({}));
    let _ = t.oci().run(&t.id(), &bundle).ok();
}

fn unknown_fields_are_ignored(t: &Test) {
    let bundle = t
        .bundle()
        .args(["/inside", "exit", "0"])
        .set("/ociVersion", json!("1.7.3"))
        .set("/novelty", json!({ "a": 1 }))
        .set("/process/novelty", json!(true))
        .set("/linux/novelty", json!([1]))
        .set("/linux/resources/novelty", json!("x"));
    let _ = t.oci().run(&t.id(), &bundle).ok();
}

fn mount_options_beyond_the_spec(t: &Test) {
    let bind = |options: &[&str]| mount("/mnt", "none", &t.dir().display().to_string(), options);
    for options in [
        &["rbind", "rro"][..],
        &["bind", "ro", "private"],
        &["rbind", "rprivate", "rw", "nosymfollow"],
    ] {
        let bundle = t.bundle().args(["/inside", "exit", "0"]).push("/mounts", bind(options));
        let _ = t.oci().run(&t.id(), &bundle).ok();
    }
}
