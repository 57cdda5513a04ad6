//! Where training examples come from.

use fewstep_ops::Conditions;
use fewstep_tensor::Tensor;

use crate::Result;

/// Clean samples with their conditions.
#[derive(Clone, Debug)]
pub struct Examples {
    /// [B, C, F, H, W], f32.
    pub x_0: Tensor,
    /// Conditions of the same samples, f32.
    pub conditions: Conditions,
}

/// An endless list of examples: a pure function of position, so that a resumed run reads what it would have read.
pub trait ExampleSource: Sync {
    /// Examples `position..position + n`.
    ///
    /// # Errors
    /// If they cannot be read.
    fn examples(&self, position: u64, n: usize) -> Result<Examples>;

    /// The empty or negative prompt, `n` times, f32.
    ///
    /// # Errors
    /// If it cannot be made.
    fn unconditional(&self, n: usize) -> Result<Conditions>;
}
