//! Row by row, in parallel over the rows of the input.

use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use rayon::prelude::*;

use crate::Result;

pub(super) fn enlarge<T: Real>(x: &Tensor, [b, h, w, c]: [usize; 4]) -> Result<Tensor> {
    let xs = x.as_slice::<T>()?;
    let row = (w * c).max(1);
    Ok(Tensor::cpu_with(&[b, 2 * h, 2 * w, c], |y: &mut [T]| {
        y.par_chunks_mut(4 * row).zip(xs.par_chunks(row)).for_each(|(y, x)| {
            let (upper, lower) = y.split_at_mut(2 * row);
            for (y, x) in upper.chunks_mut(2 * c).zip(x.chunks(c)) {
                y[..c].copy_from_slice(x);
                y[c..].copy_from_slice(x);
            }
            lower.copy_from_slice(upper);
        });
    }))
}

/// The sum over the four places of each position.
pub(super) fn gather<T: Real>(y_bar: &Tensor, [b, h, w, c]: [usize; 4]) -> Result<Tensor> {
    let ys = y_bar.as_slice::<T>()?;
    let row = (w * c).max(1);
    Ok(Tensor::cpu_with(&[b, h, w, c], |x: &mut [T]| {
        x.par_chunks_mut(row).zip(ys.par_chunks(4 * row)).for_each(|(x, y)| {
            for (i, x) in x.iter_mut().enumerate() {
                let at = i / c * 2 * c + i % c;
                *x = y[at] + y[at + c] + (y[at + 2 * row] + y[at + 2 * row + c]);
            }
        });
    }))
}
