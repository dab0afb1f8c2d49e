//! `hafen quota`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hafen::amount;
use hafen_protocol::v1;
use hafen_spec::Problems;

use super::nodes::cpus;
use super::{HostArgs, ListArgs, block_on, show};
use crate::Error;
use crate::cli::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum QuotaCommand {
    /// List what namespaces may ask for, and what they do.
    Ls(ListArgs),
    /// Say how much the jobs of a namespace may ask for together; what is not named has no bound.
    Set(SetArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    namespace: String,
    /// CPUs, as 1.5.
    #[arg(long, value_name = "CPUS")]
    cpus: Option<String>,
    /// Memory, as 512M.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Bytes of disk, as 10G.
    #[arg(long, value_name = "SIZE")]
    disk: Option<String>,
    /// Processes and threads.
    #[arg(long, value_name = "N")]
    pids: Option<u64>,
    /// It has no bound at all any more.
    #[arg(long, conflicts_with_all = ["cpus", "memory", "disk", "pids"])]
    none: bool,
}

impl SetArgs {
    /// `None`: no bound at all.
    fn amounts(&self) -> Result<Option<v1::Amounts>, Problems> {
        let mut problems = Problems::default();
        let amounts = amounts(
            [("--cpus", &self.cpus), ("--memory", &self.memory), ("--disk", &self.disk)],
            &mut problems,
        );
        let amounts = v1::Amounts { pids: self.pids, ..amounts };
        let said = Some(amounts).filter(|amounts| *amounts != v1::Amounts::default());
        if said.is_none() && !self.none && problems.0.is_empty() {
            problems
                .add("quota", "nothing is named: --cpus and --memory are some, and --none is all");
        }
        problems.into_result(said)
    }
}

/// CPUs, memory and disk as people write them.
pub(super) fn amounts(
    [cpus, memory, disk]: [(&str, &Option<String>); 3],
    problems: &mut Problems,
) -> v1::Amounts {
    let mut read =
        |(flag, text): (&str, &Option<String>), wanted, meaning: fn(&str) -> Option<u64>| {
            let text = text.as_ref()?;
            let value = meaning(text).filter(|value| *value > 0);
            if value.is_none() {
                problems.add(flag, format!("{text:?} is no {wanted}"));
            }
            value
        };
    v1::Amounts {
        cpu_milli: read(cpus, "number of CPUs, as 1.5", amount::cpus),
        memory: read(memory, "size, as 512M", amount::bytes),
        disk: read(disk, "size, as 512M", amount::bytes),
        ..v1::Amounts::default()
    }
}

pub(super) fn quota(host: &HostArgs, command: &QuotaCommand) -> Result<ExitCode, Error> {
    match command {
        QuotaCommand::Ls(args) => {
            let quotas = block_on(async {
                let request = v1::ListQuotasRequest {};
                Ok(host.cluster().await?.list_quotas(request).await?.into_inner().quotas)
            })?;
            match args.format {
                Format::Json => show::json(&quotas)?,
                Format::Table => show::table(HEADER, quotas.iter().map(row).collect())?,
            }
        }
        QuotaCommand::Set(args) => {
            let most = args.amounts().map_err(Error::Options)?;
            let request = v1::SetQuotaRequest { namespace: args.namespace.clone(), most };
            let quota = block_on(async {
                Ok(host.cluster().await?.set_quota(request).await?.into_inner())
            })?;
            show::line(&quota.namespace)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

const HEADER: [&str; 5] = ["NAMESPACE", "CPU", "MEMORY", "DISK", "PIDS"];

pub(super) fn row(quota: &v1::Quota) -> [String; 5] {
    let (most, used) = (quota.most.unwrap_or_default(), quota.used.unwrap_or_default());
    let of = |used: String, most: Option<String>| {
        format!("{used} / {}", most.unwrap_or_else(|| "-".to_owned()))
    };
    let bytes = |used: Option<u64>, most: Option<u64>| {
        of(amount::say_bytes(used.unwrap_or_default()), most.map(amount::say_bytes))
    };
    [
        quota.namespace.clone(),
        of(cpus(&used), most.cpu_milli.map(|_| cpus(&most))),
        bytes(used.memory, most.memory),
        bytes(used.disk, most.disk),
        of(used.pids.unwrap_or_default().to_string(), most.pids.map(|pids| pids.to_string())),
    ]
}
