//! Arithmetic on whole tensors outside networks: states of samplers, losses, gradients.
//!
//! Nothing here is differentiated. Per-sample quantities are indexed by the leading axis.

use rayon::prelude::*;

use crate::math::Real;
use crate::tensor::PARALLEL_MIN;
use crate::{DType, Device, Element, Error, Result, Tensor, cuda, dispatch_float};

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
    if a.device() != Device::Cpu {
        let y = Tensor::empty(a.shape(), a.dtype(), a.device())?;
        cuda::add_or_sub("add", a, b, &y)?;
        return Ok(y);
    }
    dispatch_float!("add", a.dtype(), T => map2::<T>(a, b, |x, y| x + y))
}

/// a − b.
///
/// # Errors
/// If shapes, dtypes or devices differ.
pub fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    same_shape("sub", a, b)?;
    if a.device() != Device::Cpu {
        let y = Tensor::empty(a.shape(), a.dtype(), a.device())?;
        cuda::add_or_sub("sub", a, b, &y)?;
        return Ok(y);
    }
    dispatch_float!("sub", a.dtype(), T => map2::<T>(a, b, |x, y| x - y))
}

/// a ← a + b, in place where `a` is not shared.
///
/// # Errors
/// If shapes, dtypes or devices differ.
pub fn add_assign(a: &mut Tensor, b: &Tensor) -> Result<()> {
    same_shape("add_assign", a, b)?;
    if a.device() != Device::Cpu {
        a.make_unique()?;
        return cuda::add_or_sub("add", a, b, a);
    }
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
    if first.device() != Device::Cpu {
        let lists: Vec<&[f64]> = terms.iter().map(|(c, _)| *c).collect();
        let coefficients = cuda::coefficients(&lists, first.device())?;
        return cuda::combine(&coefficients.into_iter().zip(terms.iter().map(|(_, x)| *x)).collect::<Vec<_>>());
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

/// As [`combine`], with coefficients `[samples]` of any dtype, which stay on the device where they are beside their tensors.
///
/// # Errors
/// As [`combine`].
pub fn combine_by(terms: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let Some(&(_, first)) = terms.first() else { return combine(&[]) };
    if first.device() == Device::Cpu {
        let lists: Vec<Vec<f64>> = terms.iter().map(|(c, _)| c.to_vec_f64()).collect();
        return combine(&lists.iter().zip(terms).map(|(c, (_, x))| (c.as_slice(), *x)).collect::<Vec<_>>());
    }
    let samples = first.shape().first().copied().unwrap_or(1);
    let mut double = Vec::with_capacity(terms.len());
    for (c, x) in terms {
        same_shape("combine", first, x)?;
        if c.len() != samples {
            return Err(Error::shape("combine", format!("{samples} coefficients"), c.shape()));
        }
        double.push((c.to_device(first.device())?.to_dtype(DType::F64), *x));
    }
    cuda::combine(&double)
}

/// c·x with one factor per sample.
///
/// # Errors
/// As [`combine`].
pub fn scale(c: &[f64], x: &Tensor) -> Result<Tensor> {
    combine(&[(c, x)])
}

/// What [`sum_per_sample`] sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Term {
    /// by·x²
    Square {
        /// The factor.
        by: f64,
    },
    /// |x|
    Magnitude,
    /// 1 where x is NaN or infinite, otherwise 0.
    NonFinite,
}

impl Term {
    /// The kernel's number of the function, and its factor.
    fn parameters(self) -> (u32, f64) {
        match self {
            Term::Square { by } => (0, by),
            Term::Magnitude => (1, 1.0),
            Term::NonFinite => (2, 1.0),
        }
    }
}

/// The f64 elements of a tensor on a GPU.
fn to_host(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_device(Device::Cpu)?.as_slice::<f64>()?.to_vec())
}

/// Σ of a function of each element over each sample, accumulated in f64: in element order on a CPU, by fixed pieces on a GPU.
///
/// # Errors
/// If the tensor is not f32 or f64, or bf16 on a GPU.
pub fn sum_per_sample(x: &Tensor, term: Term) -> Result<Vec<f64>> {
    let samples = x.shape().first().copied().unwrap_or(1);
    if x.device() != Device::Cpu {
        return to_host(&cuda::sums(x, samples, term.parameters(), None)?);
    }
    let row = x.len() / samples.max(1);
    fn sums<T: Real>(x: &[T], (samples, row): (usize, usize), f: impl Fn(f64) -> f64 + Sync) -> Vec<f64> {
        let sample = |s: usize| x[s * row..(s + 1) * row].iter().map(|v| f(v.to_f64())).sum();
        (0..samples).into_par_iter().map(sample).collect()
    }
    dispatch_float!("sum_per_sample", x.dtype(), T => {
        let (x, extents) = (x.as_slice::<T>()?, (samples, row));
        Ok(match term {
            Term::Square { by } => sums(x, extents, |v| by * v * v),
            Term::Magnitude => sums(x, extents, f64::abs),
            Term::NonFinite => sums(x, extents, |v| f64::from(u8::from(!v.is_finite()))),
        })
    })
}

/// Σ a·b over each sample, `[B]` f64 on the device of both: in element order on a CPU, by fixed pieces on a GPU.
///
/// # Errors
/// If shapes, dtypes or devices differ, or the dtype is not f32 or f64, or bf16 on a GPU.
pub fn dot_per_sample(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    same_shape("dot_per_sample", a, b)?;
    let samples = a.shape().first().copied().unwrap_or(1);
    if a.device() != Device::Cpu {
        return cuda::sums(a, samples, (cuda::PRODUCTS, 1.0), Some(b));
    }
    let row = a.len() / samples.max(1);
    dispatch_float!("dot_per_sample", a.dtype(), T => {
        let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
        let sum = |s: usize| -> f64 {
            let range = s * row..(s + 1) * row;
            a[range.clone()].iter().zip(&b[range]).map(|(a, b)| a.to_f64() * b.to_f64()).sum()
        };
        Tensor::from_vec((0..samples).into_par_iter().map(sum).collect::<Vec<f64>>(), &[samples])
    })
}

/// Σ x², in f64, over fixed pieces: the result does not depend on the number of threads.
///
/// # Errors
/// If the tensor is not f32 or f64, or bf16 on a GPU.
pub fn sum_squares(x: &Tensor) -> Result<f64> {
    if x.device() != Device::Cpu {
        return Ok(to_host(&cuda::sums(x, 1, Term::Square { by: 1.0 }.parameters(), None)?)?[0]);
    }
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
/// If the tensor is not f32 or f64, or bf16 on a GPU.
pub fn count_non_finite(x: &Tensor) -> Result<usize> {
    if x.device() != Device::Cpu {
        return Ok(to_host(&cuda::sums(x, 1, Term::NonFinite.parameters(), None)?)?[0] as usize);
    }
    dispatch_float!("count_non_finite", x.dtype(), T => {
        Ok(x.as_slice::<T>()?.par_chunks(PARALLEL_MIN).map(|c| c.iter().filter(|v| !v.to_f64().is_finite()).count()).sum())
    })
}

/// Standard normal noise of shape [samples, …], sample `first + i` in row i; f64 receives the f32 draws exactly.
///
/// # Errors
/// If a GPU has no memory for them.
pub fn normal(
    stream: &crate::random::Stream,
    first: u64,
    shape: &[usize],
    dtype: DType,
    device: Device,
) -> Result<Tensor> {
    if device != Device::Cpu {
        return cuda::normal(stream, first, shape, dtype, device);
    }
    let row: usize = shape.iter().skip(1).product();
    let draws = Tensor::cpu_with(shape, |out: &mut [f32]| {
        out.par_chunks_mut(row.max(1)).enumerate().for_each(|(i, o)| stream.fill_normal(first + i as u64, o));
    });
    Ok(draws.to_dtype(dtype))
}
