//! PyTorch files: a zip archive of stored members, one of them a pickle that says what the others are.
//!
//! The pickle is read by a machine that can build numbers, texts, lists, dictionaries and tensors and nothing else; whatever
//! else it asks for is refused by name. Sums (CRC-32): that of the pickle is always checked, and that of every member of an
//! archive in memory; those of a mapped file's storages only by [`verify`], since checking them would read the file.

mod names;
mod pickle;
mod write;

use std::path::Path;

use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{FileBytes, FileMap, Stored, Tensor};

use crate::zip::{self, Member, Members};
use crate::{Error, Result};
use pickle::{Element, Fault, Id, Value, View};

pub use names::Select;
pub use write::{encode_state_dict, encode_tensor, write, write_as};

/// A pickle of weights is a few megabytes; each byte may cost some thirty of memory.
const MAX_PICKLE: usize = 16 << 20;
/// Tensors that are copied (converted, strided, misaligned) may share a storage; together they may take so many times the
/// file's size, eight being what bytes become as f64.
const COPY_FACTOR: usize = 16;
/// So much may always be copied: the views of a tiny storage.
const COPY_FLOOR: usize = 1 << 20;
const SAVE_AGAIN: &str = "load it in PyTorch and save a plain state dict with torch.save";

/// The named tensors of a file, nested dictionaries joined by dots; [`Select::Auto`] says which dictionary.
///
/// The file stays mapped: contiguous f32, f64 and bf16 tensors are windows of it.
///
/// # Errors
/// If the file is missing or damaged, or asks for anything but tensors in dictionaries and lists.
pub fn read(path: &Path) -> Result<TensorFile> {
    read_under(path, Select::Auto)
}

/// As [`read`], of a given dictionary.
///
/// # Errors
/// As [`read`]; if there is no such dictionary.
pub fn read_under(path: &Path, select: Select) -> Result<TensorFile> {
    Archive::open(FileBytes::Mapped(FileMap::open(path)?), path)?.tensors(select)
}

/// As [`read_under`], of a file already in memory; `path` names it in messages.
///
/// # Errors
/// As [`read_under`]; if the sum of a member is wrong.
pub fn parse(bytes: &[u8], path: &Path, select: Select) -> Result<TensorFile> {
    let archive = Archive::open(FileBytes::Memory(bytes), path)?;
    archive.check_sums()?;
    archive.tensors(select)
}

/// The tensor of a file that holds a bare one, as `torch.save(tensor)` writes it.
///
/// # Errors
/// If the bytes are no such file, or damaged.
pub fn decode_tensor(bytes: &[u8]) -> Result<Tensor> {
    let archive = Archive::open(FileBytes::Memory(bytes), Path::new("tensor"))?;
    archive.check_sums()?;
    match &archive.values[archive.root as usize] {
        Value::Tensor(view) => archive.tensor(view, &mut archive.budget())?.map_err(|why| archive.damaged(why)),
        _ => Err(archive.refused("holds no bare tensor".into(), "give a file that torch.save(tensor) wrote")),
    }
}

/// Checks the sums of every member, which reads the whole file.
///
/// # Errors
/// If one is wrong, or as [`read`].
pub fn verify(path: &Path) -> Result<()> {
    Archive::open(FileBytes::Mapped(FileMap::open(path)?), path)?.check_sums()
}

/// An open archive with its pickle read.
struct Archive<'a> {
    bytes: FileBytes<'a>,
    file: String,
    members: Members,
    prefix: String,
    values: Vec<Value>,
    root: Id,
}

impl<'a> Archive<'a> {
    fn open(bytes: FileBytes<'a>, path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        refuse_other_formats(bytes.as_slice(), &file)?;
        let damaged = |problem: String| Error::Damaged { file: file.clone(), problem };
        let members = zip::members(bytes.as_slice()).map_err(damaged)?;
        let pickles: Vec<&String> = members.keys().filter(|n| n.ends_with("/data.pkl")).collect();
        let &[pickle] = pickles.as_slice() else {
            return Err(damaged(format!("a zip archive with {} members data.pkl, not one", pickles.len())));
        };
        let prefix = pickle[..pickle.len() - "data.pkl".len()].to_string();
        let member = &members[pickle];
        let data = &bytes.as_slice()[member.range.clone()];
        if data.len() > MAX_PICKLE {
            return Err(damaged(format!("a pickle of {} bytes, more than weights need ({MAX_PICKLE})", data.len())));
        }
        check_sum(bytes.as_slice(), pickle, member).map_err(damaged)?;
        if let Some(order) = members.get(&format!("{prefix}byteorder"))
            && &bytes.as_slice()[order.range.clone()] != b"little"
        {
            let what = "was written on a big-endian machine".into();
            return Err(Error::Refused { file, what, remedy: SAVE_AGAIN });
        }
        let (values, root) = pickle::read(data).map_err(|fault| match fault {
            Fault::Damaged(what) => damaged(format!("its pickle is damaged: {what}")),
            Fault::Refused(what) => {
                let what = format!("its pickle asks for {what}, which is no weights; nothing was executed");
                Error::Refused { file: file.clone(), what, remedy: SAVE_AGAIN }
            }
        })?;
        Ok(Archive { bytes, file, members, prefix, values, root })
    }

    fn check_sums(&self) -> Result<()> {
        let checked = self.members.iter().try_for_each(|(n, m)| check_sum(self.bytes.as_slice(), n, m));
        checked.map_err(|problem| self.damaged(problem))
    }

    fn damaged(&self, problem: String) -> Error {
        Error::Damaged { file: self.file.clone(), problem }
    }

    fn refused(&self, what: String, remedy: &'static str) -> Error {
        Error::Refused { file: self.file.clone(), what, remedy }
    }

    fn budget(&self) -> usize {
        self.bytes.as_slice().len().saturating_mul(COPY_FACTOR).saturating_add(COPY_FLOOR)
    }

    /// A tensor, or why its element type has no counterpart here.
    fn tensor(&self, view: &View, budget: &mut usize) -> Result<std::result::Result<Tensor, String>> {
        let stored = match &view.element {
            Element::Known(stored) => *stored,
            Element::Untyped => return Err(self.damaged("a tensor without an element type".into())),
            Element::Other(name) => return Ok(Err(format!("dtype {name}; convert it to f32 or bf16"))),
        };
        let member = self.storage(view)?;
        let outside = || self.damaged(format!("a tensor {:?} reaches outside its storage", view.shape));
        let (len, contiguous) = reach(view, member.range.len() / stored.size()).ok_or_else(outside)?;
        let bytes = len.checked_mul(stored.size()).ok_or_else(outside)?;
        let start = if len == 0 { member.range.start } else { member.range.start + view.offset * stored.size() };
        let mut spend = |bytes: usize| {
            *budget = budget.checked_sub(bytes)?;
            Some(())
        };
        let wide = len.checked_mul(stored.dtype().size()).ok_or_else(outside)?;
        let bomb = || self.damaged("its tensors are far larger than the file".into());
        if contiguous {
            let whole = start..start + bytes;
            let window = matches!(self.bytes, FileBytes::Mapped(_)) && stored.size() == stored.dtype().size();
            if !window {
                spend(wide).ok_or_else(bomb)?;
            }
            return Ok(Ok(Tensor::from_file_bytes(&self.bytes, whole, stored, &view.shape)?));
        }
        spend(wide.saturating_add(bytes)).ok_or_else(bomb)?;
        let data = gather(view, &self.bytes.as_slice()[member.range.clone()], stored, bytes);
        Ok(Ok(Tensor::from_file_bytes(&FileBytes::Memory(&data), 0..bytes, stored, &view.shape)?))
    }

    fn storage(&self, view: &View) -> Result<&Member> {
        let Value::Storage(storage) = &self.values[view.storage as usize] else {
            return Err(self.damaged("a tensor without a storage".into()));
        };
        let Value::Text(key) = &self.values[storage.key as usize] else {
            return Err(self.damaged("a storage without a name".into()));
        };
        let name = format!("{}data/{key}", self.prefix);
        self.members.get(&name).ok_or_else(|| self.damaged(format!("member '{name}' is missing")))
    }
}

/// The sum of a member; zero means that the writer noted none (`set_crc32_options(False)`).
fn check_sum(bytes: &[u8], name: &str, member: &Member) -> std::result::Result<(), String> {
    let sum = crc32fast::hash(&bytes[member.range.clone()]);
    match member.crc == sum || member.crc == 0 {
        true => Ok(()),
        false => Err(format!("member '{name}' is damaged: its sum is {sum:08x}, not {:08x}", member.crc)),
    }
}

/// The number of elements and whether they lie in order, if the view stays inside `available` elements.
fn reach(view: &View, available: usize) -> Option<(usize, bool)> {
    let nonzero = view.shape.iter().filter(|&&n| n != 0).try_fold(1usize, |p, &n| p.checked_mul(n))?;
    if view.shape.contains(&0) {
        return Some((0, true));
    }
    let (mut last, mut expected, mut contiguous) = (view.offset, 1usize, true);
    for (&n, &stride) in view.shape.iter().zip(&view.stride).rev() {
        last = last.checked_add((n - 1).checked_mul(stride)?)?;
        contiguous &= n == 1 || stride == expected;
        expected = expected.checked_mul(n)?;
    }
    (last < available).then_some((nonzero, contiguous))
}

/// The elements of a strided view in row-major order; the caller checked its reach.
fn gather(view: &View, storage: &[u8], stored: Stored, bytes: usize) -> Vec<u8> {
    let size = stored.size();
    let mut data = Vec::with_capacity(bytes);
    let mut index = vec![0usize; view.shape.len()];
    let mut at = view.offset;
    while data.len() < bytes {
        data.extend_from_slice(&storage[at * size..][..size]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += view.stride[axis];
            if index[axis] < view.shape[axis] {
                break;
            }
            at -= view.stride[axis] * view.shape[axis];
            index[axis] = 0;
        }
    }
    data
}

fn refuse_other_formats(bytes: &[u8], file: &str) -> Result<()> {
    let refused = |what: &str, remedy| Err(Error::Refused { file: file.into(), what: what.into(), remedy });
    if bytes.starts_with(b"PK") {
        return Ok(());
    }
    if bytes.starts_with(&[0x80]) {
        return refused("is in the format of PyTorch before 1.6, or a bare pickle", SAVE_AGAIN);
    }
    if bytes.starts_with(b"GGUF") {
        return refused("is a GGUF file", "fetch the weights as safetensors or as a PyTorch file");
    }
    refused("is no PyTorch file", "give a file that torch.save wrote, or safetensors")
}
