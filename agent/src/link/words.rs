//! Messages in the bounds of the protocol.

use hafen_protocol::v1::{self, failure, from_agent};
use prost::Message;

use crate::failure::{Failure, Kind};

/// A sentence that fits.
pub(super) fn sentence(text: &str) -> String {
    hafen_protocol::sentence(text).to_owned()
}

pub(super) fn failed(
    command: &str,
    kind: failure::Kind,
    why: impl AsRef<str>,
) -> v1::CommandResult {
    result(command, Err(unable(kind, why)))
}

/// Why an order is not carried out.
#[derive(Debug)]
pub(super) struct Unable(pub(super) v1::Failure);

pub(super) fn unable(kind: failure::Kind, why: impl AsRef<str>) -> Unable {
    Unable(v1::Failure { kind: kind.into(), sentence: sentence(why.as_ref()) })
}

pub(super) fn result(
    command: &str,
    answer: Result<Option<v1::Tasks>, Unable>,
) -> v1::CommandResult {
    let (tasks, failure) = match answer {
        Ok(tasks) => (tasks, None),
        Err(Unable(failure)) => (None, Some(failure)),
    };
    v1::CommandResult { command: command.to_owned(), failure, tasks }
}

impl From<Failure> for Unable {
    fn from(of: Failure) -> Self {
        use failure::Kind as Wire;
        let kind = match of.kind {
            Kind::Invalid | Kind::OutOfRange => Wire::Invalid,
            Kind::NotFound => Wire::Unknown,
            Kind::Exists => Wire::Exists,
            Kind::State | Kind::Conflict => Wire::State,
            Kind::Exhausted => Wire::Capacity,
            Kind::Unsupported => Wire::Unsupported,
            _ => Wire::Internal,
        };
        unable(kind, of.message)
    }
}

/// Without what a master can do without, where the whole is too long.
pub(super) fn fit(mut what: from_agent::What, most: usize) -> from_agent::What {
    use from_agent::What;
    // Numbers and tags.
    const ROUND: usize = 32;
    let length = match &what {
        What::Update(update) => update.encoded_len(),
        What::Report(report) => report.encoded_len(),
        _ => return what,
    };
    if length + ROUND <= most {
        return what;
    }
    match &mut what {
        What::Update(v1::TaskUpdate { status: Some(status), .. }) => {
            status.labels.clear();
            status.checks.clear();
            status.addresses.clear();
            status.ports.clear();
        }
        What::Report(report) => {
            report.tasks.clear();
        }
        _ => {}
    }
    what
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut() {
        let text = "ä".repeat(3_000);
        assert_eq!(sentence(&text).len(), 4 << 10);
        assert_eq!(sentence(&format!("x{text}")).len(), (4 << 10) - 1);
        let labels = (0..100).map(|n| (n.to_string(), "x".repeat(1_000))).collect();
        let status = v1::TaskStatus { id: "t".into(), attempt: 7, labels, ..Default::default() };
        let update = v1::TaskUpdate { status: Some(status), ..Default::default() };
        let what = from_agent::What::Update(update);
        assert_eq!(fit(what.clone(), 4 << 20), what);
        let from_agent::What::Update(cut) = fit(what, 64 << 10) else { panic!() };
        assert_eq!((cut.encoded_len() < 100, cut.status.unwrap().attempt), (true, 7));
    }
}
