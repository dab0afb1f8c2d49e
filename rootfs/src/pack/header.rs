//! The blocks before an entry's content (pax(1), "ustar Interchange Format", "pax Extended Header").

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::stat::{FileStat, SFlag, major, minor};
use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// 11 digits to the base of 8.
const LARGEST: u64 = 0o777_7777_7777;
/// 7 digits.
const LARGEST_ID: u32 = 0o777_7777;

pub(super) type Attribute = (Vec<u8>, Vec<u8>);

#[derive(Debug, Clone, Copy)]
pub(super) enum What<'a> {
    /// With its size.
    File(u64),
    Folder,
    Symlink(&'a OsStr),
    /// To an earlier entry.
    Link(&'a OsStr),
    Fifo,
    Character(u64),
    Block(u64),
}

pub(super) struct Described<'a> {
    pub(super) path: &'a Path,
    pub(super) stat: &'a FileStat,
    pub(super) what: What<'a>,
    pub(super) attributes: Vec<Attribute>,
}

impl Described<'_> {
    pub(super) fn blocks(&self) -> Vec<u8> {
        let (name, target) = (self.name(), self.target());
        let records = self.records(&name, target);
        let mut blocks = Vec::with_capacity(BLOCK);
        if !records.is_empty() {
            let mut header = header(b"PaxHeaders", EntryType::XHeader, records.len() as u64);
            header.set_mode(0o644);
            add(&mut blocks, &mut header);
            blocks.extend_from_slice(&records);
            blocks.resize(blocks.len() + padding(records.len() as u64), 0);
        }
        add(&mut blocks, &mut self.header(&name, target));
        blocks
    }

    fn name(&self) -> Vec<u8> {
        let mut name = self.path.as_os_str().as_bytes().to_vec();
        match self.what {
            What::Folder if name.is_empty() => name.extend_from_slice(b"./"),
            What::Folder => name.push(b'/'),
            _ => {}
        }
        name
    }

    fn target(&self) -> &[u8] {
        match self.what {
            What::Symlink(target) | What::Link(target) => target.as_bytes(),
            _ => b"",
        }
    }

    fn size(&self) -> u64 {
        if let What::File(size) = self.what { size } else { 0 }
    }

    fn header(&self, name: &[u8], target: &[u8]) -> Header {
        let (kind, device) = match self.what {
            What::File(_) => (EntryType::Regular, 0),
            What::Folder => (EntryType::Directory, 0),
            What::Symlink(_) => (EntryType::Symlink, 0),
            What::Link(_) => (EntryType::Link, 0),
            What::Fifo => (EntryType::Fifo, 0),
            What::Character(device) => (EntryType::Char, device),
            What::Block(device) => (EntryType::Block, device),
        };
        let mut header = header(name, kind, fitting(self.size()));
        let link = &mut header.as_old_mut().linkname;
        let length = target.len().min(link.len());
        link[..length].copy_from_slice(&target[..length]);
        header.set_mode(self.stat.st_mode & !SFlag::S_IFMT.bits());
        header.set_uid(fitting_id(self.stat.st_uid));
        header.set_gid(fitting_id(self.stat.st_gid));
        header.set_mtime(u64::try_from(self.stat.st_mtime).map_or(0, fitting));
        if let Some(ustar) = header.as_ustar_mut() {
            // Linux has 12 bits for the one and 20 for the other.
            ustar.set_device_major(major(device) as u32);
            ustar.set_device_minor(minor(device) as u32);
        }
        header
    }

    /// What the header has no place for.
    fn records(&self, name: &[u8], target: &[u8]) -> Vec<u8> {
        let mut records = Vec::new();
        let long = |bytes: &[u8]| bytes.len() > 100;
        if [name, target].into_iter().any(|text| long(text) && std::str::from_utf8(text).is_err()) {
            record(&mut records, b"hdrcharset", b"BINARY");
        }
        if long(name) {
            record(&mut records, b"path", name);
        }
        if long(target) {
            record(&mut records, b"linkpath", target);
        }
        if fitting(self.size()) != self.size() {
            record(&mut records, b"size", self.size().to_string().as_bytes());
        }
        for (key, id) in [("uid", self.stat.st_uid), ("gid", self.stat.st_gid)] {
            if id > LARGEST_ID {
                record(&mut records, key.as_bytes(), id.to_string().as_bytes());
            }
        }
        if let Some(time) = time(self.stat.st_mtime, self.stat.st_mtime_nsec) {
            record(&mut records, b"mtime", time.as_bytes());
        }
        for (key, value) in &self.attributes {
            record(&mut records, &[b"SCHILY.xattr.", encoded(key).as_slice()].concat(), value);
        }
        records
    }
}

/// With as much of the name as there is room for.
fn header(name: &[u8], kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_ustar();
    let place = &mut header.as_old_mut().name;
    let length = name.len().min(place.len());
    place[..length].copy_from_slice(&name[..length]);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn add(blocks: &mut Vec<u8>, header: &mut Header) {
    header.set_cksum();
    blocks.extend_from_slice(header.as_bytes());
}

/// What the header says where a record says the truth.
fn fitting(number: u64) -> u64 {
    if number > LARGEST { 0 } else { number }
}

fn fitting_id(id: u32) -> u64 {
    if id > LARGEST_ID { 0 } else { u64::from(id) }
}

/// Where whole seconds from 1970 on do not say it. A minus is for all of it.
fn time(seconds: i64, nanoseconds: i64) -> Option<String> {
    match (seconds, nanoseconds) {
        (0.., 0) if seconds.cast_unsigned() <= LARGEST => None,
        (_, 0) => Some(seconds.to_string()),
        (0.., _) => Some(format!("{seconds}.{nanoseconds:09}")),
        _ => Some(format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)),
    }
}

/// As GNU tar writes them, since a keyword ends at its "=".
fn encoded(key: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in key {
        match byte {
            b'=' => text.extend_from_slice(b"%3D"),
            b'%' => text.extend_from_slice(b"%25"),
            byte => text.push(*byte),
        }
    }
    text
}

/// "length keyword=value\n", and the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    // Into memory.
    let _ = write!(records, "{length} ");
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

pub(super) fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK as u64) - size) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_itself() {
        let text = |value: &[u8]| {
            let mut records = Vec::new();
            record(&mut records, b"path", value);
            records
        };
        assert_eq!(text(b"a"), b"9 path=a\n");
        assert_eq!(text(b""), b"8 path=\n");
        assert_eq!(text(&[b'x'; 90]).len(), 99);
        assert_eq!(text(&[b'x'; 91]).len(), 101);
        assert!(text(&[b'x'; 91]).starts_with(b"101 path=x"));
    }

    #[test]
    fn times_before_1970_have_one_minus() {
        assert_eq!(time(7, 0), None);
        assert_eq!(time(7, 5).as_deref(), Some("7.000000005"));
        assert_eq!(time(-7, 0).as_deref(), Some("-7"));
        assert_eq!(time(-1, 500_000_000).as_deref(), Some("-0.500000000"));
        assert_eq!(time(-2, 250_000_000).as_deref(), Some("-1.750000000"));
    }

    #[test]
    fn keys_have_no_sign_of_their_end() {
        assert_eq!(encoded(b"user.a=b%"), b"user.a%3Db%25");
    }
}
