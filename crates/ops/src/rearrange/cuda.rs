//! A strided gather by one kernel, in units of what stays together.

use fewstep_tensor::Tensor;
use fewstep_tensor::cuda::{Launch, Source};

use crate::Result;
use crate::units::unit;

const SOURCE: Source = Source::new("rearrange", &[include_str!("rearrange.cu")]);
const THREADS: usize = 256;
/// Units that a block writes.
const BLOCK: usize = 4 * THREADS;
/// Axes that the kernel takes.
const AXES: usize = 8;

/// One axis of the output: its extent, and the step between its elements in the input.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    stride: usize,
}

/// The output's axes, those merged that lie in the input as they do in the output.
fn merged(split: &[usize], axes: &[usize]) -> Vec<Axis> {
    let mut strides = vec![1; split.len()];
    for i in (1..split.len()).rev() {
        strides[i - 1] = strides[i] * split[i];
    }
    let mut all: Vec<Axis> = Vec::with_capacity(AXES);
    for axis in axes.iter().map(|&a| Axis { extent: split[a], stride: strides[a] }).filter(|a| a.extent != 1) {
        match all.last_mut() {
            Some(outer) if outer.stride == axis.extent * axis.stride => {
                *outer = Axis { extent: outer.extent * axis.extent, stride: axis.stride };
            }
            _ => all.push(axis),
        }
    }
    all
}

pub(super) fn permute(x: &Tensor, split: &[usize], axes: &[usize], joined: &[usize]) -> Result<Tensor> {
    let y = Tensor::empty(joined, x.dtype(), x.device())?;
    let mut axes = merged(split, axes);
    let mut elements = 1;
    if let Some((inner, outer)) = axes.split_last_mut().filter(|(inner, _)| inner.stride == 1) {
        let lengths: Vec<usize> = outer.iter().map(|a| a.stride).chain([inner.extent]).collect();
        elements = unit(&[&y, x], &lengths);
        inner.extent /= elements;
        outer.iter_mut().for_each(|a| a.stride /= elements);
    }
    let padding = AXES - axes.len();
    axes.splice(0..0, vec![Axis { extent: 1, stride: 0 }; padding]);
    let units = y.len() / elements;
    let mut launch = Launch::new(x.device(), &SOURCE, x.dtype(), "permute")?
        .define("UNIT", elements * x.dtype().size())
        .grid([units.div_ceil(BLOCK), 1, 1])
        .threads(THREADS)
        .tensor(&y)
        .tensor(x)
        .size(units);
    for a in &axes[1..] {
        launch = launch.size(a.extent);
    }
    for a in &axes {
        launch = launch.size(a.stride);
    }
    launch.run()?;
    Ok(y)
}
