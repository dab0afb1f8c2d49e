//! The outer limit of a group: of the cgroup that those of its tasks are in, which the runtime makes and removes.

use std::fs;
use std::path::{Path, PathBuf};

use hafen_protocol::v1;
use hafen_spec::plan::Claim;
use hafen_sys::{CallError, Context};

/// Microseconds, as the runtime has it for a container.
const PERIOD: u64 = 100_000;

/// Bound all tasks of the group that a container with these claims belongs to.
///
/// # Errors
/// Names the file.
pub fn bound(claims: &[Claim], limit: &v1::Amounts) -> Result<(), CallError> {
    files(claims, limit).into_iter().try_for_each(|(path, text)| {
        fs::write(&path, &text).call(|| format!("write {text:?} to {}", path.display()))
    })
}

/// What is to be written where, in this order.
fn files(claims: &[Claim], limit: &v1::Amounts) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut add = |folder: Option<&Path>, name: &str, text: String| {
        files.extend(folder.map(|folder| (folder.join(name), text)));
    };
    if let Some(memory) = limit.memory {
        let both = limit.swap.map(|swap| memory.saturating_add(swap));
        match legacy(claims, "memory") {
            Some(folder) => {
                add(Some(folder), "memory.limit_in_bytes", memory.to_string());
                let memsw = both.map(|_| folder);
                add(memsw, "memory.memsw.limit_in_bytes", both.unwrap_or_default().to_string());
            }
            None => {
                let swap = limit.swap.and_then(|_| unified(claims));
                add(unified(claims), "memory.max", memory.to_string());
                add(swap, "memory.swap.max", limit.swap.unwrap_or_default().to_string());
            }
        }
    }
    if let Some(milli) = limit.cpu_milli {
        let quota = milli.saturating_mul(PERIOD) / 1000;
        match legacy(claims, "cpu") {
            Some(folder) => {
                add(Some(folder), "cpu.cfs_period_us", PERIOD.to_string());
                add(Some(folder), "cpu.cfs_quota_us", quota.to_string());
            }
            None => add(unified(claims), "cpu.max", format!("{quota} {PERIOD}")),
        }
    }
    if let Some(pids) = limit.pids {
        add(legacy(claims, "pids").or_else(|| unified(claims)), "pids.max", pids.to_string());
    }
    files
}

/// The folder above the container's in the version 1 hierarchy of a controller.
fn legacy<'a>(claims: &'a [Claim], wanted: &str) -> Option<&'a Path> {
    claims.iter().find_map(|claim| match claim {
        Claim::LegacyCgroup { controller, path, .. } => {
            controller.split(',').any(|name| name == wanted).then(|| path.parent())?
        }
        _ => None,
    })
}

fn unified(claims: &[Claim]) -> Option<&Path> {
    claims.iter().find_map(|claim| match claim {
        Claim::Cgroup { path, .. } => path.parent(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_files() {
        let tree = Claim::Cgroup { path: "/c/hafen/p/a".into(), parents: Vec::new(), unit: None };
        let memory = Claim::LegacyCgroup {
            controller: "memory".to_owned(),
            path: "/m/hafen/p/a".into(),
            parents: Vec::new(),
        };
        let limit = v1::Amounts {
            memory: Some(4096),
            swap: Some(1),
            cpu_milli: Some(1500),
            pids: Some(9),
            disk: None,
        };
        let all = |claims: &[Claim]| {
            let files = files(claims, &limit).into_iter();
            files.map(|(path, text)| format!("{} {text}", path.display())).collect::<Vec<_>>()
        };
        let unified = [
            "/c/hafen/p/memory.max 4096",
            "/c/hafen/p/memory.swap.max 1",
            "/c/hafen/p/cpu.max 150000 100000",
            "/c/hafen/p/pids.max 9",
        ];
        assert_eq!(all(std::slice::from_ref(&tree)), unified);
        let hybrid = [
            "/m/hafen/p/memory.limit_in_bytes 4096",
            "/m/hafen/p/memory.memsw.limit_in_bytes 4097",
            "/c/hafen/p/cpu.max 150000 100000",
            "/c/hafen/p/pids.max 9",
        ];
        assert_eq!(all(&[tree, memory]), hybrid);
    }
}
