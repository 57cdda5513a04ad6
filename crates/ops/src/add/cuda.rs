//! Repeating and summing over broadcast axes as vectors and groups of rows, one run of axes after another.

use fewstep_tensor::Tensor;

use crate::layer_norm::rows::Rows;
use crate::row_kernels::{add_rows, column_sum};
use crate::{Error, Result};

/// The runs of neighbouring axes over which the smaller tensor repeats, from the left. Each as rows of what it repeats: axes to
/// its left have the extents of the larger tensor, those to its right of the smaller.
fn repeats(small: &[usize], shape: &[usize]) -> Vec<Rows> {
    let lead = shape.len() - small.len();
    let own = |i: usize| if i < lead { 1 } else { small[i - lead] };
    let mut runs = Vec::new();
    let mut start = 0;
    while start < shape.len() {
        let end = (start..shape.len()).find(|&i| own(i) == shape[i]).unwrap_or(shape.len());
        if end > start {
            let (groups, per_group) = (shape[..start].iter().product(), shape[start..end].iter().product());
            let d = (end..shape.len()).map(own).product();
            runs.push(Rows { rows: groups * per_group, d, per_group, groups });
        }
        start = end + 1;
    }
    runs
}

fn repeat(runs: &[Rows], small: &Tensor) -> Result<Tensor> {
    let mut repeated = small.clone();
    for r in runs {
        let y = Tensor::empty(&[r.rows, r.d], small.dtype(), small.device())?;
        add_rows(*r, None, &repeated, &y)?;
        repeated = y;
    }
    Ok(repeated)
}

pub(super) fn expand(small: &Tensor, shape: &[usize]) -> Result<Tensor> {
    Ok(repeat(&repeats(small.shape(), shape), small)?.reshape(shape)?)
}

/// a + b of different shapes that broadcast to `shape`.
pub(super) fn sum(a: &Tensor, b: &Tensor, shape: &[usize]) -> Result<Tensor> {
    if (a.dtype(), a.device()) != (b.dtype(), b.device()) {
        let got = ((a.dtype(), a.device()), (b.dtype(), b.device()));
        return Err(Error::input("add", "two inputs of one dtype and device", got));
    }
    let (large, small) = match b.shape() == shape {
        true => (b.clone(), a),
        false => (expand(a, shape)?, b),
    };
    let runs = repeats(small.shape(), shape);
    // The shapes differ, but where the axes that do are of extent one.
    let Some((last, runs)) = runs.split_last() else {
        return Ok(fewstep_tensor::arith::add(&large, &small.reshape(shape)?)?);
    };
    let y = Tensor::empty(shape, a.dtype(), a.device())?;
    add_rows(*last, Some(&large), &repeat(runs, small)?, &y)?;
    Ok(y)
}

/// Sums over the repeated axes in the wide dtype, rounded at the end.
pub(super) fn reduce(y_bar: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let mut sum = y_bar.clone();
    for r in repeats(shape, y_bar.shape()).into_iter().rev() {
        sum = column_sum(r, &sum, &[r.groups, r.d])?;
    }
    Ok(sum.reshape(shape)?.to_dtype(y_bar.dtype()))
}
