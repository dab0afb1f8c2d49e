//! The reading itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{major, minor};

use crate::{Ask, Facts, File, Probe, fields};

pub(crate) fn facts(argv: Vec<String>, ask: &Ask) -> Facts {
    let uname = nix::sys::utsname::uname().ok();
    let (nice, policy) = fields::scheduling(&text("/proc/self/stat").unwrap_or_default());
    let cgroup: Vec<String> =
        text("/proc/self/cgroup").unwrap_or_default().lines().map(str::to_owned).collect();
    Facts {
        argv,
        env: environment(),
        cwd: nix::unistd::getcwd().ok().map(|p| p.to_string_lossy().into_owned()),
        pid: nix::unistd::getpid().as_raw(),
        ppid: nix::unistd::getppid().as_raw(),
        sid: nix::unistd::getsid(None).map_or(-1, nix::unistd::Pid::as_raw),
        pgid: nix::unistd::getpgrp().as_raw(),
        hostname: uname
            .as_ref()
            .map(|u| u.nodename().to_string_lossy().into_owned())
            .unwrap_or_default(),
        domainname: uname
            .as_ref()
            .map(|u| u.domainname().to_string_lossy().into_owned())
            .unwrap_or_default(),
        status: fields::status(&text("/proc/self/status").unwrap_or_default()),
        rlimits: fields::rlimits(&text("/proc/self/limits").unwrap_or_default()),
        oom_score_adj: text("/proc/self/oom_score_adj").and_then(|t| t.trim().parse().ok()),
        personality: text("/proc/self/personality").map(|t| t.trim().to_owned()),
        nice,
        policy,
        label: text("/proc/self/attr/current").map(|t| t.trim_end_matches(['\n', '\0']).to_owned()),
        mounts: text("/proc/self/mountinfo")
            .unwrap_or_default()
            .lines()
            .filter_map(fields::parse_mountinfo_line)
            .collect(),
        fds: descriptors(),
        namespaces: namespaces(),
        limits_held: ask
            .cgroups
            .as_deref()
            .map(|root| limits_held(Path::new(root), &cgroup))
            .unwrap_or_default(),
        cgroup,
        sysctls: ask.sysctls.iter().map(|key| (key.clone(), sysctl(key))).collect(),
        files: files(ask),
        probes: ask.probes.iter().map(|path| (path.clone(), probe(Path::new(path)))).collect(),
        root_write: make_file_in(Path::new("/")),
        interfaces: interfaces(),
        session_keyrings: text("/proc/keys")
            .filter(|t| !t.is_empty())
            .map(|t| fields::session_keyrings(&t)),
    }
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned()))
        .collect()
}

pub(crate) fn descriptors() -> BTreeMap<i32, String> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return BTreeMap::new();
    };
    // The descriptor of the listing is closed only when the iterator ends: collect the numbers first, and
    // what is then gone was the listing's own.
    let numbers: Vec<i32> = entries
        .filter_map(Result::ok)
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    numbers
        .into_iter()
        .filter_map(|fd| {
            Some((
                fd,
                fs::read_link(format!("/proc/self/fd/{fd}")).ok()?.to_string_lossy().into_owned(),
            ))
        })
        .collect()
}

fn namespaces() -> BTreeMap<String, u64> {
    let entries = fs::read_dir("/proc/self/ns").into_iter().flatten().filter_map(Result::ok);
    entries
        .filter_map(|e| {
            let link = fs::read_link(e.path()).ok()?;
            let inode = link.to_str()?.split_once('[')?.1.trim_end_matches(']').parse().ok()?;
            Some((e.file_name().into_string().ok()?, inode))
        })
        .collect()
}

fn sysctl(key: &str) -> Option<String> {
    text(format!("/proc/sys/{}", key.replace('.', "/"))).map(|t| t.trim().to_owned())
}

/// cgroup file -> the value that the kernel gives it when nobody set a limit. The names of version 1 and 2 are
/// disjoint except for `pids.max` and the cpuset pair, which mean the same in both.
const LIMIT_FILES: [(&str, &str); 25] = [
    ("cpu.weight", "100"),
    ("cpu.max", "max 100000"),
    ("cpu.max.burst", "0"),
    ("cpu.idle", "0"),
    ("cpu.shares", "1024"),
    ("cpu.cfs_quota_us", "-1"),
    ("cpu.cfs_period_us", "100000"),
    ("cpu.cfs_burst_us", "0"),
    ("cpuset.cpus", ""),
    ("cpuset.mems", ""),
    ("memory.max", "max"),
    ("memory.high", "max"),
    ("memory.low", "0"),
    ("memory.min", "0"),
    ("memory.swap.max", "max"),
    ("memory.oom.group", "0"),
    ("memory.limit_in_bytes", "9223372036854771712"),
    ("memory.soft_limit_in_bytes", "9223372036854771712"),
    ("memory.memsw.limit_in_bytes", "9223372036854771712"),
    ("memory.swappiness", "60"),
    ("pids.max", "max"),
    ("io.max", ""),
    ("io.weight", "default 100"),
    ("io.bfq.weight", "default 100"),
    ("blkio.bfq.weight", "100"),
];

fn limits_held(root: &Path, cgroup: &[String]) -> BTreeMap<String, String> {
    let mut held = BTreeMap::new();
    for line in cgroup {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        for top in hierarchy_folders(root, controllers) {
            collect_limits(&top, Path::new(path), &mut held);
        }
    }
    held.retain(|file, value| {
        !LIMIT_FILES.iter().any(|(name, default)| name == file && default == value)
    });
    held
}

/// Where a hierarchy of `/proc/self/cgroup` may be mounted below `root`. The cgroup2 tree is at the top of a
/// unified host and in `unified` on a hybrid one.
fn hierarchy_folders(root: &Path, controllers: &str) -> Vec<std::path::PathBuf> {
    let names: Vec<&str> = match controllers.strip_prefix("name=") {
        Some(name) => vec![name],
        None if controllers.is_empty() => vec!["unified", "."],
        None => vec![controllers],
    };
    names
        .into_iter()
        .map(|n| root.join(n))
        .filter(|p| p.join("cgroup.procs").exists())
        .take(1)
        .collect()
}

fn collect_limits(top: &Path, path: &Path, held: &mut BTreeMap<String, String>) {
    let relative = path.strip_prefix("/").unwrap_or(path);
    for folder in relative.ancestors().filter(|p| !p.as_os_str().is_empty()).map(|p| top.join(p)) {
        for (file, default) in LIMIT_FILES {
            let Some(value) = text(folder.join(file)).map(|t| t.trim().to_owned()) else {
                continue;
            };
            // A version 1 cpuset must name its processors: all that the root has is no limit.
            let unlimited = text(top.join(file)).is_some_and(|all| all.trim() == value);
            let slot = held.entry(file.to_owned()).or_insert_with(|| default.to_owned());
            if slot == default && !unlimited {
                *slot = value;
            }
        }
    }
}

fn files(ask: &Ask) -> BTreeMap<String, File> {
    let folders = std::iter::once("/dev").chain(ask.lists.iter().map(String::as_str));
    folders
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok))
        .filter_map(|entry| {
            Some((entry.path().to_string_lossy().into_owned(), file(&entry.path())?))
        })
        .collect()
}

fn file(path: &Path) -> Option<File> {
    let meta = fs::symlink_metadata(path).ok()?;
    let device = (meta.file_type().is_char_device() || meta.file_type().is_block_device())
        .then(|| format!("{}:{}", major(meta.rdev()), minor(meta.rdev())));
    Some(File {
        kind: kind(meta.file_type()).to_owned(),
        device,
        mode: mode(&meta),
        uid: meta.uid(),
        gid: meta.gid(),
        link: fs::read_link(path).ok().map(|p| p.to_string_lossy().into_owned()),
    })
}

fn mode(meta: &fs::Metadata) -> String {
    format!("{:04o}", meta.mode() & 0o7777)
}

fn kind(kind: fs::FileType) -> &'static str {
    if kind.is_dir() {
        "dir"
    } else if kind.is_symlink() {
        "link"
    } else if kind.is_char_device() {
        "char"
    } else if kind.is_block_device() {
        "block"
    } else if kind.is_fifo() {
        "fifo"
    } else if kind.is_socket() {
        "socket"
    } else {
        "file"
    }
}

fn probe(path: &Path) -> Probe {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => {
            let kind = if error.kind() == io::ErrorKind::NotFound { "missing" } else { "unknown" };
            let name = error_name(&error);
            return Probe {
                kind: kind.to_owned(),
                mode: None,
                uid: None,
                gid: None,
                read: name.clone(),
                write: name,
            };
        }
    };
    let (read, write) = if meta.is_dir() {
        (list(path), make_file_in(path))
    } else if meta.is_file() {
        (first_byte(path), open_for_writing(path))
    } else {
        // Reading a terminal or a pipe would wait; a masked file is the null device, which is safe to read.
        let null =
            meta.file_type().is_char_device() && (major(meta.rdev()), minor(meta.rdev())) == (1, 3);
        if null {
            (first_byte(path), open_for_writing(path))
        } else {
            ("device".into(), "device".into())
        }
    };
    Probe {
        kind: kind(meta.file_type()).to_owned(),
        mode: Some(mode(&meta)),
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
        read,
        write,
    }
}

fn list(path: &Path) -> String {
    match fs::read_dir(path) {
        Ok(mut entries) => if entries.next().is_some() { "data" } else { "empty" }.to_owned(),
        Err(error) => error_name(&error),
    }
}

fn first_byte(path: &Path) -> String {
    match fs::File::open(path).and_then(|mut file| file.read(&mut [0; 1])) {
        Ok(0) => "empty".to_owned(),
        Ok(_) => "data".to_owned(),
        Err(error) => error_name(&error),
    }
}

fn open_for_writing(path: &Path) -> String {
    outcome(fs::OpenOptions::new().write(true).open(path).map(drop))
}

fn make_file_in(folder: &Path) -> String {
    let path = folder.join(".hafen-inside");
    let made = fs::OpenOptions::new().write(true).create_new(true).open(&path).map(drop);
    if made.is_ok() {
        let _ = fs::remove_file(&path);
    }
    outcome(made)
}

fn outcome(result: io::Result<()>) -> String {
    result.map_or_else(|error| error_name(&error), |()| "ok".to_owned())
}

fn error_name(error: &io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |number| format!("{:?}", Errno::from_raw(number)))
}

fn interfaces() -> BTreeMap<String, bool> {
    let mut found: BTreeMap<String, bool> = text("/proc/net/dev")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Some((line.split_once(':')?.0.trim().to_owned(), false)))
        .collect();
    for address in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let up = address.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP);
        *found.entry(address.interface_name).or_default() |= up;
    }
    found
}
