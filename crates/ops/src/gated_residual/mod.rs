//! The residual connection of a modulated transformer block.

mod cpu;
mod cuda;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::cost::inputs;
use crate::layer_norm::rows::Rows;
use crate::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};

const NAME: &str = "gated_residual";

/// y = x + gate∘h: x [B, L, D], h [B, L, D], gate [B, G, D] → [B, L, D].
///
/// G divides L and group g gates the tokens g·L/G..(g+1)·L/G.
#[derive(Clone, Copy, Debug)]
pub struct GatedResidual;

fn rows(x: &[usize], h: &[usize], gate: &[usize]) -> Result<Rows> {
    if x != h {
        return Err(Error::input(NAME, format!("h of the shape of x, {x:?}"), h));
    }
    Rows::modulated(NAME, x, gate)
}

fn of(x: &[&Tensor]) -> Result<Rows> {
    match x {
        [x, h, gate] => rows(x.shape(), h.shape(), gate.shape()),
        _ => Err(Error::input(NAME, "x, h and gate", x.len())),
    }
}

impl Op for GatedResidual {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let r = of(x)?;
        match x[0].device() {
            Device::Cpu => {
                dispatch_float!(NAME, x[0].dtype(), T => Ok(cpu::add_gated::<T>(&r, Some(x[0]), &[(x[1], x[2])])?.into()))
            }
            Device::Cuda(_) => Ok(cuda::forward(&r, x)?.into()),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let r = of(x)?;
        if x[0].device() != Device::Cpu && (x_dot[1].is_some() || x_dot[2].is_some()) {
            return cuda::jvp(&r, x, x_dot);
        }
        let primal = self.forward(x)?.y;
        let mut products = Vec::new();
        products.extend(x_dot[1].map(|h_dot| (h_dot, x[2])));
        products.extend(x_dot[2].map(|gate_dot| (x[1], gate_dot)));
        if products.is_empty() {
            return Ok(Dual { primal, tangent: x_dot[0].cloned() });
        }
        let tangent = dispatch_float!(NAME, x[0].dtype(), T => cpu::add_gated::<T>(&r, x_dot[0], &products))?;
        Ok(Dual { primal, tangent: Some(tangent) })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let r = rows(saved.shape(0), saved.shape(1), saved.shape(2))?;
        if y_bar.shape() != saved.shape(0) {
            return Err(Error::input(NAME, format!("a cotangent {:?}", saved.shape(0)), y_bar.shape()));
        }
        if y_bar.device() != Device::Cpu {
            return cuda::vjp(&r, saved, y_bar, wanted);
        }
        dispatch_float!(NAME, y_bar.dtype(), T => {
            let h_bar = if wanted[1] { Some(cpu::add_gated::<T>(&r, None, &[(y_bar, saved.input(2)?)])?) } else { None };
            let gate_bar = if wanted[2] { Some(cpu::gate_bar::<T>(&r, saved, y_bar)?) } else { None };
            Ok(vec![wanted[0].then(|| y_bar.clone()), h_bar, gate_bar])
        })
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let [x, h, gate] = inputs(NAME, x)?;
        rows(&x.shape, &h.shape, &gate.shape)?;
        Ok(Cost { passes: vec![0], ..Cost::elementwise(x.clone(), 2.0, rule) })
    }

    fn memory(&self) -> Memory {
        Memory::inputs_but(0)
    }
}

#[cfg(test)]
mod tests {
    use fewstep_tensor::cuda::EMULATED;

    use super::*;
    use crate::suite;

    #[test]
    fn every_rule_holds_on_random_shapes() {
        let shapes =
            [[3, 2, 5, 7], [1, 1, 1, 1], [0, 1, 3, 4], [2, 1, 0, 3], [2, 3, 1, 33], [1, 2, 131, 17], [1, 4, 2, 0]];
        for (seed, [b, g, per_group, d]) in shapes.into_iter().enumerate() {
            let x = [b, g * per_group, d];
            suite::check(&GatedResidual, &[&x, &x, &[b, g, d]], seed as u64).unwrap();
        }
    }

    #[test]
    fn every_rule_holds_on_a_gpu() {
        for (seed, [b, g, per_group, d]) in
            [[3, 2, 5, 7], [0, 1, 3, 4], [2, 1, 0, 3], [2, 3, 1, 33], [1, 2, 35, 6], [1, 4, 2, 0]]
                .into_iter()
                .enumerate()
        {
            let x = [b, g * per_group, d];
            suite::check_on(EMULATED, &GatedResidual, &[&x, &x, &[b, g, d]], seed as u64).unwrap();
        }
        // Each output is rounded once, by at most 2⁻⁸ of it.
        for (seed, [b, g, per_group, d]) in [[2, 2, 20, 136], [1, 1, 9, 33]].into_iter().enumerate() {
            let x = [b, g * per_group, d];
            let shapes: [&[usize]; 3] = [&x, &x, &[b, g, d]];
            suite::check_half(EMULATED, &GatedResidual, (&shapes, &[2]), 2f64.powi(-8), seed as u64).unwrap();
        }
    }

    #[test]
    fn a_gate_that_does_not_divide_the_tokens_is_refused() {
        let f = |s: &[usize]| Tensor::zeros(s, fewstep_tensor::DType::F32, Device::Cpu);
        let e = GatedResidual.forward(&[&f(&[1, 5, 4]), &f(&[1, 5, 4]), &f(&[1, 2, 4])]).unwrap_err();
        assert!(e.to_string().contains("G dividing L"), "{e}");
    }
}
