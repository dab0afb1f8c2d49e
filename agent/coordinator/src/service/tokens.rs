//! What lets nodes join, handed out by people: only hashes are kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::cluster::Change;
use crate::model::{Key, Record, Token};

/// Tries that fail, of one address and of all, in a while.
const TRIES: usize = 10;
const ALL_TRIES: usize = 1_000;
const WHILE: Duration = Duration::from_secs(60);
const BYTES: usize = 32;

pub(super) fn hash(of: &[u8]) -> String {
    hexadecimal(&Sha256::digest(of))
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Into memory: nothing can fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Why a token is not good: the answer does not say which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bad;

#[derive(Debug, Default)]
pub(super) struct Tokens {
    known: BTreeMap<String, Token>,
    /// Of late, the oldest first.
    failures: VecDeque<(Instant, Option<IpAddr>)>,
}

impl Tokens {
    pub(super) fn new(records: &[Record]) -> Self {
        let tokens = records.iter().filter_map(|record| match record {
            Record::Token(token) => Some((token.hash.clone(), token.clone())),
            _ => None,
        });
        Self { known: tokens.collect(), failures: VecDeque::new() }
    }

    /// A new one, what is to be saved before it is told, and until when it is good.
    pub(super) fn make(
        &mut self,
        valid: Duration,
        uses: u32,
    ) -> std::io::Result<(String, Vec<Change>, u64)> {
        let mut random = [0; BYTES];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let text = hexadecimal(&random);
        let until = now().saturating_add(valid.as_secs());
        let token =
            Token { hash: hash(text.as_bytes()), uses: uses.max(1), until, given: BTreeSet::new() };
        let mut changes = self.forget_old();
        changes.push(Change::Put(Record::Token(token.clone())));
        self.known.insert(token.hash.clone(), token);
        Ok((text, changes, until))
    }

    /// Those whose time has passed. One that is used up answers the same requests until then.
    fn forget_old(&mut self) -> Vec<Change> {
        let now = now();
        let old: Vec<String> =
            self.known.values().filter(|token| token.until < now).map(|t| t.hash.clone()).collect();
        old.iter().for_each(|hash| drop(self.known.remove(hash)));
        old.into_iter().map(|hash| Change::Erase(Key::Token(hash))).collect()
    }

    /// Whether they have tried too often.
    pub(super) fn is_too_much(&mut self, address: Option<IpAddr>) -> bool {
        while self.failures.front().is_some_and(|(at, _)| at.elapsed() > WHILE) {
            self.failures.pop_front();
        }
        let own = self.failures.iter().filter(|(_, of)| *of == address).count();
        own >= TRIES || self.failures.len() >= ALL_TRIES
    }

    pub(super) fn failed(&mut self, address: Option<IpAddr>) {
        self.failures.push_back((Instant::now(), address));
    }

    /// Whether a request is answered; `true`: it was before.
    pub(super) fn examine(&self, token: &str, request: &str) -> Result<bool, Bad> {
        let token = self.known.get(&hash(token.as_bytes())).ok_or(Bad)?;
        if token.until < now() {
            return Err(Bad);
        }
        let again = token.given.contains(request);
        if again || token.uses > 0 { Ok(again) } else { Err(Bad) }
    }

    /// It is answered: what is to be saved before.
    pub(super) fn take(&mut self, token: &str, request: &str) -> Option<Change> {
        let token = self.known.get_mut(&hash(token.as_bytes()))?;
        token.uses = token.uses.checked_sub(1)?;
        token.given.insert(request.to_owned());
        Some(Change::Put(Record::Token(token.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_used_up_but_answers_the_same_request() {
        let mut tokens = Tokens::default();
        let (token, changes, _) = tokens.make(Duration::from_secs(60), 1).unwrap();
        let Change::Put(Record::Token(kept)) = &changes[0] else { panic!("{changes:?}") };
        assert_ne!(kept.hash, token, "only the hash is kept");
        assert_eq!(tokens.examine(&token, "a"), Ok(false));
        assert!(tokens.take(&token, "a").is_some());
        assert_eq!(tokens.examine(&token, "a"), Ok(true));
        assert_eq!(tokens.examine(&token, "b"), Err(Bad));
        assert_eq!(tokens.examine("other", "a"), Err(Bad));
    }

    #[test]
    fn an_old_token_is_none_and_is_forgotten() {
        let mut tokens = Tokens::default();
        let (token, ..) = tokens.make(Duration::ZERO, 5).unwrap();
        tokens.known.values_mut().for_each(|token| token.until -= 1);
        assert_eq!(tokens.examine(&token, "a"), Err(Bad));
        let (_, changes, _) = tokens.make(Duration::from_secs(1), 1).unwrap();
        assert!(matches!(changes[0], Change::Erase(Key::Token(_))));
    }
}
