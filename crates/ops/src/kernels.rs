//! All CUDA sources of the ops, so that they can be made ready at once, and checked where there is no GPU.

use std::sync::Mutex;

use fewstep_tensor::cuda::{Source, gpu, kernel_sources};
use fewstep_tensor::{DType, Device};
use rayon::prelude::*;

use crate::{Result, linear};

/// A source as some op compiles it.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The source.
    pub source: Source,
    /// Its macros, in the order in which they are defined.
    pub defines: Vec<(String, String)>,
}

/// What networks that compute in a dtype use.
pub fn variants(dtype: DType) -> Vec<Variant> {
    let mut all = kernel_sources(dtype);
    all.extend([linear::SOURCE].map(|source| (source, dtype)));
    all.into_iter().map(|(source, dtype)| Variant { source, defines: vec![fewstep_tensor::cuda::element(dtype)] }).collect()
}

/// Compiles what networks that compute in a dtype use, several at a time; `progress` is told how many of how many are done.
///
/// # Errors
/// If one does not compile, which is a defect.
pub fn prepare(device: Device, dtype: DType, progress: impl FnMut(usize, usize) + Send) -> Result<()> {
    let (gpu, all) = (gpu(device)?, variants(dtype));
    let state = Mutex::new((0, progress));
    all.par_iter().try_for_each(|v| {
        gpu.prepare(&v.source, &v.defines).map_err(fewstep_tensor::Error::from)?;
        let mut state = state.lock().unwrap_or_else(|e| e.into_inner());
        state.0 += 1;
        let done = state.0;
        (state.1)(done, all.len());
        Ok(())
    })
}
