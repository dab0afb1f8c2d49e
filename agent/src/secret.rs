//! Secrets of a task as files in memory, to be bound to where it wants them.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use hafen_protocol::v1;
use hafen_spec::Problem;
use hafen_sys::{CallError, Context};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{Gid, Uid, fchown};

use crate::failure::{Failure, Kind, chain};

const DEFAULT_MODE: u32 = 0o400;
/// Of one: gRPC takes no more than 4 MiB in a message, and a secret is small.
const LARGEST: usize = 1 << 20;

/// A secret that is written, for a mount that is only read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// On the node.
    pub source: PathBuf,
    /// Inside.
    pub destination: PathBuf,
}

/// Why a secret is not there. Says nothing of its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The request is wrong.
    #[error("secrets[{index}].{field}: {reason}")]
    Invalid { index: usize, field: &'static str, reason: String },
    /// It would be written to a disk.
    #[error(
        "{} is no tmpfs, and secrets are kept in memory only: mount one there, or start the agent with a --run \
         folder that is on one",
        folder.display()
    )]
    OnDisk { folder: PathBuf },
    #[error(transparent)]
    Call(#[from] CallError),
}

impl SecretError {
    /// With the field of the request, where it is about one.
    #[must_use]
    pub fn problem(self) -> Problem {
        match self {
            Self::Invalid { index, field, reason } => {
                Problem { field: format!("secrets[{index}].{field}"), reason }
            }
            other => Problem { field: "secrets".to_owned(), reason: chain(&other) },
        }
    }
}

/// Whether all secrets can be placed.
///
/// # Errors
/// Names the field.
pub fn validate(secrets: &[v1::Secret]) -> Result<(), SecretError> {
    for (index, secret) in secrets.iter().enumerate() {
        let check = |field, found: Result<(), String>| {
            found.map_err(|reason| SecretError::Invalid { index, field, reason })
        };
        check("destination", destination(&secret.destination))?;
        let same = |other: &v1::Secret| {
            Path::new(&other.destination)
                .components()
                .eq(Path::new(&secret.destination).components())
        };
        if secrets[..index].iter().any(same) {
            check("destination", Err(format!("{:?} is there twice", secret.destination)))?;
        }
        if secret.mode & !0o777 != 0 {
            check("mode", Err(format!("{:#o} has more than permissions", secret.mode)))?;
        }
        if secret.content.len() > LARGEST {
            check("content", Err(format!("is larger than {LARGEST} bytes")))?;
        }
    }
    Ok(())
}

/// An absolute path of a file.
fn destination(text: &str) -> Result<(), String> {
    let path = Path::new(text);
    let up = path.components().any(|part| part == Component::ParentDir);
    let named = path.file_name().is_some() && !text.ends_with('/');
    match path.is_absolute() && named && !up && !text.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(format!("{text:?} is no absolute path of a file without \"..\"")),
    }
}

/// Write them into `folder`, which is made, below a tmpfs. `owner` turns ids of the task into those of the node.
///
/// # Errors
/// Names the secret or the call; nothing is left then.
pub fn write(
    folder: &Path,
    secrets: &[v1::Secret],
    owner: impl Fn(u32, u32) -> (u32, u32),
) -> Result<Vec<Placed>, SecretError> {
    validate(secrets)?;
    // Others cannot enter, whatever the mode of a file is.
    DirBuilder::new().mode(0o700).create(folder).call(|| format!("mkdir {}", folder.display()))?;
    let written = write_all(folder, secrets, owner);
    if written.is_err() {
        // The first failure is the one to tell.
        let _ = remove(folder);
    }
    written
}

fn write_all(
    folder: &Path,
    secrets: &[v1::Secret],
    owner: impl Fn(u32, u32) -> (u32, u32),
) -> Result<Vec<Placed>, SecretError> {
    need_memory(folder)?;
    let place = |(index, secret): (usize, &v1::Secret)| {
        // Its own name may be long, and says what it is for.
        let source = folder.join(index.to_string());
        write_one(&source, secret, owner(secret.uid, secret.gid))?;
        Ok(Placed { source, destination: PathBuf::from(&secret.destination) })
    };
    secrets.iter().enumerate().map(place).collect()
}

fn need_memory(folder: &Path) -> Result<(), SecretError> {
    let found = File::open(folder)
        .and_then(|folder| Ok(fstatfs(&folder)?.filesystem_type()))
        .call(|| format!("statfs {}", folder.display()))?;
    match found == TMPFS_MAGIC {
        true => Ok(()),
        false => Err(SecretError::OnDisk { folder: folder.to_owned() }),
    }
}

fn write_one(path: &Path, secret: &v1::Secret, (uid, gid): (u32, u32)) -> Result<(), CallError> {
    let says = |verb: &str| format!("{verb} {}", path.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .call(|| says("create"))?;
    file.write_all(&secret.content).call(|| says("write"))?;
    fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).call(|| says("chown"))?;
    let mode = if secret.mode == 0 { DEFAULT_MODE } else { secret.mode };
    file.set_permissions(Permissions::from_mode(mode)).call(|| says("chmod"))
}

/// Remove the secrets of a task; what is gone is removed already.
///
/// # Errors
/// Names the file.
pub fn remove(folder: &Path) -> Result<(), CallError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer.call(|| format!("remove {}", folder.display())),
    }
}

impl From<SecretError> for Failure {
    fn from(e: SecretError) -> Self {
        let kind = match &e {
            SecretError::Invalid { .. } => Kind::Invalid,
            SecretError::OnDisk { .. } => Kind::State,
            SecretError::Call(_) => Kind::Internal,
        };
        Self::of(kind, &e)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn secret(destination: &str, content: &[u8], mode: u32) -> v1::Secret {
        v1::Secret {
            destination: destination.to_owned(),
            content: content.to_vec(),
            mode,
            ..v1::Secret::default()
        }
    }

    #[test]
    fn errors_name_the_field_and_not_the_content() {
        for (bad, field) in [
            (secret("etc/x", b"hush", 0), "destination"),
            (secret("/etc/../x", b"hush", 0), "destination"),
            (secret("/", b"hush", 0), "destination"),
            (secret("/etc/", b"hush", 0), "destination"),
            (secret("/etc/x", b"hush", 0o4755), "mode"),
            (secret("/etc/x", &[0; LARGEST + 1], 0), "content"),
        ] {
            assert!(!format!("{bad:?}").contains("hush"));
            let error = validate(&[bad]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("secrets[0].{field}: ")), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
        let twice = [secret("/a/b", b"", 0), secret("/a//b", b"", 0)];
        assert!(validate(&twice).unwrap_err().to_string().contains("is there twice"));
    }

    #[test]
    fn only_memory_gets_a_secret() {
        let error = need_memory(Path::new("/proc")).unwrap_err();
        assert!(error.to_string().starts_with("/proc is no tmpfs"), "{error}");
        need_memory(Path::new("/dev/shm")).unwrap();
    }

    #[test]
    fn secrets_are_files_with_their_modes() {
        // Every Linux with POSIX shared memory has it.
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let folder = place.path().join("secrets");
        let own = |_, _| (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let secrets = [secret("/run/key", b"hush", 0), secret("/etc/empty", b"", 0o444)];
        let placed = write(&folder, &secrets, own).unwrap();
        assert_eq!(placed[0].destination, Path::new("/run/key"));
        let found: Vec<(u32, u64)> = placed
            .iter()
            .map(|placed| fs::metadata(&placed.source).unwrap())
            .map(|found| (found.mode() & 0o7777, found.len()))
            .collect();
        assert_eq!(found, [(0o400, 4), (0o444, 0)]);
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o7777, 0o700);
        remove(&folder).unwrap();
        remove(&folder).unwrap();
        assert!(!folder.exists());
    }
}
