//! The fake score's own loss: denoising of the student's samples.

use fewstep_diffusion::TrigTime;
use fewstep_tensor::{Result, Tensor, arith};

use super::{Loss, non_finite_samples, sin_cos, squared, without};

/// What the critic loss is a function of.
#[derive(Clone, Copy, Debug)]
pub struct CriticTerms<'a> {
    /// The student's sample G, held constant.
    pub sample: &'a Tensor,
    /// The noise ε that re-noised it to x_t = cos t·G + sin t·ε.
    pub eps: &'a Tensor,
    /// The times t.
    pub t: &'a [TrigTime],
    /// The fake score's F(x_t, t).
    pub f_fake: &'a Tensor,
}

/// L = Σ(F_fake − v)², v = cos t·ε − sin t·G.
///
/// The reference writes Σ(G − x_0^fake)²/sin² t, which is the same away from t = 0 and 0/0 there.
///
/// # Errors
/// If shapes differ.
pub fn critic(a: &CriticTerms) -> Result<Loss> {
    let excluded = non_finite_samples(&[a.sample, a.f_fake])?;
    let (sin, cos) = sin_cos(a.t);
    let minus_cos: Vec<f64> = cos.iter().map(|c| -c).collect();
    let one = vec![1.0; a.t.len()];
    let (f_fake, sample) = (without(a.f_fake, &excluded)?, without(a.sample, &excluded)?);
    let residual = arith::combine(&[(&one, &f_fake), (&minus_cos, a.eps), (&sin, &sample)])?;
    squared(&without(&residual, &excluded)?, 1.0, &one, excluded)
}
