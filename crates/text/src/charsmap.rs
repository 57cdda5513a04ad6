//! Whether a sentencepiece character map may be handed on: its reader believes the length that it begins with, and its
//! search follows offsets without looking.

/// Bytes of one unit of the trie.
const UNIT: usize = 4;
/// The largest published map is 300 KB.
const MAX_BYTES: usize = 16 << 20;

/// Why a map is not one, if so.
pub(crate) fn refuse(map: &[u8]) -> Option<&'static str> {
    if map.is_empty() {
        return None;
    }
    let Some((size, rest)) = map.split_first_chunk::<UNIT>() else {
        return Some("its character map is cut off");
    };
    let size = u32::from_le_bytes(*size) as usize;
    if map.len() > MAX_BYTES || size > rest.len() || size < UNIT || !size.is_multiple_of(UNIT) {
        return Some("its character map is damaged");
    }
    let (trie, strings) = rest.split_at(size);
    let units: Vec<usize> = trie.as_chunks::<UNIT>().0.iter().map(|u| u32::from_le_bytes(*u) as usize).collect();
    let offset = |u: usize| (u >> 10) << ((u & (1 << 9)) >> 6);
    // From a node the search goes to any of 256 neighbours of its offset; all of them must exist.
    let inside = |node: usize| (node | 0xff) < units.len();
    let reached = |(at, &unit): (usize, &usize)| {
        let label = unit & ((1 << 31) | 0xff);
        label > 0xff || inside(at ^ offset(unit))
    };
    if !units.iter().enumerate().all(reached) {
        return Some("its character map leads outside itself");
    }
    std::str::from_utf8(strings).is_err().then_some("its character map is not UTF-8")
}
