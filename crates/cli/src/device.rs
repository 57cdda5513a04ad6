//! The device that a command computes on.

use fewstep_ops::Compute;
use fewstep_tensor::Device;
use fewstep_tensor::cuda::gpu;

use crate::args::DeviceArg;
use crate::error::Result;
use crate::terminal::Progress;
use crate::{status, warning};

/// Opens a device and says which it is. On a GPU the kernels are made ready, which takes a while the first time.
///
/// # Errors
/// If it cannot be used; the message says what is missing and what to do.
pub fn open(device: DeviceArg) -> Result<Compute> {
    let compute = Compute::on(device.0);
    let Device::Cuda(_) = device.0 else { return Ok(compute) };
    let gpu = gpu(device.0)?;
    let properties = gpu.properties();
    status!("Device", "{}, {} GB, {}", properties.name, properties.memory / 1_000_000_000, compute.dtype);
    let mut progress = Progress::new("Compiling", 0);
    fewstep_ops::kernels::prepare(device.0, compute.dtype, |done, of| progress.set(done as u64, of as u64))?;
    drop(progress);
    if let Some(problem) = fewstep_tensor::cuda::cache_problem() {
        warning!("{problem}; every start compiles them again. Name a folder that can be written in FEWSTEP_CACHE");
    }
    Ok(compute)
}
