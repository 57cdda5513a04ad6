//! Sums with one coefficient per sample.

use fewstep_tensor::{Tensor, arith};

use crate::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};

/// y = Σᵢ cᵢ·xᵢ with cᵢ `[B]` and xᵢ `[B, …]`, differentiable in both.
///
/// Inputs: c₁, x₁, c₂, x₂, …. Coefficients are used in f64 whatever their dtype, each sum is formed in f64 and rounded
/// once: preconditioning stays exact also where a network computes in less.
#[derive(Clone, Copy, Debug)]
pub struct Combine;

impl Combine {
    fn check(x: &[&Tensor]) -> Result<()> {
        if x.is_empty() || !x.len().is_multiple_of(2) {
            return Err(Error::input("combine", "pairs of coefficient and tensor", x.len()));
        }
        let shape = x[1].shape();
        for pair in x.chunks(2) {
            if pair[1].shape() != shape || shape.is_empty() || pair[0].shape() != &shape[..1] {
                let expected = format!("coefficients [B] and tensors {shape:?}");
                return Err(Error::input("combine", expected, (pair[0].shape(), pair[1].shape())));
            }
        }
        Ok(())
    }
}

impl Op for Combine {
    fn name(&self) -> &'static str {
        "combine"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        Self::check(x)?;
        let terms: Vec<_> = x.chunks(2).map(|p| (p[0], p[1])).collect();
        Ok(arith::combine_by(&terms)?.into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let primal = self.forward(x)?.y;
        let mut terms = Vec::new();
        for (p, d) in x.chunks(2).zip(x_dot.chunks(2)) {
            terms.extend(d[0].map(|c_dot| (c_dot, p[1])));
            terms.extend(d[1].map(|x_dot| (p[0], x_dot)));
        }
        let tangent = if terms.is_empty() { None } else { Some(arith::combine_by(&terms)?) };
        Ok(Dual { primal, tangent })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let mut bars = Vec::with_capacity(saved.arity());
        for i in (0..saved.arity()).step_by(2) {
            if y_bar.shape() != saved.shape(i + 1) {
                let expected = format!("a cotangent {:?}", saved.shape(i + 1));
                return Err(Error::input("combine", expected, y_bar.shape()));
            }
            bars.push(match wanted[i] {
                true => Some(arith::dot_per_sample(y_bar, saved.input(i + 1)?)?.to_dtype(saved.dtype(i))),
                false => None,
            });
            bars.push(match wanted[i + 1] {
                true => Some(arith::combine_by(&[(saved.input(i)?, y_bar)])?),
                false => None,
            });
        }
        Ok(bars)
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let fits = |p: &[&Meta]| p.len() == 2 && p[1].shape == x[1].shape && p[0].shape.len() == 1;
        if x.is_empty() || !x.chunks(2).all(fits) {
            return Err(Error::input("combine", "pairs of coefficient [B] and tensor [B, …]", x.len()));
        }
        Ok(Cost::elementwise(x[1].clone(), x.len() as f64, rule))
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
        let all: [&[&[usize]]; 5] = [
            &[&[3], &[3, 5, 7]],
            &[&[2], &[2, 9], &[2], &[2, 9], &[2], &[2, 9]],
            &[&[1], &[1, 1]],
            &[&[0], &[0, 4], &[0], &[0, 4]],
            &[&[2], &[2, 0]],
        ];
        for (seed, shapes) in all.into_iter().enumerate() {
            suite::check(&Combine, shapes, seed as u64).unwrap();
            suite::check_on(EMULATED, &Combine, shapes, seed as u64).unwrap();
        }
        // Each output is rounded once, by at most 2⁻⁸ of it; coefficients are doubles here as on a CPU.
        suite::check_half(EMULATED, &Combine, (&[&[3], &[3, 41], &[3], &[3, 41]], &[0, 2]), 2f64.powi(-8), 5).unwrap();
    }
}
