//! Computation in bf16, played on the host in f64: every op rounds its output, and the cotangents of its inputs, to bf16.
//!
//! What a device computes in bf16 may be off by twice what this is off. Rounded is what a device rounds: activations and their
//! tangents and cotangents. What stays wide there (the path of the time, modulation, gains, cotangents of weights) is not.

use std::sync::Arc;

use fewstep_ops::{
    Adapter, Conditions, Cost, Dual, Meta, Mode, Network, Op, Output, ParamId, ParamSpec, Reshape, Result, Rule, Saved,
    Segment,
};
use fewstep_tensor::{DType, Device, Tensor};

/// The elements rounded to bf16, in the dtype of the tensor.
pub fn rounded(t: &Tensor) -> Tensor {
    t.to_dtype(DType::Bf16).to_dtype(t.dtype())
}

/// What a value is where a network computes in bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An activation in bf16.
    Activation,
    /// A weight in bf16, which has a wide cotangent.
    Weight,
    /// Wide.
    Wide,
}

/// A value of a mode, with what it is in bf16.
#[derive(Clone, Debug)]
pub struct Value<V> {
    inner: V,
    kind: Kind,
}

/// A mode in which every op rounds as in bf16.
pub struct Rounding<'m, M> {
    mode: &'m M,
    specs: &'m Arc<[ParamSpec]>,
}

impl<'m, M: Mode> Rounding<'m, M> {
    /// Interprets ops by a mode, of a network with these parameters.
    pub fn new(mode: &'m M, specs: &'m Arc<[ParamSpec]>) -> Self {
        Rounding { mode, specs }
    }

    /// A value that is rounded, with its tangent and cotangent.
    ///
    /// # Errors
    /// As the mode's.
    pub fn activation(&self, v: &M::Value) -> Result<Value<M::Value>> {
        let same = Reshape { shape: self.mode.shape(v).to_vec() };
        self.apply(same, &[&Value { inner: v.clone(), kind: Kind::Activation }])
    }

    /// A value that stays wide.
    pub fn wide(&self, v: &M::Value) -> Value<M::Value> {
        Value { inner: v.clone(), kind: Kind::Wide }
    }

    /// The mode's own value.
    ///
    /// # Errors
    /// As the mode's.
    pub fn inner(&self, v: &Value<M::Value>) -> Result<M::Value> {
        Ok(self.activation(&v.inner)?.inner)
    }
}

impl<M: Mode> Mode for Rounding<'_, M> {
    type Value = Value<M::Value>;

    fn param(&self, id: ParamId) -> Result<Self::Value> {
        let kind = if self.specs[id.0].wide { Kind::Wide } else { Kind::Weight };
        Ok(Value { inner: self.mode.param(id)?, kind })
    }

    fn adapter(&self, id: ParamId) -> Option<Adapter> {
        self.mode.adapter(id)
    }

    fn constant(&self, t: Tensor) -> Self::Value {
        Value { inner: self.mode.constant(rounded(&t)), kind: Kind::Activation }
    }

    fn apply(&self, op: impl Op + 'static, inputs: &[&Self::Value]) -> Result<Self::Value> {
        // The embedding of a time is wide, and so is what is computed of wide values alone.
        let wide = inputs.iter().all(|v| v.kind == Kind::Wide);
        let op = Rounded { op, output: !wide, inputs: inputs.iter().map(|v| v.kind == Kind::Activation).collect() };
        let values: Vec<&M::Value> = inputs.iter().map(|v| &v.inner).collect();
        let kind = if wide { Kind::Wide } else { Kind::Activation };
        Ok(Value { inner: self.mode.apply(op, &values)?, kind })
    }

    fn segment(&self, segment: impl Segment, inputs: &[&Self::Value]) -> Result<Self::Value> {
        segment.run(self, &inputs.iter().map(|&v| v.clone()).collect::<Vec<_>>())
    }

    fn tap(&self, label: &str, v: &Self::Value) {
        self.mode.tap(label, &v.inner);
    }

    fn shape<'v>(&self, v: &'v Self::Value) -> &'v [usize] {
        self.mode.shape(&v.inner)
    }

    fn dtype(&self, v: &Self::Value) -> DType {
        self.mode.dtype(&v.inner)
    }

    fn device(&self, v: &Self::Value) -> Device {
        self.mode.device(&v.inner)
    }
}

/// An op that rounds its output, and the cotangents of those inputs that are activations.
#[derive(Debug)]
struct Rounded<O> {
    op: O,
    output: bool,
    inputs: Vec<bool>,
}

impl<O: Op> Rounded<O> {
    fn output(&self, t: Tensor) -> Tensor {
        if self.output { rounded(&t) } else { t }
    }
}

impl<O: Op> Op for Rounded<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let Output { y, kept } = self.op.forward(x)?;
        Ok(Output { y: self.output(y), kept })
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let Dual { primal, tangent } = self.op.jvp(x, x_dot)?;
        Ok(Dual { primal: self.output(primal), tangent: tangent.map(|t| self.output(t)) })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let bars = self.op.vjp(saved, y_bar, wanted)?;
        let round =
            |(bar, &activation): (Option<Tensor>, &bool)| if activation { bar.as_ref().map(rounded) } else { bar };
        Ok(bars.into_iter().zip(&self.inputs).map(round).collect())
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        self.op.cost(x, rule)
    }

    fn memory(&self) -> fewstep_ops::Memory {
        self.op.memory()
    }
}

/// A network whose ops round as in bf16. Times stay as they are.
#[derive(Debug)]
pub struct RoundedNetwork<N>(pub N);

impl<N: Network> Network for RoundedNetwork<N> {
    fn specs(&self) -> &Arc<[ParamSpec]> {
        self.0.specs()
    }

    fn forward<M: Mode>(
        &self,
        m: &M,
        x: &M::Value,
        t: &M::Value,
        conditions: &Conditions<M::Value>,
    ) -> Result<M::Value> {
        let m = Rounding::new(m, self.0.specs());
        let optional = |v: &Option<M::Value>| v.as_ref().map(|v| m.activation(v)).transpose();
        let conditions = Conditions {
            text: m.activation(&conditions.text)?,
            image: optional(&conditions.image)?,
            latent: optional(&conditions.latent)?,
        };
        let y = self.0.forward(&m, &m.activation(x)?, &m.wide(t), &conditions)?;
        m.inner(&y)
    }
}
