//! What was typed to what a node is asked for, all problems together.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use hafen::amount;
use hafen_protocol::v1::{self, check, mount, network, restart_policy, root};
use hafen_spec::Problems;

use super::args::{Pull, SpecArgs};
use super::security::security;

/// What words may lead to: our folder, our variables, our files.
pub(super) struct Around<'a> {
    pub(super) cwd: &'a Path,
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
    pub(super) read: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
}

pub(super) fn spec(args: &SpecArgs, around: &Around<'_>) -> Result<v1::TaskSpec, Problems> {
    let mut problems = Problems::default();
    let p = &mut problems;
    let (root, command) = root(args, p);
    let spec = v1::TaskSpec {
        root,
        command,
        entrypoint: args.entrypoint.clone(),
        env: env(args, around, p),
        user: args.user.clone().unwrap_or_default(),
        cwd: args.workdir.clone().unwrap_or_default(),
        resources: args.limits.resources(p),
        mounts: mounts(args, around, p),
        network: network(args, p),
        secrets: secrets(args, around, p),
        restart: args.restart.as_deref().and_then(|text| restart(text, p)),
        checks: check(args, p).into_iter().collect(),
        kill: kill(args, p),
        max_run_time: duration("--max-run-time", args.max_run_time.as_deref(), p),
        labels: labels(args),
        log: log(args, p),
        terminal: args.tty,
        stdin: args.interactive,
        remove: args.rm,
        security: security(&args.security, around, p),
        ..v1::TaskSpec::default()
    };
    problems.into_result(spec)
}

fn root(args: &SpecArgs, problems: &mut Problems) -> (Option<v1::Root>, Vec<String>) {
    let mut words = args.words.clone();
    let kind = match args.rootfs.as_deref() {
        Some("host") => Some(root::Kind::Host(true)),
        Some(folder) if folder.starts_with('/') => Some(root::Kind::Rootfs(folder.to_owned())),
        Some(other) => {
            problems.add("--rootfs", format!("{other:?} is neither an absolute path nor \"host\""));
            None
        }
        None if words.is_empty() => {
            problems.add(
                "IMAGE",
                "is missing: what is the task to stand on? Say an image, --rootfs or --file",
            );
            None
        }
        None => Some(root::Kind::Image(words.remove(0))),
    };
    if args.rootfs.is_some() && words.is_empty() {
        problems.add("COMMAND", "is missing: without an image nothing says what is to run");
    }
    let pull = match args.pull {
        Pull::Missing => v1::Pull::Unspecified,
        Pull::Always => v1::Pull::Always,
        Pull::Never => v1::Pull::Never,
    };
    let root =
        v1::Root { kind, read_only: args.read_only, upper: String::new(), pull: pull.into() };
    (Some(root), words)
}

/// Files first: what is said by itself goes before.
fn env(args: &SpecArgs, around: &Around<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for path in &args.env_file {
        let flag = format!("--env-file {}", path.display());
        match (around.read)(path).map(String::from_utf8) {
            Ok(Ok(text)) => text
                .lines()
                .map(str::trim_start)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .for_each(|line| variable(&flag, line, around, &mut all, problems)),
            Ok(Err(_)) => problems.add(flag, "is no UTF-8"),
            Err(e) => problems.add(flag, format!("read: {e}")),
        }
    }
    for text in &args.env {
        variable("--env", text, around, &mut all, problems);
    }
    all
}

fn variable(
    flag: &str,
    text: &str,
    around: &Around<'_>,
    all: &mut BTreeMap<String, String>,
    problems: &mut Problems,
) {
    match text.split_once('=') {
        Some(("", _)) => problems.add(flag, format!("{text:?} has no name")),
        Some((name, value)) => {
            all.insert(name.to_owned(), value.to_owned());
        }
        // Without a value it has ours, and if we have none, it is left out.
        None => {
            if let Some(value) = (around.variable)(text) {
                all.insert(text.to_owned(), value);
            }
        }
    }
}

fn mounts(args: &SpecArgs, around: &Around<'_>, problems: &mut Problems) -> Vec<v1::Mount> {
    let volumes: Vec<_> =
        args.volume.iter().filter_map(|text| volume(text, around, problems)).collect();
    let tmpfs = args.tmpfs.iter().filter_map(|text| tmpfs(text, problems));
    volumes.into_iter().chain(tmpfs).collect()
}

fn volume(text: &str, around: &Around<'_>, problems: &mut Problems) -> Option<v1::Mount> {
    const FLAG: &str = "--volume";
    let mut parts = text.splitn(3, ':');
    let (source, destination) =
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if source.is_empty() || !destination.starts_with('/') {
        problems.add(
            FLAG,
            format!("{text:?} is not SOURCE:DESTINATION[:OPTIONS] with an absolute destination"),
        );
        return None;
    }
    let is_path = source.starts_with(['/', '.']) || source.contains('/');
    let source = if is_path {
        // Without the "." of "./data".
        let path: PathBuf = around.cwd.join(source).components().collect();
        mount::Source::Host(path.display().to_string())
    } else {
        mount::Source::Volume(source.to_owned())
    };
    Some(v1::Mount {
        source: Some(source),
        destination: destination.to_owned(),
        options: options(parts.next()),
    })
}

fn options(text: Option<&str>) -> Vec<String> {
    text.into_iter()
        .flat_map(|text| text.split(','))
        .filter(|o| !o.is_empty())
        .map(str::to_owned)
        .collect()
}

fn tmpfs(text: &str, problems: &mut Problems) -> Option<v1::Mount> {
    const FLAG: &str = "--tmpfs";
    let (destination, words) = text.split_once(':').map_or((text, None), |(d, o)| (d, Some(o)));
    if !destination.starts_with('/') {
        problems.add(
            FLAG,
            format!("{text:?} is not DESTINATION[:OPTIONS] with an absolute destination"),
        );
        return None;
    }
    let (sizes, options): (Vec<_>, Vec<_>) =
        options(words).into_iter().partition(|o| o.starts_with("size="));
    let mut size = 0;
    if let Some(text) = sizes.last().and_then(|s| s.strip_prefix("size=")) {
        match amount::bytes(text) {
            Some(bytes) => size = bytes,
            None => problems.add(FLAG, format!("size={text} is no size, as 64M")),
        }
    }
    let source = Some(mount::Source::Tmpfs(size));
    Some(v1::Mount { source, destination: destination.to_owned(), options })
}

fn network(args: &SpecArgs, problems: &mut Problems) -> Option<v1::Network> {
    use network::Mode;
    let (mode, name) = match args.network.as_deref() {
        None if args.publish.is_empty() => (Mode::Unspecified, ""),
        None | Some("default") => (Mode::Cni, ""),
        Some("none") => (Mode::None, ""),
        Some("host") => (Mode::Host, ""),
        Some(name) => (Mode::Cni, name),
    };
    if !args.publish.is_empty() && mode != Mode::Cni {
        problems.add(
            "--publish",
            format!("means nothing with --network {}", args.network.as_deref().unwrap_or_default()),
        );
    }
    let network = v1::Network {
        mode: mode.into(),
        name: name.to_owned(),
        ports: args.publish.iter().filter_map(|text| port(text, problems)).collect(),
        hostname: args.hostname.clone().unwrap_or_default(),
        dns: args.dns.clone(),
        dns_search: Vec::new(),
        hosts: hosts(args, problems),
    };
    (network != v1::Network::default()).then_some(network)
}

fn hosts(args: &SpecArgs, problems: &mut Problems) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for text in &args.add_host {
        match text.split_once(':') {
            Some((name, ip)) if !name.is_empty() && ip.parse::<IpAddr>().is_ok() => {
                all.insert(name.to_owned(), ip.to_owned());
            }
            _ => problems.add("--add-host", format!("{text:?} is not NAME:IP")),
        }
    }
    all
}

fn port(text: &str, problems: &mut Problems) -> Option<v1::Port> {
    let found = parse_port(text);
    if found.is_none() {
        problems.add("--publish", format!("{text:?} is not [[IP:]PORT:]PORT[/tcp|udp|sctp]"));
    }
    found
}

fn parse_port(text: &str) -> Option<v1::Port> {
    let (address, protocol) = text.split_once('/').unwrap_or((text, ""));
    if !["", "tcp", "udp", "sctp"].contains(&protocol) {
        return None;
    }
    let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0).map(u32::from);
    let (before, container) = address.rsplit_once(':').unwrap_or(("", address));
    // The address of IPv6 has colons of its own, and stands in brackets.
    let (host_ip, host) = match before.rsplit_once(':') {
        Some((ip, host)) if before.starts_with('[') && !before.ends_with(']') => {
            (ip.strip_prefix('[')?.strip_suffix(']')?, host)
        }
        Some((ip, host)) => (ip, host),
        None => ("", before),
    };
    if !host_ip.is_empty() {
        host_ip.parse::<IpAddr>().ok()?;
    }
    let host = if host.is_empty() { 0 } else { number(host)? };
    Some(v1::Port {
        host,
        container: number(container)?,
        protocol: protocol.to_owned(),
        host_ip: host_ip.to_owned(),
    })
}

fn secrets(args: &SpecArgs, around: &Around<'_>, problems: &mut Problems) -> Vec<v1::Secret> {
    args.secret
        .iter()
        .filter_map(|text| secret(text, around).map_err(|e| problems.add("--secret", e)).ok())
        .collect()
}

fn secret(text: &str, around: &Around<'_>) -> Result<v1::Secret, String> {
    let wrong = || format!("{text:?} is neither [NAME=]FILE:DESTINATION nor src=FILE,dst=PATH");
    let mut secret = v1::Secret::default();
    let mut file = String::new();
    if text.starts_with("src=") || text.contains(",src=") || text.contains(",dst=") {
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(wrong)?;
            let number = || value.parse::<u32>().map_err(|_| format!("{part:?} is no number"));
            match name {
                "src" | "source" => value.clone_into(&mut file),
                "dst" | "destination" | "target" => value.clone_into(&mut secret.destination),
                "mode" => {
                    let mode = u32::from_str_radix(value, 8);
                    secret.mode = mode.map_err(|_| format!("{part:?} is no mode, as 0400"))?;
                }
                "uid" => secret.uid = number()?,
                "gid" => secret.gid = number()?,
                _ => return Err(wrong()),
            }
        }
    } else {
        let (source, destination) = text.rsplit_once(':').ok_or_else(wrong)?;
        // The name is for people: what counts is where it appears.
        let source = source.split_once('=').map_or(source, |(_, source)| source);
        source.clone_into(&mut file);
        destination.clone_into(&mut secret.destination);
    }
    if file.is_empty() || !secret.destination.starts_with('/') {
        return Err(wrong());
    }
    secret.content = (around.read)(Path::new(&file)).map_err(|e| format!("read {file}: {e}"))?;
    Ok(secret)
}

fn restart(text: &str, problems: &mut Problems) -> Option<v1::RestartPolicy> {
    use restart_policy::When;
    let (word, most) = text.split_once(':').map_or((text, None), |(w, n)| (w, Some(n)));
    let (when, most) = match (word, most.map(str::parse)) {
        ("no", None) => (When::Never, None),
        ("always", None) => (When::Always, None),
        ("on-failure", None) => (When::OnFailure, None),
        ("on-failure", Some(Ok(most))) => (When::OnFailure, Some(most)),
        _ => {
            problems.add("--restart", format!("{text:?} is none of no, on-failure[:N] and always"));
            return None;
        }
    };
    Some(v1::RestartPolicy { when: when.into(), most, ..Default::default() })
}

fn check(args: &SpecArgs, problems: &mut Problems) -> Option<v1::Check> {
    let command = args.health_cmd.as_ref()?;
    let args_of_shell = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
    Some(v1::Check {
        name: "health".to_owned(),
        kind: check::Kind::Health.into(),
        probe: Some(check::Probe::Command(check::Command { args: args_of_shell })),
        interval: duration("--health-interval", args.health_interval.as_deref(), problems),
        timeout: duration("--health-timeout", args.health_timeout.as_deref(), problems),
        initial_delay: duration(
            "--health-start-period",
            args.health_start_period.as_deref(),
            problems,
        ),
        failures: args.health_retries.unwrap_or_default(),
        successes: 0,
    })
}

fn kill(args: &SpecArgs, problems: &mut Problems) -> Option<v1::KillPolicy> {
    let grace = duration("--stop-timeout", args.stop_timeout.as_deref(), problems);
    let policy = v1::KillPolicy { signal: args.stop_signal.clone().unwrap_or_default(), grace };
    (policy != v1::KillPolicy::default()).then_some(policy)
}

fn log(args: &SpecArgs, problems: &mut Problems) -> Option<v1::LogPolicy> {
    let text = args.log_max_size.as_deref();
    let max_bytes = text.and_then(amount::bytes).filter(|bytes| *bytes > 0);
    if let (Some(text), None) = (text, max_bytes) {
        problems.add("--log-max-size", format!("{text:?} is no size, as 10M"));
    }
    if args.log_max_files == Some(0) {
        problems.add("--log-max-files", "0 is too few");
    }
    let (max_bytes, max_files) =
        (max_bytes.unwrap_or_default(), args.log_max_files.unwrap_or_default());
    let policy = v1::LogPolicy { max_bytes, max_files, ..Default::default() };
    (policy != v1::LogPolicy::default()).then_some(policy)
}

fn duration(
    flag: &str,
    text: Option<&str>,
    problems: &mut Problems,
) -> Option<pbjson_types::Duration> {
    let text = text?;
    let value = amount::duration(text);
    if value.is_none() {
        problems.add(flag, format!("{text:?} is no duration, as 90, 90s or 2m"));
    }
    value.map(Into::into)
}

fn labels(args: &SpecArgs) -> BTreeMap<String, String> {
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    args.label.iter().map(pair).collect()
}
