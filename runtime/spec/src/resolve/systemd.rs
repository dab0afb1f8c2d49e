//! Where systemd has a scope's folder, from `slice:prefix:name` (`--systemd-cgroup`).

use oci_spec::runtime::Spec;

use crate::Problems;
use crate::resolved::Scope;

const FIELD: &str = "linux.cgroupsPath";
const DEFAULT_SLICE: &str = "system.slice";

/// The folder, relative to the root of the tree, and the units.
pub(super) fn cgroup(spec: &Spec, id: &str, problems: &mut Problems) -> (String, Option<Scope>) {
    let given = spec.linux().as_ref().and_then(|l| l.cgroups_path().as_ref());
    let text = given.map(|p| p.to_string_lossy().into_owned()).filter(|p| !p.is_empty());
    let text = text.unwrap_or_else(|| format!("{DEFAULT_SLICE}:hafen:{id}"));
    match parse(&text) {
        Ok((folder, scope)) => (folder, Some(scope)),
        Err(why) => {
            problems.add(FIELD, why);
            (String::new(), None)
        }
    }
}

fn parse(text: &str) -> Result<(String, Scope), String> {
    let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] else {
        return Err(format!(
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {text:?} instead"
        ));
    };
    let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
    if name.ends_with(".slice") {
        return Err(format!("{name:?} is a slice: processes of a container live in a scope"));
    }
    let unit =
        if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
    // systemd.unit(5).
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if name.is_empty() || unit.len() > 255 || !unit.chars().all(allowed) {
        return Err(format!("{unit:?} is not the name of a unit"));
    }
    let folder = [expand(slice)?, unit.clone()].into_iter().filter(|f| !f.is_empty());
    let folder = folder.collect::<Vec<_>>().join("/");
    Ok((folder, Scope { unit, slice: slice.to_owned() }))
}

/// `a-b.slice` lies in `a.slice` (systemd.slice(5)); `-.slice` is the root.
fn expand(slice: &str) -> Result<String, String> {
    let wrong = || format!("{slice:?} is not the name of a slice");
    let name = slice.strip_suffix(".slice").ok_or_else(wrong)?;
    if name == "-" {
        return Ok(String::new());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":_.\\@".contains(c);
    let mut folders = Vec::new();
    let mut path = String::new();
    for part in name.split('-') {
        if part.is_empty() || !part.chars().all(allowed) {
            return Err(wrong());
        }
        path = if path.is_empty() { part.to_owned() } else { format!("{path}-{part}") };
        folders.push(format!("{path}.slice"));
    }
    Ok(folders.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_lie_in_slices() {
        let table = [
            ("system.slice:hafen:c1", "system.slice/hafen-c1.scope"),
            ("a-b-c.slice:x:y", "a.slice/a-b.slice/a-b-c.slice/x-y.scope"),
            (":cri-containerd:abc", "system.slice/cri-containerd-abc.scope"),
            ("machine.slice::abc", "machine.slice/abc.scope"),
            ("-.slice:libpod:abc", "libpod-abc.scope"),
        ];
        for (text, folder) in table {
            assert_eq!(parse(text).map(|(folder, _)| folder).as_deref(), Ok(folder), "{text}");
        }
        let (_, scope) = parse("a-b.slice:x:y").unwrap();
        assert_eq!((scope.unit.as_str(), scope.slice.as_str()), ("x-y.scope", "a-b.slice"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "/literal/path",
            "a:b",
            "a.slice:b:c:d",
            "a:b:c",
            "a--b.slice:x:y",
            "-a.slice:x:y",
            "a/b.slice:x:y",
            "../a.slice:x:y",
            "a.slice:x:y/z",
            "a.slice:x:",
            "a.slice:x:y.slice",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
