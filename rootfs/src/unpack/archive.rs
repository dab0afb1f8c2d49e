//! Entries of a tar stream.
//!
//! The crate `tar` would read a whole extended header into memory, however large it claims to be, so it only
//! lays out the header blocks here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Read};

use nix::sys::time::TimeSpec;
use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::UnpackError;
use super::error::shown;
use super::number::{decimal, field, id, time};
use super::pax::Records;
use super::sparse::Sparse;

pub(super) const BLOCK: usize = 512;
/// What the headers before one entry may hold together, and a map of holes.
pub(super) const LARGEST_EXTENSION: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Symlink,
    HardLink,
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: TimeSpec,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Where a link leads to.
    pub(super) target: Vec<u8>,
    pub(super) attributes: Attributes,
    pub(super) extended: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes in the stream.
    pub(super) content: u64,
    pub(super) sparse: Option<Sparse>,
}

pub(super) struct Archive<R> {
    stream: R,
    global: Records,
    /// Of the entry that is being read.
    name: Vec<u8>,
    content: u64,
    padding: u64,
}

/// What the headers before an entry's own said of it.
#[derive(Default)]
struct Told {
    anything: bool,
    size: u64,
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    records: Records,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, global: Records::default(), name: Vec::new(), content: 0, padding: 0 }
    }

    /// The next entry, whatever is left of the last one. Nothing behind the end marker is read.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        self.skip()?;
        let mut told = Told::default();
        loop {
            let Some(header) = self.header()? else {
                return if told.anything { Err(self.truncated()) } else { Ok(None) };
            };
            if !told.anything {
                self.name = header.path_bytes().into_owned();
            }
            match header.as_old().linkflag[0] {
                kind @ (b'x' | b'g' | b'L' | b'K') => self.extension(kind, &header, &mut told)?,
                _ => return self.entry(&header, told).map(Some),
            }
        }
    }

    /// Content of the entry, as much as the buffer takes; nothing at its end.
    pub(super) fn content(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        let want = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        self.exact(&mut buffer[..want])?;
        self.content -= want as u64;
        Ok(want)
    }

    fn skip(&mut self) -> Result<(), UnpackError> {
        let rest = self.content + self.padding;
        (self.content, self.padding) = (0, 0);
        if rest <= BLOCK as u64 {
            return self.exact(&mut [0; BLOCK][..rest as usize]);
        }
        let mut left = self.stream.by_ref().take(rest);
        let passed = io::copy(&mut left, &mut io::sink()).map_err(UnpackError::Stream)?;
        if passed < rest {
            return Err(self.truncated());
        }
        Ok(())
    }

    /// Two blocks of zeros are the end; that a stream just ends instead is usual.
    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? {
            return Ok(None);
        }
        if is_zero(header.as_bytes()) {
            let second = self.block(header.as_mut_bytes())?;
            return match second && !is_zero(header.as_bytes()) {
                true => Err(self.refused("is followed by half an end marker")),
                false => Ok(None),
            };
        }
        let claimed = field(&header.as_old().cksum).map_err(|e| self.refused(e))?;
        if !checksums(header.as_bytes()).contains(&claimed) {
            return Err(self.refused("is followed by a header with a wrong checksum"));
        }
        Ok(Some(header))
    }

    /// False where the stream ends before the block.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, UnpackError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.stream.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => {
                    let name = format!("the header after {}", shown(&self.name));
                    return Err(UnpackError::Truncated { name });
                }
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(UnpackError::Stream(e)),
            }
        }
        Ok(true)
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), UnpackError> {
        self.stream.read_exact(buffer).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => self.truncated(),
            _ => UnpackError::Stream(e),
        })
    }

    fn extension(&mut self, kind: u8, header: &Header, told: &mut Told) -> Result<(), UnpackError> {
        let size = field(&header.as_old().size).and_then(unsigned).map_err(|e| self.refused(e))?;
        // Global records may end an archive, as they do of an empty tree of git's.
        told.anything |= kind != b'g';
        told.size = told.size.saturating_add(size);
        if told.size > LARGEST_EXTENSION {
            let reason = format!("has extended headers of more than {LARGEST_EXTENSION} bytes");
            return Err(self.refused(reason));
        }
        let mut bytes = vec![0; size as usize];
        self.exact(&mut bytes)?;
        self.padding = padding(size);
        self.skip()?;
        match kind {
            b'x' => told.records.add(&bytes).map_err(|e| self.refused(e))?,
            b'g' => self.global(&bytes)?,
            _ => {
                while bytes.pop_if(|byte| *byte == 0).is_some() {}
                let place = if kind == b'L' { &mut told.name } else { &mut told.target };
                *place = Some(bytes);
            }
        }
        Ok(())
    }

    fn global(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        self.global.add(bytes).map_err(|e| self.refused(e))?;
        if let Some(key) = self.global.for_one_entry() {
            let reason = format!("a global pax header says {} for all", key.escape_ascii());
            return Err(self.refused(reason));
        }
        match self.global.size() as u64 > LARGEST_EXTENSION {
            true => Err(self.refused("global pax headers are too large")),
            false => Ok(()),
        }
    }

    fn entry(&mut self, header: &Header, mut told: Told) -> Result<Entry, UnpackError> {
        let records = &told.records;
        let sparse_name = Sparse::version(records).and(records.get("GNU.sparse.name"));
        let name = sparse_name.or_else(|| records.get("path")).map(<[u8]>::to_vec);
        let name = told.name.take().or(name);
        self.name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let mut entry = self.described(header, &mut told).map_err(|e| self.refused(e))?;
        self.content = entry.content;
        self.padding = padding(self.content);
        entry.sparse = self.sparse(header, &told.records)?;
        entry.content = self.content;
        Ok(entry)
    }

    fn described(&self, header: &Header, told: &mut Told) -> Result<Entry, String> {
        let records = &told.records;
        let kind = kind(header)?;
        let target = told.target.take().or_else(|| records.get("linkpath").map(<[u8]>::to_vec));
        let target = target.or_else(|| header.link_name_bytes().map(Cow::into_owned));
        let mut extended = BTreeMap::new();
        self.global.attributes(&mut extended)?;
        records.attributes(&mut extended)?;
        let size = match records.number("size")? {
            Some(size) => size,
            None => unsigned(field(&header.as_old().size)?)?,
        };
        if size > i64::MAX as u64 - BLOCK as u64 {
            return Err(format!("has a size of {size}"));
        }
        Ok(Entry {
            name: self.name.clone(),
            kind,
            target: target.unwrap_or_default(),
            attributes: self.attributes(header, records)?,
            extended,
            // As Go's reader has it, only files have content: star tells a size for hard links and writes none.
            content: if kind == Kind::File { size } else { 0 },
            sparse: None,
        })
    }

    fn attributes(&self, header: &Header, records: &Records) -> Result<Attributes, String> {
        let old = header.as_old();
        let owner = |key, own: &[u8]| {
            let told =
                records.number(key)?.map_or_else(|| self.global.number(key), |n| Ok(Some(n)));
            id(told?.map_or_else(|| field(own).and_then(unsigned), Ok)?)
        };
        let modified = match records.get("mtime").or_else(|| self.global.get("mtime")) {
            Some(text) => time(text)?,
            None => TimeSpec::new(field(&old.mtime)?, 0),
        };
        Ok(Attributes {
            // Some write the type of the file into the mode as well.
            mode: (field(&old.mode)? & 0o7777) as u32,
            uid: owner("uid", &old.uid)?,
            gid: owner("gid", &old.gid)?,
            modified,
        })
    }

    /// The map of holes: in the header and blocks after it (old GNU), in records (0.0, 0.1), before the content (1.0).
    fn sparse(
        &mut self,
        header: &Header,
        records: &Records,
    ) -> Result<Option<Sparse>, UnpackError> {
        let sparse = if header.as_old().linkflag[0] == b'S' {
            self.gnu_sparse(header)?
        } else {
            let Some(version) = Sparse::version(records) else { return Ok(None) };
            let map = if version.in_content { Some(self.sparse_map()?) } else { None };
            Sparse::from_records(records, map.as_deref()).map_err(|e| self.refused(e))?
        };
        sparse.check(self.content).map_err(|e| self.refused(e))?;
        Ok(Some(sparse))
    }

    fn gnu_sparse(&mut self, header: &Header) -> Result<Sparse, UnpackError> {
        let Some(gnu) = header.as_gnu() else {
            return Err(self.refused("is of type 'S' in an archive that is not GNU's"));
        };
        let size = field(&gnu.realsize).and_then(unsigned).map_err(|e| self.refused(e))?;
        let mut sparse = Sparse { size, pieces: Vec::new() };
        self.gnu_pieces(&mut sparse, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        let mut read = 0;
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.exact(block.as_mut_bytes())?;
            self.gnu_pieces(&mut sparse, block.sparse())?;
            more = block.is_extended();
            read += BLOCK as u64;
            if read > LARGEST_EXTENSION {
                return Err(self.refused("has too many holes"));
            }
        }
        Ok(sparse)
    }

    fn gnu_pieces(
        &self,
        sparse: &mut Sparse,
        pieces: &[GnuSparseHeader],
    ) -> Result<(), UnpackError> {
        for piece in pieces.iter().take_while(|piece| !piece.is_empty()) {
            let number = |bytes: &[u8]| field(bytes).and_then(unsigned);
            let pair = number(&piece.offset).and_then(|at| Ok((at, number(&piece.numbytes)?)));
            sparse.pieces.push(pair.map_err(|e| self.refused(e))?);
        }
        Ok(())
    }

    /// Version 1.0: lines of decimal numbers before the content, up to a whole block.
    fn sparse_map(&mut self) -> Result<Vec<u64>, UnpackError> {
        let (mut numbers, mut line) = (Vec::new(), Vec::new());
        let mut read = 0;
        // The first number counts the pairs that follow.
        while numbers.first().is_none_or(|count| numbers.len() as u64 <= count * 2) {
            let mut block = [0; BLOCK];
            read += BLOCK as u64;
            if read > LARGEST_EXTENSION || self.content(&mut block)? < BLOCK {
                return Err(self.refused("has no complete map of its holes"));
            }
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                numbers.push(decimal(&line).map_err(|e| self.refused(e))?);
                line.clear();
                if numbers[0] > LARGEST_EXTENSION {
                    return Err(self.refused("has too many holes"));
                }
                if numbers.len() as u64 > numbers[0] * 2 {
                    break;
                }
            }
        }
        numbers.remove(0);
        Ok(numbers)
    }

    fn refused(&self, reason: impl Into<String>) -> UnpackError {
        UnpackError::entry(&self.name, reason)
    }

    fn truncated(&self) -> UnpackError {
        UnpackError::Truncated { name: shown(&self.name) }
    }
}

fn kind(header: &Header) -> Result<Kind, String> {
    let old = header.as_old();
    Ok(match old.linkflag[0] {
        // Before types existed, a folder was what ended in a slash.
        0 if header.path_bytes().ends_with(b"/") => Kind::Folder,
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => device(header).map(|(major, minor)| Kind::Character { major, minor })?,
        b'4' => device(header).map(|(major, minor)| Kind::Block { major, minor })?,
        b'5' => Kind::Folder,
        b'6' => Kind::Fifo,
        b'D' => return Err("is a GNU dump directory (type 'D')".to_owned()),
        b'M' => return Err("continues another volume (type 'M')".to_owned()),
        b'V' => return Err("is a volume label (type 'V')".to_owned()),
        other => return Err(format!("has the unknown type '{}'", other.escape_ascii())),
    })
}

/// Linux has 12 bits for the one and 20 for the other.
fn device(header: &Header) -> Result<(u32, u32), String> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        _ => return Err("is a device without a number".to_owned()),
    };
    match (field(major)?, field(minor)?) {
        (major @ 0..=0xfff, minor @ 0..=0xf_ffff) => Ok((major as u32, minor as u32)),
        (major, minor) => Err(format!("is the device {major}:{minor}, which Linux cannot have")),
    }
}

fn unsigned(number: i64) -> Result<u64, String> {
    u64::try_from(number).map_err(|_| format!("has {number} where nothing is below 0"))
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// The sum of all bytes, its own field as spaces; some old programs took bytes for signed.
fn checksums(block: &[u8; BLOCK]) -> [i64; 2] {
    let own = 148..156;
    block.iter().enumerate().fold([0, 0], |[unsigned, signed], (index, byte)| {
        let byte = if own.contains(&index) { b' ' } else { *byte };
        [unsigned + i64::from(byte), signed + i64::from(byte.cast_signed())]
    })
}
