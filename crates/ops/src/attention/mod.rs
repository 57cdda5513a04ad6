//! Scaled dot-product attention that never materialises the scores.

mod cpu;
mod cuda;
mod hopper;
mod mask;
mod masked;
mod tiles;
mod wide;

pub use mask::{Mask, Pairs};
pub use masked::MaskedAttention;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::cost::inputs;
use crate::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};

pub use hopper::hopper_kernels;

const NAME: &str = "attention";

/// y = softmax(scale·q·kᵀ)·v for each head, without a mask.
///
/// Inputs: q [B, L, N·K], k [B, S, N·K], v [B, S, N·V] → [B, L, N·V]; L and S, K and V may differ. By blocks of keys
/// with a running maximum (FlashAttention-2, arXiv:2307.08691); the tangent in the same pass (rCM, arXiv:2510.08431,
/// algorithm 2). Keeps the log-sum-exp [B, N, L] of the scaled scores. Accumulates in the compute type. Without keys
/// the output is zero and the log-sum-exp −∞.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// The number of heads N.
    pub heads: usize,
    /// The factor of the scores; 1/√K if not given.
    pub scale: Option<f64>,
}

/// Extents: b samples, l queries, s keys, n heads of width k (queries, keys) and v (values).
#[derive(Clone, Copy, Debug)]
struct Extents {
    b: usize,
    l: usize,
    s: usize,
    n: usize,
    k: usize,
    v: usize,
    scale: f64,
}

impl Attention {
    fn extents(&self, q: &[usize], k: &[usize], v: &[usize]) -> Result<Extents> {
        let n = self.heads;
        match (q, k, v) {
            (&[b, l, qd], &[kb, s, kd], &[vb, vs, vd])
                if n > 0 && qd > 0 && qd % n == 0 && vd % n == 0 && qd == kd && [kb, vb] == [b, b] && vs == s =>
            {
                let k = qd / n;
                Ok(Extents { b, l, s, n, k, v: vd / n, scale: self.scale.unwrap_or(1.0 / (k as f64).sqrt()) })
            }
            _ => {
                let expected = format!("q [B, L, N·K], k [B, S, N·K], v [B, S, N·V] with N = {n} heads, K > 0");
                Err(Error::input(NAME, expected, (q, k, v)))
            }
        }
    }

    fn of(&self, x: &[&Tensor]) -> Result<Extents> {
        match x {
            [q, k, v] => self.extents(q.shape(), k.shape(), v.shape()),
            _ => Err(Error::input(NAME, "q, k and v", x.len())),
        }
    }
}

impl Attention {
    fn of_saved(&self, saved: &Saved, y_bar: &Tensor) -> Result<Extents> {
        let e = self.extents(saved.shape(0), saved.shape(1), saved.shape(2))?;
        if y_bar.shape() != [e.b, e.l, e.n * e.v] {
            return Err(Error::input(NAME, format!("a cotangent {:?}", [e.b, e.l, e.n * e.v]), y_bar.shape()));
        }
        Ok(e)
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let e = self.of(x)?;
        match x[0].device() {
            Device::Cpu => dispatch_float!(NAME, x[0].dtype(), T => cpu::forward::<T>(&e, x, None)),
            Device::Cuda(_) => cuda::forward(&e, x, &Mask::default()),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let e = self.of(x)?;
        if x_dot.iter().all(Option::is_none) {
            return Ok(Dual { primal: self.forward(x)?.y, tangent: None });
        }
        match x[0].device() {
            Device::Cpu => dispatch_float!(NAME, x[0].dtype(), T => cpu::jvp::<T>(&e, x, x_dot, None)),
            Device::Cuda(_) => cuda::jvp(&e, x, x_dot, &Mask::default()),
        }
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let e = self.of_saved(saved, y_bar)?;
        match y_bar.device() {
            Device::Cpu => dispatch_float!(NAME, y_bar.dtype(), T => cpu::vjp::<T>(&e, saved, y_bar, wanted, None)),
            Device::Cuda(_) => cuda::vjp(&e, saved, y_bar, wanted, &Mask::default()),
        }
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let [q, k, v] = inputs(NAME, x)?;
        let e = self.extents(&q.shape, &k.shape, &v.shape)?;
        let pairs = (e.b * e.n) as f64 * e.l as f64 * e.s as f64;
        let (scores, values) = (2.0 * pairs * e.k as f64, 2.0 * pairs * e.v as f64);
        let flops = match rule {
            Rule::Forward => scores + values,
            // Scores of q̇·k and q·k̇; P·v̇, and H·v where the scores move.
            Rule::Jvp(m) => {
                let on_scores = f64::from(u8::from(m[0])) + f64::from(u8::from(m[1]));
                let on_values = f64::from(u8::from(m[2])) + f64::from(u8::from(m[0] || m[1]));
                scores * (1.0 + on_scores) + values * (1.0 + on_values)
            }
            // Scores again, P̄ = ȳ·v, then q̄, k̄ and v̄.
            Rule::Vjp(w) => {
                let on_scores = f64::from(u8::from(w[0])) + f64::from(u8::from(w[1]));
                scores * (1.0 + on_scores) + values * (1.0 + f64::from(u8::from(w[2])))
            }
        };
        let kept = vec![Meta::new(&[e.b, e.n, e.l], q.dtype.wide())];
        let y = Meta::new(&[e.b, e.l, e.n * e.v], q.dtype);
        Ok(Cost { kept, scratch: cpu::scratch(&e, rule) * q.dtype.size(), ..Cost::new(y, flops) })
    }

    fn memory(&self) -> Memory {
        Memory::EXPENSIVE
    }
}

#[cfg(test)]
mod masked_tests;
#[cfg(test)]
mod tests;
