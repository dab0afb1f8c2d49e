//! The gate: a token for a certificate.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use hafen_door::failure::{Failure, Kind};
use hafen_protocol::{time, v1};
use tonic::Status;

use super::ca::{Authority, RENEW_AFTER, plain_serial};
use super::desk::Desk;
use super::tokens::{Tokens, hash};
use super::who::{Holder, NODE, USER, Who};
use super::withdrawn::Withdrawn;
use crate::cluster::Change;
use crate::model::{Withdrawal, is_name};

const MOST_TOKEN: usize = 256;
const MOST_CSR: usize = 16 << 10;
/// Of whom a certificate is.
const MOST_NAME: usize = 255;
/// Of a token, where nothing is said, and at most.
const VALID: Duration = Duration::from_secs(3600);
const MOST_VALID: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug)]
pub(super) struct Gate {
    authority: Arc<Authority>,
    tokens: Mutex<Tokens>,
    withdrawn: Withdrawn,
    /// One after the other: so that a token is not used twice while it is written down.
    turn: tokio::sync::Mutex<()>,
}

impl Gate {
    pub(super) fn new(authority: Arc<Authority>, tokens: Tokens, withdrawn: Withdrawn) -> Self {
        let turn = tokio::sync::Mutex::default();
        Self { authority, tokens: Mutex::new(tokens), withdrawn, turn }
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
            who.may_connect()?;
            let own = who.node().filter(|holder| holder.name == node).ok_or_else(|| {
                Status::unauthenticated("without a token one's own certificate counts")
            })?;
            // If it is withdrawn meanwhile, so is the next one.
            return self.sign(&node, own.number, &csr);
        }
        let _turn = self.turn.lock().await;
        let number = self.withdrawn.least(&format!("{NODE}{node}"));
        let asked = asked(&node, number, &csr);
        let again = self.examine(who, &token, &asked)?;
        let signed = self.sign(&node, number, &csr)?;
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

    /// All of a node or a person, or one of a person: what goes on with them ends when this is on the disk.
    pub(super) async fn withdraw(
        &self,
        desk: &Desk,
        request: v1::WithdrawCertificatesRequest,
    ) -> Result<v1::Withdrawal, Failure> {
        use v1::withdraw_certificates_request::Whose;
        let (kind, name) = match request.whose {
            Some(Whose::Node(name)) => (NODE, name),
            Some(Whose::User(name)) => (USER, name),
            None => return Err(Failure::new(Kind::Invalid, "node or user is missing")),
        };
        let invalid = |words: String| Failure::new(Kind::Invalid, words);
        if !(1..=MOST_NAME).contains(&name.len()) || !name.is_ascii() {
            return Err(invalid(format!("no certificate is for {name:?}")));
        }
        let holder = format!("{kind}{name}");
        let _turn = self.turn.lock().await;
        let one = match &*request.serial {
            "" => self.withdrawn.next(&holder),
            _ if kind == NODE => {
                let words = "serial: whoever has a node's certificate may have renewed it: withdraw all of the node";
                return Err(invalid(words.to_owned()));
            }
            text => {
                let serial = plain_serial(text).ok_or_else(|| {
                    invalid(format!("serial: {text:?} is not 1 to 40 hexadecimal digits"))
                })?;
                let next = self.withdrawn.next_single(&holder, serial);
                next.ok_or_else(|| {
                    let words = format!("serial: too many of {name} are withdrawn: withdraw all");
                    Failure::new(Kind::Exhausted, words)
                })?
            }
        };
        Self::save(desk, vec![Change::from(one.clone())]).await?;
        let (least, serial) = (one.least, &request.serial);
        tracing::info!(holder = one.holder, least, serial, "certificates are withdrawn");
        let said = told(&one);
        self.withdrawn.add(one);
        Ok(said)
    }

    pub(super) fn withdrawals(&self) -> v1::ListWithdrawalsResponse {
        let withdrawals = self.withdrawn.all().iter().map(told).collect();
        let shown = self.withdrawn.shown();
        let certificates = shown.iter().map(|(holder, counts)| shown_one(holder, !counts));
        v1::ListWithdrawalsResponse { withdrawals, certificates: certificates.collect() }
    }

    /// A machine is gone for good, and with it what it was known by.
    pub(super) async fn remove(
        &self,
        desk: &Desk,
        request: v1::RemoveNodeRequest,
    ) -> Result<(), Failure> {
        let node = desk.removable(request.node).await?;
        let whose = v1::withdraw_certificates_request::Whose::Node(node.0.clone());
        let all = v1::WithdrawCertificatesRequest { whose: Some(whose), serial: String::new() };
        self.withdraw(desk, all).await?;
        desk.remove(node).await
    }

    fn examine(&self, who: &Who, token: &str, asked: &str) -> Result<bool, Status> {
        let address = who.address();
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

    fn sign(&self, node: &str, number: u64, csr: &[u8]) -> Result<v1::JoinResponse, Status> {
        let certificate = self.authority.node(node, number, csr).map_err(|e| {
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

/// What a token was used for. After a withdrawal the same request is another one.
fn asked(node: &str, number: u64, csr: &[u8]) -> String {
    let number = if number > 0 { number.to_string() } else { String::new() };
    hash(&[node.as_bytes(), number.as_bytes(), csr].concat())
}

fn told(one: &Withdrawal) -> v1::Withdrawal {
    use v1::withdrawal::Whose;
    let user = || one.holder.strip_prefix(USER).map(|name| Whose::User(name.to_owned()));
    let node = one.holder.strip_prefix(NODE).map(|name| Whose::Node(name.to_owned()));
    let serials = one.serials.iter().cloned().collect();
    v1::Withdrawal { whose: node.or_else(user), least: one.least, serials }
}

fn shown_one(holder: &Holder, withdrawn: bool) -> v1::Certificate {
    use v1::certificate::Whose;
    let name = holder.name.clone();
    let whose = if holder.is_node() { Whose::Node(name) } else { Whose::User(name) };
    let (serial, until) = (holder.serial.clone(), Some(time::stamp(holder.until)));
    v1::Certificate { whose: Some(whose), serial, number: holder.number, until, withdrawn }
}
