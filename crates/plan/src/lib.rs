//! What a sampling or a distillation takes, before anything is loaded: memory, operations, time.
//!
//! Nothing here describes a network: its own code runs on shapes ([`fewstep_ops::Trace`]), and the training steps around
//! it are [`steps`]' mirror of `fewstep_distill`, which tests hold against measured peaks.
//!
//! | module | holds |
//! |---|---|
//! | [`request`] | what is asked, and what cannot be |
//! | [`passes`], [`steps`] | passes of the network, and training iterations, on shapes |
//! | [`hardware`] | rates and capacities of devices, with their sources |
//! | `parts` | the text encoder and the autoencoder, on shapes |
//! | [`estimate`] | memory by kind, work by phase, time |
//! | [`advice`] | what to change where it does not fit |
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod advice;
mod error;
pub mod estimate;
pub mod hardware;
mod parts;
pub mod passes;
pub mod request;
pub mod steps;

pub use advice::{Change, suggest};
pub use error::{Error, Result};
pub use estimate::{Kind, Phase, Plan, plan};
pub use hardware::Hardware;
pub use request::{Latent, Precision, Request, Work};
