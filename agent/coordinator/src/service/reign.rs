//! Several coordinators with their state in etcd: one directs, the others wait and say who does.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hafen_door::failure::{Failure, Kind};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use super::ca::Authority;
use super::http::Rooms;
use super::withdrawn::Withdrawn;
use super::{Card, Ended, listen};
use crate::cluster::Settings;
use crate::state::etcd::{Etcd, EtcdError};

/// Between two tries where something is wrong.
const AGAIN: Duration = Duration::from_secs(1);

/// What a coordinator needs to direct, again and again.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) etcd: Etcd,
    /// Where the others and people find us.
    pub(super) url: String,
    pub(super) settings: Settings,
    pub(super) card: Arc<Card>,
    pub(super) authority: Arc<Authority>,
    pub(super) withdrawn: Withdrawn,
    pub(super) rooms: watch::Sender<Option<Rooms>>,
    pub(super) router: watch::Sender<Router>,
    pub(super) leader: watch::Sender<Option<String>>,
}

/// What is answered by who does not direct.
pub(super) fn waiting(leader: watch::Receiver<Option<String>>) -> Router {
    Router::new().route("/healthz", get(|| async { "ok\n" })).fallback(elsewhere).with_state(leader)
}

async fn elsewhere(
    State(leader): State<watch::Receiver<Option<String>>>,
    request: Request,
) -> Response<Body> {
    let leader = leader.borrow().clone();
    let words = match &leader {
        Some(url) => format!("another coordinator directs: {url}"),
        None => "no coordinator directs now: try again".to_owned(),
    };
    // A page's reader follows.
    if let Some(url) = leader.filter(|url| url.starts_with("http"))
        && request.method() == Method::GET
        && request.uri().path() == "/"
    {
        let to = [(header::LOCATION, format!("{url}/"))];
        return (StatusCode::TEMPORARY_REDIRECT, to).into_response();
    }
    listen::failed(request.headers(), Failure::new(Kind::Unavailable, words))
}

impl Candidate {
    /// Wait, direct, and wait again, until `stop`.
    ///
    /// # Errors
    /// What etcd refuses, another authority there, or a record that cannot be read.
    pub(super) async fn run(self, mut stop: oneshot::Receiver<()>) -> Result<(), Ended> {
        tokio::select! {
            _ = &mut stop => return Ok(()),
            agreed = self.agree() => agreed?,
        }
        loop {
            // A term that was begun and is dropped ends with its lease.
            let ended = tokio::select! {
                _ = &mut stop => return Ok(()),
                ended = self.direct() => ended,
            };
            self.rooms.send_replace(None);
            drop(self.router.send_replace(waiting(self.leader.subscribe())));
            match ended {
                Ok(()) => tracing::warn!("another coordinator may direct: this one waits"),
                Err(e @ Ended::State(crate::state::Error::Record { .. })) => return Err(e),
                Err(e) => {
                    tracing::error!("{}: this one waits", super::chain(&e));
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Who would sign with another authority may not even wait: nobody would be known after it took over.
    async fn agree(&self) -> Result<(), Ended> {
        let ours = self.authority.fingerprint();
        loop {
            match self.etcd.authority(&ours).await {
                Ok(theirs) if theirs == ours => return Ok(()),
                Ok(theirs) => return Err(Ended::OtherAuthority { ours, theirs }),
                Err(EtcdError::Silent(words)) => tracing::warn!("etcd: {words}"),
                Err(e) => return Err(e.into()),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// From the beginning of one term to its end.
    async fn direct(&self) -> Result<(), Ended> {
        let mut term = self.etcd.campaign(&self.url, &self.leader).await?;
        let (mut lost, mandate) = (term.lost(), term.mandate());
        let records = term.load().await?;
        let save = term.into_save(Handle::current());
        let keep = (save, mandate);
        let Self { settings, card, authority, withdrawn, .. } = self;
        let (rooms, work) = super::open(records, keep, *settings, card, authority, withdrawn)?;
        drop(self.router.send_replace(super::router(&rooms)));
        self.rooms.send_replace(Some(rooms));
        tracing::info!(url = self.url, "directs");
        let (_never, stop) = oneshot::channel();
        tokio::select! {
            ended = work.run(stop) => ended,
            _ = lost.wait_for(|lost| *lost) => Ok(()),
        }
    }
}
