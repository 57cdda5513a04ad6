//! One pass a row: normalise into the output's row, then rotate it there.

use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use multiversion::multiversion;

use super::{Extents, RmsNormRope, RopeStyle, Rotation};
use crate::layer_norm::rows::{Rows, sum};
use crate::{Dual, Output, Result, Saved};

/// Rotates the heads of one row by its angles, or back.
#[inline(always)]
fn rotate<T: Real>(style: RopeStyle, cos: &[T], sin: &[T], back: bool, row: &mut [T]) {
    let sign = if back { -T::ONE } else { T::ONE };
    for head in row.chunks_exact_mut(2 * cos.len()) {
        match style {
            RopeStyle::Interleaved => {
                for ((pair, &c), &s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                    let (a, b, s) = (pair[0], pair[1], s * sign);
                    pair[0] = a.fma(c, -(b * s));
                    pair[1] = a.fma(s, b * c);
                }
            }
            RopeStyle::HalfSplit => {
                let (first, second) = head.split_at_mut(cos.len());
                for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    let (x, y, s) = (*a, *b, s * sign);
                    *a = x.fma(c, -(y * s));
                    *b = x.fma(s, y * c);
                }
            }
        }
    }
}

/// What the row kernels share: extents, rotation and the index of the first row.
struct Context<'a, T> {
    e: &'a Extents,
    rotation: Option<&'a Rotation<'a, T>>,
    eps: T,
    weight: &'a [T],
    first: usize,
}

impl<T: Real> Context<'_, T> {
    #[inline(always)]
    fn rotate(&self, row: usize, back: bool, y: &mut [T]) {
        if let Some(r) = self.rotation
            && self.e.k > 0
        {
            let half = self.e.k / 2;
            let at = (self.first + row) % self.e.l * half;
            rotate(r.style, &r.cos[at..][..half], &r.sin[at..][..half], back, y);
        }
    }
}

/// y = RoPE(x·inv·weight); leaves inv = 1/rms of each part in `kept`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn forward_rows<T: Real>(c: &Context<T>, x: &[T], y: &mut [T], kept: &mut [T]) {
    let (d, part) = (c.e.d, c.e.part);
    let inv_part = T::ONE / T::lit(part as f64);
    let rows = x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(kept.chunks_exact_mut(d / part));
    for (row, ((x, y), kept)) in rows.enumerate() {
        for ((x, y), inv) in x.chunks_exact(part).zip(y.chunks_exact_mut(part)).zip(kept) {
            *inv = T::ONE / (sum([x], |[x]| x * x) * inv_part + c.eps).sqrt();
            y.iter_mut().zip(x).zip(c.weight).for_each(|((y, &x), &w)| *y = x * *inv * w);
        }
        c.rotate(row, false, y);
    }
}

/// ẏ = RoPE((ẋ·inv + x·inv̇)·weight + x·inv·weighṫ), inv̇ = −inv³·⟨x·ẋ⟩.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn tangent_rows<T: Real>(
    c: &Context<T>,
    kept: &[T],
    x: &[T],
    x_dot: Option<&[T]>,
    weight_dot: Option<&[T]>,
    y_dot: &mut [T],
) {
    let (d, part) = (c.e.d, c.e.part);
    let inv_part = T::ONE / T::lit(part as f64);
    for (row, y_dot) in y_dot.chunks_exact_mut(d).enumerate() {
        for (p, y_dot) in y_dot.chunks_exact_mut(part).enumerate() {
            let at = row * d + p * part;
            let (x, inv) = (&x[at..][..part], kept[row * (d / part) + p]);
            match x_dot {
                Some(x_dot) => {
                    let x_dot = &x_dot[at..][..part];
                    let inv_dot = -(inv * inv * inv) * (sum([x, x_dot], |[x, t]| x * t) * inv_part);
                    for (((y, &x), &t), &w) in y_dot.iter_mut().zip(x).zip(x_dot).zip(c.weight) {
                        *y = t.fma(inv, x * inv_dot) * w;
                    }
                }
                None => y_dot.fill(T::ZERO),
            }
            if let Some(weight_dot) = weight_dot {
                y_dot.iter_mut().zip(x).zip(weight_dot).for_each(|((y, &x), &t)| *y = (x * inv).fma(t, *y));
            }
        }
        c.rotate(row, false, y_dot);
    }
}

/// With n̄ = RoPEᵀ(ȳ): x̄ = n̄·weight·inv − x·inv³·⟨x·n̄·weight⟩; adds n̄·x·inv to weight̄.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn cotangent_rows<T: Real>(c: &Context<T>, kept: &[T], x: &[T], y_bar: &[T], x_bar: &mut [T], weight_bar: &mut [T]) {
    let (d, part) = (c.e.d, c.e.part);
    let inv_part = T::ONE / T::lit(part as f64);
    for (row, (x_bar, y_bar)) in x_bar.chunks_exact_mut(d).zip(y_bar.chunks_exact(d)).enumerate() {
        // x̄'s row first holds n̄.
        x_bar.copy_from_slice(y_bar);
        c.rotate(row, true, x_bar);
        for (p, x_bar) in x_bar.chunks_exact_mut(part).enumerate() {
            let at = row * d + p * part;
            let (x, inv) = (&x[at..][..part], kept[row * (d / part) + p]);
            let along = inv * inv * inv * (sum([x, x_bar, c.weight], |[x, n, w]| x * n * w) * inv_part);
            for (((n, &x), &w), wb) in x_bar.iter_mut().zip(x).zip(c.weight).zip(weight_bar.iter_mut()) {
                *wb = (*n * x).fma(inv, *wb);
                *n = (*n * w * inv) - x * along;
            }
        }
    }
}

fn context<'a, T: Real>(
    op: &RmsNormRope,
    e: &'a Extents,
    rotation: &'a Option<Rotation<'a, T>>,
    weight: &'a [T],
    first: usize,
) -> Context<'a, T> {
    Context { e, rotation: rotation.as_ref(), eps: T::lit(op.eps), weight, first }
}

fn rows(e: &Extents) -> Rows {
    Rows { rows: e.rows, d: e.d, per_group: e.rows, groups: 1 }
}

/// y and the kept 1/rms [rows, parts].
fn primal<T: Real>(op: &RmsNormRope, e: &Extents, x: &[&Tensor]) -> Result<(Tensor, Tensor)> {
    let (xs, weight) = (x[0].as_slice::<T>()?, x[1].as_slice::<T>()?);
    let rotation = op.rotation::<T>(x[0].dtype())?;
    let parts = e.d.checked_div(e.part).unwrap_or(0);
    let mut kept = vec![T::ZERO; e.rows * parts];
    let y = Tensor::cpu_with(x[0].shape(), |y: &mut [T]| {
        let pieces = rows(e).pieces(y, e.d, |first, _, y| {
            let mut kept = vec![T::ZERO; y.len() / e.part];
            let x = &xs[first * e.d..][..y.len()];
            forward_rows(&context(op, e, &rotation, weight, first), x, y, &mut kept);
            kept
        });
        pieces.iter().flatten().zip(&mut kept).for_each(|(p, k)| *k = *p);
    });
    Ok((y, Tensor::from_vec(kept, &[e.rows, parts])?))
}

pub(super) fn forward<T: Real>(op: &RmsNormRope, e: &Extents, x: &[&Tensor]) -> Result<Output> {
    let (y, kept) = primal::<T>(op, e, x)?;
    Ok(Output { y, kept: vec![kept] })
}

pub(super) fn jvp<T: Real>(op: &RmsNormRope, e: &Extents, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
    let (y, kept) = primal::<T>(op, e, x)?;
    let (xs, weight, kept) = (x[0].as_slice::<T>()?, x[1].as_slice::<T>()?, kept.as_slice::<T>()?);
    let slice = |i: usize| x_dot[i].map(|t| t.as_slice::<T>()).transpose();
    let (x_dot, weight_dot) = (slice(0)?, slice(1)?);
    let rotation = op.rotation::<T>(x[0].dtype())?;
    let tangent = Tensor::cpu_with(y.shape(), |y_dot: &mut [T]| {
        rows(e).pieces(y_dot, e.d, |first, _, y_dot| {
            let (from, len) = (first * e.d, y_dot.len());
            let c = context(op, e, &rotation, weight, first);
            let x_dot = x_dot.map(|t| &t[from..][..len]);
            tangent_rows(&c, &kept[from / e.part..], &xs[from..][..len], x_dot, weight_dot, y_dot);
        });
    });
    Ok(Dual { primal: y, tangent: Some(tangent) })
}

pub(super) fn vjp<T: Real>(
    op: &RmsNormRope,
    e: &Extents,
    saved: &Saved,
    y_bar: &Tensor,
    wanted: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    let (x, weight) = (saved.input(0)?.as_slice::<T>()?, saved.input(1)?.as_slice::<T>()?);
    let rotation = op.rotation::<T>(y_bar.dtype())?;
    let (kept, y_bar) = (saved.kept(0)?.as_slice::<T>()?, y_bar.as_slice::<T>()?);
    let mut sums = Vec::new();
    let x_bar = Tensor::cpu_with(saved.shape(0), |x_bar: &mut [T]| {
        sums = rows(e).pieces(x_bar, e.d, |first, _, x_bar| {
            let (from, len) = (first * e.d, x_bar.len());
            let mut sum = vec![T::ZERO; e.part];
            let c = context(op, e, &rotation, weight, first);
            cotangent_rows(&c, &kept[from / e.part..], &x[from..][..len], &y_bar[from..][..len], x_bar, &mut sum);
            sum
        });
    });
    let parts: Vec<&[T]> = sums.iter().map(Vec::as_slice).collect();
    let weight_bar = wanted[1].then(|| rows(e).gather(&parts, saved.shape(1)));
    Ok(vec![wanted[0].then_some(x_bar), weight_bar])
}
