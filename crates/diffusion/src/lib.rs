//! Times, noise schedules, guidance and samplers of diffusion and flow models.
//!
//! The library's own time is TrigFlow's t ∈ [0, π/2], where x_t = cos t·x_0 + sin t·ε. Published networks and
//! schedulers speak of σ = tan t or of the rectified-flow time τ = sin t/(sin t + cos t); [`time`] alone converts.
//! Networks are closures here, so nothing in this crate depends on an architecture.
//!
//! | coordinate | state | velocity |
//! |---|---|---|
//! | [`TrigTime`] t | x_t = cos t·x_0 + sin t·ε | F = dx_t/dt = cos t·ε − sin t·x_0 |
//! | [`RfTime`] τ | x_t/(cos t + sin t) = (1−τ)·x_0 + τ·ε | ε − x_0 |
//! | [`Sigma`] σ | x_t/cos t = x_0 + σ·ε | ε |
//!
//! rCM is Zheng et al., "Large Scale Diffusion Distillation via Score-Regularized Continuous-Time Consistency",
//! arXiv 2510.08431.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod coefficient;
pub mod denoiser;
pub mod distribution;
mod error;
pub mod few_step;
pub mod generate;
pub mod guidance;
mod linear;
pub mod sampler;
pub mod schedule;
pub mod time;
mod unipc;

pub use coefficient::{Coefficient, Which};
pub use denoiser::{Denoiser, Predictor, Tape, clean};
pub use distribution::TimeDistribution;
pub use error::{Error, Result};
pub use few_step::{FewStepGrid, FewStepPreset, diffuse, few_step};
pub use generate::{Draw, Expert, Experts};
pub use guidance::{Branch, Guidance};
pub use sampler::{Sampler, Step};
pub use schedule::{Karras, Schedule, Space};
pub use time::{RfTime, Shift, Sigma, TrigTime, Wrapper};
