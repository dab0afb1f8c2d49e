use std::ffi::CString;
use std::io;

/// A path inside a root, taken apart beforehand so that missing folders can be made one by one
/// without building a string: for `a/b/c` the names `a`, `b`, `c`, each with the folder it is in.
#[derive(Debug)]
pub struct Chain {
    pub(crate) full: CString,
    pub(crate) parts: Vec<Part>,
}

#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) folder: CString,
    pub(crate) name: CString,
}

impl Chain {
    /// Take `path` apart; a leading `/` stands for the root.
    ///
    /// # Errors
    /// `InvalidInput` for a path with `..` or a NUL byte.
    pub fn new(path: &str) -> io::Result<Self> {
        let names: Vec<&str> = path.split('/').filter(|n| !n.is_empty() && *n != ".").collect();
        if names.contains(&"..") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{path:?} contains \"..\""),
            ));
        }
        let mut parts = Vec::with_capacity(names.len());
        let mut folder = String::from(".");
        for name in &names {
            let path = if folder == "." { (*name).to_owned() } else { format!("{folder}/{name}") };
            parts.push(Part { folder: CString::new(folder)?, name: CString::new(*name)? });
            folder = path;
        }
        Ok(Self { full: CString::new(folder)?, parts })
    }

    /// The folder of `path` as a chain, and the last name.
    ///
    /// # Errors
    /// As [`Chain::new`], and for a path without a name.
    pub fn split(path: &str) -> io::Result<(Self, CString)> {
        let (folder, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or((".", path));
        if name.is_empty() || name == "." || name == ".." {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{path:?} names no file"),
            ));
        }
        Ok((Self::new(folder)?, CString::new(name)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_apart_into_prefixes() {
        let chain = Chain::new("/a//./b/c/").unwrap();
        assert_eq!(chain.full.as_c_str(), c"a/b/c");
        let part = |p: &Part| (p.folder.clone().into_string(), p.name.clone().into_string());
        let all: Vec<_> = chain.parts.iter().map(part).collect();
        let expected = [(".", "a"), ("a", "b"), ("a/b", "c")];
        assert_eq!(all, expected.map(|(f, n)| (Ok(f.to_owned()), Ok(n.to_owned()))));
        assert_eq!(Chain::new("/").unwrap().full.as_c_str(), c".");
    }

    #[test]
    fn what_would_lead_out_is_refused() {
        assert!(Chain::new("/a/../b").is_err());
        assert!(Chain::new("/a\0b").is_err());
        assert!(Chain::split("/a/..").is_err());
        let (folder, name) = Chain::split("/dev/null").unwrap();
        assert_eq!((folder.full.as_c_str(), name.as_c_str()), (c"dev", c"null"));
    }
}
