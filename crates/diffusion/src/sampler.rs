//! Many-step samplers: drivers over a network given as a closure, with the state in f64.

use fewstep_tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::linear::{checked, linear};
use crate::schedule::trig_time;
use crate::{Error, Result, Schedule, Space, TrigTime, unipc};

/// A rule that integrates the probability-flow ODE over a [`Schedule`].
///
/// | sampler | levels | the closure returns |
/// |---|---|---|
/// | Euler | τ or σ | the velocity by the level: ε − x_0 in τ, ε = (x − x_0)/σ in σ |
/// | UniPc | τ | the velocity ε − x_0 |
/// | AdamsBashforth | σ | the clean prediction x_0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sampler {
    /// x ← x + (ℓ' − ℓ)·v: one network call a step, first order. On Karras levels in σ it is diffusers' Cosmos sampler.
    Euler,
    /// UniPC of order 2 with B(h) = e^h − 1, x_0 prediction, first order at both ends: one call a step.
    ///
    /// Zhao et al., "UniPC: A Unified Predictor-Corrector Framework", arXiv 2302.04867.
    #[serde(rename = "unipc")]
    UniPc,
    /// Two-step exponential Adams–Bashforth in λ = −ln σ: one call a step, first order in the first.
    ///
    /// Cosmos-Predict2's sampler, after the refined exponential solvers of Zhang and Chen, arXiv 2308.02157.
    AdamsBashforth {
        /// Whether a last call at the last level replaces the state by the network's x_0, as Cosmos does.
        clean: bool,
    },
}

/// Where a sampler stands when it calls the network or reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The step, from 0.
    pub index: usize,
    /// How many calls of the network there are in all.
    pub of: usize,
    /// The level of the state now: τ or σ, by the schedule's [`Space`].
    pub level: f64,
    /// The level after the step.
    pub next: f64,
    /// The time that the published scheduler hands to the network.
    pub timestep: f64,
    /// `level` as a TrigFlow time.
    pub time: TrigTime,
}

impl Step {
    fn new(schedule: &Schedule, index: usize, of: usize) -> Result<Self> {
        let levels = schedule.levels();
        let level = levels[index];
        let next = levels.get(index + 1).copied().unwrap_or(0.0);
        let time = trig_time(schedule.space(), level)?;
        let timestep = match schedule.timesteps().get(index) {
            Some(&t) => t,
            // The clean pass of Adams–Bashforth lies behind the last step; Cosmos's networks take τ.
            None => level / (1.0 + level),
        };
        Ok(Step { index, of, level, next, timestep, time })
    }
}

impl Sampler {
    /// Integrates from `x`, the state at the schedule's first level, to its last; returns the state in f64.
    ///
    /// `x` has any shape, [B, C, F, H, W] as a rule. `model` gets the state in f64 and returns the network's output of
    /// the same shape, in any float dtype (see the table at [`Sampler`]). `observe` sees each step with the state
    /// after it, for progress and trajectories: pass `|_, _| {}` if there is nothing to see. The published pipelines
    /// start from `x` = ε in τ, although their first τ is a little below 1, and from σ_max·ε in σ.
    ///
    /// # Errors
    /// Those of `model`; if the schedule is in the wrong coordinate for the sampler or has levels it cannot step
    /// between; if the output has another shape or is not finite.
    pub fn sample<E: From<Error>>(
        self,
        schedule: &Schedule,
        x: &Tensor,
        mut model: impl FnMut(&Tensor, Step) -> std::result::Result<Tensor, E>,
        mut observe: impl FnMut(Step, &Tensor),
    ) -> std::result::Result<Tensor, E> {
        self.check(schedule)?;
        let clean = self == Sampler::AdamsBashforth { clean: true };
        let calls = schedule.steps() + usize::from(clean);
        let mut x = checked("initial noise", 0, x, x.clone())?;
        let mut history = History::default();
        for index in 0..calls {
            let step = Step::new(schedule, index, calls)?;
            let output = checked("the network's output", index, &x, model(&x, step)?)?;
            x = match self {
                _ if index == schedule.steps() => output,
                Sampler::Euler => linear(&[(1.0, &x), (step.next - step.level, &output)])?,
                Sampler::UniPc => unipc::step(schedule.levels(), index, &x, &output, &mut history)?,
                Sampler::AdamsBashforth { .. } => adams_bashforth(schedule.levels(), index, &x, output, &mut history)?,
            };
            observe(step, &x);
        }
        Ok(x)
    }

    fn name(self) -> &'static str {
        match self {
            Sampler::Euler => "Euler",
            Sampler::UniPc => "UniPC",
            Sampler::AdamsBashforth { .. } => "Adams–Bashforth",
        }
    }

    fn check(self, schedule: &Schedule) -> Result<()> {
        let expected = match self {
            Sampler::Euler => return Ok(()),
            Sampler::UniPc => Space::Flow,
            Sampler::AdamsBashforth { .. } => Space::Sigma,
        };
        let (sampler, got) = (self.name(), schedule.space());
        if expected != got {
            return Err(Error::WrongSpace { sampler, expected: expected.name(), got: got.name() });
        }
        // Both divide by the change of log-SNR.
        schedule.check_falling(sampler, |a, b| b < a, "its levels must fall strictly; drop the repeated one")?;
        let first = schedule.levels()[0];
        if self == Sampler::UniPc && first >= 1.0 {
            let remedy = "the log-SNR of τ = 1 is infinite: start from a finite σ, such as τ = 80/81";
            return Err(Error::OutOfRange { quantity: "first level of UniPC", range: "(0, 1)", got: first, remedy });
        }
        let last = schedule.levels()[schedule.steps()];
        if last == 0.0 && matches!(self, Sampler::AdamsBashforth { .. }) {
            let remedy = "end at a small σ such as 0.002 and let the clean pass finish";
            return Err(Error::OutOfRange { quantity: "last level of AB2", range: "(0, ∞)", got: last, remedy });
        }
        Ok(())
    }
}

/// What a multistep sampler keeps between steps.
#[derive(Default)]
pub(crate) struct History {
    /// The state from which the last prediction started.
    pub(crate) start: Option<Tensor>,
    /// The last clean predictions, the newest first.
    pub(crate) x0: [Option<Tensor>; 2],
    /// The order of the last prediction.
    pub(crate) order: usize,
}

impl History {
    pub(crate) fn push(&mut self, x0: Tensor) {
        let newest = self.x0[0].replace(x0);
        self.x0[1] = newest;
    }
}

/// One step in λ = −ln σ of dx/dλ = x_0 − x with x_0 linear through the last two predictions.
///
/// With δ = λ' − λ, φ₁ = (1 − e^{−δ})/δ, φ₂ = (1 − φ₁)/δ and r = (λ₋₁ − λ)/δ < 0:
/// x' = e^{−δ}·x + δ·((φ₁ − φ₂/r)·x_0 + φ₂/r·x_0₋₁), and x' = e^{−δ}·x + δ·φ₁·x_0 in the first step.
fn adams_bashforth(levels: &[f64], i: usize, x: &Tensor, x0: Tensor, history: &mut History) -> Result<Tensor> {
    let (sigma, next) = (levels[i], levels[i + 1]);
    let delta = (sigma / next).ln();
    let decay = next / sigma;
    let phi1 = -(-delta).exp_m1() / delta;
    let out = match &history.x0[0] {
        None => linear(&[(decay, x), (delta * phi1, &x0)])?,
        Some(older) => {
            let phi2 = (1.0 - phi1) / delta;
            let r = (sigma / levels[i - 1]).ln() / delta;
            linear(&[(decay, x), (delta * (phi1 - phi2 / r), &x0), (delta * phi2 / r, older)])?
        }
    };
    history.push(x0);
    Ok(out)
}
