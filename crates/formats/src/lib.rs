//! Files of weights as they are published: safetensors, PyTorch archives, folders of shards with an index.
//!
//! [`read_weights`] reads any of them, [`write_weights`] and [`write_folder`] write. Nothing in a file is ever executed, and nothing is read before it is used.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod error;
mod folder;
pub mod torch;
mod write;
mod zip;

pub use error::{Error, Result};
pub use folder::read_weights;
pub use write::{FileKind, write_folder, write_weights};
