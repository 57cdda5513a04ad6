//! Softmax of rows of scores, its tangent and its cotangent, in place.

use fewstep_tensor::math::Real;
use multiversion::multiversion;

use crate::layer_norm::rows::sum;

/// p = softmax(s) of every row of `width` elements.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn softmax<T: Real>(s: &mut [T], width: usize) {
    for row in s.chunks_exact_mut(width) {
        let max = row.iter().fold(T::NEG_INFINITY, |m, &x| m.max(x));
        row.iter_mut().for_each(|x| *x = (*x - max).exp());
        let inv = T::ONE / sum([row], |[x]| x);
        row.iter_mut().for_each(|x| *x = *x * inv);
    }
}

/// d ← p∘(d − ⟨p, d⟩): softmax's derivative is symmetric, so this is its tangent and its cotangent.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn derivative<T: Real>(p: &[T], d: &mut [T], width: usize) {
    for (p, d) in p.chunks_exact(width).zip(d.chunks_exact_mut(width)) {
        let mean = sum([p, d], |[p, d]| p * d);
        d.iter_mut().zip(p).for_each(|(d, &p)| *d = p * (*d - mean));
    }
}
