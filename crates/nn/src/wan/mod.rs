//! Wan2.1 and Wan2.2 diffusion transformers: text to video and image to video.
//!
//! Source: Wan, "Open and advanced large-scale video generative models", arXiv 2503.20314, and its published code.

mod adapters;
mod block;
mod config;
mod infer;
mod json;
mod model;
mod weights;

pub use config::WanConfig;
pub use model::Wan;
pub use weights::WanLayout;
