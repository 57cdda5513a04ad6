//! NVIDIA GPUs: memory, kernels compiled at run time, matrix products, convolutions.
//!
//! Everything of CUDA is reached by dynamic loading, so that a program starts on a machine without a driver and uses a
//! GPU where there is one. A [`Gpu`] has one stream: work runs in the order in which it was asked for.
#![deny(missing_docs)]

mod buffer;
mod cache;
mod convolution;
mod device;
mod driver;
#[cfg(feature = "emulator")]
mod emulated;
#[cfg(feature = "emulator")]
mod emulator;
mod error;
mod kernel;
pub mod memory;
mod nvidia;
mod product;
pub mod profile;
mod tensor_map;

pub use buffer::Buffer;
pub use cache::cache_problem;
pub use convolution::Convolution;
#[cfg(feature = "emulator")]
pub use device::EMULATED;
pub use device::{Gpu, Properties};
pub use error::{Error, Result, Version};
pub use kernel::{Launch, Source, Variant};
pub use nvidia::{Compiled, compile_for};
pub use product::{Element, Operand, Product};
pub use tensor_map::{TensorMap, Tiling};
