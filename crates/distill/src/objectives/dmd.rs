//! Distribution matching (DMD, Yin et al., arXiv 2311.18828; rCM, Eq. 6).

use fewstep_diffusion::TrigTime;
use fewstep_tensor::{Result, Tensor, arith};

use super::{Loss, non_finite_samples, sin_cos, squared, without};

/// Floor of the normaliser mean|G − x_0^teacher|.
const WEIGHT_FLOOR: f64 = 1e-5;

/// What the DMD loss is a function of.
#[derive(Clone, Copy, Debug)]
pub struct DmdTerms<'a> {
    /// The student's sample G = cos t·x_t − sin t·F_θ of the last step of its simulation.
    pub sample: &'a Tensor,
    /// The time t of that step.
    pub t: &'a [TrigTime],
    /// x_0 that the fake score sees in the re-noised sample.
    pub x_0_fake: &'a Tensor,
    /// x_0 that the guided teacher sees in it.
    pub x_0_teacher: &'a Tensor,
    /// Factor of the summed square.
    pub scale: f64,
}

/// L = scale·Σ(G − sg(G − d))², d = (x_0^fake − x_0^teacher)/w, w = mean|G − x_0^teacher| a sample.
///
/// The value is scale·Σd²; the gradient on G is 2·scale·d.
///
/// Differs from the reference, which zeroes a sample's loss after squaring and leaves 0·NaN in its gradient: here such a
/// sample is excluded before.
///
/// # Errors
/// If shapes differ.
pub fn dmd(a: &DmdTerms) -> Result<Loss> {
    let excluded = non_finite_samples(&[a.sample, a.x_0_fake, a.x_0_teacher])?;
    let row = (a.sample.len() / a.t.len().max(1)) as f64;
    let gap = without(&arith::sub(a.sample, a.x_0_teacher)?, &excluded)?;
    let sums = arith::sum_per_sample(&gap, arith::Term::Magnitude)?;
    let inverse: Vec<f64> = sums.into_iter().map(|sum| 1.0 / (sum / row).max(WEIGHT_FLOOR)).collect();
    let difference = without(&arith::sub(a.x_0_fake, a.x_0_teacher)?, &excluded)?;
    let slope: Vec<f64> = sin_cos(a.t).0.iter().map(|s| -s).collect();
    squared(&arith::scale(&inverse, &difference)?, a.scale, &slope, excluded)
}
