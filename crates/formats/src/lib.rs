//! Files of weights as they are published: safetensors, PyTorch archives, folders of shards with an index.
//!
//! [`read_weights`] reads any of them. Nothing in a file is ever executed, and nothing is read before it is used.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod error;
mod folder;
pub mod torch;
mod zip;

pub use error::{Error, Result};
pub use folder::read_weights;
