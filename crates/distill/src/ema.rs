//! The power-function average of the weights, at a fixed relative width.
//!
//! Source: EDM2, arXiv 2312.02696, Section 3.1 and Appendix C; rCM, Table 4, for the profiles.

use fewstep_tensor::file::TensorFile;
use fewstep_tensor::math::Real;
use fewstep_tensor::{Device, PARALLEL_MIN, Tensor, dispatch_float};
use rayon::prelude::*;

use crate::optimizer::cuda::{Row, Rows};
use crate::parameters::{check_alike, pack, unpack};
use crate::{Error, Result};

/// The weighting of an average: after k steps, step j ≤ k weighs about (j/k)^γ.
///
/// The relative standard deviation S of that weighting over (0, k] fixes γ by
///   S² = (γ + 1) / ((γ + 2)²·(γ + 3)),  that is  γ³ + 7γ² + (16 − S⁻²)γ + (12 − S⁻²) = 0,
/// of which γ is the largest real root.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PowerProfile {
    relative_std: f64,
    gamma: f64,
}

impl PowerProfile {
    /// The profile of relative standard deviation S, 0 < S < 1/√12 ≈ 0.2887 (at which γ = 0, the plain mean). The
    /// published values are 0.05 (γ ≈ 16.972) and 0.10 (γ ≈ 6.937).
    ///
    /// # Errors
    /// If S lies outside this range.
    pub fn new(relative_std: f64) -> Result<Self> {
        if !(relative_std > 0.0 && 12.0 * relative_std * relative_std < 1.0) {
            let (key, expected) = ("ema relative_std", "a number above 0 and below 0.288");
            return Err(Error::Setting { key, expected, got: relative_std.to_string() });
        }
        Ok(PowerProfile { relative_std, gamma: largest_root(relative_std) })
    }

    /// S.
    pub fn relative_std(&self) -> f64 {
        self.relative_std
    }

    /// γ.
    pub fn gamma(&self) -> f64 {
        self.gamma
    }

    /// β(k) = (1 − 1/(k + 1))^(γ + 1): what the average keeps at effective student step k; 0 at k = 0.
    pub fn beta(&self, k: u64) -> f64 {
        1.0 - self.one_minus_beta(k)
    }

    /// 1 − β(k), without the cancellation: −expm1(−(γ + 1)·ln(1 + 1/k)).
    pub fn one_minus_beta(&self, k: u64) -> f64 {
        if k == 0 {
            return 1.0;
        }
        -(-(self.gamma + 1.0) * (1.0 / k as f64).ln_1p()).exp_m1()
    }
}

/// Newton's method from γ = 1/S, where the cubic is positive: right of its largest root the cubic is convex and
/// rising, so the iterates fall to the root and stop where rounding ends the descent.
fn largest_root(s: f64) -> f64 {
    let inv = 1.0 / (s * s);
    let mut gamma = 1.0 / s;
    loop {
        let value = ((gamma + 7.0) * gamma + (16.0 - inv)) * gamma + (12.0 - inv);
        let slope = (3.0 * gamma + 14.0) * gamma + (16.0 - inv);
        let next = gamma - value / slope;
        if next >= gamma || next.is_nan() {
            return gamma;
        }
        gamma = next;
    }
}

/// The averaged weights of one network, in the dtype of its f32 masters (f64 in proofs).
///
/// Differs from the published code, which averages the bf16 copies: the masters hold the same weights unrounded.
#[derive(Clone, Debug)]
pub struct PowerEma {
    profile: PowerProfile,
    weights: Vec<Tensor>,
}

impl PowerEma {
    /// Starts the average at `params`.
    pub fn new(profile: PowerProfile, params: &[Tensor]) -> Self {
        PowerEma { profile, weights: params.to_vec() }
    }

    /// The averaged weights, in the order of the parameters.
    pub fn weights(&self) -> &[Tensor] {
        &self.weights
    }

    /// The weighting.
    pub fn profile(&self) -> PowerProfile {
        self.profile
    }

    /// e ← e + (1 − β(k))·(θ − e) after effective student step k; at k = 0 a copy, bit for bit.
    ///
    /// # Errors
    /// If `params` differ from the averaged weights in number, shape or dtype; nothing is then changed.
    pub fn update(&mut self, params: &[Tensor], k: u64) -> Result<()> {
        check_alike("the average's parameters", &[], &self.weights, params)?;
        let rate = self.profile.one_minus_beta(k);
        if params.first().is_none_or(|p| p.device() == Device::Cpu) {
            return self.weights.par_iter_mut().zip(params).try_for_each(|(e, p)| blend(e, p, rate));
        }
        self.weights.iter_mut().try_for_each(Tensor::make_unique)?;
        let row = |(e, p)| Row { param: Some(p), average: Some(e), ..Row::default() };
        Rows::new(&self.weights.iter().zip(params).map(row).collect::<Vec<_>>())?.average(rate)
    }

    /// The averaged weights and the rate 1 − β(k), for what updates them together with the parameters.
    pub fn following(&mut self, k: u64) -> (&mut [Tensor], f64) {
        (&mut self.weights, self.profile.one_minus_beta(k))
    }

    /// The averaged weights by parameter name.
    ///
    /// # Errors
    /// If the names do not belong to the weights.
    pub fn export(&self, names: &[String]) -> Result<TensorFile> {
        Ok(TensorFile { tensors: pack("", names, &self.weights)?, ..TensorFile::default() })
    }

    /// Takes over exported weights.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or unknown; nothing is then changed.
    pub fn import(&mut self, file: &TensorFile, names: &[String]) -> Result<()> {
        self.weights = unpack(file, "", names, &self.weights)?;
        Ok(())
    }
}

/// e ← e + r·(θ − e) on the host; a rate of 1 copies, bit for bit.
pub(crate) fn blend(e: &mut Tensor, p: &Tensor, rate: f64) -> Result<()> {
    dispatch_float!("ema", p.dtype(), T => blend_elements::<T>(e, p, rate))?;
    Ok(())
}

fn blend_elements<T: Real>(e: &mut Tensor, p: &Tensor, rate: f64) -> fewstep_tensor::Result<()> {
    let (p, e, r) = (p.as_slice::<T>()?, e.make_mut::<T>()?, T::lit(rate));
    e.par_chunks_mut(PARALLEL_MIN).zip(p.par_chunks(PARALLEL_MIN)).for_each(|(e, p)| {
        if rate == 1.0 {
            e.copy_from_slice(p);
        } else {
            e.iter_mut().zip(p).for_each(|(e, &p)| *e += r * (p - *e));
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use fewstep_tensor::cuda::EMULATED;

    use super::*;

    fn scalar(x: f64) -> Vec<Tensor> {
        vec![Tensor::from_vec(vec![x], &[1]).unwrap()]
    }

    #[test]
    fn both_published_profiles_have_their_published_exponents() {
        // Published to three decimals.
        assert!((PowerProfile::new(0.10).unwrap().gamma() - 6.937).abs() < 5e-4);
        assert!((PowerProfile::new(0.05).unwrap().gamma() - 16.972).abs() < 5e-4);
    }

    #[test]
    fn the_exponent_satisfies_the_width_formula_over_the_whole_range() {
        for i in 1..=288 {
            let s = f64::from(i) / 1000.0;
            let g = PowerProfile::new(s).unwrap().gamma();
            let width = ((g + 1.0) / ((g + 2.0).powi(2) * (g + 3.0))).sqrt();
            // The cubic's terms are of size S⁻³ and cancel: a root is good to a few S⁻³ roundings over its slope.
            assert!((width / s - 1.0).abs() < 1e-10, "S = {s}: γ = {g} has width {width}");
            assert!(g > 0.0);
        }
    }

    #[test]
    fn a_width_outside_the_range_is_refused() {
        for s in [0.0, -0.1, 0.289, 1.0, f64::NAN, f64::INFINITY] {
            assert!(PowerProfile::new(s).is_err(), "{s}");
        }
    }

    #[test]
    fn the_average_of_step_numbers_has_the_mean_and_width_of_the_profile() {
        // Averaging j and j² over steps 1..=n gives the first two moments of the weighting that results.
        let n = 20_000u64;
        for s in [0.05, 0.10, 0.2] {
            let profile = PowerProfile::new(s).unwrap();
            let (mut first, mut second) = (PowerEma::new(profile, &scalar(0.0)), PowerEma::new(profile, &scalar(0.0)));
            for k in 0..=n {
                let x = k as f64 / n as f64;
                first.update(&scalar(x), k).unwrap();
                second.update(&scalar(x * x), k).unwrap();
            }
            let mean = first.weights()[0].as_slice::<f64>().unwrap()[0];
            let width = (second.weights()[0].as_slice::<f64>().unwrap()[0] - mean * mean).sqrt();
            let gamma = profile.gamma();
            // The discrete weights differ from the continuous profile by O(γ/n) relative.
            let slack = 2.0 * gamma / n as f64;
            assert!((mean - (gamma + 1.0) / (gamma + 2.0)).abs() < slack, "S = {s}: mean {mean}");
            assert!((width / s - 1.0).abs() < slack, "S = {s}: width {width}");
        }
    }

    #[test]
    fn step_zero_copies_and_equal_weights_stay_bit_for_bit() {
        let x: Vec<f32> = (0..40_000).map(|i| (i as f32 * 0.7).sin() * 1e-3).collect();
        let params = vec![Tensor::from_vec(x.clone(), &[200, 200]).unwrap()];
        let mut ema = PowerEma::new(
            PowerProfile::new(0.1).unwrap(),
            &[Tensor::from_vec(vec![9f32; 40_000], &[200, 200]).unwrap()],
        );
        for k in [0, 1, 2, 1000] {
            ema.update(&params, k).unwrap();
            assert_eq!(ema.weights()[0].as_slice::<f32>().unwrap(), x);
        }
    }

    #[test]
    fn a_gpu_averages_bit_for_bit_as_the_host() {
        let at = |k: u64| {
            let whole = (0..40_000).map(|i| ((i + k) as f32 * 0.7).sin()).collect();
            let odd = (0..5).map(|i| ((i + k) as f32).cos()).collect();
            vec![Tensor::from_vec(whole, &[200, 200]).unwrap(), Tensor::from_vec(odd, &[5]).unwrap()]
        };
        let there = |t: &[Tensor]| t.iter().map(|t| t.to_device(EMULATED).unwrap()).collect::<Vec<_>>();
        let profile = PowerProfile::new(0.1).unwrap();
        let (mut here, mut gpu) = (PowerEma::new(profile, &at(0)), PowerEma::new(profile, &there(&at(0))));
        for k in [0, 1, 2, 30] {
            here.update(&at(k), k).unwrap();
            gpu.update(&there(&at(k)), k).unwrap();
            let values = |e: &PowerEma| e.weights().iter().map(Tensor::to_vec_f64).collect::<Vec<_>>();
            assert_eq!(values(&here), values(&gpu), "step {k}");
        }
    }

    #[test]
    fn beta_is_the_published_power() {
        let p = PowerProfile::new(0.05).unwrap();
        assert_eq!(p.beta(0), 0.0);
        for k in [1u64, 2, 10, 1000, 100_000] {
            let direct = (1.0 - 1.0 / (k as f64 + 1.0)).powf(p.gamma() + 1.0);
            // The direct form rounds 1 − 1/(k + 1) to an ulp of 1, which the power multiplies by γ + 1 < 18.
            assert!((p.beta(k) - direct).abs() < 18.0 * f64::EPSILON, "k = {k}");
        }
    }

    #[test]
    fn an_exported_and_imported_average_continues_bitwise() {
        let names = vec!["w".to_string()];
        let at = |k: u64| vec![Tensor::from_vec((0..100).map(|i| ((i + k) as f32).cos()).collect(), &[100]).unwrap()];
        let mut whole = PowerEma::new(PowerProfile::new(0.05).unwrap(), &at(0));
        (1..=5).for_each(|k| whole.update(&at(k), k).unwrap());
        let mut resumed = PowerEma::new(whole.profile(), &at(0));
        resumed.import(&whole.export(&names).unwrap(), &names).unwrap();
        for k in 6..=9 {
            whole.update(&at(k), k).unwrap();
            resumed.update(&at(k), k).unwrap();
        }
        let bits =
            |e: &PowerEma| e.weights()[0].as_slice::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&whole), bits(&resumed));
    }

    #[test]
    fn a_list_of_another_shape_is_refused_and_changes_nothing() {
        let mut ema = PowerEma::new(PowerProfile::new(0.05).unwrap(), &scalar(1.0));
        assert!(ema.update(&[Tensor::from_vec(vec![1.0, 2.0], &[2]).unwrap()], 3).is_err());
        assert!(ema.update(&[], 3).is_err());
        assert_eq!(ema.weights()[0].as_slice::<f64>().unwrap(), [1.0]);
    }
}
