//! Products summed over each sample, in f64 and in element order.

use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use rayon::prelude::*;

use crate::Result;

/// Σ a·b over each sample, [B] f64.
pub(super) fn dot_per_sample<T: Real>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let samples = a.shape()[0];
    let row = a.len() / samples.max(1);
    let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    let sum = |s: usize| -> f64 {
        let range = s * row..(s + 1) * row;
        a[range.clone()].iter().zip(&b[range]).map(|(a, b)| a.to_f64() * b.to_f64()).sum()
    };
    Ok(Tensor::from_vec((0..samples).into_par_iter().map(sum).collect::<Vec<f64>>(), &[samples])?)
}
