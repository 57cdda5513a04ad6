use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use rayon::prelude::*;

use super::pack::{Heads, Panels, Rows, unpack};
use super::tile::{Softmax, Start, product, scale, softmax, weigh};
use super::{KEYS, MR, NR, PANELS, View};
use crate::attention::Extents;
use crate::{Dual, Output, Result};

/// With fewer tasks than this, tasks of fewer panels are made.
const MIN_TASKS: usize = 32;

/// Keys and values, packed once and read by every task; tangents where there are any.
struct Packed<'a, T: Real> {
    q: Heads<'a, T>,
    q_dot: Option<Heads<'a, T>>,
    k: Panels<T, MR>,
    k_dot: Option<Panels<T, MR>>,
    v: Panels<T, MR>,
    v_dot: Option<Panels<T, MR>>,
    mask: Option<View<'a>>,
}

/// A run of queries of one head, with their places in the outputs.
struct Task<'a, T> {
    /// Counts over samples and heads.
    head: usize,
    first: usize,
    y: Vec<&'a mut [T]>,
    /// Empty if there is no tangent.
    y_dot: Vec<&'a mut [T]>,
    log_sum_exp: &'a mut [T],
}

/// What a thread computes in: one panel each of queries, accumulators and statistics for every panel of a task.
struct Scratch<T: Real> {
    q: Rows<T, NR>,
    q_dot: Rows<T, NR>,
    y: Rows<T, NR>,
    y_dot: Rows<T, NR>,
    softmax: Vec<Softmax<T>>,
    scores: Rows<T, NR>,
    scores_dot: Rows<T, NR>,
}

impl<T: Real> Scratch<T> {
    fn new(e: &Extents, panels: usize) -> Self {
        let values = e.v.next_multiple_of(MR);
        Scratch {
            q: Rows::new(panels * e.k),
            q_dot: Rows::new(panels * e.k),
            y: Rows::new(panels * values),
            y_dot: Rows::new(panels * values),
            softmax: vec![Softmax::EMPTY; panels],
            scores: Rows::new(KEYS),
            scores_dot: Rows::new(KEYS),
        }
    }
}

impl<T: Real> Packed<'_, T> {
    fn moves(&self) -> bool {
        self.q_dot.is_some() || self.k_dot.is_some() || self.v_dot.is_some()
    }

    fn run(&self, e: &Extents, task: &mut Task<T>, s: &mut Scratch<T>) {
        let panels = task.log_sum_exp.len().div_ceil(NR);
        for panel in 0..panels {
            let (first, rows) = (task.first + panel * NR, panel * e.k..(panel + 1) * e.k);
            self.q.panel_by_token(task.head, first, T::lit(e.scale), &mut s.q[rows.clone()]);
            if let Some(q_dot) = &self.q_dot {
                q_dot.panel_by_token(task.head, first, T::lit(e.scale), &mut s.q_dot[rows]);
            }
        }
        s.y.fill([T::ZERO; NR]);
        s.y_dot.fill([T::ZERO; NR]);
        s.softmax.fill(Softmax::EMPTY);
        for first_key in (0..e.s).step_by(KEYS) {
            for panel in 0..panels {
                self.block(e, [task.head, task.first], panel, first_key, s);
            }
        }
        self.finish(e, task, s);
    }

    /// One panel of queries against one block of keys.
    fn block(&self, e: &Extents, [i, query]: [usize; 2], panel: usize, first: usize, s: &mut Scratch<T>) {
        let keys = KEYS.min(e.s - first);
        let padded = keys.next_multiple_of(MR);
        let values = e.v.next_multiple_of(MR);
        let (q, q_dot) = (&s.q[panel * e.k..][..e.k], &s.q_dot[panel * e.k..][..e.k]);
        let k = &self.k.head(i)[first / MR * e.k..];
        let (scores, scores_dot) = (&mut s.scores[..padded], &mut s.scores_dot[..padded]);
        product(k, e.k, q, scores, Start::Zero);
        let mut start = Start::Zero;
        if self.q_dot.is_some() {
            product(k, e.k, q_dot, scores_dot, start);
            start = Start::Add;
        }
        if let Some(k_dot) = &self.k_dot {
            product(&k_dot.head(i)[first / MR * e.k..], e.k, q, scores_dot, start);
        }
        let (p, h) = (&mut scores[..keys], &mut scores_dot[..keys]);
        if let Some(mask) = &self.mask {
            mask.add(e, i, [query + panel * NR, first], p);
        }
        let state = &mut s.softmax[panel];
        let shrink = softmax(p, state);
        if e.v == 0 {
            return;
        }
        let (y, y_dot) = (&mut s.y[panel * values..][..values], &mut s.y_dot[panel * values..][..values]);
        let v = &self.v.head(i)[first..];
        scale(y, &shrink);
        product(v, e.s, p, y, Start::Add);
        if self.moves() {
            scale(y_dot, &shrink);
        }
        if let Some(v_dot) = &self.v_dot {
            product(&v_dot.head(i)[first..], e.s, p, y_dot, Start::Add);
        }
        if self.q_dot.is_some() || self.k_dot.is_some() {
            weigh(p, h, &shrink, state);
            product(v, e.s, h, y_dot, Start::Add);
        }
    }

    /// y/ℓ, (ẏ − r·y/ℓ)/ℓ and max + ln ℓ, transposed to their rows.
    fn finish(&self, e: &Extents, task: &mut Task<T>, s: &Scratch<T>) {
        let values = e.v.next_multiple_of(MR);
        for (state, log_sum_exp) in s.softmax.iter().zip(task.log_sum_exp.chunks_mut(NR)) {
            let statistics = state.max.iter().zip(&state.sum);
            log_sum_exp.iter_mut().zip(statistics).for_each(|(o, (&max, &sum))| *o = max + sum.ln());
        }
        for (panel, (state, y)) in s.softmax.iter().zip(task.y.chunks_mut(NR)).enumerate() {
            // A query without keys has summed nothing.
            let inv = state.sum.map(|sum| if sum == T::ZERO { T::ZERO } else { T::ONE / sum });
            unpack(&s.y[panel * values..][..values], &inv, y);
            let Some(y_dot) = task.y_dot.chunks_mut(NR).nth(panel) else { continue };
            unpack(&s.y_dot[panel * values..][..values], &inv, y_dot);
            for (lane, (d, y)) in y_dot.iter_mut().zip(y).enumerate() {
                let mean = state.tangent_sum[lane] * inv[lane];
                d.iter_mut().zip(&**y).for_each(|(d, &y)| *d = *d - mean * y);
            }
        }
    }
}

/// Panels of a task: fewer if the tasks would be few, by a rule that does not know the number of threads.
fn panels_per_task(e: &Extents) -> usize {
    let tasks = |panels: usize| e.b * e.n * e.l.div_ceil(panels * NR);
    let mut panels = PANELS;
    while panels > 1 && tasks(panels) < MIN_TASKS {
        panels /= 2;
    }
    panels
}

/// Fills y, ẏ where not empty, and the log-sum-exp [B, N, L].
fn run<T: Real>(e: &Extents, packed: &Packed<T>, y: &mut [T], y_dot: &mut [T], log_sum_exp: &mut [T]) {
    let panels = panels_per_task(e);
    let mut tasks: Vec<Task<T>> = Vec::new();
    for (head, rows) in log_sum_exp.chunks_mut(e.l.max(1)).enumerate() {
        for (i, log_sum_exp) in rows.chunks_mut(panels * NR).enumerate() {
            tasks.push(Task { head, first: i * panels * NR, y: Vec::new(), y_dot: Vec::new(), log_sum_exp });
        }
    }
    let per_head = e.l.div_ceil(panels * NR);
    let task_of = |i: usize| {
        let (token, head) = (i / e.n, i % e.n);
        (token / e.l * e.n + head) * per_head + token % e.l / (panels * NR)
    };
    for (i, row) in y.chunks_mut(e.v.max(1)).enumerate() {
        tasks[task_of(i)].y.push(row);
    }
    for (i, row) in y_dot.chunks_mut(e.v.max(1)).enumerate() {
        tasks[task_of(i)].y_dot.push(row);
    }
    tasks.par_iter_mut().for_each_init(|| Scratch::new(e, panels), |s, task| packed.run(e, task, s));
}

fn pack<'a, T: Real>(
    e: &Extents,
    x: &[&'a Tensor],
    x_dot: &[Option<&'a Tensor>],
    mask: Option<View<'a>>,
) -> Result<Packed<'a, T>> {
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
        mask,
    })
}

/// y, ẏ if there is any tangent, and the log-sum-exp.
fn evaluate<T: Real>(
    e: &Extents,
    x: &[&Tensor],
    x_dot: &[Option<&Tensor>],
    mask: Option<View<'_>>,
) -> Result<(Tensor, Option<Tensor>, Tensor)> {
    let (shape, rows) = ([e.b, e.l, e.n * e.v], [e.b, e.n, e.l]);
    let tangent = x_dot.iter().any(Option::is_some);
    if e.s == 0 {
        let zeros = Tensor::zeros(&shape, x[0].dtype(), x[0].device());
        let log_sum_exp = Tensor::full(&rows, f64::NEG_INFINITY, x[0].dtype(), x[0].device());
        return Ok((zeros.clone(), tangent.then_some(zeros), log_sum_exp));
    }
    let packed = pack::<T>(e, x, x_dot, mask)?;
    let mut log_sum_exp = vec![T::ZERO; rows.iter().product()];
    let mut y_dot = None;
    let y = Tensor::cpu_with(&shape, |y: &mut [T]| {
        if tangent {
            y_dot = Some(Tensor::cpu_with(&shape, |y_dot: &mut [T]| run(e, &packed, y, y_dot, &mut log_sum_exp)));
        } else {
            run(e, &packed, y, &mut [], &mut log_sum_exp);
        }
    });
    Ok((y, y_dot, Tensor::from_vec(log_sum_exp, &rows)?))
}

pub(in crate::attention) fn forward<T: Real>(e: &Extents, x: &[&Tensor], mask: Option<View<'_>>) -> Result<Output> {
    let (y, _, log_sum_exp) = evaluate::<T>(e, x, &[None; 3], mask)?;
    Ok(Output { y, kept: vec![log_sum_exp] })
}

pub(in crate::attention) fn jvp<T: Real>(
    e: &Extents,
    x: &[&Tensor],
    x_dot: &[Option<&Tensor>],
    mask: Option<View<'_>>,
) -> Result<Dual> {
    let (primal, tangent, _) = evaluate::<T>(e, x, x_dot, mask)?;
    Ok(Dual { primal, tangent })
}
