//! Multiplication by a constant.

use fewstep_tensor::{Tensor, arith};

use crate::cost::{self, Cost, Meta, Rule};
use crate::{Dual, Memory, Op, Output, Result, Saved};

/// y = c·x, f64 factor, rounded to the dtype of x.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// c.
    pub by: f64,
}

impl Scale {
    fn of(self, x: &Tensor) -> Result<Tensor> {
        Ok(arith::scale(&vec![self.by; x.shape().first().copied().unwrap_or(1)], x)?)
    }
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        Ok(self.of(x[0])?.into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        Ok(Dual { primal: self.of(x[0])?, tangent: x_dot[0].map(|d| self.of(d)).transpose()? })
    }

    fn vjp(&self, _saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![wanted[0].then(|| self.of(y_bar)).transpose()?])
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let [x] = cost::inputs("scale", x)?;
        Ok(Cost::elementwise(x.clone(), 1.0, rule))
    }

    fn memory(&self) -> Memory {
        Memory::NOTHING
    }
}

#[cfg(test)]
mod tests {
    use fewstep_tensor::cuda::EMULATED;

    use super::*;
    use crate::suite;

    #[test]
    fn every_rule_holds_on_random_shapes() {
        for (seed, shape) in [&[3, 5, 7][..], &[1], &[0, 4], &[2, 300]].into_iter().enumerate() {
            suite::check(&Scale { by: -1.7 }, &[shape], seed as u64).unwrap();
            suite::check_on(EMULATED, &Scale { by: -1.7 }, &[shape], seed as u64).unwrap();
            // Each output is rounded once, by at most 2⁻⁸ of it.
            suite::check_half(EMULATED, &Scale { by: -1.7 }, (&[shape], &[]), 2f64.powi(-8), seed as u64).unwrap();
        }
    }
}
