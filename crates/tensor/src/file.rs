//! Named tensors on disk: safetensors, memory-mapped for reading, written aside and renamed.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, View};
use tempfile::NamedTempFile;

use crate::{DType, Error, FileBytes, FileMap, Result, Stored, Tensor};

/// Named tensors with a text header, as a safetensors file holds them.
#[derive(Clone, Debug, Default)]
pub struct TensorFile {
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The header's metadata.
    pub metadata: HashMap<String, String>,
    /// Tensors that were not read, and why: element types without a counterpart here, such as f8.
    pub unreadable: BTreeMap<String, String>,
}

fn bad(path: &Path, reason: impl Into<String>) -> Error {
    Error::File { path: path.display().to_string(), reason: reason.into() }
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}

impl TensorFile {
    /// Reads a safetensors file; f16 widens to f32, integers to f64.
    ///
    /// The file stays mapped: f32, f64 and bf16 tensors are windows of it, so that only what is used is ever read.
    ///
    /// # Errors
    /// If the file is missing, truncated or malformed.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of_bytes(&FileBytes::Mapped(FileMap::open(path)?), path)
    }

    /// Reads every tensor of a safetensors file already in memory; `path` names it in messages.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        Self::of_bytes(&FileBytes::Memory(bytes), path)
    }

    fn of_bytes(bytes: &FileBytes, path: &Path) -> Result<Self> {
        let all = bytes.as_slice();
        let malformed = |e| bad(path, format!("not a complete safetensors file ({e}); fetch or write it again"));
        let (header_len, header) = SafeTensors::read_metadata(all).map_err(malformed)?;
        // Eight bytes say how long the header is.
        let data = header_len + size_of::<u64>();
        let mut file = TensorFile { metadata: header.metadata().clone().unwrap_or_default(), ..TensorFile::default() };
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            match stored(info.dtype) {
                Some(stored) => {
                    let tensor = Tensor::from_file_bytes(bytes, data + start..data + end, stored, &info.shape)
                        .map_err(|e| bad(path, format!("tensor '{name}': {e}; fetch the file again")))?;
                    file.tensors.insert(name, tensor);
                }
                None => {
                    file.unreadable.insert(name, format!("dtype {:?}; convert it to f32 or bf16", info.dtype));
                }
            }
        }
        Ok(file)
    }

    /// The tensor of a name.
    ///
    /// # Errors
    /// If there is none, with the file's nearest neighbours in alphabetical order, or it could not be read.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        if let Some(why) = self.unreadable.get(name) {
            return Err(Error::File { path: format!("tensor '{name}'"), reason: why.clone() });
        }
        self.tensors.get(name).ok_or_else(|| {
            let near: Vec<_> = self.tensors.range(name.to_string()..).take(3).map(|(k, _)| k.as_str()).collect();
            let reason = format!("no such tensor; the next names in order are {}", near.join(", "));
            Error::File { path: format!("tensor '{name}'"), reason }
        })
    }

    /// Writes aside, flushes to disk and renames. Tensors are written one by one; none is copied as a whole.
    ///
    /// # Errors
    /// If the folder cannot be written or the disk is full; an older file of the name is then untouched. If a tensor could
    /// not be read, since the file would then lack it.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.write_as(path, None)
    }

    /// As [`TensorFile::write`], each tensor converted to a dtype (if one is given) as it is written.
    ///
    /// # Errors
    /// As [`TensorFile::write`].
    pub fn write_as(&self, path: &Path, dtype: Option<DType>) -> Result<()> {
        if let Some((name, why)) = self.unreadable.first_key_value() {
            return Err(bad(path, format!("tensor '{name}' would be lost: {why}")));
        }
        let failed = RefCell::new(None);
        let bytes =
            |tensor: &'_ Tensor| Bytes { of: tensor.clone(), dtype: dtype.unwrap_or(tensor.dtype()), failed: &failed };
        write_aside_at(path, |aside| {
            let views = self.tensors.iter().map(|(k, t)| (k.as_str(), bytes(t)));
            let metadata = (!self.metadata.is_empty()).then(|| self.metadata.clone());
            let written = safetensors::serialize_to_file(views, metadata, aside).map_err(|e| match e {
                safetensors::SafeTensorError::IoError(e) => e,
                other => std::io::Error::other(other),
            });
            // A tensor that was not there to be written leaves a file that is not to be kept.
            failed.take().map_or(written, |e: Error| Err(std::io::Error::other(e)))
        })
    }
}

/// Writes a file aside, flushes it, renames it over `path` and flushes the folder.
///
/// # Errors
/// If any of these fails; an older file of the name is then untouched.
pub fn write_aside(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    write_temporary(path, |aside| fill(aside.as_file_mut()))
}

/// As [`write_aside`], for a writer that opens the file itself.
fn write_aside_at(path: &Path, fill: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    write_temporary(path, |aside| fill(aside.path()))
}

fn write_temporary(path: &Path, fill: impl FnOnce(&mut NamedTempFile) -> std::io::Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut builder = tempfile::Builder::new();
    // The system's default rights, narrowed by the umask as usual; temporary files are otherwise private.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut aside = builder.tempfile_in(&folder).map_err(|e| io(&folder, e))?;
    fill(&mut aside).map_err(|e| io(path, e))?;
    aside.as_file().sync_all().map_err(|e| io(path, e))?;
    aside.persist(path).map_err(|e| io(path, e.error))?;
    File::open(&folder).and_then(|d| d.sync_all()).map_err(|e| io(&folder, e))
}

/// The element type of a safetensors dtype, if there is one.
fn stored(dtype: Dtype) -> Option<Stored> {
    Some(match dtype {
        Dtype::F32 => Stored::F32,
        Dtype::F64 => Stored::F64,
        Dtype::BF16 => Stored::Bf16,
        Dtype::F16 => Stored::F16,
        Dtype::I64 => Stored::I64,
        Dtype::I32 => Stored::I32,
        Dtype::I16 => Stored::I16,
        Dtype::I8 => Stored::I8,
        Dtype::U8 => Stored::U8,
        Dtype::BOOL => Stored::Bool,
        _ => return None,
    })
}

/// A tensor as the writer wants it, and the dtype in which it is written.
struct Bytes<'a> {
    of: Tensor,
    dtype: DType,
    /// Why a tensor could not be had from a GPU.
    failed: &'a RefCell<Option<Error>>,
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::Bf16 => Dtype::BF16,
        }
    }
    fn shape(&self) -> &[usize] {
        self.of.shape()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = match self.of.dtype() == self.dtype {
            true => self.of.try_le_bytes(),
            false => self.of.to_dtype(self.dtype).try_le_bytes().map(|bytes| Cow::Owned(bytes.into_owned())),
        };
        bytes.unwrap_or_else(|e| {
            self.failed.replace(Some(e));
            Cow::Owned(vec![0; self.data_len()])
        })
    }
    fn data_len(&self) -> usize {
        self.of.len() * self.dtype.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;

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
    fn a_read_tensor_is_a_window_of_the_file_and_writing_to_it_copies_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        sample().write(&path).unwrap();
        let mut back = TensorFile::read(&path).unwrap();
        assert!(back.get("a").unwrap().is_mapped() && back.get("b").unwrap().is_mapped());
        assert!(crate::mapped_bytes() >= std::fs::metadata(&path).unwrap().len() as usize);
        let t = back.tensors.get_mut("a").unwrap();
        t.make_mut::<f32>().unwrap()[1] = 7.0;
        assert!(!t.is_mapped());
        assert_eq!(t.as_slice::<f32>().unwrap()[..2], [1.5, 7.0]);
        assert_eq!(TensorFile::read(&path).unwrap().get("a").unwrap().as_slice::<f32>().unwrap()[1], -2.0);
    }

    #[test]
    fn a_misaligned_tensor_is_a_copy_of_the_same_elements() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bytes");
        let bytes: Vec<u8> = [&[9u8][..], &1.5f32.to_le_bytes()].concat();
        std::fs::write(&path, bytes).unwrap();
        let map = FileBytes::Mapped(FileMap::open(&path).unwrap());
        let t = Tensor::from_file_bytes(&map, 1..5, Stored::F32, &[1]).unwrap();
        assert!(!t.is_mapped());
        assert_eq!(t.as_slice::<f32>().unwrap(), [1.5]);
        assert!(Tensor::from_file_bytes(&map, 1..6, Stored::F32, &[1]).is_err());
        assert!(Tensor::from_file_bytes(&map, 1..5, Stored::F32, &[1, usize::MAX, 2]).is_err());
    }

    #[test]
    fn a_tensor_of_a_type_without_counterpart_is_set_aside_by_name() {
        let header = r#"{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([1, 2, 3]);
        let file = TensorFile::parse(&bytes, Path::new("x")).unwrap();
        assert_eq!(file.get("b").unwrap().to_vec_f64(), [3.0]);
        assert!(file.get("a").unwrap_err().to_string().contains("F8_E4M3"));
        assert!(file.write(Path::new("/tmp/never")).unwrap_err().to_string().contains("'a'"));
    }

    #[test]
    fn an_unwritable_folder_is_an_error_that_names_it() {
        let e = sample().write(Path::new("/nonexistent/x.safetensors")).unwrap_err();
        assert!(e.to_string().contains("/nonexistent"), "{e}");
    }
}
