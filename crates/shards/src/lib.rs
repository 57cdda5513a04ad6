//! Training shards in the published WebDataset layout: building, verifying and streaming them.
//!
//! A set is a folder of `shard_{:06}.tar`. A sample is three members, in this order: `{:09}.latent.pt` (bf16
//! [C, F, H, W], 16×21×60×104 as published), `{:09}.embed.pt` (bf16 [S, D], 512×4096) and `{:09}.prompt.txt` (UTF-8).
//! Also read: one merged tar, members as `key/key.ext`, and `.safetensors` in place of `.pt` (which is written on demand).
//! Archives are read in place: nothing is ever extracted to disk.
//!
//! - [`build()`]: a set from a closure that gives sample i; restartable, idempotent.
//! - [`verify`](mod@verify): every member of a set checked, each bad one named.
//! - [`reader`]: the sample at a position, in an order that is a pure function of (seed, position).
//! - [`prefetch`]: the same, read ahead in the background.
//! - [`order`]: that order. [`scan`]: what is in a tar, and what is refused there.
//! - [`codec`]: tensors in members.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod build;
pub mod codec;
mod digest;
mod error;
mod index;
pub mod layout;
mod lock;
pub mod manifest;
pub mod order;
pub mod prefetch;
pub mod reader;
pub mod scan;
pub mod verify;

pub use build::{BuildOutcome, BuildPlan, BuildProgress, Sample, build};
pub use codec::Encoding;
pub use error::{Error, Result};
pub use order::Order;
pub use prefetch::Prefetcher;
pub use reader::{Example, Incomplete, IndexCache, ReadOptions, ShardReader, shard_files};
pub use verify::{Expected, Report, VerifyProgress, verify};
