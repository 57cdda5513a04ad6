//! Whether the forward-mode tangent of a preconditioned network is its derivative: a check for any weights and input.

use std::fmt;

use fewstep_diffusion::{Predictor, TrigTime};
use fewstep_ops::{Conditions, Network, Params};
use fewstep_tensor::{DType, Tensor, arith};

use crate::Result;

/// Times of the check: near the clean end, in the middle, near pure noise.
const TIMES: [f64; 5] = [0.02, 0.3, 0.8, 1.3, 1.56];
/// Steps of the central differences; the best of them counts, as rounding spoils short ones and curvature long ones.
const STEPS: [f64; 4] = [3e-3, 1e-3, 1e-4, 1e-5];
/// What the best difference in f64 may leave: fourth-order curvature at 1e-3, or rounding of 1e-16/1e-5.
const DOUBLE_TOLERANCE: f64 = 1e-5;
/// What rounding in the compute precision may make of a tangent.
const SINGLE_TOLERANCE: f64 = 1e-2;
/// The same in bf16: activations are rounded to 2⁻⁹ some dozens of times on the way; a wrong rule is off by the order of 1.
const HALF_TOLERANCE: f64 = 1e-1;
/// What the best difference in f32 may leave where f64 is beyond the budget: rounding of 1e-7·‖F‖ over h = 3e-3 leaves
/// 1e-4 of ‖dF/dt‖ in the middle of the trajectory and up to a hundred times that where dF/dt is small beside F.
const SINGLE_DIFFERENCE_TOLERANCE: f64 = 5e-2;
/// Bytes that a copy of the weights in f64 may take: enough for a network of 500 million parameters.
pub const F64_BUDGET_BYTES: usize = 4 << 30;

/// The check of one time in one precision.
#[derive(Clone, Debug)]
pub struct JvpRow {
    /// t.
    pub t: f64,
    /// The precision of the network.
    pub dtype: DType,
    /// ‖dF/dt‖ along the trajectory, per element.
    pub rms: f64,
    /// (h, ‖tangent − difference‖/‖tangent‖) for each step.
    pub differences: Vec<(f64, f64)>,
    /// ‖tangent − tangent in f64‖/‖tangent in f64‖, in a precision below.
    pub against_f64: Option<f64>,
}

impl JvpRow {
    /// The smallest error over the steps; NaN counts as infinite.
    pub fn best(&self) -> (f64, f64) {
        let finite = self.differences.iter().copied().filter(|(_, e)| e.is_finite());
        finite.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0.0, f64::INFINITY))
    }

    /// Whether the tangent is the derivative.
    pub fn ok(&self) -> bool {
        match self.against_f64 {
            Some(e) => e <= if self.dtype == DType::Bf16 { HALF_TOLERANCE } else { SINGLE_TOLERANCE },
            None if self.dtype == DType::F64 => self.best().1 <= DOUBLE_TOLERANCE,
            None => self.best().1 <= SINGLE_DIFFERENCE_TOLERANCE,
        }
    }
}

/// The checks of all times and precisions.
#[derive(Clone, Debug)]
pub struct JvpReport {
    /// One row a time and precision.
    pub rows: Vec<JvpRow>,
}

impl JvpReport {
    /// How many times were checked.
    pub fn times(&self) -> usize {
        TIMES.len()
    }

    /// Whether nothing could be checked.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether every row is right.
    pub fn ok(&self) -> bool {
        self.rows.iter().all(JvpRow::ok)
    }
}

impl fmt::Display for JvpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6}  {:<5}  {:>9}", "t", "in", "rms dF/dt")?;
        for h in STEPS {
            write!(f, "  {:>9}", format!("h={h:.0e}"))?;
        }
        writeln!(f, "  {:>9}  verdict", "to f64")?;
        for r in &self.rows {
            write!(f, "{:>6.3}  {:<5}  {:>9.3}", r.t, r.dtype.to_string(), r.rms)?;
            for (_, e) in &r.differences {
                write!(f, "  {e:>9.1e}")?;
            }
            let against = r.against_f64.map_or("–".to_string(), |e| format!("{e:.1e}"));
            writeln!(f, "  {against:>9}  {}", if r.ok() { "ok" } else { "WRONG" })?;
        }
        Ok(())
    }
}

/// The precision of a check.
#[derive(Clone, Copy, Debug)]
pub struct Precision {
    /// The dtype of activations in training.
    pub compute: DType,
    /// Bytes that a copy of the weights in f64 may take; beyond, the check is in the compute dtype alone.
    pub budget: usize,
}

impl Precision {
    /// A compute dtype with the usual budget.
    pub fn of(compute: DType) -> Self {
        Precision { compute, budget: F64_BUDGET_BYTES }
    }
}

/// Compares dF/dt along dx/dt = F by forward mode with central differences, in f64 and in the compute dtype.
///
/// A network whose weights in f64 would go beyond the budget is checked in the compute dtype alone. Differences in f32 are
/// rounded themselves, so that check is a coarse one: it finds a wrong rule (errors of the order of 1), not a lost digit.
/// Those in bf16 find nothing: beyond the budget a network in bf16 is not checked, and the report has no row.
///
/// `x` [B, C, F, H, W] is any state; the same is used at every time.
///
/// # Errors
/// If the input does not fit the network.
pub fn check_jvp<N: Network>(
    model: Predictor<'_, N>,
    x: &Tensor,
    conditions: &Conditions,
    Precision { compute, budget }: Precision,
) -> Result<JvpReport> {
    let fits = model.params.count().saturating_mul(DType::F64.size()) <= budget;
    let wide: Option<Params> = fits.then(|| model.params.to_dtype(DType::F64));
    let device = model.params.device();
    let (x, mut rows) = (x.to_device(device)?.to_dtype(DType::F64), Vec::new());
    for t in TIMES {
        let mut reference = None;
        if let Some(wide) = &wide {
            let double = Predictor { denoiser: model.denoiser, params: wide };
            let (row, tangent) = check_at(double, &x, t, &conditions.to(device, DType::F64)?)?;
            rows.push(row);
            reference = Some(tangent);
        }
        if (compute != DType::F64 || !fits) && (fits || compute != DType::Bf16) {
            let (mut row, tangent) = check_at(model, &x, t, &conditions.to(device, compute)?)?;
            row.dtype = compute;
            row.against_f64 = reference.map(|r| relative(&tangent, &r)).transpose()?;
            rows.push(row);
        }
    }
    Ok(JvpReport { rows })
}

fn check_at<N: Network>(m: Predictor<'_, N>, x: &Tensor, t: f64, c: &Conditions) -> Result<(JvpRow, Tensor)> {
    let b = x.shape()[0];
    let times = |t: f64| -> Result<Vec<TrigTime>> { Ok(vec![TrigTime::new(t)?; b]) };
    let x_dot = m.velocity(x, &times(t)?, c)?;
    let (_, tangent) = m.velocity_jvp((x, &x_dot), (&times(t)?, &vec![1.0; b]), c)?;
    let mut differences = Vec::new();
    for h in STEPS {
        let at = |h: f64| -> Result<Tensor> {
            let moved = arith::combine(&[(&vec![1.0; b], x), (&vec![h; b], &x_dot)])?;
            Ok(m.velocity(&moved, &times(t + h)?, c)?)
        };
        let (near, far) = (arith::sub(&at(h)?, &at(-h)?)?, arith::sub(&at(2.0 * h)?, &at(-2.0 * h)?)?);
        // Fourth order: (8·(f(h) − f(−h)) − (f(2h) − f(−2h)))/12h.
        let quotient = arith::combine(&[(&vec![8.0 / (12.0 * h); b], &near), (&vec![-1.0 / (12.0 * h); b], &far)])?;
        differences.push((h, relative(&quotient, &tangent)?));
    }
    let rms = (arith::sum_squares(&tangent)? / tangent.len() as f64).sqrt();
    Ok((JvpRow { t, dtype: DType::F64, rms, differences, against_f64: None }, tangent))
}

fn relative(got: &Tensor, want: &Tensor) -> Result<f64> {
    Ok((arith::sum_squares(&arith::sub(got, want)?)? / arith::sum_squares(want)?).sqrt())
}
