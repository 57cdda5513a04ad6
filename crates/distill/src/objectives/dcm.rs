//! Discrete-time consistency.

use fewstep_diffusion::{TrigTime, clean};
use fewstep_tensor::{Tensor, arith};

use super::{Loss, non_finite_samples, sin_cos, squared, without};
use crate::Result;

/// What the dCM loss is a function of.
#[derive(Clone, Copy, Debug)]
pub struct DcmTerms<'a> {
    /// The state x_{t_0} from data.
    pub x_t: &'a Tensor,
    /// The times t_0.
    pub t: &'a [TrigTime],
    /// The student's F_θ(x_{t_0}, t_0).
    pub f_theta: &'a Tensor,
    /// The student's own x_0 from the later point of the teacher's trajectory, f_θ⁻(x_{t_k}, t_k), held constant.
    pub target: &'a Tensor,
    /// Factor of the summed square.
    pub scale: f64,
}

/// L = scale·Σ(f_θ(x_{t_0}, t_0) − f_θ⁻(x_{t_k}, t_k))², f_θ = cos t·x_t − sin t·F_θ.
///
/// # Errors
/// If shapes differ.
pub fn dcm(a: &DcmTerms) -> Result<Loss> {
    let excluded = non_finite_samples(&[a.f_theta, a.target])?;
    let x_0 = clean(a.x_t, a.f_theta, a.t)?;
    let difference = without(&arith::sub(&x_0, a.target)?, &excluded)?;
    let slope: Vec<f64> = sin_cos(a.t).0.iter().map(|s| -s).collect();
    Ok(squared(&difference, a.scale, &slope, excluded)?)
}
