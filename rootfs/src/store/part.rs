use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hafen_spec::image::{Blob, Digest};
use hafen_sys::file::sync_folder;
use hafen_sys::{CallError, Context};

use super::blob::{CHUNK, Expected, Hash, Stored, check, read_some};
use super::lock::Maker;
use super::{Store, StoreError, lock, names};

/// A blob on its way. What has come of it stays when its process ends, and the next one goes on from there; only one
/// has it at a time.
pub struct Part {
    path: PathBuf,
    /// Its name when it is whole.
    place: PathBuf,
    file: File,
    /// Of all that is in the file.
    hash: Hash,
    size: u64,
    wanted: Blob,
    _maker: Maker,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("path", &self.path).field("size", &self.size).finish()
    }
}

impl Store {
    /// Wait until nobody else fetches this blob, and begin with what somebody has left of it. `None`: it is there.
    ///
    /// # Errors
    /// Of the lock; of reading what is left.
    pub fn part(&self, wanted: &Blob) -> Result<Option<Part>, StoreError> {
        if self.has_blob(&wanted.digest) {
            return Ok(None);
        }
        let maker = lock::maker(&self.root, &wanted.digest)?;
        if self.has_blob(&wanted.digest) {
            return Ok(None);
        }
        // Made here: a launch holds the store as well, and has no use for it.
        self.make_folder("partial")?;
        let path = self.part_path(&wanted.digest);
        let mut file = open(&path)?;
        let (mut hash, mut size) = hash_of(&mut file, &path, wanted)?;
        if size > wanted.size {
            file.set_len(0).call(|| format!("truncate {}", path.display()))?;
            (hash, size) = (Hash::new(wanted.digest.algorithm()), 0);
        }
        let place = self.blob_path(&wanted.digest);
        let wanted = wanted.clone();
        Ok(Some(Part { path, place, file, hash, size, wanted, _maker: maker }))
    }

    /// What is left of blobs, by those who fetched them.
    pub(super) fn parts(&self) -> Result<BTreeSet<Digest>, CallError> {
        let names = names(&self.root.join("partial"))?;
        Ok(names.iter().filter_map(|name| name.replacen('-', ":", 1).parse().ok()).collect())
    }

    pub(super) fn part_path(&self, digest: &Digest) -> PathBuf {
        self.path("partial", &format!("{}-{}", digest.algorithm(), digest.hex()))
    }
}

/// Appends, so that nobody writes into what is hashed already.
fn open(path: &Path) -> Result<File, CallError> {
    let mut options = File::options();
    let file = options.read(true).append(true).create(true).mode(0o600).open(path);
    file.call(|| format!("open {}", path.display()))
}

fn hash_of(file: &mut File, path: &Path, wanted: &Blob) -> Result<(Hash, u64), CallError> {
    let (mut hash, mut size) = (Hash::new(wanted.digest.algorithm()), 0);
    let mut chunk = vec![0; CHUNK];
    let mut kept = file.take(wanted.size + 1);
    loop {
        match read_some(&mut kept, &mut chunk).call(|| format!("read {}", path.display()))? {
            0 => return Ok((hash, size)),
            read => {
                hash.update(&chunk[..read]);
                size += read as u64;
            }
        }
    }
}

impl Part {
    /// How much of it is here.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Add what comes next. What cannot be written is given up, with its room on a disk that may be full.
    ///
    /// # Errors
    /// More than there should be; of writing.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let added = self.try_add(bytes);
        if added.is_err() {
            self.discard();
        }
        added
    }

    fn try_add(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let found = self.size + bytes.len() as u64;
        if found > self.wanted.size {
            return Err(StoreError::Size { what: self.what(), wanted: self.wanted.size, found });
        }
        self.file.write_all(bytes).call(|| format!("write {}", self.path.display()))?;
        self.hash.update(bytes);
        self.size = found;
        Ok(())
    }

    /// Give it its name, if it is what was wanted; otherwise nothing of it is kept.
    ///
    /// # Errors
    /// A wrong digest or size; of fsync(2) and rename(2).
    pub fn finish(mut self) -> Result<Stored, StoreError> {
        let hash = std::mem::replace(&mut self.hash, Hash::new(self.wanted.digest.algorithm()));
        let stored = Stored { digest: hash.finish(), size: self.size };
        if let Err(e) = check(&stored, Some(Expected::from(&self.wanted)), &self.what()) {
            self.discard();
            return Err(e);
        }
        self.file.sync_data().call(|| format!("fsync {}", self.path.display()))?;
        fs::rename(&self.path, &self.place).call(|| format!("rename {}", self.path.display()))?;
        sync_folder(self.place.parent().unwrap_or(Path::new("/")))?;
        Ok(stored)
    }

    /// The first failure is the one to tell; what stays is found out by its digest.
    fn discard(&self) {
        let _ = fs::remove_file(&self.path);
    }

    fn what(&self) -> String {
        format!("blob {}", self.wanted.digest)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TEXT: &[u8] = b"what a registry has";

    fn blob(bytes: &[u8]) -> Blob {
        let mut hash = Hash::new("sha256");
        hash.update(bytes);
        Blob { media_type: String::new(), digest: hash.finish(), size: bytes.len() as u64 }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::at(folder.path().to_owned());
        drop(store.hold().expect("a store"));
        store.make_folder("partial").expect("a folder");
        (folder, store)
    }

    fn begin(store: &Store) -> Part {
        store.part(&blob(TEXT)).expect("a part").expect("not there yet")
    }

    #[test]
    fn what_was_left_goes_on() {
        let (_folder, store) = store();
        begin(&store).add(&TEXT[..5]).expect("written");
        let mut part = begin(&store);
        assert_eq!(part.size(), 5);
        part.add(&TEXT[5..]).expect("written");
        assert_eq!(part.finish().expect("whole").digest, blob(TEXT).digest);
        assert_eq!(fs::read(store.blob_path(&blob(TEXT).digest)).expect("a blob"), TEXT);
        assert!(store.part(&blob(TEXT)).expect("asked").is_none());
        assert_eq!(names(&store.root.join("partial")).expect("a folder"), Vec::<String>::new());
    }

    #[test]
    fn what_is_torn_is_found_out_and_begun_anew() {
        let (_folder, store) = store();
        fs::write(store.part_path(&blob(TEXT).digest), [0; 5]).expect("written");
        let mut part = begin(&store);
        part.add(&TEXT[5..]).expect("written");
        assert!(matches!(part.finish(), Err(StoreError::Digest { .. })));
        let mut part = begin(&store);
        assert_eq!(part.size(), 0);
        part.add(TEXT).expect("written");
        part.finish().expect("whole");
    }

    #[test]
    fn what_is_too_long_is_begun_anew() {
        let (_folder, store) = store();
        fs::write(store.part_path(&blob(TEXT).digest), [TEXT, TEXT].concat()).expect("written");
        let mut part = begin(&store);
        assert_eq!(part.size(), 0);
        part.add(TEXT).expect("written");
        part.finish().expect("whole");
    }

    #[test]
    fn more_than_there_should_be_is_not_kept() {
        let (_folder, store) = store();
        let mut part = begin(&store);
        part.add(TEXT).expect("written");
        assert!(matches!(part.add(b"x"), Err(StoreError::Size { .. })));
        drop(part);
        assert_eq!(begin(&store).size(), 0);
    }

    #[test]
    fn only_one_has_it() {
        let (_folder, store) = store();
        let part = begin(&store);
        let other = store.clone();
        let waiting = std::thread::spawn(move || other.part(&blob(TEXT)).expect("asked").is_none());
        let mut part = part;
        part.add(TEXT).expect("written");
        part.finish().expect("whole");
        assert!(waiting.join().expect("no panic"), "it is there when the lock is free");
    }
}
