//! The service of gRPC that nodes call.

use std::sync::Arc;

use futures_util::StreamExt;
use hafen_door::grpc::{Told, first};
use hafen_protocol::v1;
use hafen_protocol::v1::master_server::Master as Service;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::channel::{Ends, WAITING};
use super::desk::Desk;
use super::engine::Input;
use super::join::Gate;
use super::session::{Last, Line, Pulse, UNREAD};
use super::who::Who;
use crate::cluster::Session;
use crate::wire::{self, Malformed};

/// Messages of one node that wait to be taken in: more of them do not keep others from their turn.
const TURNS: usize = 32;

#[derive(Debug, Clone)]
pub(super) struct Master {
    pub(super) desk: Desk,
    pub(super) gate: Arc<Gate>,
}

/// What is told to whoever broke a rule.
pub(super) fn protocol(rule: String) -> v1::Refused {
    refused(v1::refused::Kind::Protocol, rule)
}

fn refused(kind: v1::refused::Kind, sentence: String) -> v1::Refused {
    let (version_least, version_most) = wire::VERSIONS;
    v1::Refused { kind: kind.into(), sentence, version_least, version_most, retry_after: None }
}

/// tonic says of a message that is too large that it is out of range.
fn limit(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    }
}

impl Master {
    /// A Hello that may be handed on, or why not.
    fn examine(&self, who: &Who, message: v1::FromAgent) -> Result<Box<v1::Hello>, v1::Refused> {
        use v1::refused::Kind;
        let (number, what) = (message.number, message.what);
        let Some(v1::from_agent::What::Hello(hello)) = what else {
            return Err(protocol("the first message is no Hello".to_owned()));
        };
        if number != 1 || message.heard != 0 {
            return Err(protocol("the first message has number 1 and heard 0".to_owned()));
        }
        wire::hello(&hello).map_err(|why| {
            let kind = match why {
                Malformed::Version(..) => Kind::Version,
                _ => Kind::Protocol,
            };
            refused(kind, why.to_string())
        })?;
        if matches!(who, Who::Withdrawn(_)) {
            let words = format!("{who}, or {0} was removed: it may join again", hello.node);
            return Err(refused(Kind::Identity, words));
        }
        if !who.is_node(&hello.node) {
            let words = format!("the certificate is not for {}: {who}", hello.node);
            return Err(refused(Kind::Identity, words));
        }
        Ok(Box::new(hello))
    }

    async fn listen(
        self,
        session: Session,
        mut stream: Streaming<v1::FromAgent>,
        pulse: Pulse,
        mut end: oneshot::Receiver<()>,
    ) {
        let turns = Arc::new(Semaphore::new(TURNS));
        let last = loop {
            // Nothing is lost where the end comes first: nothing of the stream is taken in any more.
            let message = tokio::select! {
                message = stream.message() => message,
                _ = &mut end => return,
            };
            let message = match message {
                Ok(Some(message)) => Box::new(message),
                Err(status) if status.code() == Code::OutOfRange => {
                    break Last::Limit(status.message().to_owned());
                }
                Ok(None) | Err(_) => break Last::Void,
            };
            pulse.beat();
            // Never closed.
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { break Last::Void };
            let said = Input::Said { session, message, _turn: turn };
            if self.desk.inlet.nodes.send(said).is_err() {
                return;
            }
        };
        let _ = self.desk.inlet.nodes.send(Input::Ended { session, last });
    }
}

#[tonic::async_trait]
impl Service for Master {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let who = Who::of(request.extensions());
        Ok(Response::new(self.gate.join(&self.desk, &who, request.into_inner()).await?))
    }

    type ConnectStream = Told<v1::FromMaster>;

    async fn connect(
        &self,
        request: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let who = Who::of(request.extensions());
        // Whoever was a node is told why it is none any more, as all who say Hello.
        if !matches!(who, Who::Withdrawn(_)) {
            who.may_connect()?;
        }
        let mut stream = request.into_inner();
        let message = first(&mut stream).await.map_err(limit)?;
        let message = message.ok_or_else(|| Status::invalid_argument("no Hello came"))?;
        let hello = match self.examine(&who, message) {
            Ok(hello) => hello,
            Err(refused) => {
                tracing::warn!(%who, "refused: {}", refused.sentence);
                let what = Some(v1::from_master::What::Refused(refused));
                let epoch = self.desk.inlet.epoch;
                let last = v1::FromMaster { number: 1, heard: 1, epoch, what };
                let only = futures_util::stream::iter([Ok(last)]);
                return Ok(Response::new(only.boxed()));
            }
        };
        let (down, told) = mpsc::channel(UNREAD);
        let (end, ended) = oneshot::channel();
        let (session, numbered) = oneshot::channel();
        let pulse = Pulse::new();
        let line = Line { down, end, pulse: pulse.clone() };
        let gone = || Status::unavailable("the coordinator ends");
        let hello = Input::Hello { hello, line, session };
        self.desk.inlet.nodes.send(hello).map_err(|_| gone())?;
        let session = numbered.await.map_err(|_| gone())?;
        tokio::spawn(self.clone().listen(session, stream, pulse, ended));
        let told = ReceiverStream::new(told).map(|told| told.map(|message| *message));
        Ok(Response::new(told.boxed()))
    }

    type ChannelStream = Told<v1::ChannelDown>;

    async fn channel(
        &self,
        request: Request<Streaming<v1::ChannelUp>>,
    ) -> Result<Response<Self::ChannelStream>, Status> {
        let who = Who::of(request.extensions());
        who.may_connect()?;
        let mut up = request.into_inner();
        let message = first(&mut up).await.map_err(limit)?;
        let Some(v1::channel_up::What::Command(command)) = message.and_then(|said| said.what)
        else {
            return Err(Status::invalid_argument("the first message has the command's id"));
        };
        let node = who.node().map(|holder| holder.name.clone());
        let waits = self.desk.ask(move |e| e.channel_came(&command, node.as_deref())).await?;
        let waits = waits.ok_or_else(|| {
            Status::permission_denied("no such channel was asked for, or not of you")
        })?;
        let (down, told) = mpsc::channel(WAITING);
        // Whoever waited may have gone away: then the stream ends.
        let _ = waits.send(Ok(Ends { up, down }));
        Ok(Response::new(ReceiverStream::new(told).boxed()))
    }
}
