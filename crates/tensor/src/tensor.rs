use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use crate::cuda::CudaStorage;
use crate::dtype::{DType, Device, Element, nearest_bf16};
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
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(b)) => b.is_mapped(),
            Storage::Cpu(CpuStorage::F64(b)) => b.is_mapped(),
            Storage::Cpu(CpuStorage::Bf16(b)) => b.is_mapped(),
            Storage::Cuda(_) => false,
        }
    }

    /// A host tensor whose elements `fill` writes, every one of them (the slice arrives with stale contents).
    pub fn cpu_with<T: Element>(shape: &[usize], fill: impl FnOnce(&mut [T])) -> Self {
        let mut buffer = Buffer::scratch(shape.iter().product());
        fill(buffer.as_mut_slice());
        Self::from_buffer(buffer, shape)
    }

    /// All elements equal to `value`, rounded to the dtype. Where a GPU has no memory for them, the first use says so.
    pub fn full(shape: &[usize], value: f64, dtype: DType, device: Device) -> Self {
        match (device, dtype) {
            (Device::Cuda(ordinal), _) => {
                Self::on_cuda(crate::cuda::full(shape, value, dtype, ordinal), shape, dtype, ordinal)
            }
            (Device::Cpu, DType::F32) => Self::cpu_with(shape, |o: &mut [f32]| o.fill(value as f32)),
            (Device::Cpu, DType::F64) => Self::cpu_with(shape, |o: &mut [f64]| o.fill(value)),
            (Device::Cpu, DType::Bf16) => Self::cpu_with(shape, |o: &mut [bf16]| o.fill(nearest_bf16(value))),
        }
    }

    /// Unspecified elements, for a kernel to write.
    ///
    /// # Errors
    /// If a GPU has no memory for them.
    pub fn empty(shape: &[usize], dtype: DType, device: Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::full(shape, 0.0, dtype, device)),
            Device::Cuda(ordinal) => {
                Ok(Self::from_cuda(CudaStorage::new(ordinal, dtype, shape.iter().product())?, shape, dtype))
            }
        }
    }

    pub(crate) fn from_cuda(storage: CudaStorage, shape: &[usize], dtype: DType) -> Self {
        Tensor { storage: Arc::new(Storage::Cuda(storage)), dtype, shape: shape.to_vec(), offset: 0 }
    }

    /// A tensor of a device, or one that gives the error at its first use.
    fn on_cuda(made: Result<Self>, shape: &[usize], dtype: DType, ordinal: usize) -> Self {
        made.unwrap_or_else(|e| Self::from_cuda(CudaStorage::failed(ordinal, shape.iter().product(), e), shape, dtype))
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
            Storage::Cuda(storage) => Device::Cuda(storage.ordinal()),
        }
    }

    /// The extent of the last axis (1 for a scalar).
    pub fn last_dim(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn host(&self, op: &'static str) -> Result<&CpuStorage> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(storage),
            Storage::Cuda(_) => Err(Error::Device { op, expected: Device::Cpu, got: self.device() }),
        }
    }

    /// The GPU's memory that holds the elements, and the first one's place in it.
    pub(crate) fn cuda(&self, op: &'static str) -> Result<(&CudaStorage, usize)> {
        match &*self.storage {
            Storage::Cuda(storage) => Ok((storage, self.offset)),
            Storage::Cpu(_) => Err(Error::Device { op, expected: Device::Cuda(0), got: Device::Cpu }),
        }
    }

    /// The elements in row-major order, on the host.
    ///
    /// # Errors
    /// If the element type is another one, or the elements are on a GPU.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        let storage = self.host("as_slice")?;
        let wrong = Error::DType { op: "as_slice", expected: T::DTYPE, got: self.dtype };
        let all = T::slice(storage).ok_or(wrong)?;
        Ok(&all[self.offset..self.offset + self.len()])
    }

    /// The elements to write in place: copied first if another tensor shares them.
    ///
    /// # Errors
    /// If the element type is another one.
    pub fn make_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.make_unique()?;
        let (dtype, offset, len, got) = (self.dtype, self.offset, self.len(), self.device());
        let elsewhere = Error::Device { op: "make_mut", expected: Device::Cpu, got };
        let Some(Storage::Cpu(storage)) = Arc::get_mut(&mut self.storage) else { return Err(elsewhere) };
        let wrong = Error::DType { op: "make_mut", expected: T::DTYPE, got: dtype };
        Ok(&mut T::slice_mut(storage).ok_or(wrong)?[offset..offset + len])
    }

    /// Makes sure that no other tensor shares the elements, so that they can be written in place: copied first if one does.
    ///
    /// # Errors
    /// If a GPU has no memory for the copy.
    pub fn make_unique(&mut self) -> Result<()> {
        if self.storage_len() == self.len() && Arc::strong_count(&self.storage) == 1 {
            return Ok(());
        }
        *self = match &*self.storage {
            Storage::Cpu(CpuStorage::F32(_)) => self.host_copy::<f32>()?,
            Storage::Cpu(CpuStorage::F64(_)) => self.host_copy::<f64>()?,
            Storage::Cpu(CpuStorage::Bf16(_)) => self.host_copy::<bf16>()?,
            Storage::Cuda(_) => crate::cuda::copy(self)?,
        };
        Ok(())
    }

    /// Sets rows `start..start + len` of the leading axis to zero, in place where the tensor is not shared.
    ///
    /// # Errors
    /// If the range leaves the axis, or there is none.
    pub fn zero_rows(&mut self, start: usize, len: usize) -> Result<()> {
        let row = self.narrow(start, len)?.len() / len.max(1);
        let range = start * row..(start + len) * row;
        match (self.device(), self.dtype) {
            (Device::Cpu, DType::F32) => self.make_mut::<f32>()?[range].fill(0.0),
            (Device::Cpu, DType::F64) => self.make_mut::<f64>()?[range].fill(0.0),
            (Device::Cpu, DType::Bf16) => self.make_mut::<bf16>()?[range].fill(bf16::ZERO),
            (Device::Cuda(_), _) => {
                self.make_unique()?;
                crate::cuda::zero(self, range.start, range.len())?;
            }
        }
        Ok(())
    }

    fn host_copy<T: Element>(&self) -> Result<Self> {
        let from = self.as_slice::<T>()?;
        Ok(Self::cpu_with(&self.shape, |o: &mut [T]| o.copy_from_slice(from)))
    }

    fn storage_len(&self) -> usize {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(b)) => b.as_slice().len(),
            Storage::Cpu(CpuStorage::F64(b)) => b.as_slice().len(),
            Storage::Cpu(CpuStorage::Bf16(b)) => b.as_slice().len(),
            Storage::Cuda(storage) => storage.len(),
        }
    }

    /// The same elements on a device; free where they are there.
    ///
    /// # Errors
    /// If a GPU cannot be opened, has no memory for them, or a copy fails.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        match (self.device(), device) {
            (from, to) if from == to => Ok(self.clone()),
            (Device::Cpu, Device::Cuda(ordinal)) => crate::cuda::upload(self, ordinal),
            (_, Device::Cpu) => crate::cuda::download(self),
            (Device::Cuda(_), Device::Cuda(_)) => self.to_device(Device::Cpu)?.to_device(device),
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
        if first.device() != Device::Cpu {
            return crate::cuda::cat(parts, &shape);
        }
        dispatch_float!("cat", first.dtype, T => {
            let slices = parts.iter().map(|p| p.as_slice::<T>()).collect::<Result<Vec<_>>>()?;
            Ok(Self::from_vec(slices.concat(), &shape)?)
        })
    }

    /// The elements converted to `dtype`, rounding to nearest even; free if nothing changes. Where a GPU has no memory for
    /// them, the first use says so.
    pub fn to_dtype(&self, dtype: DType) -> Self {
        if dtype == self.dtype {
            return self.clone();
        }
        if let Device::Cuda(ordinal) = self.device() {
            return Self::on_cuda(crate::cuda::convert(self, dtype), &self.shape, dtype, ordinal);
        }
        match (self.dtype, dtype) {
            (DType::F32, DType::F64) => self.convert::<f32, f64>(|x| x as f64),
            (DType::F64, DType::F32) => self.convert::<f64, f32>(|x| x as f32),
            (DType::Bf16, DType::F32) => self.convert::<bf16, f32>(bf16::to_f32),
            (DType::Bf16, _) => self.convert::<bf16, f64>(bf16::to_f64),
            (DType::F32, _) => self.convert::<f32, bf16>(bf16::from_f32),
            (DType::F64, _) => self.convert::<f64, bf16>(nearest_bf16),
        }
    }

    fn convert<A: Element, B: Element>(&self, f: impl Fn(A) -> B + Sync) -> Self {
        // The caller matched on device and dtype, so the slice is there; an empty one would only follow a wrong match.
        let src = self.as_slice::<A>().unwrap_or(&[]);
        Self::cpu_with(&self.shape, |out: &mut [B]| {
            out.par_chunks_mut(PARALLEL_MIN).zip(src.par_chunks(PARALLEL_MIN)).for_each(|(o, s)| {
                o.iter_mut().zip(s).for_each(|(o, &s)| *o = f(s));
            });
        })
    }

    /// All elements widened to f64, on the host; NaN where a GPU does not give them, which the next operation there tells.
    pub fn to_vec_f64(&self) -> Vec<f64> {
        let wide = self.to_device(Device::Cpu).map(|t| t.to_dtype(DType::F64));
        wide.and_then(|t| t.as_slice::<f64>().map(<[f64]>::to_vec)).unwrap_or_else(|_| vec![f64::NAN; self.len()])
    }
}
