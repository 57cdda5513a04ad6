//! Distilling a diffusion model into a generator of few steps: the objectives, the optimiser, the averaged weights, and
//! everything that lets a run stop at any point and go on as if it had not.
//!
//! | module | holds |
//! |---|---|
//! | [`method`], [`objectives`], [`steps`] | what is minimised: settings and phases, pure losses, one step of each |
//! | [`training`], [`distiller`], [`teaching`] | the loop, and the two kinds of training it runs |
//! | [`learner`], [`train`], [`examples`] | one network in training; which of its parameters; where examples come from |
//! | [`check_jvp`] | whether forward-mode tangents are derivatives |
//! | [`optimizer`] | AdamW with warmup; refuses non-finite gradients |
//! | [`ema`] | the power-function average of the student |
//! | [`parameters`] | lists of parameters to and from named tensors, strictly |
//! | [`non_finite`] | the ledger of non-finite values and its budget |
//! | [`run_folder`] | one process owns one output folder |
//! | [`checkpoint`] | the training state on disk: written aside, checked, resumed |
//! | [`configuration`] | whether a run may continue from a checkpoint |
//! | [`digest`] | SHA-256 of files |
//! | [`metrics`], [`tensorboard`] | what a run measures, as JSON lines and as event files |
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod check_jvp;
pub mod checkpoint;
pub mod configuration;
pub mod digest;
pub mod distiller;
pub mod ema;
mod error;
pub mod examples;
pub mod learner;
pub mod method;
pub mod metrics;
pub mod non_finite;
pub mod objectives;
pub mod optimizer;
pub mod parameters;
pub mod run_folder;
pub mod steps;
pub mod teaching;
pub mod tensorboard;
pub mod train;
pub mod training;

pub use error::{Error, Result};
