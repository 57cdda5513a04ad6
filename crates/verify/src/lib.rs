//! Proofs that a device computes what it must.
//!
//! | module | holds |
//! |---|---|
//! | [`ops`] | every op, in all its kinds and at sizes that reach every kernel, by the suite of `fewstep-ops` |
//! | [`fixtures`] | the published implementations' own numbers: networks, tangents, gradients, losses |
//! | [`numbers`] | random numbers, conversions, sums, and a step of the optimiser |
//! | [`rounding`] | how far bf16 may be off: networks whose ops round on the host what bf16 ops round |
//!
//! A [`Check`] proves one thing in each dtype that the device computes in, and says how near it came to its bound.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod check;
mod error;
pub mod fixtures;
pub mod numbers;
pub mod ops;
pub mod rounding;

use std::path::Path;

use fewstep_tensor::{DType, Device};

pub use check::{Check, Row};
pub use error::{Error, Result};

/// The dtypes that a device computes in.
pub fn dtypes(device: Device) -> &'static [DType] {
    match device {
        Device::Cpu => &[DType::F64, DType::F32],
        Device::Cuda(_) => &[DType::F64, DType::F32, DType::Bf16],
    }
}

/// Every check of a device; those of fixtures where their folder is given.
///
/// # Errors
/// If a fixture cannot be read.
pub fn checks(device: Device, fixtures: Option<&Path>) -> Result<Vec<Check>> {
    let mut all = ops::checks(device);
    all.extend(numbers::checks(device));
    if let Some(folder) = fixtures {
        all.extend(fixtures::checks(device, folder)?);
    }
    Ok(all)
}
