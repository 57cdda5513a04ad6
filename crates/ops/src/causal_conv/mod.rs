//! One frame of a convolution that is causal in time.

mod cpu;
mod cuda;
mod geometry;
mod hopper;
mod library;
mod transpose;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::cost::{Cost, Meta, Rule};
use crate::{Dual, Error, Memory, Op, Output, Result, Saved};
use geometry::Extents;
pub use hopper::hopper_convolutions;

const NAME: &str = "causal_conv";

/// Zeros around a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// As many zeros on every side.
    pub const fn around(n: usize) -> Self {
        Padding { top: n, bottom: n, left: n, right: n }
    }
}

/// The newest output frame of a convolution whose kernel ends at the newest input frame:
/// `y[b, h, w, o] = bias[o] + Σ W[o, i, t, u, v]·x_t[b, h·stride + u − top, w·stride + v − left, i]`.
///
/// Inputs: W `[O, I, KT, KH, KW]` (or `[O, I, KH, KW]`, KT = 1), bias `[O]`, then 1 to KT frames `[B, H, W, I]`, oldest
/// first; frames that are not given are zero, as before the beginning of a video. → `[B, H', W', O]`. Channels are last: a
/// kernel row is then one contiguous run, so that the product needs no im2col, only a panel of zero-padded rows.
/// Accumulates in the compute type. On a GPU, bf16: in f32, rounded once.
#[derive(Clone, Copy, Debug)]
pub struct CausalConv {
    /// Step between the positions of the kernel along height and width.
    pub stride: usize,
    /// Zeros around each frame.
    pub padding: Padding,
}

impl CausalConv {
    fn of(&self, x: &[&Tensor]) -> Result<Extents> {
        let shapes: Vec<&[usize]> = x.iter().map(|t| t.shape()).collect();
        if let Some(other) = x.iter().find(|t| t.dtype() != x[0].dtype()) {
            return Err(Error::input(NAME, format!("inputs of one dtype, {}", x[0].dtype()), other.dtype()));
        }
        Extents::new(self, &shapes)
    }
}

impl Op for CausalConv {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let e = self.of(x)?;
        match x[0].device() {
            Device::Cpu => dispatch_float!(NAME, x[0].dtype(), T => Ok(cpu::forward::<T>(&e, x)?.into())),
            Device::Cuda(_) => Ok(cuda::forward(&e, x)?.into()),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let e = self.of(x)?;
        let primal = self.forward(x)?.y;
        if x_dot.iter().all(Option::is_none) {
            return Ok(Dual { primal, tangent: None });
        }
        let tangent = match x[0].device() {
            Device::Cpu => dispatch_float!(NAME, x[0].dtype(), T => cpu::tangent::<T>(&e, x, x_dot))?,
            Device::Cuda(_) => cuda::tangent(&e, x, x_dot)?,
        };
        Ok(Dual { primal, tangent: Some(tangent) })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let shapes: Vec<&[usize]> = (0..saved.arity()).map(|i| saved.shape(i)).collect();
        let e = Extents::new(self, &shapes)?;
        if y_bar.shape() != e.output() {
            return Err(Error::input(NAME, format!("a cotangent {:?}", e.output()), y_bar.shape()));
        }
        match y_bar.device() {
            Device::Cpu => dispatch_float!(NAME, y_bar.dtype(), T => transpose::vjp::<T>(&e, saved, y_bar, wanted)),
            Device::Cuda(_) => cuda::vjp(&e, saved, y_bar, wanted),
        }
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let shapes: Vec<&[usize]> = x.iter().map(|m| m.shape.as_slice()).collect();
        let e = Extents::new(self, &shapes)?;
        let frames: Vec<usize> = (2..x.len()).collect();
        // A product is linear in the kernel and in each frame; a frame's share is that of its slice of the kernel.
        let product = 2.0 * e.output().iter().product::<usize>() as f64 * (e.i * e.kh * e.kw) as f64;
        let products = match rule {
            Rule::Forward => e.frames as f64,
            Rule::Jvp(moving) => e.frames as f64 * (1.0 + among(moving, &[0])) + among(moving, &frames),
            Rule::Vjp(wanted) => e.frames as f64 * among(wanted, &[0]) + among(wanted, &frames),
        };
        Ok(Cost::new(Meta::new(&e.output(), x[0].dtype), product * products))
    }

    fn memory(&self) -> Memory {
        Memory::inputs_but(1)
    }
}

/// How many of these inputs are marked.
fn among(marked: &[bool], inputs: &[usize]) -> f64 {
    inputs.iter().filter(|&&i| marked.get(i) == Some(&true)).count() as f64
}

#[cfg(test)]
mod tests;
