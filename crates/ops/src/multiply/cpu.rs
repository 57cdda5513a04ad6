//! One pass, bound by memory.

use fewstep_tensor::math::Real;
use fewstep_tensor::{PARALLEL_MIN, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use crate::Result;

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn multiply<T: Real>(a: &[T], b: &[T], y: &mut [T]) {
    y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = a * b);
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn accumulate<T: Real>(a: &[T], b: &[T], y: &mut [T]) {
    y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = a.fma(b, *y));
}

/// Σ aᵢ∘bᵢ over at least one pair, all of one shape.
pub(super) fn sum_of_products<T: Real>(pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let mut slices = Vec::with_capacity(pairs.len());
    for (a, b) in pairs {
        slices.push((a.as_slice::<T>()?, b.as_slice::<T>()?));
    }
    Ok(Tensor::cpu_with(pairs[0].0.shape(), |y: &mut [T]| {
        y.par_chunks_mut(PARALLEL_MIN).enumerate().for_each(|(i, y)| {
            for (n, (a, b)) in slices.iter().enumerate() {
                let (a, b) = (&a[i * PARALLEL_MIN..][..y.len()], &b[i * PARALLEL_MIN..][..y.len()]);
                if n == 0 { multiply(a, b, y) } else { accumulate(a, b, y) }
            }
        });
    }))
}
