//! The Wan2.1 video autoencoder, which Wan2.1, Wan2.2-A14B and Cosmos-Predict2 share.
//!
//! Both halves are streams: a frame goes in, and each layer hands on what it can say by then. So the published chunks of
//! frames and their caches are what the layers remember, and memory does not grow with the length of a video.

mod codec;
mod config;
mod layers;
mod model;
mod tile;
mod weights;

pub use codec::{Step, VaeOptions};
pub use config::VaeConfig;
pub use model::{Half, Stream, WanVae};
pub use tile::Tile;
pub use weights::VaeLayout;
