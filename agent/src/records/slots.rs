//! A document in a file of two slots, written in turn, each in place: what is on the disk stays there until its successor is.
//! So a change costs one fdatasync(2) that has nothing to write but those blocks: no new file, no name, no entry of a journal.
//!
//! ```text
//!   slot 0: DOCUMENT \n {"sha256":"..","slot":8192,"revision":7} \n blanks
//!   slot 1: the same, of the revision before or after it, or blanks
//! ```
//!
//! It is a row of JSON values for whoever looks at it. A file that holds one document and nothing else is read as well.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use hafen_spec::image::Digest;
use hafen_sys::file::replace;
use hafen_sys::{CallError, Context};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const BLOCK: usize = 4096;
/// How much longer a document may become before its file is made anew: it is told how its task ended.
const GROWTH: usize = 4096;

/// What ends a slot.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    sha256: String,
    /// Bytes of a slot: a file that was cut has others.
    slot: usize,
    revision: u64,
}

/// Bring a revision to the disk.
///
/// # Errors
/// Names the file. What was there before is there still.
pub(super) fn write(path: &Path, revision: u64, text: &[u8]) -> Result<(), CallError> {
    let known = match File::options().read(true).write(true).open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        answer => Some(answer.call(|| format!("open {}", path.display()))?),
    };
    if let Some(file) = known
        && overwrite(&file, revision, text).call(|| format!("write {}", path.display()))?
    {
        return Ok(());
    }
    let slot = (text.len() + GROWTH).next_multiple_of(BLOCK);
    let mut both = sealed(revision, text, slot).unwrap_or_default();
    both.resize(2 * slot, b' ');
    replace(path, &both, true)
}

/// `false` where it does not fit.
fn overwrite(file: &File, revision: u64, text: &[u8]) -> io::Result<bool> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or_default()];
    file.read_exact_at(&mut bytes, 0)?;
    let slot = bytes.len() / 2;
    let Some((latest, seal, _)) = latest(&bytes) else { return Ok(false) };
    let Some(sealed) = sealed(revision, text, slot) else { return Ok(false) };
    // One that was written and perhaps not brought to the disk is not what counts there.
    let at = if seal.revision == revision { latest } else { 1 - latest };
    file.write_all_at(&sealed, (at * slot) as u64)?;
    file.sync_data()?;
    Ok(true)
}

fn sealed(revision: u64, text: &[u8], slot: usize) -> Option<Vec<u8>> {
    let seal = Seal { sha256: sum(text), slot, revision };
    let seal = serde_json::to_vec(&seal).ok()?;
    let mut bytes = [text, b"\n", &seal, b"\n"].concat();
    if bytes.len() > slot {
        return None;
    }
    bytes.resize(slot, b' ');
    Some(bytes)
}

fn sum(text: &[u8]) -> String {
    Digest::sha256(Sha256::digest(text).into()).hex().to_owned()
}

/// The slot that counts.
fn latest(bytes: &[u8]) -> Option<(usize, Seal, &[u8])> {
    let slot = bytes.len() / 2;
    if slot == 0 || !bytes.len().is_multiple_of(2 * BLOCK) {
        return None;
    }
    let both = bytes.chunks(slot).enumerate();
    let valid = both.filter_map(|(at, bytes)| {
        let (seal, text) = unseal(bytes)?;
        (seal.slot == slot).then_some((at, seal, text))
    });
    valid.max_by_key(|(_, seal, _)| seal.revision)
}

fn unseal(slot: &[u8]) -> Option<(Seal, &[u8])> {
    let mut lines = slot.splitn(3, |byte| *byte == b'\n');
    let (text, seal) = (lines.next()?, lines.next()?);
    let seal: Seal = serde_json::from_slice(seal).ok()?;
    (seal.sha256 == sum(text)).then_some((seal, text))
}

/// The latest revision; of a file that has no slots, all of it.
///
/// # Errors
/// That there is none, too.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    let text = latest(&bytes).map(|(_, _, text)| text.to_vec());
    Ok(text.unwrap_or(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(revisions: std::ops::RangeInclusive<u64>) -> (tempfile::TempDir, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one");
        for revision in revisions {
            write(&path, revision, format!("{{\"n\":{revision}}}").as_bytes()).unwrap();
        }
        let bytes = fs::read(path).unwrap();
        (folder, bytes)
    }

    #[test]
    fn each_revision_replaces_the_one_before_the_last() {
        let (folder, bytes) = written(1..=5);
        assert_eq!(bytes.len(), 4 * BLOCK);
        assert_eq!(read(&folder.path().join("one")).unwrap(), b"{\"n\":5}");
        let other = latest(&bytes[..]).unwrap().0 ^ 1;
        let slot = bytes.chunks(2 * BLOCK).nth(other).unwrap();
        assert_eq!(unseal(slot).unwrap().0.revision, 4);
        let values = serde_json::Deserializer::from_slice(&bytes).into_iter::<serde_json::Value>();
        assert_eq!(values.map(Result::unwrap).count(), 4, "whoever looks at it sees JSON");
    }

    #[test]
    fn a_write_that_is_torn_anywhere_leaves_the_one_before() {
        let (folder, before) = written(1..=4);
        let path = folder.path().join("one");
        write(&path, 5, br#"{"n":"another text"}"#).unwrap();
        let after = fs::read(&path).unwrap();
        let changed: Vec<usize> = (0..after.len()).filter(|n| before[*n] != after[*n]).collect();
        // Without the last byte, the end of the last line, it is whole already.
        let (_, torn) = changed.split_last().unwrap();
        for cut in torn {
            let torn = [&after[..*cut], &before[*cut..]].concat();
            fs::write(&path, &torn).unwrap();
            assert_eq!(read(&path).unwrap(), br#"{"n":4}"#, "{cut}");
        }
        assert!(changed.len() > 60, "{changed:?}");
    }

    #[test]
    fn the_same_revision_again_keeps_the_one_before() {
        let (folder, _) = written(1..=4);
        let path = folder.path().join("one");
        write(&path, 5, b"5").unwrap();
        write(&path, 5, b"5 again").unwrap();
        let bytes = fs::read(&path).unwrap();
        let both = bytes.chunks(bytes.len() / 2).map(|slot| unseal(slot).unwrap().1);
        assert_eq!(
            both.collect::<Vec<_>>().iter().filter(|text| **text == br#"{"n":4}"#).count(),
            1
        );
        assert_eq!(read(&path).unwrap(), b"5 again");
    }

    #[test]
    fn what_grows_gets_a_larger_file_and_what_is_plain_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one");
        fs::write(&path, b"{\"plain\":1}").unwrap();
        assert_eq!(read(&path).unwrap(), b"{\"plain\":1}");
        let long = vec![b'x'; 3 * BLOCK];
        for (revision, text) in [(1, b"short".as_slice()), (2, &long), (3, b"short again")] {
            write(&path, revision, text).unwrap();
            assert_eq!(read(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 8 * BLOCK as u64);
    }
}
