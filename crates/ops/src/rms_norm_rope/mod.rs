//! RMS normalisation of queries and keys, with rotary position embedding.

mod cpu;
mod cuda;
mod table;

use std::sync::Arc;

use fewstep_tensor::{DType, Device, Tensor, dispatch_float};

use crate::cost::inputs;
use crate::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};
pub use table::RopeTable;

const NAME: &str = "rms_norm_rope";
/// Operations an element: square and sum, scale and gain, and half of a rotation's six.
const NORM_FLOPS: f64 = 7.0;

/// Over what the root mean square is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormScope {
    /// The whole width D; weight `[D]` (Wan).
    Width,
    /// Each head of width K; weight `[K]` (Cosmos).
    Head,
}

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// 2j with 2j + 1 (Wan).
    Interleaved,
    /// j with j + K/2 (Cosmos).
    HalfSplit,
}

/// A rotary position embedding: (a, b) ← (a·cos − b·sin, a·sin + b·cos) for each pair.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Which elements are pairs.
    pub style: RopeStyle,
    /// The angles of each token, shared by the heads.
    pub table: Arc<RopeTable>,
}

/// y = RoPE(x/rms(x)·weight), rms(x) = √(mean x² + eps).
///
/// Inputs: x `[B, L, D]` with D = heads·K, weight `[D]` or `[K]` by `scope`. Without a rotation x may be `[..., D]`.
/// Statistics are accumulated in the compute type.
#[derive(Clone, Debug)]
pub struct RmsNormRope {
    /// Heads that the width is divided into.
    pub heads: usize,
    /// Over what the root mean square is taken.
    pub scope: NormScope,
    /// Added to the mean square.
    pub eps: f64,
    /// The rotation, if any; its table has L rows and K/2 columns.
    pub rope: Option<Rope>,
}

/// Extents: rows of width d, normalised in parts of width `part`, heads of width k, l tokens a sample.
struct Extents {
    rows: usize,
    d: usize,
    part: usize,
    k: usize,
    l: usize,
}

/// A rotation's style and tables in the compute type.
struct Rotation<'a, T> {
    style: RopeStyle,
    cos: &'a [T],
    sin: &'a [T],
}

impl RmsNormRope {
    fn extents(&self, x: &[usize], weight: &[usize]) -> Result<Extents> {
        let heads = self.heads;
        let Some((&d, leading)) = x.split_last().filter(|(d, _)| heads > 0 && *d % heads == 0) else {
            return Err(Error::input(NAME, format!("x [..., D], D a multiple of {heads} heads"), x));
        };
        let k = d / heads;
        let part = if self.scope == NormScope::Width { d } else { k };
        if weight != [part] {
            return Err(Error::input(NAME, format!("a weight [{part}]"), weight));
        }
        let l = match (&self.rope, x) {
            (None, _) => 1,
            (Some(rope), &[_, l, _]) if k.is_multiple_of(2) && rope.table.extents() == (l, k / 2) => l,
            (Some(rope), _) => {
                let got = (x, k, rope.table.extents());
                return Err(Error::input(NAME, "x [B, L, D], K even and a rotation table [L, K/2]", got));
            }
        };
        Ok(Extents { rows: leading.iter().product(), d, part, k, l })
    }

    fn of(&self, x: &[&Tensor]) -> Result<Extents> {
        match x {
            [x, weight] => self.extents(x.shape(), weight.shape()),
            _ => Err(Error::input(NAME, "x and weight", x.len())),
        }
    }

    fn rotation<T: fewstep_tensor::Element>(&self, dtype: DType) -> Result<Option<Rotation<'_, T>>> {
        let Some(rope) = &self.rope else { return Ok(None) };
        let [cos, sin] = rope.table.get(dtype)?;
        Ok(Some(Rotation { style: rope.style, cos: cos.as_slice::<T>()?, sin: sin.as_slice::<T>()? }))
    }
}

impl Op for RmsNormRope {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let e = self.of(x)?;
        match x[0].device() {
            Device::Cpu => dispatch_float!(NAME, x[0].dtype(), T => cpu::forward::<T>(self, &e, x)),
            Device::Cuda(_) => cuda::forward(self, &e, x),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let e = self.of(x)?;
        if x_dot.iter().all(Option::is_none) {
            return Ok(Dual { primal: self.forward(x)?.y, tangent: None });
        }
        match x[0].device() {
            Device::Cpu => dispatch_float!(NAME, x[0].dtype(), T => cpu::jvp::<T>(self, &e, x, x_dot)),
            Device::Cuda(_) => cuda::jvp(self, &e, x, x_dot),
        }
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let e = self.extents(saved.shape(0), saved.shape(1))?;
        if y_bar.shape() != saved.shape(0) {
            return Err(Error::input(NAME, format!("a cotangent {:?}", saved.shape(0)), y_bar.shape()));
        }
        match y_bar.device() {
            Device::Cpu => dispatch_float!(NAME, y_bar.dtype(), T => cpu::vjp::<T>(self, &e, saved, y_bar, wanted)),
            Device::Cuda(_) => cuda::vjp(self, &e, saved, y_bar, wanted),
        }
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let [x, weight] = inputs(NAME, x)?;
        let e = self.extents(&x.shape, &weight.shape)?;
        let kept = vec![Meta::new(&[e.rows, e.d.checked_div(e.part).unwrap_or(0)], x.dtype.wide())];
        let scratch = if matches!(rule, Rule::Vjp([false, _])) { x.bytes() } else { 0 };
        Ok(Cost { kept, scratch, ..Cost::elementwise(x.clone(), NORM_FLOPS, rule) })
    }

    fn memory(&self) -> Memory {
        Memory::INPUTS
    }
}

#[cfg(test)]
mod tests;
