//! Register tiles and the vertical arithmetic between them.

use fewstep_tensor::math::Real;
use multiversion::multiversion;

use super::{MR, NR};

/// One value a query of a panel.
pub(super) type Lanes<T> = [T; NR];

/// c + Σ a[d]ᵀ·b[d]
#[inline(always)]
fn outer<T: Real>(a: &[[T; MR]], b: &[Lanes<T>], mut c: [Lanes<T>; MR]) -> [Lanes<T>; MR] {
    for (a, b) in a.iter().zip(b) {
        for i in 0..MR {
            for j in 0..NR {
                c[i][j] = a[i].fma(b[j], c[i][j]);
            }
        }
    }
    c
}

/// c ← Σ a[d]ᵀ·b[d], or c ← c + that: the panels of a are `stride` rows apart, each is read `depth` rows deep.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn product<T: Real>(
    a: &[[T; MR]],
    stride: usize,
    depth: usize,
    b: &[Lanes<T>],
    c: &mut [Lanes<T>],
    accumulate: bool,
) {
    for (panel, c) in c.as_chunks_mut::<MR>().0.iter_mut().enumerate() {
        let from = if accumulate { *c } else { [[T::ZERO; NR]; MR] };
        *c = outer(&a[panel * stride..][..depth], b, from);
    }
}

/// c[key] ← c[key] + Σ p[key][query]·b[query] over the first `b.len()` queries.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn product_over_queries<T: Real>(p: &[Lanes<T>], b: &[Lanes<T>], c: &mut [Lanes<T>]) {
    for (p, c) in p.as_chunks::<MR>().0.iter().zip(c.as_chunks_mut::<MR>().0) {
        let mut acc = *c;
        for (q, b) in b.iter().enumerate().take(NR) {
            for i in 0..MR {
                for j in 0..NR {
                    acc[i][j] = p[i][q].fma(b[j], acc[i][j]);
                }
            }
        }
        *c = acc;
    }
}

/// Running statistics of a panel's softmax.
#[derive(Clone, Copy)]
pub(super) struct Softmax<T> {
    /// The largest score.
    pub max: Lanes<T>,
    /// Σ e^(score − max)
    pub sum: Lanes<T>,
    /// Σ e^(score − max)·score's tangent
    pub tangent_sum: Lanes<T>,
}

impl<T: Real> Softmax<T> {
    pub const EMPTY: Self = Softmax { max: [T::NEG_INFINITY; NR], sum: [T::ZERO; NR], tangent_sum: [T::ZERO; NR] };
}

/// Turns scores into e^(score − max) and moves the statistics to the new maximum; returns what sums so far shrink by.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn softmax<T: Real>(scores: &mut [Lanes<T>], state: &mut Softmax<T>) -> Lanes<T> {
    let mut max = state.max;
    for row in scores.iter() {
        for j in 0..NR {
            max[j] = max[j].max(row[j]);
        }
    }
    let mut sum = [T::ZERO; NR];
    for row in scores.iter_mut() {
        for j in 0..NR {
            let p = (row[j] - max[j]).exp();
            row[j] = p;
            sum[j] += p;
        }
    }
    let mut shrink = [T::ZERO; NR];
    for j in 0..NR {
        shrink[j] = (state.max[j] - max[j]).exp();
        state.sum[j] = state.sum[j].fma(shrink[j], sum[j]);
    }
    state.max = max;
    shrink
}

/// tangents ← probabilities∘tangents, summed into the statistics.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn weigh<T: Real>(p: &[Lanes<T>], tangents: &mut [Lanes<T>], shrink: &Lanes<T>, state: &mut Softmax<T>) {
    let mut sum = [T::ZERO; NR];
    for (t, p) in tangents.iter_mut().zip(p) {
        for j in 0..NR {
            t[j] = t[j] * p[j];
            sum[j] += t[j];
        }
    }
    for j in 0..NR {
        state.tangent_sum[j] = state.tangent_sum[j].fma(shrink[j], sum[j]);
    }
}

/// rows ← rows∘factor
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn scale<T: Real>(rows: &mut [Lanes<T>], factor: &Lanes<T>) {
    for row in rows {
        for j in 0..NR {
            row[j] = row[j] * factor[j];
        }
    }
}

/// scores ← e^(scores − log-sum-exp)
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn probabilities<T: Real>(scores: &mut [Lanes<T>], log_sum_exp: &Lanes<T>) {
    for row in scores {
        for j in 0..NR {
            row[j] = (row[j] - log_sum_exp[j]).exp();
        }
    }
}

/// p_bar ← p∘(p_bar − delta): from the probabilities' cotangent to the scores'.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn score_cotangents<T: Real>(p: &[Lanes<T>], p_bar: &mut [Lanes<T>], delta: &Lanes<T>) {
    for (b, p) in p_bar.iter_mut().zip(p) {
        for j in 0..NR {
            b[j] = p[j] * (b[j] - delta[j]);
        }
    }
}
