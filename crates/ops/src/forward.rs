use fewstep_tensor::cuda::memory::attributed_to;
use fewstep_tensor::{DType, Device, Tensor};

use crate::{Adapter, Mode, Op, ParamId, Params, Result, Segment};

/// A value and its directional derivative; no tangent means zero.
#[derive(Clone, Debug)]
pub struct Dual {
    /// The value.
    pub primal: Tensor,
    /// The derivative in the direction of the inputs' tangents.
    pub tangent: Option<Tensor>,
}

/// The mode of dual numbers: value and Jacobian-vector product in one pass.
pub struct Forward<'p> {
    params: &'p Params,
}

impl<'p> Forward<'p> {
    /// Runs with these weights, which have no tangent.
    pub fn new(params: &'p Params) -> Self {
        Forward { params }
    }

    /// An input with its tangent.
    pub fn input(&self, primal: Tensor, tangent: Option<Tensor>) -> Dual {
        Dual { primal, tangent }
    }
}

impl Mode for Forward<'_> {
    type Value = Dual;

    fn param(&self, id: ParamId) -> Result<Dual> {
        Ok(self.constant(self.params.get(id).clone()))
    }

    fn adapter(&self, id: ParamId) -> Option<Adapter> {
        self.params.adapter(id)
    }

    fn constant(&self, t: Tensor) -> Dual {
        Dual { primal: t, tangent: None }
    }

    fn shape<'v>(&self, v: &'v Dual) -> &'v [usize] {
        v.primal.shape()
    }

    fn dtype(&self, v: &Dual) -> DType {
        v.primal.dtype()
    }

    fn device(&self, v: &Dual) -> Device {
        v.primal.device()
    }

    fn apply(&self, op: impl Op + 'static, inputs: &[&Dual]) -> Result<Dual> {
        let x: Vec<&Tensor> = inputs.iter().map(|d| &d.primal).collect();
        if inputs.iter().all(|d| d.tangent.is_none()) {
            return Ok(self.constant(attributed_to(op.name(), || op.value(&x))?));
        }
        let x_dot: Vec<Option<&Tensor>> = inputs.iter().map(|d| d.tangent.as_ref()).collect();
        attributed_to(op.name(), || op.jvp(&x, &x_dot))
    }

    fn segment(&self, segment: impl Segment, inputs: &[&Dual]) -> Result<Dual> {
        let inputs: Vec<Dual> = inputs.iter().map(|&d| d.clone()).collect();
        segment.run(self, &inputs)
    }

    fn tap(&self, _label: &str, _v: &Dual) {}
}
