//! Facts in a form that two runs can be compared in: a flat table of words, without what differs from run to run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hafen_integration::{Facts, Mount};

use super::stage::Stage;

/// A fact that the two engines did not agree on. `None`: it is not there at all.
#[derive(Debug, Clone)]
pub(super) struct Difference {
    pub(super) fact: String,
    pub(super) ours: Option<String>,
    pub(super) theirs: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |v: &Option<String>| v.as_ref().map_or("-".to_owned(), |v| format!("{v:?}"));
        write!(f, "{}: hafen {} reference {}", self.fact, show(&self.ours), show(&self.theirs))
    }
}

/// Fact -> value.
pub(super) type Table = BTreeMap<String, String>;

pub(super) fn differences(ours: &Table, theirs: &Table) -> Vec<Difference> {
    let facts: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    facts
        .into_iter()
        .filter(|fact| ours.get(*fact) != theirs.get(*fact))
        .map(|fact| Difference {
            fact: fact.clone(),
            ours: ours.get(fact).cloned(),
            theirs: theirs.get(fact).cloned(),
        })
        .collect()
}

pub(super) fn normalise(facts: &Facts, stage: &Stage<'_>) -> Table {
    let mut table = Table::new();
    let mut put = |fact: &str, value: String| {
        table.insert(fact.to_owned(), stage_words(&value, stage));
    };
    put("argv", facts.argv.join(" "));
    put("cwd", or_none(facts.cwd.as_ref()));
    put("pid", one_or_other(facts.pid));
    put("parent", if facts.ppid == 0 { "outside" } else { "inside" }.to_owned());
    put("session", if facts.sid == facts.pid { "its own" } else { "another" }.to_owned());
    put("process group", if facts.pgid == facts.pid { "its own" } else { "another" }.to_owned());
    put("hostname", facts.hostname.clone());
    put("domainname", facts.domainname.clone());
    put("oom_score_adj", or_none(facts.oom_score_adj.as_ref()));
    put("personality", or_none(facts.personality.as_ref()));
    put("scheduling", format!("nice {:?} policy {:?}", facts.nice, facts.policy));
    put("label", or_none(facts.label.as_ref()));
    put("write to /", facts.root_write.clone());
    put("session keyrings", or_none(facts.session_keyrings.as_ref().map(|k| k.join(",")).as_ref()));
    status(facts, &mut put);
    facts.env.iter().for_each(|(k, v)| put(&format!("env {k}"), v.clone()));
    facts.rlimits.iter().for_each(|(k, (soft, hard))| put(k, format!("{soft} {hard}")));
    facts.sysctls.iter().for_each(|(k, v)| put(&format!("sysctl {k}"), or_none(v.as_ref())));
    facts.interfaces.iter().for_each(|(k, up)| put(&format!("interface {k}"), format!("up {up}")));
    facts.fds.iter().for_each(|(fd, link)| put(&format!("fd {fd}"), fd_target(link)));
    facts.limits_held.iter().for_each(|(k, v)| put(&format!("held {k}"), v.clone()));
    cgroups(facts, &mut put);
    namespaces(facts, stage, &mut put);
    files(facts, &mut put);
    mounts(facts, stage, &mut put);
    table
}

fn status(facts: &Facts, put: &mut impl FnMut(&str, String)) {
    let status = &facts.status;
    put("uid", format!("{:?}", status.uid));
    put("gid", format!("{:?}", status.gid));
    // The kernel keeps them sorted.
    put("groups", format!("{:?}", status.groups));
    put("umask", status.umask.clone());
    put("no_new_privs", status.no_new_privs.to_string());
    put("seccomp", format!("mode {} filters {}", status.seccomp, status.seccomp_filters));
    put("signals blocked", classic_signals(&status.sig_blocked));
    put("signals ignored", classic_signals(&status.sig_ignored));
    put("cpus allowed", status.cpus_allowed.clone());
    put("mems allowed", status.mems_allowed.clone());
    let sets = [
        ("inheritable", &status.inheritable),
        ("permitted", &status.permitted),
        ("effective", &status.effective),
        ("bounding", &status.bounding),
        ("ambient", &status.ambient),
    ];
    for (name, set) in sets {
        put(&format!("capabilities {name}"), join(set));
    }
}

/// Signals 1 to 31. The two behind belong to the C library, and come as the caller had them.
fn classic_signals(mask: &str) -> String {
    format!("{:08x}", u64::from_str_radix(mask, 16).unwrap_or_default() & 0x7fff_ffff)
}

fn cgroups(facts: &Facts, put: &mut impl FnMut(&str, String)) {
    for line in &facts.cgroup {
        let mut parts = line.splitn(3, ':').skip(1);
        if let (Some(controllers), Some(path)) = (parts.next(), parts.next()) {
            put(
                &format!("cgroup {}", if controllers.is_empty() { "tree" } else { controllers }),
                path.to_owned(),
            );
        }
    }
}

fn namespaces(facts: &Facts, stage: &Stage<'_>, put: &mut impl FnMut(&str, String)) {
    let known = stage.known_namespaces();
    for (kind, inode) in &facts.namespaces {
        let whose = known
            .iter()
            .find(|(_, own)| own.get(kind) == Some(inode))
            .map_or("new", |(whose, _)| whose);
        put(&format!("namespace {kind}"), whose.to_owned());
    }
}

fn files(facts: &Facts, put: &mut impl FnMut(&str, String)) {
    for (path, file) in &facts.files {
        let device = or_none(file.device.as_ref());
        let link = or_none(file.link.as_ref());
        // A symbolic link's mode means nothing.
        let mode = if file.kind == "link" { "" } else { &file.mode };
        put(
            &format!("file {path}"),
            format!("{} {mode} {}:{} {device} {link}", file.kind, file.uid, file.gid),
        );
    }
    for (path, probe) in &facts.probes {
        put(&format!("probe {path} kind"), probe.kind.clone());
        put(&format!("probe {path} read"), probe.read.clone());
        put(&format!("probe {path} write"), probe.write.clone());
        put(
            &format!("probe {path} owner"),
            format!("{:?} {:?}:{:?}", probe.mode, probe.uid, probe.gid),
        );
    }
}

/// How many others are below it on the same point. The order of the table says nothing of that: it is one of making.
fn height(mount: &Mount, all: &[Mount]) -> usize {
    let below = |m: &Mount| {
        all.iter().find(|b| b.id == m.parent && b.id != m.id && b.target == mount.target)
    };
    std::iter::successors(below(mount), |m| below(m)).count()
}

/// What is mounted where; several mounts on one point are told apart by their place in the stack.
fn mounts(facts: &Facts, stage: &Stage<'_>, put: &mut impl FnMut(&str, String)) {
    for mount in &facts.mounts {
        let height = height(mount, &facts.mounts);
        let place = if height == 0 { String::new() } else { format!(" (over {height})") };
        let fact =
            |part: &str| stage_words(&format!("mount {}{place} {part}", mount.target), stage);
        put(&fact("type"), mount.fstype.clone());
        put(&fact("source"), mount.source.clone());
        put(&fact("root"), mount.root.clone());
        put(&fact("options"), join(&mount.options));
        put(&fact("file system"), join(&mount.super_options));
        put(&fact("propagation"), propagation(mount));
    }
}

/// Peer group numbers are given out by the kernel.
fn propagation(mount: &Mount) -> String {
    let tags: Vec<&str> =
        mount.propagation.iter().map(|tag| tag.split(':').next().unwrap_or(tag)).collect();
    if tags.is_empty() { "private".to_owned() } else { tags.join(",") }
}

fn join(set: &BTreeSet<String>) -> String {
    set.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

fn or_none(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "none".to_owned(), ToString::to_string)
}

fn one_or_other(pid: i32) -> String {
    if pid == 1 { "1" } else { "another" }.to_owned()
}

/// Without the names that are a run's own. A file system may be mounted anywhere, so what stands before the last
/// parts of the bundle's path in a mount's root is not known.
fn stage_words(text: &str, stage: &Stage<'_>) -> String {
    let path = stage.bundle.path();
    let parts: Vec<_> = path.iter().skip(path.iter().count().saturating_sub(3)).collect();
    let tail = parts.iter().collect::<std::path::PathBuf>().display().to_string();
    let text =
        text.split_once(&tail).map_or_else(|| text.to_owned(), |(_, rest)| format!("BUNDLE{rest}"));
    text.replace(&stage.id, "ID")
}

/// The outputs of calls are numbered files; pipes and sockets have the kernel's numbers.
fn fd_target(link: &str) -> String {
    let name = link.rsplit_once("/calls/").map_or(link, |(_, name)| name);
    name.chars().filter(|c| !c.is_ascii_digit()).collect()
}
