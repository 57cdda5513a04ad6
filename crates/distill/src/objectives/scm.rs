//! Continuous-time consistency (sCM, Lu and Song, arXiv 2410.11081; rCM, Section 3).

use fewstep_diffusion::TrigTime;
use fewstep_tensor::{Result, Tensor, arith};

use super::{Loss, non_finite_samples, sin_cos, squared, without};

/// c of the tangent normalisation g/(‖g‖ + c).
///
/// Differs from rCM as printed, g/(‖g‖² + c): its author confirms a misprint, and the reference code has this form.
const NORMALISATION: f64 = 0.1;

/// What the sCM loss is a function of.
#[derive(Clone, Copy, Debug)]
pub struct ScmTerms<'a> {
    /// The state x_t.
    pub x_t: &'a Tensor,
    /// Its times.
    pub t: &'a [TrigTime],
    /// The student's F_θ(x_t, t).
    pub f_theta: &'a Tensor,
    /// The teacher's guided F.
    pub f_teacher: &'a Tensor,
    /// J = cos t·sin t·dF_θ⁻/dt along the teacher's trajectory.
    pub f_dot: &'a Tensor,
    /// r ∈ [0, 1] of the tangent warmup; 1 without.
    pub warmup: f64,
    /// Factor of the summed square.
    pub scale: f64,
}

/// The sCM loss with its tangent.
#[derive(Clone, Debug)]
pub struct Scm {
    /// Loss and cotangent.
    pub loss: Loss,
    /// ‖g‖ before normalisation, a sample.
    pub tangent_norm: Vec<f64>,
}

/// L = scale·Σ(F_θ − F_θ⁻ − ĝ)², ĝ = g/(‖g‖ + c),
/// g = −cos t·√(1 − r² sin² t)·(F_θ⁻ − F_teacher) − (r·cos t·sin t·x_t + J).
///
/// At r = 1, g = cos t·df_θ/dt. As F_θ⁻ is F_θ held constant, L's value is scale·‖ĝ‖², near `scale` whatever the
/// progress; its gradient is what counts.
///
/// # Errors
/// If shapes differ.
pub fn scm(a: &ScmTerms) -> Result<Scm> {
    let excluded = non_finite_samples(&[a.f_theta, a.f_teacher, a.f_dot])?;
    let [f_theta, f_teacher, f_dot] = [a.f_theta, a.f_teacher, a.f_dot].map(|x| without(x, &excluded));
    let (sin, cos) = sin_cos(a.t);
    let r = a.warmup;
    let towards: Vec<f64> = sin.iter().zip(&cos).map(|(s, c)| c * (1.0 - r * r * s * s).max(0.0).sqrt()).collect();
    let away: Vec<f64> = towards.iter().map(|x| -x).collect();
    let on_x_t: Vec<f64> = sin.iter().zip(&cos).map(|(s, c)| -r * c * s).collect();
    let minus = vec![-1.0; a.t.len()];
    let terms = [
        (away.as_slice(), &f_theta?),
        (towards.as_slice(), &f_teacher?),
        (on_x_t.as_slice(), a.x_t),
        (minus.as_slice(), &f_dot?),
    ];
    let g = without(&arith::combine(&terms)?, &excluded)?;
    let tangent_norm: Vec<f64> =
        arith::sum_per_sample(&g, arith::Term::Square { by: 1.0 })?.into_iter().map(f64::sqrt).collect();
    // The residual F_θ − F_θ⁻ − ĝ is −ĝ in value, with derivative 1 by F_θ.
    let residual: Vec<f64> = tangent_norm.iter().map(|n| -1.0 / (n + NORMALISATION)).collect();
    let loss = squared(&arith::scale(&residual, &g)?, a.scale, &vec![1.0; a.t.len()], excluded)?;
    Ok(Scm { loss, tangent_norm })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_with_nan_is_excluded_and_leaves_no_trace_in_the_gradient() {
        let x = |v: Vec<f64>| Tensor::from_vec(v, &[2, 1, 1, 1, 2]).unwrap();
        let (x_t, good) = (x(vec![1.0, -1.0, 0.5, 2.0]), x(vec![0.1, 0.2, 0.3, 0.4]));
        let bad = x(vec![0.0, f64::NAN, 0.1, 0.2]);
        let t = [TrigTime::new(0.5).unwrap(), TrigTime::new(1.0).unwrap()];
        let terms =
            ScmTerms { x_t: &x_t, t: &t, f_theta: &good, f_teacher: &good, f_dot: &bad, warmup: 1.0, scale: 100.0 };
        let out = scm(&terms).unwrap();
        assert_eq!(out.loss.excluded, [super::super::Excluded { sample: 0, count: 1 }]);
        let f_bar = out.loss.f_bar.to_vec_f64();
        assert_eq!(f_bar[..2], [0.0, 0.0]);
        assert!(f_bar[2..].iter().all(|v| v.is_finite() && *v != 0.0));
        assert_eq!(out.loss.per_sample[0], 0.0);
    }
}
