use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use crate::dtype::{DType, Device, Element};
use crate::error::{Error, Result};
use crate::map::{FileMap, Window};
use crate::storage::{Buffer, CpuStorage, Storage};

/// Elementwise work below this many elements stays on the calling thread: waking the pool costs more.
pub const PARALLEL_MIN: usize = 16 * 1024;

/// A dense row-major array on one device, shared by reference count.
///
/// A tensor may be a window into the leading axis of a larger one; it is always contiguous, so that a kernel sees
/// one slice. Cloning and reshaping are free.
#[derive(Clone, Debug)]
pub struct Tensor {
    storage: Arc<Storage>,
    dtype: DType,
    shape: Vec<usize>,
    offset: usize,
}

/// Runs an expression with `$t` bound to the compute type (`f32` or `f64`) of a dtype.
#[macro_export]
macro_rules! dispatch_float {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::DType::F64 => {
                type $t = f64;
                $body
            }
            other => Err(From::from($crate::Error::UnsupportedDType { op: $op, got: other })),
        }
    };
}

impl Tensor {
    /// Takes over a vector in row-major order.
    ///
    /// # Errors
    /// If the shape does not hold exactly the vector's elements.
    pub fn from_vec<T: Element>(v: Vec<T>, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != v.len() {
            return Err(Error::shape("from_vec", format!("a shape of {} elements", v.len()), shape));
        }
        Ok(Self::from_buffer(Buffer::from_vec(v), shape))
    }

    fn from_buffer<T: Element>(buffer: Buffer<T>, shape: &[usize]) -> Self {
        let storage = Arc::new(Storage::Cpu(T::store(buffer)));
        Tensor { storage, dtype: T::DTYPE, shape: shape.to_vec(), offset: 0 }
    }

    /// A window of a mapped file, if its bytes can be read as elements where they are.
    pub(crate) fn window<T: Element>(map: &Arc<FileMap>, range: Range<usize>, shape: &[usize]) -> Option<Self> {
        Some(Self::from_buffer::<T>(Buffer::mapped(Window::new::<T>(map, range)?), shape))
    }

    /// Whether the elements are those of a mapped file: no private memory, and read when they are touched.
    pub fn is_mapped(&self) -> bool {
        let Storage::Cpu(storage) = &*self.storage;
        match storage {
            CpuStorage::F32(b) => b.is_mapped(),
            CpuStorage::F64(b) => b.is_mapped(),
            CpuStorage::Bf16(b) => b.is_mapped(),
        }
    }

    /// A host tensor whose elements `fill` writes, every one of them (the slice arrives with stale contents).
    pub fn cpu_with<T: Element>(shape: &[usize], fill: impl FnOnce(&mut [T])) -> Self {
        let mut buffer = Buffer::scratch(shape.iter().product());
        fill(buffer.as_mut_slice());
        Self::from_buffer(buffer, shape)
    }

    /// All elements equal to `value`, rounded to the dtype.
    pub fn full(shape: &[usize], value: f64, dtype: DType, device: Device) -> Self {
        let Device::Cpu = device;
        match dtype {
            DType::F32 => Self::cpu_with(shape, |o: &mut [f32]| o.fill(value as f32)),
            DType::F64 => Self::cpu_with(shape, |o: &mut [f64]| o.fill(value)),
            DType::Bf16 => Self::cpu_with(shape, |o: &mut [bf16]| o.fill(bf16::from_f64(value))),
        }
    }

    /// All zeros.
    pub fn zeros(shape: &[usize], dtype: DType, device: Device) -> Self {
        Self::full(shape, 0.0, dtype, device)
    }

    /// The extents of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The extents as an array, checking the number of axes.
    ///
    /// # Errors
    /// If the tensor has another number of axes.
    pub fn dims<const N: usize>(&self) -> Result<[usize; N]> {
        self.shape.as_slice().try_into().map_err(|_| Error::shape("dims", format!("{N} axes"), &self.shape))
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the elements are.
    pub fn device(&self) -> Device {
        match &*self.storage {
            Storage::Cpu(_) => Device::Cpu,
        }
    }

    /// The extent of the last axis (1 for a scalar).
    pub fn last_dim(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The elements in row-major order, on the host.
    ///
    /// # Errors
    /// If the element type is another one.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        let Storage::Cpu(storage) = &*self.storage;
        let wrong = Error::DType { op: "as_slice", expected: T::DTYPE, got: self.dtype };
        let all = T::slice(storage).ok_or(wrong)?;
        Ok(&all[self.offset..self.offset + self.len()])
    }

    /// The elements to write in place: copied first if another tensor shares them.
    ///
    /// # Errors
    /// If the element type is another one.
    pub fn make_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        let (len, windowed) = (self.len(), self.storage_len() != self.len());
        if windowed || Arc::strong_count(&self.storage) > 1 {
            let src = self.as_slice::<T>()?;
            *self = Self::cpu_with(&self.shape, |o: &mut [T]| o.copy_from_slice(src));
        }
        let (dtype, offset) = (self.dtype, self.offset);
        let Storage::Cpu(storage) = Arc::make_mut(&mut self.storage);
        let wrong = Error::DType { op: "make_mut", expected: T::DTYPE, got: dtype };
        Ok(&mut T::slice_mut(storage).ok_or(wrong)?[offset..offset + len])
    }

    fn storage_len(&self) -> usize {
        let Storage::Cpu(storage) = &*self.storage;
        match storage {
            CpuStorage::F32(b) => b.as_slice().len(),
            CpuStorage::F64(b) => b.as_slice().len(),
            CpuStorage::Bf16(b) => b.as_slice().len(),
        }
    }

    /// The same elements under another shape; free.
    ///
    /// # Errors
    /// If the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.len() {
            let expected = format!("a shape of {} elements for {:?}", self.len(), self.shape);
            return Err(Error::shape("reshape", expected, shape));
        }
        Ok(Tensor { shape: shape.to_vec(), ..self.clone() })
    }

    /// Rows `start..start + len` of the leading axis; free.
    ///
    /// # Errors
    /// If the range leaves the axis, or there is none.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        match self.shape.first() {
            Some(&n) if start + len <= n => {
                let row: usize = self.shape[1..].iter().product();
                let mut shape = self.shape.clone();
                shape[0] = len;
                Ok(Tensor { shape, offset: self.offset + start * row, ..self.clone() })
            }
            _ => Err(Error::shape("narrow", format!("rows {start}..{}", start + len), &self.shape)),
        }
    }

    /// The leading axes of several tensors of one dtype joined into one.
    ///
    /// # Errors
    /// If the other axes or the dtypes differ, or the list is empty.
    pub fn cat(parts: &[&Tensor]) -> Result<Self> {
        let Some(first) = parts.first() else {
            return Err(Error::shape("cat", "at least one tensor", &[]));
        };
        let rows = parts.iter().map(|p| p.shape.first().copied().unwrap_or(0)).sum();
        for p in parts {
            if p.shape.get(1..) != first.shape.get(1..) || p.shape.is_empty() {
                let expected = format!("axes {:?} after the first", &first.shape.get(1..));
                return Err(Error::shape("cat", expected, &p.shape));
            }
        }
        let mut shape = first.shape.clone();
        shape[0] = rows;
        dispatch_float!("cat", first.dtype, T => {
            let slices = parts.iter().map(|p| p.as_slice::<T>()).collect::<Result<Vec<_>>>()?;
            Ok(Self::from_vec(slices.concat(), &shape)?)
        })
    }

    /// The elements converted to `dtype`, rounding to nearest even; free if nothing changes.
    pub fn to_dtype(&self, dtype: DType) -> Self {
        if dtype == self.dtype {
            return self.clone();
        }
        match (self.dtype, dtype) {
            (DType::F32, DType::F64) => self.convert::<f32, f64>(|x| x as f64),
            (DType::F64, DType::F32) => self.convert::<f64, f32>(|x| x as f32),
            (DType::Bf16, DType::F32) => self.convert::<bf16, f32>(bf16::to_f32),
            (DType::Bf16, _) => self.convert::<bf16, f64>(bf16::to_f64),
            (DType::F32, _) => self.convert::<f32, bf16>(bf16::from_f32),
            (DType::F64, _) => self.convert::<f64, bf16>(bf16::from_f64),
        }
    }

    fn convert<A: Element, B: Element>(&self, f: impl Fn(A) -> B + Sync) -> Self {
        let Storage::Cpu(storage) = &*self.storage;
        // The caller matched on the dtype, so the slice is there; an empty one would only follow a wrong match.
        let src = A::slice(storage).unwrap_or(&[]);
        let src = &src[self.offset..self.offset + self.len()];
        Self::cpu_with(&self.shape, |out: &mut [B]| {
            out.par_chunks_mut(PARALLEL_MIN).zip(src.par_chunks(PARALLEL_MIN)).for_each(|(o, s)| {
                o.iter_mut().zip(s).for_each(|(o, &s)| *o = f(s));
            });
        })
    }

    /// All elements widened to f64, on the host.
    pub fn to_vec_f64(&self) -> Vec<f64> {
        let wide = self.to_dtype(DType::F64);
        let Storage::Cpu(storage) = &*wide.storage;
        let all = f64::slice(storage).unwrap_or(&[]);
        all[wide.offset..wide.offset + wide.len()].to_vec()
    }
}
