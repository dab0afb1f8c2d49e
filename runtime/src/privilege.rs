//! What only the runtime may do for a process in a user namespace of its own.

use std::path::PathBuf;

use hafen_spec::plan::HostStep;
use hafen_spec::resolved::{IdMap, IdMaps};
use hafen_sys::file::{read_text, write_knob};
use hafen_sys::{CallError, limit};

/// Carry out one step for the process.
///
/// # Errors
/// Names the file and the value, or the limit.
pub(crate) fn perform(step: &HostStep, pid: i32) -> Result<(), CallError> {
    match step {
        HostStep::IdMaps(maps) => write_maps(pid, maps),
        HostStep::CheckIdMaps(maps) => check_maps(pid, maps),
        HostStep::OomScoreAdj { value } => {
            write_knob(&file(pid, "oom_score_adj"), &value.to_string())
        }
        HostStep::HardLimit(wanted) => limit::raise_hard(pid, wanted.resource, wanted.hard)
            .map_err(|e| CallError::new(format!("{}: {}", wanted.name, e.call), e.source)),
        _ => Ok(()),
    }
}

/// As a whole: the kernel takes each file once (user_namespaces(7)).
pub(crate) fn write_maps(pid: i32, maps: &IdMaps) -> Result<(), CallError> {
    write_knob(&file(pid, "uid_map"), &text(&maps.uids))?;
    write_knob(&file(pid, "gid_map"), &text(&maps.gids))
}

/// A client that joins a user namespace may tell its maps, too, and has prepared everything for them.
fn check_maps(pid: i32, maps: &IdMaps) -> Result<(), CallError> {
    for (name, field, told) in
        [("uid_map", "uidMappings", &maps.uids), ("gid_map", "gidMappings", &maps.gids)]
    {
        let found = parse(&read_text(&file(pid, name))?);
        if joined_up(told) != joined_up(&found) {
            let call = format!("linux.{field}: compare with the joined user namespace");
            let words = format!("it has {:?}", text(&found).trim());
            return Err(CallError::new(call, std::io::Error::other(words)));
        }
    }
    Ok(())
}

fn parse(text: &str) -> Vec<IdMap> {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|n| n.parse().ok());
        let mut next = || numbers.next().flatten();
        Some(IdMap { inside: next()?, outside: next()?, size: next()? })
    };
    text.lines().filter_map(line).collect()
}

/// In order, and neighbours as one: there are many ways to write the same map.
fn joined_up(map: &[IdMap]) -> Vec<IdMap> {
    let mut sorted = map.to_vec();
    sorted.sort_by_key(|line| line.inside);
    let mut joined: Vec<IdMap> = Vec::new();
    for line in sorted {
        match joined.last_mut() {
            Some(last)
                if last.inside.checked_add(last.size) == Some(line.inside)
                    && last.outside.checked_add(last.size) == Some(line.outside) =>
            {
                last.size += line.size;
            }
            _ => joined.push(line),
        }
    }
    joined
}

pub(crate) fn text(map: &[IdMap]) -> String {
    map.iter().map(|line| format!("{line}\n")).collect()
}

pub(crate) fn file(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_map_in_other_words() {
        let one = parse("0 100000 65536\n");
        let two = parse("         1     100001      65535\n         0     100000          1\n");
        assert_eq!(joined_up(&one), joined_up(&two));
        assert_ne!(joined_up(&one), joined_up(&parse("0 100000 65535\n")));
        assert_ne!(joined_up(&parse("0 0 1\n1 5 1\n")), joined_up(&parse("0 0 2\n")));
    }
}
