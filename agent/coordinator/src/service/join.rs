//! The gate: a token for a certificate.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use hafen_door::failure::{Failure, Kind};
use hafen_protocol::{time, v1};
use tonic::Status;

use super::ca::{Authority, RENEW_AFTER};
use super::desk::Desk;
use super::tokens::{Tokens, hash};
use super::who::Who;
use crate::cluster::Change;
use crate::model::is_name;

const MOST_TOKEN: usize = 256;
const MOST_CSR: usize = 16 << 10;
/// Of a token, where nothing is said, and at most.
const VALID: Duration = Duration::from_secs(3600);
const MOST_VALID: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug)]
pub(super) struct Gate {
    authority: Arc<Authority>,
    tokens: Mutex<Tokens>,
    /// One after the other: so that a token is not used twice while it is written down.
    turn: tokio::sync::Mutex<()>,
}

impl Gate {
    pub(super) fn new(authority: Arc<Authority>, tokens: Tokens) -> Self {
        Self { authority, tokens: Mutex::new(tokens), turn: tokio::sync::Mutex::default() }
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it is on the disk.
    async fn save(desk: &Desk, changes: Vec<Change>) -> Result<(), Failure> {
        let saved = desk.ask(|engine| engine.saver.save_aside(changes)).await?;
        saved.await.map_err(|_| Failure::new(Kind::Unavailable, "the coordinator ends"))
    }

    pub(super) async fn token(
        &self,
        desk: &Desk,
        request: v1::CreateTokenRequest,
    ) -> Result<v1::JoinToken, Failure> {
        let valid = request.valid.as_ref().map_or(VALID, time::duration);
        if valid.is_zero() || valid > MOST_VALID {
            let words = format!("valid: {valid:?} is not between 1 s and 30 days");
            return Err(Failure::new(Kind::Invalid, words));
        }
        let made = self.tokens().make(valid, request.uses);
        let (token, changes, until) =
            made.map_err(|e| Failure::new(Kind::Internal, format!("read /dev/urandom: {e}")))?;
        Self::save(desk, changes).await?;
        let until = UNIX_EPOCH + Duration::from_secs(until);
        let authority = self.authority.fingerprint();
        Ok(v1::JoinToken { token, authority, until: Some(time::stamp(until)) })
    }

    pub(super) async fn join(
        &self,
        desk: &Desk,
        who: &Who,
        request: v1::JoinRequest,
    ) -> Result<v1::JoinResponse, Status> {
        let v1::JoinRequest { token, node, csr } = request;
        if token.len() > MOST_TOKEN || csr.len() > MOST_CSR || !is_name(&node) {
            return Err(Status::invalid_argument("token, name or request is not of its form"));
        }
        if token.is_empty() {
            if who.node() != Some(&node) {
                return Err(Status::unauthenticated(
                    "without a token one's own certificate counts",
                ));
            }
            return self.sign(&node, &csr);
        }
        let _turn = self.turn.lock().await;
        let mut asked = node.clone().into_bytes();
        asked.extend_from_slice(&csr);
        let asked = hash(&asked);
        let again = self.examine(who, &token, &asked)?;
        let signed = self.sign(&node, &csr)?;
        if again {
            return Ok(signed);
        }
        let name = node.clone();
        if desk.ask(move |engine| engine.knows(&name)).await? {
            return Err(Status::already_exists(format!("another node is {node}")));
        }
        let change = self.tokens().take(&token, &asked);
        Self::save(desk, change.into_iter().collect()).await?;
        tracing::info!(node, %who, "joined");
        Ok(signed)
    }

    fn examine(&self, who: &Who, token: &str, asked: &str) -> Result<bool, Status> {
        let address: Option<IpAddr> = match who {
            Who::Node(_, address) | Who::User(_, address) | Who::Stranger(address) => {
                Some(*address)
            }
            Who::Trusted(_) | Who::Denied(_) => None,
        };
        let mut tokens = self.tokens();
        if tokens.is_too_much(address) {
            return Err(Status::resource_exhausted("too many tries: wait a minute"));
        }
        tokens.examine(token, asked).map_err(|_| {
            tokens.failed(address);
            tracing::warn!(%who, "a token that is unknown, used up or too old");
            Status::unauthenticated("the token is unknown, used up or too old")
        })
    }

    fn sign(&self, node: &str, csr: &[u8]) -> Result<v1::JoinResponse, Status> {
        let certificate = self.authority.node(node, csr).map_err(|e| {
            Status::invalid_argument(format!("csr: {}", hafen_door::failure::chain(&e)))
        })?;
        Ok(v1::JoinResponse {
            certificate: certificate.to_vec(),
            authorities: vec![self.authority.certificate().to_vec()],
            node: node.to_owned(),
            renew_after: Some(time::span(RENEW_AFTER)),
        })
    }
}
