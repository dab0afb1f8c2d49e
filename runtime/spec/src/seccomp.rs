//! Profiles of system calls, as `linux.seccomp` of the runtime spec.
//!
//! The one that tasks have unless they say otherwise is a list of what programs need. A call is in it if the kernel lets
//! any process make it upon itself or what it has open, and if what it reaches is the container's: by its namespaces, its
//! cgroup, or the kernel's own look at capabilities. Others are there for those who have the capability that the kernel
//! wants for them, and some for nobody: keyrings, which belong to a uid and not to a container, another kernel (kexec),
//! swap, io_uring, which makes calls that no filter sees.

use caps::Capability::{self, *};
use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use crate::{Problems, rights};

const FILES: &str = "\
    _llseek access arm_fadvise64_64 arm_sync_file_range cachestat chdir chmod chown chown32 close close_range \
    copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat \
    fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr file_getattr flistxattr flock fremovexattr \
    fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents \
    getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lchown lchown32 \
    lgetxattr link linkat listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 mkdir \
    mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev \
    pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir \
    sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync \
    sync_file_range sync_file_range2 syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat \
    utimensat_time64 utimes vmsplice write writev";

const MEMORY: &str = "\
    brk get_mempolicy madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore mlock mlock2 \
    mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
    remap_file_pages set_mempolicy set_mempolicy_home_node";

const PROCESSES: &str = "\
    arch_prctl breakpoint cacheflush capget capset execve execveat exit exit_group fork get_robust_list \
    get_thread_area get_tls getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid \
    getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid gettid \
    getuid getuid32 ioprio_get ioprio_set landlock_add_rule landlock_create_ruleset landlock_restrict_self \
    lsm_get_self_attr lsm_list_modules lsm_set_self_attr modify_ldt nice pidfd_open prctl prlimit64 restart_syscall \
    rseq sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address set_tls \
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid \
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 \
    sysinfo times ugetrlimit uname vfork wait4 waitid waitpid";

/// Of processes that the caller may trace, which are the container's (ptrace(2), "Ptrace access mode checking"). The last
/// is the kernel's own, made by who is traced with uprobes.
const TRACING: &str = "\
    kcmp pidfd_getfd process_madvise process_mrelease process_vm_readv process_vm_writev ptrace uretprobe";

const SIGNALS: &str = "\
    alarm kill pause pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
    rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaction sigaltstack signal signalfd \
    signalfd4 sigpending sigprocmask sigreturn sigsuspend tgkill tkill";

/// Who sets the clock by `adjtimex` needs CAP_SYS_TIME, who reads it does not.
const TIME: &str = "\
    adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
    clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete \
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
    timerfd_gettime64 timerfd_settime timerfd_settime64";

const WAITING: &str = "\
    _newselect epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 futex \
    futex_requeue futex_time64 futex_wait futex_waitv futex_wake io_cancel io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 io_setup io_submit poll ppoll ppoll_time64 pselect6 pselect6_time64 select";

const TALKING: &str = "\
    accept accept4 bind connect getpeername getrandom getsockname getsockopt ipc listen mq_getsetattr mq_notify \
    mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv \
    msgsnd pipe pipe2 recv recvfrom recvmmsg recvmmsg_time64 recvmsg semctl semget semop semtimedop semtimedop_time64 \
    send sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown socket socketcall socketpair";

const FOR_ALL: [&str; 8] = [FILES, MEMORY, PROCESSES, TRACING, SIGNALS, TIME, WAITING, TALKING];

/// What the kernel keeps for who has the capability, and what it does not, but only who has it is to have.
const WITH: [(Capability, &str); 14] = [
    (
        CAP_SYS_ADMIN,
        "bpf clone clone3 fanotify_init fanotify_mark fsconfig fsmount fsopen fspick mount mount_setattr move_mount \
         open_tree open_tree_attr perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns \
         umount umount2 unshare",
    ),
    (CAP_BPF, "bpf"),
    (CAP_DAC_READ_SEARCH, "open_by_handle_at"),
    (CAP_PERFMON, "perf_event_open"),
    (CAP_SYS_BOOT, "reboot"),
    (CAP_SYS_CHROOT, "chroot"),
    (CAP_SYS_MODULE, "delete_module finit_module init_module"),
    (CAP_SYS_NICE, "migrate_pages move_pages"),
    (CAP_SYS_PACCT, "acct"),
    (CAP_SYS_PTRACE, "userfaultfd"),
    (CAP_SYS_RAWIO, "ioperm iopl"),
    (CAP_SYS_TIME, "clock_settime clock_settime64 settimeofday stime"),
    (CAP_SYS_TTY_CONFIG, "vhangup"),
    (CAP_SYSLOG, "syslog"),
];

/// CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID and -NET (clone(2)): a namespace is where a process gets capabilities.
const NAMESPACES: u32 = 0x7e02_0000;
/// CLONE_NEWTIME, of unshare(2) alone: clone(2) has the signal of the end in its place.
const NEW_TIME: u32 = 0x80;
/// PER_LINUX and PER_LINUX32, each also with UNAME26, and the question what it is (personality(2)).
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, u32::MAX];

// What the owner of a file may change of its project (ioctl_iflags(2), linux/fs.h).
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC32_SETFLAGS: u32 = 0x4004_6602;
const OF_PROJECTS: [u32; 3] = [FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS];
const ALSO_OF_PROJECTS: &str = "file_setattr";

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// For who can have these capabilities at most. What is newer than all that it names does not exist there, as the
/// runtime compiles it; what else it does not name is not permitted.
///
/// With `keep_projects` nobody takes a file out of the limit of its disk.
#[must_use]
pub fn usual(capabilities: u64, keep_projects: bool) -> Value {
    let with = |capability: &Capability| rights::has(capabilities, *capability);
    let gated = WITH.iter().filter(|(capability, _)| with(capability)).map(|(_, calls)| *calls);
    let mut names: Vec<&str> = FOR_ALL.into_iter().chain(gated).flat_map(calls).collect();
    let mut rules = Vec::new();
    if !with(&CAP_SYS_ADMIN) {
        rules.push(allow("clone", 0, NAMESPACES, 0));
        rules.push(allow("unshare", 0, NAMESPACES | NEW_TIME, 0));
        // Its flags are in memory, where no filter looks: a C library takes clone(2) where there is none.
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    rules.extend(PERSONALITIES.map(|persona| allow("personality", 0, u32::MAX, persona)));
    if keep_projects {
        let others = all_but(&OF_PROJECTS).into_iter();
        rules.extend(others.map(|(mask, value)| allow("ioctl", 1, mask, value)));
    } else {
        names.extend(["ioctl", ALSO_OF_PROJECTS]);
    }
    names.sort_unstable();
    names.dedup();
    rules.push(json!({ "names": names, "action": "SCMP_ACT_ALLOW" }));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

/// All calls, but those which change a file's project. The owner of a file may give it another one, or none, where no
/// user namespace is between (`fileattr_set_prepare`), and so take it out of the limit: nobody in the container may.
#[must_use]
pub fn keep_projects() -> Value {
    let refuse = |request: u32| {
        let arg = masked(1, u32::MAX, request);
        json!({ "names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [arg] })
    };
    let mut rules: Vec<Value> = OF_PROJECTS.into_iter().map(refuse).collect();
    rules.push(json!({ "names": [ALSO_OF_PROJECTS], "action": "SCMP_ACT_ERRNO" }));
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures(), "syscalls": rules })
}

fn calls(of: &str) -> impl Iterator<Item = &str> {
    of.split_ascii_whitespace()
}

/// This machine's programs, and the older ones that its kernel runs.
const fn architectures() -> &'static [&'static str] {
    if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    } else {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    }
}

/// The kernel looks at 32 bits of these arguments, so no more are compared.
fn masked(argument: usize, mask: u32, value: u32) -> Value {
    json!({ "index": argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" })
}

fn allow(call: &str, argument: usize, mask: u32, value: u32) -> Value {
    json!({ "names": [call], "action": "SCMP_ACT_ALLOW", "args": [masked(argument, mask, value)] })
}

/// Masks and values that together match every number but these: of one call libseccomp takes either what is allowed or
/// what is refused. Each is the beginning of one of the numbers with its last bit turned.
fn all_but(numbers: &[u32]) -> Vec<(u32, u32)> {
    let beginnings = (0..u32::BITS).flat_map(|bit| {
        let mask = u32::MAX << bit;
        numbers.iter().map(move |number| (mask, (number ^ (1 << bit)) & mask))
    });
    let is_none_of = |(mask, value): &(u32, u32)| numbers.iter().all(|n| n & mask != *value);
    let mut all: Vec<_> = beginnings.filter(is_none_of).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Read a profile that stands by itself.
///
/// # Errors
/// Names what is no field of the runtime spec (a condition that is passed over would make the profile a wider one), or
/// does not fit.
pub fn read(text: &str) -> Result<Value, Problems> {
    const FIELDS: [&str; 7] = [
        "defaultAction",
        "defaultErrnoRet",
        "architectures",
        "flags",
        "listenerPath",
        "listenerMetadata",
        "syscalls",
    ];
    const OF_A_RULE: [&str; 4] = ["names", "action", "errnoRet", "args"];
    const OF_AN_ARGUMENT: [&str; 4] = ["index", "value", "valueTwo", "op"];
    let mut problems = Problems::default();
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(e) => {
            problems.add("", format!("not JSON: {e}"));
            return Err(problems);
        }
    };
    known(&value, "", &FIELDS, &mut problems);
    for (i, rule) in elements(&value["syscalls"]) {
        known(rule, &format!("syscalls[{i}]."), &OF_A_RULE, &mut problems);
        for (k, argument) in elements(&rule["args"]) {
            known(argument, &format!("syscalls[{i}].args[{k}]."), &OF_AN_ARGUMENT, &mut problems);
        }
    }
    if let Err(e) = serde_path_to_error::deserialize::<_, LinuxSeccomp>(&value) {
        problems.add(e.path().to_string(), e.inner().to_string());
    }
    problems.into_result(value)
}

fn elements(list: &Value) -> impl Iterator<Item = (usize, &Value)> {
    list.as_array().into_iter().flatten().enumerate()
}

fn known(value: &Value, place: &str, fields: &[&str], problems: &mut Problems) {
    for key in value.as_object().into_iter().flat_map(|object| object.keys()) {
        if !fields.contains(&key.as_str()) {
            problems.add(format!("{place}{key}"), "is not of the OCI runtime spec");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Calls that are allowed whatever their arguments are.
    fn allowed(capabilities: u64) -> BTreeSet<String> {
        let profile = usual(capabilities, false);
        let rules = profile["syscalls"].as_array().unwrap();
        let plain = rules.iter().filter(|r| r["args"].is_null() && r["action"] == "SCMP_ACT_ALLOW");
        let names = plain.flat_map(|rule| rule["names"].as_array().unwrap());
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_capability_brings_its_calls() {
        let least = allowed(0);
        for (capability, more) in WITH {
            let found: BTreeSet<_> =
                allowed(capability.bitmask()).difference(&least).cloned().collect();
            assert_eq!(found, calls(more).map(str::to_owned).collect(), "{capability}");
        }
        for never in ["keyctl", "add_key", "request_key", "kexec_load", "swapon", "io_uring_setup"]
        {
            assert!(!allowed(rights::all()).contains(never), "{never}");
        }
        assert!(["execve", "capset", "prctl", "chown"].iter().all(|name| least.contains(*name)));
    }

    #[test]
    fn a_call_is_named_once() {
        let mut seen = BTreeSet::new();
        let again: Vec<_> =
            FOR_ALL.into_iter().flat_map(calls).filter(|name| !seen.insert(*name)).collect();
        assert!(again.is_empty(), "{again:?}");
        assert!(WITH.iter().flat_map(|(_, more)| calls(more)).all(|name| !seen.contains(name)));
    }

    #[test]
    fn every_number_but_some() {
        let masks = all_but(&OF_PROJECTS);
        let matches = |n: u32| masks.iter().any(|(mask, value)| n & mask == *value);
        for number in OF_PROJECTS {
            assert!(!matches(number), "{number:#x}");
            assert!(
                (0..32).all(|bit| matches(number ^ (1 << bit))
                    || OF_PROJECTS.contains(&(number ^ (1 << bit))))
            );
        }
        assert!([0, 1, 0x5401, 0x4008_6601, u32::MAX].into_iter().all(matches));
    }

    #[test]
    fn what_a_profile_must_not_have_is_named() {
        let fields = |text: &str| {
            let problems = read(text).unwrap_err();
            problems.0.into_iter().map(|p| p.field).collect::<Vec<_>>()
        };
        let own = usual(rights::USUAL, false);
        assert_eq!(read(&own.to_string()), Ok(own));
        assert_eq!(fields("{"), [""]);
        let other = r#"{"defaultAction": "SCMP_ACT_ERRNO", "archMap": [], "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#;
        assert_eq!(fields(other), ["archMap", "syscalls[0].includes"]);
        let wrong = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "ALLOW"}]}"#;
        assert_eq!(fields(wrong), ["syscalls[0].action"]);
    }
}
