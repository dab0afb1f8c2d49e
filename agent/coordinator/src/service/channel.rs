//! Streams for bytes, which an agent opens when it is asked to: logs, a terminal.

use std::collections::BTreeMap;
use std::time::Duration;

use hafen_door::failure::{Failure, Kind};
use hafen_protocol::v1;
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use crate::model::NodeId;

/// How long an agent may take to open one.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Messages that wait for a slow agent.
pub(super) const WAITING: usize = 16;
/// Nodes that open what nobody wants any more hold nothing.
const MOST: usize = 4_096;

/// A channel that an agent has opened.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) up: Streaming<v1::ChannelUp>,
    pub(super) down: mpsc::Sender<Result<v1::ChannelDown, Status>>,
}

pub(super) type Opened = Result<Ends, Failure>;

/// Those that were asked for and are not open yet, by the ids of their commands.
#[derive(Debug, Default)]
pub(super) struct Channels {
    expected: BTreeMap<String, (NodeId, oneshot::Sender<Opened>)>,
}

impl Channels {
    pub(super) fn expect(
        &mut self,
        command: &str,
        node: &NodeId,
    ) -> Result<oneshot::Receiver<Opened>, Failure> {
        self.expected.retain(|_, (_, waits)| !waits.is_closed());
        if self.expected.len() >= MOST {
            let words = format!("{MOST} channels are being opened already");
            return Err(Failure::new(Kind::Exhausted, words));
        }
        let (sender, receiver) = oneshot::channel();
        self.expected.insert(command.to_owned(), (node.clone(), sender));
        Ok(receiver)
    }

    /// Who waits for it, if it is this node that was asked; without a name, whoever it is.
    pub(super) fn open(
        &mut self,
        command: &str,
        node: Option<&str>,
    ) -> Option<oneshot::Sender<Opened>> {
        let (asked, _) = self.expected.get(command)?;
        if node.is_some_and(|node| asked.0 != node) {
            return None;
        }
        self.expected.remove(command).map(|(_, waits)| waits)
    }

    pub(super) fn give_up(&mut self, command: &str, failure: Failure) {
        if let Some((_, waits)) = self.expected.remove(command) {
            let _ = waits.send(Err(failure));
        }
    }
}

/// What an agent says in place of what was wanted.
pub(super) fn failure(failure: &v1::Failure) -> Failure {
    use v1::failure::Kind as Said;
    let kind = match failure.kind() {
        Said::Invalid => Kind::Invalid,
        Said::Exists => Kind::Exists,
        Said::Unknown => Kind::NotFound,
        Said::Capacity => Kind::Exhausted,
        Said::Draining | Said::State => Kind::State,
        Said::Unsupported => Kind::Unsupported,
        Said::Fenced => Kind::Unavailable,
        Said::Unspecified | Said::Internal => Kind::Internal,
    };
    Failure::new(kind, failure.sentence.clone())
}
