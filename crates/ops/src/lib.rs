//! Operations as triples (forward, jvp, vjp), and the modes that interpret them.
//!
//! An [`Op`] is defined by three rules, side by side in its folder. A [`Mode`] interprets ops: [`Plain`] computes
//! values, [`Forward`] dual numbers, [`Reverse`] records a tape. A network is one function generic over the mode.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod activation;
mod adapters;
mod add;
mod attention;
mod cast;
mod causal_conv;
mod channel_norm;
mod combine;
mod compute;
pub mod cost;
mod embedding;
mod error;
mod forward;
mod gated_residual;
mod layer_norm;
mod linear;
mod mode;
mod multiply;
mod network;
mod op;
mod params;
mod plain;
mod rearrange;
mod relative_attention;
mod reverse;
mod rms_norm_rope;
mod row_kernels;
mod scale;
mod shape;
pub mod suite;
mod time_embedding;
mod trace;
mod units;
mod upsample;

pub use activation::Activation;
pub use adapters::{Adapter, Adapters};
pub use add::Add;
pub use attention::{Attention, Mask, MaskedAttention, Pairs, hopper_kernels};
pub use cast::Cast;
pub use causal_conv::{CausalConv, Padding, hopper_convolutions};
pub use channel_norm::ChannelNorm;
pub use combine::Combine;
pub use compute::Compute;
pub use cost::{Cost, Meta, Rule};
pub use embedding::Embedding;
pub use error::{Error, Result};
pub use forward::{Dual, Forward};
pub use gated_residual::GatedResidual;
pub use layer_norm::{LayerNormAffine, LayerNormModulate};
pub use linear::{Linear, LinearGelu};
pub use mode::{Mode, Segment};
pub use multiply::Multiply;
pub use network::{Conditions, Network};
pub use op::{Memory, Op, Output, Saved};
pub use params::{Init, ParamId, ParamSpec, Params};
pub use plain::Plain;
pub use rearrange::{PatchOrder, Rearrange};
pub use relative_attention::{RelativeAttention, Span};
pub use reverse::{Cotangents, Grads, Recompute, Reverse, Var};
pub use rms_norm_rope::{NormScope, RmsNormRope, Rope, RopeStyle, RopeTable};
pub use scale::Scale;
pub use shape::{Concat, Reshape, Slice};
pub use time_embedding::TimeEmbedding;
pub use trace::{Call, Ghost, GhostGrads, Ledger, Pass, Trace, Traced};
pub use upsample::Upsample;
