//! What a task wants fetched before it starts: checked, unpacked, and there as a whole or not at all.

mod unpack;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use hafen_protocol::v1;
use hafen_rootfs::release::remove_tree;
use hafen_spec::Problem;
use hafen_sys::CallError;
use hafen_sys::file::sync_folder;
use nix::fcntl::OFlag;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use v1::artifact::Unpack;

pub use unpack::UnpackError;

use crate::failure::{Failure, Kind};

const CONNECT: Duration = Duration::from_secs(10);
/// Without a byte.
const STALL: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 5;
/// What is unpacked, in a draft.
const CONTENT: &str = "content";
/// End of the names of what is not complete.
const DRAFT: &str = ".part";
const BUFFER: usize = 256 << 10;

/// An artifact that is not there. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[error("artifact {source_name}")]
pub struct ArtifactError {
    /// Its source, without a password.
    pub source_name: String,
    #[source]
    pub reason: Reason,
}

/// Why an artifact is not there.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// The request is wrong.
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    /// No connection, or one that broke.
    #[error("fetch it")]
    Fetch(#[source] reqwest::Error),
    /// The server says no.
    #[error("the server answered with HTTP status {0}: see whether the source is right")]
    Status(u16),
    /// Bounded by the request or by the node.
    #[error("it has more than {0} bytes: raise max_bytes, or what the node allows")]
    TooLarge(u64),
    /// Not what was asked for.
    #[error(
        "its content has the SHA-256 {found}, and {wanted} was asked for: ask for the other one only if you trust it"
    )]
    Digest { found: String, wanted: String },
    /// A file of the node.
    #[error("{call}")]
    File { call: String, source: io::Error },
    /// An archive that is broken or hostile.
    #[error("unpack it")]
    Unpack(#[source] UnpackError),
}

impl From<CallError> for Reason {
    fn from(e: CallError) -> Self {
        Self::File { call: e.call, source: e.source }
    }
}

/// Name the call on a file.
fn file<T>(found: io::Result<T>, verb: &str, path: &Path) -> Result<T, Reason> {
    found.map_err(|source| Reason::File { call: format!("{verb} {}", path.display()), source })
}

/// An artifact that can be fetched.
#[derive(Debug, Clone)]
struct Wanted {
    source: Url,
    sha256: Option<[u8; 32]>,
    unpack: Unpack,
    most: u64,
}

/// Fetches artifacts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: Client,
    /// What the node allows of one.
    most: u64,
}

/// Why an artifact cannot be fetched at all; `path` is where it stands.
#[must_use]
pub fn problem(path: &str, artifact: &v1::Artifact) -> Option<Problem> {
    match Wanted::read(artifact, u64::MAX) {
        Err(Reason::Invalid { field, reason }) => {
            Some(Problem { field: format!("{path}.{field}"), reason })
        }
        // Reading a request finds nothing else.
        _ => None,
    }
}

fn named(artifact: &v1::Artifact, reason: Reason) -> ArtifactError {
    let mut source_name = artifact.source.clone();
    if let Ok(mut url) = Url::parse(&source_name) {
        let _ = url.set_password(None);
        // It often is a signature.
        url.set_query(None);
        source_name = url.to_string();
    }
    ArtifactError { source_name, reason }
}

impl Wanted {
    fn read(artifact: &v1::Artifact, allowed: u64) -> Result<Self, Reason> {
        let invalid = |field, reason: String| Err(Reason::Invalid { field, reason });
        let source = match Url::parse(&artifact.source) {
            Ok(url) if matches!(url.scheme(), "http" | "https" | "file") => url,
            Ok(url) => {
                return invalid(
                    "source",
                    format!("{:?} is none of http, https and file", url.scheme()),
                );
            }
            Err(e) => return invalid("source", e.to_string()),
        };
        let is_file = source.scheme() == "file";
        if is_file && source.to_file_path().is_err() {
            return invalid("source", "must be an absolute path of this node".to_owned());
        }
        let sha256 = match artifact.sha256.as_str() {
            "" if is_file => None,
            "" => return invalid("sha256", "is required for what comes from a network".to_owned()),
            text => match from_hex(text) {
                None => return invalid("sha256", "must be 64 hexadecimal digits".to_owned()),
                some => some,
            },
        };
        let to = Path::new(&artifact.destination);
        let up = to.components().any(|part| part == Component::ParentDir);
        if !to.is_absolute() || up || to.file_name().is_none() {
            let reason = format!("{to:?} is no absolute path below \"/\" without \"..\"");
            return invalid("destination", reason);
        }
        let unpack = match Unpack::try_from(artifact.unpack) {
            Ok(Unpack::Unspecified) => by_name(source.path()),
            Ok(unpack) => unpack,
            Err(_) => return invalid("unpack", format!("{} is not known", artifact.unpack)),
        };
        let most = if artifact.max_bytes == 0 { allowed } else { artifact.max_bytes.min(allowed) };
        Ok(Self { source, sha256, unpack, most })
    }
}

fn by_name(path: &str) -> Unpack {
    let path = path.to_ascii_lowercase();
    let ends = |all: &[&str]| all.iter().any(|end| path.ends_with(end));
    if ends(&[".tar", ".tar.gz", ".tgz", ".tar.zst"]) {
        Unpack::Tar
    } else if ends(&[".zip"]) {
        Unpack::Zip
    } else {
        Unpack::None
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Fetcher {
    /// `most`: what the node allows of one artifact, in bytes.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn new(most: u64) -> Result<Self, reqwest::Error> {
        let builder = Client::builder()
            .user_agent(concat!("hafen/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(STALL)
            .redirect(Policy::limited(REDIRECTS));
        let client = match tls() {
            Ok(tls) => builder.tls_backend_preconfigured(tls).build()?,
            Err(_) => builder.build()?,
        };
        Ok(Self { client, most })
    }

    /// Fetch an artifact to `place`, a file or a folder of the node; what was there before is replaced. All of it
    /// happens beside `place`, under another name, which is gone in the end: this may be dropped at any time.
    ///
    /// # Errors
    /// Names the artifact.
    pub async fn fetch(&self, artifact: &v1::Artifact, place: &Path) -> Result<(), ArtifactError> {
        self.try_fetch(artifact, place).await.map_err(|reason| named(artifact, reason))
    }

    async fn try_fetch(&self, artifact: &v1::Artifact, place: &Path) -> Result<(), Reason> {
        let wanted = Wanted::read(artifact, self.most)?;
        let draft = Draft::beside(place)?;
        let file = match wanted.source.scheme() {
            "file" => copy(&wanted, &draft).await?,
            _ => self.download(&wanted, &draft).await?,
        };
        let done = match wanted.unpack {
            Unpack::Tar | Unpack::Zip => {
                let folder = Draft::beside(place)?;
                let unpacked = blocking(move || unpack_into(&wanted, file, folder)).await?;
                drop(draft);
                unpacked
            }
            Unpack::None | Unpack::Unspecified => draft,
        };
        done.publish(place)
    }

    async fn download(&self, wanted: &Wanted, draft: &Draft) -> Result<File, Reason> {
        let answer = self.client.get(wanted.source.clone()).send().await.map_err(without_query)?;
        if !answer.status().is_success() {
            return Err(Reason::Status(answer.status().as_u16()));
        }
        if answer.content_length().is_some_and(|length| length > wanted.most) {
            return Err(Reason::TooLarge(wanted.most));
        }
        let parts = answer.bytes_stream().map(|part| part.map_err(without_query));
        receive(wanted, draft, parts).await
    }
}

fn without_query(e: reqwest::Error) -> Reason {
    Reason::Fetch(e.without_url())
}

/// One program has one set of trusted authorities: those of the system, as for registries.
fn tls() -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    // A certificate that cannot be read keeps no other one.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, Reason> + Send + 'static,
) -> Result<T, Reason> {
    let ended = |e: tokio::task::JoinError| Reason::File {
        call: "a thread that works on it has ended".to_owned(),
        source: io::Error::other(e),
    };
    tokio::task::spawn_blocking(act).await.map_err(ended)?
}

/// Write, count and hash what comes.
async fn receive(
    wanted: &Wanted,
    draft: &Draft,
    parts: impl Stream<Item = Result<Bytes, Reason>>,
) -> Result<File, Reason> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let path = draft.path.clone();
    let mut file = file(options.open(&path), "create", &path)?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut parts = std::pin::pin!(parts);
    while let Some(part) = parts.next().await {
        let part = part?;
        length += part.len() as u64;
        if length > wanted.most {
            return Err(Reason::TooLarge(wanted.most));
        }
        let at = path.clone();
        (file, hash) = blocking(move || {
            hash.update(&part);
            self::file(file.write_all(&part), "write", &at)?;
            Ok((file, hash))
        })
        .await?;
    }
    let found: [u8; 32] = hash.finalize().into();
    match wanted.sha256 {
        Some(digest) if digest != found => {
            Err(Reason::Digest { found: to_hex(&found), wanted: to_hex(&digest) })
        }
        _ => {
            blocking(move || {
                // Whatever our umask is: the task may be any user, and this a program.
                self::file(file.set_permissions(Permissions::from_mode(0o755)), "chmod", &path)?;
                self::file(file.sync_all(), "fsync", &path)?;
                Ok(file)
            })
            .await
        }
    }
}

async fn copy(wanted: &Wanted, draft: &Draft) -> Result<File, Reason> {
    let path = wanted.source.to_file_path().unwrap_or_default();
    let from = blocking(move || open_regular(&path)).await?;
    let parts = futures_util::stream::try_unfold(from, |mut from| async move {
        blocking(move || {
            let mut buffer = vec![0; BUFFER];
            let length =
                file(io::Read::read(&mut from, &mut buffer), "read", Path::new("the source"))?;
            buffer.truncate(length);
            Ok((length > 0).then(|| (Bytes::from(buffer), from)))
        })
        .await
    });
    receive(wanted, draft, parts).await
}

/// A FIFO would be waited for, and a device may have no end.
fn open_regular(path: &Path) -> Result<File, Reason> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let found = file(options.open(path), "open", path)?;
    let kind = file(found.metadata(), "stat", path)?.file_type();
    if kind.is_file() {
        return Ok(found);
    }
    let what = match () {
        () if kind.is_dir() => "a folder: pack it, or use a mount",
        () if kind.is_fifo() => "a FIFO",
        () => "no file",
    };
    Err(Reason::Invalid { field: "source", reason: format!("{} is {what}", path.display()) })
}

/// Within a folder that nobody else can enter: until it is cleaned, an archive's set-id bits are there.
fn unpack_into(wanted: &Wanted, packed: File, folder: Draft) -> Result<Draft, Reason> {
    let make = |path: &Path, mode| file(DirBuilder::new().mode(mode).create(path), "mkdir", path);
    make(&folder.path, 0o700)?;
    let content = folder.path.join(CONTENT);
    make(&content, 0o755)?;
    file(fs::set_permissions(&content, Permissions::from_mode(0o755)), "chmod", &content)?;
    let bounds = unpack::Bounds { bytes: wanted.most, ..unpack::Bounds::default() };
    let unpacked = match wanted.unpack {
        Unpack::Zip => unpack::zip(packed, &content, bounds),
        _ => unpack::tar(packed, &content, bounds),
    };
    unpacked.map_err(Reason::Unpack)?;
    Ok(folder)
}

/// A file or folder under a name of its own, removed again with all that is not published.
#[derive(Debug)]
struct Draft {
    path: PathBuf,
}

impl Draft {
    /// No two have the same name: a thread that still unpacks for nobody is not to meet the next one.
    fn beside(place: &Path) -> Result<Self, Reason> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = place.file_name().ok_or_else(|| Reason::Invalid {
            field: "place",
            reason: format!("{} has no name", place.display()),
        })?;
        let prefix = format!(".{}.", name.to_string_lossy());
        let own = format!("{}-", std::process::id());
        remove_left(place.parent().unwrap_or(Path::new(".")), &prefix, &own)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = place.with_file_name(format!("{prefix}{own}{number}{DRAFT}"));
        // A process before us may have had the same number.
        remove(&path)?;
        Ok(Self { path })
    }

    /// What is left of the draft goes when it is dropped.
    fn publish(self, place: &Path) -> Result<(), Reason> {
        let content = self.path.join(CONTENT);
        remove(place)?;
        let from = if self.path.is_dir() { &content } else { &self.path };
        file(fs::rename(from, place), "rename to", place)?;
        Ok(place.parent().map_or(Ok(()), sync_folder)?)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Whoever fetches the same again begins with this.
        let _ = remove(&self.path);
    }
}

/// Drafts of processes that died.
fn remove_left(folder: &Path, prefix: &str, own: &str) -> Result<(), Reason> {
    for entry in file(fs::read_dir(folder), "read", folder)? {
        let path = file(entry, "read", folder)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(DRAFT));
        if number.is_some_and(|number| !number.contains('.') && !number.starts_with(own)) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// A file or a folder, or nothing.
fn remove(path: &Path) -> Result<(), Reason> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(found) if found.is_dir() => Ok(remove_tree(path)?),
        found => file(found.and_then(|_| fs::remove_file(path)), "remove", path),
    }
}

impl From<ArtifactError> for Failure {
    fn from(e: ArtifactError) -> Self {
        let kind = match &e.reason {
            Reason::Invalid { .. } => Kind::Invalid,
            Reason::Fetch(_) | Reason::Status(_) => Kind::Unavailable,
            Reason::TooLarge(_) => Kind::Exhausted,
            Reason::Digest { .. } | Reason::Unpack(_) => Kind::State,
            Reason::File { .. } => Kind::Internal,
        };
        Self::of(kind, &e)
    }
}

#[cfg(test)]
mod tests;
