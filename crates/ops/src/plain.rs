use std::cell::RefCell;

use fewstep_tensor::cuda::memory::attributed_to;
use fewstep_tensor::{DType, Device, Tensor};

use crate::{Adapter, Mode, Op, Output, ParamId, Params, Result, Segment};

/// The mode of values: runs ops forward and keeps nothing.
pub struct Plain<'p> {
    params: &'p Params,
    taps: Option<RefCell<Vec<(String, Tensor)>>>,
    record: Option<RefCell<Vec<Output>>>,
}

impl<'p> Plain<'p> {
    /// Runs with these weights.
    pub fn new(params: &'p Params) -> Self {
        Plain { params, taps: None, record: None }
    }

    /// Also keeps the intermediate values that the network shows.
    pub fn with_taps(params: &'p Params) -> Self {
        Plain { params, taps: Some(RefCell::default()), record: None }
    }

    /// Also keeps the outputs of expensive ops, in order.
    pub(crate) fn recording(params: &'p Params) -> Self {
        Plain { params, taps: None, record: Some(RefCell::default()) }
    }

    /// The intermediate values shown so far.
    pub fn into_taps(self) -> Vec<(String, Tensor)> {
        self.taps.map(RefCell::into_inner).unwrap_or_default()
    }

    pub(crate) fn into_record(self) -> Vec<Output> {
        self.record.map(RefCell::into_inner).unwrap_or_default()
    }
}

impl Mode for Plain<'_> {
    type Value = Tensor;

    fn param(&self, id: ParamId) -> Result<Tensor> {
        Ok(self.params.get(id).clone())
    }

    fn adapter(&self, id: ParamId) -> Option<Adapter> {
        self.params.adapter(id)
    }

    fn constant(&self, t: Tensor) -> Tensor {
        t
    }

    fn shape<'v>(&self, v: &'v Tensor) -> &'v [usize] {
        v.shape()
    }

    fn dtype(&self, v: &Tensor) -> DType {
        v.dtype()
    }

    fn device(&self, v: &Tensor) -> Device {
        v.device()
    }

    fn apply(&self, op: impl Op + 'static, inputs: &[&Tensor]) -> Result<Tensor> {
        match &self.record {
            Some(record) if op.memory().survives_recomputation() => {
                let output = attributed_to(op.name(), || op.forward(inputs))?;
                record.borrow_mut().push(output.clone());
                Ok(output.y)
            }
            _ => attributed_to(op.name(), || op.value(inputs)),
        }
    }

    fn segment(&self, segment: impl Segment, inputs: &[&Tensor]) -> Result<Tensor> {
        let inputs: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
        segment.run(self, &inputs)
    }

    fn tap(&self, label: &str, v: &Tensor) {
        if let Some(taps) = &self.taps {
            taps.borrow_mut().push((label.to_string(), v.clone()));
        }
    }
}
