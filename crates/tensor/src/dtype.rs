use half::bf16;
use std::fmt;

use crate::storage::{Buffer, CpuStorage};

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision: the compute type on CPUs, and of masters and statistics everywhere.
    F32,
    /// IEEE double precision: proofs, preconditioning coefficients and loss arithmetic.
    F64,
    /// bfloat16: the compute type on GPUs, a storage type on CPUs.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F64 => 8,
            DType::Bf16 => 2,
        }
    }

    /// The dtype that elements of this one are computed in, and that statistics, modulation and gradients of parameters have
    /// beside them: f32 for bf16, otherwise the same.
    pub fn wide(self) -> DType {
        if self == DType::Bf16 { DType::F32 } else { self }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::Bf16 => "bf16",
        })
    }
}

/// Where a tensor lives.
///
/// Every operation matches on this: a back end is an arm and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// Host memory, computed on by the process's threads.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by the driver's number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// An element that CPU storage can hold.
pub trait Element: bytemuck::Pod + Default + Send + Sync + fmt::Debug + PartialEq + 'static {
    /// The dtype of this element.
    const DTYPE: DType;
    /// Widens to f64; exact.
    fn to_f64(self) -> f64;
    /// Rounds from f64 to nearest even.
    fn from_f64(x: f64) -> Self;
    /// The slice of a storage of this type.
    fn slice(storage: &CpuStorage) -> Option<&[Self]>;
    /// The mutable slice of a storage of this type.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
    /// Wraps a buffer as a storage.
    fn store(buffer: Buffer<Self>) -> CpuStorage;
}

macro_rules! element {
    ($t:ty, $variant:ident, $dtype:ident, $to:expr, $from:expr) => {
        impl Element for $t {
            const DTYPE: DType = DType::$dtype;
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to(self)
            }
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                $from(x)
            }
            fn slice(storage: &CpuStorage) -> Option<&[Self]> {
                match storage {
                    CpuStorage::$variant(b) => Some(b.as_slice()),
                    _ => None,
                }
            }
            fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(b) => Some(b.as_mut_slice()),
                    _ => None,
                }
            }
            fn store(buffer: Buffer<Self>) -> CpuStorage {
                CpuStorage::$variant(buffer)
            }
        }
    };
}

element!(f32, F32, F32, |x: f32| x as f64, |x: f64| x as f32);
element!(f64, F64, F64, |x: f64| x, |x: f64| x);
element!(bf16, Bf16, Bf16, |x: bf16| x.to_f64(), nearest_bf16);

/// The nearest bf16, ties to even; `bf16::from_f64` sees the first 32 bits of a double alone, and takes for a tie what is none.
pub(crate) fn nearest_bf16(x: f64) -> bf16 {
    let near = x as f32;
    if f64::from(near) == x || x.is_nan() {
        return bf16::from_f32(near);
    }
    // The float toward zero with its last bit set rounds as x would.
    let away = f64::from(near).abs() > x.abs();
    bf16::from_f32(f32::from_bits((near.to_bits() - u32::from(away)) | 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_rounded_once_to_the_nearest_bf16() {
        let (step, little) = (2f64.powi(-7), 2f64.powi(-40));
        for sign in [1.0, -1.0] {
            let rounded = |x: f64| nearest_bf16(sign * x).to_f64() * sign;
            assert_eq!([1.0 + step / 2.0, 1.0 + 1.5 * step].map(rounded), [1.0, 1.0 + 2.0 * step], "ties to even");
            assert_eq!(rounded(1.0 + step / 2.0 + little), 1.0 + step, "just above a tie");
            assert_eq!(rounded(1.0 + 1.5 * step - little), 1.0 + step, "just below a tie");
            assert_eq!([f64::MAX, 0.0, f64::MIN_POSITIVE].map(rounded), [f64::INFINITY, 0.0, 0.0]);
            assert_eq!(rounded(2f64.powi(-133)), 2f64.powi(-133), "subnormal");
        }
        assert!(nearest_bf16(f64::NAN).is_nan());
    }
}
