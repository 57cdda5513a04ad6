//! Samples from a network: a teacher's many guided steps, a student's few.

use fewstep_ops::{Conditions, Network, Plain};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};

use crate::{
    Branch, Denoiser, FewStepGrid, Guidance, Predictor, Result, RfTime, Sampler, Schedule, Step, TrigTime, clean,
    few_step,
};

/// Sub-streams of the sampling noise are steps; the published long grids have 8.
fn noise(draw: Draw, step: usize, device: Device) -> Result<Tensor> {
    let stream = Stream::new(draw.seed, Purpose::Sample, 0).step(step as u32);
    Ok(arith::normal(&stream, draw.first, draw.shape, DType::F64, device)?)
}

/// Which samples are drawn: sample i of a seed is the same whatever the batch it is drawn in.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// The seed.
    pub seed: u64,
    /// Global index of the first sample.
    pub first: u64,
    /// `[B, C, F, H, W]`.
    pub shape: &'a [usize],
}

/// A network with the guidance that it is sampled with.
#[derive(Debug)]
pub struct Expert<'a, N> {
    /// The network.
    pub predictor: Predictor<'a, N>,
    /// Guidance of the many-step samplers.
    pub guidance: Guidance,
}

impl<N> Clone for Expert<'_, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N> Copy for Expert<'_, N> {}

/// What answers at each noise level: one network, or, as in Wan2.2-A14B, one for noisy states and one for the rest.
#[derive(Clone, Copy, Debug)]
pub struct Experts<'a, N> {
    noisy: Expert<'a, N>,
    rest: Option<(RfTime, Expert<'a, N>)>,
}

impl<'a, N: Network> Experts<'a, N> {
    /// One network for every time.
    pub fn one(expert: Expert<'a, N>) -> Self {
        Experts { noisy: expert, rest: None }
    }

    /// `noisy` where τ is at or above the boundary, `rest` below it.
    pub fn two(noisy: Expert<'a, N>, boundary: RfTime, rest: Expert<'a, N>) -> Self {
        Experts { noisy, rest: Some((boundary, rest)) }
    }

    /// Where the networks are, and so the samples.
    fn device(&self) -> Device {
        self.noisy.predictor.params.device()
    }

    fn at(&self, time: TrigTime) -> Expert<'a, N> {
        match self.rest {
            Some((boundary, rest)) if RfTime::from(time) < boundary => rest,
            _ => self.noisy,
        }
    }

    /// Samples in the grid's few steps, without guidance; f64, on the networks' device. `observe` sees each step's index and its x_0.
    ///
    /// # Errors
    /// If shapes do not fit the network, or a prediction is not finite.
    pub fn generate_few_step(
        &self,
        grid: &FewStepGrid,
        draw: Draw,
        conditions: &Conditions,
        observe: impl FnMut(usize, &Tensor),
    ) -> Result<Tensor> {
        let predict = |x: &Tensor, _: usize, time| {
            let t = vec![time; x.shape()[0]];
            clean(x, &self.at(time).predictor.velocity(x, &t, conditions)?, &t)
        };
        let fresh = |step| noise(draw, step, self.device());
        few_step(grid, &fresh(0)?, predict, fresh, observe)
    }

    /// Samples by a many-step sampler with guidance; f64, on the networks' device. `observe` sees each step and its state.
    ///
    /// # Errors
    /// If shapes do not fit the network, the sampler does not fit the schedule, or a prediction is not finite.
    pub fn generate(
        &self,
        (sampler, schedule): (Sampler, &Schedule),
        draw: Draw,
        (conditions, unconditional): (&Conditions, &Conditions),
        observe: impl FnMut(Step, &Tensor),
    ) -> Result<Tensor> {
        let model = |x: &Tensor, step: Step| {
            let expert = self.at(step.time);
            expert.guidance.apply(|branch| {
                let c = if branch == Branch::Conditional { conditions } else { unconditional };
                expert.predictor.raw(x, step.timestep, c)
            })
        };
        sampler.sample(schedule, &noise(draw, 0, self.device())?, model, observe)
    }
}

impl<N: Network> Predictor<'_, N> {
    /// The raw network's ε − x_0 at a rectified-flow state and a timestep in the schedules' unit, 1000·τ.
    fn raw(&self, x: &Tensor, timestep: f64, conditions: &Conditions) -> Result<Tensor> {
        let m = Plain::new(self.params);
        let time = timestep / Denoiser::<N>::TIMESTEPS * self.denoiser.wrapper().time_factor();
        let t = Tensor::from_vec(vec![time; x.shape()[0]], &[x.shape()[0]])?;
        let x = x.to_dtype(conditions.text.dtype());
        let v = self.denoiser.network().forward(&m, &x, &t, &conditions.in_mode(&m))?;
        Ok(v.to_dtype(DType::F64))
    }
}
