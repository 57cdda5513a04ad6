//! Objectives as pure functions: predictions, noise and times in; per-sample loss and cotangent of F_θ out.
//!
//! No randomness, no collectives, no logging. Arithmetic is f64; states and predictions are [B, C, F, H, W].

mod critic;
mod dcm;
mod dmd;
mod scm;

pub use critic::{CriticTerms, critic};
pub use dcm::{DcmTerms, dcm};
pub use dmd::{DmdTerms, dmd};
pub use scm::{Scm, ScmTerms, scm};

use fewstep_diffusion::TrigTime;
use fewstep_tensor::{Tensor, arith};

/// A per-sample loss and the cotangent of its sum on the trained network's F_θ.
#[derive(Clone, Debug)]
pub struct Loss {
    /// L for each sample; 0 where the sample is excluded.
    pub per_sample: Vec<f64>,
    /// ∂ΣL/∂F_θ, f64.
    pub f_bar: Tensor,
    /// Samples excluded because a prediction was not finite.
    pub excluded: Vec<usize>,
}

fn sin_cos(t: &[TrigTime]) -> (Vec<f64>, Vec<f64>) {
    t.iter().map(|t| t.sin_cos()).unzip()
}

/// Samples for which any of the tensors holds a value that is not finite.
fn non_finite_samples(tensors: &[&Tensor]) -> fewstep_tensor::Result<Vec<usize>> {
    let mut bad = std::collections::BTreeSet::new();
    for x in tensors {
        let counts = arith::sum_per_sample(x, |v| f64::from(u8::from(!v.is_finite())))?;
        bad.extend(counts.iter().enumerate().filter(|(_, n)| **n > 0.0).map(|(i, _)| i));
    }
    Ok(bad.into_iter().collect())
}

/// The tensor with whole samples set to zero: excluded before any arithmetic, so that no NaN reaches a gradient.
fn without(x: &Tensor, samples: &[usize]) -> fewstep_tensor::Result<Tensor> {
    let mut x = x.clone();
    let row = x.len() / x.shape().first().copied().unwrap_or(1).max(1);
    for &s in samples {
        x.make_mut::<f64>()?[s * row..(s + 1) * row].fill(0.0);
    }
    Ok(x)
}

/// `scale`·Σd² a sample, and the cotangent `scale`·2·d·∂(residual)/∂F for a residual whose derivative by F is `slope`.
fn squared(d: &Tensor, scale: f64, slope: &[f64], excluded: Vec<usize>) -> fewstep_tensor::Result<Loss> {
    let per_sample = arith::sum_per_sample(d, |v| scale * v * v)?;
    let factors: Vec<f64> = slope.iter().map(|s| 2.0 * scale * s).collect();
    Ok(Loss { per_sample, f_bar: arith::scale(&factors, d)?, excluded })
}
