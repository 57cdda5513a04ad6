//! f32/f64 products by packed micro-kernels; the bias is added in one pass over y.

use fewstep_tensor::gemm::{Mat, MatMut, Threads, gemm, gemm_bf16};
use fewstep_tensor::math::Real;
use fewstep_tensor::{DType, PARALLEL_MIN, Tensor, bf16};
use rayon::prelude::*;

use super::Extents;
use crate::Result;

/// Rows that one task sums for the gradient of the bias; fixed, so that the sum does not depend on the threads.
const BIAS_ROWS: usize = 256;

pub(super) fn forward<T: Real>(
    e: &Extents,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    onto: Option<Tensor>,
) -> Result<Tensor> {
    let xm = Mat::new(x.as_slice::<T>()?, e.rows, e.inputs, e.inputs);
    let w = Weight::of(e, w)?;
    let y = match onto {
        Some(mut y) => {
            w.times(out(e, y.make_mut::<T>()?), true, xm, true);
            y
        }
        None => Tensor::cpu_with(&e.shape, |y: &mut [T]| w.times(out(e, y), false, xm, true)),
    };
    match b {
        Some(b) => add_rows::<T>(y, b),
        None => Ok(y),
    }
}

/// W [O, I] in the compute type, or in bf16 and widened as it is used.
enum Weight<'a, T> {
    Same(Mat<'a, T>),
    Narrow(Mat<'a, bf16>),
}

impl<'a, T: Real> Weight<'a, T> {
    fn of(e: &Extents, w: &'a Tensor) -> Result<Self> {
        Ok(match w.dtype() {
            DType::Bf16 => Weight::Narrow(Mat::new(w.as_slice::<bf16>()?, e.outputs, e.inputs, e.inputs)),
            _ => Weight::Same(Mat::new(w.as_slice::<T>()?, e.outputs, e.inputs, e.inputs)),
        })
    }

    /// C (+)= A·W, or A·Wᵀ.
    fn times(&self, c: MatMut<T>, accumulate: bool, a: Mat<T>, transposed: bool) {
        match *self {
            Weight::Same(w) => gemm(c, accumulate, T::ONE, a, if transposed { w.t() } else { w }, Threads::Pool),
            Weight::Narrow(w) => gemm_bf16(c, accumulate, T::ONE, a, if transposed { w.t() } else { w }, Threads::Pool),
        }
    }
}

fn out<'a, T>(e: &Extents, y: &'a mut [T]) -> MatMut<'a, T> {
    MatMut::new(y, e.rows, e.outputs, e.outputs)
}

/// Adds a row vector to every row.
pub(super) fn add_rows<T: Real>(mut y: Tensor, b: &Tensor) -> Result<Tensor> {
    let b = b.as_slice::<T>()?;
    if !b.is_empty() {
        let rows = (PARALLEL_MIN / b.len()).max(1);
        y.make_mut::<T>()?.par_chunks_mut(rows * b.len()).for_each(|rows| {
            for row in rows.chunks_mut(b.len()) {
                row.iter_mut().zip(b).for_each(|(y, &b)| *y += b);
            }
        });
    }
    Ok(y)
}

/// x̄ = ȳ·W
pub(super) fn input_bar<T: Real>(e: &Extents, shape: &[usize], y_bar: &Tensor, w: &Tensor) -> Result<Tensor> {
    let ym = Mat::new(y_bar.as_slice::<T>()?, e.rows, e.outputs, e.outputs);
    let w = Weight::of(e, w)?;
    Ok(Tensor::cpu_with(shape, |x: &mut [T]| {
        w.times(MatMut::new(x, e.rows, e.inputs, e.inputs), false, ym, false);
    }))
}

/// W̄ = ȳᵀ·x, added to `onto` where given.
pub(super) fn weight_bar<T: Real>(e: &Extents, y_bar: &Tensor, x: &Tensor, onto: Option<Tensor>) -> Result<Tensor> {
    let (y_bar, x) = (y_bar.as_slice::<T>()?, x.as_slice::<T>()?);
    let (ym, xm) = (Mat::new(y_bar, e.rows, e.outputs, e.outputs).t(), Mat::new(x, e.rows, e.inputs, e.inputs));
    let product = |w: &mut [T], accumulate| {
        gemm(MatMut::new(w, e.outputs, e.inputs, e.inputs), accumulate, T::ONE, ym, xm, Threads::Pool);
    };
    match onto {
        Some(mut sum) => {
            product(sum.make_mut::<T>()?, true);
            Ok(sum)
        }
        None => Ok(Tensor::cpu_with(&[e.outputs, e.inputs], |w: &mut [T]| product(w, false))),
    }
}

/// b̄ = Σ rows of ȳ, by fixed pieces of rows added in order.
pub(super) fn bias_bar<T: Real>(e: &Extents, y_bar: &Tensor) -> Result<Tensor> {
    let y_bar = y_bar.as_slice::<T>()?;
    let piece = (BIAS_ROWS * e.outputs).max(1);
    let sums: Vec<Vec<T>> = y_bar
        .par_chunks(piece)
        .map(|rows| {
            let mut sum = vec![T::ZERO; e.outputs];
            for row in rows.chunks(e.outputs) {
                sum.iter_mut().zip(row).for_each(|(s, &y)| *s += y);
            }
            sum
        })
        .collect();
    Ok(Tensor::cpu_with(&[e.outputs], |b: &mut [T]| {
        b.fill(T::ZERO);
        for sum in &sums {
            b.iter_mut().zip(sum).for_each(|(b, &s)| *b += s);
        }
    }))
}
