use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use rayon::prelude::*;

use super::pack::{Heads, Panels, Rows, unpack};
use super::tile::{Lanes, Start, multiply, probabilities, product, product_over_queries};
use super::{KEYS, MR, NR, PANELS, View};
use crate::attention::Extents;
use crate::layer_norm::rows::sum;
use crate::{Result, Saved};

/// With fewer (sample, head) pairs than this the keys of a head are divided among tasks, each with a part of q̄ that
/// are then added in order. A constant, so that the sums do not depend on the number of threads.
const MIN_TASKS: usize = 32;

/// How the keys of a head are divided, and the sizes of what a task computes, in rows of `NR`.
#[derive(Clone, Copy)]
struct Division {
    chunks: usize,
    /// Keys of a chunk, a multiple of `KEYS`.
    keys: usize,
    /// Columns of q̄ᵀ in whole tiles.
    columns: usize,
    /// q̄ᵀ: [panel of queries][column][query]
    q_rows: usize,
    /// k̄: [panel of columns][key][column]
    k_rows: usize,
    /// v̄: as k̄
    v_rows: usize,
}

impl Division {
    fn new(e: &Extents) -> Self {
        let chunks = MIN_TASKS.div_ceil((e.b * e.n).max(1)).min(e.s.div_ceil(2 * KEYS)).max(1);
        let keys = e.s.div_ceil(chunks).next_multiple_of(KEYS);
        let columns = e.k.next_multiple_of(MR);
        Division {
            chunks: e.s.div_ceil(keys),
            keys,
            columns,
            q_rows: e.l.div_ceil(NR) * columns,
            k_rows: e.k.div_ceil(NR) * keys,
            v_rows: e.v.div_ceil(NR) * keys,
        }
    }
}

/// Elements of the cotangents as the tasks add them up.
pub(super) fn parts(e: &Extents, wanted: &[bool]) -> usize {
    if e.s == 0 || e.l == 0 {
        return 0;
    }
    let d = Division::new(e);
    let rows = [d.q_rows, d.k_rows, d.v_rows].into_iter().zip(wanted).filter(|(_, w)| **w).map(|(rows, _)| rows);
    e.b * e.n * d.chunks * rows.sum::<usize>() * NR
}

/// What the tasks read: keys and values packed once, what belongs to the queries as it is.
struct Inputs<'a, T: Real> {
    /// For S = K·Q, and by column for q̄ = Kᵀ·S̄.
    k_by_key: Panels<T, MR>,
    k_by_column: Panels<T, MR>,
    /// For P̄ = V·ȳ.
    v_by_key: Panels<T, MR>,
    q: Heads<'a, T>,
    y: Heads<'a, T>,
    y_bar: Heads<'a, T>,
    /// [B, N, L]
    log_sum_exp: &'a [T],
    mask: Option<View<'a>>,
}

/// One chunk of keys of one head: what it adds up.
struct Task<'a, T> {
    head: usize,
    chunk: usize,
    q_bar: Option<&'a mut [Lanes<T>]>,
    k_bar: Option<&'a mut [Lanes<T>]>,
    v_bar: Option<&'a mut [Lanes<T>]>,
}

/// What a thread computes in: a group of panels of queries, packed, and the scores of one block.
struct Scratch<T: Real> {
    /// scale·Q by query, for S, and by column, for k̄ = S̄·Q.
    q_by_query: Rows<T, NR>,
    q_by_column: Rows<T, NR>,
    /// ȳ by query, for P̄ = V·ȳ, and by column, for v̄ = P·ȳ.
    y_bar_by_query: Rows<T, NR>,
    y_bar_by_column: Rows<T, NR>,
    /// Log-sum-exp and −Σ ȳ·y of each query of each panel.
    log_sum_exp: [Lanes<T>; PANELS],
    minus_delta: [Lanes<T>; PANELS],
    p: Rows<T, NR>,
    s_bar: Rows<T, NR>,
}

impl<T: Real> Scratch<T> {
    fn new(e: &Extents) -> Self {
        Scratch {
            q_by_query: Rows::new(PANELS * e.k),
            q_by_column: Rows::new(e.k.div_ceil(NR) * PANELS * NR),
            y_bar_by_query: Rows::new(PANELS * e.v),
            y_bar_by_column: Rows::new(e.v.div_ceil(NR) * PANELS * NR),
            log_sum_exp: [[T::ZERO; NR]; PANELS],
            minus_delta: [[T::ZERO; NR]; PANELS],
            p: Rows::new(KEYS),
            s_bar: Rows::new(KEYS),
        }
    }

    /// Packs the queries `first..first + queries` of a head.
    fn pack(&mut self, e: &Extents, x: &Inputs<T>, head: usize, first: usize, queries: usize) {
        let (scale, stride) = (T::lit(e.scale), PANELS * NR);
        for panel in 0..queries.div_ceil(NR) {
            let at = first + panel * NR;
            x.q.panel_by_token(head, at, scale, &mut self.q_by_query[panel * e.k..][..e.k]);
            x.y_bar.panel_by_token(head, at, T::ONE, &mut self.y_bar_by_query[panel * e.v..][..e.v]);
            for lane in 0..NR.min(e.l - at) {
                let (y, y_bar) = (x.y.row(head, at + lane), x.y_bar.row(head, at + lane));
                self.minus_delta[panel][lane] = -sum([y, y_bar], |[y, y_bar]| y * y_bar);
                // A query without keys has no probabilities.
                let log_sum_exp = x.log_sum_exp[head * e.l + at + lane];
                let none = log_sum_exp == T::NEG_INFINITY;
                self.log_sum_exp[panel][lane] = if none { T::ZERO - log_sum_exp } else { log_sum_exp };
            }
        }
        x.q.run_by_column(head, first..first + queries, stride, scale, &mut self.q_by_column);
        x.y_bar.run_by_column(head, first..first + queries, stride, T::ONE, &mut self.y_bar_by_column);
    }
}

impl<T: Real> Inputs<'_, T> {
    fn run(&self, e: &Extents, d: &Division, task: &mut Task<T>, s: &mut Scratch<T>) {
        let end = e.s.min((task.chunk + 1) * d.keys);
        for bar in [&mut task.q_bar, &mut task.k_bar, &mut task.v_bar].into_iter().flatten() {
            bar.fill([T::ZERO; NR]);
        }
        for first in (0..e.l).step_by(PANELS * NR) {
            let queries = (PANELS * NR).min(e.l - first);
            s.pack(e, self, task.head, first, queries);
            for key in (task.chunk * d.keys..end).step_by(KEYS) {
                for panel in 0..queries.div_ceil(NR) {
                    let here = NR.min(queries - panel * NR);
                    self.block(e, d, task, (key, KEYS.min(end - key)), (first / NR, panel, here), s);
                }
            }
        }
    }

    /// One block of keys against one panel of a group that starts at panel `group` of the head.
    fn block(
        &self,
        e: &Extents,
        d: &Division,
        task: &mut Task<T>,
        (first, keys): (usize, usize),
        (group, panel, queries): (usize, usize, usize),
        s: &mut Scratch<T>,
    ) {
        let (i, local) = (task.head, first - task.chunk * d.keys);
        let padded = keys.next_multiple_of(MR);
        let (p, s_bar) = (&mut s.p[..padded], &mut s.s_bar[..padded]);
        let q = &s.q_by_query[panel * e.k..][..e.k];
        product(&self.k_by_key.head(i)[first / MR * e.k..], e.k, q, p, Start::Zero);
        if let Some(mask) = &self.mask {
            mask.add(e, i, [(group + panel) * NR, first], &mut p[..keys]);
        }
        probabilities(p, &s.log_sum_exp[panel]);
        if let Some(v_bar) = &mut task.v_bar {
            over_queries(p, &s.y_bar_by_column[panel * NR..], queries, &mut v_bar[local..], d.keys);
        }
        if task.q_bar.is_none() && task.k_bar.is_none() {
            return;
        }
        let y_bar = &s.y_bar_by_query[panel * e.v..][..e.v];
        let v = &self.v_by_key.head(i)[first / MR * e.v..];
        product(v, e.v, y_bar, s_bar, Start::From(&s.minus_delta[panel]));
        multiply(p, s_bar);
        if let Some(k_bar) = &mut task.k_bar {
            over_queries(s_bar, &s.q_by_column[panel * NR..], queries, &mut k_bar[local..], d.keys);
        }
        if let Some(q_bar) = &mut task.q_bar {
            let q_bar = &mut q_bar[(group + panel) * d.columns..][..d.columns];
            product(&self.k_by_column.head(i)[first..], e.s, &s_bar[..keys], q_bar, Start::Add);
        }
    }
}

/// bar[key] ← bar[key] + Σ p[key][query]·x[query] for every panel of columns of x, those of bar `stride` rows apart.
fn over_queries<T: Real>(p: &[Lanes<T>], x: &[Lanes<T>], queries: usize, bar: &mut [Lanes<T>], stride: usize) {
    for (bar, x) in bar.chunks_mut(stride).zip(x.chunks(PANELS * NR)) {
        product_over_queries(p, &x[..queries], &mut bar[..p.len()]);
    }
}

fn inputs<'a, T: Real>(
    e: &Extents,
    saved: &'a Saved,
    y_bar: &'a Tensor,
    mask: Option<View<'a>>,
) -> Result<Inputs<'a, T>> {
    let heads = |x, tokens, width| Heads { x, tokens, heads: e.n, width };
    let k = heads(saved.input(1)?.as_slice::<T>()?, e.s, e.k);
    let v = heads(saved.input(2)?.as_slice::<T>()?, e.s, e.v);
    Ok(Inputs {
        k_by_key: k.by_token(T::ONE),
        k_by_column: k.by_column(T::ONE),
        v_by_key: v.by_token(T::ONE),
        q: heads(saved.input(0)?.as_slice::<T>()?, e.l, e.k),
        y: heads(saved.output()?.as_slice::<T>()?, e.l, e.v),
        y_bar: heads(y_bar.as_slice::<T>()?, e.l, e.v),
        log_sum_exp: saved.kept(0)?.as_slice::<T>()?,
        mask,
    })
}

pub(in crate::attention) fn vjp<T: Real>(
    e: &Extents,
    saved: &Saved,
    y_bar: &Tensor,
    wanted: &[bool],
    mask: Option<View<'_>>,
) -> Result<Vec<Option<Tensor>>> {
    if e.s == 0 || e.l == 0 {
        let zeros = |i: usize| Tensor::zeros(saved.shape(i), y_bar.dtype(), y_bar.device());
        return Ok((0..3).map(|i| wanted[i].then(|| zeros(i))).collect());
    }
    let inputs = inputs::<T>(e, saved, y_bar, mask)?;
    let d = Division::new(e);
    let count = e.b * e.n * d.chunks;
    let sizes = [d.q_rows, d.k_rows, d.v_rows];
    let mut room: Vec<_> = (0..3).map(|i| wanted[i].then(|| Rows::<T, NR>::new(count * sizes[i]))).collect();
    let mut parts: Vec<_> =
        room.iter_mut().zip(sizes).map(|(b, rows)| b.as_mut().map(|b| b.chunks_mut(rows.max(1)))).collect();
    let mut tasks: Vec<Task<T>> = (0..count)
        .map(|i| {
            let mut part = |j: usize| parts[j].as_mut().map(|p| p.next().unwrap_or_default());
            Task { head: i / d.chunks, chunk: i % d.chunks, q_bar: part(0), k_bar: part(1), v_bar: part(2) }
        })
        .collect();
    tasks.par_iter_mut().for_each_init(|| Scratch::new(e), |s, task| inputs.run(e, &d, task, s));
    let rows = |i: usize| room[i].as_deref();
    Ok(vec![
        rows(0).map(|rows| unpack_queries(e, &d, rows, saved.shape(0))),
        rows(1).map(|rows| unpack_keys(e, &d, rows, e.k, saved.shape(1))),
        rows(2).map(|rows| unpack_keys(e, &d, rows, e.v, saved.shape(2))),
    ])
}

/// q̄ [B, L, N·K] = scale·Σ over chunks.
fn unpack_queries<T: Real>(e: &Extents, d: &Division, rows: &[Lanes<T>], shape: &[usize]) -> Tensor {
    let (scale, width) = ([T::lit(e.scale); NR], e.n * e.k);
    Tensor::cpu_with(shape, |q_bar: &mut [T]| {
        let panels: Vec<_> = q_bar.chunks_mut(e.l * width).map(|sample| sample.chunks_mut(NR * width)).collect();
        let panels: Vec<_> =
            panels.into_iter().enumerate().flat_map(|(b, p)| p.enumerate().map(move |p| (b, p))).collect();
        panels.into_par_iter().for_each_init(
            || vec![[T::ZERO; NR]; d.columns],
            |total, (sample, (panel, out))| {
                let mut out: Vec<&mut [T]> = out.chunks_mut(width).collect();
                for head in 0..e.n {
                    total.fill([T::ZERO; NR]);
                    for chunk in 0..d.chunks {
                        let task = (sample * e.n + head) * d.chunks + chunk;
                        let part = &rows[task * d.q_rows + panel * d.columns..][..d.columns];
                        let sums = total.as_flattened_mut().iter_mut().zip(part.as_flattened());
                        sums.for_each(|(t, &p)| *t += p);
                    }
                    let mut out: Vec<&mut [T]> = out.iter_mut().map(|o| &mut o[head * e.k..][..e.k]).collect();
                    unpack(total, &scale, &mut out);
                }
            },
        );
    })
}

/// k̄ or v̄ [B, S, N·width].
fn unpack_keys<T: Real>(e: &Extents, d: &Division, rows: &[Lanes<T>], width: usize, shape: &[usize]) -> Tensor {
    let panels = width.div_ceil(NR);
    Tensor::cpu_with(shape, |bar: &mut [T]| {
        bar.par_chunks_mut((e.n * width).max(1)).enumerate().for_each(|(token, out)| {
            let (sample, key) = (token / e.s, token % e.s);
            for (head, out) in out.chunks_mut(width).enumerate() {
                let task = (sample * e.n + head) * d.chunks + key / d.keys;
                for (panel, out) in out.chunks_mut(NR).enumerate() {
                    let row = &rows[(task * panels + panel) * d.keys + key % d.keys];
                    out.copy_from_slice(&row[..out.len()]);
                }
            }
        });
    })
}
