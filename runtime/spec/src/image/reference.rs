use std::fmt;
use std::str::FromStr;

use super::Digest;

/// The name of an image as people write it, with all that they leave out: `busybox` is
/// `docker.io/library/busybox:latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Host, with a port if there is one.
    pub registry: String,
    pub repository: String,
    /// Absent only beside a digest.
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

const REGISTRY: &str = "docker.io";
const LIBRARY: &str = "library";
const LATEST: &str = "latest";
/// distribution-spec, "Pulling manifests".
const LONGEST_TAG: usize = 128;
const LONGEST_REPOSITORY: usize = 255;

impl Reference {
    /// The same repository at a digest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse()?)),
            None => (text, None),
        };
        let (path, tag) = match name.rsplit_once(':') {
            // Behind a slash it would be a port.
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
            _ => (name, None),
        };
        let (registry, repository) = split(path);
        let tag = tag.or_else(|| digest.is_none().then(|| LATEST.to_owned()));
        let reference = Self { registry, repository, tag, digest };
        reference.check().map_err(|why| format!("{text:?} is no name of an image: {why}"))?;
        Ok(reference)
    }
}

/// A first part with a dot or a port is a host, and so is `localhost`.
fn split(path: &str) -> (String, String) {
    let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
    let (registry, repository) = match path.split_once('/') {
        Some((host, rest)) if is_host(host) => (host, rest),
        _ => (REGISTRY, path),
    };
    let registry = if registry == "index.docker.io" { REGISTRY } else { registry };
    let official = registry == REGISTRY && !repository.contains('/');
    let repository =
        if official { format!("{LIBRARY}/{repository}") } else { repository.to_owned() };
    (registry.to_owned(), repository)
}

impl Reference {
    fn check(&self) -> Result<(), &'static str> {
        let host = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        if self.registry.is_empty() || !self.registry.chars().all(host) {
            return Err("the registry is no host");
        }
        if self.repository.len() > LONGEST_REPOSITORY {
            return Err("the repository is longer than 255 bytes");
        }
        if !self.repository.split('/').all(is_component) {
            return Err(
                "parts of a repository are lower case letters and digits, with '.', '_' or '-' between them",
            );
        }
        let in_tag = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        match &self.tag {
            Some(tag) if tag.is_empty() || tag.len() > LONGEST_TAG => {
                Err("a tag has 1 to 128 characters")
            }
            Some(tag) if !tag.chars().all(in_tag) || tag.starts_with(['.', '-']) => Err(
                "a tag has letters, digits, '_', '.' and '-', and begins with neither '.' nor '-'",
            ),
            _ => Ok(()),
        }
    }
}

/// Separators stand alone, but for two underscores and any number of dashes (distribution-spec).
fn is_component(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separates = |s: &str| matches!(s, "" | "." | "_" | "__") || s.chars().all(|c| c == '-');
    let mut between = part.split(plain);
    let ends = part.starts_with(plain) && part.ends_with(plain);
    ends && between.all(separates)
}

#[cfg(test)]
mod tests {
    use super::Reference;

    fn full(text: &str) -> String {
        text.parse::<Reference>().map_or_else(|e| e, |r| r.to_string())
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        let hex = "ab".repeat(32);
        for (text, wanted) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("me/tool", "docker.io/me/tool:latest".to_owned()),
            ("index.docker.io/me/tool", "docker.io/me/tool:latest".to_owned()),
            ("quay.io/a/b/c:v1", "quay.io/a/b/c:v1".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest".to_owned()),
            ("[::1]:5000/x:y", "[::1]:5000/x:y".to_owned()),
            (&format!("x@sha256:{hex}"), format!("docker.io/library/x@sha256:{hex}")),
            (&format!("x:y@sha256:{hex}"), format!("docker.io/library/x:y@sha256:{hex}")),
            ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest".to_owned()),
        ] {
            assert_eq!(full(text), wanted);
            assert_eq!(full(&wanted), wanted, "once more");
        }
    }

    #[test]
    fn what_is_no_name() {
        let long = "x".repeat(300);
        for text in [
            "",
            ":",
            "x:",
            "X",
            "x:y z",
            "-x",
            "x-",
            "a//b",
            "a/../b",
            "a___b",
            "a..b",
            "x@md5:0",
            "x@",
            "/x",
            "x/",
            "x:.y",
            &long,
            "a b",
            "host.example/",
            "x\n",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} is {}", full(text));
        }
    }
}
