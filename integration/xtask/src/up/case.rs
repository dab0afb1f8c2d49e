//! The four containers.

/// What a container must come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Expected {
    /// Says this and ends with 0.
    Says(&'static str),
    /// Killed by the kernel for its memory.
    KilledForMemory,
    /// Gets about this many processors, though it would take more.
    Throttled { cpus: f64 },
    /// Stopped from having more processes than its limit.
    ForksRefused,
}

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Options of `hafen run`.
    pub(crate) limits: Vec<&'static str>,
    pub(crate) command: Vec<&'static str>,
    pub(crate) expected: Expected,
}

/// Two loops, each would take a whole processor; process 1 takes them with it when it ends.
const BURN: &str = "while :; do :; done & while :; do :; done & sleep 3";

/// 200 processes, so that a limit that does not hold does no harm either. The loop's shell ends at the first
/// fork that is refused; process 1 forks no more and takes all others with it when it ends.
const FORKS: &str = "(i=0; while [ $i -lt 200 ]; do sleep 9 & i=$((i+1)); done) & exec sleep 1";

/// The containers of `up`. `swap`: whether the host has any, which a memory limit alone would let it use.
pub(crate) fn all(swap: bool) -> Vec<Case> {
    let shell = |script| vec!["sh", "-c", script];
    let memory = if swap {
        vec!["--memory", "64M", "--memory-swap", "64M"]
    } else {
        vec!["--memory", "64M"]
    };
    vec![
        Case {
            name: "behaves",
            limits: vec!["--memory", "64M", "--cpus", "0.5", "--pids-limit", "32"],
            command: shell("echo \"hello from process $$ of a container\""),
            expected: Expected::Says("hello from process 1 of a container"),
        },
        Case {
            name: "takes 256 MiB",
            limits: memory,
            // dd fills a buffer of one block's size.
            command: vec!["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"],
            expected: Expected::KilledForMemory,
        },
        Case {
            name: "burns 2 CPUs",
            limits: vec!["--cpus", "0.5"],
            command: shell(BURN),
            expected: Expected::Throttled { cpus: 0.5 },
        },
        Case {
            name: "forks on and on",
            limits: vec!["--pids-limit", "32"],
            command: shell(FORKS),
            expected: Expected::ForksRefused,
        },
    ]
}

/// Whether `/proc/swaps` has a line below its heading.
pub(crate) fn has_swap(swaps: &str) -> bool {
    swaps.lines().skip(1).any(|line| !line.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_limited_where_there_is_some() {
        let heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert!(!has_swap(heading));
        assert!(has_swap(&format!("{heading}/dev/vdb partition 1048572 0 -2\n")));
        let limits = |swap| all(swap)[1].limits.join(" ");
        assert_eq!(limits(false), "--memory 64M");
        assert_eq!(limits(true), "--memory 64M --memory-swap 64M");
    }
}
