//! Every key of the configuration: one table for the file, the variables and the flags.

/// What may be said, by its path in the file.
#[derive(Debug)]
pub struct Key {
    pub path: &'static str,
    /// What the value is, for help.
    pub value: &'static str,
    pub about: &'static str,
    /// Empty: worked out, or nothing.
    pub default: &'static str,
}

const fn key(
    path: &'static str,
    value: &'static str,
    default: &'static str,
    about: &'static str,
) -> Key {
    Key { path, value, about, default }
}

#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("state", "DIR", "/var/lib/hafen", "Folder of what outlives a reboot"),
    key("run", "DIR", "/run/hafen", "Folder of what does not"),
    key("socket", "FILE", "", "Unix socket to serve on [default: agent.sock in the run folder]"),
    key("group", "GROUP", "", "Members of this group may use the socket, beside root"),
    key("name", "NAME", "", "Name of this node [default: the host's]"),
    key("instance", "NAME", "hafen", "Name of this agent among those of the machine, also of its cgroup"),
    key("runtime", "FILE", "", "The program hafen-oci [default: beside this one, or in PATH]"),
    key("images", "DIR", "", "Folder of the image store [default: images in the state folder]"),
    key("volumes", "DIR", "", "Folder of the named volumes [default: volumes in the state folder]"),
    key("log.format", "FORMAT", "text", "How the agent logs: text, json or journald"),
    key("log.level", "LEVEL", "info", "How much: error, warn, info, debug, trace, or a filter as info,hafen=debug"),
    key("task-log.max-bytes", "SIZE", "10M", "Most bytes of one log file of a task that says nothing else"),
    key("task-log.max-files", "N", "5", "Most files of such a log"),
    key("task-log.format", "FORMAT", "json", "What is kept of it: json, plain or none"),
    key("cni.config", "DIR", "/etc/cni/net.d", "Folder of CNI networks"),
    key("cni.plugins", "DIRS", "/opt/cni/bin:/usr/lib/cni", "Folders of CNI plugins, in this order"),
    key("cni.subnet", "CIDR", "10.187.0.0/16", "Addresses of the node's own network"),
    key("reserved.cpu", "CPUS", "0", "Set aside for the system"),
    key("reserved.memory", "SIZE", "0", "Set aside for the system"),
    key("gc.high", "PERCENT", "85", "Images are collected when so much of the disk is used"),
    key("gc.low", "PERCENT", "75", "... until less than this is"),
    key("gc.min-age", "DURATION", "1h", "What was used since then is kept"),
    key("gc.ended-tasks", "DURATION", "1day", "Tasks that ended longer ago are forgotten"),
    key("pressure.interval", "DURATION", "15s", "Between two looks for tasks that are held back: throttled, or short of memory"),
    key("attributes", "NAMES", "", "What is said of this node for constraints, as disk=ssd,gpu=none"),
    key("domains", "NAMES", "", "Where it stands, from the widest to the narrowest, as zone=z1,rack=r7"),
    key("master.urls", "URLS", "", "Masters to obey: https://HOST:PORT, http://HOST:PORT, unix:///PATH; the first that answers"),
    key("master.cert", "FILE", "", "Certificate of the node for its master, in PEM, with those between it and its authority"),
    key("master.key", "FILE", "", "Its key"),
    key("master.ca", "FILE", "", "Who signs the certificates of masters"),
    key("master.token", "TOKEN", "", "To get a certificate with, the first time"),
    key("master.token-file", "FILE", "", "The same, in a file"),
    key("master.authority", "SHA256", "", "Of the certificate of the authority that signs masters and nodes; goes with a token"),
    key("master.insecure", "BOOL", "false", "Speak with masters of other machines without TLS: for a trial"),
    key("master.drain-within", "DURATION", "", "What has not moved away so long after SIGUSR1 is stopped [default: it waits]"),
    key("otlp", "URL", "", "Send traces to this OpenTelemetry collector (OTLP over gRPC), as http://127.0.0.1:4317"),
    key("tcp.address", "IP:PORT", "", "Serve there, too, with mutual TLS"),
    key("tcp.cert", "FILE", "", "Certificate of the node, in PEM, with those between it and its authority"),
    key("tcp.key", "FILE", "", "Its key"),
    key("tcp.client-ca", "FILE", "", "Who signs the certificates of clients"),
];

impl Key {
    #[must_use]
    pub fn find(path: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.path == path)
    }

    /// `log.level` is `HAFEN_LOG_LEVEL`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("HAFEN_{}", self.path.to_ascii_uppercase().replace(['.', '-'], "_"))
    }

    /// `log.level` is `--log-level`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.path.replace('.', "-")
    }

    /// Between the parts of a list.
    #[must_use]
    pub fn separator(&self) -> &'static str {
        if self.path == "cni.plugins" { ":" } else { "," }
    }

    /// The program has these for all of its commands.
    #[must_use]
    pub fn is_global(&self) -> bool {
        matches!(self.path, "images" | "volumes")
    }
}
