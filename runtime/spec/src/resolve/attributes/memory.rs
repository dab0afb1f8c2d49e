use oci_spec::runtime::{LinuxMemoryPolicy, Spec};

use super::id_list;
use crate::Problems;
use crate::resolved::MemoryPolicy;

/// Modes of set_mempolicy(2) with their numbers (include/uapi/linux/mempolicy.h).
pub const MEMORY_MODES: [(&str, u32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

pub const MEMORY_FLAGS: [(&str, u32); 3] = [
    ("MPOL_F_NUMA_BALANCING", NUMA_BALANCING),
    ("MPOL_F_RELATIVE_NODES", RELATIVE),
    ("MPOL_F_STATIC_NODES", STATIC),
];

const NUMA_BALANCING: u32 = 1 << 13;
const RELATIVE: u32 = 1 << 14;
const STATIC: u32 = 1 << 15;
/// Largest MAX_NUMNODES of any architecture.
const MOST_NODES: u32 = 1024;

pub(super) fn policy(spec: &Spec, problems: &mut Problems) -> Option<MemoryPolicy> {
    let asked = spec.linux().as_ref()?.memory_policy().as_ref()?;
    let name = asked.mode().to_string();
    let flags = flags(asked);
    let nodes = asked.nodes().as_deref().unwrap_or_default();
    let nodes = id_list::parse(nodes, MOST_NODES, "linux.memoryPolicy.nodes", problems);
    check_flags(&name, flags, problems);
    match (name.as_str(), nodes.is_some()) {
        ("MPOL_DEFAULT" | "MPOL_LOCAL", true) => {
            problems.add("linux.memoryPolicy.nodes", format!("must be empty with {name}"));
        }
        // Without nodes it means the local one, if no flag speaks of nodes.
        ("MPOL_PREFERRED", false) if flags & (STATIC | RELATIVE) == 0 => {}
        ("MPOL_DEFAULT" | "MPOL_LOCAL", false) | (_, true) => {}
        _ => problems.add("linux.memoryPolicy.nodes", format!("must name a node with {name}")),
    }
    let mode = number(&MEMORY_MODES, &name);
    let words = [name].into_iter().chain(asked.flags().iter().flatten().map(ToString::to_string));
    let name = words.collect::<Vec<_>>().join(" ");
    Some(MemoryPolicy { name, mode: mode | flags, nodes: nodes.unwrap_or_default() })
}

fn flags(asked: &LinuxMemoryPolicy) -> u32 {
    let listed = asked.flags().iter().flatten();
    listed.fold(0, |bits, flag| bits | number(&MEMORY_FLAGS, &flag.to_string()))
}

fn check_flags(mode: &str, flags: u32, problems: &mut Problems) {
    let mut wrong = |reason: String| problems.add("linux.memoryPolicy.flags", reason);
    if flags & STATIC != 0 && flags & RELATIVE != 0 {
        wrong("MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other".to_owned());
    }
    if flags & NUMA_BALANCING != 0 && !["MPOL_BIND", "MPOL_PREFERRED_MANY"].contains(&mode) {
        wrong(format!("MPOL_F_NUMA_BALANCING does not go with {mode} (set_mempolicy(2))"));
    }
    if flags & (STATIC | RELATIVE) != 0 && ["MPOL_DEFAULT", "MPOL_LOCAL"].contains(&mode) {
        wrong(format!("flags about nodes do not go with {mode} (set_mempolicy(2))"));
    }
}

fn number(table: &[(&str, u32)], name: &str) -> u32 {
    table.iter().find(|(known, _)| *known == name).map_or(0, |(_, number)| *number)
}
