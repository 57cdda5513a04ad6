use std::ops::Range;

use fewstep_data::{CHANNELS, Caption, DataOrder, Digits, FRAMES, HEIGHT, Split, WIDTH};
use fewstep_distill::optimizer::{AdamW, AdamWConfig, Step};
use fewstep_ops::{Grads, Mode, Params, Recompute, Reverse};
use fewstep_tensor::{DType, Device, Tensor, arith};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Augmentation, Classifier, LOGITS, cross_entropy, model};
use crate::{Error, Result};

/// Clips of one tape: what a thread works on. Fixed, so that sums do not depend on the number of threads.
const SHARD: usize = 32;
/// AdamW's decay of the moments: the usual first; a second short enough for runs of two thousand updates.
const BETAS: [f64; 2] = [0.9, 0.99];
/// The largest norm of a gradient let through unscaled; it bounds what one odd batch can do.
const CLIP_NORM: f64 = 1.0;

/// How the classifier is trained; the defaults are those of the shipped weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of the initial weights, the clips and their disturbance.
    pub seed: u64,
    /// Number of updates.
    pub steps: u64,
    /// Clips of an update.
    pub batch: usize,
    /// η after warmup; it falls to zero as half a cosine.
    pub learning_rate: f64,
    /// λ of AdamW.
    pub weight_decay: f64,
    /// Updates over which η rises.
    pub warmup_steps: u64,
    /// How training clips are disturbed.
    pub augmentation: Augmentation,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            seed: 2026,
            steps: 2000,
            batch: 128,
            learning_rate: 2e-3,
            weight_decay: 0.1,
            warmup_steps: 100,
            augmentation: Augmentation::default(),
        }
    }
}

impl TrainConfig {
    fn validate(&self) -> Result<()> {
        // The positions of a run are sample indices of random streams.
        let seen = self.steps.checked_mul(self.batch as u64);
        let checks = [
            ("batch", self.batch > 0, "at least 1", self.batch.to_string()),
            ("steps", seen.is_some_and(|n| n < 1 << 32), "below 2³² clips in all", self.steps.to_string()),
        ];
        match checks.into_iter().find(|check| !check.1) {
            Some((key, _, expected, got)) => Err(Error::Setting { key, expected, got }),
            None => self.augmentation.validate(),
        }
    }

    /// Half a cosine from 1 to 0.
    fn learning_rate_scale(&self, step: u64) -> f64 {
        0.5 * (1.0 + (std::f64::consts::PI * step as f64 / self.steps as f64).cos())
    }

    fn optimizer(&self, params: &Params) -> Result<AdamW> {
        let config = AdamWConfig {
            learning_rate: self.learning_rate,
            betas: BETAS,
            weight_decay: self.weight_decay,
            warmup_steps: self.warmup_steps,
            clip_norm: Some(CLIP_NORM),
            ..AdamWConfig::default()
        };
        let names: Vec<String> = params.specs().iter().map(|spec| spec.name.clone()).collect();
        Ok(AdamW::new(config, &names, params.tensors())?)
    }
}

/// Where a training run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Updates done.
    pub step: u64,
    /// Updates in all.
    pub steps: u64,
    /// Mean cross-entropy of the update's clips, before it.
    pub loss: f64,
    /// The share of the update's (disturbed) clips read right in all three.
    pub accuracy: f64,
}

/// Trains the classifier on clips of the training split; `progress` is called after each update.
///
/// A function of the configuration alone: the weights are the same bits for any number of threads (on one kind of CPU;
/// matrix products round differently where vectors are wider). The defaults take a minute on two cores.
///
/// # Errors
/// If a setting is out of range, or the gradients become non-finite.
pub fn train(config: &TrainConfig, mut progress: impl FnMut(Progress)) -> Result<Params> {
    config.validate()?;
    let classifier = Classifier::new();
    let mut params = Params::init(classifier.specs(), config.seed, DType::F32, Device::Cpu)?;
    let mut optimizer = config.optimizer(&params)?;
    let clips = DataOrder::new(Digits::load()?, Split::Train, config.seed);
    for step in 0..config.steps {
        let (first, end) = (step * config.batch as u64, (step + 1) * config.batch as u64);
        let shards: Vec<u64> = (first..end).step_by(SHARD).collect();
        let run = |&start: &u64| run_shard(config, &classifier, &params, &clips, start..end.min(start + SHARD as u64));
        let shards = shards.par_iter().map(run).collect::<Result<Vec<_>>>()?;
        let (grads, loss, right) = add_up(shards)?;
        match optimizer.step(params.trained_mut(), &grads, config.learning_rate_scale(step))? {
            Step::Taken(_) => {}
            Step::Skipped(bad) => return Err(Error::Diverged { step, parameter: bad.name }),
        }
        let n = config.batch as f64;
        progress(Progress { step: step + 1, steps: config.steps, loss: loss / n, accuracy: right as f64 / n });
    }
    Ok(params)
}

/// What a shard adds to an update.
struct Shard {
    grads: Vec<Tensor>,
    loss: f64,
    right: usize,
}

fn run_shard(
    config: &TrainConfig,
    classifier: &Classifier,
    params: &Params,
    clips: &DataOrder,
    positions: Range<u64>,
) -> Result<Shard> {
    let n = (positions.end - positions.start) as usize;
    let (mut captions, mut pixels) = (Vec::with_capacity(n), Vec::new());
    for position in positions {
        let mut clip = clips.clip(position);
        config.augmentation.apply(&mut clip.pixels, config.seed, position);
        captions.push(clip.caption);
        pixels.extend(clip.pixels);
    }
    let tape = Reverse::new(params, Recompute::Nothing);
    let x = tape.constant(Tensor::from_vec(pixels, &[n, CHANNELS, FRAMES, HEIGHT, WIDTH])?);
    let logits = classifier.forward(&tape, &x)?.logits;
    let loss = cross_entropy(logits.value(), &captions)?;
    let right = all_right(logits.value(), &captions);
    let mut grads = Grads::new(params);
    // The mean over the batch.
    let weights = vec![1.0 / config.batch as f64; n];
    tape.backward(&logits, arith::scale(&weights, &loss.cotangent)?, &mut grads)?;
    Ok(Shard { grads: grads.into_tensors(params), loss: loss.per_sample.iter().sum(), right })
}

/// How many clips are read right in all three.
fn all_right(logits: &Tensor, captions: &[Caption]) -> usize {
    let logits = logits.to_vec_f64();
    let rows = logits.chunks_exact(LOGITS).zip(captions);
    rows.filter(|&(row, &caption)| model::answers(row, caption) == [true; 3]).count()
}

fn add_up(shards: Vec<Shard>) -> Result<(Vec<Tensor>, f64, usize)> {
    let mut sum = (Vec::new(), 0.0, 0);
    for shard in shards {
        if sum.0.is_empty() {
            sum.0 = shard.grads;
        } else {
            for (total, grad) in sum.0.iter_mut().zip(&shard.grads) {
                arith::add_assign(total, grad)?;
            }
        }
        sum.1 += shard.loss;
        sum.2 += shard.right;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short() -> TrainConfig {
        TrainConfig { steps: 3, batch: 80, warmup_steps: 0, ..TrainConfig::default() }
    }

    fn weights(config: &TrainConfig, threads: usize) -> Vec<Vec<f64>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let params = pool.install(|| train(config, |_| {})).unwrap();
        params.tensors().iter().map(Tensor::to_vec_f64).collect()
    }

    #[test]
    fn training_gives_the_same_bits_for_any_number_of_threads() {
        assert_eq!(weights(&short(), 1), weights(&short(), 3));
    }

    #[test]
    fn the_loss_falls_from_that_of_a_guess() {
        let mut losses = Vec::new();
        let config = TrainConfig { steps: 40, batch: 32, warmup_steps: 5, ..TrainConfig::default() };
        train(&config, |p| losses.push(p.loss)).unwrap();
        // ln 10 + ln 6 + ln 8, and what random initial logits add.
        assert!(losses[0] > 6.0 && losses[0] < 8.0, "{}", losses[0]);
        assert!(losses[35..].iter().sum::<f64>() / 5.0 < 0.75 * losses[0], "{losses:?}");
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let none = TrainConfig { batch: 0, ..short() };
        let many = TrainConfig { steps: 1 << 32, ..short() };
        let share = TrainConfig { augmentation: Augmentation { share: 1.5, ..Augmentation::default() }, ..short() };
        for (config, key) in [(none, "batch"), (many, "steps"), (share, "augmentation.share")] {
            let e = train(&config, |_| {}).unwrap_err().to_string();
            assert!(e.contains(key), "{e}");
        }
    }

    #[test]
    fn a_diverged_run_stops_with_the_step() {
        let config = TrainConfig { steps: 50, batch: 8, learning_rate: 1e30, warmup_steps: 0, ..short() };
        let e = train(&config, |_| {}).unwrap_err();
        assert!(matches!(e, Error::Diverged { step: 1.., .. }), "{e}");
    }
}
