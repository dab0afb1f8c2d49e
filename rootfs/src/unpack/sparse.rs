//! Files with holes (GNU tar, "Storing Sparse Files").

use super::number::decimal;
use super::pax::Records;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sparse {
    /// With the holes.
    pub(super) size: u64,
    /// Offset and length of what is stored, in order.
    pub(super) pieces: Vec<(u64, u64)>,
}

/// How a pax archive stores the map.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    pub(super) in_content: bool,
}

impl Sparse {
    pub(super) fn version(records: &Records) -> Option<Version> {
        let in_content = records.get("GNU.sparse.major").is_some_and(|major| major != b"0");
        (in_content || records.get("GNU.sparse.size").is_some()).then_some(Version { in_content })
    }

    /// `map` is what stood before the content.
    pub(super) fn from_records(records: &Records, map: Option<&[u64]>) -> Result<Self, String> {
        let key = if map.is_some() { "GNU.sparse.realsize" } else { "GNU.sparse.size" };
        if map.is_some()
            && (records.number("GNU.sparse.major")?, records.number("GNU.sparse.minor")?)
                != (Some(1), Some(0))
        {
            return Err("has holes in a format newer than 1.0".to_owned());
        }
        let size = records.number(key)?.ok_or_else(|| format!("has holes and no {key}"))?;
        let listed = match map {
            Some(map) => map.to_vec(),
            None => list(records.get("GNU.sparse.map").unwrap_or_default())?,
        };
        if listed.len() % 2 != 0 {
            return Err("has a map of holes with half a pair".to_owned());
        }
        Ok(Self { size, pieces: listed.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect() })
    }

    /// # Errors
    /// Pieces overlap, are out of order, reach beyond the end, or are not what the stream holds.
    pub(super) fn check(&self, stored: u64) -> Result<(), String> {
        let (mut end, mut sum) = (0, 0_u64);
        for (offset, length) in &self.pieces {
            let after = offset.checked_add(*length).filter(|after| *after <= self.size);
            let after = after.filter(|_| *offset >= end);
            end = after.ok_or_else(|| format!("has a piece at {offset} that cannot be there"))?;
            sum += length;
        }
        match sum == stored {
            true => Ok(()),
            false => Err(format!("stores {stored} bytes where its map has {sum}")),
        }
    }
}

fn list(text: &[u8]) -> Result<Vec<u64>, String> {
    text.split(|byte| *byte == b',').filter(|number| !number.is_empty()).map(decimal).collect()
}
