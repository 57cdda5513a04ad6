//! Distillation: student and fake score trained in turns against a frozen teacher.

use fewstep_diffusion::{Denoiser, Guidance, Predictor, TimeDistribution, TrigTime};
use fewstep_ops::{Compute, Grads, Network, Params};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Tensor, arith};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::ema::PowerProfile;
use crate::examples::ExampleSource;
use crate::learner::Learner;
use crate::method::{Consistency, Dmd, Method, Phase};
use crate::non_finite::NonFiniteLedger;
use crate::objectives::Loss;
use crate::optimizer::{AdamWConfig, Step};
use crate::steps::{Batch, Diffusion, Roles, SimulationDraws, dcm_grid};
use crate::train::Train;
use crate::training::{LoopConfig, Training};
use crate::{Error, Result};

/// Settings of a distillation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillConfig {
    /// The loop.
    pub run: LoopConfig,
    /// What student and fake score train.
    #[serde(default)]
    pub train: Train,
    /// The method.
    pub method: Method,
    /// The teacher's guidance.
    pub guidance: Guidance,
    /// The student's optimiser.
    pub student: AdamWConfig,
    /// The fake score's optimiser.
    pub fake_score: AdamWConfig,
    /// Relative standard deviation of the student's averaging profile: 0.05 and 0.10 are published.
    pub ema: f64,
}

impl DistillConfig {
    /// Refuses settings that contradict each other or cannot be.
    ///
    /// # Errors
    /// The first such setting.
    pub fn validate(&self) -> Result<()> {
        self.run.validate()?;
        self.train.validate()?;
        self.method.validate()?;
        self.student.validate()?;
        self.fake_score.validate()?;
        PowerProfile::new(self.ema).map(drop)
    }
}

/// The teacher as a checkpoint refers to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherReference {
    /// Where its weights were read.
    pub path: String,
    /// Their SHA-256.
    pub sha256: String,
}

/// A distillation in progress.
pub struct Distiller<'a, N> {
    config: DistillConfig,
    denoiser: &'a Denoiser<N>,
    source: &'a dyn ExampleSource,
    teacher: Params,
    reference: TeacherReference,
    compute: Compute,
    student: Learner,
    fake_score: Option<Learner>,
    ledger: NonFiniteLedger,
    iteration: u64,
}

/// One part of a batch: its first position in the data and in the global batch.
#[derive(Clone, Copy)]
struct Part {
    position: u64,
    first: u64,
}

impl<'a, N: Network> Distiller<'a, N> {
    /// Starts student and fake score from the teacher, which on a CPU keeps the dtype in which it is stored.
    ///
    /// # Errors
    /// If a setting is refused, an adapter's target is no layer of the network, or a GPU has no memory for the weights.
    pub fn new(
        config: DistillConfig,
        denoiser: &'a Denoiser<N>,
        source: &'a dyn ExampleSource,
        teacher: Params,
        reference: TeacherReference,
        compute: Compute,
    ) -> Result<Self> {
        config.validate()?;
        let start = config.train.start(&teacher, compute)?;
        let average = Some(PowerProfile::new(config.ema)?);
        let student = Learner::new("student", start.clone(), compute, config.student.clone(), average)?;
        let fake = || Learner::new("fake_score", start.clone(), compute, config.fake_score.clone(), None);
        let fake_score = config.method.dmd().map(|_| fake()).transpose()?;
        let ledger = NonFiniteLedger::new(config.run.non_finite_budget);
        let teacher = compute.weights(&teacher)?;
        let iteration = 0;
        Ok(Distiller { config, denoiser, source, teacher, reference, compute, student, fake_score, ledger, iteration })
    }

    fn roles(&self) -> Roles<'_, N> {
        let with = |params| Predictor { denoiser: self.denoiser, params };
        let fake = self.fake_score.as_ref().map_or(&self.teacher, Learner::params);
        Roles {
            student: with(self.student.params()),
            teacher: with(&self.teacher),
            fake_score: with(fake),
            guidance: self.config.guidance,
            recompute: self.config.run.recompute.into(),
            weight: 1.0 / self.config.run.global_batch() as f64,
        }
    }

    fn parts(&self) -> Vec<Part> {
        let (run, it) = (&self.config.run, self.iteration);
        let first = |a: usize| (a * run.batch) as u64;
        let part = |a| Part { position: it * run.global_batch() as u64 + first(a), first: first(a) };
        (0..run.accumulation).map(part).collect()
    }

    fn batch(&self, part: Part) -> Result<Batch> {
        let n = self.config.run.batch;
        let examples = self.source.examples(part.position, n)?;
        Ok(Batch {
            x_0: self.compute.state(&examples.x_0)?,
            conditions: self.compute.conditions(&examples.conditions)?,
            unconditional: self.compute.conditions(&self.source.unconditional(n)?)?,
        })
    }

    fn stream(&self, purpose: Purpose) -> Stream {
        Stream::new(self.config.run.seed, purpose, self.iteration)
    }

    fn times(&self, stream: Stream, from: TimeDistribution, part: Part) -> Result<Vec<TrigTime>> {
        let n = self.config.run.batch as u64;
        Ok((part.first..part.first + n).map(|s| from.sample(&stream, s)).collect::<std::result::Result<_, _>>()?)
    }

    fn noise(&self, stream: Stream, like: &Tensor, part: Part) -> Result<Tensor> {
        Ok(arith::normal(&stream, part.first, like.shape(), DType::F64, like.device())?)
    }

    fn diffusion(
        &self,
        (time, noise): (Purpose, Purpose),
        from: TimeDistribution,
        x_0: &Tensor,
        part: Part,
    ) -> Result<Diffusion> {
        let t = self.times(self.stream(time), from, part)?;
        Ok(Diffusion { t, eps: self.noise(self.stream(noise), x_0, part)? })
    }

    /// Draws of a backward simulation of N = 1 + effective mod N_max steps.
    fn simulation(&self, dmd: &Dmd, effective: u64, x_0: &Tensor, part: Part) -> Result<SimulationDraws> {
        let steps = (effective % dmd.max_simulation_steps) as u32;
        let (time, noise) = (self.stream(Purpose::SimulationTime), self.stream(Purpose::SimulationNoise));
        Ok(SimulationDraws {
            start: self.noise(noise, x_0, part)?,
            start_time: TrigTime::NOISE,
            candidates: (1..=steps).map(|n| self.times(time.step(n), dmd.time, part)).collect::<Result<_>>()?,
            noise: (1..=steps).map(|n| self.noise(noise.step(n), x_0, part)).collect::<Result<_>>()?,
        })
    }

    fn consistency(
        &self,
        c: &Consistency,
        effective: u64,
        batch: &Batch,
        part: Part,
        grads: &mut Grads,
        values: &mut Values,
    ) -> Result<Loss> {
        let roles = self.roles();
        match c {
            Consistency::Scm(scm) => {
                let d = self.diffusion((Purpose::Time, Purpose::Noise), scm.time, &batch.x_0, part)?;
                let out = roles.scm(scm, batch, &d, scm.warmup(effective), grads)?;
                values.add("tangent_norm", &out.tangent_norm);
                values.add("loss/scm", &out.loss.included());
                Ok(out.loss)
            }
            Consistency::Dcm(dcm) => {
                let (time, noise) = (self.stream(Purpose::Time), self.stream(Purpose::Noise));
                let n = self.config.run.batch as u64;
                let u: Vec<f64> = (part.first..part.first + n).flat_map(|s| time.uniform(s, 1)).collect();
                let eps = self.noise(noise, &batch.x_0, part)?;
                let out = roles.dcm(dcm, batch, &dcm_grid(dcm, &u)?, &eps, grads)?;
                values.add("loss/dcm", &out.loss.included());
                Ok(out.loss)
            }
        }
    }

    /// Records the samples that a loss excluded.
    fn account(&mut self, term: &'static str, part: Part, loss: &Loss) -> Result<()> {
        for e in &loss.excluded {
            self.ledger.record(self.iteration, term, Some(part.position + e.sample as u64), e.count)?;
        }
        Ok(())
    }

    fn train_student(&mut self, effective: u64, with_dmd: bool, values: &mut Values) -> Result<()> {
        let mut grads = Grads::new(self.student.params());
        let method = self.config.method.clone();
        for part in self.parts() {
            let batch = self.batch(part)?;
            if let Some(c) = method.consistency() {
                let loss = self.consistency(c, effective, &batch, part, &mut grads, values)?;
                self.account("consistency", part, &loss)?;
            }
            if let (Some(dmd), true) = (method.dmd(), with_dmd) {
                let simulation = self.simulation(dmd, effective, &batch.x_0, part)?;
                let score = (Purpose::ScoreTime, Purpose::ScoreNoise);
                let d = self.diffusion(score, dmd.time, &batch.x_0, part)?;
                let out = self.roles().dmd(dmd, &batch, &simulation, &d, &mut grads)?;
                values.add("loss/dmd", &out.loss.included());
                self.account("dmd", part, &out.loss)?;
            }
        }
        let step = self.student.update(grads, effective, 1.0)?;
        self.finish("student", step, values)
    }

    fn train_fake_score(&mut self, effective: u64, values: &mut Values) -> Result<()> {
        let Some(dmd) = self.config.method.dmd().cloned() else { return Ok(()) };
        let Some(params) = self.fake_score.as_ref().map(Learner::params) else { return Ok(()) };
        let mut grads = Grads::new(params);
        for part in self.parts() {
            let batch = self.batch(part)?;
            let simulation = self.simulation(&dmd, effective, &batch.x_0, part)?;
            let score = (Purpose::ScoreTime, Purpose::ScoreNoise);
            let d = self.diffusion(score, dmd.time, &batch.x_0, part)?;
            let out = self.roles().critic(&dmd, &batch, &simulation, &d, &mut grads)?;
            values.add("loss/critic", &out.loss.included());
            self.account("critic", part, &out.loss)?;
        }
        let Some(fake) = &mut self.fake_score else { return Ok(()) };
        let step = fake.update(grads, effective, 1.0)?;
        self.finish("fake_score", step, values)
    }

    fn finish(&mut self, role: &str, step: Step, values: &mut Values) -> Result<()> {
        match step {
            Step::Taken(stats) => {
                values.set(format!("grad_norm/{role}"), stats.grad_norm);
                values.set(format!("learning_rate/{role}"), stats.learning_rate);
                Ok(())
            }
            Step::Skipped(bad) => {
                self.ledger.record(self.iteration, &format!("gradient of {}", bad.name), None, bad.count)
            }
        }
    }
}

/// Means of what an iteration measured, in the order in which it was.
#[derive(Debug, Default)]
pub(crate) struct Values(Vec<(String, f64, f64)>);

impl Values {
    /// Adds values of samples to the mean of this name.
    pub(crate) fn add(&mut self, name: &str, samples: &[f64]) {
        let (sum, n) = (samples.iter().sum::<f64>(), samples.len() as f64);
        match self.0.iter_mut().find(|(k, ..)| k == name) {
            Some((_, s, m)) => (*s, *m) = (*s + sum, *m + n),
            None => self.0.push((name.into(), sum, n)),
        }
    }

    pub(crate) fn set(&mut self, name: String, value: f64) {
        self.0.push((name, value, 1.0));
    }

    /// The high-water mark of a GPU's memory in this iteration.
    pub(crate) fn peak(&mut self, phase: &str, compute: Compute) -> Result<()> {
        if let Some(usage) = compute.take_peak()? {
            self.set(format!("peak_gb/{phase}"), usage.peak as f64 * 1e-9);
        }
        Ok(())
    }

    pub(crate) fn means(self) -> Vec<(String, f64)> {
        self.0.into_iter().filter(|(.., n)| *n > 0.0).map(|(k, s, n)| (k, s / n)).collect()
    }
}

impl<N: Network> Training for Distiller<'_, N> {
    fn config(&self) -> &LoopConfig {
        &self.config.run
    }

    fn iteration(&self) -> u64 {
        self.iteration
    }

    fn step(&mut self) -> Result<(&'static str, Vec<(String, f64)>)> {
        let mut values = Values::default();
        let phase = match self.config.method.phase(self.iteration) {
            Phase::Student { effective, dmd } => {
                self.train_student(effective, dmd, &mut values)?;
                "student"
            }
            Phase::FakeScore { effective } => {
                self.train_fake_score(effective, &mut values)?;
                "fake_score"
            }
        };
        values.peak(phase, self.compute)?;
        self.iteration += 1;
        Ok((phase, values.means()))
    }

    fn is_whole(&self) -> bool {
        self.student.is_whole() && self.fake_score.as_ref().is_none_or(Learner::is_whole)
    }

    fn export(&self, checkpoint: &mut Checkpoint) -> Result<()> {
        self.student.export(&mut checkpoint.files)?;
        if let Some(fake) = &self.fake_score {
            fake.export(&mut checkpoint.files)?;
        }
        checkpoint.state["data_position"] = (self.iteration * self.config.run.global_batch() as u64).into();
        checkpoint.state["non_finite"] = serde_json::to_value(self.ledger.history()).unwrap_or(Value::Null);
        checkpoint.state["teacher"] = json!(self.reference);
        Ok(())
    }

    fn import(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let saved = checkpoint.state["teacher"]["sha256"].as_str().unwrap_or("none");
        if saved != self.reference.sha256 {
            let expected = format!("the teacher it was started with (sha256 {saved})");
            return Err(Error::parameters(
                "teacher",
                expected,
                format!("{} ({})", self.reference.path, self.reference.sha256),
            ));
        }
        self.student.import(&checkpoint.files)?;
        if let Some(fake) = &mut self.fake_score {
            fake.import(&checkpoint.files)?;
        }
        let history = serde_json::from_value(checkpoint.state["non_finite"].clone()).unwrap_or_default();
        self.ledger = NonFiniteLedger::resume(self.config.run.non_finite_budget, history);
        self.iteration = checkpoint.iteration;
        Ok(())
    }

    fn sampling_weights(&self) -> Result<Params> {
        self.student.averaged()
    }
}
