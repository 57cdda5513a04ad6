//! Layer normalisation with a modulation per group of tokens, or with learned weights.

mod cpu;
mod cuda;
pub(crate) mod rows;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::cost::inputs;
use crate::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};
use rows::Rows;

/// y = LN(x)·(1 + scale) + shift, LN(x) = (x − mean)/√(var + eps) over the last axis, biased variance.
///
/// Inputs: x `[B, L, D]`, shift `[B, G, D]`, scale `[B, G, D]`; G divides L and group g modulates the tokens
/// g·L/G..(g+1)·L/G. Statistics are accumulated in the compute type.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormModulate {
    /// Added to the variance.
    pub eps: f64,
}

/// y = LN(x)·weight + bias, with LN of [`LayerNormModulate`].
///
/// Inputs: x `[..., D]`, weight `[D]`, bias `[D]`.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormAffine {
    /// Added to the variance.
    pub eps: f64,
}

/// Operations an element: mean, variance, scale, gain and offset.
const NORM_FLOPS: f64 = 8.0;

/// What both ops are: y = LN(x)·(base + factor) + offset.
struct Spec {
    name: &'static str,
    eps: f64,
    /// 1 where the factor is a scale around one, 0 where it is a weight.
    base: f64,
    /// Positions of factor and offset among the inputs.
    factor: usize,
    offset: usize,
}

impl Spec {
    fn rows(&self, x: &[usize], factor: &[usize], offset: &[usize]) -> Result<Rows> {
        if factor != offset {
            return Err(Error::input(self.name, "both modulations of one shape", (factor, offset)));
        }
        if self.base == 1.0 { Rows::modulated(self.name, x, factor) } else { Rows::shared(self.name, x, factor) }
    }

    fn of(&self, x: &[&Tensor]) -> Result<Rows> {
        match x {
            [_, _, _] => self.rows(x[0].shape(), x[self.factor].shape(), x[self.offset].shape()),
            _ => Err(Error::input(self.name, "three inputs", x.len())),
        }
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let rows = self.of(x)?;
        match x[0].device() {
            Device::Cpu => dispatch_float!(self.name, x[0].dtype(), T => cpu::forward::<T>(self, &rows, x)),
            Device::Cuda(_) => cuda::forward(self, &rows, x),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let rows = self.of(x)?;
        if x_dot.iter().all(Option::is_none) {
            return Ok(Dual { primal: self.forward(x)?.y, tangent: None });
        }
        match x[0].device() {
            Device::Cpu => dispatch_float!(self.name, x[0].dtype(), T => cpu::jvp::<T>(self, &rows, x, x_dot)),
            Device::Cuda(_) => cuda::jvp(self, &rows, x, x_dot),
        }
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let rows = self.rows(saved.shape(0), saved.shape(self.factor), saved.shape(self.offset))?;
        if y_bar.shape() != saved.shape(0) {
            return Err(Error::input(self.name, format!("a cotangent {:?}", saved.shape(0)), y_bar.shape()));
        }
        match y_bar.device() {
            Device::Cpu => {
                dispatch_float!(self.name, y_bar.dtype(), T => cpu::vjp::<T>(self, &rows, saved, y_bar, wanted))
            }
            Device::Cuda(_) => cuda::vjp(self, &rows, saved, y_bar, wanted),
        }
    }
}

impl Spec {
    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        inputs::<3>(self.name, x)?;
        let rows = self.rows(&x[0].shape, &x[self.factor].shape, &x[self.offset].shape)?;
        let kept = vec![Meta::new(&[rows.rows, 2], x[0].dtype.wide())];
        let scratch = if matches!(rule, Rule::Vjp([false, ..])) { x[0].bytes() } else { 0 };
        Ok(Cost { kept, scratch, ..Cost::elementwise(x[0].clone(), NORM_FLOPS, rule) })
    }
}

macro_rules! norm_op {
    ($op:ty, $name:literal, $base:literal, $factor:literal, $offset:literal) => {
        impl $op {
            fn spec(&self) -> Spec {
                Spec { name: $name, eps: self.eps, base: $base, factor: $factor, offset: $offset }
            }
        }

        impl Op for $op {
            fn name(&self) -> &'static str {
                $name
            }

            fn forward(&self, x: &[&Tensor]) -> Result<Output> {
                self.spec().forward(x)
            }

            fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
                self.spec().jvp(x, x_dot)
            }

            fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
                self.spec().vjp(saved, y_bar, wanted)
            }

            fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
                self.spec().cost(x, rule)
            }

            fn memory(&self) -> Memory {
                Memory::inputs_but($offset)
            }
        }
    };
}

norm_op!(LayerNormModulate, "layer_norm_modulate", 1.0, 2, 1);
norm_op!(LayerNormAffine, "layer_norm_affine", 0.0, 1, 2);

#[cfg(test)]
mod tests;
