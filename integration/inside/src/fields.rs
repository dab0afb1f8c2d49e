//! Text of `/proc` to values. No input or output here.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Mount, Status};

/// Capability names by bit number, `linux/capability.h`.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The capabilities in a hexadecimal mask of `/proc/PID/status`. A bit without a name here becomes `CAP_<bit>`.
#[must_use]
pub fn capability_names(mask: &str) -> BTreeSet<String> {
    let mask = u64::from_str_radix(mask, 16).unwrap_or(0);
    (0..64usize)
        .filter(|bit| mask & (1 << bit) != 0)
        .map(|bit| {
            CAPABILITIES.get(bit).map_or_else(|| format!("CAP_{bit}"), |name| (*name).to_owned())
        })
        .collect()
}

/// One line of a mountinfo file; `None` for a line of another shape.
#[must_use]
pub fn parse_mountinfo_line(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let id = fields.next()?.parse().ok()?;
    let parent = fields.next()?.parse().ok()?;
    let device = fields.next()?.to_owned();
    let root = unescape(fields.next()?);
    let target = unescape(fields.next()?);
    let options = set(fields.next()?);
    let propagation = fields.by_ref().take_while(|f| *f != "-").map(str::to_owned).collect();
    let fstype = fields.next()?.to_owned();
    let source = unescape(fields.next()?);
    let super_options = fields.next().map(set).unwrap_or_default();
    Some(Mount {
        id,
        parent,
        device,
        root,
        target,
        options,
        propagation,
        fstype,
        source,
        super_options,
    })
}

fn set(list: &str) -> BTreeSet<String> {
    list.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = text.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (bytes[at], octal) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(crate) fn status(text: &str) -> Status {
    let fields: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k, v.trim())).collect();
    let get = |key: &str| fields.get(key).copied().unwrap_or_default();
    let numbers = |key: &str| get(key).split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let number = |key: &str| get(key).parse().unwrap_or(0);
    Status {
        uid: numbers("Uid"),
        gid: numbers("Gid"),
        groups: numbers("Groups"),
        umask: get("Umask").to_owned(),
        no_new_privs: number("NoNewPrivs"),
        seccomp: number("Seccomp"),
        seccomp_filters: number("Seccomp_filters"),
        inheritable: capability_names(get("CapInh")),
        permitted: capability_names(get("CapPrm")),
        effective: capability_names(get("CapEff")),
        bounding: capability_names(get("CapBnd")),
        ambient: capability_names(get("CapAmb")),
        sig_blocked: get("SigBlk").to_owned(),
        sig_ignored: get("SigIgn").to_owned(),
        sig_caught: get("SigCgt").to_owned(),
        cpus_allowed: get("Cpus_allowed_list").to_owned(),
        mems_allowed: get("Mems_allowed_list").to_owned(),
    }
}

/// `/proc/self/limits`, with the names of `getrlimit(2)`.
pub(crate) fn rlimits(text: &str) -> BTreeMap<String, (String, String)> {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "RLIMIT_CPU"),
        ("Max file size", "RLIMIT_FSIZE"),
        ("Max data size", "RLIMIT_DATA"),
        ("Max stack size", "RLIMIT_STACK"),
        ("Max core file size", "RLIMIT_CORE"),
        ("Max resident set", "RLIMIT_RSS"),
        ("Max processes", "RLIMIT_NPROC"),
        ("Max open files", "RLIMIT_NOFILE"),
        ("Max locked memory", "RLIMIT_MEMLOCK"),
        ("Max address space", "RLIMIT_AS"),
        ("Max file locks", "RLIMIT_LOCKS"),
        ("Max pending signals", "RLIMIT_SIGPENDING"),
        ("Max msgqueue size", "RLIMIT_MSGQUEUE"),
        ("Max nice priority", "RLIMIT_NICE"),
        ("Max realtime priority", "RLIMIT_RTPRIO"),
        ("Max realtime timeout", "RLIMIT_RTTIME"),
    ];
    NAMES
        .iter()
        .filter_map(|(label, name)| {
            let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
            let mut values = rest.split_whitespace();
            Some(((*name).to_owned(), (values.next()?.to_owned(), values.next()?.to_owned())))
        })
        .collect()
}

/// (nice, policy): fields 19 and 41 of `/proc/self/stat`, counted from behind the command's closing bracket,
/// since the command may hold spaces.
pub(crate) fn scheduling(stat: &str) -> (Option<i32>, Option<u32>) {
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return (None, None);
    };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    (field(19).and_then(|f| f.parse().ok()), field(41).and_then(|f| f.parse().ok()))
}

/// Descriptions of the session keyrings in `/proc/keys`: the text after the type, up to the colon.
pub(crate) fn session_keyrings(keys: &str) -> Vec<String> {
    keys.lines()
        .filter_map(|line| line.split_once(" keyring ").map(|(_, rest)| rest.trim_start()))
        .map(|rest| rest.rsplit_once(": ").map_or(rest, |(name, _)| name).to_owned())
        .filter(|name| name.starts_with("_ses"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_with_tags_and_a_space_in_the_path() {
        let mount =
            parse_mountinfo_line(r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:5 - ext3 /dev/root rw,errors=continue")
                .unwrap();
        assert_eq!(mount.target, "/mnt 2");
        assert_eq!(mount.propagation, ["master:1", "shared:5"]);
        assert_eq!(mount.fstype, "ext3");
        assert!(mount.super_options.contains("errors=continue"));
    }

    #[test]
    fn mountinfo_of_another_shape_is_none() {
        assert_eq!(parse_mountinfo_line("not a mount"), None);
        assert_eq!(parse_mountinfo_line("36 35 98:0 / / rw"), None);
    }

    #[test]
    fn capability_mask() {
        let names = capability_names("0000000000000421");
        assert_eq!(
            names.into_iter().collect::<Vec<_>>(),
            ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
        );
    }

    #[test]
    fn stat_with_brackets_in_the_command() {
        let line =
            format!("1 (a) b) S {} 5 {} 3 0", "0 ".repeat(15).trim(), "0 ".repeat(21).trim());
        assert_eq!(scheduling(&line), (Some(5), Some(3)));
    }

    #[test]
    fn keyrings_of_a_session() {
        let keys = "009a2028 I--Q---     1 perm 3f010000  1000  1000 user      krb_ccache:primary: 12\n\
                    1806c4ba I--Q---     1 perm 3f010000     0     0 keyring   _ses.box: 2\n";
        assert_eq!(session_keyrings(keys), ["_ses.box"]);
    }
}
