//! Compiled seccomp filters, kept between launches: compiling some 400 rules takes longer than all the rest of a launch.
//!
//! They lie in a folder below `--root` whose name is no container's. Each file holds the [recipe](seccomp::recipe) of a
//! filter, its instructions, and a sum over both. Only what this user alone can have written is believed, and only where
//! the recipe is the same byte for byte. Everything here may fail or be removed at any time: then a filter is compiled.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use hafen_isolator::seccomp::{self, Filter, Instruction};
use hafen_spec::Problems;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use oci_spec::runtime::LinuxSeccomp;

/// No container has this name.
const FOLDER: &str = "@seccomp";
/// Few machines have more than a handful of profiles.
const MOST_KEPT: usize = 32;
/// Far above any recipe and 4,096 instructions.
const MOST_BYTES: u64 = 1 << 20;
const INSTRUCTION: usize = 8;
const NUMBER: usize = 8;
const OTHERS_MAY_WRITE: u32 = 0o022;

/// A filter, and where it is to be kept if it was compiled just now.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) filter: Filter,
    unsaved: Option<Unsaved>,
}

#[derive(Debug)]
struct Unsaved {
    root: PathBuf,
    recipe: Vec<u8>,
}

/// Compile a profile, unless its filter is kept below `root`. Nothing is written yet.
///
/// # Errors
/// Names the field that is wrong.
pub(crate) fn compile(profile: &LinuxSeccomp, root: &Path) -> Result<Compiled, Problems> {
    let recipe = seccomp::recipe(profile);
    let kept = recipe.as_ref().and_then(|recipe| read(root, recipe).ok());
    let unsaved =
        recipe.filter(|_| kept.is_none()).map(|recipe| Unsaved { root: root.to_owned(), recipe });
    Ok(Compiled { filter: seccomp::compile(profile, kept)?, unsaved })
}

impl Compiled {
    /// Keep it for the next launch. It is worth no failure: a full disk only means that it is compiled again.
    pub(crate) fn keep(&self) {
        if let Some(Unsaved { root, recipe }) = &self.unsaved {
            let _ = write(root, recipe, &self.filter.instructions);
        }
    }
}

fn read(root: &Path, recipe: &[u8]) -> io::Result<Vec<Instruction>> {
    let folder = open_folder(root)?;
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(&folder, name(recipe).as_str(), flags, Mode::empty())?);
    let length = own(&file)?.min(MOST_BYTES);
    // One more, to see the end of the file at once.
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1);
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    decode(&bytes, recipe).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Under its name it is there as a whole or not at all: the file has no name before.
fn write(root: &Path, recipe: &[u8], instructions: &[Instruction]) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(root.join(FOLDER)) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let folder = open_folder(root)?;
    make_room(&root.join(FOLDER))?;
    let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(&folder, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    file.write_all(&encode(recipe, instructions))?;
    let name = name(recipe);
    // What has the name was not believed, or else it is the same.
    let _ = unlinkat(&folder, name.as_str(), UnlinkatFlags::NoRemoveDir);
    let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(AT_FDCWD, nameless.as_str(), &folder, name.as_str(), AtFlags::AT_SYMLINK_FOLLOW)?;
    Ok(())
}

/// The oldest goes when there are too many.
fn make_room(folder: &Path) -> io::Result<()> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        kept.push((entry.metadata()?.modified()?, entry.path()));
    }
    kept.sort();
    let too_many = (kept.len() + 1).saturating_sub(MOST_KEPT);
    kept.iter().take(too_many).try_for_each(|(_, path)| fs::remove_file(path))
}

fn open_folder(root: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = File::from(open(&root.join(FOLDER), flags, Mode::empty())?);
    own(&folder)?;
    Ok(folder)
}

/// Nobody else can have written it. Its length.
fn own(file: &File) -> io::Result<u64> {
    let found = file.metadata()?;
    let ours = found.uid() == nix::unistd::geteuid().as_raw();
    if ours && found.mode() & OTHERS_MAY_WRITE == 0 {
        return Ok(found.len());
    }
    Err(io::ErrorKind::PermissionDenied.into())
}

fn name(recipe: &[u8]) -> String {
    format!("{:016x}", sum(recipe))
}

/// Against a torn file and for names. It holds off nobody, which is why a recipe is compared as a whole.
fn sum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Sum, length of the recipe, recipe, instructions.
fn encode(recipe: &[u8], instructions: &[Instruction]) -> Vec<u8> {
    let mut rest = (recipe.len() as u64).to_le_bytes().to_vec();
    rest.extend_from_slice(recipe);
    for (code, yes, no, operand) in instructions {
        rest.extend_from_slice(&code.to_le_bytes());
        rest.extend_from_slice(&[*yes, *no]);
        rest.extend_from_slice(&operand.to_le_bytes());
    }
    [&sum(&rest).to_le_bytes(), &*rest].concat()
}

fn decode(bytes: &[u8], recipe: &[u8]) -> Option<Vec<Instruction>> {
    let (found, rest) = number(bytes)?;
    if found != sum(rest) {
        return None;
    }
    let (length, rest) = number(rest)?;
    let (theirs, program) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    let whole = !program.is_empty() && program.len().is_multiple_of(INSTRUCTION);
    if theirs != recipe || !whole {
        return None;
    }
    let instruction = |b: &[u8]| {
        let operand = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        (u16::from_le_bytes([b[0], b[1]]), b[2], b[3], operand)
    };
    Some(program.chunks_exact(INSTRUCTION).map(instruction).collect())
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<NUMBER>()?;
    Some((u64::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &[u8] = b"a recipe";
    const PROGRAM: [Instruction; 2] = [(0x20, 1, 2, 4), (0x06, 0, 0, 0x7fff_0000)];

    #[test]
    fn what_was_encoded_is_read() {
        let bytes = encode(RECIPE, &PROGRAM);
        assert_eq!(decode(&bytes, RECIPE).unwrap(), PROGRAM);
        assert_eq!(decode(&bytes, b"a rec1pe"), None);
        assert_eq!(decode(&encode(RECIPE, &[]), RECIPE), None);
    }

    #[test]
    fn a_file_that_is_not_whole_is_not_believed() {
        let bytes = encode(RECIPE, &PROGRAM);
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length], RECIPE), None, "{length} bytes of it");
            let zeros = [&bytes[..length], &vec![0; bytes.len() - length]].concat();
            assert!(zeros == bytes || decode(&zeros, RECIPE).is_none(), "zeros from {length} on");
        }
    }
}
