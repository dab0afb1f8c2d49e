//! What is in the images: entry by entry the same on every machine.

use fastrand::Rng;

/// Files of one folder.
const FOLDER: u32 = 50;

#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    pub name: &'static str,
    pub layers: u32,
    /// Of each layer.
    pub files: u32,
}

/// As many layers as images of long histories have, and one that is large. Small: enough to see that all programs
/// take them.
pub const fn recipes(small: bool) -> [Recipe; 2] {
    let (few, many) = if small { (5, 500) } else { (100, 8_334) };
    [
        Recipe { name: "60-layers", layers: 60, files: few },
        Recipe { name: "50000-files", layers: 6, files: many },
    ]
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Folder(String),
    File {
        name: String,
        size: usize,
    },
    /// What containers run.
    Program(String),
    Symlink {
        name: String,
        target: String,
    },
    HardLink {
        name: String,
        target: String,
    },
}

impl Recipe {
    /// Entries of a layer, which is counted from 0.
    pub(crate) fn entries(&self, layer: u32) -> Vec<Entry> {
        let mut rng = Rng::with_seed(u64::from(layer));
        let mut entries = if layer == 0 { base() } else { changes(layer - 1) };
        entries.push(Entry::Folder(format!("usr/share/l{layer}/")));
        for n in 0..self.files {
            let folder = folder(layer, n);
            if n % FOLDER == 0 {
                entries.push(Entry::Folder(format!("{folder}/")));
            }
            entries.push(Entry::File { name: format!("{folder}/f{n}"), size: size(n, &mut rng) });
            entries.extend(links(&folder, n));
        }
        entries
    }

    /// Bytes of all files but the program.
    pub fn bytes(&self) -> u64 {
        let entries = (0..self.layers).flat_map(|layer| self.entries(layer));
        entries.map(|e| if let Entry::File { size, .. } = e { size as u64 } else { 0 }).sum()
    }
}

fn folder(layer: u32, n: u32) -> String {
    format!("usr/share/l{layer}/d{}", n / FOLDER)
}

/// With the mount points of a container.
fn base() -> Vec<Entry> {
    let folders = ["bin/", "dev/", "etc/", "proc/", "sys/", "tmp/", "usr/", "usr/share/"];
    let mut entries: Vec<Entry> = folders.iter().map(|f| Entry::Folder((*f).to_owned())).collect();
    entries.push(Entry::Program("bin/busybox".to_owned()));
    // Not a hard link: containerd gives its target the mode that the link says.
    entries.push(Entry::Symlink { name: "bin/true".to_owned(), target: "busybox".to_owned() });
    entries
}

/// A layer replaces a file of the one below and removes another.
fn changes(below: u32) -> Vec<Entry> {
    let folder = folder(below, 0);
    vec![
        Entry::File { name: format!("{folder}/f0"), size: 1000 },
        Entry::File { name: format!("{folder}/.wh.f1"), size: 0 },
    ]
}

fn links(folder: &str, n: u32) -> Option<Entry> {
    let target = format!("f{n}");
    match n % 100 {
        7 | 32 | 57 | 82 => Some(Entry::Symlink { name: format!("{folder}/s{n}"), target }),
        13 => {
            let target = format!("{folder}/{target}");
            Some(Entry::HardLink { name: format!("{folder}/h{n}"), target })
        }
        _ => None,
    }
}

/// Four of five are below 4 KiB, and half of the bytes are in one of twenty.
fn size(n: u32, rng: &mut Rng) -> usize {
    let usual = match n {
        n if n % 1000 == 999 => 1_600_000,
        n if n % 20 == 1 => 100_000,
        n if matches!(n % 20, 3 | 8 | 15) => 18_000,
        _ => 2_000,
    };
    usual / 2 + rng.usize(..usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_image_is_large() {
        let [many, large] = recipes(false);
        assert_eq!(many.layers, 60);
        assert!(large.layers * large.files >= 50_000);
        assert!(large.bytes() >= 500_000_000, "{}", large.bytes());
    }

    #[test]
    fn entries_are_the_same_every_time() {
        let [many, _] = recipes(true);
        assert_eq!(many.entries(3), many.entries(3));
        assert_ne!(many.entries(3), many.entries(4));
    }

    #[test]
    fn names_are_unique_in_a_layer() {
        let mut names: Vec<String> = recipes(false)[0].entries(0).iter().map(name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    fn name(entry: &Entry) -> String {
        match entry {
            Entry::Folder(name) | Entry::Program(name) => name.clone(),
            Entry::File { name, .. }
            | Entry::Symlink { name, .. }
            | Entry::HardLink { name, .. } => name.clone(),
        }
    }
}
