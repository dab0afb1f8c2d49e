//! A bundle as the list of system calls that the kernel cannot be spared.
//!
//! Before the clone the cgroup is made and its limits are written; the child is born in
//! it. The child makes the root file system, then is the container's process; the parent waits
//! and removes the cgroup. Whatever can be decided beforehand is decided here: which paths
//! exist, which are folders, which options are flags.
//!
//! Two things differ from what runtimes do, and both are cheaper: the root is changed before
//! anything is mounted in it, so that no path has to be resolved below a descriptor; and all
//! masked folders share one empty file system.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use libc::{AT_EMPTY_PATH, AT_FDCWD, O_CLOEXEC};
use serde_json::Value;

use crate::assembler::{Arg, Assembler};
use crate::device_program;
use crate::format::RETRY_BUSY;
use crate::host::Host;
use crate::limits;
use crate::profile;

const AT_RECURSIVE: u64 = libc::AT_RECURSIVE as u64;
const SLAVE: u64 = libc::MS_SLAVE;
/// The constant of the libc crate is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const BPF_PROG_TYPE_CGROUP_DEVICE: u64 = 15;
const BPF_CGROUP_DEVICE: u64 = 6;
const BPF_F_ALLOW_MULTI: u64 = 2;
const BPF_PROG_LOAD: u64 = 5;
const BPF_PROG_ATTACH: u64 = 8;
/// Words of clone_args with the cgroup, Linux 5.7.
const CLONE_ARGS: usize = 11;
/// Byte offset of `si_status` in the `siginfo_t` of a child's end.
const SI_STATUS: u64 = 24;

/// Controllers of v1 that count.
const COUNTING: [&str; 4] = ["blkio", "cpuacct", "memory", "pids"];

const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("the floor knows no {0}")]
    Unknown(String),
    #[error("seccomp: {0}")]
    Seccomp(#[from] profile::CompileError),
    #[error("this machine has no {0} controller")]
    NoController(&'static str),
}

/// The floor's plan of `bundle`, whose config.json holds `config`.
pub fn plan(
    config: &Value,
    bundle: &Path,
    cgroup: &str,
    host: &Host,
) -> Result<Assembler, PlanError> {
    let folder = host.unified.join(cgroup);
    let mut launch = Launch { plan: Assembler::default(), config, bundle, folder };
    let legacy = launch.make_cgroups(cgroup, host)?;
    let pidfd = launch.clone_child(host.legacy_of("devices").is_some())?;
    launch.plan.child_begins();
    launch.enter_cgroups(&legacy);
    launch.loopback();
    let cgroup_tree = launch.change_root();
    launch.mounts(cgroup_tree)?;
    launch.devices();
    launch.masked_paths();
    launch.readonly_paths();
    launch.become_process()?;
    launch.plan.parent_goes_on();
    launch.wait_and_remove(pidfd, &legacy);
    Ok(launch.plan)
}

struct Launch<'a> {
    plan: Assembler,
    config: &'a Value,
    bundle: &'a Path,
    /// The container's folder in the cgroup2 tree.
    folder: PathBuf,
}

/// A folder in a v1 hierarchy, and its `tasks` held open: who writes 0 there moves itself, and waits for nobody.
struct Legacy {
    folder: PathBuf,
    tasks: Arg,
}

impl Launch<'_> {
    fn make_cgroups(&mut self, cgroup: &str, host: &Host) -> Result<Vec<Legacy>, PlanError> {
        let folder = self.folder.clone();
        self.mkdir(&folder, 0o755);
        let mut legacy: Vec<Legacy> = Vec::new();
        for limit in limits::of(self.config) {
            if host.controllers.iter().any(|c| c == limit.controller) {
                self.write_files(&folder, &limit.unified);
                continue;
            }
            let tree = host.legacy_of(limit.controller);
            let tree = tree.ok_or(PlanError::NoController(limit.controller))?;
            self.add_legacy(&mut legacy, tree.join(cgroup), &limit.legacy);
        }
        // Where containers without limits are counted, too.
        for tree in COUNTING.iter().filter_map(|controller| host.legacy_of(controller)) {
            self.add_legacy(&mut legacy, tree.join(cgroup), &[]);
        }
        if let Some(tree) = host.legacy_of("devices").filter(|_| self.has_device_rules()) {
            self.add_legacy(&mut legacy, tree.join(cgroup), &device_program::files());
        }
        Ok(legacy)
    }

    /// Controllers may share a hierarchy.
    fn add_legacy(
        &mut self,
        all: &mut Vec<Legacy>,
        folder: PathBuf,
        files: &[(&'static str, String)],
    ) {
        let known = all.iter().any(|legacy| legacy.folder == folder);
        if !known {
            self.mkdir(&folder, 0o755);
        }
        self.write_files(&folder, files);
        if !known {
            let tasks = self.open(&folder.join("tasks"), libc::O_WRONLY);
            all.push(Legacy { folder, tasks });
        }
    }

    fn has_device_rules(&self) -> bool {
        list(&self.config["linux"]["resources"]["devices"]).next().is_some()
    }

    fn write_files(&mut self, folder: &Path, files: &[(&'static str, String)]) {
        for (file, value) in files {
            let fd = self.open(&folder.join(file), libc::O_WRONLY);
            self.write(file, fd, value);
            self.plan.call(format!("close {file}"), libc::SYS_close, &[fd]);
        }
    }

    /// Loads the device rules and attaches them to the folder.
    fn device_program(&mut self, cgroup: Arg) {
        let program = device_program::instructions();
        let license = self.plan.text("Apache-2.0");
        let head = BPF_PROG_TYPE_CGROUP_DEVICE | (program.len() as u64) << 32;
        let program = self.plan.words(&program);
        let load = self.plan.words(&[head, program, license, 0, 0, 0]);
        // target_fd, attach_bpf_fd; attach_type, attach_flags.
        let attach = self.plan.words(&[0, BPF_CGROUP_DEVICE | BPF_F_ALLOW_MULTI << 32]);
        let size: Arg = 48.into();
        self.plan
            .call("load device program", libc::SYS_bpf, &[BPF_PROG_LOAD.into(), load.into(), size])
            .store = attach + 4;
        let copy = [cgroup, libc::F_DUPFD_CLOEXEC.into(), 0.into()];
        self.plan.call("dup cgroup", libc::SYS_fcntl, &copy).store = attach;
        let arguments = [BPF_PROG_ATTACH.into(), attach.into(), 16.into()];
        self.plan.call("attach device program", libc::SYS_bpf, &arguments);
    }

    /// clone3 into the cgroup. A cgroup namespace is left to the child: the kernel makes it
    /// before it moves the child, so its root would be the parent's cgroup.
    fn clone_child(&mut self, legacy_devices: bool) -> Result<Arg, PlanError> {
        let pidfd = self.plan.words(&[0]);
        let flags = self.namespaces()? & !(libc::CLONE_NEWCGROUP as u64);
        let mut args = [0; CLONE_ARGS];
        args[0] = flags | libc::CLONE_PIDFD as u64 | CLONE_INTO_CGROUP;
        args[1] = pidfd;
        args[4] = libc::SIGCHLD as u64;
        let args = self.plan.words(&args);
        let folder = self.path(&self.folder.clone());
        let how = libc::O_PATH | libc::O_DIRECTORY | O_CLOEXEC;
        let open = [AT_FDCWD.into(), folder, how.into()];
        // The last word of clone_args is the descriptor of the cgroup.
        let cgroup = args + (CLONE_ARGS as u64 - 1) * 8;
        self.plan.call("open cgroup", libc::SYS_openat, &open).store = cgroup;
        if self.has_device_rules() && !legacy_devices {
            self.device_program(Arg::Cell(cgroup));
        }
        let size = CLONE_ARGS as u64 * 8;
        self.plan.call("clone3", libc::SYS_clone3, &[args.into(), size.into()]);
        Ok(Arg::Cell(pidfd))
    }

    fn namespaces(&self) -> Result<u64, PlanError> {
        let types = list(&self.config["linux"]["namespaces"]).map(|n| text(&n["type"]));
        types.map(namespace_flag).sum()
    }

    /// The child moves itself, with the right to write that the parent opened.
    fn enter_cgroups(&mut self, legacy: &[Legacy]) {
        for Legacy { folder, tasks } in legacy {
            let label = format!("enter {}", folder.display());
            let zero = self.plan.text("0");
            self.plan.call(label, libc::SYS_write, &[*tasks, zero.into(), 1.into()]);
        }
        if self.namespaces().is_ok_and(|flags| flags & libc::CLONE_NEWCGROUP as u64 != 0) {
            let flags = [libc::CLONE_NEWCGROUP.into()];
            self.plan.call("unshare cgroup", libc::SYS_unshare, &flags);
        }
    }

    /// As runc, crun and hafen-oci do in a new network namespace.
    fn loopback(&mut self) {
        if self.namespaces().is_ok_and(|flags| flags & libc::CLONE_NEWNET as u64 == 0) {
            return;
        }
        let kind = libc::SOCK_DGRAM | O_CLOEXEC;
        let socket = [libc::AF_INET.into(), kind.into(), 0.into()];
        let socket = self.plan.call_for("socket", libc::SYS_socket, &socket);
        // struct ifreq: sixteen bytes of name, then the flags.
        let mut request = [0; 40];
        request[..2].copy_from_slice(b"lo");
        request[16] = (libc::IFF_UP | libc::IFF_RUNNING) as u8;
        let request = self.plan.blob(&request);
        let arguments = [socket, libc::SIOCSIFFLAGS.into(), request.into()];
        self.plan.call("lo up", libc::SYS_ioctl, &arguments);
    }

    /// Makes the bundle's root the root. Returns the cgroup folder as a detached mount where
    /// the bundle wants to see it: afterwards the host's paths are gone.
    fn change_root(&mut self) -> Option<Arg> {
        let root = self.path(&self.bundle.join("rootfs"));
        let slash = self.plan.text("/").into();
        self.mount_setattr("make / a slave", AT_FDCWD.into(), slash, AT_RECURSIVE, [0, SLAVE]);
        let cgroup = list(&self.config["mounts"]).any(|m| text(&m["type"]) == "cgroup");
        let cgroup = cgroup.then(|| {
            let folder = self.path(&self.folder.clone());
            self.clone_tree("cgroup", folder)
        });
        let tree = self.clone_tree("rootfs", root);
        if self.config["root"]["readonly"] == true {
            self.set_flags("rootfs", tree, libc::MOUNT_ATTR_RDONLY);
        }
        self.attach("rootfs", tree, root);
        self.plan.call("fchdir rootfs", libc::SYS_fchdir, &[tree]);
        let dot: Arg = self.plan.text(".").into();
        self.plan.call("pivot_root", libc::SYS_pivot_root, &[dot, dot]);
        let detach = [dot, libc::MNT_DETACH.into()];
        self.plan.call("umount old root", libc::SYS_umount2, &detach);
        cgroup
    }

    fn mounts(&mut self, cgroup_tree: Option<Arg>) -> Result<(), PlanError> {
        let config = self.config;
        let mut fresh: Vec<&str> = Vec::new();
        for mount in list(&config["mounts"]) {
            let (at, kind) = (text(&mount["destination"]), text(&mount["type"]));
            if fresh.iter().any(|f| Path::new(at).starts_with(f)) {
                self.mkdir(Path::new(at), 0o755);
            }
            if kind == "tmpfs" {
                fresh.push(at);
            }
            let options: Vec<&str> = list(&mount["options"]).map(text).collect();
            let target = self.path(Path::new(at));
            let tree = match (kind, cgroup_tree) {
                ("cgroup", Some(tree)) => {
                    self.set_flags(at, tree, flags_of(&options));
                    tree
                }
                _ => self.new_file_system(at, kind, &options),
            };
            self.attach(at, tree, target);
        }
        Ok(())
    }

    /// fsopen, fsconfig for each option that is not a flag of the mount, fsmount.
    fn new_file_system(&mut self, label: &str, kind: &str, options: &[&str]) -> Arg {
        let kind = self.plan.text(kind).into();
        let open = [kind, libc::FSOPEN_CLOEXEC.into()];
        let fs = self.plan.call_for(format!("fsopen {label}"), libc::SYS_fsopen, &open);
        for option in options.iter().filter(|o| mount_flag(o).is_none()) {
            self.configure(label, fs, option);
        }
        let create = [fs, libc::FSCONFIG_CMD_CREATE.into()];
        self.plan.call(format!("create {label}"), libc::SYS_fsconfig, &create);
        let mount = [fs, libc::FSMOUNT_CLOEXEC.into(), flags_of(options).into()];
        self.plan.call_for(format!("fsmount {label}"), libc::SYS_fsmount, &mount)
    }

    fn configure(&mut self, label: &str, fs: Arg, option: &str) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let key = self.plan.text(key).into();
        let (command, value) = match value {
            "" => (libc::FSCONFIG_SET_FLAG, 0),
            text => (libc::FSCONFIG_SET_STRING, self.plan.text(text)),
        };
        let arguments = [fs, command.into(), key, value.into(), 0.into()];
        self.plan.call(format!("{option} for {label}"), libc::SYS_fsconfig, &arguments);
    }

    /// The devices and links that every Linux container has (config-linux.md).
    fn devices(&mut self) {
        self.plan.call("umask", libc::SYS_umask, &[0.into()]);
        for (name, major, minor) in DEVICES {
            let path = self.path(&Path::new("/dev").join(name));
            let (mode, device) = (libc::S_IFCHR | 0o666, libc::makedev(major, minor));
            let arguments = [AT_FDCWD.into(), path, mode.into(), device.into()];
            self.plan.call(format!("mknod {name}"), libc::SYS_mknodat, &arguments);
        }
        let terminals = list(&self.config["mounts"]).any(|m| m["type"] == "devpts");
        let ptmx = terminals.then_some(("ptmx", "pts/ptmx"));
        for (name, target) in LINKS.into_iter().chain(ptmx) {
            let (path, target) = (self.path(&Path::new("/dev").join(name)), self.plan.text(target));
            let arguments = [target.into(), AT_FDCWD.into(), path];
            self.plan.call(format!("symlink {name}"), libc::SYS_symlinkat, &arguments);
        }
        self.plan.call("umask", libc::SYS_umask, &[0o022.into()]);
    }

    fn masked_paths(&mut self) {
        let mut empty = None;
        for path in existing(&self.config["linux"]["maskedPaths"]) {
            let target = self.path(path);
            let tree = match (path.is_dir(), empty) {
                (false, _) => {
                    let null = self.plan.text("/dev/null").into();
                    self.clone_tree("/dev/null", null)
                }
                (true, Some(tree)) => self.clone_mount("empty folder", tree),
                (true, None) => self.new_file_system("empty folder", "tmpfs", &["ro"]),
            };
            self.attach(&path.to_string_lossy(), tree, target);
            if path.is_dir() {
                empty = Some(tree);
            }
        }
    }

    fn readonly_paths(&mut self) {
        for path in existing(&self.config["linux"]["readonlyPaths"]) {
            let (label, at) = (path.to_string_lossy(), self.path(path));
            let tree = self.clone_tree(&label, at);
            self.set_flags(&label, tree, libc::MOUNT_ATTR_RDONLY);
            self.attach(&label, tree, at);
        }
    }

    /// Everything of a process that exec keeps, then exec.
    fn become_process(&mut self) -> Result<(), PlanError> {
        let process = &self.config["process"];
        let keyring = [libc::KEYCTL_JOIN_SESSION_KEYRING.into(), 0.into()];
        self.plan.call("session keyring", libc::SYS_keyctl, &keyring);
        self.plan.call("setsid", libc::SYS_setsid, &[]);
        let name = text(&self.config["hostname"]);
        let arguments = [self.plan.text(name).into(), (name.len() as u64).into()];
        self.plan.call("sethostname", libc::SYS_sethostname, &arguments);
        self.rlimits(&process["rlimits"])?;
        self.plan.call("setgroups", libc::SYS_setgroups, &[0.into(), 0.into()]);
        self.capabilities(&process["capabilities"])?;
        self.plan.call(
            "no_new_privs",
            libc::SYS_prctl,
            &[libc::PR_SET_NO_NEW_PRIVS.into(), 1.into(), 0.into(), 0.into(), 0.into()],
        );
        let folder = self.path(Path::new(text(&process["cwd"])));
        self.plan.call("chdir", libc::SYS_chdir, &[folder]);
        let close = [3.into(), u32::MAX.into(), libc::CLOSE_RANGE_CLOEXEC.into()];
        self.plan.call("close_range", libc::SYS_close_range, &close);
        if !self.config["linux"]["seccomp"].is_null() {
            self.seccomp()?;
        }
        self.exec(process);
        Ok(())
    }

    /// Compiled beforehand: that is no work of the kernel's.
    fn seccomp(&mut self) -> Result<(), PlanError> {
        const INSTRUCTION: usize = 8;
        const SET_MODE_FILTER: u64 = 1;
        let filter = profile::compiled()?;
        let length = (filter.len() / INSTRUCTION) as u64;
        let filter = self.plan.blob(&filter);
        // struct sock_fprog: a 16-bit length, padding, a pointer.
        let program = self.plan.words(&[length, filter]);
        let arguments = [SET_MODE_FILTER.into(), 0.into(), program.into()];
        self.plan.call("seccomp", libc::SYS_seccomp, &arguments);
        Ok(())
    }

    fn exec(&mut self, process: &Value) {
        let argv: Vec<String> = list(&process["args"]).map(|a| text(a).to_owned()).collect();
        let environ: Vec<String> = list(&process["env"]).map(|e| text(e).to_owned()).collect();
        let program = self.plan.text(argv.first().map_or("", String::as_str)).into();
        let (argv, environ) = (self.plan.texts(&argv), self.plan.texts(&environ));
        self.plan.call("exec", libc::SYS_execve, &[program, argv.into(), environ.into()]);
    }

    fn rlimits(&mut self, limits: &Value) -> Result<(), PlanError> {
        for limit in list(limits) {
            let name = text(&limit["type"]);
            let "RLIMIT_NOFILE" = name else { return Err(PlanError::Unknown(name.into())) };
            let number = |key: &str| limit[key].as_u64().unwrap_or_default();
            let pair = self.plan.words(&[number("soft"), number("hard")]);
            let arguments = [0.into(), libc::RLIMIT_NOFILE.into(), pair.into(), 0.into()];
            self.plan.call(name, libc::SYS_prlimit64, &arguments);
        }
        Ok(())
    }

    fn capabilities(&mut self, sets: &Value) -> Result<(), PlanError> {
        let bounding = capability_bits(&sets["bounding"])?;
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap");
        let last: u64 = last.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(40);
        for number in (0..=last).filter(|n| bounding & (1 << n) == 0) {
            let drop = [libc::PR_CAPBSET_DROP.into(), number.into()];
            self.plan.call("drop from the bounding set", libc::SYS_prctl, &drop);
        }
        let effective = capability_bits(&sets["effective"])?;
        let permitted = capability_bits(&sets["permitted"])?;
        let inheritable = capability_bits(&sets["inheritable"])?;
        // Version 3 of capset(2): the low 32 bits of the three sets, then the high ones.
        let halves =
            [0, 32].iter().flat_map(|s| [effective, permitted, inheritable].map(|c| c >> s));
        let data: Vec<u8> = halves.flat_map(|half| (half as u32).to_ne_bytes()).collect();
        let (header, data) = (self.plan.words(&[0x2008_0522]), self.plan.blob(&data));
        self.plan.call("capset", libc::SYS_capset, &[header.into(), data.into()]);
        Ok(())
    }

    fn wait_and_remove(&mut self, pidfd: Arg, legacy: &[Legacy]) {
        let info = self.plan.words(&[0; 16]);
        let wait = [libc::P_PIDFD.into(), pidfd, info.into(), libc::WEXITED.into(), 0.into()];
        self.plan.call("wait", libc::SYS_waitid, &wait);
        for folder in legacy.iter().map(|l| &l.folder).chain([&self.folder.clone()]) {
            let arguments = [AT_FDCWD.into(), self.path(folder), libc::AT_REMOVEDIR.into()];
            let label = format!("rmdir {}", folder.display());
            self.plan.call(label, libc::SYS_unlinkat, &arguments).flags = RETRY_BUSY;
        }
        let status = Arg::Cell(info + SI_STATUS);
        self.plan.call("exit", libc::SYS_exit_group, &[status]);
    }
}

/// The single calls.
impl Launch<'_> {
    fn path(&mut self, path: &Path) -> Arg {
        self.plan.text(&path.to_string_lossy()).into()
    }

    fn mkdir(&mut self, path: &Path, mode: u32) {
        let arguments = [AT_FDCWD.into(), self.path(path), mode.into()];
        self.plan.call(format!("mkdir {}", path.display()), libc::SYS_mkdirat, &arguments);
    }

    fn open(&mut self, path: &Path, how: i32) -> Arg {
        let arguments = [AT_FDCWD.into(), self.path(path), (how | O_CLOEXEC).into()];
        self.plan.call_for(format!("open {}", path.display()), libc::SYS_openat, &arguments)
    }

    fn write(&mut self, file: &str, fd: Arg, value: &str) {
        let arguments = [fd, self.plan.text(value).into(), (value.len() as u64).into()];
        self.plan.call(format!("write {file}"), libc::SYS_write, &arguments);
    }

    fn clone_tree(&mut self, label: &str, path: Arg) -> Arg {
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        let arguments = [AT_FDCWD.into(), path, flags.into()];
        self.plan.call_for(format!("open_tree {label}"), libc::SYS_open_tree, &arguments)
    }

    /// The same for a mount that is held by a descriptor.
    fn clone_mount(&mut self, label: &str, tree: Arg) -> Arg {
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | AT_EMPTY_PATH as u32;
        let arguments = [tree, self.plan.text("").into(), flags.into()];
        self.plan.call_for(format!("open_tree {label}"), libc::SYS_open_tree, &arguments)
    }

    fn attach(&mut self, label: &str, tree: Arg, at: Arg) {
        let (empty, flags) = (self.plan.text("").into(), libc::MOVE_MOUNT_F_EMPTY_PATH);
        let arguments = [tree, empty, AT_FDCWD.into(), at, flags.into()];
        self.plan.call(format!("move_mount {label}"), libc::SYS_move_mount, &arguments);
    }

    fn set_flags(&mut self, label: &str, tree: Arg, set: u64) {
        let empty = self.plan.text("").into();
        let label = format!("mount_setattr {label}");
        self.mount_setattr(&label, tree, empty, AT_EMPTY_PATH as u64, [set, 0]);
    }

    /// `attr` is what to set, and the propagation, of `mount_attr`.
    fn mount_setattr(&mut self, label: &str, dir: Arg, path: Arg, flags: u64, attr: [u64; 2]) {
        let attr = self.plan.words(&[attr[0], 0, attr[1], 0]);
        let arguments = [dir, path, flags.into(), attr.into(), 32.into()];
        self.plan.call(label, libc::SYS_mount_setattr, &arguments);
    }
}

fn namespace_flag(name: &str) -> Result<u64, PlanError> {
    let flag = match name {
        "pid" => libc::CLONE_NEWPID,
        "network" => libc::CLONE_NEWNET,
        "ipc" => libc::CLONE_NEWIPC,
        "uts" => libc::CLONE_NEWUTS,
        "mount" => libc::CLONE_NEWNS,
        "cgroup" => libc::CLONE_NEWCGROUP,
        other => return Err(PlanError::Unknown(format!("{other} namespace"))),
    };
    Ok(flag as u64)
}

fn mount_flag(option: &str) -> Option<u64> {
    Some(match option {
        "ro" => libc::MOUNT_ATTR_RDONLY,
        "nosuid" => libc::MOUNT_ATTR_NOSUID,
        "nodev" => libc::MOUNT_ATTR_NODEV,
        "noexec" => libc::MOUNT_ATTR_NOEXEC,
        "strictatime" => libc::MOUNT_ATTR_STRICTATIME,
        "relatime" => libc::MOUNT_ATTR_RELATIME,
        _ => return None,
    })
}

fn flags_of(options: &[&str]) -> u64 {
    options.iter().filter_map(|o| mount_flag(o)).fold(0, |all, flag| all | flag)
}

fn capability_bits(names: &Value) -> Result<u64, PlanError> {
    list(names).try_fold(0, |bits, name| {
        let name = text(name);
        let known = caps::Capability::from_str(name);
        let known = known.map_err(|_| PlanError::Unknown(format!("capability {name}")))?;
        Ok(bits | known.bitmask())
    })
}

/// /proc and /sys of the container have what the host's have.
fn existing(paths: &Value) -> impl Iterator<Item = &Path> {
    list(paths).map(|p| Path::new(text(p))).filter(|p| p.exists())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_options_are_told_apart() {
        let options = ["nosuid", "ro", "mode=755"];
        let both = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_RDONLY;
        assert_eq!(flags_of(&options), both);
        assert_eq!(mount_flag("size=1k"), None);
    }

    #[test]
    fn unknown_names_are_errors() {
        assert!(namespace_flag("time").is_err());
        assert!(capability_bits(&serde_json::json!(["CAP_KILL"])).is_ok_and(|b| b == 1 << 5));
        assert!(capability_bits(&serde_json::json!(["CAP_NONSENSE"])).is_err());
    }
}
