//! The members of a zip archive that are stored as they are.
//!
//! Layout: APPNOTE.TXT 6.3.10, sections 4.3 (records) and 4.5.3 (sizes beyond 32 bits). Everything an archive says of
//! itself is checked against its length before it is used.

use std::collections::HashMap;
use std::ops::Range;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const END_64_LOCATOR: u32 = 0x0706_4b50;
/// Bytes of the records without their variable parts.
const LOCAL_LEN: usize = 30;
const CENTRAL_LEN: usize = 46;
const END_LEN: usize = 22;
const LOCATOR_LEN: usize = 20;
/// The end record may be followed by a comment of so many bytes.
const MAX_COMMENT: usize = u16::MAX as usize;
/// The id of the extra field that holds 64-bit sizes.
const EXTRA_64: u16 = 1;

/// Where a member's bytes are, and their sum.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub range: Range<usize>,
    pub crc: u32,
}

/// Members by name.
pub(crate) type Members = HashMap<String, Member>;

/// The members of an archive.
///
/// Members that are compressed, encrypted, overlap another or leave the archive are errors, as are two of one name.
pub(crate) fn members(bytes: &[u8]) -> Result<Members, String> {
    let (count, mut at, end) = directory(bytes)?;
    let mut members = HashMap::new();
    for _ in 0..count {
        let record = bytes.get(at..end).filter(|r| u32_at(r, 0) == Some(CENTRAL) && r.len() >= CENTRAL_LEN);
        let record = record.ok_or("its list of members is damaged")?;
        let part = |i| u16_at(record, i).map(usize::from).unwrap_or_default();
        let (name_len, extra_len, comment_len) = (part(28), part(30), part(32));
        let len = CENTRAL_LEN + name_len + extra_len + comment_len;
        let record = record.get(..len).ok_or("its list of members is damaged")?;
        let name = String::from_utf8(record[CENTRAL_LEN..][..name_len].to_vec()).map_err(|_| "a name is not UTF-8")?;
        let member = member(bytes, record, &record[CENTRAL_LEN + name_len..][..extra_len]);
        let member = member.map_err(|e| format!("member '{name}' {e}"))?;
        if members.insert(name.clone(), member).is_some() {
            return Err(format!("member '{name}' is there twice"));
        }
        at += len;
    }
    refuse_overlap(&members)?;
    Ok(members)
}

/// The number of members and where their list is.
fn directory(bytes: &[u8]) -> Result<(u64, usize, usize), String> {
    let missing = "it is no complete zip archive (its end is missing)";
    let first = bytes.len().saturating_sub(END_LEN + MAX_COMMENT);
    let mut places = (first..(bytes.len() + 1).saturating_sub(END_LEN)).rev();
    let end = places.find(|&i| u32_at(bytes, i) == Some(END)).ok_or(missing)?;
    let damaged = || "its end record is damaged".to_string();
    let short = |i| u16_at(bytes, end + i).ok_or_else(damaged);
    let word = |i| u32_at(bytes, end + i).ok_or_else(damaged);
    let (mut count, mut size, mut offset) = (u64::from(short(10)?), u64::from(word(12)?), u64::from(word(16)?));
    if let Some(locator) = end.checked_sub(LOCATOR_LEN)
        && u32_at(bytes, locator) == Some(END_64_LOCATOR)
    {
        let wide = u64_at(bytes, locator + 8).and_then(|i| usize::try_from(i).ok()).ok_or_else(damaged)?;
        let record = bytes.get(wide..).filter(|r| u32_at(r, 0) == Some(END_64)).ok_or_else(damaged)?;
        let long = |i| u64_at(record, i).ok_or_else(damaged);
        (count, size, offset) = (long(32)?, long(40)?, long(48)?);
    }
    let start = usize::try_from(offset).map_err(|_| damaged())?;
    let stop = usize::try_from(size).ok().and_then(|n| start.checked_add(n)).ok_or_else(damaged)?;
    if stop > end || count > (stop - start) as u64 / CENTRAL_LEN as u64 {
        return Err(damaged());
    }
    Ok((count, start, stop))
}

fn member(bytes: &[u8], record: &[u8], extra: &[u8]) -> Result<Member, String> {
    let damaged = "has a damaged record";
    let word = |i| u32_at(record, i).ok_or(damaged);
    let (flags, method) = (u16_at(record, 8).ok_or(damaged)?, u16_at(record, 10).ok_or(damaged)?);
    if flags & 1 != 0 {
        return Err("is encrypted".into());
    }
    if method != 0 {
        return Err("is compressed, which PyTorch never writes".into());
    }
    let wide = wide_fields(extra);
    let mut wide = wide.chunks_exact(8).map(|c| u64_at(c, 0).unwrap_or(u64::MAX));
    let mut field = |narrow: u32| match narrow {
        u32::MAX => wide.next().ok_or(damaged),
        n => Ok(u64::from(n)),
    };
    // In this order: the size as unpacked, the size as stored, the place.
    let (unpacked, stored, place) = (field(word(24)?)?, field(word(20)?)?, field(word(42)?)?);
    if unpacked != stored {
        return Err("says that it is stored, in another size than its own".into());
    }
    let outside = "lies outside the file";
    let place = usize::try_from(place).map_err(|_| outside)?;
    let local = bytes.get(place..).filter(|r| u32_at(r, 0) == Some(LOCAL)).ok_or(outside)?;
    let part = |i| u16_at(local, i).map(usize::from).ok_or(outside);
    let start = place + LOCAL_LEN + part(26)? + part(28)?;
    let stop = usize::try_from(stored).ok().and_then(|n| start.checked_add(n)).ok_or(outside)?;
    if stop > bytes.len() {
        return Err(outside.into());
    }
    Ok(Member { range: start..stop, crc: word(16)? })
}

/// The 64-bit sizes among a member's extra fields.
fn wide_fields(mut extra: &[u8]) -> &[u8] {
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some(field) = extra.get(4..4 + usize::from(len)) else { break };
        if id == EXTRA_64 {
            return field;
        }
        extra = &extra[4 + usize::from(len)..];
    }
    &[]
}

/// Members that share bytes would let a small file stand for a huge one.
fn refuse_overlap(members: &Members) -> Result<(), String> {
    let mut ranges: Vec<_> = members.iter().filter(|(_, m)| !m.range.is_empty()).collect();
    ranges.sort_by_key(|(_, m)| m.range.start);
    match ranges.windows(2).find(|w| w[0].1.range.end > w[1].1.range.start) {
        Some(w) => Err(format!("members '{}' and '{}' overlap", w[0].0, w[1].0)),
        None => Ok(()),
    }
}

fn u16_at(b: &[u8], i: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*b.get(i..)?.first_chunk()?))
}

fn u32_at(b: &[u8], i: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*b.get(i..)?.first_chunk()?))
}

fn u64_at(b: &[u8], i: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*b.get(i..)?.first_chunk()?))
}
