//! The keeper: a container's small parent, its logs, its socket, and what is left when it dies.

mod attach;
mod deaths;
mod ends;
mod execs;
mod fence;
mod logs;
mod memory;

use std::fs;
use std::path::{Path, PathBuf};

use hafen_integration::{Bundle, Case, Kept, Oci, Test};
use sha2::{Digest, Sha256};

pub(crate) fn trials() -> Vec<Case> {
    let modules = [
        ends::trials(),
        logs::trials(),
        attach::trials(),
        execs::trials(),
        deaths::trials(),
        fence::trials(),
        memory::trials(),
    ];
    modules.into_iter().flatten().collect()
}

/// One container, and where its keeper has its things.
struct Place {
    oci: Oci,
    id: String,
    dir: PathBuf,
    log: PathBuf,
}

impl Place {
    fn new(t: &Test) -> Self {
        let id = t.id();
        let dir = t.dir().join(format!("keep-{id}"));
        Self { oci: t.oci(), log: t.dir().join(format!("log-{id}")), id, dir }
    }

    /// With a log, and `options` more.
    fn keep(&self, bundle: &Bundle, options: &[&str]) -> Kept {
        Kept::begin(&self.oci, &self.dir, self.words(bundle, options))
    }

    fn words(&self, bundle: &Bundle, options: &[&str]) -> Vec<String> {
        let log = self.log.display().to_string();
        let bundle = bundle.path().display().to_string();
        let fixed = ["--output", &log, "--bundle", &bundle];
        fixed
            .into_iter()
            .chain(options.iter().copied())
            .chain([&*self.id])
            .map(str::to_owned)
            .collect()
    }

    fn resume(&self) -> Kept {
        Kept::begin(&self.oci, &self.dir, ["--resume"])
    }

    /// Of the container and of what it used nothing is there; of the keeper only what tells of it.
    #[track_caller]
    fn assert_gone(&self, when: &str) {
        crate::faults::assert_gone(&self.oci, &self.id, when);
        let mut left = names(&self.dir);
        left.retain(|name| !["exit.json", "keep.json", "lock"].contains(&&**name));
        assert!(left.is_empty(), "{when}: left in the keeper's folder: {left:?}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Bytes that do not repeat, from a small generator (xorshift).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// CPU time of a process, in ticks of a hundredth of a second.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process that runs");
    let fields = stat.rsplit_once(") ").expect("a name").1.split(' ').skip(11).take(2);
    fields.map(|f| f.parse::<u64>().expect("ticks")).sum()
}
