//! Sinusoidal embedding of times.

mod cpu;

use fewstep_tensor::{DType, Device, Tensor};

use crate::cost::inputs;
use crate::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};

/// y = [cos(t·ωᵢ) | sin(t·ωᵢ)], ωᵢ = 10000^(−i/(dim/2)), i < dim/2: t `[B]` → y `[B, dim]`.
///
/// Phases, sines and derivatives are formed in f64 whatever the dtypes, and rounded once to `dtype`.
#[derive(Clone, Copy, Debug)]
pub struct TimeEmbedding {
    /// The width of the embedding; even.
    pub dim: usize,
    /// The dtype of the embedding.
    pub dtype: DType,
}

impl TimeEmbedding {
    fn check(&self, t: &Tensor) -> Result<()> {
        if t.shape().len() != 1 || !self.dim.is_multiple_of(2) {
            return Err(Error::input("time_embedding", "times [B] and an even width", (t.shape(), self.dim)));
        }
        Ok(())
    }
}

impl Op for TimeEmbedding {
    fn name(&self) -> &'static str {
        "time_embedding"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        self.check(x[0])?;
        Ok(cpu::forward(x[0], self.dim)?.to_dtype(self.dtype).into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let primal = self.forward(x)?.y;
        let tangent = x_dot[0].map(|d| cpu::jvp(x[0], d, self.dim)).transpose()?;
        Ok(Dual { primal, tangent: tangent.map(|t| t.to_dtype(self.dtype)) })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        if !wanted[0] {
            return Ok(vec![None]);
        }
        let t = saved.input(0)?;
        if y_bar.shape() != [t.len(), self.dim] {
            return Err(Error::input("time_embedding", format!("a cotangent [B, {}]", self.dim), y_bar.shape()));
        }
        Ok(vec![Some(cpu::vjp(t, y_bar, self.dim)?.to_dtype(t.dtype()))])
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let [t] = inputs("time_embedding", x)?;
        let y = Meta::new(&[t.len(), self.dim], self.dtype);
        Ok(Cost { scratch: y.len() * DType::F64.size(), ..Cost::elementwise(y, 2.0, rule) })
    }

    fn memory(&self) -> Memory {
        Memory::INPUTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite;

    #[test]
    fn every_rule_holds_on_random_shapes() {
        for (seed, (b, dim)) in [(3, 8), (1, 2), (0, 4), (2, 256)].into_iter().enumerate() {
            suite::check(&TimeEmbedding { dim, dtype: DType::F64 }, &[&[b]], seed as u64).unwrap();
        }
    }
}
