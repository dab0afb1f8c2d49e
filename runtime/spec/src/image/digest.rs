use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `sha256:` and 64 hexadecimal digits, or `sha512:` and 128 (image-spec, descriptor, "Digests").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    text: String,
}

const ALGORITHMS: [(&str, usize); 2] = [("sha256", 64), ("sha512", 128)];

impl Digest {
    #[must_use]
    pub fn sha256(hash: [u8; 32]) -> Self {
        Self::of("sha256", &hash)
    }

    #[must_use]
    pub fn sha512(hash: [u8; 64]) -> Self {
        Self::of("sha512", &hash)
    }

    fn of(algorithm: &str, hash: &[u8]) -> Self {
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { text: format!("{algorithm}:{hex}") }
    }

    #[must_use]
    pub fn algorithm(&self) -> &str {
        self.text.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    #[must_use]
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The first digits, as people see them.
    #[must_use]
    pub fn short(&self) -> &str {
        const SHOWN: usize = 12;
        &self.hex()[..SHOWN]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, hex) = text.split_once(':').unwrap_or((text, ""));
        let known = ALGORITHMS.iter().find(|(algorithm, _)| *algorithm == name);
        let (_, length) =
            known.ok_or_else(|| format!("{text:?} is no digest as sha256:... or sha512:..."))?;
        // Upper case is a different text for the same number, which names of files are not.
        if hex.len() != *length || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(format!("{text:?} has not {length} hexadecimal digits in lower case"));
        }
        Ok(Self { text: text.to_owned() })
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.text
    }
}

#[cfg(test)]
mod tests {
    use super::Digest;

    #[test]
    fn only_what_a_file_can_be_named_by() {
        let digest = Digest::sha256([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest.clone()));
        assert_eq!((digest.algorithm(), digest.short()), ("sha256", "abababababab"));
        let upper = digest.to_string().replace("ab", "AB");
        for wrong in ["", "sha256", "sha256:", "sha256:abc", "md5:abc", "sha256:../../x", &upper] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }
}
