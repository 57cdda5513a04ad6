use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use rayon::prelude::*;

use super::pack::{Heads, Panels};
use super::tile::{Lanes, Softmax, product, scale, softmax, weigh};
use super::{KEYS, MR, NR};
use crate::attention::Extents;
use crate::{Dual, Output, Result};

/// Panels of queries that share one pass over the keys: a block of keys and values is read from the second-level cache.
const PANELS: usize = 4;
/// With fewer tasks than this, a task takes one panel.
const MIN_TASKS: usize = 32;

/// Keys and values, packed once and read by every task; tangents where there are any.
struct Packed<'a, T: Real> {
    q: Heads<'a, T>,
    q_dot: Option<Heads<'a, T>>,
    k: Panels<T, MR>,
    k_dot: Option<Panels<T, MR>>,
    v: Panels<T, MR>,
    v_dot: Option<Panels<T, MR>>,
}

/// A run of queries of one sample, with its rows of the outputs.
struct Task<'a, T> {
    sample: usize,
    first: usize,
    queries: usize,
    y: &'a mut [T],
    y_dot: Option<&'a mut [T]>,
    /// [N, queries]
    log_sum_exp: &'a mut [T],
}

/// What a thread computes in: one panel each of queries, accumulators and statistics for every panel of a task.
struct Scratch<T> {
    q: Vec<Lanes<T>>,
    q_dot: Vec<Lanes<T>>,
    y: Vec<Lanes<T>>,
    y_dot: Vec<Lanes<T>>,
    softmax: Vec<Softmax<T>>,
    scores: Vec<Lanes<T>>,
    scores_dot: Vec<Lanes<T>>,
}

impl<T: Real> Scratch<T> {
    fn new(e: &Extents, panels: usize) -> Self {
        let rows = |n: usize| vec![[T::ZERO; NR]; n];
        let values = e.v.next_multiple_of(MR);
        Scratch {
            q: rows(panels * e.k),
            q_dot: rows(panels * e.k),
            y: rows(panels * values),
            y_dot: rows(panels * values),
            softmax: vec![Softmax::EMPTY; panels],
            scores: rows(KEYS),
            scores_dot: rows(KEYS),
        }
    }
}

impl<T: Real> Packed<'_, T> {
    fn has_score_tangent(&self) -> bool {
        self.q_dot.is_some() || self.k_dot.is_some()
    }

    fn run(&self, e: &Extents, task: &mut Task<T>, s: &mut Scratch<T>) {
        for head in 0..e.n {
            self.run_head(e, task.sample * e.n + head, task, s);
            self.finish_head(e, head, task, s);
        }
    }

    fn run_head(&self, e: &Extents, i: usize, task: &Task<T>, s: &mut Scratch<T>) {
        let panels = task.queries.div_ceil(NR);
        for panel in 0..panels {
            let (first, rows) = (task.first + panel * NR, panel * e.k..(panel + 1) * e.k);
            self.q.panel_by_token(i, first, T::lit(e.scale), &mut s.q[rows.clone()]);
            if let Some(q_dot) = &self.q_dot {
                q_dot.panel_by_token(i, first, T::lit(e.scale), &mut s.q_dot[rows]);
            }
        }
        s.y.fill([T::ZERO; NR]);
        s.y_dot.fill([T::ZERO; NR]);
        s.softmax.fill(Softmax::EMPTY);
        for first_key in (0..e.s).step_by(KEYS) {
            for panel in 0..panels {
                self.block(e, i, panel, first_key, task.y_dot.is_some(), s);
            }
        }
    }

    /// One panel of queries against one block of keys.
    fn block(&self, e: &Extents, i: usize, panel: usize, first: usize, tangent: bool, s: &mut Scratch<T>) {
        let keys = KEYS.min(e.s - first);
        let padded = keys.next_multiple_of(MR);
        let values = e.v.next_multiple_of(MR);
        let (q, q_dot) = (&s.q[panel * e.k..][..e.k], &s.q_dot[panel * e.k..][..e.k]);
        let k = &self.k.head(i)[first / MR * e.k..];
        let (scores, scores_dot) = (&mut s.scores[..padded], &mut s.scores_dot[..padded]);
        product(k, e.k, q, scores, false);
        if self.q_dot.is_some() {
            product(k, e.k, q_dot, scores_dot, false);
        }
        if let Some(k_dot) = &self.k_dot {
            product(&k_dot.head(i)[first / MR * e.k..], e.k, q, scores_dot, self.q_dot.is_some());
        }
        let (p, h) = (&mut scores[..keys], &mut scores_dot[..keys]);
        let state = &mut s.softmax[panel];
        let (y, y_dot) = (&mut s.y[panel * values..][..values], &mut s.y_dot[panel * values..][..values]);
        let shrink = softmax(p, state);
        if first > 0 && shrink != [T::ONE; NR] {
            scale(y, &shrink);
            if tangent {
                scale(y_dot, &shrink);
            }
        }
        if e.v > 0 {
            let v = &self.v.head(i)[first..];
            product(v, e.s, p, y, true);
            if let Some(v_dot) = &self.v_dot {
                product(&v_dot.head(i)[first..], e.s, p, y_dot, true);
            }
            if self.has_score_tangent() {
                weigh(p, h, &shrink, state);
                product(v, e.s, h, y_dot, true);
            }
        }
    }

    /// y/ℓ, (ẏ − r·y/ℓ)/ℓ and max + ln ℓ, transposed to their rows.
    fn finish_head(&self, e: &Extents, head: usize, task: &mut Task<T>, s: &Scratch<T>) {
        let values = e.v.next_multiple_of(MR);
        for query in 0..task.queries {
            let (panel, lane) = (query / NR, query % NR);
            let state = &s.softmax[panel];
            let inv = T::ONE / state.sum[lane];
            task.log_sum_exp[head * task.queries + query] = state.max[lane] + state.sum[lane].ln();
            let at = (query * e.n + head) * e.v;
            let y = &mut task.y[at..][..e.v];
            y.iter_mut().zip(&s.y[panel * values..]).for_each(|(y, row)| *y = row[lane] * inv);
            if let Some(y_dot) = &mut task.y_dot {
                let rows = s.y_dot[panel * values..].iter();
                for ((d, row), &y) in y_dot[at..][..e.v].iter_mut().zip(rows).zip(&*y) {
                    *d = (row[lane] - state.tangent_sum[lane] * y) * inv;
                }
            }
        }
    }
}

/// Fills y, ẏ where given, and the log-sum-exp [B, N, L].
fn run<T: Real>(e: &Extents, packed: &Packed<T>, y: &mut [T], y_dot: Option<&mut [T]>, log_sum_exp: &mut [T]) {
    let few = e.b * e.l.div_ceil(PANELS * NR) < MIN_TASKS;
    let queries = if few { NR } else { PANELS * NR };
    let mut by_task = vec![T::ZERO; log_sum_exp.len()];
    let width = e.n * e.v;
    let mut tasks = Vec::new();
    let (mut y, mut y_dot, mut rest) = (y, y_dot, by_task.as_mut_slice());
    for sample in 0..e.b {
        for first in (0..e.l).step_by(queries) {
            let queries = queries.min(e.l - first);
            let log_sum_exp = rest.split_off_mut(..queries * e.n).unwrap_or_default();
            let y = y.split_off_mut(..queries * width).unwrap_or_default();
            let y_dot = y_dot.as_mut().and_then(|d| d.split_off_mut(..queries * width));
            tasks.push(Task { sample, first, queries, y, y_dot, log_sum_exp });
        }
    }
    tasks.par_iter_mut().for_each_init(|| Scratch::new(e, queries / NR), |s, task| packed.run(e, task, s));
    for task in &tasks {
        for (head, rows) in task.log_sum_exp.chunks(task.queries).enumerate() {
            log_sum_exp[(task.sample * e.n + head) * e.l + task.first..][..task.queries].copy_from_slice(rows);
        }
    }
}

fn pack<'a, T: Real>(e: &Extents, x: &[&'a Tensor], x_dot: &[Option<&'a Tensor>]) -> Result<Packed<'a, T>> {
    let heads = |t: &'a Tensor, tokens: usize, width: usize| -> Result<Heads<'a, T>> {
        Ok(Heads { x: t.as_slice::<T>()?, tokens, heads: e.n, width })
    };
    let (q_dot, k_dot, v_dot) = (x_dot[0], x_dot[1], x_dot[2]);
    Ok(Packed {
        q: heads(x[0], e.l, e.k)?,
        q_dot: q_dot.map(|t| heads(t, e.l, e.k)).transpose()?,
        k: heads(x[1], e.s, e.k)?.by_token(T::ONE),
        k_dot: k_dot.map(|t| heads(t, e.s, e.k)).transpose()?.map(|h| h.by_token(T::ONE)),
        v: heads(x[2], e.s, e.v)?.by_column(T::ONE),
        v_dot: v_dot.map(|t| heads(t, e.s, e.v)).transpose()?.map(|h| h.by_column(T::ONE)),
    })
}

/// y, ẏ if there is any tangent, and the log-sum-exp.
fn evaluate<T: Real>(
    e: &Extents,
    x: &[&Tensor],
    x_dot: &[Option<&Tensor>],
) -> Result<(Tensor, Option<Tensor>, Tensor)> {
    let (shape, rows) = ([e.b, e.l, e.n * e.v], [e.b, e.n, e.l]);
    let tangent = x_dot.iter().any(Option::is_some);
    if e.s == 0 {
        let zeros = Tensor::zeros(&shape, x[0].dtype(), x[0].device());
        let log_sum_exp = Tensor::full(&rows, f64::NEG_INFINITY, x[0].dtype(), x[0].device());
        return Ok((zeros.clone(), tangent.then_some(zeros), log_sum_exp));
    }
    let packed = pack::<T>(e, x, x_dot)?;
    let mut log_sum_exp = vec![T::ZERO; rows.iter().product()];
    let (mut y, mut y_dot) = (None, None);
    if tangent {
        y_dot = Some(Tensor::cpu_with(&shape, |y_dot: &mut [T]| {
            y = Some(Tensor::cpu_with(&shape, |y: &mut [T]| run(e, &packed, y, Some(y_dot), &mut log_sum_exp)));
        }));
    }
    let y = y.unwrap_or_else(|| Tensor::cpu_with(&shape, |y: &mut [T]| run(e, &packed, y, None, &mut log_sum_exp)));
    Ok((y, y_dot, Tensor::from_vec(log_sum_exp, &rows)?))
}

pub(in crate::attention) fn forward<T: Real>(e: &Extents, x: &[&Tensor]) -> Result<Output> {
    let (y, _, log_sum_exp) = evaluate::<T>(e, x, &[None; 3])?;
    Ok(Output { y, kept: vec![log_sum_exp] })
}

pub(in crate::attention) fn jvp<T: Real>(e: &Extents, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
    let (primal, tangent, _) = evaluate::<T>(e, x, x_dot)?;
    Ok(Dual { primal, tangent })
}
