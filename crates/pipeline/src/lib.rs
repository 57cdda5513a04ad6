//! Published Wan models as they come: their folders, their parts, and the way from a prompt to frames.
//!
//! [`Parts`] finds the files of a model, [`Transformer`] reads a network, [`Prompts`] makes text embeddings and
//! [`Autoencoder`] goes between frames and latents. Sampling itself is `fewstep-diffusion`'s.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod autoencoder;
mod error;
mod image;
mod parts;
mod prompts;
mod transformer;

pub use autoencoder::Autoencoder;
pub use error::{Error, Result};
pub use image::ImageConditioner;
pub use parts::{PUBLISHED, Parts, locate};
pub use prompts::Prompts;
pub use transformer::Transformer;
