//! `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` of a task.

use std::fmt::Write;
use std::fs::{DirBuilder, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hafen_protocol::v1;
use hafen_sys::file::replace;
use hafen_sys::{CallError, Context};

use crate::failure::{Failure, Kind};

/// Where the node says how names are found.
pub const NODE_RESOLV_CONF: &str = "/etc/resolv.conf";
/// The name servers behind systemd-resolved, whose own address on the node's loopback no other network reaches.
pub const RESOLVED_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// A field of [`v1::Network`] that cannot be written to a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("network.{field}: {reason}")]
pub struct NameError {
    pub field: String,
    pub reason: String,
}

/// What the three files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    pub hostname: String,
    pub hosts: String,
    pub resolv_conf: String,
}

/// The three files, to be bound over those of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub hostname: PathBuf,
    pub hosts: PathBuf,
    pub resolv_conf: PathBuf,
}

/// What is known beside the request.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// If the request names no host.
    pub hostname: &'a str,
    /// Of the task.
    pub addresses: &'a [IpAddr],
    /// Text of a resolv.conf of the node.
    pub node: &'a str,
    /// Name servers that plugins have told, before the node's.
    pub plugin_dns: &'a [String],
    /// The task sees the node's loopback.
    pub host_network: bool,
}

/// The text of the files.
///
/// # Errors
/// Names the field.
pub fn text(network: &v1::Network, known: &Known<'_>) -> Result<Files, NameError> {
    validate(network)?;
    let hostname =
        if network.hostname.is_empty() { known.hostname } else { network.hostname.as_str() };
    check("hostname", host_name(hostname, 64))?;
    Ok(Files {
        hostname: format!("{hostname}\n"),
        hosts: hosts(network, hostname, known.addresses),
        resolv_conf: resolv_conf(network, known),
    })
}

/// Whether all names and addresses are such.
///
/// # Errors
/// Names the field.
pub fn validate(network: &v1::Network) -> Result<(), NameError> {
    if !network.hostname.is_empty() {
        check("hostname", host_name(&network.hostname, 64))?;
    }
    for (at, server) in network.dns.iter().enumerate() {
        check(&format!("dns[{at}]"), address(server))?;
    }
    for (at, domain) in network.dns_search.iter().enumerate() {
        let domain = domain.strip_suffix('.').unwrap_or(domain);
        check(&format!("dns_search[{at}]"), host_name(domain, 253))?;
    }
    for (name, of) in &network.hosts {
        check(&format!("hosts[{name:?}]"), host_name(name, 253).and_then(|()| address(of)))?;
    }
    Ok(())
}

fn check(field: &str, found: Result<(), String>) -> Result<(), NameError> {
    found.map_err(|reason| NameError { field: field.to_owned(), reason })
}

fn address(text: &str) -> Result<(), String> {
    let is_one = text.parse::<IpAddr>().is_ok();
    is_one.then_some(()).ok_or_else(|| format!("{text:?} is no IP address"))
}

/// Labels of letters, digits, "-" and "_"; `longest` is 64 for sethostname(2) and 253 for DNS.
fn host_name(name: &str, longest: usize) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.chars().all(plain)
    };
    match name.len() <= longest && name.split('.').all(label) {
        true => Ok(()),
        false => Err(format!(
            "{name:?} is no host name: letters, digits, \"-\" and \"_\" with dots between, {longest} at most"
        )),
    }
}

fn hosts(network: &v1::Network, hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let mut line = |address: &str, name: &str| {
        // A string takes everything.
        let _ = writeln!(text, "{address}\t{name}");
    };
    for address in addresses {
        line(&address.to_string(), hostname);
    }
    if addresses.is_empty() {
        line("127.0.1.1", hostname);
    }
    for (name, address) in &network.hosts {
        line(address, name);
    }
    text
}

fn resolv_conf(network: &v1::Network, known: &Known<'_>) -> String {
    let node = |key: &'static str| {
        known.node.lines().filter_map(move |line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(key)).then(|| words.map(str::to_owned).collect::<Vec<_>>())
        })
    };
    let servers = if !network.dns.is_empty() {
        network.dns.clone()
    } else if !known.plugin_dns.is_empty() {
        known.plugin_dns.to_vec()
    } else {
        let all = node("nameserver").filter_map(|words| words.into_iter().next());
        all.filter(|server| known.host_network || !is_loopback(server)).collect()
    };
    let search = if network.dns_search.is_empty() {
        // The last one counts (resolv.conf(5)).
        node("search").next_back().unwrap_or_default()
    } else {
        network.dns_search.clone()
    };
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for words in node("options") {
        let _ = writeln!(text, "options {}", words.join(" "));
    }
    text
}

fn is_loopback(server: &str) -> bool {
    // "fe80::1%eth0" is an address too.
    let plain = server.split('%').next().unwrap_or_default();
    plain.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The node's resolv.conf, or the one that says what is behind systemd-resolved, for networks other than the node's.
///
/// # Errors
/// Names the file; a node without one has no name servers.
pub fn node_resolv_conf(host_network: bool) -> Result<String, CallError> {
    let own = read(Path::new(NODE_RESOLV_CONF))?;
    let local = |line: &str| {
        line.strip_prefix("nameserver").is_none_or(|server| is_loopback(server.trim()))
    };
    if host_network || !own.lines().all(local) {
        return Ok(own);
    }
    let behind = read(Path::new(RESOLVED_RESOLV_CONF))?;
    Ok(if behind.is_empty() { own } else { behind })
}

fn read(path: &Path) -> Result<String, CallError> {
    match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        answer => answer.call(|| format!("read {}", path.display())),
    }
}

/// Write the files into a folder, which is made if it is missing.
///
/// # Errors
/// Names the file.
pub fn write(folder: &Path, files: &Files) -> Result<Written, CallError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .call(|| format!("create {}", folder.display()))?;
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        replace(&path, text.as_bytes(), false)?;
        // Whatever our umask is: the task may be any user.
        std::fs::set_permissions(&path, Permissions::from_mode(0o644))
            .call(|| format!("chmod {}", path.display()))?;
        Ok(path)
    };
    Ok(Written {
        hostname: put("hostname", &files.hostname)?,
        hosts: put("hosts", &files.hosts)?,
        resolv_conf: put("resolv.conf", &files.resolv_conf)?,
    })
}

impl From<NameError> for Failure {
    fn from(e: NameError) -> Self {
        Self::of(Kind::Invalid, &e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "# of the node\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n\
        search old.example\nsearch a.example b.example\noptions edns0 trust-ad\n";

    fn known(addresses: &[IpAddr]) -> Known<'_> {
        Known { hostname: "task-1", addresses, node: NODE, plugin_dns: &[], host_network: false }
    }

    #[test]
    fn the_node_says_what_the_request_does_not() {
        let files = text(&v1::Network::default(), &known(&[])).unwrap();
        assert_eq!(files.hostname, "task-1\n");
        assert_eq!(
            files.resolv_conf,
            "nameserver 192.0.2.1\nsearch a.example b.example\noptions edns0 trust-ad\n"
        );
        assert!(files.hosts.ends_with("127.0.1.1\ttask-1\n"), "{}", files.hosts);
        let host = Known { host_network: true, ..known(&[]) };
        let files = text(&v1::Network::default(), &host).unwrap();
        assert!(files.resolv_conf.starts_with("nameserver 127.0.0.53\n"));
    }

    #[test]
    fn the_request_comes_first() {
        let network = v1::Network {
            hostname: "web.example".to_owned(),
            dns: vec!["2001:db8::1".to_owned()],
            dns_search: vec!["c.example.".to_owned()],
            hosts: [("db".to_owned(), "10.0.0.9".to_owned())].into(),
            ..v1::Network::default()
        };
        let files = text(&network, &known(&["10.88.0.2".parse().unwrap()])).unwrap();
        assert_eq!(files.hostname, "web.example\n");
        assert!(files.hosts.ends_with("10.88.0.2\tweb.example\n10.0.0.9\tdb\n"), "{}", files.hosts);
        assert!(files.resolv_conf.starts_with("nameserver 2001:db8::1\nsearch c.example.\n"));
    }

    #[test]
    fn nothing_adds_a_line() {
        let bad = |network: v1::Network| text(&network, &known(&[])).unwrap_err().field;
        let default = v1::Network::default;
        assert_eq!(bad(v1::Network { hostname: "a\nb".to_owned(), ..default() }), "hostname");
        assert_eq!(bad(v1::Network { hostname: "a".repeat(65), ..default() }), "hostname");
        assert_eq!(bad(v1::Network { dns: vec!["x".to_owned()], ..default() }), "dns[0]");
        let search = vec!["a b".to_owned()];
        assert_eq!(bad(v1::Network { dns_search: search, ..default() }), "dns_search[0]");
        let hosts = [("a".to_owned(), "1.1.1.1\n2.2.2.2 b".to_owned())].into();
        assert_eq!(bad(v1::Network { hosts, ..default() }), "hosts[\"a\"]");
    }

    #[test]
    fn files_are_written_and_replaced() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("etc");
        let files = text(&v1::Network::default(), &known(&[])).unwrap();
        write(&folder, &files).unwrap();
        let written = write(&folder, &files).unwrap();
        assert_eq!(std::fs::read_to_string(written.hosts).unwrap(), files.hosts);
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 3);
    }
}
