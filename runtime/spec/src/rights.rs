//! Capabilities by their names (capabilities(7)), as sets of bits.

use caps::Capability;

use crate::Problems;

/// What programs that begin as root take to become what they are to be: to own their files, change to a user of their own,
/// and listen. None of them reaches beyond the container's files, ids and ports.
pub const USUAL: u64 = bits(&[
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
]);

/// For a command of which nothing is known, maybe on the files of the machine itself: those of other users stay closed.
pub const FEW: u64 =
    bits(&[Capability::CAP_AUDIT_WRITE, Capability::CAP_KILL, Capability::CAP_NET_BIND_SERVICE]);

const ALL: &str = "ALL";

const fn bits(of: &[Capability]) -> u64 {
    let (mut mask, mut i) = (0, 0);
    while i < of.len() {
        mask |= 1 << of[i] as u8;
        i += 1;
    }
    mask
}

/// Its bit, by a name with `CAP_` or without, in letters of either case.
#[must_use]
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    full.parse::<Capability>().ok().map(|capability| capability.bitmask())
}

/// In the order of their numbers.
#[must_use]
pub fn names(mask: u64) -> Vec<String> {
    let mut all: Vec<Capability> =
        caps::all().into_iter().filter(|c| mask & c.bitmask() != 0).collect();
    all.sort_by_key(Capability::index);
    all.iter().map(ToString::to_string).collect()
}

#[must_use]
pub fn has(mask: u64, capability: Capability) -> bool {
    mask & capability.bitmask() != 0
}

/// All that have a name.
#[must_use]
pub fn all() -> u64 {
    caps::all().iter().fold(0, |mask, capability| mask | capability.bitmask())
}

/// Names with commas between, or nothing.
///
/// # Errors
/// In words.
pub fn list(text: &str) -> Result<u64, String> {
    text.split(',')
        .filter(|name| !name.is_empty())
        .try_fold(0, |mask, name| Ok(mask | known(name)?))
}

fn known(name: &str) -> Result<u64, String> {
    bit(name).ok_or_else(|| format!("there is no capability {name:?}"))
}

/// What comes of a set that people have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    pub all: u64,
    /// Of these, what they named: another user than root has it from the start.
    pub added: u64,
}

/// Change the usual set, as people of Docker and Podman know it: who drops ALL has what is added, and who adds ALL has
/// what is not dropped.
///
/// # Errors
/// Names the place, as `add[0]`.
pub fn change(usual: u64, add: &[String], drop: &[String]) -> Result<Changed, Problems> {
    let is_all = |name: &String| name.eq_ignore_ascii_case(ALL);
    let mut problems = Problems::default();
    let mut named = |field: &str, names: &[String]| {
        let mut mask = 0;
        for (i, name) in names.iter().enumerate().filter(|(_, name)| !is_all(name)) {
            match known(name) {
                Ok(bit) => mask |= bit,
                Err(why) => problems.add(format!("{field}[{i}]"), why),
            }
        }
        mask
    };
    let (mut added, dropped) = (named("add", add), named("drop", drop));
    if added & dropped != 0 {
        problems.add("drop", format!("{} is added as well", names(added & dropped).join(", ")));
    }
    let usual = if drop.iter().any(is_all) { 0 } else { usual };
    if add.iter().any(is_all) {
        if drop.iter().any(is_all) {
            problems.add("drop", format!("{ALL} is added as well"));
        }
        added = all();
    }
    let all = (usual | added) & !dropped;
    problems.into_result(Changed { all, added: added & all })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(add: &[&str], drop: &[&str]) -> Result<Changed, Problems> {
        let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        change(USUAL, &text(add), &text(drop))
    }

    fn bit_of(name: &str) -> u64 {
        bit(name).unwrap()
    }

    #[test]
    fn names_of_either_kind() {
        assert_eq!(bit("CAP_KILL"), Some(1 << 5));
        assert_eq!(bit("kill"), bit("CAP_KILL"));
        assert_eq!((bit("CAP_CAP_KILL"), bit(""), bit("ALL")), (None, None, None));
        assert_eq!(names(FEW), ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_AUDIT_WRITE"]);
        assert_eq!(list("CAP_KILL,CHOWN"), Ok(1 << 5 | 1));
        assert_eq!(list(""), Ok(0));
        assert!(list("KILL,NOT").unwrap_err().contains("NOT"));
        assert_eq!(names(USUAL).len(), 11);
    }

    #[test]
    fn sets_are_changed() {
        let admin = bit_of("NET_ADMIN");
        assert_eq!(changed(&[], &[]), Ok(Changed { all: USUAL, added: 0 }));
        let both = Changed { all: (USUAL | admin) & !bit_of("KILL"), added: admin };
        assert_eq!(changed(&["net_admin"], &["CAP_KILL"]), Ok(both));
        assert_eq!(changed(&["NET_ADMIN"], &["all"]), Ok(Changed { all: admin, added: admin }));
        assert_eq!(changed(&[], &["ALL"]), Ok(Changed { all: 0, added: 0 }));
        let rest = all() & !bit_of("SYS_ADMIN");
        assert_eq!(changed(&["ALL"], &["SYS_ADMIN"]), Ok(Changed { all: rest, added: rest }));
    }

    #[test]
    fn what_cannot_be_is_told_by_its_place() {
        let fields = |add: &[&str], drop: &[&str]| {
            let problems = changed(add, drop).unwrap_err();
            problems.0.into_iter().map(|p| p.field).collect::<Vec<_>>()
        };
        assert_eq!(fields(&["KILL", "NOT"], &["", "KILL"]), ["add[1]", "drop[0]", "drop"]);
        assert_eq!(fields(&["ALL"], &["ALL"]), ["drop"]);
    }
}
