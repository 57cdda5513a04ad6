//! The image encoder of Wan2.1 image to video: the visual tower of open-clip's xlm-roberta-large ViT-H/14.

mod block;
mod config;
mod model;
mod preprocess;
mod weights;

pub use config::ClipConfig;
pub use model::ClipVision;
pub use preprocess::preprocess;
