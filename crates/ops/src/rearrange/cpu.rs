//! A strided gather over all axes but the innermost.

use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use rayon::prelude::*;

use crate::Result;

pub(super) fn permute<T: Real>(x: &Tensor, split: &[usize], axes: &[usize], joined: &[usize]) -> Result<Tensor> {
    let xs = x.as_slice::<T>()?;
    let mut strides = vec![1; split.len()];
    for i in (1..split.len()).rev() {
        strides[i - 1] = strides[i] * split[i];
    }
    // The leading axis stays in front in every use, so that tasks are samples.
    let dims: Vec<(usize, usize)> = axes.iter().map(|&a| (split[a], strides[a])).collect();
    Ok(Tensor::cpu_with(joined, |y: &mut [T]| {
        let row = y.len() / dims[0].0.max(1);
        y.par_chunks_mut(row.max(1)).enumerate().for_each(|(i, y)| {
            let mut out = y.iter_mut();
            gather(xs, i * dims[0].1, &dims[1..], &mut out);
        });
    }))
}

fn gather<'y, T: Real>(x: &[T], at: usize, dims: &[(usize, usize)], out: &mut impl Iterator<Item = &'y mut T>) {
    match dims {
        [] => {}
        [(n, stride)] => {
            for (i, y) in (0..*n).zip(out) {
                *y = x[at + i * stride];
            }
        }
        [(n, stride), inner @ ..] => {
            for i in 0..*n {
                gather(x, at + i * stride, inner, out);
            }
        }
    }
}
