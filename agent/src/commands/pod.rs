//! `hafen pod`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use hafen_protocol::v1;

use super::control::duration;
use super::{HostArgs, block_on, document, each, show};
use crate::Error;
use crate::cli::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum PodCommand {
    /// Run the pod of a file, TOML, YAML or JSON of a PodSpec; "-" is stdin.
    Run { file: PathBuf },
    /// List pods.
    Ls {
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: Format,
    },
    /// Print all that is known of pods, as JSON.
    Inspect {
        #[arg(required = true, value_name = "POD")]
        ids: Vec<String>,
    },
    /// Ask the tasks of pods to end, and kill them if they do not.
    Stop {
        #[arg(short, long, value_name = "TIME", value_parser = duration)]
        time: Option<Duration>,
        #[arg(required = true, value_name = "POD")]
        ids: Vec<String>,
    },
    /// Forget pods that have ended.
    Rm {
        #[arg(short, long)]
        force: bool,
        #[arg(required = true, value_name = "POD")]
        ids: Vec<String>,
    },
}

pub(super) fn pod(host: &HostArgs, command: &PodCommand) -> Result<ExitCode, Error> {
    let pod = match command {
        PodCommand::Run { file } => Some(document::read::<v1::PodSpec>(file, "PodSpec")?),
        _ => None,
    };
    block_on(async {
        let mut client = host.connect().await?;
        match command {
            PodCommand::Run { .. } => {
                let status = client.run_pod(v1::RunPodRequest { pod }).await?.into_inner();
                show::line(&status.id)?;
                Ok(ExitCode::SUCCESS)
            }
            PodCommand::Ls { format } => {
                let pods = client.list_pods(v1::ListPodsRequest {}).await?.into_inner().pods;
                list(&pods, *format)?;
                Ok(ExitCode::SUCCESS)
            }
            PodCommand::Inspect { ids } => {
                for id in ids {
                    let request = v1::GetPodRequest { id: id.clone() };
                    show::json(&client.get_pod(request).await?.into_inner())?;
                }
                Ok(ExitCode::SUCCESS)
            }
            PodCommand::Stop { time, ids } => {
                each(ids, |id| {
                    let (mut client, grace) = (client.clone(), time.map(Into::into));
                    async move {
                        Ok(client.stop_pod(v1::StopPodRequest { id, grace }).await?.into_inner().id)
                    }
                })
                .await
            }
            PodCommand::Rm { force, ids } => {
                each(ids, |id| {
                    let (mut client, force) = (client.clone(), *force);
                    async move {
                        client.remove_pod(v1::RemovePodRequest { id: id.clone(), force }).await?;
                        Ok(id)
                    }
                })
                .await
            }
        }
    })
}

fn list(pods: &[v1::PodStatus], format: Format) -> Result<(), Error> {
    if format == Format::Json {
        return show::json(&pods);
    }
    let rows = pods.iter().map(|pod| {
        let tasks: Vec<String> = pod
            .tasks
            .iter()
            .map(|task| format!("{} {}", task.id, show::state(task.state)))
            .collect();
        let (state, age) = (show::state(pod.state), show::age(pod.created.as_ref()));
        [pod.id.clone(), state, tasks.join(", "), age, pod.addresses.join(" ")]
    });
    show::table(["POD", "STATE", "TASKS", "AGE", "ADDRESSES"], rows.collect())
}
