//! Self-attention of encoders with a learned bias by relative position.

mod cpu;
mod cuda;
mod softmax;

use std::sync::Arc;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::cost::{self, Cost, Meta, Rule};
use crate::{Dual, Error, Memory, Op, Output, Result, Saved};

const NAME: &str = "relative_attention";

/// One sequence among the rows: so many rows, of which the first `keys` are attended to.
///
/// Rows from `keys` on are padding: they attend, and nothing attends to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of the sequence.
    pub rows: usize,
    /// Rows that serve as keys and values; at most `rows`.
    pub keys: usize,
}

/// oᵢ = Σⱼ softmaxⱼ(qᵢ·kⱼ + bias(j − i))·vⱼ, j over the keys of i's sequence. No scale, as T5 has none.
///
/// Inputs: q, k `[T, N·K]`, v `[T, N·V]`, the sequences one after another, and bias `[R, N]` with R odd: the bias of head n
/// for a key r positions after its query is `bias[R/2 + r, n]`, so 2·L − 1 rows serve sequences of L rows. A row of a sequence
/// without keys is zero. The scores of one sequence and head, `[rows, keys]`, are materialised: encoders have some hundred
/// tokens. Accumulates in the compute type.
#[derive(Clone, Debug)]
pub struct RelativeAttention {
    /// Attention heads.
    pub heads: usize,
    /// The sequences; their rows add up to T.
    pub spans: Arc<[Span]>,
}

/// Extents: t rows, n heads of width k (queries, keys) and v (values), r rows of the bias.
#[derive(Clone, Copy, Debug)]
struct Extents {
    t: usize,
    n: usize,
    k: usize,
    v: usize,
    r: usize,
}

impl RelativeAttention {
    fn extents(&self, q: &[usize], k: &[usize], v: &[usize], bias: &[usize]) -> Result<Extents> {
        let n = self.heads;
        let e = match (q, k, v, bias) {
            (&[t, qd], &[kt, kd], &[vt, vd], &[r, bn])
                if n > 0
                    && qd > 0
                    && qd % n == 0
                    && vd % n == 0
                    && qd == kd
                    && [kt, vt, bn] == [t, t, n]
                    && r % 2 == 1 =>
            {
                Extents { t, n, k: qd / n, v: vd / n, r }
            }
            _ => {
                let expected = format!("q, k [T, N·K], v [T, N·V], bias [R, N] with N = {n} heads, K > 0, R odd");
                return Err(Error::input(NAME, expected, (q, k, v, bias)));
            }
        };
        let fits = |s: &Span| s.keys <= s.rows && s.rows <= e.r / 2 + 1;
        if self.spans.iter().map(|s| s.rows).sum::<usize>() != e.t || !self.spans.iter().all(fits) {
            let expected =
                format!("sequences of {} rows in all, each of at most {} rows and as many keys", e.t, e.r / 2 + 1);
            return Err(Error::input(NAME, expected, &self.spans));
        }
        Ok(e)
    }

    fn of(&self, x: &[&Tensor]) -> Result<Extents> {
        match x {
            [q, k, v, bias] => self.extents(q.shape(), k.shape(), v.shape(), bias.shape()),
            _ => Err(Error::input(NAME, "q, k, v and bias", x.len())),
        }
    }

    fn dual(&self, e: &Extents, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        match x[0].device() {
            Device::Cpu => dispatch_float!(NAME, x[0].dtype(), T => cpu::jvp::<T>(e, &self.spans, x, x_dot)),
            Device::Cuda(_) => cuda::jvp(e, &self.spans, x, x_dot),
        }
    }
}

impl Op for RelativeAttention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let e = self.of(x)?;
        Ok(self.dual(&e, x, &[None; 4])?.primal.into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        self.dual(&self.of(x)?, x, x_dot)
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let e = self.extents(saved.shape(0), saved.shape(1), saved.shape(2), saved.shape(3))?;
        if y_bar.shape() != [e.t, e.n * e.v] {
            return Err(Error::input(NAME, format!("a cotangent {:?}", [e.t, e.n * e.v]), y_bar.shape()));
        }
        let x = [saved.input(0)?, saved.input(1)?, saved.input(2)?, saved.input(3)?];
        match y_bar.device() {
            Device::Cpu => dispatch_float!(NAME, y_bar.dtype(), T => cpu::vjp::<T>(&e, &self.spans, x, y_bar, wanted)),
            Device::Cuda(_) => cuda::vjp(&e, &self.spans, x, y_bar, wanted),
        }
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let [q, k, v, bias] = cost::inputs(NAME, x)?;
        let e = self.extents(&q.shape, &k.shape, &v.shape, &bias.shape)?;
        let pairs: usize = self.spans.iter().map(|s| s.rows * s.keys).sum();
        let product = |width: usize| 2.0 * (pairs * e.n * width) as f64;
        // Scores and output forward; both again for tangents. Backward: the scores, their cotangent and that of each input.
        let flops = match rule {
            Rule::Forward => product(e.k) + product(e.v),
            Rule::Jvp(_) => 3.0 * product(e.k) + 3.0 * product(e.v),
            Rule::Vjp(_) => 3.0 * product(e.k) + 2.0 * product(e.v),
        };
        Ok(Cost::new(Meta::new(&[e.t, e.n * e.v], q.dtype), flops))
    }

    fn memory(&self) -> Memory {
        Memory::INPUTS
    }
}

#[cfg(test)]
mod tests;
