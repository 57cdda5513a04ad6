//! Ordinary flow-matching training, which makes a teacher from data alone.

use fewstep_diffusion::{Denoiser, Predictor, TimeDistribution, TrigTime, diffuse};
use fewstep_ops::{Compute, Grads, Network, Params};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Tensor, arith};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::distiller::Values;
use crate::ema::PowerProfile;
use crate::examples::ExampleSource;
use crate::learner::Learner;
use crate::non_finite::NonFiniteLedger;
use crate::objectives::{CriticTerms, critic};
use crate::optimizer::{AdamWConfig, Step};
use crate::training::{LoopConfig, Training};
use crate::{Error, Result};

/// Settings of a teacher's training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeachConfig {
    /// The loop.
    pub run: LoopConfig,
    /// Distribution of training times.
    pub time: TimeDistribution,
    /// Probability with which a sample's condition is replaced by the empty one, so that guidance has something to
    /// extrapolate from.
    pub dropout: f64,
    /// The optimiser.
    pub optimizer: AdamWConfig,
    /// Relative standard deviation of the averaging profile.
    pub ema: f64,
    /// Iterations at the end over which the learning rate falls to 0.
    pub decay_iterations: u64,
}

impl TeachConfig {
    /// Refuses settings that cannot be.
    ///
    /// # Errors
    /// The first such setting.
    pub fn validate(&self) -> Result<()> {
        self.run.validate()?;
        self.time.validate()?;
        self.optimizer.validate()?;
        if !(0.0..=1.0).contains(&self.dropout) {
            return Err(Error::Setting { key: "dropout", expected: "a probability", got: self.dropout.to_string() });
        }
        PowerProfile::new(self.ema).map(drop)
    }
}

/// A teacher's training in progress: minimises ‖F_θ(x_t, t) − v‖², v = cos t·ε − sin t·x_0.
pub struct Teaching<'a, N> {
    config: TeachConfig,
    denoiser: &'a Denoiser<N>,
    source: &'a dyn ExampleSource,
    compute: Compute,
    learner: Learner,
    ledger: NonFiniteLedger,
    iteration: u64,
}

impl<'a, N: Network> Teaching<'a, N> {
    /// Starts from these weights.
    ///
    /// # Errors
    /// If a setting is refused, or a GPU has no memory for the weights.
    pub fn new(
        config: TeachConfig,
        denoiser: &'a Denoiser<N>,
        source: &'a dyn ExampleSource,
        weights: Params,
        compute: Compute,
    ) -> Result<Self> {
        config.validate()?;
        let average = Some(PowerProfile::new(config.ema)?);
        let learner = Learner::new(
            "teacher",
            weights.to(compute.device, compute.dtype.wide())?,
            compute,
            config.optimizer.clone(),
            average,
        )?;
        let ledger = NonFiniteLedger::new(config.run.non_finite_budget);
        Ok(Teaching { config, denoiser, source, compute, learner, ledger, iteration: 0 })
    }

    /// Adds the gradient of one part of the batch, whose first sample has global index `first` in the iteration.
    fn part(&mut self, first: u64, grads: &mut Grads, values: &mut Values) -> Result<()> {
        let run = &self.config.run;
        let (n, position) = (run.batch, self.iteration * run.global_batch() as u64 + first);
        let samples = first..first + n as u64;
        let stream = |purpose| Stream::new(run.seed, purpose, self.iteration);
        let examples = self.source.examples(position, n)?;
        let x_0 = self.compute.state(&examples.x_0)?;
        let dropped: Vec<bool> = samples
            .clone()
            .flat_map(|s| stream(Purpose::Dropout).uniform(s, 1))
            .map(|u| u < self.config.dropout)
            .collect();
        let conditions = examples.conditions.replaced(&self.source.unconditional(n)?, &dropped)?;
        let conditions = self.compute.conditions(&conditions)?;
        let t = samples.map(|s| self.config.time.sample(&stream(Purpose::Time), s));
        let t = t.collect::<std::result::Result<Vec<TrigTime>, _>>()?;
        let eps: Tensor = arith::normal(&stream(Purpose::Noise), first, x_0.shape(), DType::F64, x_0.device())?;
        let x_t = diffuse(&x_0, &eps, &t)?;
        let predictor = Predictor { denoiser: self.denoiser, params: self.learner.params() };
        let tape = predictor.velocity_tape(&x_t, &t, &conditions, run.recompute.into())?;
        let loss = critic(&CriticTerms { sample: &x_0, eps: &eps, t: &t, f_fake: tape.f() })?;
        let row = x_0.len() / n;
        tape.backward(arith::scale(&vec![1.0 / (run.global_batch() * row) as f64; n], &loss.f_bar)?, grads)?;
        values.add("loss/flow_matching", &loss.included().iter().map(|l| l / row as f64).collect::<Vec<_>>());
        for e in &loss.excluded {
            self.ledger.record(self.iteration, "flow_matching", Some(position + e.sample as u64), e.count)?;
        }
        Ok(())
    }

    /// 1, and over the last `decay_iterations` a straight line to 0.
    fn decay(&self) -> f64 {
        let left = self.config.run.iterations.saturating_sub(self.iteration);
        (left as f64 / self.config.decay_iterations.max(1) as f64).min(1.0)
    }
}

impl<N: Network> Training for Teaching<'_, N> {
    fn config(&self) -> &LoopConfig {
        &self.config.run
    }

    fn iteration(&self) -> u64 {
        self.iteration
    }

    fn step(&mut self) -> Result<(&'static str, Vec<(String, f64)>)> {
        let mut values = Values::default();
        let mut grads = Grads::new(self.learner.params());
        for a in 0..self.config.run.accumulation {
            self.part((a * self.config.run.batch) as u64, &mut grads, &mut values)?;
        }
        match self.learner.update(grads, self.iteration, self.decay())? {
            Step::Taken(stats) => {
                values.set("grad_norm/teacher".into(), stats.grad_norm);
                values.set("learning_rate/teacher".into(), stats.learning_rate);
            }
            Step::Skipped(bad) => {
                self.ledger.record(self.iteration, &format!("gradient of {}", bad.name), None, bad.count)?;
            }
        }
        values.peak("teacher", self.compute)?;
        self.iteration += 1;
        Ok(("teacher", values.means()))
    }

    fn is_whole(&self) -> bool {
        self.learner.is_whole()
    }

    fn export(&self, checkpoint: &mut Checkpoint) -> Result<()> {
        self.learner.export(&mut checkpoint.files)?;
        checkpoint.state["data_position"] = (self.iteration * self.config.run.global_batch() as u64).into();
        checkpoint.state["non_finite"] = serde_json::to_value(self.ledger.history()).unwrap_or(Value::Null);
        Ok(())
    }

    fn import(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.learner.import(&checkpoint.files)?;
        let history = serde_json::from_value(checkpoint.state["non_finite"].clone()).unwrap_or_default();
        self.ledger = NonFiniteLedger::resume(self.config.run.non_finite_budget, history);
        self.iteration = checkpoint.iteration;
        Ok(())
    }

    fn sampling_weights(&self) -> Result<Params> {
        self.learner.averaged()
    }
}
