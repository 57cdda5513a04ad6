//! A strided gather by one kernel, in units of what stays together.

use fewstep_tensor::Tensor;
use fewstep_tensor::cuda::{Launch, Source};

use crate::Result;
use crate::units::unit;

const SOURCE: Source = Source::new("rearrange", &[include_str!("rearrange.cu")]);
const THREADS: usize = 256;
/// Bytes of the widest access.
const ACCESS: usize = 16;
/// Axes of the kernel's threads: outer ones, and lanes, between which it has the vectors.
const OUTER: usize = 6;
const LANES: usize = 2;
/// Inner axes of the kernel, which make up a vector.
const INNER: usize = 3;
/// Neighbouring threads that suffice to read a run.
const RUN: usize = 16;

/// One axis: its extent, and the steps between its elements in output and input.
#[derive(Clone, Copy, Debug)]
struct Axis {
    extent: usize,
    y: usize,
    x: usize,
}

const NONE: Axis = Axis { extent: 1, y: 0, x: 0 };

/// The output's axes, those merged that lie in the input as they do in the output.
fn merged(split: &[usize], axes: &[usize]) -> Vec<Axis> {
    let mut strides = vec![1; split.len()];
    for i in (1..split.len()).rev() {
        strides[i - 1] = strides[i] * split[i];
    }
    let mut all: Vec<Axis> = Vec::with_capacity(axes.len());
    for axis in axes.iter().map(|&a| Axis { extent: split[a], y: 0, x: strides[a] }).filter(|a| a.extent != 1) {
        match all.last_mut() {
            Some(outer) if outer.x == axis.extent * axis.x => {
                *outer = Axis { extent: outer.extent * axis.extent, ..axis }
            }
            _ => all.push(axis),
        }
    }
    let mut y = 1;
    for axis in all.iter_mut().rev() {
        axis.y = y;
        y *= axis.extent;
    }
    all
}

/// How many inner axes together hold whole vectors of so many units, and the units that they hold.
fn inner(axes: &[Axis], vector: usize) -> Option<(usize, usize)> {
    let mut held = 1;
    let counts = (1..).zip(axes.iter().rev()).take(INNER).map(|(n, a)| {
        held *= a.extent;
        (n, held)
    });
    counts.into_iter().find(|(_, held)| held.is_multiple_of(vector))
}

pub(super) fn permute(x: &Tensor, split: &[usize], axes: &[usize], joined: &[usize]) -> Result<Tensor> {
    let (y, size) = (Tensor::empty(joined, x.dtype(), x.device())?, x.dtype().size());
    let mut axes = merged(split, axes);
    let mut elements = 1;
    if let Some((last, outer)) = axes.split_last_mut().filter(|(last, _)| last.x == 1) {
        let lengths: Vec<usize> = outer.iter().map(|a| a.x).chain([last.extent]).collect();
        elements = unit(&[&y, x], &lengths);
        last.extent /= elements;
        for a in outer {
            (a.x, a.y) = (a.x / elements, a.y / elements);
        }
    }
    let widest = ACCESS / (elements * size);
    let (vector, (taken, held)) = match inner(&axes, widest) {
        Some(found) if widest > 1 => (widest, found),
        _ => (1, (0, 1)),
    };
    let mut threads = axes[..axes.len() - taken].to_vec();
    // Lanes are the axes whose elements lie nearest to one another in the input.
    threads.sort_by_key(|a| std::cmp::Reverse(a.x));
    let mut lanes = Vec::new();
    while lanes.len() < LANES && lanes.iter().map(|a: &Axis| a.extent).product::<usize>() < RUN {
        lanes.insert(0, threads.pop().unwrap_or(NONE));
    }
    // An axis that is left over is a lane too: with all lanes taken, six are left of eight.
    if threads.len() > OUTER {
        lanes.insert(0, threads.remove(OUTER));
    }
    let padded = |mut all: Vec<Axis>, n: usize| {
        all.splice(0..0, vec![NONE; n - all.len()]);
        all
    };
    let vectors = Axis { extent: held / vector, y: vector, x: 0 };
    let slots = [padded(threads, OUTER), vec![vectors], padded(lanes, LANES)].concat();
    let within = axes[axes.len() - taken..].iter().rev().copied().chain([NONE; INNER]).take(INNER);
    let n = y.len() / (elements * vector);
    let mut launch = Launch::new(x.device(), &SOURCE, x.dtype(), "permute")?
        .define("UNIT", elements * size)
        .define("VECTOR", vector)
        .grid([n.div_ceil(THREADS), 1, 1])
        .threads(THREADS)
        .tensor(&y)
        .tensor(x)
        .size(n);
    for a in slots {
        launch = launch.size(a.extent).size(a.y).size(a.x);
    }
    for a in within {
        launch = launch.size(a.extent).size(a.x);
    }
    launch.run()?;
    Ok(y)
}
