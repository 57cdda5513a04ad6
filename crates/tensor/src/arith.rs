//! Arithmetic on whole tensors outside networks: states of samplers, losses, gradients.
//!
//! Nothing here is differentiated. Per-sample quantities are indexed by the leading axis.

use rayon::prelude::*;

use crate::math::Real;
use crate::tensor::PARALLEL_MIN;
use crate::{DType, Device, Element, Error, Result, Tensor, dispatch_float};

fn same_shape(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape() != b.shape() {
        return Err(Error::shape(op, format!("shape {:?}", a.shape()), b.shape()));
    }
    if a.dtype() != b.dtype() {
        return Err(Error::DType { op, expected: a.dtype(), got: b.dtype() });
    }
    if a.device() != b.device() {
        return Err(Error::DeviceMismatch { op, a: a.device(), b: b.device() });
    }
    Ok(())
}

fn map2<T: Real>(a: &Tensor, b: &Tensor, f: impl Fn(T, T) -> T + Sync) -> Result<Tensor> {
    let (a_s, b_s) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    Ok(Tensor::cpu_with(a.shape(), |out: &mut [T]| {
        let chunks = out.par_chunks_mut(PARALLEL_MIN).zip(a_s.par_chunks(PARALLEL_MIN));
        chunks.zip(b_s.par_chunks(PARALLEL_MIN)).for_each(|((o, a), b)| {
            o.iter_mut().zip(a).zip(b).for_each(|((o, &a), &b)| *o = f(a, b));
        });
    }))
}

/// a + b.
///
/// # Errors
/// If shapes, dtypes or devices differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    same_shape("add", a, b)?;
    dispatch_float!("add", a.dtype(), T => map2::<T>(a, b, |x, y| x + y))
}

/// a − b.
///
/// # Errors
/// If shapes, dtypes or devices differ.
pub fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    same_shape("sub", a, b)?;
    dispatch_float!("sub", a.dtype(), T => map2::<T>(a, b, |x, y| x - y))
}

/// a ← a + b, in place where `a` is not shared.
///
/// # Errors
/// If shapes, dtypes or devices differ.
pub fn add_assign(a: &mut Tensor, b: &Tensor) -> Result<()> {
    same_shape("add_assign", a, b)?;
    dispatch_float!("add_assign", a.dtype(), T => {
        let b = b.as_slice::<T>()?;
        let a = a.make_mut::<T>()?;
        a.par_chunks_mut(PARALLEL_MIN).zip(b.par_chunks(PARALLEL_MIN)).for_each(|(a, b)| {
            a.iter_mut().zip(b).for_each(|(a, &b)| *a += b);
        });
        Ok(())
    })
}

/// Σᵢ cᵢ(s)·xᵢ for every sample s: each term has one f64 coefficient per sample.
///
/// # Errors
/// If shapes, dtypes or devices differ, or a list of coefficients has another length than the leading axis.
pub fn combine(terms: &[(&[f64], &Tensor)]) -> Result<Tensor> {
    let Some(&(_, first)) = terms.first() else {
        return Err(Error::shape("combine", "at least one term", &[]));
    };
    let samples = first.shape().first().copied().unwrap_or(1);
    for (c, x) in terms {
        same_shape("combine", first, x)?;
        if c.len() != samples {
            return Err(Error::shape("combine", format!("{} coefficients", samples), &[c.len()]));
        }
    }
    let row = first.len() / samples.max(1);
    dispatch_float!("combine", first.dtype(), T => {
        let xs = terms.iter().map(|(_, x)| x.as_slice::<T>()).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cpu_with(first.shape(), |out: &mut [T]| {
            out.par_chunks_mut(row.max(1)).enumerate().for_each(|(s, out)| {
                let terms: Vec<(f64, &[T])> =
                    terms.iter().zip(&xs).map(|((c, _), x)| (c[s], &x[s * row..(s + 1) * row])).collect();
                combine_row(&terms, out);
            });
        }))
    })
}

/// Elements whose sums are formed at a time: their f64 accumulators stay in the first cache.
const COMBINE_CHUNK: usize = 512;

/// Σ c·x in f64, rounded once.
fn combine_row<T: Real>(terms: &[(f64, &[T])], out: &mut [T]) {
    let mut sums = [0.0f64; COMBINE_CHUNK];
    for (i, out) in out.chunks_mut(COMBINE_CHUNK).enumerate() {
        let sums = &mut sums[..out.len()];
        sums.fill(0.0);
        for (c, x) in terms {
            let x = &x[i * COMBINE_CHUNK..][..sums.len()];
            sums.iter_mut().zip(x).for_each(|(s, x)| *s += c * x.to_f64());
        }
        out.iter_mut().zip(&*sums).for_each(|(o, &s)| *o = T::from_f64(s));
    }
}

/// c·x with one factor per sample.
///
/// # Errors
/// As [`combine`].
pub fn scale(c: &[f64], x: &Tensor) -> Result<Tensor> {
    combine(&[(c, x)])
}

/// Σ f(x) over each sample, accumulated in f64 in element order.
///
/// # Errors
/// If the tensor is not f32 or f64.
pub fn sum_per_sample(x: &Tensor, f: impl Fn(f64) -> f64 + Sync) -> Result<Vec<f64>> {
    let samples = x.shape().first().copied().unwrap_or(1);
    let row = x.len() / samples.max(1);
    dispatch_float!("sum_per_sample", x.dtype(), T => {
        let x = x.as_slice::<T>()?;
        Ok((0..samples).into_par_iter().map(|s| x[s * row..(s + 1) * row].iter().map(|v| f(v.to_f64())).sum()).collect())
    })
}

/// Σ x², in f64, over fixed pieces: the result does not depend on the number of threads.
///
/// # Errors
/// If the tensor is not f32 or f64.
pub fn sum_squares(x: &Tensor) -> Result<f64> {
    dispatch_float!("sum_squares", x.dtype(), T => {
        let pieces: Vec<f64> = x.as_slice::<T>()?.par_chunks(PARALLEL_MIN)
            .map(|c| c.iter().map(|v| v.to_f64() * v.to_f64()).sum())
            .collect();
        Ok(pieces.iter().sum())
    })
}

/// How many elements are NaN or infinite.
///
/// # Errors
/// If the tensor is not f32 or f64.
pub fn count_non_finite(x: &Tensor) -> Result<usize> {
    dispatch_float!("count_non_finite", x.dtype(), T => {
        Ok(x.as_slice::<T>()?.par_chunks(PARALLEL_MIN).map(|c| c.iter().filter(|v| !v.to_f64().is_finite()).count()).sum())
    })
}

/// Standard normal noise of shape [samples, …], sample `first + i` in row i; f64 receives the f32 draws exactly.
///
/// # Errors
/// If the dtype is not f32 or f64.
pub fn normal(
    stream: &crate::random::Stream,
    first: u64,
    shape: &[usize],
    dtype: DType,
    device: Device,
) -> Result<Tensor> {
    let row: usize = shape.iter().skip(1).product();
    let draws = Tensor::cpu_with(shape, |out: &mut [f32]| {
        out.par_chunks_mut(row.max(1)).enumerate().for_each(|(i, o)| stream.fill_normal(first + i as u64, o));
    });
    draws.to_dtype(dtype).to_device(device)
}
