//! What generated clips are worth against held-out ones, in the feature space of a small classifier.
//!
//! A [`Classifier`] reads a clip's digit, colour and direction; its 64 penultimate values, before their non-linearity, are
//! the clip's features. On features stand the Fréchet distance and improved precision and recall ([`measures`]); on
//! the three answers stands the share of clips that show what their caption says. [`Evaluator`] does all of it.
//!
//! Numbers of two classifiers, or of two sample sizes, cannot be compared: quote n, and use the shipped weights.
//!
//! ```
//! use fewstep_data::{Digits, Split};
//! use fewstep_evaluate::Evaluator;
//!
//! let evaluator = Evaluator::new()?;
//! let reference = evaluator.reference(Split::HeldOut, 1, 200)?;
//! let digits = Digits::load()?;
//! let generated: Vec<_> = (0..200).map(|i| digits.clip(Split::Train, 2, i)).map(|c| (c.caption, c.pixels)).collect();
//! let measures = evaluator.evaluate(&generated, &reference)?;
//! assert!(measures.caption_accuracy > 0.9);
//! # Ok::<(), fewstep_evaluate::Error>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod classifier;
mod error;
pub mod measures;
mod report;

pub use classifier::{Classifier, Progress, TrainConfig, train};
pub use error::{Error, Result};
pub use measures::{Features, PrecisionRecall, frechet_distance, precision_recall};
pub use report::{Evaluator, Measures, Reference};
