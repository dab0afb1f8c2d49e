//! `--volume`, `--tmpfs` and the volumes that an image wants.

use std::path::Path;

use hafen_rootfs::volumes::{Volumes, valid_name};
use hafen_spec::Problems;
use serde_json::{Value, json};

use crate::Error;
use crate::cli::QuickArgs;
use crate::volumes::{Filled, VolumeBase};

const VOLUME: &str = "--volume";
const TMPFS: &str = "--tmpfs";

/// What a person wrote: `SOURCE:DESTINATION[:OPTION,...]`.
struct Written<'a> {
    source: &'a str,
    destination: &'a str,
    options: Vec<&'a str>,
}

impl<'a> Written<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let (source, destination) = (parts.next().unwrap_or_default(), parts.next());
        let destination = destination
            .filter(|d| d.starts_with('/') && !source.is_empty())
            .ok_or_else(|| format!("{text:?} is not SOURCE:/DESTINATION[:OPTION,...]"))?;
        let options = parts.next().map(|o| o.split(',').collect()).unwrap_or_default();
        Ok(Self { source, destination, options })
    }

    /// Everything with a slash is a path, as are `.` and `..`; everything else is a name.
    fn is_path(&self) -> bool {
        self.source.contains('/') || self.source.starts_with('.')
    }
}

/// What a person and an image want to be mounted.
pub(super) struct Wanted<'a> {
    pub(super) args: &'a QuickArgs,
    pub(super) of_image: &'a [String],
    /// Of the user namespace, in which named volumes are the container's own.
    pub(super) maps: Option<&'a [Value; 2]>,
}

/// Add the mounts, and say which volumes have to be there first.
///
/// # Errors
/// Of the store of volumes; what is wrong with an option is a problem.
pub(super) fn add(
    wanted: &Wanted<'_>,
    mounts: &mut Value,
    problems: &mut Problems,
) -> Result<VolumeBase, Error> {
    let args = wanted.args;
    let store = Volumes::at(args.volumes.clone());
    let mut base = VolumeBase { store, named: Vec::new(), anonymous: Vec::new(), guard: None };
    let mut all = Vec::new();
    for text in &args.volume {
        match Written::parse(text).and_then(|written| source(&written, &mut base, wanted.maps)) {
            Ok(mount) => all.push(mount),
            Err(why) => problems.add(VOLUME, why),
        }
    }
    for text in &args.tmpfs {
        let (destination, options) = text.split_once(':').unwrap_or((text, ""));
        let options: Vec<&str> =
            options.split(',').filter(|o| !o.is_empty()).chain(["nosuid", "nodev"]).collect();
        all.push(json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options }));
        if !destination.starts_with('/') {
            problems.add(TMPFS, format!("{text:?} is not /DESTINATION[:OPTION,...]"));
        }
    }
    let taken = |place: &str| all.iter().any(|mount| same(mount["destination"].as_str(), place));
    base.anonymous = wanted.of_image.iter().filter(|place| !taken(place)).cloned().collect();
    if let Some(mounts) = mounts.as_array_mut() {
        mounts.extend(all);
    }
    if !base.named.is_empty() {
        base.guard = Some(base.store.hold()?);
    }
    Ok(base)
}

fn same(destination: Option<&str>, place: &str) -> bool {
    destination.is_some_and(|d| d.trim_end_matches('/') == place.trim_end_matches('/'))
}

fn source(
    written: &Written<'_>,
    base: &mut VolumeBase,
    maps: Option<&[Value; 2]>,
) -> Result<Value, String> {
    if written.is_path() {
        let path = Path::new(written.source);
        let path = std::fs::canonicalize(path).map_err(|e| format!("open {}: {e}", path.display()));
        return Ok(bind(&path?, written.destination, &written.options));
    }
    valid_name(written.source).map_err(|e| e.to_string())?;
    let (name, destination) = (written.source.to_owned(), written.destination.to_owned());
    let mut mount = bind(&base.store.data(&name), &destination, &written.options);
    if let Some([uids, gids]) = maps {
        mount["uidMappings"] = uids.clone();
        mount["gidMappings"] = gids.clone();
    }
    base.named.push(Filled { name, destination });
    Ok(mount)
}

/// As `mounts` of a bundle has it.
fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    let all: Vec<&str> = ["rbind"].into_iter().chain(options.iter().copied()).collect();
    json!({ "destination": destination, "type": "bind", "source": source, "options": all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_as_they_are_written() {
        let written = Written::parse("data:/var/lib:ro,nosuid").unwrap();
        assert_eq!((written.source, written.destination), ("data", "/var/lib"));
        assert_eq!(written.options, ["ro", "nosuid"]);
        assert!(!written.is_path());
        for path in ["/srv:/srv", "./here:/x", "..:/x"] {
            assert!(Written::parse(path).unwrap().is_path(), "{path}");
        }
        for wrong in ["", "data", "data:", ":/x", "data:x"] {
            assert!(Written::parse(wrong).is_err(), "{wrong}");
        }
    }
}
