//! Texts to values, all problems together.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd;

use super::{
    Cni, Config, Gc, Given, Group, Joining, Log, LogFormat, Master, MasterFiles, Pressure, Problem,
    Problems, Reserved, Source, TaskLog, TaskLogFormat, Tcp, Token,
};
use crate::address::Address;
use crate::amount;

/// Reads keys, and remembers what was wrong.
struct Reader<'a> {
    given: &'a Given,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn complain(&mut self, key: &str, what: impl Into<String>) {
        let source = self.given.values.get(key).map_or(Source::Default, |raw| raw.source.clone());
        self.problems.push(Problem { key: key.to_owned(), source, what: what.into() });
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.given.values.get(key).map(|raw| raw.text.as_str()).filter(|text| !text.is_empty())
    }

    /// A value that `meaning` knows, or a problem that says what it had to be.
    fn read<T>(
        &mut self,
        key: &str,
        wanted: &str,
        meaning: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(key)?.to_owned();
        let value = meaning(&text);
        if value.is_none() {
            self.complain(key, format!("{text:?} is no {wanted}"));
        }
        value
    }

    fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.read(key, "absolute path", |text| {
            Some(PathBuf::from(text)).filter(|path| path.is_absolute())
        })
    }

    fn name(&mut self, key: &str) -> Option<String> {
        self.read(key, "name: letters, digits, '_', '-' and '.', 63 at most", |text| {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
            let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
            (first && text.len() <= 63 && text.bytes().all(fits)).then(|| text.to_owned())
        })
    }

    fn bytes(&mut self, key: &str) -> u64 {
        self.read(key, "size, as 64M", amount::bytes).unwrap_or_default()
    }

    fn duration(&mut self, key: &str) -> Duration {
        self.read(key, DURATION, amount::duration).unwrap_or_default()
    }

    fn percent(&mut self, key: &str) -> u8 {
        self.read(key, "percentage from 0 to 100", |text| text.parse().ok().filter(|n| *n <= 100))
            .unwrap_or_default()
    }
}

const DURATION: &str = "duration, as 90s or 12h";

pub(super) fn resolve(given: &Given) -> Result<Config, Problems> {
    let mut reader = Reader { given, problems: given.problems.clone() };
    let r = &mut reader;
    let state = r.path("state").unwrap_or_default();
    let run = r.path("run").unwrap_or_default();
    let config = Config {
        socket: socket(r, &run),
        group: group(r),
        name: r.name("name").or_else(|| host_name(r)).unwrap_or_default(),
        instance: r.name("instance").unwrap_or_default(),
        runtime: runtime(r),
        images: r.path("images").unwrap_or_else(|| state.join("images")),
        volumes: r.path("volumes").unwrap_or_else(|| state.join("volumes")),
        log: log(r),
        task_log: task_log(r),
        cni: cni(r),
        reserved: Reserved {
            cpu_milli: r
                .read("reserved.cpu", "number of CPUs, as 0.5", amount::cpus)
                .unwrap_or_default(),
            memory: r.bytes("reserved.memory"),
        },
        gc: gc(r),
        pressure: pressure(r),
        attributes: pairs(r, "attributes", MOST_ATTRIBUTES),
        domains: pairs(r, "domains", MOST_DOMAINS),
        master: master(r),
        otlp: otlp(r),
        tcp: tcp(r),
        state,
        run,
    };
    if reader.problems.is_empty() { Ok(config) } else { Err(Problems(reader.problems)) }
}

/// Longer ones do not fit into the address of a socket (unix(7)).
const LONGEST_SOCKET: usize = 107;

fn socket(r: &mut Reader<'_>, run: &Path) -> PathBuf {
    let path = r.path("socket").unwrap_or_else(|| run.join("agent.sock"));
    if path.as_os_str().len() > LONGEST_SOCKET {
        r.complain(
            "socket",
            format!("is longer than {LONGEST_SOCKET} bytes, the most for a socket"),
        );
    }
    path
}

fn group(r: &mut Reader<'_>) -> Option<Group> {
    let text = r.text("group")?.to_owned();
    let found = text.parse().ok().or_else(|| gid(&text));
    if found.is_none() {
        let what =
            format!("there is no group {text:?} in /etc/group: make it with \"groupadd {text}\"");
        r.complain("group", what);
    }
    Some(Group { gid: found?, name: text })
}

/// From group(5) itself: NSS wants to load libraries, and a static program cannot. Groups that are elsewhere have a
/// number.
fn gid(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|line| line.first() == Some(&name))?.get(2)?.parse().ok()
}

fn host_name(r: &mut Reader<'_>) -> Option<String> {
    if r.text("name").is_some() {
        return None;
    }
    match unistd::gethostname().map(std::ffi::OsString::into_string) {
        Ok(Ok(name)) if !name.is_empty() => Some(name),
        _ => {
            r.complain("name", "the host has no name that can be used: say one");
            None
        }
    }
}

const RUNTIME: &str = "hafen-oci";

fn runtime(r: &mut Reader<'_>) -> PathBuf {
    if r.text("runtime").is_none() {
        let found = find_runtime();
        if found.is_none() {
            r.complain(
                "runtime",
                "hafen-oci is neither beside this program nor in PATH: say where it is",
            );
        }
        return found.unwrap_or_default();
    }
    let path = r.path("runtime").unwrap_or_default();
    if !path.as_os_str().is_empty() && !path.is_file() {
        r.complain("runtime", format!("there is no file {}", path.display()));
    }
    path
}

/// Beside our own program, or where the shell would find it.
#[must_use]
pub fn find_runtime() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(RUNTIME));
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let in_path =
        std::env::split_paths(&folders).filter(|f| f.is_absolute()).map(|f| f.join(RUNTIME));
    beside.into_iter().chain(in_path).find(|path| path.is_file())
}

fn log(r: &mut Reader<'_>) -> Log {
    let format = r.read("log.format", "format: text, json or journald", |text| match text {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        "journald" => Some(LogFormat::Journald),
        _ => None,
    });
    let level = r.read("log.level", "level or filter, as info or info,hafen=debug", |text| {
        let filter = tracing_subscriber::EnvFilter::builder().parse(text);
        // The library takes an unknown word for the name of a module.
        let word = text.split([',', '=']).next().unwrap_or(text);
        let known = text.contains(['=', ','])
            || ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
        filter.ok().filter(|_| known).map(|_| text.to_owned())
    });
    Log { format: format.unwrap_or(LogFormat::Text), level: level.unwrap_or_default() }
}

fn task_log(r: &mut Reader<'_>) -> TaskLog {
    let format = r.read("task-log.format", "format: json, plain or none", |text| match text {
        "json" => Some(TaskLogFormat::Json),
        "plain" => Some(TaskLogFormat::Plain),
        "none" => Some(TaskLogFormat::None),
        _ => None,
    });
    let max_files =
        r.read("task-log.max-files", "number above 0", |text| text.parse().ok().filter(|n| *n > 0));
    TaskLog {
        max_bytes: r.bytes("task-log.max-bytes"),
        max_files: max_files.unwrap_or_default(),
        format: format.unwrap_or(TaskLogFormat::Json),
    }
}

fn cni(r: &mut Reader<'_>) -> Cni {
    let plugins = r.read("cni.plugins", "list of absolute paths", |text| {
        let paths: Vec<PathBuf> = text.split(':').map(PathBuf::from).collect();
        paths.iter().all(|path| path.is_absolute()).then_some(paths)
    });
    // The built-in network is one of IPv4.
    let subnet = r.read("cni.subnet", "subnet of IPv4, as 10.187.0.0/16", |text| {
        const LONGEST: u8 = 30;
        let (address, length) = text.split_once('/')?;
        let address: Ipv4Addr = address.parse().ok()?;
        let length: u8 = length.parse().ok()?;
        (length > 0 && length <= LONGEST).then_some((address, length))
    });
    Cni {
        config: r.path("cni.config").unwrap_or_default(),
        plugins: plugins.unwrap_or_default(),
        subnet: subnet.unwrap_or((Ipv4Addr::UNSPECIFIED, 0)),
    }
}

fn gc(r: &mut Reader<'_>) -> Gc {
    let (high, low) = (r.percent("gc.high"), r.percent("gc.low"));
    if low > high {
        r.complain("gc.low", format!("{low} is more than gc.high, {high}"));
    }
    Gc { high, low, min_age: r.duration("gc.min-age"), ended_tasks: r.duration("gc.ended-tasks") }
}

/// More often would be a load of its own.
const SHORTEST_LOOK: Duration = Duration::from_millis(100);

fn pressure(r: &mut Reader<'_>) -> Pressure {
    let interval = r.read("pressure.interval", "duration of 100ms or longer", |text| {
        amount::duration(text).filter(|interval| *interval >= SHORTEST_LOOK)
    });
    Pressure { interval: interval.unwrap_or_default() }
}

/// Of docs/protocol.md; three attributes are the agent's own.
const MOST_ATTRIBUTES: usize = 125;
const MOST_DOMAINS: usize = 8;

/// NAME=VALUE, in the order in which they are said.
fn pairs(r: &mut Reader<'_>, key: &str, most: usize) -> Vec<(String, String)> {
    const WANTED: &str = "list of NAME=VALUE, each name of 63 bytes at most, each value of 255";
    let pair = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let fits = !name.is_empty() && name.len() <= 63 && value.len() <= 255;
        fits.then(|| (name.to_owned(), value.to_owned()))
    };
    let all: Option<Vec<_>> =
        r.read(key, WANTED, |text| text.split(',').map(|part| pair(part.trim())).collect());
    let all = all.unwrap_or_default();
    if all.len() > most {
        r.complain(key, format!("has {} parts, and {most} at most are told", all.len()));
    }
    let mut names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        r.complain(key, format!("has {:?} twice", twice[0]));
    }
    all
}

fn master(r: &mut Reader<'_>) -> Option<Master> {
    const OTHERS: [&str; 7] = [
        "master.cert",
        "master.key",
        "master.ca",
        "master.token",
        "master.token-file",
        "master.authority",
        "master.drain-within",
    ];
    const WANTED: &str = "list of https://HOST:PORT, http://HOST:PORT and unix:///PATH";
    if r.text("master.urls").is_none() {
        for key in OTHERS {
            if r.text(key).is_some() {
                r.complain(key, "means nothing without master.urls");
            }
        }
        return None;
    }
    let urls: Option<Vec<Address>> = r.read("master.urls", WANTED, |text| {
        text.split(',').map(|part| part.trim().parse().ok()).collect()
    });
    let insecure = r.read("master.insecure", "true or false", |text| text.parse().ok());
    let master = Master {
        urls: urls?,
        files: master_files(r),
        joining: joining(r),
        insecure: insecure.unwrap_or_default(),
        drain_within: r.read("master.drain-within", DURATION, amount::duration),
    };
    let open = master.urls.iter().find(|url| !master.insecure && url.is_open());
    if let Some(url) = open {
        let what =
            format!("{url} is another machine: say https://, or master.insecure for a trial");
        r.complain("master.urls", what);
    }
    Some(master)
}

/// All three or none: without them the node joins, or has joined before.
fn master_files(r: &mut Reader<'_>) -> Option<MasterFiles> {
    const FILES: [&str; 3] = ["master.cert", "master.key", "master.ca"];
    if FILES.iter().all(|key| r.text(key).is_none()) {
        return None;
    }
    let [cert, key, ca] = FILES.map(|key| {
        if r.text(key).is_none() {
            r.complain(key, "is missing: certificate, key and authority go together");
        }
        r.path(key)
    });
    Some(MasterFiles { cert: cert?, key: key?, ca: ca? })
}

fn joining(r: &mut Reader<'_>) -> Option<Joining> {
    let text = r.text("master.token").map(|token| Token::Text(token.to_owned()));
    let file = r.path("master.token-file").map(Token::File);
    let authority = r.read("master.authority", "SHA-256: 64 hexadecimal digits", sha256);
    let token = match (text, file) {
        (Some(_), Some(_)) => {
            r.complain("master.token-file", "is said beside master.token: one of them will do");
            return None;
        }
        (text, file) => text.or(file),
    };
    if token.is_some() && r.text("master.authority").is_none() {
        let what =
            "is missing: whoever gave the token has said it, so that nobody else gets the token";
        r.complain("master.authority", what);
    }
    Some(Joining { token: token?, authority: authority? })
}

fn sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// All of it or nothing: there is no TCP without TLS.
fn otlp(r: &mut Reader<'_>) -> Option<String> {
    let is_url = |text: &str| {
        let host = text.strip_prefix("http://").or(text.strip_prefix("https://"));
        host.filter(|host| !host.is_empty()).map(|_| text.to_owned())
    };
    r.text("otlp")?;
    r.read("otlp", "URL, as http://127.0.0.1:4317", is_url)
}

fn tcp(r: &mut Reader<'_>) -> Option<Tcp> {
    const FILES: [&str; 3] = ["tcp.cert", "tcp.key", "tcp.client-ca"];
    let Some(text) = r.text("tcp.address").map(str::to_owned) else {
        for key in FILES {
            if r.text(key).is_some() {
                r.complain(key, "means nothing without tcp.address");
            }
        }
        return None;
    };
    let address = text.parse().ok();
    if address.is_none() {
        r.complain("tcp.address", format!("{text:?} is no IP:PORT, as 0.0.0.0:7443"));
    }
    let [cert, key, client_ca] = FILES.map(|key| {
        if r.text(key).is_none() {
            r.complain(key, "is missing: TCP is served with mutual TLS only");
        }
        r.path(key)
    });
    Some(Tcp { address: address?, cert: cert?, key: key?, client_ca: client_ca? })
}
