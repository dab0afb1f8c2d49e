//! Records of pax headers (pax(1), "pax Extended Header").

use std::collections::BTreeMap;

use super::number::decimal;

const XATTR: &[u8] = b"SCHILY.xattr.";
const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// What was said in headers before an entry. Keywords that mean nothing to a layer are left out.
#[derive(Debug, Default)]
pub(super) struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

impl Records {
    /// # Errors
    /// Says which record is malformed.
    pub(super) fn add(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let (record, rest) =
                first(bytes).ok_or_else(|| "a pax record is malformed".to_owned())?;
            let mut parts = record.splitn(2, |byte| *byte == b'=');
            match (parts.next(), parts.next()) {
                (Some(key), Some(value)) if !key.is_empty() => self.insert(key, value),
                _ => return Err("a pax record has no keyword".to_owned()),
            }
            bytes = rest;
        }
        Ok(())
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) {
        let plain: [&[u8]; 6] = [b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"];
        if key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes" {
            // Version 0.0 repeats its keywords where 0.1 has a list.
            let list = self.0.entry(b"GNU.sparse.map".to_vec()).or_default();
            if !list.is_empty() {
                list.push(b',');
            }
            list.extend_from_slice(value);
        } else if plain.contains(&key)
            || [SPARSE, XATTR, LIBARCHIVE].iter().any(|prefix| key.starts_with(prefix))
        {
            self.0.insert(key.to_vec(), value.to_vec());
        }
    }

    /// An empty value says that the header's own is meant.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key).map(|value| decimal(value).map_err(|e| format!("{key}: {e}"))).transpose()
    }

    /// Memory that is held.
    pub(super) fn size(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    /// A keyword that cannot be meant for every entry that follows.
    pub(super) fn for_one_entry(&self) -> Option<&[u8]> {
        let single: [&[u8]; 3] = [b"path", b"linkpath", b"size"];
        let mut keys = self.0.keys().map(Vec::as_slice);
        keys.find(|key| single.contains(key) || key.starts_with(SPARSE))
    }

    /// Extended attributes by name. bsdtar writes each in both ways; the one without an encoding is taken.
    pub(super) fn attributes(&self, into: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), String> {
        for (key, value) in &self.0 {
            if let Some(name) = key.strip_prefix(LIBARCHIVE) {
                let value = base64(value)
                    .ok_or_else(|| format!("\"{}\" is no base 64", key.escape_ascii()))?;
                into.insert(percent_decoded(name, |_| true), value);
            }
        }
        for (key, value) in &self.0 {
            if let Some(name) = key.strip_prefix(XATTR) {
                // GNU tar writes these two so, as a keyword ends at its "=".
                let name = percent_decoded(name, |byte| byte == b'=' || byte == b'%');
                into.insert(name, value.clone());
            }
        }
        Ok(())
    }
}

/// The first record's "keyword=value", and what follows. Its length counts itself and the line's end.
fn first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space]).ok()?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    Some((record.get(space + 1..)?.strip_suffix(b"\n")?, rest))
}

fn percent_decoded(text: &[u8], wanted: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let code = rest.get(1..3).and_then(|code| std::str::from_utf8(code).ok());
        let decoded = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        match decoded.filter(|decoded| *byte == b'%' && wanted(*decoded)) {
            Some(decoded) => {
                plain.push(decoded);
                rest = &rest[3..];
            }
            None => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    plain
}

/// RFC 4648, with or without padding; lines may be broken.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    let text = text.iter().filter(|byte| !byte.is_ascii_whitespace());
    for byte in text.take_while(|byte| **byte != b'=') {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            plain.push((bits >> count & 0xff) as u8);
        }
    }
    Some(plain)
}
