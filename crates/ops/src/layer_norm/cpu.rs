//! One pass a row: a row stays in the first-level cache between its statistics and its output.

use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use multiversion::multiversion;

use super::Spec;
use super::rows::{Rows, sum};
use crate::{Dual, Output, Result, Saved};

/// What the forward rule keeps of a row.
#[derive(Clone, Copy)]
struct Stats<T> {
    mean: T,
    inv_std: T,
}

#[inline(always)]
fn stats<T: Real>(x: &[T], eps: T) -> Stats<T> {
    let inv_d = T::ONE / T::lit(x.len() as f64);
    let mean = sum([x], |[x]| x) * inv_d;
    let var = sum([x], |[x]| (x - mean) * (x - mean)) * inv_d;
    Stats { mean, inv_std: T::ONE / (var + eps).sqrt() }
}

#[inline(always)]
fn normal<T: Real>(s: Stats<T>, x: T) -> T {
    (x - s.mean) * s.inv_std
}

/// The rows of one group: y = x̂·(base + factor) + offset. Leaves (mean, 1/std) of each row in `kept`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn forward_rows<T: Real>(base: T, eps: T, x: &[T], factor: &[T], offset: &[T], y: &mut [T], kept: &mut [T]) {
    let d = factor.len();
    for ((x, y), kept) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(kept.chunks_exact_mut(2)) {
        let s = stats(x, eps);
        for (((y, &x), &f), &o) in y.iter_mut().zip(x).zip(factor).zip(offset) {
            *y = normal(s, x).fma(base + f, o);
        }
        (kept[0], kept[1]) = (s.mean, s.inv_std);
    }
}

/// The rows of one group: ẏ = x̂̇·(base + factor) + x̂·factoṙ + offseṫ, x̂̇ = (ẋ − ⟨ẋ⟩ − x̂⟨x̂ẋ⟩)/std.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn tangent_rows<T: Real>(
    base: T,
    kept: &[T],
    x: &[T],
    factor: &[T],
    [x_dot, factor_dot, offset_dot]: [Option<&[T]>; 3],
    y_dot: &mut [T],
) {
    let d = factor.len();
    let inv_d = T::ONE / T::lit(d as f64);
    for (row, ((x, y_dot), kept)) in
        x.chunks_exact(d).zip(y_dot.chunks_exact_mut(d)).zip(kept.chunks_exact(2)).enumerate()
    {
        let s = Stats { mean: kept[0], inv_std: kept[1] };
        match x_dot {
            Some(x_dot) => {
                let x_dot = &x_dot[row * d..][..d];
                let mean = sum([x_dot], |[t]| t) * inv_d;
                let along = sum([x_dot, x], |[t, x]| t * normal(s, x)) * inv_d;
                for (((y, &x), &t), &f) in y_dot.iter_mut().zip(x).zip(x_dot).zip(factor) {
                    *y = (t - mean - normal(s, x) * along) * s.inv_std * (base + f);
                }
            }
            None => y_dot.fill(T::ZERO),
        }
        if let Some(factor_dot) = factor_dot {
            for ((y, &x), &t) in y_dot.iter_mut().zip(x).zip(factor_dot) {
                *y = normal(s, x).fma(t, *y);
            }
        }
        if let Some(offset_dot) = offset_dot {
            y_dot.iter_mut().zip(offset_dot).for_each(|(y, &t)| *y += t);
        }
    }
}

/// The rows of one group: x̄ = (g − ⟨g⟩ − x̂⟨g·x̂⟩)/std with g = ȳ·(base + factor); adds to factor̄ = Σȳ·x̂ and offset̄ = Σȳ.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn cotangent_rows<T: Real>(base: T, kept: &[T], x: &[T], factor: &[T], y_bar: &[T], x_bar: &mut [T], sums: &mut [T]) {
    let d = factor.len();
    let inv_d = T::ONE / T::lit(d as f64);
    let (factor_bar, offset_bar) = sums.split_at_mut(d);
    let rows = x.chunks_exact(d).zip(y_bar.chunks_exact(d)).zip(x_bar.chunks_exact_mut(d));
    for (((x, y_bar), x_bar), kept) in rows.zip(kept.chunks_exact(2)) {
        let s = Stats { mean: kept[0], inv_std: kept[1] };
        let mean = sum([y_bar, factor], |[b, f]| b * (base + f)) * inv_d;
        let along = sum([y_bar, factor, x], |[b, f, x]| b * (base + f) * normal(s, x)) * inv_d;
        for ((((x_bar, &x), &b), &f), (fb, ob)) in
            x_bar.iter_mut().zip(x).zip(y_bar).zip(factor).zip(factor_bar.iter_mut().zip(offset_bar.iter_mut()))
        {
            let n = normal(s, x);
            *x_bar = (b * (base + f) - mean - n * along) * s.inv_std;
            *fb = b.fma(n, *fb);
            *ob += b;
        }
    }
}

/// The slice of group `g`.
fn group<T>(all: &[T], g: usize, d: usize) -> &[T] {
    &all[g * d..][..d]
}

/// y and the kept statistics [rows, 2].
fn primal<T: Real>(spec: &Spec, r: &Rows, x: &[&Tensor]) -> Result<(Tensor, Tensor)> {
    let (xs, factor, offset) =
        (x[0].as_slice::<T>()?, x[spec.factor].as_slice::<T>()?, x[spec.offset].as_slice::<T>()?);
    let (base, eps, d) = (T::lit(spec.base), T::lit(spec.eps), r.d);
    let mut kept = vec![T::ZERO; r.rows * 2];
    let y = Tensor::cpu_with(x[0].shape(), |y: &mut [T]| {
        let parts = r.pieces(y, d, |first, g, y| {
            let mut kept = vec![T::ZERO; y.len() / d * 2];
            let x = &xs[first * d..][..y.len()];
            forward_rows(base, eps, x, group(factor, g, d), group(offset, g, d), y, &mut kept);
            kept
        });
        parts.iter().flatten().zip(&mut kept).for_each(|(p, k)| *k = *p);
    });
    Ok((y, Tensor::from_vec(kept, &[r.rows, 2])?))
}

pub(super) fn forward<T: Real>(spec: &Spec, r: &Rows, x: &[&Tensor]) -> Result<Output> {
    let (y, kept) = primal::<T>(spec, r, x)?;
    Ok(Output { y, kept: vec![kept] })
}

pub(super) fn jvp<T: Real>(spec: &Spec, r: &Rows, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
    let (y, kept) = primal::<T>(spec, r, x)?;
    let (xs, factor, kept) = (x[0].as_slice::<T>()?, x[spec.factor].as_slice::<T>()?, kept.as_slice::<T>()?);
    let slice = |i: usize| x_dot[i].map(|t| t.as_slice::<T>()).transpose();
    let (x_dot, factor_dot, offset_dot) = (slice(0)?, slice(spec.factor)?, slice(spec.offset)?);
    let (base, d) = (T::lit(spec.base), r.d);
    let tangent = Tensor::cpu_with(y.shape(), |y_dot: &mut [T]| {
        r.pieces(y_dot, d, |first, g, y_dot| {
            let (from, len) = (first * d, y_dot.len());
            let dots = [
                x_dot.map(|t| &t[from..][..len]),
                factor_dot.map(|t| group(t, g, d)),
                offset_dot.map(|t| group(t, g, d)),
            ];
            tangent_rows(base, &kept[first * 2..], &xs[from..][..len], group(factor, g, d), dots, y_dot);
        });
    });
    Ok(Dual { primal: y, tangent: Some(tangent) })
}

pub(super) fn vjp<T: Real>(
    spec: &Spec,
    r: &Rows,
    saved: &Saved,
    y_bar: &Tensor,
    wanted: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    let (x, factor) = (saved.input(0)?.as_slice::<T>()?, saved.input(spec.factor)?.as_slice::<T>()?);
    let (kept, y_bar) = (saved.kept(0)?.as_slice::<T>()?, y_bar.as_slice::<T>()?);
    let (base, d) = (T::lit(spec.base), r.d);
    let mut sums = Vec::new();
    let x_bar = Tensor::cpu_with(saved.shape(0), |x_bar: &mut [T]| {
        sums = r.pieces(x_bar, d, |first, g, x_bar| {
            let (from, len) = (first * d, x_bar.len());
            let mut sums = vec![T::ZERO; 2 * d];
            let (x, y_bar) = (&x[from..][..len], &y_bar[from..][..len]);
            cotangent_rows(base, &kept[first * 2..], x, group(factor, g, d), y_bar, x_bar, &mut sums);
            sums
        });
    });
    let part = |i: usize| -> Vec<&[T]> { sums.iter().map(|s| &s[i * d..][..d]).collect() };
    let mut bars = vec![None; 3];
    bars[0] = wanted[0].then_some(x_bar);
    for (input, half) in [(spec.factor, 0), (spec.offset, 1)] {
        bars[input] = wanted[input].then(|| r.gather(&part(half), saved.shape(input)));
    }
    Ok(bars)
}
