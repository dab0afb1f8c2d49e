//! Entries that are no folders.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use hafen_sys::Context;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, mknodat};
use nix::unistd::{linkat, symlinkat};
use rustix::fs::XattrFlags;

use super::super::archive::{Archive, Attributes, Entry, Kind};
use super::super::error::shown;
use super::super::{UnpackError, name, tree};
use super::{BUFFER, Layer, says, says_attribute, too_large};

impl Layer<'_> {
    pub(super) fn file<R: Read>(
        &mut self,
        path: &Path,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let size = entry.sparse.as_ref().map_or(entry.content, |sparse| sparse.size);
        let sum = self.done.bytes.checked_add(entry.content);
        if size > self.bounds.bytes || sum.is_none_or(|sum| sum > self.bounds.bytes) {
            return Err(too_large(&entry.name, "bytes", self.bounds.bytes));
        }
        let (_, file, _) = self.replace(path, "make file", |folder, name| {
            let flags = OFlag::O_WRONLY
                | OFlag::O_CREAT
                | OFlag::O_EXCL
                | OFlag::O_NOFOLLOW
                | OFlag::O_CLOEXEC;
            openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
        })?;
        let mut file = File::from(file);
        match &entry.sparse {
            None => self.content(path, &mut file, archive)?,
            Some(sparse) => {
                for (offset, length) in &sparse.pieces {
                    self.piece(path, &file, *offset, *length, archive)?;
                }
                file.set_len(sparse.size).call(|| says("set the size of", path))?;
            }
        }
        self.done.bytes += entry.content;
        self.describe_file(path, &file, entry)
    }

    /// Attributes last: writing and a change of the owner take capabilities away.
    fn describe_file(&self, path: &Path, file: &File, entry: &Entry) -> Result<(), UnpackError> {
        let Attributes { mode, uid, gid, modified } = entry.attributes;
        tree::describe(file, self.owner(uid, gid), mode, Some(&modified))
            .call(|| says("set the attributes of", path))?;
        for (name, value) in storable(path, entry)? {
            rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
                .map_err(tree::errno)
                .call(|| says_attribute(name, path))?;
        }
        Ok(())
    }

    fn content<R: Read>(
        &mut self,
        path: &Path,
        file: &mut File,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        loop {
            let read = archive.content(&mut self.buffer)?;
            if read == 0 {
                return Ok(());
            }
            file.write_all(&self.buffer[..read]).call(|| says("write", path))?;
        }
    }

    fn piece<R: Read>(
        &mut self,
        path: &Path,
        file: &File,
        mut offset: u64,
        length: u64,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let end = offset + length;
        while offset < end {
            let want = (end - offset).min(BUFFER as u64) as usize;
            let read = archive.content(&mut self.buffer[..want])?;
            file.write_all_at(&self.buffer[..read], offset).call(|| says("write", path))?;
            offset += read as u64;
        }
        Ok(())
    }

    pub(super) fn symlink(&mut self, path: &Path, entry: &Entry) -> Result<(), UnpackError> {
        let target = OsStr::from_bytes(&entry.target);
        if target.is_empty() || entry.target.contains(&0) {
            return Err(UnpackError::at(path, "is a symlink with no name or a NUL as its target"));
        }
        let (folder, (), _) =
            self.replace(path, "make symlink", |folder, name| symlinkat(target, folder, name))?;
        self.describe_by_name(&folder, path, entry, None)
    }

    pub(super) fn node(
        &mut self,
        path: &Path,
        entry: &Entry,
        kind: SFlag,
        device: u64,
    ) -> Result<(), UnpackError> {
        let (folder, (), _) = self.replace(path, "make node", |folder, name| {
            mknodat(folder, name, kind, Mode::S_IRUSR | Mode::S_IWUSR, device)
        })?;
        self.describe_by_name(&folder, path, entry, Some(entry.attributes.mode))
    }

    fn describe_by_name(
        &self,
        folder: &OwnedFd,
        path: &Path,
        entry: &Entry,
        mode: Option<u32>,
    ) -> Result<(), UnpackError> {
        let name = tree::name(path);
        let Attributes { uid, gid, modified, .. } = entry.attributes;
        tree::describe_by_name(folder, name, self.owner(uid, gid), mode)
            .call(|| says("set owner and mode of", path))?;
        for (key, value) in storable(path, entry)? {
            tree::set_attribute(&tree::by_descriptor(folder, name), key, value)
                .call(|| says_attribute(key, path))?;
        }
        tree::date_by_name(folder, name, &modified).call(|| says("set the times of", path))?;
        Ok(())
    }

    /// What is linked to may be only in the layers below; that is not known yet.
    pub(super) fn hard_link(&mut self, path: &Path, entry: &Entry) -> Result<(), UnpackError> {
        let refused = |reason: String| UnpackError::at(path, reason);
        let target = name::target(&entry.target)
            .map_err(|e| refused(format!("is a hard link whose target {e}")))?;
        let told = shown(target.as_os_str().as_bytes());
        if target == path {
            return Err(refused("is a hard link to itself".to_owned()));
        }
        let from = match self.tree.visit(tree::parent(&target)) {
            Err(e) if e.is(Errno::ENOENT) => return self.link_later(path, target),
            Err(e) if e.is(Errno::ELOOP) || e.is(Errno::ENOTDIR) => {
                return Err(refused(format!("is a hard link to {told}, which is in no folder")));
            }
            answer => answer?,
        };
        let name = tree::name(&target);
        match tree::stat(&*from, name).call(|| says("stat", &target))? {
            None => self.link_later(path, target),
            Some(stat) if tree::format(&stat) == SFlag::S_IFDIR => {
                Err(refused(format!("is a hard link to {told}, a folder")))
            }
            Some(stat) if tree::is_whiteout(&stat) => {
                Err(refused(format!("is a hard link to {told}, which the layer removes")))
            }
            Some(_) => {
                self.replace(path, "link", |folder, own| {
                    linkat(&*from, name, folder, own, AtFlags::empty())
                })?;
                Ok(())
            }
        }
    }
}

pub(super) type Attribute<'a> = (&'a [u8], &'a [u8]);

/// The extended attributes of an entry that its file can have.
pub(super) fn storable<'a>(
    path: &Path,
    entry: &'a Entry,
) -> Result<Vec<Attribute<'a>>, UnpackError> {
    let mut list = Vec::new();
    for (name, value) in &entry.extended {
        let refused = |reason| {
            let reason = format!("{reason} the attribute {}", shown(name));
            Err(UnpackError::at(path, reason))
        };
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            return refused("would steer the overlay by");
        }
        if name == b"security.capability" && entry.kind != Kind::File {
            return refused("is no file and has");
        }
        if name.is_empty() || name.contains(&0) {
            return refused("has an empty name or a NUL in");
        }
        // xattr(7): user attributes are for files and folders.
        if matches!(entry.kind, Kind::File | Kind::Folder) || !name.starts_with(b"user.") {
            list.push((name.as_slice(), value.as_slice()));
        }
    }
    Ok(list)
}
