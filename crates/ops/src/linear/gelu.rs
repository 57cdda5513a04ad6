//! The GELU of a linear layer: where a product's epilogue has it, what is before it is not read again, and not written where
//! nothing is differentiated.

use fewstep_tensor::{Device, Tensor};

use super::{Linear, cuda};
use crate::{Activation, Cost, Dual, Memory, Meta, Op, Output, Result, Rule, Saved};

const GELU: Activation = Activation::GeluTanh;

/// y = gelu(x·Wᵀ (+ b)) with the GELU by the hyperbolic tangent; inputs as those of [`Linear`].
///
/// Keeps x·Wᵀ + b for the vjp. On a GPU in bf16 the GELU is of the f32 sum, else of the sum as it is kept.
#[derive(Clone, Copy, Debug)]
pub struct LinearGelu {
    /// Whether there is a bias.
    pub bias: bool,
}

impl LinearGelu {
    fn linear(&self) -> Linear {
        Linear { bias: self.bias }
    }

    /// y, and what it is the GELU of; that may be missing where it is not to be kept.
    fn products(&self, x: &[&Tensor], keep: bool) -> Result<(Tensor, Option<Tensor>)> {
        let (linear, b) = (self.linear(), x.get(2).copied());
        let e = linear.of(x)?;
        if matches!(x[0].device(), Device::Cuda(_)) && cuda::has_gelu(&e, x[0].dtype()) {
            return cuda::gelu(&e, x[0], x[1], b, keep);
        }
        let hidden = linear.product(x[0], x[1], b, None)?;
        Ok((GELU.value(&[&hidden])?, Some(hidden)))
    }
}

impl Op for LinearGelu {
    fn name(&self) -> &'static str {
        "linear_gelu"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let (y, hidden) = self.products(x, true)?;
        Ok(Output { y, kept: hidden.into_iter().collect() })
    }

    fn value(&self, x: &[&Tensor]) -> Result<Tensor> {
        Ok(self.products(x, false)?.0)
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let moves = x_dot.iter().any(Option::is_some);
        let (primal, hidden) = self.products(x, moves)?;
        let tangent = match hidden {
            Some(hidden) => self.linear().tangent(x, x_dot)?.map(|hidden_dot| GELU.times_slope(&hidden, &hidden_dot)),
            None => None,
        };
        Ok(Dual { primal, tangent: tangent.transpose()? })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        self.vjp_onto(saved, y_bar.clone(), wanted, vec![None; wanted.len()])
    }

    fn vjp_onto(
        &self,
        saved: &Saved,
        y_bar: Tensor,
        wanted: &[bool],
        sums: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let hidden_bar = GELU.times_slope(saved.kept(0)?, &y_bar)?;
        drop(y_bar);
        self.linear().vjp_onto(saved, hidden_bar, wanted, sums)
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let product = self.linear().cost(x, rule)?;
        let hidden = product.y.bytes();
        let scratch = match rule {
            Rule::Forward => product.scratch,
            // The tangent before the GELU.
            Rule::Jvp(moving) => product.scratch + if moving.contains(&true) { hidden } else { 0 },
            // The cotangent before the GELU: beside ȳ at first, then in its place beside what is made of it.
            Rule::Vjp(wanted) => {
                let made: usize = x.iter().zip(wanted).filter(|(_, wanted)| **wanted).map(|(m, _)| m.bytes()).sum();
                product.scratch.max(hidden.saturating_sub(made))
            }
        };
        // Operations are the product's: the GELU is a thousandth of them.
        Ok(Cost { kept: vec![product.y.clone()], scratch, ..product })
    }

    fn memory(&self) -> Memory {
        Memory::inputs_but(2)
    }
}

#[cfg(test)]
mod tests {
    use fewstep_tensor::cuda::EMULATED;

    use super::*;
    use crate::suite;

    #[test]
    fn every_rule_holds_on_random_shapes() {
        for (seed, (x, o)) in
            [(vec![3, 5, 7], 8), (vec![1, 1], 1), (vec![0, 3], 2), (vec![2, 9, 33], 40)].into_iter().enumerate()
        {
            let i = *x.last().unwrap();
            for device in [Device::Cpu, EMULATED] {
                suite::check_on(device, &LinearGelu { bias: true }, &[&x, &[o, i], &[o]], seed as u64).unwrap();
                suite::check_on(device, &LinearGelu { bias: false }, &[&x, &[o, i]], seed as u64).unwrap();
            }
        }
    }

    #[test]
    fn every_rule_holds_in_bf16_whether_the_product_has_the_gelu_or_not() {
        // What is before the GELU is rounded, and so is the output: half a unit of 8 bits each.
        for (seed, (rows, i, o)) in [(300, 70, 40), (1, 8, 8), (5, 33, 1), (4, 24, 12)].into_iter().enumerate() {
            let shapes: [&[usize]; 3] = [&[rows, i], &[o, i], &[o]];
            let allowed = 2.0 * suite::BF16_ROUNDING;
            suite::check_half(EMULATED, &LinearGelu { bias: true }, (&shapes, &[]), allowed, seed as u64).unwrap();
        }
    }

    #[test]
    fn a_cotangent_of_another_shape_is_refused() {
        for device in [Device::Cpu, EMULATED] {
            let zeros = |shape: &[usize]| Tensor::zeros(shape, fewstep_tensor::DType::F32, device);
            let (op, x) = (LinearGelu { bias: false }, [&zeros(&[3, 5]), &zeros(&[8, 5])]);
            let saved = Saved::of(&op, &x, &op.forward(&x).unwrap());
            let e = op.vjp(&saved, &zeros(&[3, 9]), &[true; 2]).unwrap_err().to_string();
            assert!(e.contains("[3, 8]") && e.contains("[3, 9]"), "{e}");
        }
    }

    #[test]
    fn is_the_activation_of_the_linear_layer_bit_for_bit_on_a_cpu() {
        use fewstep_tensor::DType;
        let drawn = suite::draw(3, 0, &[&[70, 65], &[130, 65], &[130], &[70, 65], &[70, 130]]).unwrap();
        for dtype in [DType::F32, DType::F64] {
            let t: Vec<Tensor> = drawn.iter().map(|t| t.to_dtype(dtype)).collect();
            let (op, linear, x) = (LinearGelu { bias: true }, Linear { bias: true }, [&t[0], &t[1], &t[2]]);
            let bits = |t: &[Tensor]| t.iter().map(|t| t.le_bytes().to_vec()).collect::<Vec<_>>();

            let output = op.forward(&x).unwrap();
            let dual = op.jvp(&x, &[Some(&t[3]), None, Some(&t[2])]).unwrap();
            let mut fused = vec![output.y.clone(), dual.primal, dual.tangent.unwrap()];
            fused.extend(op.vjp(&Saved::of(&op, &x, &output), &t[4], &[true; 3]).unwrap().into_iter().flatten());

            let hidden = linear.forward(&x).unwrap();
            let moved = linear.jvp(&x, &[Some(&t[3]), None, Some(&t[2])]).unwrap();
            let dual = GELU.jvp(&[&moved.primal], &[moved.tangent.as_ref()]).unwrap();
            let activated = GELU.forward(&[&hidden.y]).unwrap();
            let bar = GELU.vjp(&Saved::of(&GELU, &[&hidden.y], &activated), &t[4], &[true]).unwrap();
            let bars = linear.vjp(&Saved::of(&linear, &x, &hidden), bar[0].as_ref().unwrap(), &[true; 3]).unwrap();
            let mut apart = vec![activated.y, dual.primal, dual.tangent.unwrap()];
            apart.extend(bars.into_iter().flatten());
            assert!(bits(&fused) == bits(&apart), "{dtype}");
        }
    }
}
