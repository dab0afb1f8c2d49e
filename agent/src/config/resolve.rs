//! Texts to values, all problems together.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd;

use super::{
    Cni, Config, Gc, Given, Group, Log, LogFormat, Problem, Problems, Reserved, Source, TaskLog,
    TaskLogFormat, Tcp,
};
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
        self.read(key, "duration, as 90s or 12h", amount::duration).unwrap_or_default()
    }

    fn percent(&mut self, key: &str) -> u8 {
        self.read(key, "percentage from 0 to 100", |text| text.parse().ok().filter(|n| *n <= 100))
            .unwrap_or_default()
    }
}

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
