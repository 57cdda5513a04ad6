use fewstep_tensor::{DType, Device, Tensor};

use crate::{Adapter, Op, ParamId, Result};

/// An interpreter of ops. A network is one function generic over it.
pub trait Mode {
    /// What flows through the network: a tensor, a dual number, a variable on a tape.
    type Value: Clone;

    /// A parameter of the network.
    ///
    /// # Errors
    /// If it cannot be brought to the device.
    fn param(&self, id: ParamId) -> Result<Self::Value>;

    /// The adapter of a weight, if it has one: what a linear layer adds to its product.
    fn adapter(&self, id: ParamId) -> Option<Adapter>;

    /// A value that nothing is differentiated by.
    fn constant(&self, t: Tensor) -> Self::Value;

    /// Applies an op.
    ///
    /// # Errors
    /// As the op's rule.
    fn apply(&self, op: impl Op + 'static, inputs: &[&Self::Value]) -> Result<Self::Value>;

    /// Runs a segment: the unit of recomputation, of gathering parameters and of reducing gradients.
    ///
    /// # Errors
    /// As the ops inside.
    fn segment(&self, segment: impl Segment, inputs: &[&Self::Value]) -> Result<Self::Value>;

    /// Shows an intermediate value to whoever asked to see it.
    fn tap(&self, label: &str, v: &Self::Value);

    /// The extents of a value.
    fn shape<'v>(&self, v: &'v Self::Value) -> &'v [usize];

    /// The dtype of a value.
    fn dtype(&self, v: &Self::Value) -> DType;

    /// Where a value is.
    fn device(&self, v: &Self::Value) -> Device;
}

/// A part of a network that can be run again: one transformer block, the head, an embedder.
///
/// It owns what it needs (parameter ids are numbers, tables are shared), so that a tape can keep it.
pub trait Segment: 'static {
    /// Runs the part in a mode.
    ///
    /// # Errors
    /// As the ops inside.
    fn run<M: Mode>(&self, m: &M, inputs: &[M::Value]) -> Result<M::Value>;
}
