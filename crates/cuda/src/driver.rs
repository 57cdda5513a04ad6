//! What a device must be able to do: the real one through NVIDIA's driver, or a stand-in on the host.

use std::ffi::c_void;
use std::fmt::Debug;
use std::sync::Arc;

use crate::convolution::Convolution;
use crate::product::Product;
use crate::tensor_map::{TensorMap, Tiling};
use crate::{Properties, Result};

/// A refusal to allocate: no memory, or another error.
pub(crate) enum Refusal {
    Full,
    Error(crate::Error),
}

/// A device with one stream. Addresses are the device's.
pub(crate) trait Driver: Send + Sync + Debug {
    fn properties(&self) -> &Properties;
    /// What it runs on, with versions.
    fn software(&self) -> String;
    fn alloc(&self, bytes: usize) -> std::result::Result<u64, Refusal>;
    fn free(&self, address: u64);
    fn upload(&self, to: u64, from: &[u8]) -> Result<()>;
    fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    fn zero(&self, to: u64, bytes: usize) -> Result<()>;
    fn synchronize(&self) -> Result<()>;
    /// Compiles a source, or finds it compiled.
    fn load(&self, name: &str, text: &str, defines: &[(String, String)]) -> Result<Arc<dyn Module>>;
    fn multiply(&self, product: &Product) -> Result<()>;
    /// Whether products that come for the first time are timed in several ways, and the fastest is kept.
    fn tune(&self, on: bool);
    /// Whether `convolve` computes this shape: not without a library, nor where that refuses.
    fn convolves(&self, convolution: &Convolution) -> Result<bool>;
    /// Y (+)= W∗X of a shape that `convolves` takes, by the addresses of X, W and Y.
    fn convolve(&self, convolution: &Convolution, addresses: [u64; 3]) -> Result<()>;
    fn tensor_map(&self, tiling: &Tiling) -> Result<TensorMap>;
    /// A mark in the order of the work.
    fn mark(&self) -> Result<u64>;
    /// Milliseconds from one mark to another, when the work up to both is done; both are used up.
    fn between(&self, marks: [u64; 2]) -> Result<f64>;
}

/// A compiled source.
pub(crate) trait Module: Send + Sync {
    /// Starts a kernel: `args` point to the values of its parameters.
    fn launch(&self, kernel: &str, grid: [u32; 3], threads: u32, shared: usize, args: &mut [*mut c_void])
    -> Result<()>;
}
