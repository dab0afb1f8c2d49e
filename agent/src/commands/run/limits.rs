//! What a task may take, as `run` and `update` are told it.

use clap::Args;
use hafen::amount;
use hafen_protocol::v1::{Amounts, Resources};
use hafen_spec::Problems;

#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Most memory, as 512M.
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Most memory and swap together; -1 for no bound on swap.
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Most CPUs, as 1.5.
    #[arg(long, value_name = "CPUS")]
    pub(crate) cpus: Option<String>,
    /// CPUs it may run on, as 0-3,7.
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Most processes and threads.
    #[arg(long, value_name = "N")]
    pub(crate) pids_limit: Option<String>,
    /// Most bytes that its root may take up.
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<String>,
    /// Memory that the node sets aside for it.
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_request: Option<String>,
    /// CPUs that the node sets aside for it.
    #[arg(long, value_name = "CPUS")]
    pub(crate) cpus_request: Option<String>,
}

impl LimitArgs {
    /// `None`: nothing is said.
    pub(crate) fn resources(&self, problems: &mut Problems) -> Option<Resources> {
        let mut size = |flag, text| {
            number(problems, flag, text, "size, as 512M", |t| amount::bytes(t).filter(|n| *n > 0))
        };
        let memory = size("--memory", &self.memory);
        let disk = size("--disk", &self.disk);
        let requested = size("--memory-request", &self.memory_request);
        let mut cpus = |flag, text| {
            number(problems, flag, text, "number of CPUs, as 1.5", |t| {
                amount::cpus(t).filter(|n| *n > 0)
            })
        };
        let cpu_milli = cpus("--cpus", &self.cpus);
        let cpus_requested = cpus("--cpus-request", &self.cpus_request);
        let pids = number(problems, "--pids-limit", &self.pids_limit, "number above 0", |t| {
            t.parse().ok().filter(|n| *n > 0)
        });
        let swap = self.swap(memory, problems);
        let limit = Amounts { cpu_milli, memory, swap, pids, disk };
        let request =
            Amounts { cpu_milli: cpus_requested, memory: requested, ..Amounts::default() };
        let resources = Resources {
            limit: some(limit),
            request: some(request),
            cpuset: self.cpuset_cpus.clone().unwrap_or_default(),
            ..Resources::default()
        };
        (resources != Resources::default()).then_some(resources)
    }

    /// Of both together, as people's hands know it, to swap alone, as the kernel has it.
    fn swap(&self, memory: Option<u64>, problems: &mut Problems) -> Option<u64> {
        const FLAG: &str = "--memory-swap";
        let text = self.memory_swap.as_deref().filter(|text| *text != "-1")?;
        let (Some(both), Some(memory)) = (amount::bytes(text), memory) else {
            if self.memory.is_none() {
                problems.add(FLAG, "means nothing without --memory");
            } else if amount::bytes(text).is_none() {
                problems.add(FLAG, format!("{text:?} is no size, as 1G, and not -1"));
            }
            return None;
        };
        if both < memory {
            problems
                .add(FLAG, format!("{text:?} is memory and swap together, and less than --memory"));
        }
        both.checked_sub(memory)
    }
}

fn some(amounts: Amounts) -> Option<Amounts> {
    (amounts != Amounts::default()).then_some(amounts)
}

fn number(
    problems: &mut Problems,
    flag: &str,
    text: &Option<String>,
    wanted: &str,
    meaning: impl Fn(&str) -> Option<u64>,
) -> Option<u64> {
    let text = text.as_ref()?;
    let value = meaning(text);
    if value.is_none() {
        problems.add(flag, format!("{text:?} is no {wanted}"));
    }
    value
}
