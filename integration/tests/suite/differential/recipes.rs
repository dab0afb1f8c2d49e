//! The bundles: the default one, with one field or one group of fields varied, and mixtures of these.

use hafen_integration::{Bundle, Need, Value, json};

use super::stage::Stage;

type BoxedEdit = Box<dyn Fn(Bundle, &Stage<'_>) -> Bundle + Send>;
type Edit = fn(Bundle, &Stage<'_>) -> Bundle;

/// How to make a bundle, and what its process looks at.
pub(super) struct Recipe {
    pub(super) name: &'static str,
    pub(super) needs: Vec<Need>,
    /// More words for `inside facts`.
    pub(super) ask: Vec<&'static str>,
    /// Whether the limits that hold are read.
    pub(super) limits: bool,
    pub(super) edit: BoxedEdit,
}

impl Recipe {
    fn new(name: &'static str, edit: Edit) -> Self {
        Self { name, needs: Vec::new(), ask: Vec::new(), limits: false, edit: Box::new(edit) }
    }

    fn asks(mut self, words: &[&'static str]) -> Self {
        self.ask.extend(words);
        self
    }

    fn needs(mut self, needs: Vec<Need>) -> Self {
        self.needs = needs;
        self
    }

    fn limits(mut self, controller: &'static str) -> Self {
        self.needs.push(Need::Limit(controller));
        self.limits = true;
        self
    }
}

pub(super) fn all() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for part in [
        process(),
        privileges(),
        mounts(),
        attributes(),
        root(),
        namespaces(),
        host_side(),
        limits(),
        mixtures(),
    ] {
        recipes.extend(part);
    }
    recipes
}

fn process() -> Vec<Recipe> {
    vec![
        Recipe::new("default_bundle", |b, _| b).asks(PROBES),
        Recipe::new("version_1_0_0", |b, _| b.set("/ociVersion", json!("1.0.0"))),
        Recipe::new("version_1_2_0", |b, _| b.set("/ociVersion", json!("1.2.0"))),
        Recipe::new("annotations", |b, _| {
            b.set("/annotations", json!({ "org.example.key": "value", "other": "" }))
        }),
        Recipe::new("environment", |b, _| {
            b.set(
                "/process/env",
                json!(["PATH=/bin", "EMPTY=", "SPACES=a b  c", "EQUALS=a=b", "HOME=/nowhere"]),
            )
        }),
        Recipe::new("environment_without_home", |b, _| b.set("/process/env", json!(["PATH=/bin"]))),
        Recipe::new("environment_without_path", |b, _| {
            b.set("/process/env", json!(["HOME=/root"]))
        }),
        Recipe::new("environment_named_twice", |b, _| {
            b.set("/process/env", json!(["A=1", "PATH=/bin", "A=2", "HOME=/h"]))
        }),
        Recipe::new("program_is_found_on_path", |b, _| {
            b.set("/process/env", json!(["PATH=/nowhere:/"]))
                .set("/process/args/0", json!("inside"))
        }),
        Recipe::new("working_directory", |b, _| b.set("/process/cwd", json!("/var/tmp"))),
        Recipe::new("working_directory_is_made", |b, _| {
            b.set("/process/cwd", json!("/made/by/the/runtime")).set("/root/readonly", json!(false))
        })
        .asks(&["--probe", "/made", "--probe", "/made/by/the/runtime"]),
        Recipe::new("rlimits", |b, _| b.set("/process/rlimits", RLIMITS())),
        Recipe::new("no_rlimits", |b, _| b.remove("/process/rlimits")),
        Recipe::new("umask", |b, _| b.set("/process/user/umask", json!(0o027))),
        Recipe::new("umask_of_zero", |b, _| b.set("/process/user/umask", json!(0))),
        Recipe::new("oom_score_adj", |b, _| b.set("/process/oomScoreAdj", json!(500))),
        Recipe::new("oom_score_adj_below_zero", |b, _| b.set("/process/oomScoreAdj", json!(-500)))
            .needs(hafen_integration::needs![Capability("CAP_SYS_RESOURCE")]),
    ]
}

fn privileges() -> Vec<Recipe> {
    vec![
        Recipe::new("user_and_groups", user_and_groups),
        Recipe::new("group_only", |b, _| b.set("/process/user", json!({ "uid": 0, "gid": 7 }))),
        Recipe::new("additional_groups_of_root", |b, _| {
            b.set("/process/user/additionalGids", json!([0, 4, 1000]))
        }),
        Recipe::new("user_with_ambient", |b, _| {
            ambient(b).set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        }),
        Recipe::new("root_with_ambient", |b, _| ambient(b)),
        Recipe::new("no_capabilities", |b, _| b.set("/process/capabilities", json!({}))),
        Recipe::new("capabilities_absent", |b, _| b.remove("/process/capabilities")),
        Recipe::new("wide_bounding_set", |b, _| {
            b.set(
                "/process/capabilities/bounding",
                json!(["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SYS_ADMIN"]),
            )
            .set("/process/capabilities/permitted", json!(["CAP_KILL"]))
            .set("/process/capabilities/effective", json!(["CAP_KILL"]))
        }),
        Recipe::new("permitted_but_not_effective", |b, _| {
            b.set("/process/capabilities/effective", json!([]))
                .set("/process/noNewPrivileges", json!(false))
        }),
        Recipe::new("inheritable", |b, _| {
            b.set("/process/capabilities/inheritable", json!(["CAP_KILL"]))
        }),
        Recipe::new("inheritable_of_user", |b, _| {
            b.set("/process/capabilities/inheritable", json!(["CAP_KILL"]))
                .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        }),
        Recipe::new("new_privileges_allowed", |b, _| {
            b.set("/process/noNewPrivileges", json!(false))
        }),
        Recipe::new("new_privileges_absent", |b, _| b.remove("/process/noNewPrivileges")),
    ]
}

fn attributes() -> Vec<Recipe> {
    vec![
        Recipe::new("recursive_attributes", |b, _| {
            let b = mount(
                b,
                "/mnt/ro",
                "bind",
                "/dev",
                &["rbind", "rslave", "rro", "rnosuid", "rnodev"],
            );
            mount(
                b,
                "/mnt/noexec",
                "bind",
                "/dev",
                &["rbind", "rslave", "rnoexec", "rnoatime", "rnodiratime"],
            )
        }),
        Recipe::new("access_times", |b, s| {
            let b = bind(b, s, "d", "/mnt/noatime", &["bind", "noatime"]);
            let b = bind(b, s, "d", "/mnt/relatime", &["bind", "relatime"]);
            let b = mount(b, "/mnt/strict", "tmpfs", "tmpfs", &["strictatime"]);
            let b = mount(b, "/mnt/nodiratime", "tmpfs", "tmpfs", &["noatime", "nodiratime"]);
            mount(b, "/mnt/default", "tmpfs", "tmpfs", &["defaults"])
        }),
    ]
}

fn mounts() -> Vec<Recipe> {
    vec![
        Recipe::new("tmpfs_options", |b, _| {
            mount(b, "/mnt/t", "tmpfs", "tmpfs", &["nosuid", "nodev", "noexec", "mode=1770", "size=1m", "nr_inodes=99"])
        })
        .asks(&["--probe", "/mnt/t"]),
        Recipe::new("tmpfs_of_a_user", |b, _| {
            mount(b, "/mnt/t", "tmpfs", "tmpfs", &["uid=1000", "gid=1001", "mode=750"])
        })
        .asks(&["--probe", "/mnt/t"]),
        Recipe::new("tmpfs_readonly", |b, _| mount(b, "/mnt/t", "tmpfs", "tmpfs", &["ro"]))
            .asks(&["--probe", "/mnt/t"]),
        Recipe::new("tmpfs_without_options", |b, _| {
            b.push("/mounts", json!({ "destination": "/mnt/t", "type": "tmpfs" }))
        })
        .asks(&["--probe", "/mnt/t"]),
        Recipe::new("bind", |b, s| bind(b, s, "d", "/mnt/d", &["bind"])).asks(&["--probe", "/mnt/d"]),
        Recipe::new("bind_readonly", |b, s| bind(b, s, "d", "/mnt/d", &["bind", "ro"])).asks(&["--probe", "/mnt/d"]),
        Recipe::new("bind_with_flags", |b, s| {
            bind(b, s, "d", "/mnt/d", &["rbind", "nosuid", "nodev", "noexec", "rprivate"])
        })
        .asks(&["--probe", "/mnt/d"]),
        Recipe::new("bind_of_a_file", |b, s| bind(b, s, "f", "/etc/shared", &["bind", "ro"]))
            .asks(&["--probe", "/etc/shared"]),
        Recipe::new("bind_to_a_place_that_is_made", |b, s| {
            let b = b.set("/root/readonly", json!(false));
            let b = bind(b, s, "f", "/made/file", &["bind"]);
            bind(b, s, "d", "/made/folder/deep", &["bind", "ro"])
        })
        .asks(&["--probe", "/made", "--probe", "/made/file", "--probe", "/made/folder/deep"]),
        Recipe::new("bind_through_a_link", |b, s| {
            std::os::unix::fs::symlink("/mnt", b.rootfs().join("link")).expect("make a link");
            bind(b, s, "d", "/link/d", &["bind"])
        })
        .asks(&["--probe", "/mnt/d", "--probe", "/link"]),
        Recipe::new("bind_of_devices_with_what_is_below", |b, _| {
            mount(b, "/mnt/dev", "bind", "/dev", &["rbind", "rslave", "nosuid"])
        }),
        Recipe::new("mount_propagation", |b, s| {
            let b = bind(b, s, "d", "/mnt/shared", &["bind", "shared"]);
            let b = bind(b, s, "d", "/mnt/slave", &["bind", "slave"]);
            let b = bind(b, s, "d", "/mnt/private", &["bind", "private"]);
            let b = bind(b, s, "d", "/mnt/unbindable", &["bind", "unbindable"]);
            mount(b, "/mnt/rshared", "tmpfs", "tmpfs", &["rshared"])
        }),
        Recipe::new("proc_options", |b, _| {
            replace(b, "/proc", "proc", "proc", &["nosuid", "noexec", "nodev", "hidepid=2"])
        }),
        Recipe::new("sysfs_writable", |b, _| replace(b, "/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev"]))
            .asks(&["--probe", "/sys/firmware"]),
        Recipe::new("devpts_of_its_own", |b, _| {
            replace(b, "/dev/pts", "devpts", "devpts", &["newinstance", "ptmxmode=0600", "mode=0600", "noexec"])
        })
        .asks(&["--list", "/dev/pts"]),
        Recipe::new("mqueue_and_shm", |b, _| {
            let b = replace(b, "/dev/mqueue", "mqueue", "mqueue", &["nosuid"]);
            replace(b, "/dev/shm", "tmpfs", "shm", &["size=2m", "mode=0700"])
        })
        .asks(&["--probe", "/dev/shm", "--probe", "/dev/mqueue"]),
        Recipe::new("cgroup_mount_writable", |b, _| {
            replace(b, "/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime"])
        })
        .asks(&["--list", "/sys/fs/cgroup"]),
        // On a unified host the reference would mount the tree without options, which takes nsdelegate and
        // memory_recursiveprot away from the host's own mount.
        Recipe::new("cgroup_mount_without_its_namespace", |b, _| b.without_namespace("cgroup"))
            .needs(hafen_integration::needs![Hybrid])
            .asks(&["--list", "/sys/fs/cgroup"]),
        Recipe::new("no_cgroup_mount", |b, _| b.without_mount("/sys/fs/cgroup")),
        Recipe::new("devices", |b, _| {
            b.set("/linux/devices", json!([
                { "path": "/dev/nothing", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 5, "gid": 6 },
                { "path": "/dev/disk7", "type": "b", "major": 7, "minor": 0, "fileMode": 0o660 },
                { "path": "/dev/queue", "type": "p", "fileMode": 0o622 },
                { "path": "/dev/deep/random", "type": "u", "major": 1, "minor": 9 }
            ]))
        })
        .asks(&["--list", "/dev/deep"]),
        Recipe::new("masked_paths", |b, _| {
            b.file("/etc/secret", "x").file("/srv/secret/f", "x").set(
                "/linux/maskedPaths",
                json!(["/etc/secret", "/srv/secret", "/no/such/path", "/proc/keys", "/proc/acpi"]),
            )
        })
        .asks(&["--probe", "/etc/secret", "--probe", "/srv/secret", "--probe", "/no/such/path", "--probe", "/proc/keys"]),
        Recipe::new("readonly_paths", |b, _| {
            b.set("/root/readonly", json!(false))
                .set("/linux/readonlyPaths", json!(["/etc", "/no/such/path", "/proc/sys", "/bin/busybox"]))
        })
        .asks(&["--probe", "/etc", "--probe", "/etc/passwd", "--probe", "/root", "--probe", "/proc/sys/kernel/domainname"]),
        Recipe::new("nothing_masked_or_readonly", |b, _| {
            b.set("/linux/maskedPaths", json!([])).set("/linux/readonlyPaths", json!([]))
        })
        .asks(PROBES),
    ]
}

fn root() -> Vec<Recipe> {
    vec![
        Recipe::new("writable_root", |b, _| b.set("/root/readonly", json!(false))),
        Recipe::new("root_readonly_absent", |b, _| b.remove("/root/readonly")),
        Recipe::new("absolute_root_path", |b, _| {
            let root = json!(b.rootfs());
            b.set("/root/path", root)
        }),
        Recipe::new("propagation_slave", |b, _| b.set("/linux/rootfsPropagation", json!("slave"))),
        Recipe::new("propagation_private", |b, _| {
            b.set("/linux/rootfsPropagation", json!("private"))
        }),
        Recipe::new("propagation_shared", |b, _| {
            b.set("/linux/rootfsPropagation", json!("shared"))
        }),
        Recipe::new("propagation_unbindable", |b, _| {
            b.set("/linux/rootfsPropagation", json!("unbindable"))
        }),
    ]
}

fn namespaces() -> Vec<Recipe> {
    vec![
        Recipe::new("user_namespace", |b, _| b.user_namespace(100_000, 65_536))
            .needs(hafen_integration::needs![UserNamespaces]),
        Recipe::new("user_namespace_and_user", |b, _| {
            b.user_namespace(100_000, 65_536)
                .set("/process/user", json!({ "uid": 1000, "gid": 1000, "additionalGids": [5, 7] }))
        })
        .needs(hafen_integration::needs![UserNamespaces]),
        Recipe::new("time_namespace", |b, _| b.namespace("time", None))
            .needs(hafen_integration::needs![File("/proc/self/ns/time")]),
        Recipe::new("caller_network", |b, _| b.without_namespace("network")),
        Recipe::new("caller_network_and_its_sysfs", |b, _| {
            let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
            replace(b.without_namespace("network"), "/sys", "bind", "/sys", &options)
        }),
        Recipe::new("caller_ipc", |b, _| b.without_namespace("ipc")),
        Recipe::new("caller_uts", |b, _| b.without_namespace("uts").remove("/hostname")),
        Recipe::new("caller_pid", |b, _| b.without_namespace("pid")),
        Recipe::new("caller_cgroup", |b, _| {
            b.without_namespace("cgroup").without_mount("/sys/fs/cgroup")
        }),
        Recipe::new("mount_namespace_only", |b, _| {
            let b = b.remove("/hostname").without_mount("/sys/fs/cgroup");
            ["network", "ipc", "uts", "pid", "cgroup"]
                .into_iter()
                .fold(b, Bundle::without_namespace)
        }),
        Recipe::new("joined_network", |b, s| {
            b.namespace("network", Some(&s.namespace_path("net")))
        }),
        Recipe::new("joined_ipc", |b, s| b.namespace("ipc", Some(&s.namespace_path("ipc")))),
        Recipe::new("joined_uts", |b, s| {
            b.namespace("uts", Some(&s.namespace_path("uts"))).remove("/hostname")
        }),
        Recipe::new("joined_pid", |b, s| {
            b.namespace("pid", Some(&s.namespace_path("pid_for_children")))
        }),
        Recipe::new("joined_cgroup", |b, s| {
            b.namespace("cgroup", Some(&s.namespace_path("cgroup")))
        }),
    ]
}

fn host_side() -> Vec<Recipe> {
    vec![
        Recipe::new("domainname", |b, _| b.set("/domainname", json!("example.org"))),
        Recipe::new("no_hostname", |b, _| b.remove("/hostname")),
        Recipe::new("sysctl", |b, _| b.set("/linux/sysctl", SYSCTLS())).asks(SYSCTL_ASK),
        Recipe::new("device_rules", |b, _| {
            b.set(
                "/linux/resources/devices",
                json!([
                    { "allow": false, "access": "rwm" },
                    { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" }
                ]),
            )
        }),
    ]
}

fn limits() -> Vec<Recipe> {
    vec![
        Recipe::new("no_limits", |b, _| b).limits("memory"),
        Recipe::new("memory_limit", |b, _| {
            b.set("/linux/resources/memory", json!({ "limit": 64 << 20 }))
        })
        .limits("memory"),
        Recipe::new("memory_reservation", |b, _| {
            b.set("/linux/resources/memory", json!({ "limit": 64 << 20, "reservation": 32 << 20 }))
        })
        .limits("memory"),
        Recipe::new("memory_and_swap", |b, _| {
            b.set("/linux/resources/memory", json!({ "limit": 64 << 20, "swap": 96 << 20 }))
        })
        .limits("memory"),
        Recipe::new("memory_without_limit", |b, _| {
            b.set("/linux/resources/memory", json!({ "limit": -1 }))
        })
        .limits("memory"),
        Recipe::new("cpu_quota", |b, _| {
            b.set("/linux/resources/cpu", json!({ "quota": 50000, "period": 100_000 }))
        })
        .limits("cpu"),
        Recipe::new("cpu_quota_alone", |b, _| {
            b.set("/linux/resources/cpu", json!({ "quota": 30000 }))
        })
        .limits("cpu"),
        Recipe::new("cpu_shares", |b, _| b.set("/linux/resources/cpu", json!({ "shares": 512 })))
            .limits("cpu"),
        Recipe::new("cpu_shares_of_two", |b, _| {
            b.set("/linux/resources/cpu", json!({ "shares": 2 }))
        })
        .limits("cpu"),
        Recipe::new("cpuset", |b, _| {
            b.set("/linux/resources/cpu", json!({ "cpus": "0", "mems": "0" }))
        })
        .limits("cpuset"),
        Recipe::new("pids_limit", |b, _| b.set("/linux/resources/pids", json!({ "limit": 32 })))
            .limits("pids"),
        Recipe::new("pids_without_limit", |b, _| {
            b.set("/linux/resources/pids", json!({ "limit": -1 }))
        })
        .limits("pids"),
        Recipe::new("cgroups_path", |b, s| {
            let path = json!(format!("/{}/outer/box", s.id));
            b.set("/linux/cgroupsPath", path).set("/linux/resources/pids", json!({ "limit": 20 }))
        })
        .limits("pids"),
        Recipe::new("relative_cgroups_path", |b, s| {
            let path = json!(format!("{}/box", s.id));
            b.set("/linux/cgroupsPath", path)
                .set("/linux/resources/memory", json!({ "limit": 64 << 20 }))
        })
        .limits("memory"),
    ]
}

/// Fields that do not touch each other, and can be had in any selection.
const INGREDIENTS: &[Edit] = &[
    user_and_groups,
    |b, _| ambient(b),
    |b, _| b.set("/process/rlimits", RLIMITS()),
    |b, _| b.set("/process/noNewPrivileges", json!(false)),
    |b, _| b.set("/process/oomScoreAdj", json!(321)),
    |b, _| b.set("/root/readonly", json!(false)),
    |b, _| b.set("/domainname", json!("mixed.example")),
    |b, _| b.set("/linux/sysctl", SYSCTLS()),
    |b, _| b.set("/linux/rootfsPropagation", json!("slave")),
    |b, _| b.set("/process/cwd", json!("/tmp")),
    |b, s| bind(b, s, "d", "/mnt/d", &["rbind", "ro", "noexec", "noatime"]),
    |b, _| mount(b, "/tmp", "tmpfs", "tmpfs", &["nosuid", "size=3m", "mode=1777"]),
    |b, _| b.without_namespace("ipc"),
    |b, s| b.namespace("network", Some(&s.namespace_path("net"))),
    |b, _| b.set("/linux/resources/pids", json!({ "limit": 64 })),
    |b, _| b.set("/linux/maskedPaths", json!(["/etc/passwd", "/proc/keys", "/root"])),
];

/// Names of the mixtures; the number of each is the seed that its selection is made from.
const MIXTURES: [&str; 8] = [
    "mixture_1",
    "mixture_2",
    "mixture_3",
    "mixture_4",
    "mixture_5",
    "mixture_6",
    "mixture_7",
    "mixture_8",
];

fn mixtures() -> Vec<Recipe> {
    let mixture = |(number, name): (usize, &'static str)| {
        let chosen = selection(number);
        let edit = move |bundle, stage: &Stage<'_>| {
            chosen.iter().fold(bundle, |bundle, edit| edit(bundle, stage))
        };
        Recipe { name, needs: Vec::new(), ask: Vec::new(), limits: false, edit: Box::new(edit) }
            .asks(SYSCTL_ASK)
    };
    MIXTURES.into_iter().enumerate().map(mixture).collect()
}

/// Half of the ingredients, the same ones each time: the upper bits of a linear congruential sequence.
fn selection(seed: usize) -> Vec<Edit> {
    let mut state = seed as u64 + 1;
    let mut coin = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 63 == 1
    };
    INGREDIENTS.iter().copied().filter(|_| coin()).collect()
}

const PROBES: &[&str] = &[
    "--probe",
    "/proc/keys",
    "--probe",
    "/proc/kcore",
    "--probe",
    "/proc/acpi",
    "--probe",
    "/proc/sys/kernel/domainname",
    "--probe",
    "/proc/sysrq-trigger",
    "--probe",
    "/sys/firmware",
    "--probe",
    "/etc",
    "--probe",
    "/dev",
    "--probe",
    "/tmp",
];

const SYSCTL_ASK: &[&str] = &[
    "--sysctl",
    "kernel.shm_rmid_forced",
    "--sysctl",
    "net.ipv4.ip_forward",
    "--sysctl",
    "net.ipv4.ping_group_range",
];

#[expect(non_snake_case, reason = "stands for a constant, which a JSON value cannot be")]
fn SYSCTLS() -> Value {
    json!({ "net.ipv4.ip_forward": "1", "net.ipv4.ping_group_range": "0 1000" })
}

#[expect(non_snake_case, reason = "stands for a constant, which a JSON value cannot be")]
fn RLIMITS() -> Value {
    json!([
        { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
        { "type": "RLIMIT_STACK", "soft": 4 << 20, "hard": 16 << 20 },
        { "type": "RLIMIT_FSIZE", "soft": 1 << 20, "hard": 1 << 21 },
        { "type": "RLIMIT_NPROC", "soft": 500, "hard": 600 },
        { "type": "RLIMIT_MEMLOCK", "soft": 4096, "hard": 8192 },
        { "type": "RLIMIT_CPU", "soft": 100, "hard": u64::MAX }
    ])
}

fn user_and_groups(bundle: Bundle, _: &Stage<'_>) -> Bundle {
    bundle
        .set("/process/user", json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 44, 2000] }))
}

fn ambient(bundle: Bundle) -> Bundle {
    let set = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    ["bounding", "permitted", "effective", "inheritable", "ambient"]
        .into_iter()
        .fold(bundle, |b, name| b.set(&format!("/process/capabilities/{name}"), set.clone()))
}

fn mount(bundle: Bundle, destination: &str, kind: &str, source: &str, options: &[&str]) -> Bundle {
    let entry =
        json!({ "destination": destination, "type": kind, "source": source, "options": options });
    bundle.push("/mounts", entry)
}

fn replace(
    bundle: Bundle,
    destination: &str,
    kind: &str,
    source: &str,
    options: &[&str],
) -> Bundle {
    bundle.edit(|config| {
        let mounts = config["mounts"].as_array_mut().expect("/mounts is an array");
        let slot = mounts.iter_mut().find(|m| m["destination"] == destination).expect("a default mount");
        *slot = json!({ "destination": destination, "type": kind, "source": source, "options": options });
    })
}

fn bind(
    bundle: Bundle,
    stage: &Stage<'_>,
    source: &str,
    destination: &str,
    options: &[&str],
) -> Bundle {
    let source = stage.share.join(source).display().to_string();
    mount(bundle, destination, "bind", &source, options)
}
