//! What mounts show, opened or made by the runtime before the first process exists.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use hafen_rootfs::copy_up::{self, Given};
use hafen_rootfs::source::{self, Source};
use hafen_spec::plan::ChildStep;
use hafen_spec::resolve::attr;
use hafen_spec::resolved::{Device, Mount, MountKind, SourceLink};
use hafen_sys::child::MountCalls;
use hafen_sys::mount::{MountAttr, new_file_system, set_attributes};
use hafen_sys::{CallError, Context};
use nix::errno::Errno;

use crate::encode::mount_calls;
use crate::prepare::Prepared;

/// For each mount that has one, in the order of the steps.
///
/// # Errors
/// Names the mount, the call and the path.
pub(crate) fn mounts(prepared: &Prepared) -> Result<Vec<Source>, CallError> {
    let mut opened: Vec<Opened<'_>> = Vec::new();
    for step in &prepared.plan.child {
        match step {
            ChildStep::Mount(mount) => {
                let source = open(prepared, mount, &opened)?;
                opened.extend(source.map(|source| (Some(mount), source)));
            }
            ChildStep::BindDevice(device) => opened.push((None, open_device(prepared, device)?)),
            _ => {}
        }
    }
    Ok(opened.into_iter().map(|(_, source)| source).collect())
}

/// The mount that a source is for; nothing for a device.
type Opened<'a> = (Option<&'a Mount>, Source);

fn open_device(prepared: &Prepared, device: &Device) -> Result<Source, CallError> {
    let path = Path::new(&device.path);
    let source = bind(prepared, &Mount::of_device(device), path, false, SourceLink::Follow)?;
    source::check_device(&source, device)?;
    Ok(source)
}

fn open(
    prepared: &Prepared,
    mount: &Mount,
    earlier: &[Opened<'_>],
) -> Result<Option<Source>, CallError> {
    match &mount.kind {
        MountKind::Bind { source, recursive, link } => {
            bind(prepared, mount, source, *recursive, *link)
                .map_err(|e| worded(e, source, mount))
                .map(Some)
        }
        MountKind::New { options, copy_up: true, .. } => filled(prepared, mount, options, earlier)
            .map_err(|e| {
                CallError::new(format!("mount {:?}: {}", mount.destination, e.call), e.source)
            })
            .map(Some),
        _ => Ok(None),
    }
}

fn bind(
    prepared: &Prepared,
    mount: &Mount,
    path: &Path,
    recursive: bool,
    link: SourceLink,
) -> Result<Source, CallError> {
    let copied = if link == SourceLink::Copy { source::link(path)? } else { None };
    let follow = link != SourceLink::Mount;
    match (copied, mount_calls(&prepared.facts)) {
        (Some(link), _) => Ok(link),
        (None, MountCalls::Classic) => source::look(path, follow),
        (None, MountCalls::New) => {
            source::bind(path, recursive, follow, prepared.resolved.root.apart(), mount)
        }
    }
}

/// Clients know a missing source by runc's words.
fn worded(error: CallError, source: &Path, mount: &Mount) -> CallError {
    let what = format!("error mounting {source:?} to rootfs at {:?}", mount.destination);
    if error.is(Errno::ENOENT) {
        let words = io::Error::new(io::ErrorKind::NotFound, "no such file or directory");
        return CallError::new(format!("{what}: stat {}", source.display()), words);
    }
    CallError::new(format!("{what}: {}", error.call), error.source)
}

/// A tmpfs with a copy of what is at its place.
fn filled(
    prepared: &Prepared,
    mount: &Mount,
    options: &[(String, Option<String>)],
    earlier: &[Opened<'_>],
) -> Result<Source, CallError> {
    if mount_calls(&prepared.facts) == MountCalls::Classic {
        let words = "tmpcopyup needs fsopen (Linux 5.2)";
        return Err(CallError::new("tmpcopyup", io::Error::new(io::ErrorKind::Unsupported, words)));
    }
    let parameters = parameters(options).call(|| "options".to_owned())?;
    let attributes = mount.attrs.set & !attr::RDONLY;
    let tmpfs = new_file_system(c"tmpfs", c"tmpfs", &parameters, attributes)?;
    if let Some((base, path)) = base(prepared, mount, earlier) {
        copy_up::fill(&tmpfs, base, path, given(options), None)
            .map_err(|e| CallError::new(format!("tmpcopyup: {}", e.call), e.source))?;
    }
    if mount.attrs.set & attr::RDONLY != 0 {
        set_attributes(&tmpfs, &MountAttr { set: attr::RDONLY, ..MountAttr::default() }, false)?;
    }
    Ok(Source::made(tmpfs))
}

fn parameters(options: &[(String, Option<String>)]) -> io::Result<Vec<(CString, Option<CString>)>> {
    let text = |text: &str| CString::new(text).map_err(io::Error::from);
    let pair = |(key, value): &(String, Option<String>)| {
        Ok((text(key)?, value.as_deref().map(text).transpose()?))
    };
    options.iter().map(pair).collect()
}

fn given(options: &[(String, Option<String>)]) -> Given {
    let has = |name: &str| options.iter().any(|(key, _)| key == name);
    Given { mode: has("mode"), uid: has("uid"), gid: has("gid") }
}

/// Where the mount's place is by then: in the mount that was made last above it, or in the root file system. Nothing in
/// a new file system, which is empty.
fn base<'a>(
    prepared: &'a Prepared,
    mount: &'a Mount,
    earlier: &'a [Opened<'_>],
) -> Option<(BorrowedFd<'a>, &'a str)> {
    let covers = |step: &&ChildStep| matches!(step, ChildStep::Mount(m) if below(&m.destination, &mount.destination).is_some());
    let before = prepared.plan.child.iter().take_while(|s| !is_it(s, mount));
    let Some(ChildStep::Mount(above)) = before.filter(covers).last() else {
        return prepared.root.as_ref().map(|root| (root.as_fd(), mount.destination.as_str()));
    };
    let (_, source) = earlier.iter().find(|(m, _)| m.is_some_and(|m| std::ptr::eq(m, above)))?;
    Some((source.tree.as_fd(), below(&above.destination, &mount.destination)?))
}

fn is_it(step: &ChildStep, mount: &Mount) -> bool {
    matches!(step, ChildStep::Mount(m) if std::ptr::eq(m, mount))
}

/// What follows in `path` after the folder `above`.
fn below<'a>(above: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(above.trim_end_matches('/'))?;
    match rest {
        "" => Some("."),
        _ => rest.starts_with('/').then_some(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn a_place_is_told_from_the_mount_above_it() {
        assert_eq!(below("/var", "/var/lib/x"), Some("/lib/x"));
        assert_eq!(below("/var/lib", "/var/lib"), Some("."));
        assert_eq!(below("/var/li", "/var/lib"), None);
    }
}
