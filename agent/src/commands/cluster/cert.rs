//! `hafen cert`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hafen_protocol::v1;

use super::{HostArgs, ListArgs, block_on, show};
use crate::Error;
use crate::cli::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Let the certificates that a node or a person has up to now count no more, or one of a person's; and cut what goes on with them.
    Withdraw(WithdrawArgs),
    /// List the certificates that were withdrawn, and those that somebody has shown to this coordinator since it began.
    Ls(ListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct WithdrawArgs {
    #[command(flatten)]
    whose: Whose,
    /// Only this one of the person's, in hexadecimal, as "hafen cert ls" shows it.
    #[arg(
        long,
        value_name = "S",
        conflicts_with = "node",
        default_value = "",
        hide_default_value = true
    )]
    serial: String,
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
        CertCommand::Withdraw(args) => withdraw(host, args),
        CertCommand::Ls(args) => list(host, args.format),
    }
}

fn withdraw(host: &HostArgs, args: &WithdrawArgs) -> Result<ExitCode, Error> {
    use v1::withdraw_certificates_request::Whose as Wire;
    let WithdrawArgs { whose, serial } = args;
    let node = whose.node.clone().map(Wire::Node);
    let whose = node.or_else(|| whose.user.clone().map(Wire::User));
    let request = v1::WithdrawCertificatesRequest { whose, serial: serial.clone() };
    let one = block_on(async {
        Ok(host.cluster().await?.withdraw_certificates(request).await?.into_inner())
    })?;
    let words = match serial.as_str() {
        "" => said(&one),
        serial => format!("{serial}: withdrawn; other certificates of that name count as before"),
    };
    show::line(&words)?;
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
        Ok(answer.into_inner())
    })?;
    match format {
        Format::Json => show::json(&all)?,
        Format::Table => {
            let shown = &all.certificates;
            let withdrawn = all.withdrawals.iter().flat_map(|one| withdrawn_rows(one, shown));
            let rows = withdrawn.chain(shown.iter().map(shown_row)).collect();
            show::table(["OF", "NAME", "SERIAL", "NUMBER", "UNTIL", "STATE"], rows)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

const WITHDRAWN: &str = "withdrawn";

/// Those below a number, and single ones that nobody has shown.
fn withdrawn_rows(one: &v1::Withdrawal, shown: &[v1::Certificate]) -> Vec<[String; 6]> {
    use v1::withdrawal::Whose;
    let (of, name) = match &one.whose {
        Some(Whose::Node(name)) => ("node", name.as_str()),
        Some(Whose::User(name)) => ("user", name.as_str()),
        None => ("", ""),
    };
    let row = |serial: &str, number: String| {
        [of, &show::plain(name), serial, &number, "", WITHDRAWN].map(str::to_owned)
    };
    let below = (one.least > 0).then(|| row("all", format!("below {}", one.least)));
    let unseen = one.serials.iter().filter(|serial| shown.iter().all(|c| c.serial != **serial));
    below.into_iter().chain(unseen.map(|serial| row(serial, String::new()))).collect()
}

fn shown_row(one: &v1::Certificate) -> [String; 6] {
    use v1::certificate::Whose;
    let (of, name) = match &one.whose {
        Some(Whose::Node(name)) => ("node", name.as_str()),
        Some(Whose::User(name)) => ("user", name.as_str()),
        None => ("", ""),
    };
    let (number, until) = (one.number.to_string(), show::moment(one.until.as_ref()));
    let state = if one.withdrawn { WITHDRAWN } else { "counts" };
    [of, &show::plain(name), &one.serial, &number, &until, state].map(str::to_owned)
}
