//! `hafen token`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use hafen_protocol::v1;

use super::{HostArgs, block_on, show};
use crate::Error;
use crate::cli::Format;
use crate::commands::control::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token with which machines may join.
    Create {
        /// For how long [default: 1h].
        #[arg(long, value_name = "TIME", value_parser = duration)]
        valid: Option<Duration>,
        /// For so many machines.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: Format,
    },
}

pub(super) fn token(host: &HostArgs, command: &TokenCommand) -> Result<ExitCode, Error> {
    let TokenCommand::Create { valid, uses, format } = command;
    let request = v1::CreateTokenRequest { valid: valid.map(Into::into), uses: *uses };
    let token =
        block_on(async { Ok(host.cluster().await?.create_token(request).await?.into_inner()) })?;
    match format {
        Format::Json => show::json(&token)?,
        Format::Table => {
            let until = show::moment(token.until.as_ref());
            let lines =
                [("token", &token.token), ("authority", &token.authority), ("until", &until)];
            lines.iter().try_for_each(|(name, value)| show::line(&format!("{name:9} {value}")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
