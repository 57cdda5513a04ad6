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
    pub excluded: Vec<Excluded>,
}

/// A sample that takes no part in a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excluded {
    /// Its place in the batch.
    pub sample: usize,
    /// How many values of its predictions are not finite.
    pub count: u64,
}

impl Loss {
    /// The losses of the samples that take part.
    pub fn included(&self) -> Vec<f64> {
        let is_in = |s: usize| self.excluded.iter().all(|e| e.sample != s);
        self.per_sample.iter().enumerate().filter(|(s, _)| is_in(*s)).map(|(_, &l)| l).collect()
    }
}

fn sin_cos(t: &[TrigTime]) -> (Vec<f64>, Vec<f64>) {
    t.iter().map(|t| t.sin_cos()).unzip()
}

/// Samples for which any of the tensors holds a value that is not finite.
fn non_finite_samples(tensors: &[&Tensor]) -> fewstep_tensor::Result<Vec<Excluded>> {
    let mut bad = std::collections::BTreeMap::new();
    for x in tensors {
        let counts = arith::sum_per_sample(x, |v| f64::from(u8::from(!v.is_finite())))?;
        for (sample, n) in counts.into_iter().enumerate().filter(|(_, n)| *n > 0.0) {
            *bad.entry(sample).or_insert(0) += n as u64;
        }
    }
    Ok(bad.into_iter().map(|(sample, count)| Excluded { sample, count }).collect())
}

/// The tensor with whole samples set to zero: excluded before any arithmetic, so that no NaN reaches a gradient.
fn without(x: &Tensor, samples: &[Excluded]) -> fewstep_tensor::Result<Tensor> {
    let mut x = x.clone();
    for e in samples {
        x.zero_rows(e.sample, 1)?;
    }
    Ok(x)
}

/// `scale`·Σd² a sample, and the cotangent `scale`·2·d·∂(residual)/∂F for a residual whose derivative by F is `slope`.
fn squared(d: &Tensor, scale: f64, slope: &[f64], excluded: Vec<Excluded>) -> fewstep_tensor::Result<Loss> {
    let per_sample = arith::sum_per_sample(d, |v| scale * v * v)?;
    let factors: Vec<f64> = slope.iter().map(|s| 2.0 * scale * s).collect();
    Ok(Loss { per_sample, f_bar: arith::scale(&factors, d)?, excluded })
}
