//! State and leadership in etcd, by its JSON gateway (etcd.io/docs, "gRPC gateway"): several coordinators, of which one directs.
//!
//! | key | holds |
//! |---|---|
//! | `PREFIX/leader` | who directs; it goes with the lease of whoever put it there |
//! | `PREFIX/authority` | whose certificates all of them use: the SHA-256 of the first one that came |
//! | `PREFIX/records/KEY` | a record |
//! | `PREFIX/log/NUMBER` | a save: what it changes, as one value, so that all of it is there or nothing |
//! | `PREFIX/applied` | the last save that is among the records |
//!
//! Every write asks for the leader's key as it was when this one became the leader: whoever lost it can write nothing any more.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hafen_door::failure::chain;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Error, Mandate, Save, now, to_bytes};
use crate::cluster::Change;
use crate::model::Record;

/// Of the leader's lease: etcd takes none that is shorter (its default election time-out, one and a half times).
const LEASE: Duration = Duration::from_secs(2);
/// The leader stops so long before its lease may have ended: for what is under way.
const MARGIN: Duration = Duration::from_millis(400);
const RENEWAL: Duration = Duration::from_millis(400);
/// Between two looks of those who wait for the leader's end.
const LOOK: Duration = Duration::from_millis(200);
/// For one answer of one member: less than half of a lease, so that another one can be asked in time.
const PATIENCE: Duration = Duration::from_millis(700);
/// For a page of records.
const LONG_PATIENCE: Duration = Duration::from_secs(5);
/// Of one transaction (etcd's default is 128) and of one request (1.5 MiB, of base64).
const MOST_OPERATIONS: usize = 100;
const MOST_BYTES: usize = 512 << 10;
/// Saves in the log before they are put among the records.
const MOST_SAVES: u64 = 256;
const PAGE: usize = 2000;

#[derive(Debug, Clone)]
pub struct Options {
    /// Of the members, as `http://10.0.0.1:2379`.
    pub urls: Vec<String>,
    pub prefix: String,
    /// PEM.
    pub ca: Option<PathBuf>,
    /// Certificate and key, in PEM, of this client.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum EtcdError {
    #[error("etcd: no member answers: {0}")]
    Silent(String),
    #[error("etcd: {call}: {words}")]
    Refused { call: &'static str, words: String },
    #[error("etcd: another coordinator directs")]
    Deposed,
    #[error("etcd: {0}")]
    Options(String),
}

/// Connections to the members.
#[derive(Debug, Clone)]
pub struct Etcd {
    http: reqwest::Client,
    urls: Arc<Vec<String>>,
    /// The member that answered last.
    member: Arc<AtomicUsize>,
    prefix: Arc<str>,
}

/// This coordinator directs, until `lost`.
#[derive(Debug)]
pub struct Term {
    etcd: Etcd,
    /// Of the leader's key: of this term and no other.
    created: i64,
    lost: watch::Receiver<bool>,
    mandate: Mandate,
    number: u64,
    /// What saves of the log have changed.
    unapplied: BTreeMap<String, Option<Vec<u8>>>,
    applied: Arc<AtomicU64>,
    applying: Arc<AtomicBool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Header {
    revision: Number,
}

/// 64 bits are strings in proto3's JSON.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Number(i64);

impl TryFrom<String> for Number {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Granted {
    #[serde(rename = "ID")]
    id: Number,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Kept {
    result: KeptResult,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KeptResult {
    #[serde(rename = "TTL")]
    ttl: Number,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Done {
    header: Header,
    succeeded: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Range {
    kvs: Vec<Pair>,
    more: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pair {
    key: String,
    value: String,
}

impl Pair {
    fn key(&self) -> String {
        String::from_utf8_lossy(&STANDARD.decode(&self.key).unwrap_or_default()).into_owned()
    }

    fn value(&self) -> Vec<u8> {
        STANDARD.decode(&self.value).unwrap_or_default()
    }
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// The key after all that begin so.
fn after_all(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn put(key: &str, value: &[u8]) -> Value {
    json!({ "requestPut": { "key": encoded(key), "value": encoded(value) } })
}

fn delete(key: &str) -> Value {
    json!({ "requestDeleteRange": { "key": encoded(key) } })
}

impl Etcd {
    /// # Errors
    /// Files that cannot be read; nothing is said to etcd yet.
    pub fn new(options: &Options) -> Result<Self, EtcdError> {
        let wrong = |what: &dyn std::fmt::Display| EtcdError::Options(what.to_string());
        if options.urls.is_empty() {
            return Err(EtcdError::Options("no URL of a member".to_owned()));
        }
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|e| wrong(&format!("read {}: {e}", path.display())))
        };
        // One program has one provider; a second call finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder().no_proxy();
        if let Some(path) = &options.ca {
            let all = reqwest::Certificate::from_pem_bundle(&read(path)?).map_err(|e| wrong(&e))?;
            builder = all.into_iter().fold(builder, reqwest::ClientBuilder::add_root_certificate);
        }
        if let Some((certificate, key)) = &options.identity {
            let both = [read(certificate)?, read(key)?].concat();
            builder = builder.identity(reqwest::Identity::from_pem(&both).map_err(|e| wrong(&e))?);
        }
        let http = builder.build().map_err(|e| wrong(&e))?;
        let urls = options.urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        Ok(Self {
            http,
            urls: Arc::new(urls),
            member: Arc::default(),
            prefix: options.prefix.as_str().into(),
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    /// Ask one member after the other. To ask twice must be as good as to ask once.
    async fn call<T: DeserializeOwned>(
        &self,
        call: &'static str,
        body: &Value,
    ) -> Result<T, EtcdError> {
        let first = self.member.load(Ordering::Relaxed);
        let mut last = String::new();
        for n in 0..self.urls.len() {
            let member = (first + n) % self.urls.len();
            match self.ask(&self.urls[member], call, body).await {
                Ok(answer) => {
                    self.member.store(member, Ordering::Relaxed);
                    return answer;
                }
                Err(words) => last = format!("{}: {words}", self.urls[member]),
            }
        }
        Err(EtcdError::Silent(last))
    }

    /// `Err`: another member may do better.
    async fn ask<T: DeserializeOwned>(
        &self,
        url: &str,
        call: &'static str,
        body: &Value,
    ) -> Result<Result<T, EtcdError>, String> {
        let patience = if call == "kv/range" { LONG_PATIENCE } else { PATIENCE };
        let request = self.http.post(format!("{url}/v3/{call}")).timeout(patience);
        let request = request.body(body.to_string());
        let answer = request.send().await;
        let answer = answer.map_err(|e| chain(&e))?;
        let (status, text) = (answer.status(), answer.bytes().await.map_err(|e| chain(&e))?);
        // 503: no leader, or too many requests; 504: etcd's own time-out.
        if status.is_server_error() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&text)));
        }
        let refused = |words| EtcdError::Refused { call, words };
        if !status.is_success() {
            let words = format!("{status}: {}", String::from_utf8_lossy(&text));
            return Ok(Err(refused(words)));
        }
        Ok(serde_json::from_slice(&text).map_err(|e| refused(e.to_string())))
    }

    async fn range(&self, from: &str, end: &[u8], limit: usize) -> Result<Range, EtcdError> {
        let body = json!({ "key": encoded(from), "range_end": encoded(end), "limit": limit });
        self.call("kv/range", &body).await
    }

    async fn all(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, EtcdError> {
        let (mut from, end) = (prefix.to_owned(), after_all(prefix));
        let mut all = Vec::new();
        loop {
            let page = self.range(&from, &end, PAGE).await?;
            all.extend(page.kvs.iter().map(|pair| (pair.key(), pair.value())));
            match page.kvs.last() {
                Some(last) if page.more => from = last.key() + "\0",
                _ => return Ok(all),
            }
        }
    }

    async fn one(&self, name: &str) -> Result<Option<Vec<u8>>, EtcdError> {
        let body = json!({ "key": encoded(self.key(name)) });
        let range: Range = self.call("kv/range", &body).await?;
        Ok(range.kvs.first().map(Pair::value))
    }

    /// Who directs, as it says of itself.
    ///
    /// # Errors
    /// No member answers.
    pub async fn leader(&self) -> Result<Option<String>, EtcdError> {
        let value = self.one("leader").await?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    /// Whose certificates the cluster uses: ours, if nobody else's were there before.
    ///
    /// # Errors
    /// No member answers, or etcd refuses.
    pub async fn authority(&self, ours: &str) -> Result<String, EtcdError> {
        let key = self.key("authority");
        let absent = json!({
            "key": encoded(&key), "target": "CREATE", "result": "EQUAL", "createRevision": "0",
        });
        let body = json!({ "compare": [absent], "success": [put(&key, ours.as_bytes())] });
        let _: Done = self.call("kv/txn", &body).await?;
        let value = self.one("authority").await?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    /// Wait until nobody else directs, and direct. `others` is told who does meanwhile.
    ///
    /// # Errors
    /// What etcd refuses; while no member answers it waits.
    pub async fn campaign(
        &self,
        who: &str,
        others: &watch::Sender<Option<String>>,
    ) -> Result<Term, EtcdError> {
        loop {
            match self.look_or_lead(who, others).await {
                Ok(Some(term)) => return Ok(term),
                Ok(None) => {}
                Err(EtcdError::Silent(words)) => tracing::warn!("etcd: {words}"),
                Err(e) => return Err(e),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look_or_lead(
        &self,
        who: &str,
        others: &watch::Sender<Option<String>>,
    ) -> Result<Option<Term>, EtcdError> {
        let leader = self.leader().await?;
        if leader.is_some() {
            others.send_replace(leader);
            return Ok(None);
        }
        let term = self.try_to_lead(who).await?;
        if term.is_some() {
            others.send_replace(None);
        }
        Ok(term)
    }

    async fn try_to_lead(&self, who: &str) -> Result<Option<Term>, EtcdError> {
        let sent = now();
        let granted: Granted =
            self.call("lease/grant", &json!({ "TTL": LEASE.as_secs().to_string() })).await?;
        let (lease, key) = (granted.id.0, encoded(self.key("leader")));
        let body = json!({
            "compare": [{ "key": key, "target": "CREATE", "result": "EQUAL", "createRevision": "0" }],
            "success": [{ "requestPut": { "key": key, "value": encoded(who), "lease": lease.to_string() } }],
        });
        // An answer that is lost may have been a yes: the lease ends then, and with it the key.
        let done: Done = self.call("kv/txn", &body).await?;
        if !done.succeeded {
            return Ok(None);
        }
        let (said, lost) = watch::channel(false);
        let mandate = Mandate::until(sent + LEASE - MARGIN);
        tokio::spawn(keep(self.clone(), lease, sent, mandate.clone(), said));
        let applied = self.applied().await?;
        Ok(Some(Term {
            etcd: self.clone(),
            created: done.header.revision.0,
            lost,
            mandate,
            number: applied,
            unapplied: BTreeMap::new(),
            applied: Arc::new(AtomicU64::new(applied)),
            applying: Arc::default(),
        }))
    }

    async fn applied(&self) -> Result<u64, EtcdError> {
        let text = self.one("applied").await?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&text).parse().unwrap_or_default())
    }
}

/// Renew the lease until nobody can be sure of it any more. It counts from when each request was sent.
async fn keep(
    etcd: Etcd,
    lease: i64,
    mut sent: Duration,
    mandate: Mandate,
    lost: watch::Sender<bool>,
) {
    let body = json!({ "ID": lease.to_string() });
    loop {
        let left = (sent + LEASE - MARGIN).saturating_sub(now());
        let asked = now();
        let kept = tokio::time::timeout(left, etcd.call::<Kept>("lease/keepalive", &body)).await;
        match kept {
            Ok(Ok(kept)) if kept.result.ttl.0 > 0 => {
                sent = asked;
                mandate.extend(sent + LEASE - MARGIN);
            }
            // It has ended, or it may have.
            Ok(Ok(_)) | Err(_) => break,
            Ok(Err(_)) => {}
        }
        if lost.is_closed() {
            break;
        }
        tokio::time::sleep(RENEWAL).await;
    }
    let _ = lost.send(true);
    // Sooner than by itself.
    let _: Result<Value, _> = etcd.call("lease/revoke", &body).await;
}

impl Term {
    /// Closed, or true: another one may direct.
    #[must_use]
    pub fn lost(&self) -> watch::Receiver<bool> {
        self.lost.clone()
    }

    #[must_use]
    pub fn mandate(&self) -> Mandate {
        self.mandate.clone()
    }

    /// For a thread that may wait.
    #[must_use]
    pub fn into_save(mut self, threads: tokio::runtime::Handle) -> Save {
        Box::new(move |changes| threads.block_on(self.save(changes.iter().copied())))
    }

    /// Everything, for [`crate::cluster::Core::recover`].
    ///
    /// # Errors
    /// A record that cannot be read.
    pub async fn load(&mut self) -> Result<Vec<Record>, Error> {
        let root = self.etcd.key("records/");
        let mut all: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (key, value) in self.etcd.all(&root).await? {
            all.insert(key[root.len()..].to_owned(), value);
        }
        for (_, changes) in self.log().await? {
            for (key, value) in changes {
                match &value {
                    Some(text) => drop(all.insert(key.clone(), text.clone().into_bytes())),
                    None => drop(all.remove(&key)),
                }
                self.unapplied.insert(key, value.map(String::into_bytes));
            }
        }
        all.into_iter().map(super::parse).collect()
    }

    /// Saves that are not among the records, in order. One of which a part is missing was never answered.
    async fn log(&mut self) -> Result<Vec<(u64, Vec<Entry>)>, Error> {
        let root = self.etcd.key("log/");
        let mut saves: BTreeMap<u64, Vec<Part>> = BTreeMap::new();
        for (key, value) in self.etcd.all(&root).await? {
            let wrong = |source| Error::Record { key: key.clone(), source };
            let number = key[root.len()..].split('/').next().unwrap_or_default();
            let number = u64::from_str_radix(number, 16).unwrap_or_default();
            // Also that of one that is not whole: it is not used again.
            self.number = self.number.max(number);
            saves.entry(number).or_default().push(serde_json::from_slice(&value).map_err(wrong)?);
        }
        let whole = saves.into_iter().filter(|(_, parts)| parts.len() == parts[0].of);
        Ok(whole
            .map(|(n, parts)| (n, parts.into_iter().flat_map(|p| p.changes).collect()))
            .collect())
    }

    /// All of it or nothing, and then for good.
    ///
    /// # Errors
    /// Then it may be written or not: whoever depends on it must not go on.
    pub async fn save<'a>(
        &mut self,
        changes: impl IntoIterator<Item = &'a Change>,
    ) -> Result<(), Error> {
        let changes: Vec<(String, Option<Vec<u8>>)> =
            changes.into_iter().map(to_bytes).collect::<Result<_, _>>()?;
        self.number += 1;
        let parts = in_parts(&changes);
        let of = parts.len();
        for (n, changes) in parts.into_iter().enumerate() {
            let key = self.etcd.key(&format!("log/{:016x}/{n:04x}", self.number));
            let value = serde_json::to_vec(&Part { of, changes });
            let value = value.map_err(|source| Error::Record { key: key.clone(), source })?;
            self.guarded(vec![put(&key, &value)]).await?;
        }
        self.unapplied.extend(changes);
        self.apply_some_day();
        Ok(())
    }

    /// While it is sure to be the leader it tries again: members may be choosing one of their own.
    async fn guarded(&self, operations: Vec<Value>) -> Result<(), EtcdError> {
        loop {
            match guarded(&self.etcd, self.created, operations.clone()).await {
                Err(EtcdError::Silent(words)) if !*self.lost.borrow() => {
                    tracing::warn!("etcd: {words}");
                    tokio::time::sleep(LOOK).await;
                }
                answer => return answer,
            }
        }
    }

    /// Put what the log has among the records, beside what goes on.
    fn apply_some_day(&mut self) {
        let applied = self.applied.load(Ordering::Acquire);
        if self.number - applied < MOST_SAVES || self.applying.swap(true, Ordering::AcqRel) {
            return;
        }
        let (etcd, created, number) = (self.etcd.clone(), self.created, self.number);
        let changes = std::mem::take(&mut self.unapplied);
        let (applied, applying) = (self.applied.clone(), self.applying.clone());
        tokio::spawn(async move {
            match apply(&etcd, created, number, &changes).await {
                Ok(()) => {
                    applied.store(number, Ordering::Release);
                    applying.store(false, Ordering::Release);
                }
                // The log has it still, and so has whoever leads next.
                Err(e) => tracing::warn!("{e}"),
            }
        });
    }
}

type Entry = (String, Option<String>);

/// Of one save.
#[derive(Debug, serde::Serialize, Deserialize)]
struct Part {
    /// How many there are.
    of: usize,
    changes: Vec<Entry>,
}

fn in_parts(changes: &[(String, Option<Vec<u8>>)]) -> Vec<Vec<Entry>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for (key, value) in changes {
        let text = value.as_deref().map(|value| String::from_utf8_lossy(value).into_owned());
        let length = key.len() + text.as_ref().map_or(0, String::len);
        if bytes > 0 && bytes + length > MOST_BYTES {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += length;
        if let Some(part) = parts.last_mut() {
            part.push((key.clone(), text));
        }
    }
    parts
}

async fn guarded(etcd: &Etcd, created: i64, operations: Vec<Value>) -> Result<(), EtcdError> {
    let body = json!({
        "compare": [{
            "key": encoded(etcd.key("leader")),
            "target": "CREATE",
            "result": "EQUAL",
            "createRevision": created.to_string(),
        }],
        "success": operations,
    });
    let done: Done = etcd.call("kv/txn", &body).await?;
    if done.succeeded { Ok(()) } else { Err(EtcdError::Deposed) }
}

async fn apply(
    etcd: &Etcd,
    created: i64,
    number: u64,
    changes: &BTreeMap<String, Option<Vec<u8>>>,
) -> Result<(), EtcdError> {
    let (mut operations, mut bytes) = (Vec::new(), 0);
    for (key, value) in changes {
        let length = value.as_ref().map_or(0, Vec::len);
        if operations.len() == MOST_OPERATIONS || bytes + length > MOST_BYTES && bytes > 0 {
            guarded(etcd, created, std::mem::take(&mut operations)).await?;
            bytes = 0;
        }
        bytes += length;
        let key = etcd.key(&format!("records/{key}"));
        operations.push(value.as_ref().map_or_else(|| delete(&key), |value| put(&key, value)));
    }
    let end = encoded(etcd.key(&format!("log/{number:016x}0")));
    let from = encoded(etcd.key("log/"));
    let old = json!({ "requestDeleteRange": { "key": from, "range_end": end } });
    if operations.len() + 2 > MOST_OPERATIONS {
        guarded(etcd, created, std::mem::take(&mut operations)).await?;
    }
    operations.extend([put(&etcd.key("applied"), number.to_string().as_bytes()), old]);
    guarded(etcd, created, operations).await
}
