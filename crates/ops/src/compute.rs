//! Where networks compute, and in what.

use fewstep_tensor::cuda::gpu;
use fewstep_tensor::cuda::memory::Usage;
use fewstep_tensor::{DType, Device, Tensor};

use crate::{Conditions, Params, Result};

/// A device, and the dtype of activations there: f32 on a CPU, bf16 on a GPU. f64 is for proofs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// The device.
    pub device: Device,
    /// The dtype of activations, and of the weights of matrices.
    pub dtype: DType,
}

impl Compute {
    /// What serves on a device.
    pub fn on(device: Device) -> Self {
        let dtype = if device == Device::Cpu { DType::F32 } else { DType::Bf16 };
        Compute { device, dtype }
    }

    /// Weights that are trained, or their average, as a network computes with them. A CPU computes with the masters.
    ///
    /// # Errors
    /// If a GPU has no memory for them.
    pub fn weights(&self, params: &Params) -> Result<Params> {
        match self.device {
            Device::Cpu => Ok(params.clone()),
            Device::Cuda(_) => Ok(params.to(self.device, self.dtype)?),
        }
    }

    /// Conditions as a network takes them.
    ///
    /// # Errors
    /// If a GPU has no memory for them.
    pub fn conditions(&self, conditions: &Conditions) -> Result<Conditions> {
        conditions.to(self.device, self.dtype)
    }

    /// The most memory of a GPU in use since it was last asked, by kind; starts anew. A CPU tells nothing here.
    ///
    /// # Errors
    /// If the GPU cannot be opened.
    pub fn take_peak(&self) -> Result<Option<Usage>> {
        let Device::Cuda(_) = self.device else { return Ok(None) };
        let gpu = gpu(self.device)?;
        let usage = gpu.usage();
        gpu.reset_peak();
        Ok(Some(usage))
    }

    /// A state: f64, on the device.
    ///
    /// # Errors
    /// If a GPU has no memory for it.
    pub fn state(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.to_device(self.device)?.to_dtype(DType::F64))
    }
}
