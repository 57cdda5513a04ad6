//! Elements as files store them, and tensors made of their bytes.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::map::FileMap;
use crate::{DType, Device, Element, Error, Result, Tensor, bf16};

/// An element type of a file. Each becomes the [`DType`] that holds it exactly (64-bit integers up to 2⁵³).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// bfloat16.
    Bf16,
    /// Half precision; widened to f32.
    F16,
    /// 64-bit integers; to f64.
    I64,
    /// 32-bit integers; to f64.
    I32,
    /// 16-bit integers; to f64.
    I16,
    /// Signed bytes; to f64.
    I8,
    /// Bytes; to f64.
    U8,
    /// Booleans, a byte each; to f64 0 and 1.
    Bool,
}

impl Stored {
    /// Bytes of one stored element.
    pub fn size(self) -> usize {
        match self {
            Stored::F64 | Stored::I64 => 8,
            Stored::F32 | Stored::I32 => 4,
            Stored::Bf16 | Stored::F16 | Stored::I16 => 2,
            Stored::I8 | Stored::U8 | Stored::Bool => 1,
        }
    }

    /// The element type in memory.
    pub fn dtype(self) -> DType {
        match self {
            Stored::F32 | Stored::F16 => DType::F32,
            Stored::Bf16 => DType::Bf16,
            _ => DType::F64,
        }
    }
}

/// A file's bytes: mapped, or in memory.
#[derive(Clone, Debug)]
pub enum FileBytes<'a> {
    /// Mapped: tensors can be windows of it.
    Mapped(Arc<FileMap>),
    /// In memory: tensors are copies.
    Memory(&'a [u8]),
}

impl FileBytes<'_> {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map.bytes(),
            FileBytes::Memory(bytes) => bytes,
        }
    }
}

impl Tensor {
    /// A row-major tensor of little-endian elements at a range of a file.
    ///
    /// Where the file is mapped, the elements need no conversion and are aligned, the tensor is a window of the map: nothing
    /// is read before it is used, and writing copies first. Elsewhere it is a copy.
    ///
    /// # Errors
    /// If the range leaves the file or does not hold exactly the shape's elements.
    pub fn from_file_bytes(bytes: &FileBytes, range: Range<usize>, stored: Stored, shape: &[usize]) -> Result<Self> {
        let size = checked_len(shape).and_then(|n| n.checked_mul(stored.size()));
        let data = bytes.as_slice().get(range.clone()).filter(|d| Some(d.len()) == size);
        let Some(data) = data else {
            let expected = format!("a shape of {} bytes of {stored:?} inside the file", range.len());
            return Err(Error::shape("from_file_bytes", expected, shape));
        };
        if let FileBytes::Mapped(map) = bytes {
            let window = match stored {
                Stored::F32 => Self::window::<f32>(map, range, shape),
                Stored::F64 => Self::window::<f64>(map, range, shape),
                Stored::Bf16 => Self::window::<bf16>(map, range, shape),
                _ => None,
            };
            if let Some(window) = window {
                return Ok(window);
            }
        }
        Ok(decode(stored, data, shape))
    }

    /// The elements' little-endian bytes; borrowed on a little-endian machine, copied from a GPU.
    ///
    /// # Errors
    /// If a GPU does not give them.
    pub fn try_le_bytes(&self) -> Result<Cow<'_, [u8]>> {
        match self.device() {
            Device::Cpu => Ok(self.le_bytes()),
            Device::Cuda(_) => Ok(Cow::Owned(self.to_device(Device::Cpu)?.le_bytes().into_owned())),
        }
    }

    /// The elements' little-endian bytes, of a tensor on the host; borrowed on a little-endian machine.
    ///
    /// # Panics
    /// If the tensor is on a GPU, which would have to be asked: see [`Tensor::try_le_bytes`].
    pub fn le_bytes(&self) -> Cow<'_, [u8]> {
        assert!(self.device() == Device::Cpu, "bytes of a tensor that is not on the host");
        fn bytes<T: Element, const N: usize>(t: &Tensor, f: impl Fn(T) -> [u8; N]) -> Cow<'_, [u8]> {
            // The caller matched on the dtype.
            let elements = t.as_slice::<T>().unwrap_or(&[]);
            if cfg!(target_endian = "little") {
                Cow::Borrowed(bytemuck::cast_slice(elements))
            } else {
                elements.iter().flat_map(|&x| f(x)).collect()
            }
        }
        match self.dtype() {
            DType::F32 => bytes(self, f32::to_le_bytes),
            DType::F64 => bytes(self, f64::to_le_bytes),
            DType::Bf16 => bytes(self, bf16::to_le_bytes),
        }
    }
}

/// The number of elements of a shape from outside; `None` where the extents, zeros aside, have no product.
pub(crate) fn checked_len(shape: &[usize]) -> Option<usize> {
    let product = shape.iter().filter(|&&n| n != 0).try_fold(1usize, |p, &n| p.checked_mul(n))?;
    let fits = product <= isize::MAX as usize;
    fits.then_some(if shape.contains(&0) { 0 } else { product })
}

fn decode(stored: Stored, data: &[u8], shape: &[usize]) -> Tensor {
    fn cast<T: Element, const N: usize>(data: &[u8], shape: &[usize], f: impl Fn([u8; N]) -> T) -> Tensor {
        let (chunks, _) = data.as_chunks::<N>();
        Tensor::cpu_with(shape, |out: &mut [T]| out.iter_mut().zip(chunks).for_each(|(o, &c)| *o = f(c)))
    }
    match stored {
        Stored::F32 => cast(data, shape, f32::from_le_bytes),
        Stored::F64 => cast(data, shape, f64::from_le_bytes),
        Stored::Bf16 => cast(data, shape, bf16::from_le_bytes),
        Stored::F16 => cast(data, shape, |b| half::f16::from_le_bytes(b).to_f32()),
        Stored::I64 => cast(data, shape, |b| i64::from_le_bytes(b) as f64),
        Stored::I32 => cast(data, shape, |b| f64::from(i32::from_le_bytes(b))),
        Stored::I16 => cast(data, shape, |b| f64::from(i16::from_le_bytes(b))),
        Stored::I8 => cast(data, shape, |b| f64::from(i8::from_le_bytes(b))),
        Stored::U8 => cast(data, shape, |[b]: [u8; 1]| f64::from(b)),
        Stored::Bool => cast(data, shape, |[b]: [u8; 1]| f64::from(u8::from(b != 0))),
    }
}
