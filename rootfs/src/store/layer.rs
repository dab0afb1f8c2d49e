use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use hafen_spec::image::{Compression, Digest, Layer};
use hafen_sys::file::replace;
use hafen_sys::{CallError, Context};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use super::blob::{Hash, digest_of};
use super::lock::{self, Maker};
use super::{Image, Store, StoreError, chain_ids, names};
use crate::release::remove_tree;
use crate::unpack::{Bounds, UnpackError, Unpacked, settle, unpack};

/// Chunks of the tar on their way from who unpacks to who writes.
const CHUNK: usize = 256 << 10;
const CHUNKS_WAITING: usize = 8;
/// Of a tar beside the contents of its files: a header, its padding, and what a name or attributes need.
const PER_ENTRY: u64 = 4096;
const TREE: &str = "fs";
const RECORD: &str = "layer.json";

/// What is known of an unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerRecord {
    pub diff_id: Digest,
    pub bytes: u64,
    pub entries: u64,
    /// When it was unpacked. The kernel may still have held it in memory when that boot ended.
    pub boot_id: String,
    /// It has reached the disk.
    pub synced: bool,
}

/// How an image is to be unpacked.
pub struct Unpacking<'a> {
    pub bounds: Bounds,
    pub boot_id: &'a str,
    /// Called with the bytes of a packed layer that were read since the last time, by several threads.
    pub progress: &'a (dyn Fn(&Digest, u64) + Sync),
}

impl std::fmt::Debug for Unpacking<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacking").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

/// A layer that nobody has unpacked yet, and that only we do now.
struct Draft<'a> {
    /// In the image, from the lowest.
    index: usize,
    chain: &'a Digest,
    diff: &'a Digest,
    layer: &'a Layer,
    folder: PathBuf,
    _maker: Maker,
}

impl Store {
    /// The folders of an image's layers, topmost first, as an overlay takes them; what is not unpacked is unpacked now.
    ///
    /// # Errors
    /// Names the layer, and the entry or the call.
    pub fn layers_of(
        &self,
        image: &Image,
        how: &Unpacking<'_>,
    ) -> Result<Vec<PathBuf>, StoreError> {
        let chain = chain_ids(&image.config.diff_ids);
        let drafts = self.missing(image, &chain, how.boot_id)?;
        let unpacked = self.unpack_all(&drafts, how);
        let finished = unpacked.and_then(|unpacked| {
            drafts.iter().zip(&unpacked).try_for_each(|(draft, unpacked)| {
                self.finish(draft, unpacked, &chain[..draft.index], how)
            })
        });
        if finished.is_err() {
            // The first failure is the one to tell, and what stays is removed by whoever collects.
            for draft in &drafts {
                let _ = remove_tree(&draft.folder);
            }
        }
        finished?;
        Ok(chain.iter().rev().map(|id| self.layer_tree(id)).collect())
    }

    /// The same where all is unpacked, which is the usual case. `None`: something is not.
    ///
    /// # Errors
    /// Of reading a record.
    pub fn ready_layers(
        &self,
        image: &Image,
        boot_id: &str,
    ) -> Result<Option<Vec<PathBuf>>, StoreError> {
        let chain = chain_ids(&image.config.diff_ids);
        for id in &chain {
            if !self.is_ready(id, boot_id)? {
                return Ok(None);
            }
        }
        Ok(Some(self.layer_trees(&chain)))
    }

    /// The folders of a chain of layers, topmost first.
    #[must_use]
    pub fn layer_trees(&self, chain: &[Digest]) -> Vec<PathBuf> {
        chain.iter().rev().map(|id| self.layer_tree(id)).collect()
    }

    /// The folder of a layer by its chain id.
    #[must_use]
    pub fn layer_tree(&self, chain: &Digest) -> PathBuf {
        self.layer_folder(chain).join(TREE)
    }

    pub(super) fn record_path(&self, chain: &Digest) -> PathBuf {
        self.layer_folder(chain).join(RECORD)
    }

    pub(super) fn layer_folder(&self, chain: &Digest) -> PathBuf {
        self.path("layers", &format!("{}-{}", chain.algorithm(), chain.hex()))
    }

    /// # Errors
    /// Names the file.
    pub fn layer_record(&self, chain: &Digest) -> Result<Option<LayerRecord>, StoreError> {
        let path = self.record_path(chain);
        match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            // A torn record is none: the machine ended before it was on the disk.
            answer => {
                let bytes = answer.call(|| format!("read {}", path.display()))?;
                Ok(serde_json::from_slice(&bytes).ok())
            }
        }
    }

    fn is_ready(&self, chain: &Digest, boot_id: &str) -> Result<bool, StoreError> {
        let record = self.layer_record(chain)?;
        Ok(record.is_some_and(|record| record.synced || record.boot_id == boot_id))
    }

    /// From the lowest to the topmost: whoever unpacks the same image waits for the lowest first, so nobody waits in a
    /// circle.
    fn missing<'a>(
        &self,
        image: &'a Image,
        chain: &'a [Digest],
        boot_id: &str,
    ) -> Result<Vec<Draft<'a>>, StoreError> {
        let mut drafts: Vec<Draft<'a>> = Vec::new();
        let layers = image.manifest.layers.iter().zip(&image.config.diff_ids);
        for (index, (chain, (layer, diff))) in chain.iter().zip(layers).enumerate() {
            if self.is_ready(chain, boot_id)? {
                continue;
            }
            let maker = lock::maker(&self.root, chain)?;
            if self.is_ready(chain, boot_id)? {
                continue;
            }
            if let Some(container) = self.user_of(chain, boot_id)? {
                return Err(StoreError::Used(chain.clone(), container));
            }
            let folder = self.path("tmp", &format!("layer-{}", chain.hex()));
            remove_tree(&folder)?;
            make_folder(&folder)?;
            drafts.push(Draft { index, chain, diff, layer, folder, _maker: maker });
        }
        Ok(drafts)
    }

    /// Layers do not depend on each other until they are finished, so each processor takes the next one.
    fn unpack_all(
        &self,
        drafts: &[Draft<'_>],
        how: &Unpacking<'_>,
    ) -> Result<Vec<Unpacked>, StoreError> {
        let next = Mutex::new(drafts.iter().enumerate());
        let work = || -> Result<Vec<(usize, Unpacked)>, StoreError> {
            let mut done = Vec::new();
            while let Some((i, draft)) = next.lock().ok().and_then(|mut next| next.next()) {
                match self.unpack_one(draft, how) {
                    Ok(unpacked) => done.push((i, unpacked)),
                    Err(e) => {
                        // Nobody needs the others any more.
                        if let Ok(mut next) = next.lock() {
                            next.by_ref().for_each(drop);
                        }
                        return Err(e);
                    }
                }
            }
            Ok(done)
        };
        let workers = thread::available_parallelism().map_or(1, usize::from).min(drafts.len());
        let mut all = Vec::new();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| {
                let done = worker.join().unwrap_or_else(|_| {
                    Err(StoreError::Refused("a thread that unpacks has panicked".to_owned()))
                })?;
                all.extend(done);
                Ok::<(), StoreError>(())
            })
        })?;
        all.sort_by_key(|(i, _)| *i);
        Ok(all.into_iter().map(|(_, unpacked)| unpacked).collect())
    }

    fn unpack_one(&self, draft: &Draft<'_>, how: &Unpacking<'_>) -> Result<Unpacked, StoreError> {
        let failed = |source| StoreError::Unpack { layer: draft.layer.blob.digest.clone(), source };
        let blob = self.open_blob(&draft.layer.blob.digest, "a layer")?;
        let folder = open_folder(&draft.folder.join(TREE))?;
        let packed =
            Counted { file: blob, digest: &draft.layer.blob.digest, progress: how.progress };
        let (unpacked, found) =
            unpack_packed(packed, draft.layer.compression, &folder, how.bounds).map_err(failed)?;
        if found != *draft.diff {
            let what = format!("layer {}, unpacked,", draft.layer.blob.digest);
            return Err(StoreError::Digest { what, wanted: draft.diff.clone(), found });
        }
        Ok(unpacked)
    }

    fn finish(
        &self,
        draft: &Draft<'_>,
        unpacked: &Unpacked,
        below: &[Digest],
        how: &Unpacking<'_>,
    ) -> Result<(), StoreError> {
        let below: Result<Vec<OwnedFd>, CallError> =
            below.iter().rev().map(|id| open_folder(&self.layer_tree(id))).collect();
        let folder = open_folder(&draft.folder.join(TREE))?;
        let failed = |source| StoreError::Unpack { layer: draft.layer.blob.digest.clone(), source };
        let copied = settle(&folder, unpacked, &below?, how.bounds).map_err(failed)?;
        let record = LayerRecord {
            diff_id: draft.diff.clone(),
            bytes: unpacked.bytes + copied.bytes,
            entries: unpacked.entries + copied.entries,
            boot_id: how.boot_id.to_owned(),
            synced: false,
        };
        write_record(&draft.folder, &record)?;
        let place = self.layer_folder(draft.chain);
        // What has the place is torn: it would have been taken otherwise.
        remove_tree(&place)?;
        fs::rename(&draft.folder, &place).call(|| format!("rename to {}", place.display()))?;
        Ok(())
    }

    /// Bring the layers of this boot to the disk and say so, that the next boot can trust them.
    ///
    /// # Errors
    /// Of syncfs(2), or names the record.
    pub fn sync_layers(&self, boot_id: &str) -> Result<(), StoreError> {
        let mut fresh = Vec::new();
        for chain in self.layers()? {
            let record = self.layer_record(&chain)?;
            fresh.extend(record.filter(|r| !r.synced && r.boot_id == boot_id).map(|r| (chain, r)));
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let folder = open_folder(&self.root.join("layers"))?;
        nix::unistd::syncfs(&folder).call(|| format!("syncfs {}", self.root.display()))?;
        fresh.into_iter().try_for_each(|(chain, record)| {
            write_record(&self.layer_folder(&chain), &LayerRecord { synced: true, ..record })
        })
    }

    pub(super) fn layers(&self) -> Result<BTreeSet<Digest>, CallError> {
        let names = names(&self.root.join("layers"))?;
        Ok(names.iter().filter_map(|name| name.replacen('-', ":", 1).parse().ok()).collect())
    }

    /// Out of its place first: a layer that is only half there is nobody's.
    pub(super) fn remove_layer(&self, chain: &Digest) -> Result<(), CallError> {
        let place = self.layer_folder(chain);
        let away = self.path("tmp", &format!("removed-{}", chain.hex()));
        self.forget_stacks()?;
        remove_tree(&away)?;
        match fs::rename(&place, &away) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            answer => {
                answer.call(|| format!("rename {}", place.display()))?;
                remove_tree(&away)
            }
        }
    }
}

fn write_record(folder: &Path, record: &LayerRecord) -> Result<(), StoreError> {
    let text = serde_json::to_vec(record).map_err(|e| StoreError::Refused(e.to_string()))?;
    Ok(replace(&folder.join(RECORD), &text, record.synced)?)
}

fn make_folder(folder: &Path) -> Result<(), CallError> {
    for path in [folder.to_owned(), folder.join(TREE)] {
        let mode = if path == folder { 0o700 } else { 0o755 };
        let made = DirBuilder::new().mode(mode).create(&path);
        made.call(|| format!("mkdir {}", path.display()))?;
    }
    Ok(())
}

fn open_folder(path: &Path) -> Result<OwnedFd, CallError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).call(|| format!("open {}", path.display()))
}

/// Tells how far a file has been read.
struct Counted<'a> {
    file: File,
    digest: &'a Digest,
    progress: &'a (dyn Fn(&Digest, u64) + Sync),
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        (self.progress)(self.digest, read as u64);
        Ok(read)
    }
}

/// One thread unpacks and hashes, this one writes files.
fn unpack_packed(
    packed: impl Read + Send,
    compression: Compression,
    folder: &OwnedFd,
    bounds: Bounds,
) -> Result<(Unpacked, Digest), UnpackError> {
    let most = most_of_a_tar(bounds);
    let (sender, receiver) = sync_channel(CHUNKS_WAITING);
    thread::scope(|scope| {
        let source = scope.spawn(move || send_tar(packed, compression, most, &sender));
        let mut tar = Chunks { receiver, chunk: Vec::new(), at: 0 };
        let unpacked = unpack(&mut tar, folder, bounds).and_then(|unpacked| {
            // What stands behind the end of the archive belongs to the digest.
            io::copy(&mut tar, &mut io::sink()).map_err(UnpackError::Stream)?;
            Ok(unpacked)
        });
        drop(tar);
        let sent = source
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that unpacks has panicked")));
        match (unpacked, sent) {
            (Ok(unpacked), Ok(digest)) => Ok((unpacked, digest)),
            // A tar that ends early is what a broken stream looks like from here.
            (_, Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => Err(UnpackError::Stream(e)),
            (Err(e), _) => Err(e),
            (Ok(_), Err(e)) => Err(UnpackError::Stream(e)),
        }
    })
}

/// The tar of a layer.
fn tar_of<'a>(packed: impl Read + 'a, compression: Compression) -> io::Result<Box<dyn Read + 'a>> {
    let packed = BufReader::with_capacity(CHUNK, packed);
    Ok(match compression {
        Compression::None => Box::new(packed),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
    })
}

/// The digest of a layer's tar.
///
/// # Errors
/// Of reading it.
pub(crate) fn diff_id(
    packed: impl Read,
    compression: Compression,
    bounds: Bounds,
) -> io::Result<Digest> {
    let mut tar = tar_of(packed, compression)?.take(most_of_a_tar(bounds).saturating_add(1));
    let digest = digest_of("sha256", &mut tar)?;
    if tar.limit() == 0 { Err(too_large(most_of_a_tar(bounds))) } else { Ok(digest) }
}

const fn most_of_a_tar(bounds: Bounds) -> u64 {
    bounds.bytes.saturating_add(bounds.entries.saturating_mul(PER_ENTRY))
}

fn too_large(most: u64) -> io::Error {
    io::Error::other(format!("unpacks to more than {most} bytes"))
}

fn send_tar(
    packed: impl Read,
    compression: Compression,
    most: u64,
    to: &SyncSender<Vec<u8>>,
) -> io::Result<Digest> {
    let mut tar = tar_of(packed, compression)?;
    let (mut hash, mut sent) = (Hash::new("sha256"), 0);
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = tar.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)?;
        if read == 0 {
            return Ok(hash.finish());
        }
        sent += read as u64;
        if sent > most {
            return Err(too_large(most));
        }
        hash.update(&chunk);
        // Whoever reads has given up, and says why.
        to.send(chunk).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    }
}

struct Chunks {
    receiver: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            let Ok(chunk) = self.receiver.recv() else { return Ok(0) };
            (self.chunk, self.at) = (chunk, 0);
        }
        let length = buffer.len().min(self.chunk.len() - self.at);
        buffer[..length].copy_from_slice(&self.chunk[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}
