//! The few-step sampler of a distilled student: predict x_0, add fresh noise, repeat.

use fewstep_tensor::{Tensor, arith};
use serde::{Deserialize, Serialize};

use crate::linear::{checked, linear};
use crate::{Error, Result, RfTime, Schedule, Sigma, Space, TrigTime};

/// Times between σ_max and 0 in the rCM code, radians; its comment credits them with better visual quality.
const REFERENCE_MIDS: [f64; 3] = [1.5, 1.4, 1.0];
/// Times between σ_max and 0 in the rCM paper for up to four steps, radians: σ = 3.60, 1.56, 0.68.
const PAPER_MIDS: [f64; 3] = [1.3, 1.0, 0.6];
/// The paper's times for eight steps, and ours for five to seven: each step more repeats one of its times, from the
/// noisy end, as the paper's eight steps repeat all but the first.
const LONG_MIDS: [&[f64]; 4] = [
    &[1.3, 1.0, 0.6, 0.3],
    &[1.3, 1.0, 1.0, 0.6, 0.3],
    &[1.3, 1.0, 1.0, 0.6, 0.6, 0.3],
    &[1.3, 1.0, 1.0, 0.6, 0.6, 0.3, 0.3],
];
/// What a rectified-flow network trained in 1000 steps takes for τ = 1.
const TRAIN_TIMESTEPS: f64 = 1000.0;

/// Which published times a few-step grid takes between σ_max and 0.
///
/// Both agree for one step, and for five to eight, where only the paper has a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FewStepPreset {
    /// 1.5, 1.4, 1.0: the rCM code's.
    Reference,
    /// 1.3, 1.0, 0.6: the rCM paper's, and those of Cosmos's distilled release.
    Paper,
}

/// The times of N steps: t_1 ≥ … ≥ t_N > 0 and a final 0.
#[derive(Clone, Debug, PartialEq)]
pub struct FewStepGrid(Vec<TrigTime>);

impl FewStepGrid {
    /// The largest N with a published grid.
    pub const MAX_STEPS: usize = 8;

    /// arctan σ_max, then the preset's first N − 1 times, then 0.
    ///
    /// Up to N = 4 the times are the preset's. N = 8 is the paper's 1.3, 1, 1, 0.6, 0.6, 0.3, 0.3. Nothing is published
    /// for 5, 6 and 7: they take 1.3, 1, 0.6, 0.3 of those eight, and then repeat first 1 and then 0.6 as well.
    ///
    /// # Errors
    /// If `steps` is not in 1..=8, or σ_max is 0, infinite or below tan of the first time taken from the preset.
    pub fn published(steps: usize, sigma_max: Sigma, preset: FewStepPreset) -> Result<Self> {
        let short = match preset {
            FewStepPreset::Reference => &REFERENCE_MIDS,
            FewStepPreset::Paper => &PAPER_MIDS,
        };
        let mids = match steps {
            1..=4 => &short[..steps - 1],
            5..=Self::MAX_STEPS => LONG_MIDS[steps - 5],
            _ => return Err(Error::Steps { grid: "the few-step grid", min: 1, max: Self::MAX_STEPS, got: steps }),
        };
        Self::with_mids(sigma_max, &mids.iter().map(|&t| TrigTime::new(t)).collect::<Result<Vec<_>>>()?)
    }

    /// arctan σ_max, then times of one's own, then 0: as many steps as `mids`, plus one.
    ///
    /// # Errors
    /// If σ_max is 0 or infinite, a time is 0, or a time is above the one before it.
    pub fn with_mids(sigma_max: Sigma, mids: &[TrigTime]) -> Result<Self> {
        let mut times = vec![TrigTime::from(sigma_max.start()?)];
        for (i, &t) in mids.iter().enumerate() {
            if t == TrigTime::CLEAN {
                let remedy = "leave the final 0 out; the grid adds it";
                let range = "(0, π/2)";
                return Err(Error::OutOfRange { quantity: "time of a few-step grid", range, got: 0.0, remedy });
            }
            let previous = times[i].get();
            if t.get() > previous {
                let (grid, got) = ("the few-step grid", t.get());
                let remedy = "times fall from arctan σ_max; raise σ_max or choose earlier times";
                return Err(Error::NotDecreasing { grid, index: i + 1, previous, got, remedy });
            }
            times.push(t);
        }
        times.push(TrigTime::CLEAN);
        Ok(FewStepGrid(times))
    }

    /// The N + 1 times.
    pub fn times(&self) -> &[TrigTime] {
        &self.0
    }

    /// N.
    pub fn steps(&self) -> usize {
        self.0.len() - 1
    }

    /// The same grid for [`Sampler::Euler`](crate::Sampler::Euler): deterministic steps x ← x − (τ − τ')·v between the
    /// same times, with timesteps 1000·τ.
    ///
    /// Repeated times collapse into one, as a deterministic step between equal times moves nothing.
    ///
    /// # Errors
    /// None for a grid of this type; the schedule is checked like any other.
    pub fn flow_schedule(&self) -> Result<Schedule> {
        let mut levels: Vec<f64> = self.0.iter().map(|&t| RfTime::from(t).get()).collect();
        levels.dedup();
        let timesteps = levels[..levels.len() - 1].iter().map(|tau| TRAIN_TIMESTEPS * tau).collect();
        Schedule::from_levels(Space::Flow, levels, timesteps)
    }
}

/// x_t = cos t·x_0 + sin t·ε, each sample (leading axis) at its own time.
///
/// # Errors
/// If shapes or dtypes differ, or there is not one time a sample.
pub fn diffuse(x_0: &Tensor, eps: &Tensor, times: &[TrigTime]) -> Result<Tensor> {
    let (sin, cos): (Vec<f64>, Vec<f64>) = times.iter().map(|t| t.sin_cos()).unzip();
    Ok(arith::combine(&[(&cos, x_0), (&sin, eps)])?)
}

/// Samples from a student in the grid's N steps (rCM: predict, re-noise); returns x_0 in f64.
///
/// Step n predicts x_0 = `predict`(x, n, t_n) from the TrigFlow state x = x_{t_n}, and unless it is the last goes on from
/// cos t_{n+1}·x_0 + sin t_{n+1}·ε with ε = `noise`(n + 1) (so `noise` is asked for 1…N−1; the initial state counts as
/// 0). In rectified-flow coordinates x_t/(cos t + sin t), this is x ← (1 − τ')·x_0 + τ'·ε with x_0 = x − τ·v: the same
/// sampler. `observe` sees each step's index, from 0, and its x_0; pass `|_, _| {}` if there is nothing to see.
///
/// `x` is the state at t_1: the published offline script starts from sin t_1·ε, its training previews and backward
/// simulation (at t_1 = π/2, where both agree) from ε.
///
/// No guidance: the student has learnt it.
///
/// # Errors
/// Those of the closures; if what they return has another shape than `x` or is not finite.
pub fn few_step<E: From<Error>>(
    grid: &FewStepGrid,
    x: &Tensor,
    mut predict: impl FnMut(&Tensor, usize, TrigTime) -> std::result::Result<Tensor, E>,
    mut noise: impl FnMut(usize) -> std::result::Result<Tensor, E>,
    mut observe: impl FnMut(usize, &Tensor),
) -> std::result::Result<Tensor, E> {
    let mut x = checked("initial noise", 0, x, x.clone())?;
    for (n, pair) in grid.0.windows(2).enumerate() {
        let (t, next) = (pair[0], pair[1]);
        let x_0 = checked("the student's x_0", n, &x, predict(&x, n, t)?)?;
        observe(n, &x_0);
        x = if next == TrigTime::CLEAN {
            x_0
        } else {
            let eps = checked("fresh noise", n, &x_0, noise(n + 1)?)?;
            let (sin, cos) = next.sin_cos();
            linear(&[(cos, &x_0), (sin, &eps)])?
        };
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sampler, Wrapper};
    use fewstep_tensor::DType;
    use fewstep_tensor::random::{Purpose, Stream};

    const SHAPE: [usize; 3] = [2, 3, 5];

    fn sigma(s: f64) -> Sigma {
        Sigma::new(s).unwrap()
    }

    fn eps(k: usize) -> Tensor {
        let stream = Stream::new(5, Purpose::Check, k as u64);
        arith::normal(&stream, 0, &SHAPE, DType::F64, fewstep_tensor::Device::Cpu).unwrap()
    }

    /// A rectified-flow "network": ε − x_0 of a made-up, non-linear kind.
    fn network(x: &Tensor, c_noise: f64) -> Tensor {
        let v: Vec<f64> = x.to_vec_f64().iter().map(|x| (1.3 * x + 0.002 * c_noise).sin()).collect();
        Tensor::from_vec(v, x.shape()).unwrap()
    }

    fn student(x: &Tensor, t: TrigTime) -> Result<Tensor> {
        let c = Wrapper::Rf1000.coefficients(t);
        let net = network(&linear(&[(c.c_in, x)])?, c.c_noise);
        linear(&[(c.c_skip, x), (c.c_out, &net)])
    }

    fn gap(a: &Tensor, b: &Tensor) -> f64 {
        let (a, b) = (a.to_vec_f64(), b.to_vec_f64());
        let top = b.iter().fold(0f64, |m, x| m.max(x.abs()));
        a.iter().zip(&b).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / top
    }

    #[test]
    fn grids_are_those_of_the_code_and_the_paper() {
        let times = |n, p| {
            let g = FewStepGrid::published(n, sigma(80.0), p).unwrap();
            assert_eq!(g.steps(), n);
            g.times().iter().map(|t| t.get()).collect::<Vec<_>>()
        };
        let first = 80f64.atan();
        assert_eq!(times(1, FewStepPreset::Reference), [first, 0.0]);
        assert_eq!(times(2, FewStepPreset::Reference), [first, 1.5, 0.0]);
        assert_eq!(times(4, FewStepPreset::Reference), [first, 1.5, 1.4, 1.0, 0.0]);
        assert_eq!(times(3, FewStepPreset::Paper), [first, 1.3, 1.0, 0.0]);
        assert_eq!(times(5, FewStepPreset::Paper), [first, 1.3, 1.0, 0.6, 0.3, 0.0]);
        assert_eq!(times(8, FewStepPreset::Paper), [first, 1.3, 1.0, 1.0, 0.6, 0.6, 0.3, 0.3, 0.0]);
        for n in 5..=8 {
            assert_eq!(times(n, FewStepPreset::Paper), times(n, FewStepPreset::Reference));
        }
    }

    #[test]
    fn rectified_flow_form_and_trigflow_form_give_the_same_sample() {
        for n in 1..=8 {
            let grid = FewStepGrid::published(n, sigma(80.0), FewStepPreset::Paper).unwrap();
            let taus: Vec<f64> = grid.times().iter().map(|&t| RfTime::from(t).get()).collect();
            let mut x = linear(&[(taus[0], &eps(0))]).unwrap();
            for (k, pair) in taus.windows(2).enumerate() {
                let v = network(&x, 1000.0 * pair[0]);
                let x_0 = linear(&[(1.0, &x), (-pair[0], &v)]).unwrap();
                x = linear(&[(1.0 - pair[1], &x_0), (pair[1], &eps(k + 1))]).unwrap();
            }
            let start = linear(&[(grid.times()[0].sin_cos().0, &eps(0))]).unwrap();
            let got = few_step(&grid, &start, |x, _, t| student(x, t), |k| Ok::<_, Error>(eps(k)), |_, _| {}).unwrap();
            // Cancelling 1 − τ against cos t/(cos t + sin t) near π/2 loses two digits of f64.
            assert!(gap(&got, &x) < 1e-12, "{n} steps: {}", gap(&got, &x));
        }
    }

    #[test]
    fn noise_is_drawn_once_for_every_step_but_the_last() {
        let grid = FewStepGrid::published(4, sigma(80.0), FewStepPreset::Reference).unwrap();
        let (mut drawn, mut seen) = (vec![], vec![]);
        let noise = |k| {
            drawn.push(k);
            Ok::<_, Error>(eps(k))
        };
        few_step(
            &grid,
            &eps(0),
            |x, n, t| student(x, t).inspect(|_| assert_eq!(t, grid.times()[n])),
            noise,
            |n, _| seen.push(n),
        )
        .unwrap();
        assert_eq!((drawn, seen), (vec![1, 2, 3], vec![0, 1, 2, 3]));
    }

    #[test]
    fn a_perfect_student_is_returned_whatever_the_noise() {
        let clean = eps(9);
        let grid = FewStepGrid::published(4, sigma(80.0), FewStepPreset::Paper).unwrap();
        let got = few_step(&grid, &eps(0), |_, _, _| Ok(clean.clone()), |k| Ok::<_, Error>(eps(k)), |_, _| {}).unwrap();
        assert_eq!(got.to_vec_f64(), clean.to_vec_f64());
    }

    #[test]
    fn the_flow_schedule_steps_deterministically_through_the_same_times() {
        let grid = FewStepGrid::published(8, sigma(80.0), FewStepPreset::Paper).unwrap();
        let schedule = grid.flow_schedule().unwrap();
        assert_eq!(schedule.steps(), 5);
        let model = |x: &Tensor, step: crate::Step| Ok::<_, Error>(network(x, step.timestep));
        let got = Sampler::Euler.sample(&schedule, &eps(0), model, |_, _| {}).unwrap();
        let mut x = eps(0);
        for pair in schedule.levels().windows(2) {
            x = linear(&[(1.0, &x), (pair[1] - pair[0], &network(&x, 1000.0 * pair[0]))]).unwrap();
        }
        assert_eq!(got.to_vec_f64(), x.to_vec_f64());
    }

    #[test]
    fn diffusing_takes_every_sample_to_its_own_time() {
        let (x_0, noise) = (eps(1), eps(2));
        let got = diffuse(&x_0, &noise, &[TrigTime::CLEAN, TrigTime::NOISE]).unwrap();
        assert_eq!(got.narrow(0, 1).unwrap().to_vec_f64(), x_0.narrow(0, 1).unwrap().to_vec_f64());
        let (a, b) = (got.narrow(1, 1).unwrap(), noise.narrow(1, 1).unwrap());
        assert!(gap(&a, &b) < 1e-15);
        assert!(diffuse(&x_0, &noise, &[TrigTime::CLEAN]).is_err());
    }

    #[test]
    fn hostile_grids_are_errors_with_a_remedy() {
        let published = FewStepGrid::published;
        for n in [0, 9, usize::MAX] {
            assert!(published(n, sigma(80.0), FewStepPreset::Reference).is_err(), "{n}");
        }
        for s in [0.0, f64::INFINITY] {
            assert!(published(1, sigma(s), FewStepPreset::Reference).is_err(), "{s}");
        }
        let message = published(2, sigma(2.0), FewStepPreset::Reference).unwrap_err().to_string();
        assert!(message.contains("raise σ_max"), "{message}");
        let t = |x| TrigTime::new(x).unwrap();
        assert!(FewStepGrid::with_mids(sigma(80.0), &[t(1.0), t(1.2)]).is_err());
        assert!(FewStepGrid::with_mids(sigma(80.0), &[t(0.0)]).is_err());
        assert!(FewStepGrid::with_mids(sigma(80.0), &[TrigTime::NOISE]).is_err());
    }

    #[test]
    fn hostile_closures_are_errors_that_name_the_step() {
        let grid = FewStepGrid::published(2, sigma(80.0), FewStepPreset::Reference).unwrap();
        let short = Tensor::from_vec(vec![0.0f64; 3], &[3]).unwrap();
        let nan = Tensor::full(&SHAPE, f64::NAN, DType::F64, fewstep_tensor::Device::Cpu);
        let run = |x_0: &Tensor, fresh: &Tensor| {
            few_step(&grid, &eps(0), |_, _, _| Ok(x_0.clone()), |_| Ok::<_, Error>(fresh.clone()), |_, _| {})
        };
        assert!(matches!(run(&short, &eps(1)), Err(Error::OutputShape { step: 0, .. })));
        assert!(matches!(run(&nan, &eps(1)), Err(Error::NonFinite { step: 0, count: 30, of: 30, .. })));
        assert!(matches!(run(&eps(1), &nan), Err(Error::NonFinite { what: "fresh noise", .. })));
        assert!(few_step(&grid, &nan, |x, _, t| student(x, t), |k| Ok::<_, Error>(eps(k)), |_, _| {}).is_err());
    }
}
