//! Writing: a pickle of protocol 2 and a zip archive of stored members, each storage aligned to 64 bytes.

use std::io::{self, Write};
use std::path::Path;

use fewstep_tensor::file::{TensorFile, write_aside};
use fewstep_tensor::{DType, Tensor};

use crate::Result;

/// Storages start at multiples of this, as PyTorch writes them, so that a map of the file can be used as it is.
const ALIGNMENT: u64 = 64;
/// The folder inside the archive.
const FOLDER: &str = "archive";
/// The id of the extra field that PyTorch pads with.
const EXTRA_PADDING: u16 = 0x4246;
const EXTRA_64: u16 = 1;
/// 1 January 1980: the file depends on its content alone.
const DATE: u16 = 0x21;

/// The bytes that `torch.save(tensor)` would write.
///
/// # Errors
/// Never in memory; the signature follows the writer.
pub fn encode_tensor(t: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut pickle = vec![0x80, 2];
    tensor(&mut pickle, t, t.dtype(), 0);
    pickle.push(b'.');
    archive(&mut bytes, &pickle, &[t], None).map_err(in_memory)?;
    Ok(bytes)
}

/// The bytes that `torch.save` would write of an ordered dictionary of these tensors.
///
/// # Errors
/// If a tensor could not be read and would be lost.
pub fn encode_state_dict(file: &TensorFile) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    state_dict(&mut bytes, file, None).map_err(in_memory)?;
    Ok(bytes)
}

/// Writes a state dict aside, flushes and renames; tensors are written one by one. The header's metadata has no place there.
///
/// # Errors
/// If the folder cannot be written or the disk is full; if a tensor could not be read and would be lost.
pub fn write(path: &Path, file: &TensorFile) -> Result<()> {
    write_as(path, file, None)
}

/// As [`write()`], each tensor converted to a dtype (if one is given) as it is written.
///
/// # Errors
/// As [`write()`].
pub fn write_as(path: &Path, file: &TensorFile, dtype: Option<DType>) -> Result<()> {
    Ok(write_aside(path, |out| {
        let mut out = io::BufWriter::new(out);
        state_dict(&mut out, file, dtype)?;
        out.flush()
    })?)
}

fn in_memory(source: io::Error) -> crate::Error {
    fewstep_tensor::Error::Io { path: "memory".into(), source }.into()
}

fn state_dict(out: &mut impl Write, file: &TensorFile, dtype: Option<DType>) -> io::Result<()> {
    if let Some((name, why)) = file.unreadable.first_key_value() {
        return Err(io::Error::other(format!("tensor '{name}' would be lost: {why}")));
    }
    let mut pickle = vec![0x80, 2];
    empty_dict(&mut pickle);
    pickle.push(b'(');
    for (i, (name, t)) in file.tensors.iter().enumerate() {
        text(&mut pickle, name);
        tensor(&mut pickle, t, dtype.unwrap_or(t.dtype()), i);
    }
    pickle.extend(b"u.");
    archive(out, &pickle, &file.tensors.values().collect::<Vec<_>>(), dtype)
}

fn empty_dict(p: &mut Vec<u8>) {
    p.extend(b"ccollections\nOrderedDict\n)R");
}

fn text(p: &mut Vec<u8>, s: &str) {
    p.push(b'X');
    p.extend((s.len() as u32).to_le_bytes());
    p.extend(s.as_bytes());
}

fn integer(p: &mut Vec<u8>, n: usize) {
    match i32::try_from(n) {
        Ok(n) => {
            p.push(b'J');
            p.extend(n.to_le_bytes());
        }
        Err(_) => {
            p.extend([0x8a, 9]);
            p.extend((n as u64).to_le_bytes());
            p.push(0);
        }
    }
}

fn tuple(p: &mut Vec<u8>, items: &[usize]) {
    p.push(b'(');
    items.iter().for_each(|&n| integer(p, n));
    p.push(b't');
}

/// `_rebuild_tensor_v2(('storage', class, key, 'cpu', length), 0, shape, stride, False, OrderedDict())`
fn tensor(p: &mut Vec<u8>, t: &Tensor, dtype: DType, key: usize) {
    let class = match dtype {
        DType::F32 => "FloatStorage",
        DType::F64 => "DoubleStorage",
        DType::Bf16 => "BFloat16Storage",
    };
    p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(p, "storage");
    p.extend(format!("ctorch\n{class}\n").as_bytes());
    text(p, &key.to_string());
    text(p, "cpu");
    integer(p, t.len());
    p.extend(b"tQ");
    integer(p, 0);
    tuple(p, t.shape());
    let mut strides = vec![1usize; t.shape().len()];
    for i in (1..strides.len()).rev() {
        strides[i - 1] = strides[i] * t.shape()[i].max(1);
    }
    tuple(p, &strides);
    p.push(0x89);
    empty_dict(p);
    p.extend(b"tR");
}

struct Entry {
    name: String,
    crc: u32,
    size: u64,
    place: u64,
}

fn archive(out: &mut impl Write, pickle: &[u8], tensors: &[&Tensor], dtype: Option<DType>) -> io::Result<()> {
    let (mut at, mut entries) = (0u64, Vec::new());
    let mut put = |name: String, data: &[u8]| -> io::Result<()> {
        let entry =
            Entry { name: format!("{FOLDER}/{name}"), crc: crc32fast::hash(data), size: data.len() as u64, place: at };
        at += local(out, &entry)?;
        out.write_all(data)?;
        at += entry.size;
        entries.push(entry);
        Ok(())
    };
    put("data.pkl".into(), pickle)?;
    put("byteorder".into(), b"little")?;
    for (i, t) in tensors.iter().enumerate() {
        let t = t.to_dtype(dtype.unwrap_or(t.dtype()));
        put(format!("data/{i}"), &t.try_le_bytes().map_err(std::io::Error::other)?)?;
    }
    put("version".into(), b"3\n")?;
    directory(out, &entries, at)
}

/// Sizes and places that 32 bits do not hold.
fn wide_extra(numbers: &[u64]) -> Vec<u8> {
    if numbers.is_empty() {
        return Vec::new();
    }
    let mut extra = EXTRA_64.to_le_bytes().to_vec();
    extra.extend((8 * numbers.len() as u16).to_le_bytes());
    numbers.iter().for_each(|n| extra.extend(n.to_le_bytes()));
    extra
}

fn narrow(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Version, flags (names in UTF-8), method (stored), time, date.
fn start(e: &Entry) -> Vec<u8> {
    let mut b = Vec::new();
    [45u16, 0x800, 0, 0, DATE].iter().for_each(|n| b.extend(n.to_le_bytes()));
    [e.crc, narrow(e.size), narrow(e.size)].iter().for_each(|n| b.extend(n.to_le_bytes()));
    b.extend((e.name.len() as u16).to_le_bytes());
    b
}

/// Writes a member's header, padded so that its data is aligned; gives its length.
fn local(out: &mut impl Write, e: &Entry) -> io::Result<u64> {
    let mut extra = if e.size >= u64::from(u32::MAX) { wide_extra(&[e.size, e.size]) } else { Vec::new() };
    // The 30 fixed bytes, the name, other fields, and the padding field's own 4 bytes.
    let before = e.place + 30 + e.name.len() as u64 + extra.len() as u64 + 4;
    let padding = (ALIGNMENT - before % ALIGNMENT) % ALIGNMENT;
    extra.extend(EXTRA_PADDING.to_le_bytes());
    extra.extend((padding as u16).to_le_bytes());
    extra.resize(extra.len() + padding as usize, b'Z');
    let mut header = b"PK\x03\x04".to_vec();
    header.extend(start(e));
    header.extend((extra.len() as u16).to_le_bytes());
    header.extend(e.name.as_bytes());
    header.extend(extra);
    out.write_all(&header)?;
    Ok(header.len() as u64)
}

fn directory(out: &mut impl Write, entries: &[Entry], place: u64) -> io::Result<()> {
    let mut d = Vec::new();
    for e in entries {
        let mut wide = if e.size >= u64::from(u32::MAX) { vec![e.size, e.size] } else { Vec::new() };
        wide.extend((e.place >= u64::from(u32::MAX)).then_some(e.place));
        let extra = wide_extra(&wide);
        d.extend(b"PK\x01\x02");
        d.extend(45u16.to_le_bytes());
        d.extend(start(e));
        d.extend((extra.len() as u16).to_le_bytes());
        // Comment, disk, attributes: none.
        d.extend([0; 10]);
        d.extend(narrow(e.place).to_le_bytes());
        d.extend(e.name.as_bytes());
        d.extend(extra);
    }
    let (count, size) = (entries.len() as u64, d.len() as u64);
    let end_64 = place + size;
    d.extend(b"PK\x06\x06");
    d.extend(44u64.to_le_bytes());
    d.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    [count, count, size, place].iter().for_each(|n| d.extend(n.to_le_bytes()));
    d.extend(b"PK\x06\x07");
    d.extend(0u32.to_le_bytes());
    d.extend(end_64.to_le_bytes());
    d.extend(1u32.to_le_bytes());
    d.extend(b"PK\x05\x06");
    d.extend([0; 4]);
    let short = u16::try_from(count).unwrap_or(u16::MAX);
    [short, short].iter().for_each(|n| d.extend(n.to_le_bytes()));
    [narrow(size), narrow(place)].iter().for_each(|n| d.extend(n.to_le_bytes()));
    d.extend([0; 2]);
    out.write_all(&d)
}
