//! Elementwise product.

mod cpu;
mod cuda;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::cost::{self, Cost, Meta, Rule};
use crate::{Dual, Error, Memory, Op, Output, Result, Saved};

const NAME: &str = "multiply";

/// y = a∘b, of equal shapes: the gate of a gated feed-forward layer.
#[derive(Clone, Copy, Debug)]
pub struct Multiply;

fn of<'t>(x: &[&'t Tensor]) -> Result<[&'t Tensor; 2]> {
    match x {
        &[a, b] if a.shape() == b.shape() => Ok([a, b]),
        _ => Err(Error::input(NAME, "two inputs of one shape", x.iter().map(|t| t.shape()).collect::<Vec<_>>())),
    }
}

/// Σ of one or two products.
fn products(pairs: &[(&Tensor, &Tensor)]) -> Result<Option<Tensor>> {
    let Some((first, _)) = pairs.first() else { return Ok(None) };
    dispatch_float!(NAME, first.dtype(), T => Ok(Some(cpu::sum_of_products::<T>(pairs)?)))
}

impl Op for Multiply {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let [a, b] = of(x)?;
        match a.device() {
            Device::Cpu => dispatch_float!(NAME, a.dtype(), T => Ok(cpu::sum_of_products::<T>(&[(a, b)])?.into())),
            Device::Cuda(_) => Ok(cuda::forward(a, b)?.into()),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let [a, b] = of(x)?;
        if a.device() != Device::Cpu && x_dot.iter().any(Option::is_some) {
            return cuda::jvp(a, b, x_dot);
        }
        let terms: Vec<_> =
            [x_dot[0].map(|a_dot| (a_dot, b)), x_dot[1].map(|b_dot| (a, b_dot))].into_iter().flatten().collect();
        Ok(Dual { primal: self.forward(x)?.y, tangent: products(&terms)? })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let inputs = of(&[saved.input(0)?, saved.input(1)?])?;
        if y_bar.shape() != inputs[0].shape() {
            return Err(Error::input(NAME, format!("a cotangent {:?}", inputs[0].shape()), y_bar.shape()));
        }
        if y_bar.device() != Device::Cpu {
            return cuda::vjp(inputs, y_bar, wanted);
        }
        (0..2).map(|i| if wanted[i] { products(&[(y_bar, inputs[1 - i])]) } else { Ok(None) }).collect()
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let [a, b] = cost::inputs(NAME, x)?;
        match a.shape == b.shape {
            true => Ok(Cost::new(a.clone(), a.len() as f64 * rule.products(&[0, 1]))),
            false => Err(Error::input(NAME, "two inputs of one shape", (&a.shape, &b.shape))),
        }
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
        for (seed, shape) in [&[3usize, 5, 7][..], &[1], &[0, 3], &[70, 300]].iter().enumerate() {
            suite::check(&Multiply, &[shape, shape], seed as u64).unwrap();
        }
    }

    #[test]
    fn every_rule_holds_on_a_gpu() {
        for (seed, shape) in [&[3usize, 5, 7][..], &[1], &[0, 3], &[7, 300]].iter().enumerate() {
            suite::check_on(EMULATED, &Multiply, &[shape, shape], seed as u64).unwrap();
        }
        // Each output is rounded once, by at most 2⁻⁸ of it.
        suite::check_half(EMULATED, &Multiply, (&[&[7, 301], &[7, 301]], &[]), 2f64.powi(-8), 5).unwrap();
    }

    #[test]
    fn other_shapes_are_refused_with_both() {
        let t = |s: &[usize]| Tensor::zeros(s, fewstep_tensor::DType::F32, Device::Cpu);
        let e = Multiply.forward(&[&t(&[2, 3]), &t(&[3, 2])]).unwrap_err().to_string();
        assert!(e.contains("[2, 3]") && e.contains("[3, 2]"), "{e}");
    }
}
