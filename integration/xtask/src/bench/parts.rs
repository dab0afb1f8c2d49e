//! The parts of a whole run: which program, with how much work.

use crate::setup::Group;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// So that everything is seen to work.
    Quick,
    /// Half an hour in all.
    Usual,
    /// More runs of everything, for more than an hour.
    Full,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Of the page's section and of its plots.
    pub(super) name: &'static str,
    /// As `--only` names it.
    pub(super) group: &'static str,
    pub(super) program: &'static str,
    /// Options, whatever the size.
    words: &'static [&'static str],
    quick: &'static [&'static str],
    usual: &'static [&'static str],
    full: &'static [&'static str],
    /// The packages that it needs.
    pub(super) needs: Group,
    pub(super) in_vm: bool,
    /// Only these processors (taskset(1)).
    pub(super) on: Option<&'static str>,
}

impl Part {
    pub(super) fn options(&self, size: Size) -> Vec<&'static str> {
        let more = match size {
            Size::Quick => self.quick,
            Size::Usual => self.usual,
            Size::Full => self.full,
        };
        [self.words, more].concat()
    }
}

/// Names of groups.
pub(super) const GROUPS: [&str; 9] =
    ["launch", "exec", "phases", "stdio", "agent", "enforcement", "images", "cluster", "vm"];
/// The group that takes more than a machine: an emulated one.
pub(super) const VM: &str = "vm";

const BASE: Part = Part {
    name: "",
    group: "",
    program: "",
    words: &[],
    quick: &["--runs", "3"],
    usual: &["--runs", "60"],
    full: &["--runs", "200"],
    needs: Group::Bench,
    in_vm: false,
    on: None,
};

const fn launch(name: &'static str, words: &'static [&'static str]) -> Part {
    Part { name, group: "launch", program: "bench-launch", words, ..BASE }
}

const IN_VM: Part = Part {
    group: VM,
    in_vm: true,
    quick: &["--runs", "2"],
    usual: &["--runs", "20"],
    full: &["--runs", "30"],
    ..BASE
};

pub(super) const ALL: &[Part] = &[
    launch("launch-podman", &["--bundle", "podman"]),
    launch("launch-default", &["--bundle", "default"]),
    launch("launch-minimal", &["--bundle", "minimal"]),
    launch("launch-limits", &["--bundle", "limits"]),
    Part { on: Some("0"), ..launch("launch-one", &["--bundle", "podman"]) },
    Part { name: "exec", group: "exec", program: "bench-exec", ..BASE },
    Part {
        name: "phases",
        group: "phases",
        program: "bench-phases",
        usual: &["--runs", "30"],
        full: &["--runs", "100"],
        ..BASE
    },
    Part {
        name: "stdio",
        group: "stdio",
        program: "bench-stdio",
        quick: &["--megabytes", "50", "--runs", "2"],
        usual: &["--megabytes", "1000", "--runs", "3"],
        full: &["--megabytes", "1000", "--runs", "15"],
        needs: Group::BenchAgent,
        ..BASE
    },
    Part {
        name: "agent",
        group: "agent",
        program: "bench-agent",
        quick: &["--count", "10", "--rounds", "1", "--idle", "2", "--singles", "3"],
        usual: &["--count", "200", "--rounds", "1", "--idle", "10"],
        full: &["--count", "200", "--rounds", "3"],
        needs: Group::BenchAgent,
        ..BASE
    },
    Part {
        name: "agent-many",
        group: "agent",
        program: "bench-agent",
        quick: &["--count", "20", "--rounds", "1", "--idle", "2", "--singles", "3"],
        usual: &["--count", "1000", "--rounds", "1"],
        full: &["--count", "1000", "--rounds", "3"],
        needs: Group::BenchAgent,
        ..BASE
    },
    Part {
        name: "enforcement",
        group: "enforcement",
        program: "bench-enforcement",
        quick: &["--runs", "1", "--seconds", "1", "--work-seconds", "1"],
        usual: &["--runs", "3", "--seconds", "10", "--work-seconds", "5"],
        full: &["--runs", "10", "--cpu-runs", "5", "--seconds", "10", "--work-seconds", "10"],
        needs: Group::Up,
        ..BASE
    },
    Part {
        name: "images",
        group: "images",
        program: "bench-images",
        quick: &["--small", "--runs", "1", "--warmup", "0", "--starts", "3"],
        usual: &["--runs", "1", "--starts", "40"],
        full: &["--runs", "5", "--starts", "60"],
        needs: Group::BenchImages,
        ..BASE
    },
    Part {
        name: "cluster",
        group: "cluster",
        program: "bench-cluster",
        quick: &[
            "--only",
            "heartbeat,live",
            "--agents",
            "200",
            "--window",
            "3",
            "--publish",
            "2",
            "--failovers",
            "1",
        ],
        usual: &["--rounds", "1"],
        full: &["--rounds", "3"],
        needs: Group::Up,
        ..BASE
    },
    Part {
        name: "vm-launch",
        program: "bench-launch",
        words: &["--bundle", "default", "--timeout", "60"],
        ..IN_VM
    },
    Part { name: "vm-exec", program: "bench-exec", ..IN_VM },
    Part {
        name: "vm-phases",
        program: "bench-phases",
        words: &["--bundle", "minimal", "--warmup", "1"],
        quick: &["--runs", "1"],
        usual: &["--runs", "6"],
        full: &["--runs", "20"],
        ..IN_VM
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_of_one_part_and_groups_are_known() {
        let names: BTreeSet<&str> = ALL.iter().map(|part| part.name).collect();
        assert_eq!(names.len(), ALL.len());
        let groups: BTreeSet<&str> = ALL.iter().map(|part| part.group).collect();
        assert_eq!(groups, BTreeSet::from(GROUPS));
        assert!(ALL.iter().all(|part| part.in_vm == (part.group == VM)));
    }
}
