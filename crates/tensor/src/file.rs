//! Named tensors on disk: safetensors, memory-mapped for reading, written aside and renamed.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, View};

use crate::{DType, Element, Error, Result, Tensor, bf16};

/// Named tensors with a text header, as a safetensors file holds them.
#[derive(Clone, Debug, Default)]
pub struct TensorFile {
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The header's metadata.
    pub metadata: HashMap<String, String>,
}

fn bad(path: &Path, reason: impl Into<String>) -> Error {
    Error::File { path: path.display().to_string(), reason: reason.into() }
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}

impl TensorFile {
    /// Reads every tensor of a safetensors file; f16 widens to f32, integers to f64.
    ///
    /// # Errors
    /// If the file is missing, truncated or malformed, or holds an element type without an exact counterpart.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| io(path, e))?;
        // SAFETY: the map is read-only and private to this function; a file that another process truncates meanwhile
        // faults, which the documentation of every memory-mapping reader accepts.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| io(path, e))?;
        Self::parse(&map, path)
    }

    /// Reads every tensor of a safetensors file already in memory; `path` names it in messages.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let malformed = |e| bad(path, format!("not a complete safetensors file ({e}); fetch or write it again"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
        let views = SafeTensors::deserialize(bytes).map_err(malformed)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in views.tensors() {
            tensors.insert(name.clone(), decode(view.dtype(), view.data(), view.shape(), &name, path)?);
        }
        Ok(TensorFile { tensors, metadata: header.metadata().clone().unwrap_or_default() })
    }

    /// The tensor of a name.
    ///
    /// # Errors
    /// If there is none; the message names the file's nearest neighbours in alphabetical order.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            let near: Vec<_> = self.tensors.range(name.to_string()..).take(3).map(|(k, _)| k.as_str()).collect();
            let reason = format!("no such tensor; the next names in order are {}", near.join(", "));
            Error::File { path: format!("tensor '{name}'"), reason }
        })
    }

    /// Writes aside, flushes to disk and renames.
    ///
    /// # Errors
    /// If the folder cannot be written or the disk is full; an older file of the name is then untouched.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_aside(path, |file| {
            let views = self.tensors.iter().map(|(k, t)| (k.as_str(), Bytes::of(t)));
            let metadata = (!self.metadata.is_empty()).then(|| self.metadata.clone());
            let bytes = safetensors::serialize(views, metadata).map_err(std::io::Error::other)?;
            std::io::Write::write_all(file, &bytes)
        })
    }
}

/// Writes a file aside, flushes it, renames it over `path` and flushes the folder.
///
/// # Errors
/// If any of these fails; an older file of the name is then untouched.
pub fn write_aside(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut builder = tempfile::Builder::new();
    // The system's default rights, narrowed by the umask as usual; temporary files are otherwise private.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut aside = builder.tempfile_in(&folder).map_err(|e| io(&folder, e))?;
    fill(aside.as_file_mut()).map_err(|e| io(path, e))?;
    aside.as_file().sync_all().map_err(|e| io(path, e))?;
    aside.persist(path).map_err(|e| io(path, e.error))?;
    File::open(&folder).and_then(|d| d.sync_all()).map_err(|e| io(&folder, e))
}

fn decode(dtype: Dtype, data: &[u8], shape: &[usize], name: &str, path: &Path) -> Result<Tensor> {
    fn cast<T: Element, const N: usize>(data: &[u8], shape: &[usize], f: impl Fn([u8; N]) -> T) -> Tensor {
        let (chunks, _) = data.as_chunks::<N>();
        Tensor::cpu_with(shape, |out: &mut [T]| out.iter_mut().zip(chunks).for_each(|(o, &c)| *o = f(c)))
    }
    Ok(match dtype {
        Dtype::F32 => cast(data, shape, f32::from_le_bytes),
        Dtype::F64 => cast(data, shape, f64::from_le_bytes),
        Dtype::BF16 => cast(data, shape, bf16::from_le_bytes),
        Dtype::F16 => cast(data, shape, |b| half::f16::from_le_bytes(b).to_f32()),
        Dtype::I64 => cast(data, shape, |b| i64::from_le_bytes(b) as f64),
        Dtype::I32 => cast(data, shape, |b| f64::from(i32::from_le_bytes(b))),
        Dtype::U8 | Dtype::BOOL => cast(data, shape, |[b]: [u8; 1]| f64::from(b)),
        other => return Err(bad(path, format!("tensor '{name}' has dtype {other:?}; convert it to f32 or bf16"))),
    })
}

/// A tensor's little-endian bytes, as the writer wants them.
struct Bytes {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Bytes {
    fn of(t: &Tensor) -> Self {
        fn bytes<T: Element, const N: usize>(t: &Tensor, f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
            t.as_slice::<T>().unwrap_or(&[]).iter().flat_map(|&x| f(x)).collect()
        }
        let (dtype, data) = match t.dtype() {
            DType::F32 => (Dtype::F32, bytes(t, f32::to_le_bytes)),
            DType::F64 => (Dtype::F64, bytes(t, f64::to_le_bytes)),
            DType::Bf16 => (Dtype::BF16, bytes(t, bf16::to_le_bytes)),
        };
        Bytes { dtype, shape: t.shape().to_vec(), data }
    }
}

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.data.as_slice().into()
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> TensorFile {
        let mut f = TensorFile::default();
        f.tensors.insert("a".into(), Tensor::from_vec(vec![1.5f32, -2.0, f32::NAN], &[3]).unwrap());
        f.tensors.insert("b".into(), Tensor::from_vec(vec![bf16::ONE; 4], &[2, 2]).unwrap());
        f.tensors.insert("empty".into(), Tensor::from_vec(Vec::<f64>::new(), &[0, 5]).unwrap());
        f.metadata.insert("k".into(), "v".into());
        f
    }

    #[test]
    fn a_file_comes_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        sample().write(&path).unwrap();
        let back = TensorFile::read(&path).unwrap();
        let bits = |t: &Tensor| t.as_slice::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(back.get("a").unwrap()), bits(sample().get("a").unwrap()));
        assert_eq!(back.get("b").unwrap().shape(), [2, 2]);
        assert_eq!(back.get("empty").unwrap().shape(), [0, 5]);
        assert_eq!(back.metadata["k"], "v");
    }

    #[test]
    fn every_truncation_and_flipped_header_byte_is_an_error_or_a_file_never_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        sample().write(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for n in 0..whole.len() {
            assert!(TensorFile::parse(&whole[..n], &path).is_err(), "{n} of {} bytes", whole.len());
        }
        for i in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[i] ^= 1 << bit;
                let _ = TensorFile::parse(&flipped, &path);
            }
        }
    }

    #[test]
    fn an_unwritable_folder_is_an_error_that_names_it() {
        let e = sample().write(Path::new("/nonexistent/x.safetensors")).unwrap_err();
        assert!(e.to_string().contains("/nonexistent"), "{e}");
    }
}
