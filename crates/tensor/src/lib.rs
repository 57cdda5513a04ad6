//! Dense tensors on a device, their memory, matrix products and counter-based random numbers.
//!
//! A [`Tensor`] is shared, contiguous and row-major. f32 and f64 are compute types, bf16 a storage type.
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod arith;
pub mod cuda;
mod dtype;
mod error;
pub mod file;
pub mod gemm;
mod map;
pub mod math;
pub mod random;
mod storage;
mod stored;
mod tensor;

pub use dtype::{DType, Device, Element};
pub use error::{Error, Result};
pub use half::bf16;
pub use map::{FileMap, mapped_bytes};
pub use storage::{Buffer, CpuStorage, keep_freed_memory, memory, reset_peak};
pub use stored::{FileBytes, Stored};
pub use tensor::{PARALLEL_MIN, Tensor};
