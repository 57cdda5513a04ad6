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
    /// Where the embedding is wanted. Times are few and stay on the host, where their sines are formed.
    pub device: Device,
}

impl TimeEmbedding {
    fn check(&self, t: &Tensor) -> Result<()> {
        if t.shape().len() != 1 || !self.dim.is_multiple_of(2) {
            return Err(Error::input("time_embedding", "times [B] and an even width", (t.shape(), self.dim)));
        }
        Ok(())
    }

    fn placed(&self, y: Tensor) -> Result<Tensor> {
        Ok(y.to_dtype(self.dtype).to_device(self.device)?)
    }
}

fn host(t: &Tensor) -> Result<Tensor> {
    Ok(t.to_device(Device::Cpu)?)
}

impl Op for TimeEmbedding {
    fn name(&self) -> &'static str {
        "time_embedding"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        self.check(x[0])?;
        Ok(self.placed(cpu::forward(&host(x[0])?, self.dim)?)?.into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let primal = self.forward(x)?.y;
        let tangent = |d: &Tensor| self.placed(cpu::jvp(&host(x[0])?, &host(d)?, self.dim)?);
        Ok(Dual { primal, tangent: x_dot[0].map(tangent).transpose()? })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        if !wanted[0] {
            return Ok(vec![None]);
        }
        let t = saved.input(0)?;
        if y_bar.shape() != [t.len(), self.dim] {
            return Err(Error::input("time_embedding", format!("a cotangent [B, {}]", self.dim), y_bar.shape()));
        }
        let t_bar = cpu::vjp(&host(t)?, &host(y_bar)?, self.dim)?.to_dtype(t.dtype());
        Ok(vec![Some(t_bar.to_device(t.device())?)])
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
    use fewstep_tensor::cuda::EMULATED;

    use super::*;
    use crate::suite;

    #[test]
    fn every_rule_holds_on_random_shapes() {
        for (seed, (b, dim)) in [(3, 8), (1, 2), (0, 4), (2, 256)].into_iter().enumerate() {
            for device in [Device::Cpu, EMULATED] {
                suite::check(&TimeEmbedding { dim, dtype: DType::F64, device }, &[&[b]], seed as u64).unwrap();
            }
        }
    }
}
