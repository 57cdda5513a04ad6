//! Text encoders of the T5 family: umT5-xxl (Wan) and T5-11B (Cosmos).
//!
//! Sources: T5, arXiv 1910.10683; umT5, arXiv 2304.09151; the encoder in Wan's published code.

mod block;
mod config;
mod model;
mod position;
mod weights;

pub use config::T5Config;
pub use model::{T5Encoder, Tokens};
pub use position::bucket;
pub use weights::T5Layout;
