//! Networks, each written once for every mode of [`fewstep_ops`].
//!
//! A network is structure: its weights are a [`fewstep_ops::Params`], so one network serves as student, teacher, fake
//! score and average. One network is one folder: `model.rs`, `config.rs`, `weights.rs`.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod build;
pub mod clip;
mod error;
pub mod t5;
pub mod vae;
pub mod wan;
pub mod weights;

pub use build::{Affine, Builder, Projection};
pub use error::{Error, Result};
