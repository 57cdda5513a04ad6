//! What every kind of training shares: the settings, the loop, checkpoints, metrics, stopping and resuming.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use fewstep_ops::{Params, Recompute};
use fewstep_tensor::file::write_aside;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::{Checkpoint, CheckpointStore};
use crate::configuration::Configuration;
use crate::metrics::{MetricsSink, Record};
use crate::run_folder::{RunFolder, Start};
use crate::tensorboard::TensorBoardWriter;
use crate::{Error, Result};

/// The name under which a run keeps its configuration.
const CONFIG_FILE: &str = "config.toml";

/// Settings of the loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoopConfig {
    /// Iterations in all.
    pub iterations: u64,
    /// Samples of one forward and backward pass.
    pub batch: usize,
    /// Passes whose gradients add up to one update.
    pub accumulation: usize,
    /// Seed of every draw.
    pub seed: u64,
    /// What the backward pass keeps.
    pub recompute: Keep,
    /// Iterations between records; the last is always recorded.
    pub log_every: u64,
    /// Iterations between checkpoints; the last always gets one.
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
    /// Iterations between preview samples; 0 for none.
    pub preview_every: u64,
    /// Occurrences of non-finite values after which the run stops.
    pub non_finite_budget: u64,
}

/// What the backward pass keeps; [`Recompute`] as a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Every activation.
    Everything,
    /// Block inputs and attention outputs.
    Attention,
    /// Block inputs alone.
    Inputs,
}

impl From<Keep> for Recompute {
    fn from(k: Keep) -> Recompute {
        match k {
            Keep::Everything => Recompute::Nothing,
            Keep::Attention => Recompute::AllButAttention,
            Keep::Inputs => Recompute::Everything,
        }
    }
}

/// Settings of the loop that may differ between a run and its continuation: none changes an iteration that was taken. (The
/// number of iterations moves the fall of a teacher's learning rate, which comes last.)
pub const MAY_DIFFER: [&str; 5] =
    ["run.iterations", "run.log_every", "run.checkpoint_every", "run.keep_checkpoints", "run.preview_every"];

impl LoopConfig {
    /// Samples of one update.
    pub fn global_batch(&self) -> usize {
        self.batch * self.accumulation
    }

    /// Refuses settings with which nothing would run.
    ///
    /// # Errors
    /// The first such setting.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("run.iterations", self.iterations),
            ("run.batch", self.batch as u64),
            ("run.accumulation", self.accumulation as u64),
            ("run.log_every", self.log_every),
            ("run.checkpoint_every", self.checkpoint_every),
            ("run.keep_checkpoints", self.keep_checkpoints as u64),
        ];
        match counts.into_iter().find(|(_, n)| *n == 0) {
            Some((key, _)) => Err(Error::Setting { key, expected: "at least 1", got: "0".into() }),
            None => Ok(()),
        }
    }
}

/// A kind of training: knows how to take one iteration and how to save itself.
pub trait Training {
    /// Settings of the loop.
    fn config(&self) -> &LoopConfig;
    /// Iterations done.
    fn iteration(&self) -> u64;
    /// Takes one iteration: its phase and named measurements.
    ///
    /// # Errors
    /// If a network refuses, or non-finite values exceed their budget.
    fn step(&mut self) -> Result<(&'static str, Vec<(String, f64)>)>;
    /// Whether the state is that of the iterations done, also after one that failed.
    fn is_whole(&self) -> bool;
    /// Everything from which training can go on, but for iteration and configuration.
    ///
    /// # Errors
    /// If a state cannot be named.
    fn export(&self, checkpoint: &mut Checkpoint) -> Result<()>;
    /// Takes over a checkpoint.
    ///
    /// # Errors
    /// If it is not this training's.
    fn import(&mut self, checkpoint: &Checkpoint) -> Result<()>;
    /// The weights that samples are drawn from.
    ///
    /// # Errors
    /// Never for weights that belong to their network.
    fn sampling_weights(&self) -> Result<Params>;
}

/// What the program around a loop wants to see and to say.
pub trait Hooks {
    /// After every iteration.
    fn iteration(&mut self, done: u64, of: u64, phase: &str, values: &[(String, f64)]);
    /// Preview images (tag, PNG) of the weights.
    ///
    /// # Errors
    /// If sampling fails.
    fn preview(&mut self, iteration: u64, weights: &Params) -> Result<Vec<(String, Vec<u8>)>>;
    /// A message for the person at the terminal.
    fn say(&mut self, message: &str);
    /// Whether to save and stop.
    fn stop_requested(&self) -> bool;
}

/// How a loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All iterations are done.
    Finished,
    /// It was asked to stop, saved and can be resumed.
    Stopped {
        /// Iterations done.
        iteration: u64,
    },
}

struct Outputs {
    store: CheckpointStore,
    metrics: MetricsSink,
    tensorboard: TensorBoardWriter,
    configuration: Configuration,
    started: Instant,
    seconds_before: f64,
}

/// Trains in a folder until done or asked to stop; goes on from the folder's newest checkpoint where resuming. The text of
/// the configuration is kept in the folder as `config.toml`.
///
/// # Errors
/// If the folder is busy, holds another run or cannot be written, or training fails; the last checkpoint stands. Where a GPU's
/// memory runs out in the middle of an iteration, the iterations before it are saved first.
pub fn run(
    training: &mut dyn Training,
    folder: &Path,
    start: Start,
    (configuration, text): (Configuration, &str),
    hooks: &mut dyn Hooks,
) -> Result<Ending> {
    training.config().validate()?;
    let folder = RunFolder::open(folder, start)?;
    let mut outputs = open(training, &folder, configuration, hooks)?;
    write_aside(&folder.path().join(CONFIG_FILE), |file| file.write_all(text.as_bytes()))?;
    let of = training.config().iterations;
    while training.iteration() < of {
        if hooks.stop_requested() {
            outputs.save(training)?;
            return Ok(Ending::Stopped { iteration: training.iteration() });
        }
        let began = Instant::now();
        let (phase, mut values) = match training.step() {
            Err(e) if e.is_out_of_memory() && training.is_whole() => {
                outputs.save(training)?;
                hooks.say(&format!("saved after iteration {}; go on from there with --resume", training.iteration()));
                return Err(e);
            }
            stepped => stepped?,
        };
        values.push((format!("seconds/{phase}"), began.elapsed().as_secs_f64()));
        hooks.iteration(training.iteration(), of, phase, &values);
        outputs.record(training, phase, values, hooks)?;
    }
    Ok(Ending::Finished)
}

fn open(
    training: &mut dyn Training,
    folder: &RunFolder,
    configuration: Configuration,
    hooks: &mut dyn Hooks,
) -> Result<Outputs> {
    let store = CheckpointStore::new(&folder.checkpoints(), training.config().keep_checkpoints)?;
    store.repair()?;
    let resumed = store.load_latest(&configuration)?;
    let mut seconds_before = 0.0;
    if let Some(checkpoint) = &resumed {
        training.import(checkpoint)?;
        seconds_before = checkpoint.state["seconds"].as_f64().unwrap_or(0.0);
        hooks.say(&format!("resuming after iteration {}", checkpoint.iteration));
    }
    let at = resumed.map(|c| c.iteration);
    let metrics = match at {
        Some(iteration) => MetricsSink::resume(&folder.metrics(), iteration)?,
        None => MetricsSink::create(&folder.metrics())?,
    };
    let tensorboard = TensorBoardWriter::create(&folder.tensorboard(), at)?;
    Ok(Outputs { store, metrics, tensorboard, configuration, started: Instant::now(), seconds_before })
}

impl Outputs {
    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    fn record(
        &mut self,
        training: &dyn Training,
        phase: &str,
        values: Vec<(String, f64)>,
        hooks: &mut dyn Hooks,
    ) -> Result<()> {
        let (iteration, config) = (training.iteration(), training.config());
        let last = iteration == config.iterations;
        let due = |every: u64| every > 0 && (iteration.is_multiple_of(every) || last);
        if due(config.log_every) {
            self.tensorboard.scalars(iteration, values.iter().map(|(k, v)| (k.as_str(), *v)))?;
            let values = values.into_iter().collect();
            self.metrics.append(&Record { iteration, phase: phase.into(), seconds: self.seconds(), values })?;
        }
        if due(config.preview_every) {
            for (tag, png) in hooks.preview(iteration, &training.sampling_weights()?)? {
                self.tensorboard.image(iteration, &tag, &png)?;
            }
        }
        if due(config.checkpoint_every) {
            self.save(training)?;
        }
        Ok(())
    }

    fn save(&mut self, training: &dyn Training) -> Result<()> {
        self.metrics.sync()?;
        let mut checkpoint = Checkpoint {
            iteration: training.iteration(),
            files: Default::default(),
            state: Value::Object(Default::default()),
            configuration: self.configuration.clone(),
        };
        training.export(&mut checkpoint)?;
        checkpoint.state["seconds"] = self.seconds().into();
        self.store.save(&checkpoint).map(drop)
    }
}
