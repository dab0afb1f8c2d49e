//! The mount options of the runtime spec: which are flags of the mount, which belong to the file system.

use crate::resolved::{Attrs, Propagation, SourceLink};

/// Mount attributes (include/uapi/linux/mount.h, mount_setattr(2)).
pub mod attr {
    pub const RDONLY: u64 = 0x01;
    pub const NOSUID: u64 = 0x02;
    pub const NODEV: u64 = 0x04;
    pub const NOEXEC: u64 = 0x08;
    pub const ATIME: u64 = 0x70;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
    pub const NODIRATIME: u64 = 0x80;
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// Option, bits to set, bits to clear. With an `r` before it each holds for the whole tree of a bind.
pub const FLAG_OPTIONS: [(&str, u64, u64); 18] = [
    ("ro", attr::RDONLY, 0),
    ("rw", 0, attr::RDONLY),
    ("nosuid", attr::NOSUID, 0),
    ("suid", 0, attr::NOSUID),
    ("nodev", attr::NODEV, 0),
    ("dev", 0, attr::NODEV),
    ("noexec", attr::NOEXEC, 0),
    ("exec", 0, attr::NOEXEC),
    ("noatime", attr::NOATIME, attr::ATIME),
    ("relatime", 0, attr::ATIME),
    ("atime", 0, attr::ATIME),
    ("strictatime", attr::STRICTATIME, attr::ATIME),
    ("norelatime", attr::STRICTATIME, attr::ATIME),
    ("nostrictatime", 0, attr::ATIME),
    ("nodiratime", attr::NODIRATIME, 0),
    ("diratime", 0, attr::NODIRATIME),
    ("nosymfollow", attr::NOSYMFOLLOW, 0),
    ("symfollow", 0, attr::NOSYMFOLLOW),
];

/// Flags of a whole file system, which the kernel takes by name (fsconfig(2)). A bind shows a file system that has them
/// or has them not.
pub const FILE_SYSTEM_FLAGS: [&str; 7] =
    ["async", "dirsync", "lazytime", "mand", "nolazytime", "nomand", "sync"];

/// Options with a meaning of their own, of the spec and of crun.
pub const OWN_OPTIONS: [&str; 11] = [
    "bind",
    "copy-symlink",
    "defaults",
    "dest-nofollow",
    "idmap",
    "loud",
    "rbind",
    "remount",
    "ridmap",
    "silent",
    "src-nofollow",
];
/// For a tmpfs.
pub const COPY_UP: &str = "tmpcopyup";

const PROPAGATIONS: [(&str, Propagation); 4] = [
    ("shared", Propagation::Shared),
    ("slave", Propagation::Slave),
    ("private", Propagation::Private),
    ("unbindable", Propagation::Unbindable),
];

/// One list of options, sorted into what each is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    pub attrs: Attrs,
    pub recursive_attrs: Attrs,
    pub propagation: Vec<(Propagation, bool)>,
    /// `bind` (false) or `rbind` (true).
    pub bind: Option<bool>,
    pub remount: bool,
    pub copy_up: bool,
    pub link: SourceLink,
    pub on_link: bool,
    pub id_map: Option<IdMapOption>,
    /// Parameters of the file system itself.
    pub data: Vec<(String, Option<String>)>,
}

/// `idmap` or `ridmap`, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMapOption {
    pub recursive: bool,
    /// crun's `uids=0-1000-1;gids=0-1000-1`.
    pub maps: Option<String>,
}

impl MountOptions {
    #[must_use]
    pub fn sort(options: &[String]) -> Self {
        let mut sorted = Self::default();
        for option in options {
            sorted.add(option);
        }
        sorted
    }

    fn add(&mut self, option: &str) {
        match option {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            COPY_UP => self.copy_up = true,
            "copy-symlink" => self.link = SourceLink::Copy,
            "src-nofollow" => self.link = SourceLink::Mount,
            "dest-nofollow" => self.on_link = true,
            // How much the kernel logs, which mount calls of today do not ask.
            "defaults" | "" | "silent" | "loud" => {}
            _ => self.add_id_map(option),
        }
    }

    fn add_id_map(&mut self, option: &str) {
        let (name, maps) = match option.split_once('=') {
            Some((name, maps)) => (name, Some(maps.to_owned())),
            None => (option, None),
        };
        match name {
            "idmap" | "ridmap" => {
                self.id_map = Some(IdMapOption { recursive: name == "ridmap", maps });
            }
            _ => self.add_flag(option),
        }
    }

    fn add_flag(&mut self, option: &str) {
        if let Some((set, clear)) = flag(option) {
            merge(&mut self.attrs, set, clear);
        } else if let Some(kind) = propagation(option) {
            self.propagation.push(kind);
        } else if let Some((set, clear)) = option.strip_prefix('r').and_then(flag) {
            merge(&mut self.recursive_attrs, set, clear);
        } else {
            let (key, value) = match option.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (option, None),
            };
            self.data.push((key.to_owned(), value));
        }
    }

    /// All attributes for a mount that has no tree below it.
    #[must_use]
    pub fn all_attrs(&self) -> Attrs {
        let mut all = self.attrs;
        merge(&mut all, self.recursive_attrs.set, self.recursive_attrs.clear & !attr::ATIME);
        if self.recursive_attrs.clear & attr::ATIME != 0 {
            all.set = (all.set & !attr::ATIME) | (self.recursive_attrs.set & attr::ATIME);
            all.clear |= attr::ATIME;
        }
        all
    }
}

fn flag(option: &str) -> Option<(u64, u64)> {
    FLAG_OPTIONS.iter().find(|(name, ..)| *name == option).map(|(_, set, clear)| (*set, *clear))
}

fn propagation(option: &str) -> Option<(Propagation, bool)> {
    let find = |name: &str| PROPAGATIONS.iter().find(|(n, _)| *n == name).map(|(_, p)| *p);
    find(option)
        .map(|p| (p, false))
        .or_else(|| option.strip_prefix('r').and_then(find).map(|p| (p, true)))
}

/// A later option wins over an earlier one, as mount(8) reads them.
fn merge(attrs: &mut Attrs, set: u64, clear: u64) {
    attrs.set = (attrs.set & !clear) | set;
    attrs.clear = (attrs.clear & !set) | clear;
    // The access-time bits are one field: whoever sets it must clear all of it (mount_setattr(2)).
    if (set | clear) & attr::ATIME != 0 {
        attrs.clear |= attr::ATIME;
    }
}

/// `rslave` and the like, as `linux.rootfsPropagation` takes them.
pub(super) fn named_propagation(name: &str) -> Option<Propagation> {
    propagation(name).map(|(p, _)| p)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sort(options: &[&str]) -> MountOptions {
        MountOptions::sort(&options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_of_two_opposite_options_wins() {
        assert_eq!(sort(&["ro", "rw"]).attrs, Attrs { set: 0, clear: attr::RDONLY });
        assert_eq!(sort(&["rw", "ro"]).attrs, Attrs { set: attr::RDONLY, clear: 0 });
        let atime = sort(&["noatime", "strictatime"]).attrs;
        assert_eq!(atime, Attrs { set: attr::STRICTATIME, clear: attr::ATIME });
    }

    #[test]
    fn a_leading_r_means_the_whole_tree() {
        let options = sort(&["rbind", "rro", "rslave", "relatime"]);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.recursive_attrs.set, attr::RDONLY);
        assert_eq!(options.propagation, [(Propagation::Slave, true)]);
        assert_eq!(options.attrs, Attrs { set: 0, clear: attr::ATIME });
        assert!(options.data.is_empty());
    }

    #[test]
    fn recursive_attributes_win_where_there_is_one_mount() {
        let all = sort(&["nosuid", "noatime", "rw", "rro", "rstrictatime"]).all_attrs();
        assert_eq!(all.set, attr::NOSUID | attr::RDONLY | attr::STRICTATIME);
        assert_eq!(all.clear & attr::ATIME, attr::ATIME);
        assert_eq!(sort(&["noatime", "rro"]).all_attrs().set, attr::NOATIME | attr::RDONLY);
        assert_eq!(
            sort(&["ro", "rrelatime"]).all_attrs(),
            Attrs { set: attr::RDONLY, clear: attr::ATIME }
        );
    }

    #[test]
    fn options_with_a_meaning_of_their_own_are_no_parameters() {
        let all: Vec<&str> = OWN_OPTIONS.into_iter().chain([COPY_UP]).collect();
        let options = sort(&all);
        assert!(options.data.is_empty() && options.remount && options.copy_up && options.on_link);
        let id_map = |option: &str| sort(&[option]).id_map.unwrap();
        assert_eq!(id_map("idmap"), IdMapOption { recursive: false, maps: None });
        let maps = Some("uids=0-1-10#10-11-10;gids=0-100-10".to_owned());
        assert_eq!(
            id_map("ridmap=uids=0-1-10#10-11-10;gids=0-100-10"),
            IdMapOption { recursive: true, maps }
        );
    }

    #[test]
    fn the_rest_goes_to_the_file_system() {
        let options = sort(&["mode=755", "size=64k", "newinstance"]);
        assert_eq!(options.data.len(), 3);
        assert_eq!(options.data[0], ("mode".into(), Some("755".into())));
        assert_eq!(options.data[2], ("newinstance".into(), None));
    }
}
