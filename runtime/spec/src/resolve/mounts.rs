use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, Mount as OciMount, Spec};

use super::options::{COPY_UP, IdMapOption, attr};
use super::{MountOptions, Options, check_nul, user};
use crate::Problems;
use crate::resolved::{
    IdMap, IdMapSource, IdMaps, Mount, MountIdMap, MountKind, Namespace, Namespaces, SourceLink,
};

/// What a mount may refer to beside itself.
pub(super) struct Around<'a> {
    pub(super) options: &'a Options,
    pub(super) namespaces: &'a Namespaces,
    /// Id maps of the container.
    pub(super) user: Option<&'a IdMaps>,
}

pub(super) fn mounts(
    spec: &Spec,
    around: &Around<'_>,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let given = mount.options().clone().unwrap_or_default();
        let one = Entry { mount, index, sorted: MountOptions::sort(&given) };
        mounts.extend(one.resolve(around, &mounts, problems, warnings));
    }
    mounts
}

/// One entry of `mounts`.
struct Entry<'a> {
    mount: &'a OciMount,
    index: usize,
    sorted: MountOptions,
}

impl Entry<'_> {
    fn field(&self, name: &str) -> String {
        format!("mounts[{}].{name}", self.index)
    }

    fn resolve(
        &self,
        around: &Around<'_>,
        earlier: &[Mount],
        problems: &mut Problems,
        warnings: &mut Vec<String>,
    ) -> Option<Mount> {
        let destination = destination(self.mount, &self.field("destination"), problems)?;
        let kind = if self.sorted.remount {
            self.remount(&destination, earlier, problems)
        } else {
            self.kind(around, problems, warnings)?
        };
        check_procfs(&destination, &kind, &self.field("destination"), problems);
        self.check_options(&kind, problems);
        let id_map = self.id_map(&kind, around, problems);
        let is_bind = matches!(kind, MountKind::Bind { .. });
        Some(Mount {
            destination,
            on_link: self.sorted.on_link,
            attrs: if is_bind { self.sorted.attrs } else { self.sorted.all_attrs() },
            recursive_attrs: if is_bind { self.sorted.recursive_attrs } else { Default::default() },
            propagation: self.sorted.propagation.clone(),
            kind,
            id_map,
        })
    }

    /// Only what this list has mounted is changed: any other file system is the image's or the host's. Of the file
    /// systems themselves only a tmpfs surely is the container's own; of the others the host may see the same instance.
    fn remount(&self, destination: &str, earlier: &[Mount], problems: &mut Problems) -> MountKind {
        let there: Vec<&Mount> = earlier.iter().filter(|m| m.destination == destination).collect();
        if there.is_empty() {
            problems.add(
                self.field("options"),
                "remount: no entry before this one mounts anything there",
            );
        }
        let top = there.iter().rev().find(|m| !matches!(m.kind, MountKind::Remount { .. }));
        let is_tmpfs =
            |m: &&&Mount| matches!(&m.kind, MountKind::New { fstype, .. } if fstype == "tmpfs");
        let own = self.sorted.bind.is_none() && top.filter(is_tmpfs).is_some();
        if let Some((key, _)) = self.sorted.data.first().filter(|_| !own) {
            problems.add(
                self.field("options"),
                format!("{key:?} would change a file system that is not the container's own"),
            );
        }
        let mut options = self.sorted.data.clone();
        let attrs = self.sorted.all_attrs();
        for (name, bits) in [("ro", attrs.set), ("rw", attrs.clear)] {
            if own && bits & attr::RDONLY != 0 {
                options.push((name.to_owned(), None));
            }
        }
        MountKind::Remount { options }
    }

    fn kind(
        &self,
        around: &Around<'_>,
        problems: &mut Problems,
        warnings: &mut Vec<String>,
    ) -> Option<MountKind> {
        let fstype = self.mount.typ().as_deref().unwrap_or_default();
        let source = self.mount.source().as_ref().map(|s| s.to_string_lossy().into_owned());
        if let Some(source) = &source {
            check_nul(source, &self.field("source"), problems);
        }
        match (self.sorted.bind, fstype) {
            (Some(_), _) | (None, "bind" | "rbind") => {
                self.warn_of_parameters(warnings);
                let Some(source) = source.filter(|s| !s.is_empty()) else {
                    problems.add(self.field("source"), "is missing: a bind mount needs one");
                    return None;
                };
                Some(MountKind::Bind {
                    source: around.options.bundle.join(source),
                    recursive: self.sorted.bind.unwrap_or(fstype == "rbind"),
                    link: self.sorted.link,
                })
            }
            (None, "cgroup" | "cgroup2") => {
                Some(MountKind::Cgroup { unified: fstype == "cgroup2" })
            }
            (None, "" | "none") => {
                problems.add(
                    self.field("type"),
                    "is missing: name a file system, or bind in the options",
                );
                None
            }
            (None, fstype) => Some(MountKind::New {
                fstype: fstype.to_owned(),
                source: source.unwrap_or_else(|| fstype.to_owned()),
                options: self.parameters(),
                copy_up: self.sorted.copy_up,
            }),
        }
    }

    /// Clients give them, and mount(2) has always passed over them: what is bound has its parameters already.
    fn warn_of_parameters(&self, warnings: &mut Vec<String>) {
        for (key, _) in &self.sorted.data {
            warnings
                .push(format!("{}: {key:?} has no effect on a bind mount", self.field("options")));
        }
    }

    /// A new file system asked for read-only is read-only itself, not only this mount of it; unless it has to be filled.
    fn parameters(&self) -> Vec<(String, Option<String>)> {
        let mut all = self.sorted.data.clone();
        if self.sorted.all_attrs().set & attr::RDONLY != 0 && !self.sorted.copy_up {
            all.push(("ro".to_owned(), None));
        }
        all
    }

    /// Options that belong to another kind of mount.
    fn check_options(&self, kind: &MountKind, problems: &mut Problems) {
        let is_tmpfs = matches!(kind, MountKind::New { fstype, .. } if fstype == "tmpfs");
        let is_bind = matches!(kind, MountKind::Bind { .. });
        let misplaced = [
            (COPY_UP, "a tmpfs", self.sorted.copy_up && !is_tmpfs),
            ("copy-symlink", "bind mounts", self.sorted.link == SourceLink::Copy && !is_bind),
            ("src-nofollow", "bind mounts", self.sorted.link == SourceLink::Mount && !is_bind),
        ];
        for (option, whose, _) in misplaced.iter().filter(|(.., misplaced)| *misplaced) {
            problems.add(self.field("options"), format!("{option} is for {whose}"));
        }
    }

    fn id_map(
        &self,
        kind: &MountKind,
        around: &Around<'_>,
        problems: &mut Problems,
    ) -> Option<MountIdMap> {
        let given = self.given_maps(problems);
        let option = self.sorted.id_map.as_ref();
        if given.is_none() && option.is_none() {
            return None;
        }
        if !matches!(kind, MountKind::Bind { .. }) {
            problems.add(self.field("options"), "id maps are for bind mounts");
            return None;
        }
        let source = match given {
            Some(maps) => IdMapSource::Maps(maps),
            None => self.own_maps(option?, around, problems)?,
        };
        Some(MountIdMap { source, recursive: option.is_some_and(|o| o.recursive) })
    }

    fn given_maps(&self, problems: &mut Problems) -> Option<IdMaps> {
        let mut list = |list: &Option<Vec<LinuxIdMapping>>, name: &str| {
            let lines = list.iter().flatten();
            let map: Vec<IdMap> = lines
                .map(|m| IdMap { inside: m.container_id(), outside: m.host_id(), size: m.size() })
                .collect();
            user::check_map(&map, &self.field(name), problems);
            map
        };
        let maps = IdMaps {
            uids: list(self.mount.uid_mappings(), "uidMappings"),
            gids: list(self.mount.gid_mappings(), "gidMappings"),
        };
        if maps.uids.is_empty() != maps.gids.is_empty() {
            problems
                .add(self.field("uidMappings"), "and gidMappings are given together or not at all");
        }
        (!maps.uids.is_empty() || !maps.gids.is_empty()).then_some(maps)
    }

    /// Those in the option itself, or those of the container.
    fn own_maps(
        &self,
        option: &IdMapOption,
        around: &Around<'_>,
        problems: &mut Problems,
    ) -> Option<IdMapSource> {
        if let Some(text) = &option.maps {
            let field = self.field("options");
            let maps =
                parse_maps(text, around.user).map_err(|why| problems.add(field, why)).ok()?;
            user::check_map(&maps.uids, &self.field("options: uids"), problems);
            user::check_map(&maps.gids, &self.field("options: gids"), problems);
            return Some(IdMapSource::Maps(maps));
        }
        let joined = around.namespaces.joined.iter().find(|(n, _)| *n == Namespace::User);
        match (joined, around.user) {
            (Some((_, path)), _) => Some(IdMapSource::Joined(path.clone())),
            (None, Some(maps)) => Some(IdMapSource::Maps(maps.clone())),
            (None, None) => {
                problems.add(
                    self.field("options"),
                    "idmap needs uidMappings and gidMappings of the mount, or a user namespace",
                );
                None
            }
        }
    }
}

/// crun's `uids=0-1-10#10-11-10;gids=0-100-10`: ids of the file system, of the host, and how many. With `@` before
/// the first the second is an id of the container.
fn parse_maps(text: &str, user: Option<&IdMaps>) -> Result<IdMaps, String> {
    let mut maps = IdMaps::default();
    for part in text.split(';').filter(|part| !part.is_empty()) {
        let (name, lines) = part.split_once('=').unwrap_or((part, ""));
        let (map, whose) = match name {
            "uids" => (&mut maps.uids, user.map(|u| u.uids.as_slice())),
            "gids" => (&mut maps.gids, user.map(|u| u.gids.as_slice())),
            _ => return Err(format!("idmap: {name:?} is neither uids nor gids")),
        };
        for line in lines.split('#') {
            map.push(
                parse_line(line, whose).ok_or_else(|| format!("idmap: {line:?} is no id map"))?,
            );
        }
    }
    if maps.uids.is_empty() || maps.gids.is_empty() {
        return Err("idmap: uids and gids are given together".to_owned());
    }
    Ok(maps)
}

fn parse_line(line: &str, whose: Option<&[IdMap]>) -> Option<IdMap> {
    let (relative, numbers) = match line.strip_prefix('@') {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let mut numbers = numbers.split('-').map(|n| n.parse::<u32>().ok());
    let (inside, outside, size) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let outside =
        if relative { IdMaps::outside(whose.unwrap_or_default(), outside)? } else { outside };
    numbers.next().is_none().then_some(IdMap { inside, outside, size })
}

fn destination(mount: &OciMount, field: &str, problems: &mut Problems) -> Option<String> {
    let path = mount.destination().to_string_lossy();
    check_nul(&path, field, problems);
    // Before 1.0 a destination could be relative, and clients still write it so.
    let absolute = format!("/{}", path.trim_start_matches('/'));
    let clean: Vec<&str> =
        absolute.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if path.is_empty() || clean.is_empty() {
        problems.add(field, "must name a place below /");
        return None;
    }
    if clean.contains(&"..") {
        problems.add(field, format!("{path:?} must not contain \"..\""));
        return None;
    }
    Some(format!("/{}", clean.join("/")))
}

/// Files of procfs that clients cover to show a container its own share of the machine (as runc has it).
const COVERED: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// An image may declare volumes: one over procfs would hide from the container's programs, and from those who enter it,
/// what the kernel says and enforces there (CVE-2019-16884, CVE-2019-19921). The words are runc's.
fn check_procfs(destination: &str, kind: &MountKind, field: &str, problems: &mut Problems) {
    let host = |source: &Path| source == Path::new("/proc");
    match kind {
        MountKind::New { fstype, .. } if fstype == "proc" => {}
        MountKind::Bind { source, .. } if destination == "/proc" && host(source) => {}
        MountKind::Remount { .. } => {}
        _ if destination == "/proc" => {
            problems.add(field, "\"/proc\" cannot be mounted because it is not of type proc");
        }
        _ if destination.starts_with("/proc/") && !COVERED.contains(&destination) => {
            let why = format!("{destination:?} cannot be mounted because it is inside /proc");
            problems.add(field, why);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(inside: u32, outside: u32, size: u32) -> IdMap {
        IdMap { inside, outside, size }
    }

    #[test]
    fn id_maps_as_crun_writes_them() {
        let maps = parse_maps("uids=0-1-10#10-11-10;gids=0-100-10", None).unwrap();
        assert_eq!(maps.uids, [map(0, 1, 10), map(10, 11, 10)]);
        assert_eq!(maps.gids, [map(0, 100, 10)]);
        for wrong in ["", "uids=0-1-10", "uids=0-1;gids=0-1-1", "uids=a-1-1;gids=0-1-1", "x=0-0-1"]
        {
            assert!(parse_maps(wrong, None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_relative_id_map_is_told_in_ids_of_the_container() {
        let ids = vec![map(0, 0, 1), map(1, 2, 1000)];
        let user = IdMaps { uids: ids.clone(), gids: ids };
        let maps = parse_maps("uids=@1-3-10;gids=1-3-10", Some(&user)).unwrap();
        assert_eq!((maps.uids[0], maps.gids[0]), (map(1, 4, 10), map(1, 3, 10)));
        assert!(parse_maps("uids=@1-5000-10;gids=1-3-10", Some(&user)).is_err());
    }
}
