//! One pass a position: its channels stay in the first-level cache between their norm and the output.

use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use multiversion::multiversion;

use crate::layer_norm::rows::{Rows, sum};
use crate::{Result, Saved};

/// Below this norm the divisor is this: PyTorch's `normalize`.
const FLOOR: f64 = 1e-12;

/// √C/max(‖x‖, floor), and 1/‖x‖² or zero where the divisor is constant.
#[inline(always)]
fn factors<T: Real>(x: &[T]) -> (T, T) {
    let square = sum([x], |[x]| x * x);
    let norm = square.sqrt();
    let root = T::lit((x.len() as f64).sqrt());
    if norm > T::lit(FLOOR) { (root / norm, T::ONE / square) } else { (root / T::lit(FLOOR), T::ZERO) }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn forward_rows<T: Real>(x: &[T], gamma: &[T], y: &mut [T]) {
    let d = gamma.len();
    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        let (scale, _) = factors(x);
        y.iter_mut().zip(x).zip(gamma).for_each(|((y, &x), &g)| *y = x * scale * g);
    }
}

/// ẏ = scale·(γ·(ẋ − x·⟨x, ẋ⟩/‖x‖²) + γ̇·x)
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn tangent_rows<T: Real>(x: &[T], gamma: &[T], x_dot: Option<&[T]>, gamma_dot: Option<&[T]>, y_dot: &mut [T]) {
    let d = gamma.len();
    for (row, (x, y)) in x.chunks_exact(d).zip(y_dot.chunks_exact_mut(d)).enumerate() {
        let (scale, inverse) = factors(x);
        match x_dot.map(|t| &t[row * d..][..d]) {
            Some(t) => {
                let along = sum([x, t], |[x, t]| x * t) * inverse;
                for (((y, &x), &t), &g) in y.iter_mut().zip(x).zip(t).zip(gamma) {
                    *y = scale * g * (t - x * along);
                }
            }
            None => y.fill(T::ZERO),
        }
        if let Some(gamma_dot) = gamma_dot {
            y.iter_mut().zip(x).zip(gamma_dot).for_each(|((y, &x), &g)| *y = (scale * x).fma(g, *y));
        }
    }
}

/// x̄ = scale·(g − x·⟨x, g⟩/‖x‖²) with g = γ·ȳ; adds to γ̄ = Σ scale·x·ȳ.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn cotangent_rows<T: Real>(x: &[T], gamma: &[T], y_bar: &[T], x_bar: &mut [T], gamma_bar: &mut [T]) {
    let d = gamma.len();
    for ((x, y), x_bar) in x.chunks_exact(d).zip(y_bar.chunks_exact(d)).zip(x_bar.chunks_exact_mut(d)) {
        let (scale, inverse) = factors(x);
        let along = sum([x, y, gamma], |[x, y, g]| x * y * g) * inverse;
        for (((x_bar, &x), &y), (&g, g_bar)) in x_bar.iter_mut().zip(x).zip(y).zip(gamma.iter().zip(&mut *gamma_bar)) {
            *x_bar = scale * (g * y - x * along);
            *g_bar = (scale * x).fma(y, *g_bar);
        }
    }
}

pub(super) fn forward<T: Real>(r: &Rows, x: &[&Tensor]) -> Result<Tensor> {
    let (xs, gamma) = (x[0].as_slice::<T>()?, x[1].as_slice::<T>()?);
    Ok(Tensor::cpu_with(x[0].shape(), |y: &mut [T]| {
        r.pieces(y, r.d, |first, _, y| forward_rows(&xs[first * r.d..][..y.len()], gamma, y));
    }))
}

pub(super) fn tangent<T: Real>(r: &Rows, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Tensor> {
    let (xs, gamma) = (x[0].as_slice::<T>()?, x[1].as_slice::<T>()?);
    let slice = |i: usize| x_dot[i].map(|t| t.as_slice::<T>()).transpose();
    let (x_dot, gamma_dot) = (slice(0)?, slice(1)?);
    Ok(Tensor::cpu_with(x[0].shape(), |y_dot: &mut [T]| {
        r.pieces(y_dot, r.d, |first, _, y_dot| {
            let part = |t| -> &[T] { &<[T]>::split_at(t, first * r.d).1[..y_dot.len()] };
            tangent_rows(part(xs), gamma, x_dot.map(part), gamma_dot, y_dot);
        });
    }))
}

pub(super) fn vjp<T: Real>(r: &Rows, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
    let (x, gamma) = (saved.input(0)?.as_slice::<T>()?, saved.input(1)?.as_slice::<T>()?);
    let y_bar = y_bar.as_slice::<T>()?;
    let mut sums = Vec::new();
    let x_bar = Tensor::cpu_with(saved.shape(0), |x_bar: &mut [T]| {
        sums = r.pieces(x_bar, r.d, |first, _, x_bar| {
            let (from, len) = (first * r.d, x_bar.len());
            let mut gamma_bar = vec![T::ZERO; r.d];
            cotangent_rows(&x[from..][..len], gamma, &y_bar[from..][..len], x_bar, &mut gamma_bar);
            gamma_bar
        });
    });
    let parts: Vec<&[T]> = sums.iter().map(Vec::as_slice).collect();
    Ok(vec![wanted[0].then_some(x_bar), wanted[1].then(|| r.gather(&parts, saved.shape(1)))])
}
