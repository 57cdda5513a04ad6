use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use rayon::prelude::*;

use super::pack::{Heads, Panels, Rows};
use super::tile::{Lanes, Start, multiply, probabilities, product, product_over_queries};
use super::{KEYS, MR, NR};
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
        Division {
            chunks: e.s.div_ceil(keys),
            keys,
            q_rows: e.l.div_ceil(NR) * e.k.next_multiple_of(MR),
            k_rows: e.k.div_ceil(NR) * keys,
            v_rows: e.v.div_ceil(NR) * keys,
        }
    }
}

/// Everything the tasks read, packed for the products it enters.
struct Packed<T: Real> {
    /// K by key, for S = K·Q, and by column, for q̄ = Kᵀ·S̄.
    k_by_key: Panels<T, MR>,
    k_by_column: Panels<T, MR>,
    v_by_key: Panels<T, MR>,
    /// scale·Q by query, for S, and by column, for k̄ = S̄·Q.
    q_by_query: Panels<T, NR>,
    q_by_column: Panels<T, NR>,
    /// ȳ by query, for P̄ = V·ȳ, and by column, for v̄ = P·ȳ.
    y_bar_by_query: Panels<T, NR>,
    y_bar_by_column: Panels<T, NR>,
    /// [B·N][panel] log-sum-exp and −Σ ȳ·y of each query.
    log_sum_exp: Vec<Lanes<T>>,
    minus_delta: Vec<Lanes<T>>,
}

/// One chunk of keys of one head: what it adds up.
struct Task<'a, T> {
    head: usize,
    chunk: usize,
    q_bar: Option<&'a mut [Lanes<T>]>,
    k_bar: Option<&'a mut [Lanes<T>]>,
    v_bar: Option<&'a mut [Lanes<T>]>,
}

impl<T: Real> Packed<T> {
    fn run(&self, e: &Extents, d: &Division, task: &mut Task<T>, scratch: &mut [Rows<T, NR>; 2]) {
        let end = e.s.min((task.chunk + 1) * d.keys);
        for bar in [&mut task.q_bar, &mut task.k_bar, &mut task.v_bar].into_iter().flatten() {
            bar.fill([T::ZERO; NR]);
        }
        for first in (task.chunk * d.keys..end).step_by(KEYS) {
            for panel in 0..e.l.div_ceil(NR) {
                self.block(e, d, task, (first, KEYS.min(end - first)), panel, scratch);
            }
        }
    }

    /// One block of keys against one panel of queries.
    fn block(
        &self,
        e: &Extents,
        d: &Division,
        task: &mut Task<T>,
        (first, keys): (usize, usize),
        panel: usize,
        scratch: &mut [Rows<T, NR>; 2],
    ) {
        let (i, panels) = (task.head, e.l.div_ceil(NR));
        let padded = keys.next_multiple_of(MR);
        let [p, s_bar] = scratch;
        let (p, s_bar) = (&mut p[..padded], &mut s_bar[..padded]);
        let queries = NR.min(e.l - panel * NR);
        let local = first - task.chunk * d.keys;
        product(
            &self.k_by_key.head(i)[first / MR * e.k..],
            e.k,
            &self.q_by_query.head(i)[panel * e.k..][..e.k],
            p,
            Start::Zero,
        );
        probabilities(p, &self.log_sum_exp[i * panels + panel]);
        if let Some(v_bar) = &mut task.v_bar {
            over_queries(p, self.y_bar_by_column.head(i), e.l, (panel * NR, queries), v_bar, d.keys, local);
        }
        if task.q_bar.is_none() && task.k_bar.is_none() {
            return;
        }
        let y_bar = &self.y_bar_by_query.head(i)[panel * e.v..][..e.v];
        product(
            &self.v_by_key.head(i)[first / MR * e.v..],
            e.v,
            y_bar,
            s_bar,
            Start::From(&self.minus_delta[i * panels + panel]),
        );
        multiply(p, s_bar);
        if let Some(k_bar) = &mut task.k_bar {
            over_queries(s_bar, self.q_by_column.head(i), e.l, (panel * NR, queries), k_bar, d.keys, local);
        }
        if let Some(q_bar) = &mut task.q_bar {
            let columns = e.k.next_multiple_of(MR);
            let q_bar = &mut q_bar[panel * columns..][..columns];
            product(&self.k_by_column.head(i)[first..], e.s, &s_bar[..keys], q_bar, Start::Add);
        }
    }
}

/// bar[key] ← bar[key] + Σ p[key][query]·x[query] for every panel of columns of x.
fn over_queries<T: Real>(
    p: &[Lanes<T>],
    x: &[Lanes<T>],
    tokens: usize,
    (first, queries): (usize, usize),
    bar: &mut [Lanes<T>],
    stride: usize,
    at: usize,
) {
    for (bar, x) in bar.chunks_mut(stride).zip(x.chunks(tokens)) {
        product_over_queries(p, &x[first..][..queries], &mut bar[at..][..p.len()]);
    }
}

fn pack<T: Real>(e: &Extents, saved: &Saved, y_bar: &Tensor) -> Result<Packed<T>> {
    let heads = |x, tokens, width| Heads { x, tokens, heads: e.n, width };
    let q = heads(saved.input(0)?.as_slice::<T>()?, e.l, e.k);
    let k = heads(saved.input(1)?.as_slice::<T>()?, e.s, e.k);
    let v = heads(saved.input(2)?.as_slice::<T>()?, e.s, e.v);
    let y = heads(saved.output()?.as_slice::<T>()?, e.l, e.v);
    let y_bar = heads(y_bar.as_slice::<T>()?, e.l, e.v);
    let log_sum_exp = saved.kept(0)?.as_slice::<T>()?;
    let scale = T::lit(e.scale);
    Ok(Packed {
        k_by_key: k.by_token(T::ONE),
        k_by_column: k.by_column(T::ONE),
        v_by_key: v.by_token(T::ONE),
        q_by_query: q.by_token(scale),
        q_by_column: q.by_column(scale),
        y_bar_by_query: y_bar.by_token(T::ONE),
        y_bar_by_column: y_bar.by_column(T::ONE),
        log_sum_exp: by_panel(e, |i, query| log_sum_exp[i * e.l + query]),
        minus_delta: by_panel(e, |i, query| {
            let (y, y_bar) = (y.row(i, query), y_bar.row(i, query));
            -sum(e.v, |c| y[c] * y_bar[c])
        }),
    })
}

/// One value a query of every (sample, head), in panels; zeros beyond the last query.
fn by_panel<T: Real>(e: &Extents, f: impl Fn(usize, usize) -> T + Sync) -> Vec<Lanes<T>> {
    let panels = e.l.div_ceil(NR);
    let of = |i: usize| {
        let (head, first) = (i / panels, i % panels * NR);
        std::array::from_fn(|lane| if first + lane < e.l { f(head, first + lane) } else { T::ZERO })
    };
    (0..e.b * e.n * panels).into_par_iter().map(of).collect()
}

pub(in crate::attention) fn vjp<T: Real>(
    e: &Extents,
    saved: &Saved,
    y_bar: &Tensor,
    wanted: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    if e.s == 0 || e.l == 0 {
        let zeros = |i: usize| Tensor::zeros(saved.shape(i), y_bar.dtype(), y_bar.device());
        return Ok((0..3).map(|i| wanted[i].then(|| zeros(i))).collect());
    }
    let packed = pack::<T>(e, saved, y_bar)?;
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
    tasks.par_iter_mut().for_each_init(|| [Rows::new(KEYS), Rows::new(KEYS)], |s, task| packed.run(e, &d, task, s));
    let rows = |i: usize| room[i].as_deref();
    Ok(vec![
        rows(0).map(|rows| unpack_queries(e, &d, rows, saved.shape(0))),
        rows(1).map(|rows| unpack_keys(e, &d, rows, e.k, saved.shape(1))),
        rows(2).map(|rows| unpack_keys(e, &d, rows, e.v, saved.shape(2))),
    ])
}

/// q̄ [B, L, N·K] = scale·Σ over chunks.
fn unpack_queries<T: Real>(e: &Extents, d: &Division, rows: &[Lanes<T>], shape: &[usize]) -> Tensor {
    let (scale, columns) = (T::lit(e.scale), e.k.next_multiple_of(MR));
    Tensor::cpu_with(shape, |q_bar: &mut [T]| {
        q_bar.par_chunks_mut(e.n * e.k).enumerate().for_each(|(token, out)| {
            let (sample, query) = (token / e.l, token % e.l);
            for (head, out) in out.chunks_mut(e.k).enumerate() {
                out.fill(T::ZERO);
                for chunk in 0..d.chunks {
                    let task = (sample * e.n + head) * d.chunks + chunk;
                    let part = &rows[task * d.q_rows + query / NR * columns..];
                    out.iter_mut().zip(part).for_each(|(o, row)| *o += row[query % NR]);
                }
                out.iter_mut().for_each(|o| *o = *o * scale);
            }
        });
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
