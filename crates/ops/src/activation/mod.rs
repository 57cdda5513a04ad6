//! Elementwise non-linearities.

mod cpu;
mod cuda;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::cost::inputs;
use crate::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};

/// An elementwise non-linearity, y = a(x).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// ½x(1 + tanh(√(2/π)(x + 0.044715x³))): Wan, umT5.
    GeluTanh,
    /// ½x(1 + erf(x/√2)): Cosmos, Wan's image branch.
    GeluExact,
    /// x/(1 + e⁻ˣ)
    Silu,
    /// max(x, 0): T5. Its derivative at 0 is 0.
    Relu,
}

/// Operations an element: an exponential of degree seven, a division and the polynomial around them.
const FLOPS: f64 = 20.0;

fn unary<'t>(x: &[&'t Tensor]) -> Result<&'t Tensor> {
    match x {
        [x] => Ok(x),
        _ => Err(Error::input("activation", "one input", x.len())),
    }
}

impl Activation {
    /// d·a′(x), elementwise: a tangent forward, a cotangent backward.
    pub(crate) fn times_slope(self, x: &Tensor, d: &Tensor) -> Result<Tensor> {
        if d.shape() != x.shape() {
            return Err(Error::input("activation", format!("a tangent or cotangent {:?}", x.shape()), d.shape()));
        }
        match x.device() {
            Device::Cpu => dispatch_float!("activation", x.dtype(), T => cpu::vjp::<T>(self, x, d)),
            Device::Cuda(_) => cuda::vjp(self, x, d),
        }
    }
}

impl Op for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let x = unary(x)?;
        match x.device() {
            Device::Cpu => dispatch_float!("activation", x.dtype(), T => Ok(cpu::forward::<T>(*self, x)?.into())),
            Device::Cuda(_) => Ok(cuda::forward(*self, x)?.into()),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let x = unary(x)?;
        let Some(x_dot) = x_dot[0] else {
            return Ok(Dual { primal: self.forward(&[x])?.y, tangent: None });
        };
        match x.device() {
            Device::Cpu => dispatch_float!("activation", x.dtype(), T => cpu::jvp::<T>(*self, x, x_dot)),
            Device::Cuda(_) => cuda::jvp(*self, x, x_dot),
        }
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        if !wanted[0] {
            return Ok(vec![None]);
        }
        Ok(vec![Some(self.times_slope(saved.input(0)?, y_bar)?)])
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let [x] = inputs("activation", x)?;
        Ok(Cost::elementwise(x.clone(), FLOPS, rule))
    }

    fn memory(&self) -> Memory {
        Memory::INPUTS
    }
}

#[cfg(test)]
mod tests {
    use fewstep_tensor::cuda::EMULATED;

    use super::*;
    use crate::suite;

    #[test]
    fn every_rule_holds_on_random_shapes() {
        for op in [Activation::GeluTanh, Activation::GeluExact, Activation::Silu] {
            for (seed, shape) in [&[3usize, 5, 7][..], &[1], &[0, 3], &[70, 300]].iter().enumerate() {
                suite::check(&op, &[shape], seed as u64).unwrap();
            }
        }
    }

    #[test]
    fn every_rule_holds_on_a_gpu() {
        for op in [Activation::GeluTanh, Activation::GeluExact, Activation::Silu] {
            for (seed, shape) in [&[3usize, 5, 7][..], &[1], &[0, 3], &[7, 300]].iter().enumerate() {
                suite::check_on(EMULATED, &op, &[shape], seed as u64).unwrap();
            }
            // Each output is rounded once, by at most 2⁻⁸ of it.
            suite::check_half(EMULATED, &op, (&[&[7, 301]], &[]), 2f64.powi(-8), 5).unwrap();
        }
    }

    #[test]
    fn the_ramp_holds_every_rule_away_from_its_kink() {
        let away = |x: f64| if x.abs() < 0.1 { x + 0.2_f64.copysign(x) } else { x };
        for (seed, shape) in [&[3usize, 5, 7][..], &[0, 3], &[70, 300]].iter().enumerate() {
            let x = suite::draw(seed as u64, 0, &[shape]).unwrap().remove(0);
            let x = Tensor::from_vec(x.to_vec_f64().into_iter().map(away).collect(), shape).unwrap();
            suite::check_at(
                &suite::Elsewhere { op: &Activation::Relu, device: EMULATED },
                std::slice::from_ref(&x),
                seed as u64,
            )
            .unwrap();
            suite::check_at(&Activation::Relu, &[x], seed as u64).unwrap();
        }
    }

    #[test]
    fn the_tails_are_the_identity_and_zero() {
        let x = Tensor::from_vec(vec![-200.0f32, -20.0, 20.0, 200.0], &[4]).unwrap();
        let kinds = [Activation::GeluTanh, Activation::GeluExact, Activation::Silu, Activation::Relu];
        for (op, device) in kinds.into_iter().flat_map(|op| [(op, Device::Cpu), (op, EMULATED)]) {
            let x = x.to_device(device).unwrap();
            let y = op.forward(&[&x]).unwrap().y.to_vec_f64();
            assert!(y[0].abs() < 1e-7 && y[1].abs() < 1e-7, "{op:?}: {y:?}");
            assert!((y[2] - 20.0).abs() < 1e-6 && y[3] == 200.0, "{op:?}: {y:?}");
        }
    }
}
