use crate::Problems;
use crate::resolved::IdList;

/// A list as `0-3,7` (cpuset(7), FORMATS); nothing where it is empty.
pub(super) fn parse(
    text: &str,
    bound: u32,
    field: &str,
    problems: &mut Problems,
) -> Option<IdList> {
    if text.is_empty() {
        return None;
    }
    let mut bits = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            (Ok(first), Ok(last)) if first <= last && last < bound => set(&mut bits, first, last),
            (Ok(_), Ok(last)) if last >= bound => {
                problems.add(field, format!("{last} is not below {bound}"));
                return None;
            }
            _ => {
                problems.add(field, format!("{text:?} is not a list as \"0-3,7\""));
                return None;
            }
        }
    }
    Some(IdList { text: text.to_owned(), bits })
}

fn set(bits: &mut Vec<u64>, first: u32, last: u32) {
    let words = last as usize / 64 + 1;
    if bits.len() < words {
        bits.resize(words, 0);
    }
    for id in first..=last {
        bits[id as usize / 64] |= 1 << (id % 64);
    }
}
