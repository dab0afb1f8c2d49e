//! What may go. Pure: what is there, what leads to it and the time are given.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use hafen_spec::image::Digest;

/// What there is, and what refers to what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    pub blobs: BTreeMap<Digest, Item>,
    /// By chain id.
    pub layers: BTreeMap<Digest, Item>,
    /// Of blobs, left by those who fetched them. Nothing leads to them.
    pub parts: BTreeMap<Digest, Item>,
    pub named: Vec<Root>,
    /// What each container stands on.
    pub used: Vec<Reached>,
}

/// Something that takes room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    pub bytes: u64,
    pub changed: SystemTime,
}

/// A name, and what it leads to: blobs and chain ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    pub name: String,
    /// When it got its meaning, or a container took it.
    pub last_use: SystemTime,
    pub pinned: bool,
    /// A container stands on it.
    pub used: bool,
    pub reached: Reached,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reached {
    pub blobs: Vec<Digest>,
    pub layers: Vec<Digest>,
}

/// What nothing refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Garbage {
    pub blobs: Vec<Digest>,
    pub layers: Vec<Digest>,
    pub parts: Vec<Digest>,
}

/// When something is collected, and what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Without them no name goes, and what nothing refers to goes at any time.
    pub watermarks: Option<Watermarks>,
    /// What has changed or was used since stays.
    pub min_age: Duration,
}

/// Of the file system, in per cent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Nothing goes below it.
    pub high: u8,
    /// Names go until the use is below it.
    pub low: u8,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub total: u64,
    pub used: u64,
}

/// What is to go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// By their last use, the oldest first.
    pub names: Vec<String>,
    /// What nothing refers to without these names.
    pub garbage: Garbage,
    /// As far as it is known: files of layers count without what their blocks have too much.
    pub bytes: u64,
}

impl Disk {
    /// Is less than this part of it used, when so many bytes have gone? A file system that does not say is never full.
    fn is_below(self, percent: u8, freed: u64) -> bool {
        let left = u128::from(self.used.saturating_sub(freed));
        self.total == 0 || left * 100 < u128::from(self.total) * u128::from(percent)
    }
}

/// Everything that neither a name nor a container leads to.
#[must_use]
pub fn garbage(contents: &Contents) -> Garbage {
    let roots = || contents.named.iter().map(|root| &root.reached).chain(&contents.used);
    let blobs: BTreeSet<&Digest> = roots().flat_map(|r| &r.blobs).collect();
    let layers: BTreeSet<&Digest> = roots().flat_map(|r| &r.layers).collect();
    Garbage {
        blobs: contents.blobs.keys().filter(|d| !blobs.contains(d)).cloned().collect(),
        layers: contents.layers.keys().filter(|d| !layers.contains(d)).cloned().collect(),
        parts: contents.parts.keys().cloned().collect(),
    }
}

/// What goes now: what nothing refers to, and, above the high watermark, names by their last use until the use of the
/// disk is below the low one.
#[must_use]
pub fn due(contents: &Contents, disk: Disk, policy: &Policy, now: SystemTime) -> Due {
    let before = now.checked_sub(policy.min_age).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut rest = without_young_garbage(contents, before);
    let names = match policy.watermarks {
        None => Vec::new(),
        Some(marks) if disk.is_below(marks.high, 0) => return Due::default(),
        Some(marks) => take_names(&mut rest, disk, marks.low, before),
    };
    let garbage = garbage(&rest);
    Due { names, bytes: bytes(&rest, &garbage), garbage }
}

/// As if it were not there: somebody may be about to refer to it.
fn without_young_garbage(contents: &Contents, before: SystemTime) -> Contents {
    let all = garbage(contents);
    let mut rest = contents.clone();
    for (items, garbage) in [
        (&mut rest.blobs, &all.blobs),
        (&mut rest.layers, &all.layers),
        (&mut rest.parts, &all.parts),
    ] {
        for digest in garbage {
            if items.get(digest).is_some_and(|item| item.changed > before) {
                items.remove(digest);
            }
        }
    }
    rest
}

fn take_names(rest: &mut Contents, disk: Disk, low: u8, before: SystemTime) -> Vec<String> {
    let mut taken = Vec::new();
    for root in candidates(rest, before) {
        if disk.is_below(low, freed(rest)) {
            break;
        }
        rest.named.retain(|other| other.name != root.name);
        taken.push(root);
    }
    give_back(rest, taken).into_iter().map(|root| root.name).collect()
}

fn candidates(contents: &Contents, before: SystemTime) -> Vec<Root> {
    let may_go = |root: &&Root| !root.pinned && !root.used && root.last_use <= before;
    let mut all: Vec<Root> = contents.named.iter().filter(may_go).cloned().collect();
    all.sort_by(|a, b| (a.last_use, &a.name).cmp(&(b.last_use, &b.name)));
    all
}

/// A name stays whose content another one keeps.
fn give_back(rest: &mut Contents, taken: Vec<Root>) -> Vec<Root> {
    let mut gone = Vec::new();
    for root in taken.into_iter().rev() {
        let before = freed(rest);
        rest.named.push(root.clone());
        if freed(rest) < before {
            rest.named.pop();
            gone.push(root);
        }
    }
    gone.reverse();
    gone
}

fn freed(contents: &Contents) -> u64 {
    bytes(contents, &garbage(contents))
}

pub(super) fn bytes(contents: &Contents, garbage: &Garbage) -> u64 {
    let sum = |items: &BTreeMap<Digest, Item>, some: &[Digest]| -> u64 {
        some.iter().filter_map(|digest| items.get(digest)).map(|item| item.bytes).sum()
    };
    sum(&contents.blobs, &garbage.blobs)
        + sum(&contents.layers, &garbage.layers)
        + sum(&contents.parts, &garbage.parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn digest(n: u8) -> Digest {
        Digest::sha256([n; 32])
    }

    fn at(hour: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + HOUR * (1000 + hour)
    }

    fn items(numbers: impl IntoIterator<Item = u8>, bytes: u64) -> BTreeMap<Digest, Item> {
        numbers.into_iter().map(|n| (digest(n), Item { bytes, changed: at(0) })).collect()
    }

    fn reached(blobs: &[u8], layers: &[u8]) -> Reached {
        let digests = |numbers: &[u8]| numbers.iter().copied().map(digest).collect();
        Reached { blobs: digests(blobs), layers: digests(layers) }
    }

    fn root(name: &str, hour: u32, blobs: &[u8]) -> Root {
        Root {
            name: name.to_owned(),
            last_use: at(hour),
            pinned: false,
            used: false,
            reached: reached(blobs, &[]),
        }
    }

    fn named(roots: Vec<Root>, blobs: impl IntoIterator<Item = u8>) -> Contents {
        Contents { blobs: items(blobs, 10), named: roots, ..Contents::default() }
    }

    fn policy(high: u8, low: u8, hours: u32) -> Policy {
        Policy { watermarks: Some(Watermarks { high, low }), min_age: HOUR * hours }
    }

    const FULL: Disk = Disk { total: 100, used: 90 };

    #[test]
    fn what_is_named_or_used_stays() {
        let mut contents = named(vec![root("a", 1, &[1, 2])], 1..6);
        contents.layers = items(10..14, 1);
        contents.parts = items([20], 1);
        contents.named[0].reached.layers.push(digest(10));
        contents.used = vec![reached(&[3], &[11, 10])];
        let garbage = garbage(&contents);
        assert_eq!(garbage.blobs, [digest(4), digest(5)]);
        assert_eq!(garbage.layers, [digest(12), digest(13)]);
        assert_eq!(garbage.parts, [digest(20)]);
    }

    #[test]
    fn without_watermarks_no_name_goes() {
        let contents = named(vec![root("a", 1, &[1])], 1..3);
        let due = due(&contents, FULL, &Policy::default(), at(9));
        assert_eq!((due.names.len(), due.garbage.blobs, due.bytes), (0, vec![digest(2)], 10));
    }

    #[test]
    fn what_is_young_stays() {
        let mut contents = named(Vec::new(), 1..3);
        contents.parts = items([3], 1);
        let policy = Policy { watermarks: None, min_age: HOUR * 2 };
        contents.blobs.get_mut(&digest(1)).expect("a blob").changed = at(8);
        let due = due(&contents, FULL, &policy, at(9));
        assert_eq!((due.garbage.blobs, due.garbage.parts), (vec![digest(2)], vec![digest(3)]));
    }

    #[test]
    fn below_the_high_watermark_nothing_goes() {
        let contents = named(vec![root("a", 1, &[1])], 1..3);
        assert_eq!(due(&contents, FULL, &policy(91, 10, 0), at(9)), Due::default());
        assert!(!due(&contents, FULL, &policy(90, 10, 0), at(9)).names.is_empty());
    }

    #[test]
    fn a_file_system_without_a_size_is_not_full() {
        let contents = named(vec![root("a", 1, &[1])], 1..3);
        let disk = Disk { total: 0, used: 0 };
        assert_eq!(due(&contents, disk, &policy(1, 0, 0), at(9)), Due::default());
    }

    #[test]
    fn garbage_goes_before_names() {
        let contents = named(vec![root("a", 1, &[1])], 1..4);
        let due = due(&contents, FULL, &policy(90, 71, 0), at(9));
        assert_eq!((due.names.len(), due.bytes), (0, 20));
    }

    #[test]
    fn the_oldest_goes_first_and_no_more_than_needed() {
        let roots = vec![root("new", 3, &[1]), root("old", 1, &[2]), root("middle", 2, &[3])];
        let due = due(&named(roots, 1..4), FULL, &policy(90, 75, 0), at(9));
        assert_eq!(due.names, ["old", "middle"]);
        assert_eq!(due.garbage.blobs, [digest(2), digest(3)]);
    }

    #[test]
    fn pinned_used_and_young_names_stay() {
        let mut roots: Vec<Root> =
            (1..5).map(|n| root(&format!("n{n}"), u32::from(n), &[n])).collect();
        roots[0].pinned = true;
        roots[1].used = true;
        let due = due(&named(roots, 1..5), FULL, &policy(90, 0, 6), at(9));
        assert_eq!(due.names, ["n3"], "the fourth was used five hours ago");
    }

    #[test]
    fn a_name_that_frees_nothing_stays() {
        let mut roots =
            vec![root("other", 1, &[1]), root("pinned", 2, &[1]), root("alone", 3, &[2])];
        roots[1].pinned = true;
        let due = due(&named(roots, 1..3), FULL, &policy(90, 0, 0), at(9));
        assert_eq!(due.names, ["alone"]);
    }

    #[test]
    fn two_names_of_one_image_go_together() {
        let roots = vec![root("one", 1, &[1]), root("two", 2, &[1]), root("three", 3, &[2])];
        let due = due(&named(roots, 1..3), FULL, &policy(90, 85, 0), at(9));
        assert_eq!((due.names, due.bytes), (vec!["one".to_owned(), "two".to_owned()], 10));
    }

    #[test]
    fn what_is_shared_is_not_counted() {
        // The base of both goes with the second only.
        let mut contents = named(vec![root("a", 1, &[1, 2]), root("b", 2, &[1, 3])], 1..4);
        contents.blobs.get_mut(&digest(1)).expect("a blob").bytes = 50;
        let due = due(&contents, FULL, &policy(90, 80, 0), at(9));
        assert_eq!((due.names.len(), due.bytes), (2, 70));
        assert_eq!(due.garbage.blobs, [digest(1), digest(2), digest(3)]);
    }

    /// Whatever there is: what is pinned, used or young stays with all it leads to, and no name goes in vain.
    #[test]
    fn random_stores() {
        let mut seed = 1_u64;
        let mut random = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        for _ in 0..2000 {
            let mut contents = named(Vec::new(), 0..12);
            for n in 0..random(8) {
                let blobs: Vec<u8> = (0..12).filter(|_| random(4) == 0).collect();
                let mut root = root(&format!("n{n}"), random(10) as u32, &blobs);
                (root.pinned, root.used) = (random(4) == 0, random(4) == 0);
                contents.named.push(root);
            }
            contents.used.push(reached(&[random(12) as u8], &[]));
            let low = random(101) as u8;
            let (policy, disk) = (policy(low, low, 3), Disk { total: 150, used: 120 });
            let due = due(&contents, disk, &policy, at(10));
            holds(&contents, disk, &policy, &due);
        }
    }

    fn holds(contents: &Contents, disk: Disk, policy: &Policy, due: &Due) {
        let (gone, left): (Vec<&Root>, Vec<&Root>) =
            contents.named.iter().partition(|root| due.names.contains(&root.name));
        assert_eq!(gone.len(), due.names.len());
        for reached in left.iter().map(|root| &root.reached).chain(&contents.used) {
            assert!(reached.blobs.iter().all(|blob| !due.garbage.blobs.contains(blob)));
        }
        for root in &gone {
            assert!(!root.pinned && !root.used && root.last_use <= at(7), "{root:?}");
            let frees =
                |blob: &Digest| left.iter().all(|other| !other.reached.blobs.contains(blob));
            assert!(root.reached.blobs.iter().any(frees), "{root:?} in vain");
        }
        if let (Some(marks), true) = (policy.watermarks, !gone.is_empty()) {
            let without = |root: &Root| !gone.iter().any(|other| other.name == root.name);
            let mut all = contents.clone();
            all.named.retain(without);
            assert_eq!(freed(&all), due.bytes);
            let last = due.names.last().expect("one");
            all.named.extend(contents.named.iter().filter(|root| root.name == *last).cloned());
            assert!(!disk.is_below(marks.low, freed(&all)), "{last} was one too many");
        }
    }
}
