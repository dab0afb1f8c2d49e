//! `hafen cert`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hafen_protocol::v1;

use super::{HostArgs, ListArgs, block_on, show};
use crate::Error;
use crate::cli::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Let the certificates that a node or a person has up to now count no more, and cut what goes on with them.
    Withdraw(Whose),
    /// List whose certificates were withdrawn, and the least number of theirs that counts.
    Ls(ListArgs),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Whose {
    /// Those of this node.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Those of this person.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

pub(super) fn cert(host: &HostArgs, command: &CertCommand) -> Result<ExitCode, Error> {
    match command {
        CertCommand::Withdraw(whose) => withdraw(host, whose),
        CertCommand::Ls(args) => list(host, args.format),
    }
}

fn withdraw(host: &HostArgs, whose: &Whose) -> Result<ExitCode, Error> {
    use v1::withdraw_certificates_request::Whose as Wire;
    let node = whose.node.clone().map(Wire::Node);
    let whose = node.or_else(|| whose.user.clone().map(Wire::User));
    let request = v1::WithdrawCertificatesRequest { whose };
    let one = block_on(async {
        Ok(host.cluster().await?.withdraw_certificates(request).await?.into_inner())
    })?;
    show::line(&said(&one))?;
    Ok(ExitCode::SUCCESS)
}

/// With how to have another one.
pub(super) fn said(one: &v1::Withdrawal) -> String {
    use v1::withdrawal::Whose;
    let least = one.least;
    match &one.whose {
        Some(Whose::Node(name)) => {
            format!("node {name}: withdrawn; it may join again with a token")
        }
        Some(Whose::User(name)) => format!(
            "user {name}: withdrawn; the next one is \"hafen coordinator cert {name} --number {least}\""
        ),
        None => "withdrawn".to_owned(),
    }
}

fn list(host: &HostArgs, format: Format) -> Result<ExitCode, Error> {
    let request = v1::ListWithdrawalsRequest {};
    let all = block_on(async {
        let answer = host.cluster().await?.list_withdrawals(request).await?;
        Ok(answer.into_inner().withdrawals)
    })?;
    match format {
        Format::Json => show::json(&all)?,
        Format::Table => {
            show::table(["OF", "NAME", "LEAST NUMBER"], all.iter().map(row).collect())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(one: &v1::Withdrawal) -> [String; 3] {
    use v1::withdrawal::Whose;
    let (of, name) = match &one.whose {
        Some(Whose::Node(name)) => ("node", name.as_str()),
        Some(Whose::User(name)) => ("user", name.as_str()),
        None => ("", ""),
    };
    [of.to_owned(), show::plain(name), one.least.to_string()]
}
