//! Bundles: a root filesystem of busybox and a `config.json` that tests edit.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Program, program};

/// A bundle in a test's folder. Edits are written to `config.json` at once. A method that cannot do its work
/// panics: the test cannot go on.
#[derive(Debug, Clone)]
pub struct Bundle {
    path: PathBuf,
    config: Value,
}

impl Bundle {
    /// Makes a bundle in `path`. `templates` holds `busybox` and `inside`, which are linked into the root
    /// filesystem, not copied: a test that changes them puts its own there.
    pub(crate) fn new(path: PathBuf, templates: &Templates) -> Self {
        let root = path.join("rootfs");
        for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "var/tmp", "run", "mnt"] {
            fs::create_dir_all(root.join(folder))
                .unwrap_or_else(|e| panic!("mkdir {folder} in {}: {e}", root.display()));
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))
            .expect("chmod rootfs/tmp");
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        )
        .expect("write rootfs/etc/passwd");
        fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")
            .expect("write rootfs/etc/group");
        link(&templates.inside, &root.join("inside"));
        link(&templates.busybox, &root.join("bin/busybox"));
        for applet in &templates.applets {
            symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
        }
        let bundle = Self { path, config: default_config() };
        if nix::unistd::geteuid().is_root() { bundle.write() } else { bundle.for_ordinary_user() }
    }

    /// In a user namespace: its root is the caller, other ids are the caller's subordinate ones as far as there are any.
    fn for_ordinary_user(self) -> Self {
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let bundle = self
            .namespace("user", None)
            .set("/linux/uidMappings", own_map(own.0, "/etc/subuid"))
            .set("/linux/gidMappings", own_map(own.1, "/etc/subgid"));
        if subordinate("/etc/subgid").is_some() {
            return bundle;
        }
        // There is no group for terminals.
        bundle.edit(|config| {
            for mount in config["mounts"].as_array_mut().expect("/mounts is an array") {
                if let Some(options) = mount["options"].as_array_mut() {
                    options.retain(|o| o != "gid=5");
                }
            }
        })
    }

    /// The bundle's folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the root filesystem that [`Test::bundle`](crate::Test::bundle) made. A test may point
    /// `root.path` somewhere else.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// What `config.json` holds.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Sets `process.args`.
    #[must_use]
    pub fn args<I: IntoIterator<Item: Into<String>>>(self, words: I) -> Self {
        let words: Vec<Value> = words.into_iter().map(|w| Value::String(w.into())).collect();
        self.set("/process/args", Value::Array(words))
    }

    /// Sets `process.args` to `sh -c SCRIPT`.
    #[must_use]
    pub fn sh(self, script: &str) -> Self {
        self.args(["/bin/sh", "-c", script])
    }

    /// Sets the value at a JSON pointer such as `/linux/resources/memory/limit`. Objects on the way that do not
    /// exist are made; an array's element must exist.
    #[must_use]
    pub fn set(self, pointer: &str, value: Value) -> Self {
        self.edit(|config| *slot(config, pointer) = value)
    }

    /// Appends to the array at a JSON pointer such as `/mounts`, which is made when missing.
    #[must_use]
    pub fn push(self, pointer: &str, value: Value) -> Self {
        self.edit(|config| match slot(config, pointer) {
            Value::Array(items) => items.push(value),
            none @ Value::Null => *none = json!([value]),
            other => panic!("{pointer} is not an array: {other}"),
        })
    }

    /// Removes the value at a JSON pointer, which must exist.
    #[must_use]
    pub fn remove(self, pointer: &str) -> Self {
        let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer begins with /");
        self.edit(|config| {
            let removed = match config.pointer_mut(parent) {
                Some(Value::Object(fields)) => fields.remove(key),
                Some(Value::Array(items)) => {
                    key.parse().ok().filter(|i| *i < items.len()).map(|i| items.remove(i))
                }
                _ => None,
            };
            assert!(removed.is_some(), "nothing to remove at {pointer}");
        })
    }

    /// Changes the whole document.
    #[must_use]
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self.write()
    }

    /// Removes the mount on `destination`.
    #[must_use]
    pub fn without_mount(self, destination: &str) -> Self {
        self.edit(|config| {
            let mounts = config["mounts"].as_array_mut().expect("/mounts is an array");
            let before = mounts.len();
            mounts.retain(|m| m["destination"] != destination);
            assert!(mounts.len() < before, "no mount on {destination}");
        })
    }

    /// Replaces or adds a namespace: `("network", Some("/run/netns/x"))` joins, `None` makes a new one.
    #[must_use]
    pub fn namespace(self, kind: &str, path: Option<&str>) -> Self {
        let mut entry = json!({ "type": kind });
        if let Some(path) = path {
            entry["path"] = json!(path);
        }
        self.edit(|config| {
            let list = config["linux"]["namespaces"]
                .as_array_mut()
                .expect("/linux/namespaces is an array");
            list.retain(|n| n["type"] != kind);
            list.push(entry);
        })
    }

    /// Removes a namespace, so that the container shares the caller's.
    #[must_use]
    pub fn without_namespace(self, kind: &str) -> Self {
        self.edit(|config| {
            let list = config["linux"]["namespaces"]
                .as_array_mut()
                .expect("/linux/namespaces is an array");
            list.retain(|n| n["type"] != kind);
        })
    }

    /// A new user namespace whose ids from 0 on are the host's from `first` on. Its root gets the folders of the root
    /// filesystem, but not the programs, which all bundles share.
    #[must_use]
    pub fn user_namespace(self, first: u32, size: u32) -> Self {
        give_folders(&self.rootfs(), first);
        let map = json!([{ "containerID": 0, "hostID": first, "size": size }]);
        self.namespace("user", None)
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map)
    }

    /// Writes a file in the root filesystem, with its folders.
    #[must_use]
    pub fn file(self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        let path = self.rootfs().join(path.trim_start_matches('/'));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .unwrap_or_else(|e| panic!("mkdir {}: {e}", folder.display()));
        }
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        self
    }

    /// Writes `text` as `config.json`, valid or not. The next edit replaces it.
    #[must_use]
    pub fn raw(self, text: impl AsRef<[u8]>) -> Self {
        self.store(text.as_ref());
        self
    }

    fn write(self) -> Self {
        self.store(&serde_json::to_vec_pretty(&self.config).expect("JSON values can be written"));
        self
    }

    fn store(&self, bytes: &[u8]) {
        let path = self.path.join("config.json");
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    }
}

fn slot<'a>(config: &'a mut Value, pointer: &str) -> &'a mut Value {
    let mut at = config;
    for key in pointer.strip_prefix('/').expect("a JSON pointer begins with /").split('/') {
        let key = key.replace("~1", "/").replace("~0", "~");
        at = match at {
            Value::Array(items) => {
                let index: usize =
                    key.parse().unwrap_or_else(|_| panic!("{pointer}: {key} is not an index"));
                items.get_mut(index).unwrap_or_else(|| panic!("{pointer}: no element {index}"))
            }
            other => &mut other[key],
        };
    }
    at
}

fn own_map(own: u32, ranges: &str) -> Value {
    let mut map = vec![json!({ "containerID": 0, "hostID": own, "size": 1 })];
    if let Some((first, size)) = subordinate(ranges) {
        map.push(json!({ "containerID": 1, "hostID": first, "size": size }));
    }
    Value::Array(map)
}

/// First id and number of the ids that belong to this user (subuid(5)), if they can be used.
pub(crate) fn subordinate(ranges: &str) -> Option<(u32, u32)> {
    program::on_path("newuidmap")?;
    let uid = nix::unistd::geteuid().to_string();
    // Not through the C library, whose static version has no business with plug-ins for accounts.
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let own = |line: &&str| line.split(':').nth(2) == Some(uid.as_str());
    let name = accounts.lines().find(own).and_then(|l| l.split(':').next())?;
    let text = fs::read_to_string(ranges).ok()?;
    let of_user = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (owner == name || owner == uid).then_some(range)
    };
    text.lines().find_map(of_user)
}

fn give_folders(folder: &Path, owner: u32) {
    std::os::unix::fs::chown(folder, Some(owner), Some(owner))
        .unwrap_or_else(|e| panic!("chown {}: {e}", folder.display()));
    let entries = fs::read_dir(folder).expect("list a folder").filter_map(Result::ok);
    let folders = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    folders.for_each(|entry| give_folders(&entry.path(), owner));
}

fn link(from: &Path, to: &Path) {
    fs::hard_link(from, to)
        .unwrap_or_else(|e| panic!("link {} to {}: {e}", from.display(), to.display()));
}

/// What the root filesystems are made of; one copy for the whole run.
#[derive(Debug)]
pub(crate) struct Templates {
    busybox: PathBuf,
    inside: PathBuf,
    applets: Vec<String>,
}

impl Templates {
    /// Copies the programs into `folder`.
    pub(crate) fn new(folder: &Path) -> Result<Self, String> {
        let source = program::busybox()
            .ok_or("no static busybox in /bin or /usr/bin (package busybox-static)")?;
        let copy = |from: &Path, name: &str| {
            let to = folder.join(name);
            fs::copy(from, &to)
                .map_err(|e| format!("copy {} to {}: {e}", from.display(), to.display()))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
                .map_err(|e| format!("chmod {name}: {e}"))?;
            Ok::<_, String>(to)
        };
        let busybox = copy(&source, "busybox")?;
        let inside = copy(&Program::Inside.find()?, "inside")?;
        let list = std::process::Command::new(&busybox).arg("--list").output();
        let list = list.map_err(|e| format!("run busybox --list: {e}"))?.stdout;
        let applets = String::from_utf8_lossy(&list)
            .lines()
            .filter(|a| *a != "busybox")
            .map(str::to_owned)
            .collect();
        Ok(Self { busybox, inside, applets })
    }
}

/// The document that `runc spec` makes, without a terminal and with our program.
fn default_config() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/inside", "facts"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "hafen-test",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" }
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_makes_the_objects_on_its_way() {
        let mut config = json!({ "linux": {} });
        *slot(&mut config, "/linux/resources/memory/limit") = json!(1);
        assert_eq!(config, json!({ "linux": { "resources": { "memory": { "limit": 1 } } } }));
    }

    #[test]
    fn a_pointer_reaches_into_an_array() {
        let mut config = json!({ "mounts": [{ "type": "proc" }] });
        *slot(&mut config, "/mounts/0/type") = json!("tmpfs");
        assert_eq!(config["mounts"][0]["type"], "tmpfs");
    }
}
