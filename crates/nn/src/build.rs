//! Declaring parameters and applying the layers made of them.

use fewstep_ops::{Activation, Add, Init, Linear, LinearGelu, Mode, Op, ParamId, ParamSpec, Result, Scale};

/// Collects a network's parameters in order.
#[derive(Debug, Default)]
pub struct Builder {
    specs: Vec<ParamSpec>,
}

impl Builder {
    /// Declares one parameter.
    pub fn param(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> ParamId {
        self.specs.push(ParamSpec { name: name.into(), shape: shape.to_vec(), init, wide: false });
        ParamId(self.specs.len() - 1)
    }

    /// Declares parameters that stay wide where the network computes in less.
    pub fn wide<R>(&mut self, declare: impl FnOnce(&mut Self) -> R) -> R {
        let first = self.specs.len();
        let declared = declare(self);
        self.specs[first..].iter_mut().for_each(|spec| spec.wide = true);
        declared
    }

    /// Declares one that stays wide.
    pub fn wide_param(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> ParamId {
        self.wide(|b| b.param(name, shape, init))
    }

    /// Declares `name.weight` [outputs, inputs] of variance 1/inputs and `name.bias` of zeros.
    pub fn projection(&mut self, name: &str, inputs: usize, outputs: usize) -> Projection {
        self.projection_with(name, inputs, outputs, Init::Normal((inputs as f64).powf(-0.5)))
    }

    /// Declares `name.weight` [outputs, inputs] and `name.bias` of zeros.
    pub fn projection_with(&mut self, name: &str, inputs: usize, outputs: usize, init: Init) -> Projection {
        let weight = self.param(format!("{name}.weight"), &[outputs, inputs], init);
        let bias = self.param(format!("{name}.bias"), &[outputs], Init::Zeros);
        Projection { weight, bias: Some(bias) }
    }

    /// Declares `name.weight` [outputs, inputs] of variance 1/inputs, without a bias.
    pub fn matrix(&mut self, name: &str, inputs: usize, outputs: usize) -> Projection {
        let init = Init::Normal((inputs as f64).powf(-0.5));
        Projection { weight: self.param(format!("{name}.weight"), &[outputs, inputs], init), bias: None }
    }

    /// Declares `name.weight` of ones and `name.bias` of zeros, both wide.
    pub fn affine(&mut self, name: &str, dim: usize) -> Affine {
        let weight = self.wide_param(format!("{name}.weight"), &[dim], Init::Ones);
        let bias = self.wide_param(format!("{name}.bias"), &[dim], Init::Zeros);
        Affine { weight, bias }
    }

    /// The parameters declared so far.
    pub fn finish(self) -> Vec<ParamSpec> {
        self.specs
    }
}

/// A linear layer, with a bias or without.
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Projection {
    /// x·Wᵀ + b, or x·Wᵀ without a bias; and (c·x·Aᵀ)·Bᵀ where the weight has an adapter.
    ///
    /// # Errors
    /// If x has another width than the layer.
    pub fn apply<M: Mode>(&self, m: &M, x: &M::Value) -> Result<M::Value> {
        let y = match self.bias {
            Some(bias) => m.apply(Linear { bias: true }, &[x, &m.param(self.weight)?, &m.param(bias)?])?,
            None => m.apply(Linear { bias: false }, &[x, &m.param(self.weight)?])?,
        };
        let Some(adapter) = m.adapter(self.weight) else { return Ok(y) };
        let low = m.apply(Linear { bias: false }, &[x, &m.param(adapter.a)?])?; // [..., r]
        let low = m.apply(Scale { by: adapter.scale }, &[&low])?;
        m.apply(Add, &[&y, &m.apply(Linear { bias: false }, &[&low, &m.param(adapter.b)?])?])
    }

    /// Another layer applied to the activation of this one.
    ///
    /// # Errors
    /// As [`Projection::apply`].
    pub fn then<M: Mode>(&self, m: &M, x: &M::Value, a: Activation, next: &Projection) -> Result<M::Value> {
        // An adapter adds to what the activation is of.
        let fused = a == Activation::GeluTanh && m.adapter(self.weight).is_none();
        let activated = match self.bias {
            Some(bias) if fused => m.apply(LinearGelu { bias: true }, &[x, &m.param(self.weight)?, &m.param(bias)?])?,
            _ => m.apply(a, &[&self.apply(m, x)?])?,
        };
        next.apply(m, &activated)
    }
}

/// Gain and offset of a normalisation.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    weight: ParamId,
    bias: ParamId,
}

impl Affine {
    /// The normalisation with this gain and offset.
    ///
    /// # Errors
    /// If x has another width.
    pub fn apply<M: Mode>(&self, m: &M, norm: impl Op + 'static, x: &M::Value) -> Result<M::Value> {
        m.apply(norm, &[x, &m.param(self.weight)?, &m.param(self.bias)?])
    }
}
