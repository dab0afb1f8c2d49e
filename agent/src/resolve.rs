//! What a task's specification means here: every problem of it at once, or what the node works with.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen_agent_core::{BackOff, Definition, Restart, TaskId};
use hafen_protocol::v1::{self, seccomp::Kind as Calls};
use hafen_spec::rights::{self, Changed};
use hafen_spec::{Problem, Problems, resolve::valid_id, seccomp};
use hafen_sys::signal;
use pbjson_types::Duration as Wire;
use serde_json::{Value, json};

use crate::check::CheckError;
use crate::failure::{Failure, Kind};
use crate::network::files::NameError;

const SECOND: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(10);
const BACK_OFF: BackOff = BackOff {
    first: SECOND,
    most: Duration::from_secs(300),
    forget_after: Duration::from_secs(600),
};
/// Of a log file, where the task does not say.
const LOG_BYTES: u64 = 10 << 20;
const LOG_FILES: u32 = 5;
/// Of a name: a number comes to it, and it becomes part of paths.
const LONGEST_NAME: usize = 63;
/// Of secrets in all.
const MOST_SECRET_BYTES: usize = 1 << 20;
/// Of one word of a command, or one variable: the kernel's bound (execve(2)), less an option of the runtime's before it.
const LONGEST_WORD: usize = (128 << 10) - 64;
/// Of all of them: less than a quarter of the usual limit of a stack, which is the kernel's bound.
const MOST_WORD_BYTES: usize = 3 << 19;
/// What a word takes beside its bytes: a pointer, an end, and an option.
const OF_A_WORD: usize = 16;
/// The kernel's bound of `pids.max`.
const MOST_PIDS: u64 = 4 << 20;
/// In thousandths: far below where the kernel's quota ends.
const MOST_CPU: u64 = 1_000_000_000;
/// The least quota of the kernel, 1 ms of 100.
const LEAST_CPU: u64 = 10;
/// Of a profile of system calls: some ten times those of other engines.
const MOST_PROFILE_BYTES: usize = 128 << 10;
/// Ten thousand years, as proto3 says.
const LONGEST_TIME: u64 = 315_576_000_000;

/// The name of a task, if it can be one.
///
/// # Errors
/// In words.
pub fn name(text: &str) -> Result<TaskId, String> {
    if text.is_empty() || text.len() > LONGEST_NAME {
        return Err(format!("{text:?} is not 1 to {LONGEST_NAME} characters long"));
    }
    valid_id(text)?;
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    // In the name of a container a point comes before the attempt, and in a pod "+" before the task.
    match first && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
        true => Ok(TaskId(text.to_owned())),
        false => Err(format!("{text:?} is not of letters, digits, \"_\", \"-\" and \".\"")),
    }
}

/// What of a specification decides what happens to its task.
///
/// # Errors
/// [`Kind::Invalid`] with every problem.
pub fn definition(spec: &v1::TaskSpec) -> Result<Definition, Failure> {
    let mut problems = Problems::default();
    let definition = Definition {
        restart: restart(spec.restart.as_ref()),
        back_off: back_off(spec.restart.as_ref(), &mut problems),
        grace: optional(
            "kill.grace",
            spec.kill.as_ref().and_then(|k| k.grace.as_ref()),
            &mut problems,
        )
        .unwrap_or(GRACE),
        longest: optional("maxRunTime", spec.max_run_time.as_ref(), &mut problems),
        waits_for_checks: spec.checks.iter().any(is_readiness),
    };
    let _ = optional("stopAfterDisconnect", spec.stop_after_disconnect.as_ref(), &mut problems);
    check(spec, &mut problems);
    problems.into_result(definition).map_err(|e| Failure::new(Kind::Invalid, e.to_string()))
}

fn is_readiness(check: &v1::Check) -> bool {
    check.kind() == v1::check::Kind::Readiness
}

fn restart(policy: Option<&v1::RestartPolicy>) -> Restart {
    use v1::restart_policy::When;
    match policy.map(v1::RestartPolicy::when) {
        Some(When::Always) => Restart::Always,
        Some(When::OnFailure) => Restart::OnFailure { most: policy.and_then(|p| p.most) },
        Some(When::Never | When::Unspecified) | None => Restart::Never,
    }
}

fn back_off(policy: Option<&v1::RestartPolicy>, problems: &mut Problems) -> BackOff {
    let mut take = |field: &str, wire: Option<&Wire>, usual| {
        optional(&format!("restart.{field}"), wire, problems).unwrap_or(usual)
    };
    let first = take("backOff", policy.and_then(|p| p.back_off.as_ref()), BACK_OFF.first);
    let most = policy.and_then(|p| p.back_off_most.as_ref());
    let most = take("backOffMost", most, BACK_OFF.most.max(first));
    let forget = policy.and_then(|p| p.forget_after.as_ref());
    let forget_after = take("forgetAfter", forget, BACK_OFF.forget_after);
    if most < first {
        problems.add("restart.backOffMost", "is less than restart.backOff");
    }
    BackOff { first, most, forget_after }
}

/// A duration of proto3, which may be negative there.
fn optional(field: &str, wire: Option<&Wire>, problems: &mut Problems) -> Option<Duration> {
    let wire = wire?;
    let whole = u64::try_from(wire.seconds).ok();
    match whole.zip(u32::try_from(wire.nanos).ok()) {
        Some((seconds, nanos)) if seconds <= LONGEST_TIME => {
            return Some(Duration::new(seconds, nanos));
        }
        Some(_) => problems.add(field, "is more than ten thousand years"),
        None => problems.add(field, "is negative"),
    }
    None
}

fn check(spec: &v1::TaskSpec, problems: &mut Problems) {
    if !spec.id.is_empty()
        && let Err(why) = name(&spec.id)
    {
        problems.add("id", why);
    }
    check_root(spec, problems);
    check_words(spec, problems);
    for key in spec.labels.keys().filter(|key| key.is_empty() || key.contains(char::is_control)) {
        problems.add("labels", format!("{key:?} is not a name of a label"));
    }
    if !spec.cwd.is_empty() && !spec.cwd.starts_with('/') {
        problems.add("cwd", format!("{:?} is not an absolute path", spec.cwd));
    }
    for (field, text) in [("cwd", &spec.cwd), ("user", &spec.user)] {
        if text.contains(char::is_control) {
            problems.add(field, format!("{text:?} has a control character"));
        }
    }
    if let Some(kill) = spec.kill.as_ref().filter(|kill| !kill.signal.is_empty())
        && signal::number(&kill.signal).is_none()
    {
        problems.add("kill.signal", format!("there is no signal {:?}", kill.signal));
    }
    check_resources(spec.resources.as_ref(), problems);
    if let Some(security) = &spec.security {
        check_security(spec, security, problems);
    }
    for (i, mount) in spec.mounts.iter().enumerate() {
        check_mount(&format!("mounts[{i}]"), mount, problems);
    }
    check_log(spec.log.as_ref(), problems);
    let secret = spec.secrets.iter().map(|secret| secret.content.len()).sum::<usize>();
    if secret > MOST_SECRET_BYTES {
        problems.add("secrets", format!("are {secret} bytes, {MOST_SECRET_BYTES} at most"));
    }
    for (i, secret) in spec.secrets.iter().enumerate() {
        check_destination(&format!("secrets[{i}].destination"), &secret.destination, problems);
    }
    for (i, artifact) in spec.artifacts.iter().enumerate() {
        let field = format!("artifacts[{i}]");
        check_destination(&format!("{field}.destination"), &artifact.destination, problems);
        problems.0.extend(crate::artifact::problem(&field, artifact));
    }
    if let Err(CheckError { field, reason }) = crate::check::validate(&spec.checks) {
        problems.add(field, reason);
    }
    if let Err(e) = crate::secret::validate(&spec.secrets) {
        problems.0.push(e.problem());
    }
    if let Some(network) = &spec.network {
        check_network(network, problems);
    }
}

/// What becomes arguments of programs.
fn check_words(spec: &v1::TaskSpec, problems: &mut Problems) {
    for key in spec.env.keys() {
        if key.is_empty() || key.contains('=') || key.contains(char::is_control) {
            problems.add("env", format!("{key:?} is not a name of a variable"));
        }
    }
    let mut sum = |field: &str, words: &mut dyn Iterator<Item = (usize, &String)>| {
        let mut sum = 0;
        for (length, text) in words {
            if length > LONGEST_WORD {
                problems.add(field, format!("has one of {length} bytes, {LONGEST_WORD} at most"));
            }
            if text.contains('\0') {
                problems.add(field, "has a zero byte, which no program can be given");
            }
            sum += length + OF_A_WORD;
        }
        sum
    };
    let variable = |(key, value): (&String, _)| (key.len() + 1 + String::len(value), value);
    let env = sum("env", &mut spec.env.iter().map(variable));
    let words = spec.command.iter().chain(&spec.entrypoint);
    let command = sum("command", &mut words.map(|word| (word.len(), word)));
    if env + command > MOST_WORD_BYTES {
        let field = if env > command { "env" } else { "command" };
        let words =
            format!("is too much: {MOST_WORD_BYTES} bytes are the most for command and env");
        problems.add(field, words);
    }
}

fn check_network(network: &v1::Network, problems: &mut Problems) {
    if let Err(NameError { field, reason }) = crate::network::files::validate(network) {
        problems.add(format!("network.{field}"), reason);
    }
    if let Err(e) = crate::network::ports::validate(&network.ports) {
        problems.0.push(e.problem());
    }
    if !network.ports.is_empty() && network.mode() != v1::network::Mode::Cni {
        problems
            .add("network.ports", "only a CNI network publishes ports: say network.mode MODE_CNI");
    }
}

fn check_root(spec: &v1::TaskSpec, problems: &mut Problems) {
    use v1::root::Kind as Root;
    let kind = spec.root.as_ref().and_then(|root| root.kind.as_ref());
    match kind {
        None => problems.add("root", "is missing: say image, rootfs or host"),
        Some(Root::Host(false)) => problems.add("root.host", "is false: leave it out"),
        Some(Root::Rootfs(path)) if !path.starts_with('/') => {
            problems.add("root.rootfs", format!("{path:?} is not an absolute path"));
        }
        Some(Root::Image(name)) => {
            if let Err(why) = name.parse::<hafen_spec::image::Reference>() {
                problems.add("root.image", why);
            }
        }
        Some(_) => {}
    }
    if !matches!(kind, Some(Root::Image(_))) && spec.command.is_empty() {
        problems.add("command", "is missing: only an image can say what runs");
    }
    if !matches!(kind, Some(Root::Image(_))) && spec.entrypoint.is_some() {
        problems.add("entrypoint", "is of images only");
    }
    let upper = spec.root.as_ref().map_or("", |root| root.upper.as_str());
    let (medium, size) = upper.split_once(':').map_or((upper, None), |(m, size)| (m, Some(size)));
    let is_size =
        |size| crate::amount::bytes(size).is_some_and(|bytes| (1..=MOST_BYTES).contains(&bytes));
    if !matches!(medium, "" | "tmpfs" | "disk") || !size.is_none_or(is_size) {
        problems.add(
            "root.upper",
            format!("{upper:?} is none of tmpfs, tmpfs:SIZE, disk and disk:SIZE"),
        );
    }
}

/// What a number of bytes can be for the kernel.
const MOST_BYTES: u64 = i64::MAX.cast_unsigned();

fn check_resources(resources: Option<&v1::Resources>, problems: &mut Problems) {
    let Some(resources) = resources else { return };
    let (request, limit) = (resources.request.unwrap_or_default(), resources.limit);
    let limit = limit.unwrap_or_default();
    check_limit("resources.limit", &limit, problems);
    for ((field, request, most), (_, limit, _)) in
        amounts(&request).into_iter().zip(amounts(&limit))
    {
        let field = format!("resources.request.{field}");
        if request.is_some_and(|request| request > most) {
            problems.add(&field, format!("is more than there can be, {most}"));
        }
        if request.zip(limit).is_some_and(|(request, limit)| request > limit) {
            problems.add(field, "is more than the limit");
        }
    }
}

/// Field, value and the most that it can be.
fn amounts(of: &v1::Amounts) -> [(&'static str, Option<u64>, u64); 5] {
    [
        ("cpuMilli", of.cpu_milli, MOST_CPU),
        ("memory", of.memory, MOST_BYTES),
        ("pids", of.pids, MOST_PIDS),
        ("disk", of.disk, MOST_BYTES),
        ("swap", of.swap, MOST_BYTES),
    ]
}

/// Of a task, or of a group.
fn check_limit(path: &str, limit: &v1::Amounts, problems: &mut Problems) {
    for (field, value, most) in amounts(limit) {
        let Some(value) = value else { continue };
        // No swap at all is a limit.
        if value == 0 && field != "swap" {
            problems.add(format!("{path}.{field}"), "is 0: leave it out for no limit");
        }
        if value > most {
            problems.add(format!("{path}.{field}"), format!("is more than there can be, {most}"));
        }
    }
    if limit.cpu_milli.is_some_and(|milli| (1..LEAST_CPU).contains(&milli)) {
        problems.add(
            format!("{path}.cpuMilli"),
            format!("is less than {LEAST_CPU}, the kernel's least"),
        );
    }
    if limit.swap.is_some() && limit.memory.is_none() {
        problems.add(format!("{path}.swap"), format!("needs {path}.memory"));
    }
}

fn check_mount(field: &str, mount: &v1::Mount, problems: &mut Problems) {
    use v1::mount::Source;
    check_destination(&format!("{field}.destination"), &mount.destination, problems);
    match &mount.source {
        None => problems.add(field, "has no source: say host, volume or tmpfs"),
        Some(Source::Host(path)) if !path.starts_with('/') => {
            problems.add(format!("{field}.host"), format!("{path:?} is not an absolute path"));
        }
        Some(Source::Volume(name)) if hafen_rootfs::volumes::valid_name(name).is_err() => {
            problems.add(format!("{field}.volume"), format!("{name:?} is not a name of a volume"));
        }
        Some(Source::Tmpfs(bytes)) if *bytes > MOST_BYTES => {
            problems.add(format!("{field}.tmpfs"), "is more than there can be");
        }
        Some(_) => {}
    }
    // They are told to the runtime in one word.
    let cannot_be = |c: char| c == ':' || c.is_control();
    let host = matches!(&mount.source, Some(Source::Host(path)) if path.contains(cannot_be));
    let cannot_be_in_option = |c: char| c == ',' || cannot_be(c);
    if host
        || mount.destination.contains(cannot_be)
        || mount.options.iter().any(|o| o.contains(cannot_be_in_option))
    {
        problems.add(field, "has a colon, a comma or a control character where there can be none");
    }
}

fn check_security(spec: &v1::TaskSpec, security: &v1::Security, problems: &mut Problems) {
    if let Err(wrong) = capabilities(spec) {
        let place =
            |p: Problem| Problem { field: format!("security.capabilities.{}", p.field), ..p };
        problems.0.extend(wrong.0.into_iter().map(place));
    }
    check_seccomp(spec, problems);
    for (i, device) in security.devices.iter().enumerate() {
        let field = format!("security.devices[{i}]");
        check_destination(&format!("{field}.path"), &device.path, problems);
        if !device.destination.is_empty() {
            check_destination(&format!("{field}.destination"), &device.destination, problems);
        }
        if device.access.contains(|c| !"rwm".contains(c)) {
            let why = format!("{:?} is not of \"r\", \"w\" and \"m\"", device.access);
            problems.add(format!("{field}.access"), why);
        }
    }
}

/// `None`: those that are usual.
fn calls(spec: &v1::TaskSpec) -> Option<&Calls> {
    spec.security.as_ref()?.seccomp.as_ref()?.kind.as_ref()
}

fn check_seccomp(spec: &v1::TaskSpec, problems: &mut Problems) {
    const FIELD: &str = "security.seccomp.profile";
    match calls(spec) {
        Some(Calls::Unconfined(false)) => {
            problems.add("security.seccomp.unconfined", "is false: leave it out");
        }
        Some(Calls::Profile(text)) if text.len() > MOST_PROFILE_BYTES => {
            problems.add(FIELD, format!("has more than {MOST_PROFILE_BYTES} bytes"));
        }
        Some(Calls::Profile(text)) => {
            for problem in seccomp::read(text).err().into_iter().flat_map(|wrong| wrong.0) {
                let text = problem.to_string();
                problems.add(FIELD, text.trim_start_matches(": "));
            }
            // It would have to hold two filters, and the runtime spec has one.
            if has_bounded_disk(spec) {
                problems.add(
                    FIELD,
                    "cannot be with a bound on the disk, which has a filter of its own",
                );
            }
        }
        Some(Calls::Unconfined(true)) | None => {}
    }
}

fn has_bounded_disk(spec: &v1::TaskSpec) -> bool {
    let limit = spec.resources.as_ref().and_then(|r| r.limit.as_ref()?.disk);
    let upper = spec.root.as_ref().map_or("", |root| root.upper.as_str());
    limit.is_some() || upper.starts_with("disk:")
}

/// What its root may, changed as it wants.
fn capabilities(spec: &v1::TaskSpec) -> Result<Changed, Problems> {
    use v1::root::Kind as Root;
    let kind = spec.root.as_ref().and_then(|root| root.kind.as_ref());
    let usual = match kind {
        Some(Root::Host(_)) | None => rights::FEW,
        Some(Root::Image(_) | Root::Rootfs(_)) => rights::USUAL,
    };
    let none = v1::Capabilities::default();
    let wanted = spec.security.as_ref().and_then(|s| s.capabilities.as_ref()).unwrap_or(&none);
    rights::change(usual, &wanted.add, &wanted.drop)
}

fn check_destination(field: &str, path: &str, problems: &mut Problems) {
    let clean = Path::new(path).components().all(|c| !matches!(c, std::path::Component::ParentDir));
    let cannot_be = |c: char| c == ':' || c.is_control();
    if !path.starts_with('/') || path == "/" || !clean || path.contains(cannot_be) {
        problems.add(field, format!("{path:?} is not an absolute path inside the container"));
    }
}

fn check_log(log: Option<&v1::LogPolicy>, problems: &mut Problems) {
    const LEAST: u64 = 4096;
    let Some(log) = log else { return };
    if log.max_bytes != 0 && !(LEAST..=MOST_BYTES).contains(&log.max_bytes) {
        problems.add("log.maxBytes", format!("is not from {LEAST} to {MOST_BYTES}"));
    }
    if log.max_files > 1000 {
        problems.add("log.maxFiles", "is more than 1000");
    }
}

/// Where things of a task are on this node.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Name of the container.
    pub container: String,
    pub cgroup: String,
    /// File with the limits of the folder above, of a group.
    pub outer: Option<PathBuf>,
    pub keeper: PathBuf,
    pub log: PathBuf,
    pub images: PathBuf,
    pub volumes: PathBuf,
    /// Network namespace; `None`: one of its own.
    pub network: Option<Namespace>,
    pub ipc: Option<PathBuf>,
    pub hostname: Option<String>,
    /// Files and folders of the node's to be shown read-only: source and destination.
    pub shown: Vec<(PathBuf, String)>,
    /// Where a change of the specification is written to, if there is one.
    pub patch: PathBuf,
    /// File that says when a master was heard last, where its keeper is to stop it for lack of one.
    pub heard: Option<PathBuf>,
    /// What the image says about how to ask it to end.
    pub signal: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespace {
    Host,
    At(PathBuf),
}

/// The words for the runtime, and what no word of it says.
#[derive(Debug, Clone, PartialEq)]
pub struct Words {
    pub words: Vec<OsString>,
    pub patch: Option<Value>,
}

/// How the runtime is told to keep a task's container.
#[must_use]
pub fn words(spec: &v1::TaskSpec, places: &Places) -> Words {
    let mut list = List::default();
    list.option("--dir", &places.keeper);
    log_words(&mut list, spec.log.as_ref(), places);
    if spec.stdin {
        list.word("--interactive");
    }
    if spec.wait_for_attach {
        list.word("--hold");
    }
    fence_words(&mut list, spec, places);
    list.option("--id", &places.container);
    list.option("--cgroup", &places.cgroup);
    if let Some(outer) = &places.outer {
        list.option("--parent-limits", outer);
    }
    list.option("--volumes", &places.volumes);
    root_words(&mut list, spec, places);
    security_words(&mut list, spec);
    resource_words(&mut list, spec.resources.as_ref());
    spec.env.iter().for_each(|(key, value)| list.option("--env", format!("{key}={value}")));
    let texts = [("--user", &spec.user), ("--cwd", &spec.cwd)];
    for (option, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        list.option(option, text);
    }
    if let Some(hostname) = &places.hostname {
        list.option("--hostname", hostname);
    }
    spec.mounts.iter().for_each(|mount| mount_words(&mut list, mount));
    for (source, destination) in &places.shown {
        list.option("--volume", format!("{}:{destination}:ro", source.display()));
    }
    match &places.network {
        Some(Namespace::Host) => list.option("--namespace", "network=host"),
        Some(Namespace::At(path)) => {
            list.option("--namespace", format!("network={}", path.display()));
        }
        None => {}
    }
    if let Some(path) = &places.ipc {
        list.option("--namespace", format!("ipc={}", path.display()));
    }
    if spec.terminal {
        list.word("--tty");
    }
    let patch = patch(spec);
    if patch.is_some() {
        list.option("--patch", &places.patch);
    }
    list.word("--");
    spec.command.iter().for_each(|word| list.word(word));
    Words { words: list.0, patch }
}

#[derive(Default)]
struct List(Vec<OsString>);

impl List {
    fn word(&mut self, word: impl Into<OsString>) {
        self.0.push(word.into());
    }

    /// In one word, so that a value is never taken for an option.
    fn option(&mut self, option: &str, value: impl AsRef<std::ffi::OsStr>) {
        let mut word = OsString::from(option);
        word.push("=");
        word.push(value);
        self.0.push(word);
    }
}

fn fence_words(list: &mut List, spec: &v1::TaskSpec, places: &Places) {
    let after = spec.stop_after_disconnect.as_ref().map(crate::time::duration);
    let (Some(after), Some(heard)) = (after, &places.heard) else { return };
    let grace = spec.kill.as_ref().and_then(|kill| kill.grace.as_ref()).map(crate::time::duration);
    list.option("--fence", after.as_secs_f64().to_string());
    list.option("--fence-file", heard);
    list.option("--fence-signal", stop_signal(spec, places.signal.as_deref()).to_string());
    list.option("--fence-grace", grace.unwrap_or(GRACE).as_secs_f64().to_string());
}

/// What asks a task to end.
#[must_use]
pub fn stop_signal(spec: &v1::TaskSpec, image: Option<&str>) -> i32 {
    let own = spec.kill.as_ref().map(|kill| kill.signal.as_str()).filter(|name| !name.is_empty());
    own.or(image).and_then(signal::number).unwrap_or(nix::libc::SIGTERM)
}

fn log_words(list: &mut List, log: Option<&v1::LogPolicy>, places: &Places) {
    use v1::log_policy::Format;
    let log = log.cloned().unwrap_or_default();
    if log.format() == Format::None {
        return;
    }
    list.option("--output", &places.log);
    if log.format() == Format::Plain {
        list.option("--output-format", "plain");
    }
    let bytes = if log.max_bytes == 0 { LOG_BYTES } else { log.max_bytes };
    let files = if log.max_files == 0 { LOG_FILES } else { log.max_files };
    list.option("--output-max", bytes.to_string());
    list.option("--output-files", files.to_string());
}

fn root_words(list: &mut List, spec: &v1::TaskSpec, places: &Places) {
    use v1::root::Kind as Root;
    let Some(root) = &spec.root else { return };
    match &root.kind {
        Some(Root::Image(image)) => {
            list.option("--image", image);
            list.option("--images", &places.images);
        }
        Some(Root::Rootfs(path)) => list.option("--rootfs", path),
        Some(Root::Host(_)) | None => list.option("--rootfs", "host"),
    }
    if let Some(entrypoint) = &spec.entrypoint {
        list.option("--entrypoint", entrypoint);
    }
    if root.read_only {
        list.word("--read-only");
        return;
    }
    let disk = spec.resources.as_ref().and_then(|r| r.limit.as_ref()?.disk);
    match (disk, root.upper.as_str()) {
        (Some(bytes), "" | "disk") => list.option("--upper", format!("disk:{bytes}")),
        (_, "") => {}
        (_, upper) => list.option("--upper", upper),
    }
}

fn security_words(list: &mut List, spec: &v1::TaskSpec) {
    // What cannot be was refused when the task was taken on.
    let Changed { all, added } =
        capabilities(spec).unwrap_or(Changed { all: rights::FEW, added: 0 });
    list.option("--capabilities", rights::names(all).join(","));
    if added != 0 {
        list.option("--ambient", rights::names(added).join(","));
    }
    if calls(spec).is_none() {
        list.option("--seccomp", "default");
    }
    for device in spec.security.iter().flat_map(|security| &security.devices) {
        let or = |text: &str, usual: &str| (if text.is_empty() { usual } else { text }).to_owned();
        let destination = or(&device.destination, &device.path);
        list.option(
            "--device",
            [&device.path, &destination, &or(&device.access, "rwm")].map(String::as_str).join(":"),
        );
    }
}

/// Thousandths of a CPU in shares, as everybody counts them.
fn shares(milli: u64) -> u64 {
    const CPU: u64 = 1024;
    (milli.saturating_mul(CPU) / 1000).clamp(2, 262_144)
}

/// Less than a page is nothing, for reclaim; 0 would mean that nothing is said.
const NO_MEMORY: u64 = 1;
/// How much rather than all others the kernel kills it where the machine has no memory left (proc_pid_oom_score_adj(5)).
const FIRST_TO_LEAVE: i32 = 1000;

/// What the kernel keeps for it. For what is revocable it keeps nothing.
fn kept(resources: &v1::Resources) -> v1::Amounts {
    match resources.revocable {
        true => v1::Amounts { memory: Some(NO_MEMORY), ..v1::Amounts::default() },
        false => resources.request.unwrap_or_default(),
    }
}

fn resource_words(list: &mut List, resources: Option<&v1::Resources>) {
    let Some(resources) = resources else { return };
    let limit = resources.limit.unwrap_or_default();
    if let Some(memory) = limit.memory {
        list.option("--memory", memory.to_string());
        if let Some(swap) = limit.swap {
            list.option("--memory-swap", memory.saturating_add(swap).to_string());
        }
    }
    if let Some(milli) = limit.cpu_milli {
        list.option("--cpus", format!("{}.{:03}", milli / 1000, milli % 1000));
    }
    if let Some(pids) = limit.pids {
        list.option("--pids", pids.to_string());
    }
    if let Some(milli) = kept(resources).cpu_milli {
        list.option("--cpu-shares", shares(milli).to_string());
    }
    if !resources.cpuset.is_empty() {
        list.option("--cpuset-cpus", &resources.cpuset);
    }
}

fn mount_words(list: &mut List, mount: &v1::Mount) {
    use v1::mount::Source;
    let options = mount.options.join(",");
    let after = if options.is_empty() { String::new() } else { format!(":{options}") };
    let destination = &mount.destination;
    match &mount.source {
        Some(Source::Host(source) | Source::Volume(source)) => {
            list.option("--volume", format!("{source}:{destination}{after}"));
        }
        Some(Source::Tmpfs(bytes)) => {
            let size = (*bytes > 0).then(|| format!("size={bytes}"));
            let all: Vec<&str> = size
                .as_deref()
                .into_iter()
                .chain(mount.options.iter().map(String::as_str))
                .collect();
            let after = if all.is_empty() { String::new() } else { format!(":{}", all.join(",")) };
            list.option("--tmpfs", format!("{destination}{after}"));
        }
        None => {}
    }
}

/// Read a group, and name its tasks: `GROUP.TASK`.
///
/// # Errors
/// [`Kind::Invalid`] with every problem.
pub fn group(spec: &mut v1::PodSpec) -> Result<(), Failure> {
    let mut problems = Problems::default();
    if let Err(why) = name(&spec.id) {
        problems.add("id", why);
    }
    if spec.tasks.is_empty() {
        problems.add("tasks", "is empty: a pod has one task at least");
    }
    if let Some(limit) = &spec.limit {
        check_limit("limit", limit, &mut problems);
    }
    if let Some(network) = &spec.network {
        check_network(network, &mut problems);
    }
    let id = spec.id.clone();
    for (i, task) in spec.tasks.iter_mut().enumerate() {
        if task.id.is_empty() {
            problems.add(format!("tasks[{i}].id"), "is missing");
        }
        if task.network.is_some() {
            problems.add(format!("tasks[{i}].network"), "is the pod's: say it there");
        }
        task.id = format!("{id}.{}", task.id);
        if let Err(failure) = definition(task) {
            problems.add(format!("tasks[{i}]"), failure.message);
        }
    }
    let mut names: Vec<&str> = spec.tasks.iter().map(|task| task.id.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        problems.add("tasks", format!("{} is there twice", pair[0]));
    }
    problems.into_result(()).map_err(|e| Failure::new(Kind::Invalid, e.to_string()))
}

/// The limits as `linux.resources` of the OCI runtime spec, for a container that runs.
#[must_use]
pub fn linux_resources(resources: &v1::Resources) -> Value {
    const PERIOD: u64 = 100_000;
    let limit = resources.limit.unwrap_or_default();
    let mut all = wordless(resources);
    if let Some(memory) = limit.memory {
        all["memory"]["limit"] = json!(memory);
        if let Some(swap) = limit.swap {
            all["memory"]["swap"] = json!(memory.saturating_add(swap));
        }
    }
    if let Some(milli) = limit.cpu_milli {
        all["cpu"]["quota"] = json!(milli.saturating_mul(PERIOD) / 1000);
        all["cpu"]["period"] = json!(PERIOD);
    }
    if let Some(milli) = kept(resources).cpu_milli {
        all["cpu"]["shares"] = json!(shares(milli));
    }
    if !resources.cpuset.is_empty() {
        all["cpu"]["cpus"] = json!(resources.cpuset);
    }
    if let Some(pids) = limit.pids {
        all["pids"]["limit"] = json!(pids);
    }
    all
}

/// Of these, what no word of the runtime says.
fn wordless(resources: &v1::Resources) -> Value {
    let mut all = json!({});
    if let Some(memory) = kept(resources).memory {
        all["memory"]["reservation"] = json!(memory);
    }
    if resources.revocable {
        all["cpu"]["idle"] = json!(1);
    }
    let block = block_io(&resources.io);
    if block != json!({}) {
        all["blockIO"] = block;
    }
    all
}

/// What is in the OCI runtime spec, and in no word of the runtime's.
fn patch(spec: &v1::TaskSpec) -> Option<Value> {
    let mut patch = json!({});
    let resources = spec.resources.clone().unwrap_or_default();
    let wordless = wordless(&resources);
    if wordless != json!({}) {
        patch["linux"]["resources"] = wordless;
    }
    if resources.revocable {
        patch["process"]["oomScoreAdj"] = json!(FIRST_TO_LEAVE);
    }
    if spec.security.as_ref().and_then(|security| security.no_new_privileges) == Some(false) {
        patch["process"]["noNewPrivileges"] = json!(false);
    }
    if let Some(Calls::Profile(text)) = calls(spec)
        && let Ok(profile) = seccomp::read(text)
    {
        patch["linux"]["seccomp"] = profile;
    }
    for (key, value) in &spec.labels {
        patch["annotations"][key] = json!(value);
    }
    (patch != json!({})).then_some(patch)
}

fn block_io(limits: &[v1::IoLimit]) -> Value {
    let mut block = json!({});
    for limit in limits {
        let Some((major, minor)) = numbers(&limit.device) else { continue };
        for (field, rate) in [
            ("throttleReadBpsDevice", limit.read_bps),
            ("throttleWriteBpsDevice", limit.write_bps),
            ("throttleReadIOPSDevice", limit.read_iops),
            ("throttleWriteIOPSDevice", limit.write_iops),
        ] {
            let Some(rate) = rate else { continue };
            let entry = json!({ "major": major, "minor": minor, "rate": rate });
            match block[field].as_array_mut() {
                Some(list) => list.push(entry),
                None => block[field] = json!([entry]),
            }
        }
    }
    block
}

/// `8:0`; names are turned into numbers when the task is taken on.
fn numbers(device: &str) -> Option<(u64, u64)> {
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Name the devices of limits by their numbers.
///
/// # Errors
/// [`Kind::Invalid`]: there is no such device.
pub fn name_devices(spec: &mut v1::TaskSpec) -> Result<(), Failure> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    for limit in spec.resources.iter_mut().flat_map(|resources| &mut resources.io) {
        if numbers(&limit.device).is_some() {
            continue;
        }
        let found =
            std::fs::metadata(&limit.device).ok().filter(|m| m.file_type().is_block_device());
        let Some(found) = found else {
            let words = format!("resources.io: {:?} is not a block device", limit.device);
            return Err(Failure::new(Kind::Invalid, words));
        };
        let device = found.rdev();
        limit.device =
            format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> v1::TaskSpec {
        let root = v1::Root { kind: Some(v1::root::Kind::Host(true)), ..v1::Root::default() };
        v1::TaskSpec {
            root: Some(root),
            command: vec!["true".to_owned()],
            ..v1::TaskSpec::default()
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let limit = v1::Amounts { memory: Some(1), cpu_milli: Some(0), ..v1::Amounts::default() };
        let request = v1::Amounts { memory: Some(2), ..v1::Amounts::default() };
        let spec = v1::TaskSpec {
            id: "no/name".to_owned(),
            resources: Some(v1::Resources {
                request: Some(request),
                limit: Some(limit),
                ..v1::Resources::default()
            }),
            kill: Some(v1::KillPolicy { signal: "NOPE".to_owned(), grace: None }),
            mounts: vec![v1::Mount { destination: "rel".to_owned(), ..v1::Mount::default() }],
            max_run_time: Some(Wire { seconds: -1, nanos: 0 }),
            ..v1::TaskSpec::default()
        };
        let failure = definition(&spec).unwrap_err();
        for field in [
            "id",
            "root",
            "command",
            "kill.signal",
            "resources.request.memory",
            "resources.limit.cpuMilli",
            "mounts[0].destination",
            "mounts[0]",
            "maxRunTime",
        ] {
            assert!(failure.message.contains(field), "{field}: {}", failure.message);
        }
    }

    #[test]
    fn what_is_not_said_is_usual() {
        let definition = definition(&task()).unwrap();
        assert_eq!(definition.restart, Restart::Never);
        assert_eq!((definition.grace, definition.longest), (GRACE, None));
        assert_eq!(definition.back_off, BACK_OFF);
    }

    fn root_of(kind: v1::root::Kind) -> Option<v1::Root> {
        Some(v1::Root { kind: Some(kind), ..v1::Root::default() })
    }

    fn said(spec: &v1::TaskSpec) -> (Vec<String>, Option<Value>) {
        let Words { words, patch } = words(spec, &Places::default());
        (words.iter().map(|word| word.to_string_lossy().into_owned()).collect(), patch)
    }

    #[test]
    fn rights_are_told_to_the_runtime() {
        let of_host = said(&task()).0;
        let few = "--capabilities=CAP_KILL,CAP_NET_BIND_SERVICE,CAP_AUDIT_WRITE";
        assert!(of_host.contains(&few.to_owned()), "{of_host:?}");
        let image = root_of(v1::root::Kind::Image("i".to_owned()));
        let (usual, patch) = said(&v1::TaskSpec { root: image.clone(), ..task() });
        let wanted = format!("--capabilities={}", rights::names(rights::USUAL).join(","));
        assert!(usual.contains(&wanted) && usual.contains(&"--seccomp=default".to_owned()));
        assert!(patch.is_none() && !usual.iter().any(|word| word.starts_with("--ambient")));
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
        let text = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let security = v1::Security {
            capabilities: Some(v1::Capabilities { add: text(&["net_raw"]), drop: text(&["ALL"]) }),
            no_new_privileges: Some(false),
            seccomp: Some(v1::Seccomp { kind: Some(Calls::Profile(profile.to_string())) }),
            devices: vec![v1::Device { path: "/dev/a".to_owned(), ..v1::Device::default() }],
        };
        let own = v1::TaskSpec { root: image, security: Some(security), ..task() };
        let (words, patch) = said(&own);
        for wanted in
            ["--capabilities=CAP_NET_RAW", "--ambient=CAP_NET_RAW", "--device=/dev/a:/dev/a:rwm"]
        {
            assert!(words.contains(&wanted.to_owned()), "{wanted}: {words:?}");
        }
        assert!(!words.iter().any(|word| word.starts_with("--seccomp")), "{words:?}");
        let wanted =
            json!({ "process": { "noNewPrivileges": false }, "linux": { "seccomp": profile } });
        assert_eq!(patch, Some(wanted));
    }

    #[test]
    fn words_for_the_runtime() {
        let mut spec = task();
        let limit = v1::Amounts {
            cpu_milli: Some(1500),
            memory: Some(64 << 20),
            swap: Some(1 << 20),
            pids: Some(32),
            ..v1::Amounts::default()
        };
        let request =
            v1::Amounts { cpu_milli: Some(500), memory: Some(7), ..v1::Amounts::default() };
        spec.resources = Some(v1::Resources {
            request: Some(request),
            limit: Some(limit),
            ..v1::Resources::default()
        });
        spec.env.insert("A".to_owned(), "--b".to_owned());
        spec.mounts = vec![v1::Mount {
            source: Some(v1::mount::Source::Tmpfs(5)),
            destination: "/t".to_owned(),
            options: vec!["noexec".to_owned()],
        }];
        spec.stop_after_disconnect = Some(crate::time::span(Duration::from_millis(30_500)));
        let places = Places {
            heard: Some("/run/hafen/heard".into()),
            signal: Some("SIGINT".to_owned()),
            ..Places::default()
        };
        let Words { words, patch } = words(&spec, &places);
        let words: Vec<_> = words.iter().map(|w| w.to_str().unwrap()).collect();
        for wanted in [
            "--memory=67108864",
            "--memory-swap=68157440",
            "--cpus=1.500",
            "--pids=32",
            "--cpu-shares=512",
            "--env=A=--b",
            "--tmpfs=/t:size=5,noexec",
            "--rootfs=host",
            "--fence=30.5",
            "--fence-file=/run/hafen/heard",
            "--fence-signal=2",
            "--fence-grace=10",
        ] {
            assert!(words.contains(&wanted), "{wanted}: {words:?}");
        }
        assert_eq!(words[words.len() - 2..], ["--", "true"]);
        let wanted = json!({ "linux": { "resources": { "memory": { "reservation": 7 } } } });
        assert_eq!(patch, Some(wanted));
    }

    #[test]
    fn what_is_revocable_keeps_nothing_from_others() {
        let request =
            v1::Amounts { cpu_milli: Some(500), memory: Some(7), ..v1::Amounts::default() };
        let resources =
            v1::Resources { request: Some(request), revocable: true, ..v1::Resources::default() };
        let wanted = json!({ "memory": { "reservation": 1 }, "cpu": { "idle": 1 } });
        assert_eq!(linux_resources(&resources), wanted);
        let spec = v1::TaskSpec { resources: Some(resources), ..task() };
        let Words { words, patch } = words(&spec, &Places::default());
        // The kernel refuses a weight beside cpu.idle.
        assert!(words.iter().all(|word| !word.to_string_lossy().starts_with("--cpu-shares")));
        let wanted =
            json!({ "linux": { "resources": wanted }, "process": { "oomScoreAdj": 1000 } });
        assert_eq!(patch, Some(wanted));
    }
}
