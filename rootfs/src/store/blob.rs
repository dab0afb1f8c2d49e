use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, IntoInnerError, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use hafen_spec::image::{Blob, Digest};
use hafen_sys::file::sync_folder;
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::linkat;
use sha2::{Digest as _, Sha256, Sha512};

use super::lock::{self, Maker};
use super::{Store, StoreError, names};

pub(super) const CHUNK: usize = 1 << 20;
/// Manifests and configurations are read into memory; 4 MiB is what registries must take at least (distribution-spec).
const LARGEST_DOCUMENT: u64 = 4 << 20;

/// What a blob must turn out to be.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    pub digest: &'a Digest,
    pub size: Option<u64>,
}

impl<'a> From<&'a Blob> for Expected<'a> {
    fn from(blob: &'a Blob) -> Self {
        Self { digest: &blob.digest, size: Some(blob.size) }
    }
}

/// A blob that is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub size: u64,
}

/// A hash of either kind.
pub(super) enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hash {
    pub(super) fn new(algorithm: &str) -> Self {
        if algorithm == "sha512" {
            Self::Sha512(Sha512::new())
        } else {
            Self::Sha256(Sha256::new())
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::sha256(hash.finalize().into()),
            Self::Sha512(hash) => Digest::sha512(hash.finalize().into()),
        }
    }
}

/// A blob that is being written. Without a name, it goes with its process.
struct Draft {
    file: File,
    hash: Hash,
    size: u64,
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The digest of all that can be read.
pub(super) fn digest_of(algorithm: &str, mut from: impl Read) -> io::Result<Digest> {
    let (mut hash, mut chunk) = (Hash::new(algorithm), vec![0; CHUNK]);
    loop {
        match read_some(&mut from, &mut chunk)? {
            0 => return Ok(hash.finish()),
            read => hash.update(&chunk[..read]),
        }
    }
}

impl Store {
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    /// A blob that is there is whole: it had no name before.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// Wait until nobody else fetches this blob. `None`: it is there.
    ///
    /// # Errors
    /// Of the lock.
    pub fn fetching(&self, digest: &Digest) -> Result<Option<impl Sized + use<>>, CallError> {
        if self.has_blob(digest) {
            return Ok(None);
        }
        let maker: Maker = lock::maker(&self.root, digest)?;
        Ok((!self.has_blob(digest)).then_some(maker))
    }

    /// Take a blob in. It is hashed while it is written, and has its name only when it is what was expected.
    ///
    /// # Errors
    /// Of reading and writing; a wrong digest or size.
    pub fn put(
        &self,
        mut from: impl Read,
        expected: Option<Expected<'_>>,
        what: &str,
    ) -> Result<Stored, StoreError> {
        let algorithm = expected.map_or("sha256", |e| e.digest.algorithm());
        let mut draft = self.draft(algorithm)?;
        let mut chunk = vec![0; CHUNK];
        let most = expected.and_then(|e| e.size).unwrap_or(u64::MAX);
        loop {
            let read = read_some(&mut from, &mut chunk).call(|| format!("read {what}"))?;
            if read == 0 {
                break;
            }
            let size = draft.size + read as u64;
            if size > most {
                return Err(StoreError::Size { what: what.to_owned(), wanted: most, found: size });
            }
            draft.write_all(&chunk[..read]).call(|| format!("write {what}"))?;
        }
        self.keep(draft, expected, what)
    }

    /// Take in what somebody writes.
    ///
    /// # Errors
    /// Of whoever writes; of the file.
    pub(crate) fn put_written<T, E: From<StoreError>>(
        &self,
        what: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<T, E>,
    ) -> Result<(Stored, T), E> {
        let mut buffer = BufWriter::with_capacity(CHUNK, self.draft("sha256")?);
        let answer = write(&mut buffer)?;
        let draft = buffer.into_inner().map_err(IntoInnerError::into_error);
        let draft = draft.call(|| format!("write {what}")).map_err(StoreError::from)?;
        Ok((self.keep(draft, None, what)?, answer))
    }

    fn draft(&self, algorithm: &str) -> Result<Draft, StoreError> {
        let folder = self.root.join("tmp");
        let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = open(&folder, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = File::from(file.call(|| format!("open a file in {}", folder.display()))?);
        Ok(Draft { file, hash: Hash::new(algorithm), size: 0 })
    }

    fn keep(
        &self,
        draft: Draft,
        expected: Option<Expected<'_>>,
        what: &str,
    ) -> Result<Stored, StoreError> {
        let stored = Stored { digest: draft.hash.finish(), size: draft.size };
        check(&stored, expected, what)?;
        self.name(&draft.file, &stored.digest)?;
        Ok(stored)
    }

    fn name(&self, file: &File, digest: &Digest) -> Result<(), CallError> {
        let path = self.blob_path(digest);
        file.sync_data().call(|| format!("fsync {}", path.display()))?;
        let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(AT_FDCWD, nameless.as_str(), AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW) {
            // Somebody else had the same content.
            Err(Errno::EEXIST) => {}
            answer => answer.call(|| format!("link {}", path.display()))?,
        }
        sync_folder(path.parent().unwrap_or(Path::new("/")))
    }

    /// Open a blob of which the store knows.
    ///
    /// # Errors
    /// [`StoreError::NoBlob`], or of opening it.
    pub fn open_blob(&self, digest: &Digest, what: &'static str) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::NoBlob(digest.clone(), what))
            }
            answer => Ok(answer.call(|| format!("open {}", path.display()))?),
        }
    }

    /// Read a document, and prove that it is the one.
    ///
    /// # Errors
    /// As [`Self::open_blob`]; a wrong digest, or more than 4 MiB.
    pub fn read_document(
        &self,
        digest: &Digest,
        what: &'static str,
    ) -> Result<Vec<u8>, StoreError> {
        let file = self.open_blob(digest, what)?;
        let length = file.metadata().map_or(0, |found| found.len()).min(LARGEST_DOCUMENT);
        // One more, to see the end of the file at once.
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1);
        let read = file.take(LARGEST_DOCUMENT + 1).read_to_end(&mut bytes);
        read.call(|| format!("read {}", self.blob_path(digest).display()))?;
        if bytes.len() as u64 > LARGEST_DOCUMENT {
            return Err(StoreError::Refused(format!("{what} {digest} is larger than 4 MiB")));
        }
        let mut hash = Hash::new(digest.algorithm());
        hash.update(&bytes);
        let found = Stored { digest: hash.finish(), size: bytes.len() as u64 };
        check(&found, Some(Expected { digest, size: None }), what)?;
        Ok(bytes)
    }

    pub(super) fn blobs(&self) -> Result<BTreeSet<Digest>, CallError> {
        let mut blobs = BTreeSet::new();
        for algorithm in ["sha256", "sha512"] {
            let names = names(&self.root.join("blobs").join(algorithm))?;
            blobs.extend(names.iter().filter_map(|hex| format!("{algorithm}:{hex}").parse().ok()));
        }
        Ok(blobs)
    }

    pub(super) fn remove_blob(&self, digest: &Digest) -> Result<(), CallError> {
        let path = self.blob_path(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            answer => answer.call(|| format!("unlink {}", path.display())),
        }
    }
}

pub(super) fn check(
    stored: &Stored,
    expected: Option<Expected<'_>>,
    what: &str,
) -> Result<(), StoreError> {
    let Some(Expected { digest, size }) = expected else { return Ok(()) };
    let what = what.to_owned();
    match size {
        Some(wanted) if wanted != stored.size => {
            Err(StoreError::Size { what, wanted, found: stored.size })
        }
        _ if *digest != stored.digest => {
            Err(StoreError::Digest { what, wanted: digest.clone(), found: stored.digest.clone() })
        }
        _ => Ok(()),
    }
}

pub(super) fn read_some(from: &mut impl Read, chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(chunk) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            answer => return answer,
        }
    }
}
