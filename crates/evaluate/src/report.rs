//! Judging a set of generated clips.

use std::fmt;

use fewstep_data::{CHANNELS, Caption, Digits, FRAMES, HEIGHT, Split, WIDTH};
use fewstep_ops::{Params, Plain};
use fewstep_tensor::{DType, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::classifier::{Classifier, FEATURES, LOGITS, answers, check_weights, shipped};
use crate::measures::{Features, NEIGHBOURS, frechet_distance, precision_recall};
use crate::{Error, Result};

/// Clips that a thread reads at once; their activations stay in the cache.
const BATCH: usize = 16;
/// Values of a clip.
const CLIP: usize = CHANNELS * FRAMES * HEIGHT * WIDTH;

/// Judges clips [C = 3, F = 6, H = 16, W = 16] of f32 in [-1, 1].
///
/// The classifier was trained to see through blur and noise, so precision and the accuracies forgive both: noise of
/// standard deviation 0.4 leaves 98 % of the captions readable. The Fréchet distance does not; read it beside them.
/// `assets/README.md` lists what sets of known worth score.
#[derive(Debug)]
pub struct Evaluator {
    classifier: Classifier,
    params: Params,
}

/// Features of real clips that generated ones are held against.
#[derive(Clone, Debug)]
pub struct Reference {
    features: Features,
}

impl Reference {
    /// The features [n, 64].
    pub fn features(&self) -> &Features {
        &self.features
    }
}

impl Evaluator {
    /// Judges with the shipped weights.
    ///
    /// # Errors
    /// [`Error::Weights`] if the program was built from a damaged checkout.
    pub fn new() -> Result<Self> {
        Self::with_weights(shipped()?)
    }

    /// Judges with other weights, those of [`crate::train`] or [`crate::classifier::read`]. What they report cannot be
    /// compared with what the shipped weights report.
    ///
    /// # Errors
    /// [`Error::Weights`] if they are not the classifier's.
    pub fn with_weights(params: Params) -> Result<Self> {
        check_weights(&params)?;
        Ok(Evaluator { classifier: Classifier::new(), params: params.to_dtype(DType::F32) })
    }

    /// The features [n, 64] of clips.
    ///
    /// # Errors
    /// If a clip has another number of values, or values that are not finite; the message says which.
    pub fn features<P: AsRef<[f32]> + Sync>(&self, clips: &[P]) -> Result<Features> {
        self.read(clips)?.features()
    }

    /// The features of clips 0..n of a split's seed.
    ///
    /// # Errors
    /// If the embedded digits are damaged.
    pub fn reference(&self, split: Split, seed: u64, n: usize) -> Result<Reference> {
        let digits = Digits::load()?;
        let clips: Vec<_> = (0..n as u64).into_par_iter().map(|i| digits.clip(split, seed, i).pixels).collect();
        Ok(Reference { features: self.features(&clips)? })
    }

    /// Judges generated clips by their captions and against a reference.
    ///
    /// # Errors
    /// If a clip has another number of values or values that are not finite; if either set has fewer than four clips.
    pub fn evaluate<P: AsRef<[f32]> + Sync>(
        &self,
        generated: &[(Caption, P)],
        reference: &Reference,
    ) -> Result<Measures> {
        let pixels: Vec<&[f32]> = generated.iter().map(|(_, pixels)| pixels.as_ref()).collect();
        let readings = self.read(&pixels)?;
        let features = readings.features()?;
        let near = precision_recall(&features, &reference.features, NEIGHBOURS)?;
        let accuracy = readings.accuracy(generated.iter().map(|&(caption, _)| caption));
        let [digit_accuracy, colour_accuracy, direction_accuracy, caption_accuracy] = accuracy;
        Ok(Measures {
            frechet: frechet_distance(&features, &reference.features)?,
            precision: near.precision,
            recall: near.recall,
            digit_accuracy,
            colour_accuracy,
            direction_accuracy,
            caption_accuracy,
            samples: generated.len(),
        })
    }

    fn read<P: AsRef<[f32]> + Sync>(&self, clips: &[P]) -> Result<Readings> {
        let batches = clips.par_chunks(BATCH).enumerate().map(|(i, batch)| self.read_batch(i * BATCH, batch));
        let mut all = Readings::default();
        for batch in batches.collect::<Result<Vec<_>>>()? {
            all.features.extend(batch.features);
            all.logits.extend(batch.logits);
        }
        Ok(all)
    }

    /// Reads clips of which the first is number `first`.
    fn read_batch<P: AsRef<[f32]>>(&self, first: usize, clips: &[P]) -> Result<Readings> {
        let mut pixels = Vec::with_capacity(clips.len() * CLIP);
        for (i, clip) in clips.iter().enumerate() {
            check(first + i, clip.as_ref())?;
            pixels.extend_from_slice(clip.as_ref());
        }
        let x = Tensor::from_vec(pixels, &[clips.len(), CHANNELS, FRAMES, HEIGHT, WIDTH])?;
        let reading = self.classifier.forward(&Plain::new(&self.params), &x)?;
        Ok(Readings { features: reading.features.to_vec_f64(), logits: reading.logits.to_vec_f64() })
    }
}

fn check(sample: usize, pixels: &[f32]) -> Result<()> {
    if pixels.len() != CLIP {
        return Err(Error::ClipSize { sample, expected: CLIP, got: pixels.len() });
    }
    match pixels.iter().position(|x| !x.is_finite()) {
        Some(first) => {
            let count = pixels.iter().filter(|x| !x.is_finite()).count();
            Err(Error::NonFinitePixels { sample, count, first })
        }
        None => Ok(()),
    }
}

/// Features [n, 64] and logits [n, 24] of clips.
#[derive(Default)]
struct Readings {
    features: Vec<f64>,
    logits: Vec<f64>,
}

impl Readings {
    fn features(&self) -> Result<Features> {
        Features::new(self.features.clone(), FEATURES)
    }

    /// The shares right in digit, colour, direction and all three.
    fn accuracy(&self, captions: impl Iterator<Item = Caption>) -> [f64; 4] {
        let mut right = [0usize; 4];
        for (logits, caption) in self.logits.chunks_exact(LOGITS).zip(captions) {
            let [digit, colour, direction] = answers(logits, caption);
            let each = [digit, colour, direction, digit && colour && direction];
            right.iter_mut().zip(each).for_each(|(sum, is)| *sum += usize::from(is));
        }
        let n = (self.logits.len() / LOGITS).max(1);
        right.map(|sum| sum as f64 / n as f64)
    }
}

/// What a set of generated clips is worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// The squared Fréchet distance to the reference, 0 or more, lower is better
    /// ([`frechet_distance`]).
    pub frechet: f64,
    /// The share of generated clips that look like real ones, in [0, 1] ([`precision_recall`]).
    pub precision: f64,
    /// The share of real clips that the generated ones cover, in [0, 1] ([`precision_recall`]).
    pub recall: f64,
    /// The share of clips that show the caption's digit, in [0, 1], as are the following.
    pub digit_accuracy: f64,
    /// The share of clips in the caption's colour.
    pub colour_accuracy: f64,
    /// The share of clips that move in the caption's direction.
    pub direction_accuracy: f64,
    /// The share of clips right in all three.
    pub caption_accuracy: f64,
    /// The number of generated clips.
    pub samples: usize,
}

impl Measures {
    /// The heading of the rows that `Display` writes.
    pub const HEADING: &str = "    n  Fréchet  precision  recall   digit  colour  direction  caption";
}

impl fmt::Display for Measures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| 100.0 * share;
        write!(
            f,
            "{:5}  {:7.2}  {:9.3}  {:6.3}  {:5.1}%  {:5.1}%  {:8.1}%  {:6.1}%",
            self.samples,
            self.frechet,
            self.precision,
            self.recall,
            percent(self.digit_accuracy),
            percent(self.colour_accuracy),
            percent(self.direction_accuracy),
            percent(self.caption_accuracy),
        )
    }
}
