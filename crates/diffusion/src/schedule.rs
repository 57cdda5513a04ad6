//! Noise levels of the many-step samplers: the published schedules, and checked ones of the user's own.

use crate::{Error, Result, RfTime, Shift, Sigma, TrigTime};

/// Timesteps of the discrete-time training that published schedulers count in.
const TRAIN_TIMESTEPS: f64 = 1000.0;
/// diffusers moves a first UniPC level of 1 down by this much, because its log-SNR would be infinite.
const UNIPC_BELOW_ONE: f64 = 1e-6;
/// More steps than anyone integrates; a limit on what a configuration can allocate.
const MAX_STEPS: usize = 100_000;

/// The coordinate in which a schedule's levels, and a sampler's state, are expressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Levels are τ ∈ [0, 1], the state is (1−τ)·x_0 + τ·ε.
    Flow,
    /// Levels are σ ≥ 0, the state is x_0 + σ·ε.
    Sigma,
}

impl Space {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Space::Flow => "τ (rectified flow)",
            Space::Sigma => "σ (noise over signal)",
        }
    }
}

/// The levels of N steps, N + 1 numbers that never rise, and the time handed to the network at each step.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    space: Space,
    levels: Vec<f64>,
    timesteps: Vec<f64>,
}

/// Parameters of the levels of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
/// (EDM, arXiv 2206.00364), Eq. 5: σᵢ = (σ_max^{1/ρ} + i/(n−1)·(σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Karras {
    /// First level, positive and finite.
    pub sigma_max: Sigma,
    /// Last level, positive and below `sigma_max`.
    pub sigma_min: Sigma,
    /// Exponent ρ, positive; larger values spend more levels near σ_min.
    pub rho: f64,
}

fn check_steps(grid: &'static str, min: usize, steps: usize) -> Result<()> {
    if (min..=MAX_STEPS).contains(&steps) {
        return Ok(());
    }
    Err(Error::Steps { grid, min, max: MAX_STEPS, got: steps })
}

/// n numbers from `start` to `stop`, both included; `start` alone for n = 1.
fn linspace(start: f64, stop: f64, n: usize) -> Vec<f64> {
    let step = (stop - start) / n.saturating_sub(1).max(1) as f64;
    let mut out: Vec<f64> = (0..n).map(|i| i as f64 * step + start).collect();
    if let [_, .., last] = out.as_mut_slice() {
        *last = stop;
    }
    out
}

/// Shifts every u and appends the final 0.
fn shifted_to_zero(shift: Shift, us: &[f64]) -> Result<Vec<f64>> {
    let shifted = us.iter().map(|&u| Ok(shift.apply(RfTime::new(u)?).get()));
    shifted.chain([Ok(0.0)]).collect()
}

fn times(factor: f64, levels: &[f64]) -> Vec<f64> {
    levels[..levels.len() - 1].iter().map(|l| factor * l).collect()
}

impl Schedule {
    /// The teacher's grid of the rCM code, for Euler and UniPC.
    ///
    /// With τ_max = σ_max/(1 + σ_max) and u_max its inverse shift, u falls linearly from u_max in `steps` equal
    /// strides to 0; τ is the shift of u, timesteps are 1000·τ. Published runs use σ_max 5000 (offline) or the
    /// model's own, such as 80 (previews), with shift 3 to 8.
    ///
    /// # Errors
    /// If `steps` is 0 or absurdly large, or σ_max is 0 or infinite.
    pub fn rcm_teacher(steps: usize, shift: Shift, sigma_max: Sigma) -> Result<Self> {
        check_steps("the rCM teacher grid", 1, steps)?;
        let u_max = shift.invert(RfTime::from(sigma_max.start()?)).get();
        let us = linspace(u_max, 0.0, steps + 1);
        let levels = shifted_to_zero(shift, &us[..steps])?;
        let timesteps = times(TRAIN_TIMESTEPS, &levels);
        Ok(Schedule { space: Space::Flow, levels, timesteps })
    }

    /// The grid of diffusers' flow-matching Euler scheduler.
    ///
    /// τ_min is the shift of 1/1000; u falls linearly from 1 to τ_min, is shifted again, and a final 0 is appended.
    /// Timesteps are 1000·τ. (So the shift acts on the lower end twice; that is how it is published.)
    ///
    /// # Errors
    /// If `steps` is 0 or absurdly large.
    pub fn diffusers_euler(steps: usize, shift: Shift) -> Result<Self> {
        check_steps("the diffusers Euler grid", 1, steps)?;
        let u_min = shift.apply(RfTime::new(1.0 / TRAIN_TIMESTEPS)?).get();
        let levels = shifted_to_zero(shift, &linspace(1.0, u_min, steps))?;
        let timesteps = times(TRAIN_TIMESTEPS, &levels);
        Ok(Schedule { space: Space::Flow, levels, timesteps })
    }

    /// The grid of diffusers' UniPC scheduler with flow sigmas.
    ///
    /// u falls linearly from 1 towards 1/1000, which is left out; τ is its shift, and a first τ of 1 becomes
    /// 1 − 1e-6. Timesteps are 1000·τ truncated to whole numbers. Levels are rounded to f32: at 1 − 1e-6 that moves
    /// the signal 1 − τ by 5 %, and the published trajectory with it by up to 1e-5.
    ///
    /// # Errors
    /// If `steps` is 0 or absurdly large.
    pub fn diffusers_unipc(steps: usize, shift: Shift) -> Result<Self> {
        check_steps("the diffusers UniPC grid", 1, steps)?;
        let us = linspace(1.0, 1.0 / TRAIN_TIMESTEPS, steps + 1);
        let mut levels = shifted_to_zero(shift, &us[..steps])?;
        if (levels[0] - 1.0).abs() < UNIPC_BELOW_ONE {
            levels[0] -= UNIPC_BELOW_ONE;
        }
        let timesteps = times(TRAIN_TIMESTEPS, &levels).into_iter().map(f64::trunc).collect();
        let levels = levels.into_iter().map(|l| f64::from(l as f32)).collect();
        Ok(Schedule { space: Space::Flow, levels, timesteps })
    }

    /// The grid of diffusers' Cosmos pipelines, for Euler in σ: `steps` Karras levels, the last one twice.
    ///
    /// The repetition makes the last step move nothing. Timesteps are 1000·σ.
    ///
    /// # Errors
    /// If `steps` is below 2 (nothing would move) or absurdly large, or a parameter of `karras` is not valid.
    pub fn karras_euler(steps: usize, karras: Karras) -> Result<Self> {
        check_steps("the Karras-Euler grid", 2, steps)?;
        let mut levels = karras.levels(steps)?;
        levels.extend(levels.last().copied());
        let timesteps = times(TRAIN_TIMESTEPS, &levels);
        Ok(Schedule { space: Space::Sigma, levels, timesteps })
    }

    /// The grid of Cosmos-Predict2's own two-step Adams–Bashforth sampler: `steps` + 1 Karras levels.
    ///
    /// Timesteps are τ = σ/(1 + σ), which its networks take.
    ///
    /// # Errors
    /// If `steps` is 0 or absurdly large, or a parameter of `karras` is not valid.
    pub fn cosmos_ab2(steps: usize, karras: Karras) -> Result<Self> {
        check_steps("the Cosmos AB2 grid", 1, steps)?;
        let levels = karras.levels(steps + 1)?;
        let timesteps = levels[..steps].iter().map(|s| s / (1.0 + s)).collect();
        Ok(Schedule { space: Space::Sigma, levels, timesteps })
    }

    /// A schedule of one's own: N + 1 levels and N timesteps.
    ///
    /// # Errors
    /// If there is no step, the lengths do not fit, a timestep is not finite, or a level is out of its range or above
    /// the one before it.
    pub fn from_levels(space: Space, levels: Vec<f64>, timesteps: Vec<f64>) -> Result<Self> {
        check_steps("a schedule", 1, levels.len().saturating_sub(1))?;
        if timesteps.len() + 1 != levels.len() {
            return Err(Error::Length { what: "timesteps", expected: levels.len() - 1, got: timesteps.len() });
        }
        for &level in &levels {
            match space {
                Space::Flow => RfTime::new(level).map(drop)?,
                Space::Sigma if level == 0.0 => {}
                Space::Sigma => Sigma::new(level)?.start().map(drop)?,
            }
        }
        if let Some(&got) = timesteps.iter().find(|t| !t.is_finite()) {
            let remedy = "give the network's own time at every step";
            return Err(Error::OutOfRange { quantity: "timestep", range: "(-∞, ∞)", got, remedy });
        }
        let schedule = Schedule { space, levels, timesteps };
        schedule.check_falling("a schedule", |a, b| b <= a, "levels fall from noise to data")?;
        Ok(schedule)
    }

    pub(crate) fn check_falling(
        &self,
        grid: &'static str,
        falls: impl Fn(f64, f64) -> bool,
        remedy: &'static str,
    ) -> Result<()> {
        match self.levels.windows(2).position(|w| !falls(w[0], w[1])) {
            None => Ok(()),
            Some(i) => {
                let (previous, got) = (self.levels[i], self.levels[i + 1]);
                Err(Error::NotDecreasing { grid, index: i + 1, previous, got, remedy })
            }
        }
    }

    /// The coordinate of the levels.
    pub fn space(&self) -> Space {
        self.space
    }

    /// The N + 1 levels, from noise to data.
    pub fn levels(&self) -> &[f64] {
        &self.levels
    }

    /// The N times handed to the network, as the published scheduler counts them.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// N.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }
}

/// The TrigFlow time of a level that a schedule has checked.
pub(crate) fn trig_time(space: Space, level: f64) -> Result<TrigTime> {
    Ok(match space {
        Space::Flow => RfTime::new(level)?.into(),
        Space::Sigma => Sigma::new(level)?.into(),
    })
}

impl Karras {
    /// Cosmos-Predict2's parameters: σ from 80 to 0.002, ρ = 7.
    ///
    /// # Errors
    /// None; the numbers are checked like any others.
    pub fn cosmos() -> Result<Self> {
        Ok(Karras { sigma_max: Sigma::new(80.0)?, sigma_min: Sigma::new(0.002)?, rho: 7.0 })
    }

    /// `n` levels from σ_max to σ_min; σ_max alone for n = 1.
    ///
    /// # Errors
    /// If σ_max is 0 or infinite, σ_min is 0 or not below it, or ρ is not positive and finite.
    pub fn levels(&self, n: usize) -> Result<Vec<f64>> {
        let (max, min) = (self.sigma_max.start()?.get(), self.sigma_min.start()?.get());
        if min >= max {
            let remedy = "σ_min must be below σ_max";
            return Err(Error::NotDecreasing { grid: "the Karras levels", index: n, previous: max, got: min, remedy });
        }
        if !(self.rho > 0.0 && self.rho.is_finite()) {
            let remedy = "the published value is 7";
            return Err(Error::OutOfRange { quantity: "Karras exponent ρ", range: "(0, ∞)", got: self.rho, remedy });
        }
        let root = |s: f64| s.powf(1.0 / self.rho);
        Ok(linspace(root(max), root(min), n).into_iter().map(|x| x.powf(self.rho)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shift(k: f64) -> Shift {
        Shift::new(k).unwrap()
    }

    fn sigma(s: f64) -> Sigma {
        Sigma::new(s).unwrap()
    }

    #[test]
    fn every_published_grid_falls_from_noise_to_data() {
        for n in [1, 2, 3, 7, 50, 999] {
            for k in [0.5, 1.0, 3.0, 8.0] {
                let karras = Karras::cosmos().unwrap();
                let grids = [
                    Schedule::rcm_teacher(n, shift(k), sigma(80.0)).unwrap(),
                    Schedule::diffusers_euler(n, shift(k)).unwrap(),
                    Schedule::diffusers_unipc(n, shift(k)).unwrap(),
                    Schedule::karras_euler(n.max(2), karras).unwrap(),
                    Schedule::cosmos_ab2(n, karras).unwrap(),
                ];
                for g in grids {
                    let (levels, timesteps) = (g.levels().to_vec(), g.timesteps().to_vec());
                    assert_eq!(Schedule::from_levels(g.space(), levels, timesteps).unwrap(), g);
                }
            }
        }
    }

    #[test]
    fn the_teacher_grid_starts_at_sigma_max_whatever_the_shift() {
        for k in [0.5, 1.0, 5.0] {
            let g = Schedule::rcm_teacher(7, shift(k), sigma(80.0)).unwrap();
            assert!((g.levels()[0] - 80.0 / 81.0).abs() < 1e-15, "{k}");
            assert_eq!(g.levels()[7], 0.0);
        }
    }

    #[test]
    fn hostile_parameters_are_errors() {
        let karras = Karras::cosmos().unwrap();
        for n in [0, usize::MAX, MAX_STEPS + 1] {
            assert!(Schedule::rcm_teacher(n, shift(5.0), sigma(80.0)).is_err());
            assert!(Schedule::diffusers_euler(n, shift(5.0)).is_err());
            assert!(Schedule::diffusers_unipc(n, shift(5.0)).is_err());
            assert!(Schedule::karras_euler(n, karras).is_err());
            assert!(Schedule::cosmos_ab2(n, karras).is_err());
        }
        assert!(Schedule::karras_euler(1, karras).is_err());
        for bad in [0.0, f64::INFINITY] {
            assert!(Schedule::rcm_teacher(4, shift(5.0), sigma(bad)).is_err());
            assert!(Karras { sigma_max: sigma(bad), ..karras }.levels(4).is_err());
            assert!(Karras { sigma_min: sigma(bad), ..karras }.levels(4).is_err());
        }
        for rho in [0.0, -7.0, f64::NAN, f64::INFINITY] {
            assert!(Karras { rho, ..karras }.levels(4).is_err());
        }
        assert!(Karras { sigma_min: sigma(80.0), ..karras }.levels(4).is_err());
        let message = Schedule::rcm_teacher(0, shift(5.0), sigma(80.0)).unwrap_err().to_string();
        assert!(message.contains("1 to"), "{message}");
    }

    #[test]
    fn levels_of_ones_own_are_checked() {
        let from = |space, levels: &[f64], times: &[f64]| Schedule::from_levels(space, levels.to_vec(), times.to_vec());
        assert!(from(Space::Flow, &[1.0, 0.5, 0.0], &[1.0, 0.5]).is_ok());
        assert!(from(Space::Sigma, &[80.0, 0.5, 0.5], &[1.0, 0.5]).is_ok());
        assert!(from(Space::Flow, &[], &[]).is_err());
        assert!(from(Space::Flow, &[1.0], &[]).is_err());
        assert!(from(Space::Flow, &[1.0, 0.5], &[1.0, 0.5]).is_err());
        assert!(from(Space::Flow, &[0.5, 0.6], &[1.0]).is_err());
        assert!(from(Space::Flow, &[1.1, 0.6], &[1.0]).is_err());
        assert!(from(Space::Flow, &[f64::NAN, 0.6], &[1.0]).is_err());
        assert!(from(Space::Flow, &[0.9, 0.6], &[f64::NAN]).is_err());
        assert!(from(Space::Sigma, &[f64::INFINITY, 0.6], &[1.0]).is_err());
        assert!(from(Space::Sigma, &[1.0, -0.6], &[1.0]).is_err());
    }
}
