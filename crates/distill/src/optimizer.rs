//! AdamW with a linear warmup: f32 masters and moments, one fused pass a tensor, no silent repair of gradients.
//!
//! Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2; rCM, Table 4, and its reference code for the published settings.

use fewstep_tensor::cuda::memory::{Kind, counted_as};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::math::Real;
use fewstep_tensor::{Device, PARALLEL_MIN, Tensor, arith, dispatch_float};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::cuda::{Row, Rows};
use crate::ema::blend;
use crate::parameters::{check_alike, check_names, pack, unpack};
use crate::{Error, Result};

pub(crate) mod cuda;

/// Partial sums of the update norm that a piece keeps side by side, so that additions need not wait for one another.
const LANES: usize = 8;
/// The metadata key of an exported state that holds the number of steps taken.
const STEP_KEY: &str = "step";

/// The settings of [`AdamW`]; the defaults are the published ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// η after warmup.
    pub learning_rate: f64,
    /// β₁, β₂: the decay of the first and second moment.
    pub betas: [f64; 2],
    /// λ, decoupled: every parameter shrinks by η·λ of itself.
    pub weight_decay: f64,
    /// ε, added to the root of the second moment.
    pub eps: f64,
    /// Steps of this optimiser over which η rises.
    pub warmup_steps: u64,
    /// The factor on η at the first step.
    pub warmup_start: f64,
    /// The largest global gradient norm let through unscaled; none, as published, clips nothing.
    pub clip_norm: Option<f64>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        AdamWConfig {
            // The student of the 1.3B text-to-video model (rCM, Table 4).
            learning_rate: 2e-6,
            betas: [0.0, 0.999],
            weight_decay: 0.01,
            eps: 1e-8,
            warmup_steps: 100,
            warmup_start: 1e-6,
            clip_norm: None,
        }
    }
}

impl AdamWConfig {
    /// Checks every setting's range.
    ///
    /// # Errors
    /// Names the first setting outside its range.
    pub fn validate(&self) -> Result<()> {
        let (finite, positive) = (|x: f64| x.is_finite() && x >= 0.0, |x: f64| x.is_finite() && x > 0.0);
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let checks = [
            ("learning_rate", finite(self.learning_rate), "a finite number, 0 or more", self.learning_rate),
            ("betas[0]", unit(self.betas[0]), "a number from 0 up to but not 1", self.betas[0]),
            ("betas[1]", unit(self.betas[1]), "a number from 0 up to but not 1", self.betas[1]),
            ("weight_decay", finite(self.weight_decay), "a finite number, 0 or more", self.weight_decay),
            ("eps", positive(self.eps), "a finite number above 0", self.eps),
            ("warmup_start", (0.0..=1.0).contains(&self.warmup_start), "a number from 0 to 1", self.warmup_start),
            (
                "clip_norm",
                self.clip_norm.is_none_or(positive),
                "a finite number above 0",
                self.clip_norm.unwrap_or(0.0),
            ),
        ];
        match checks.into_iter().find(|c| !c.1) {
            Some((key, _, expected, got)) => Err(Error::Setting { key, expected, got: got.to_string() }),
            None => Ok(()),
        }
    }

    /// η at the step after `taken` steps: η·(a + (1 − a)·min(taken, W)/W) with a = `warmup_start`, W = `warmup_steps`;
    /// PyTorch's LinearLR in closed form, stepped after each update. W = 0 is no warmup.
    pub fn learning_rate_after(&self, taken: u64) -> f64 {
        if taken >= self.warmup_steps {
            return self.learning_rate;
        }
        let progress = taken as f64 / self.warmup_steps as f64;
        self.learning_rate * (self.warmup_start + (1.0 - self.warmup_start) * progress)
    }
}

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepStats {
    /// ‖g‖₂ over all gradients, before clipping; f64.
    pub grad_norm: f64,
    /// ‖θ' − θ‖₂ as the parameters' dtype kept it, weight decay included; f64.
    pub update_norm: f64,
    /// The learning rate of this step, `lr_scale` included.
    pub learning_rate: f64,
    /// The factor that clipping put on the gradients; 1 where it did nothing.
    pub clip_factor: f64,
}

/// Gradients that are not finite, or so large that their square is not and would stay in the second moment for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonFinite {
    /// How many elements, over all gradients, are NaN, infinite or have an infinite square in their dtype.
    pub count: u64,
    /// The first parameter that has one.
    pub name: String,
    /// Its place in the list of parameters.
    pub index: usize,
}

/// The outcome of [`AdamW::step`].
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum Step {
    /// The parameters moved.
    Taken(StepStats),
    /// Some gradient is unusable: parameters, moments and the step count are untouched.
    Skipped(NonFinite),
}

/// What follows the parameters of a step, in one pass with it on a GPU.
#[derive(Debug, Default)]
pub struct Followers<'a> {
    /// Averages of the parameters, and the rate r of e ← e + r·(θ' − e).
    pub average: Option<(&'a mut [Tensor], f64)>,
    /// Copies of some parameters in another dtype, in the parameters' order; none at all is an empty list.
    pub copies: Vec<Option<&'a mut Tensor>>,
}

/// AdamW over one network's parameters. At step k (from 1), with bias corrections cᵢ = 1 − βᵢᵏ:
///   m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  θ ← θ − η·(λθ + (m/c₁)/(√(v/c₂) + ε)).
///
/// Arithmetic is in the parameters' dtype (f32; f64 in proofs), coefficients in f64 and rounded once, norms in f64. With
/// β₁ = 0, as published, m is the gradient itself, so no first moment is kept: a third of the state.
///
/// Differs from PyTorch: decay and step are subtracted together. Apart, the factor 1 − ηλ of the published settings
/// (2e-8 below 1) rounds to 1 in f32, and the decay never happens.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    names: Vec<String>,
    taken: u64,
    /// Empty if β₁ = 0.
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
}

impl AdamW {
    /// Moments of zero for these parameters.
    ///
    /// # Errors
    /// If a setting is out of range, or the names do not belong to the parameters.
    pub fn new(config: AdamWConfig, names: &[String], params: &[Tensor]) -> Result<Self> {
        config.validate()?;
        check_names(names, params.len())?;
        let zero = |p: &Tensor| Tensor::zeros(p.shape(), p.dtype(), p.device());
        let zeros = || counted_as(Kind::Optimizer, || params.iter().map(zero).collect());
        let exp_avg = if config.betas[0] == 0.0 { Vec::new() } else { zeros() };
        Ok(AdamW { names: names.to_vec(), taken: 0, exp_avg, exp_avg_sq: zeros(), config })
    }

    /// The settings.
    pub fn config(&self) -> &AdamWConfig {
        &self.config
    }

    /// Updates taken so far; skipped ones do not count.
    pub fn steps_taken(&self) -> u64 {
        self.taken
    }

    /// One update, its learning rate multiplied by `lr_scale`.
    ///
    /// Sums run over fixed pieces in a fixed order: the result does not depend on the number of threads. On a GPU parameters
    /// and moments become the same bits as on a CPU, sums of squares are added in another order.
    ///
    /// # Errors
    /// If parameters or gradients differ from the optimiser's in number, shape or dtype. Gradients that are not finite
    /// are no error but [`Step::Skipped`].
    pub fn step(&mut self, params: &mut [Tensor], grads: &[Tensor], lr_scale: f64) -> Result<Step> {
        self.step_with(params, grads, lr_scale, Followers::default())
    }

    /// As [`AdamW::step`], with what follows the parameters. Of a skipped step nothing follows.
    ///
    /// # Errors
    /// As [`AdamW::step`], or if the followers differ from the parameters in number or shape. Where a GPU's memory runs out,
    /// it does before anything is written.
    pub fn step_with(
        &mut self,
        params: &mut [Tensor],
        grads: &[Tensor],
        lr_scale: f64,
        followers: Followers<'_>,
    ) -> Result<Step> {
        check_alike("parameter", &self.names, &self.exp_avg_sq, params)?;
        check_alike("gradient", &self.names, &self.exp_avg_sq, grads)?;
        followers.check(&self.names, params)?;
        let (squares, bad) = self.norms(grads)?;
        if let Some(bad) = bad {
            return Ok(Step::Skipped(bad));
        }
        let grad_norm = squares.iter().sum::<f64>().sqrt();
        // As PyTorch's clip_grad_norm_, whose 1e-6 keeps the quotient finite.
        let clip_factor = self.config.clip_norm.map_or(1.0, |max| (max / (grad_norm + 1e-6)).min(1.0));
        let learning_rate = self.config.learning_rate_after(self.taken) * lr_scale;
        let c = Coefficients::new(&self.config, self.taken + 1, learning_rate, clip_factor);
        let update_norm = self.update(params, grads, &c, followers)?.sqrt();
        self.taken += 1;
        Ok(Step::Taken(StepStats { grad_norm, update_norm, learning_rate, clip_factor }))
    }

    /// ‖g‖² of every gradient, and which elements are unusable, if some are.
    fn norms(&self, grads: &[Tensor]) -> Result<(Vec<f64>, Option<NonFinite>)> {
        if grads.first().is_none_or(|g| g.device() == Device::Cpu) {
            let squares = grads.iter().map(arith::sum_squares).collect::<fewstep_tensor::Result<Vec<_>>>()?;
            let bad = self.find_non_finite(grads, &squares)?;
            return Ok((squares, bad));
        }
        let rows: Vec<Row<'_>> = grads.iter().map(|g| Row { grad: Some(g), ..Row::default() }).collect();
        let (squares, unusable): (Vec<f64>, Vec<u64>) = Rows::new(&rows)?.norms()?.into_iter().unzip();
        let first = unusable.iter().position(|&n| n > 0);
        let bad = |index: usize| NonFinite { count: unusable.iter().sum(), name: self.names[index].clone(), index };
        Ok((squares, first.map(bad)))
    }

    /// Looks at the elements only of tensors whose ‖g‖² is large enough to hide one.
    fn find_non_finite(&self, grads: &[Tensor], squares: &[f64]) -> Result<Option<NonFinite>> {
        let mut found: Option<NonFinite> = None;
        for (index, (g, &square)) in grads.iter().zip(squares).enumerate() {
            if square <= f64::from(f32::MAX) {
                continue;
            }
            let count = dispatch_float!("adamw", g.dtype(), T => count_unusable::<T>(g))?;
            match &mut found {
                Some(found) => found.count += count,
                None if count > 0 => found = Some(NonFinite { count, name: self.names[index].clone(), index }),
                None => {}
            }
        }
        Ok(found)
    }

    /// Updates every tensor with what follows it and returns ‖θ' − θ‖².
    fn update(
        &mut self,
        params: &mut [Tensor],
        grads: &[Tensor],
        c: &Coefficients<f64>,
        followers: Followers<'_>,
    ) -> Result<f64> {
        if params.first().is_none_or(|p| p.device() == Device::Cpu) {
            let squares = self.update_on_host(params, grads, c)?;
            followers.follow(params)?;
            return Ok(squares);
        }
        let mut followers = followers;
        let written = params.iter_mut().chain(&mut self.exp_avg).chain(&mut self.exp_avg_sq);
        written.chain(followers.tensors()).try_for_each(Tensor::make_unique)?;
        let rate = followers.average.as_ref().map_or(1.0, |(_, rate)| *rate);
        let rows: Vec<Row<'_>> = (0..params.len())
            .map(|i| Row {
                param: Some(&params[i]),
                grad: Some(&grads[i]),
                exp_avg: self.exp_avg.get(i),
                exp_avg_sq: Some(&self.exp_avg_sq[i]),
                average: followers.average.as_ref().map(|(weights, _)| &weights[i]),
                copy: followers.copies.get(i).and_then(Option::as_deref),
            })
            .collect();
        Rows::new(&rows)?.update(c, rate)
    }

    fn update_on_host(&mut self, params: &mut [Tensor], grads: &[Tensor], c: &Coefficients<f64>) -> Result<f64> {
        let mut exp_avg: Vec<Option<&mut Tensor>> = self.exp_avg.iter_mut().map(Some).collect();
        exp_avg.resize_with(params.len(), || None);
        let state = exp_avg.into_par_iter().zip(&mut self.exp_avg_sq);
        let squares = params
            .par_iter_mut()
            .zip(grads)
            .zip(state)
            .map(
                |((p, g), (m, v))| dispatch_float!("adamw", p.dtype(), T => update_tensor::<T>(&c.round(), p, g, m, v)),
            )
            .collect::<fewstep_tensor::Result<Vec<f64>>>()?;
        Ok(squares.iter().sum())
    }

    /// The moments as `exp_avg.NAME` (absent if β₁ = 0) and `exp_avg_sq.NAME`, the step count in the metadata.
    ///
    /// # Errors
    /// Never for an optimiser that [`AdamW::new`] made; the signature is that of its parts.
    pub fn export(&self) -> Result<TensorFile> {
        let mut tensors = pack("exp_avg_sq.", &self.names, &self.exp_avg_sq)?;
        if !self.exp_avg.is_empty() {
            tensors.extend(pack("exp_avg.", &self.names, &self.exp_avg)?);
        }
        let metadata = [(STEP_KEY.to_string(), self.taken.to_string())].into();
        Ok(TensorFile { tensors, metadata, ..TensorFile::default() })
    }

    /// Takes over an exported state; what follows is bitwise what would have followed the export.
    ///
    /// # Errors
    /// If a moment is missing, misshapen or unknown, or the step count is; nothing is then changed.
    pub fn import(&mut self, file: &TensorFile) -> Result<()> {
        let exp_avg_sq = unpack(file, "exp_avg_sq.", &self.names, &self.exp_avg_sq)?;
        // With β₁ = 0 neither list holds anything, and a first moment in the file is a stranger.
        let first_names: &[String] = if self.exp_avg.is_empty() { &[] } else { &self.names };
        let exp_avg = unpack(file, "exp_avg.", first_names, &self.exp_avg)?;
        let step = file.metadata.get(STEP_KEY);
        let taken = step.and_then(|s| s.parse().ok()).ok_or_else(|| {
            let got = step.map_or("none".to_string(), |s| format!("'{s}'"));
            Error::parameters("the optimiser's step count", "a whole number in the file's metadata", got)
        })?;
        (self.exp_avg, self.exp_avg_sq, self.taken) = (exp_avg, exp_avg_sq, taken);
        Ok(())
    }
}

impl Followers<'_> {
    fn check(&self, names: &[String], params: &[Tensor]) -> Result<()> {
        if let Some((weights, _)) = &self.average {
            check_alike("the average", names, params, weights)?;
        }
        if !self.copies.is_empty() && self.copies.len() != params.len() {
            let expected = format!("one or none for each of {} parameters", params.len());
            return Err(Error::parameters("copies", expected, self.copies.len().to_string()));
        }
        let pairs = self.copies.iter().zip(params).filter_map(|(copy, p)| Some((copy.as_deref()?, p)));
        match pairs.clone().find(|(copy, p)| copy.shape() != p.shape()) {
            Some((copy, p)) => {
                Err(Error::parameters("a copy", format!("{:?}", p.shape()), format!("{:?}", copy.shape())))
            }
            None => Ok(()),
        }
    }

    /// What is written.
    fn tensors(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let averages = self.average.iter_mut().flat_map(|(weights, _)| weights.iter_mut());
        averages.chain(self.copies.iter_mut().filter_map(Option::as_deref_mut))
    }

    /// Brings all after the parameters, on the host.
    fn follow(self, params: &[Tensor]) -> Result<()> {
        if let Some((weights, rate)) = self.average {
            weights.par_iter_mut().zip(params).try_for_each(|(e, p)| blend(e, p, rate))?;
        }
        for (copy, p) in self.copies.into_iter().zip(params) {
            if let Some(copy) = copy {
                *copy = p.to_dtype(copy.dtype());
            }
        }
        Ok(())
    }
}

/// The scalars of one update.
pub(crate) struct Coefficients<T> {
    clip: T,
    beta1: T,
    one_minus_beta1: T,
    beta2: T,
    one_minus_beta2: T,
    /// 1/√c₂
    root_scale: T,
    eps: T,
    /// η/c₁; with β₁ = 0 times the clip factor, since the gradient stands in for the first moment
    step_size: T,
    /// η·λ
    decay: T,
}

impl Coefficients<f64> {
    fn new(config: &AdamWConfig, k: u64, learning_rate: f64, clip: f64) -> Self {
        let [beta1, beta2] = config.betas;
        let correction = |beta: f64| 1.0 - beta.powf(k as f64);
        Coefficients {
            clip,
            beta1,
            one_minus_beta1: 1.0 - beta1,
            beta2,
            one_minus_beta2: 1.0 - beta2,
            root_scale: correction(beta2).sqrt().recip(),
            eps: config.eps,
            step_size: learning_rate * if beta1 == 0.0 { clip } else { 1.0 } / correction(beta1),
            decay: learning_rate * config.weight_decay,
        }
    }

    fn round<T: Real>(&self) -> Coefficients<T> {
        Coefficients {
            clip: T::lit(self.clip),
            beta1: T::lit(self.beta1),
            one_minus_beta1: T::lit(self.one_minus_beta1),
            beta2: T::lit(self.beta2),
            one_minus_beta2: T::lit(self.one_minus_beta2),
            root_scale: T::lit(self.root_scale),
            eps: T::lit(self.eps),
            step_size: T::lit(self.step_size),
            decay: T::lit(self.decay),
        }
    }
}

/// Updates one tensor in pieces and returns its ‖θ' − θ‖².
fn update_tensor<T: Real>(
    c: &Coefficients<T>,
    p: &mut Tensor,
    g: &Tensor,
    m: Option<&mut Tensor>,
    v: &mut Tensor,
) -> fewstep_tensor::Result<f64> {
    let pieces = p.make_mut::<T>()?.par_chunks_mut(PARALLEL_MIN).zip(g.as_slice::<T>()?.par_chunks(PARALLEL_MIN));
    let pieces = pieces.zip(v.make_mut::<T>()?.par_chunks_mut(PARALLEL_MIN));
    let squares: Vec<f64> = match m {
        None => pieces.map(|((p, g), v)| update_piece(c, p, g, g, v)).collect(),
        Some(m) => pieces
            .zip(m.make_mut::<T>()?.par_chunks_mut(PARALLEL_MIN))
            .map(|(((p, g), v), m)| {
                m.iter_mut().zip(g).for_each(|(m, &g)| *m = c.beta1 * *m + c.one_minus_beta1 * (c.clip * g));
                update_piece(c, p, m, g, v)
            })
            .collect(),
    };
    Ok(squares.iter().sum())
}

/// One piece of one tensor; `m` is the first moment, with β₁ = 0 the gradient. Returns ‖θ' − θ‖².
fn update_piece<T: Real>(c: &Coefficients<T>, p: &mut [T], m: &[T], g: &[T], v: &mut [T]) -> f64 {
    let mut squares = [0.0; LANES];
    let (p_lanes, p_rest) = p.as_chunks_mut::<LANES>();
    let (m_lanes, m_rest) = m.as_chunks::<LANES>();
    let (g_lanes, g_rest) = g.as_chunks::<LANES>();
    let (v_lanes, v_rest) = v.as_chunks_mut::<LANES>();
    for (((p, m), g), v) in p_lanes.iter_mut().zip(m_lanes).zip(g_lanes).zip(v_lanes) {
        update_lanes(c, p, m, g, v, &mut squares);
    }
    update_lanes(c, p_rest, m_rest, g_rest, v_rest, &mut squares);
    squares.iter().sum()
}

/// At most [`LANES`] neighbours; the compiler unrolls and vectorises the call with arrays.
#[inline(always)]
fn update_lanes<T: Real>(c: &Coefficients<T>, p: &mut [T], m: &[T], g: &[T], v: &mut [T], squares: &mut [f64; LANES]) {
    for ((((p, &m), &g), v), square) in p.iter_mut().zip(m).zip(g).zip(v).zip(squares) {
        let g = c.clip * g;
        *v = c.beta2 * *v + c.one_minus_beta2 * (g * g);
        let old = *p;
        *p = old - (c.step_size * m / (v.sqrt() * c.root_scale + c.eps) + c.decay * old);
        let moved = (*p - old).to_f64();
        *square += moved * moved;
    }
}

fn count_unusable<T: Real>(g: &Tensor) -> fewstep_tensor::Result<u64> {
    let bad = |c: &[T]| c.iter().filter(|&&x| !(x * x).to_f64().is_finite()).count() as u64;
    Ok(g.as_slice::<T>()?.par_chunks(PARALLEL_MIN).map(bad).sum())
}

#[cfg(test)]
#[path = "optimizer_tests.rs"]
mod tests;
