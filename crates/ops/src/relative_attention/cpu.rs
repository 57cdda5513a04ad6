//! One task a sequence and head, each with small products of its own; results are put in their places in order.

use fewstep_tensor::Tensor;
use fewstep_tensor::gemm::{Mat, MatMut, Threads, gemm};
use fewstep_tensor::math::Real;
use rayon::prelude::*;

use super::softmax::{derivative, softmax};
use super::{Extents, Span};
use crate::{Dual, Result};

/// One sequence and head: the sequence's first row, its rows and keys, the head.
#[derive(Clone, Copy)]
struct Task {
    first: usize,
    rows: usize,
    keys: usize,
    head: usize,
}

fn tasks(e: &Extents, spans: &[Span]) -> Vec<Task> {
    let (mut all, mut first) = (Vec::with_capacity(spans.len() * e.n), 0);
    for s in spans {
        all.extend((0..e.n).map(|head| Task { first, rows: s.rows, keys: s.keys, head }));
        first += s.rows;
    }
    // Nothing is attended to without keys: such rows stay zero.
    all.retain(|t| t.keys > 0);
    all
}

/// The bias by head: [N, R].
fn by_head<T: Real>(e: &Extents, bias: &[T]) -> Vec<T> {
    (0..e.n * e.r).map(|i| bias[i % e.r * e.n + i / e.r]).collect()
}

/// The first `rows` rows of one head of x [T, N·width].
fn head<'a, T>(e: &Extents, t: Task, x: &'a [T], width: usize, rows: usize) -> Mat<'a, T> {
    let from = t.first * e.n * width + t.head * width;
    Mat::new(&x[from.min(x.len())..], rows, width, e.n * width)
}

/// out [rows, cols] (+)= a·b on the calling thread.
fn product<T: Real>(out: &mut [T], cols: usize, add: bool, a: Mat<T>, b: Mat<T>) {
    if out.is_empty() {
        return;
    }
    let rows = out.len() / cols;
    gemm(MatMut::new(out, rows, cols, cols), add, T::ONE, a, b, Threads::Single);
}

/// bias(j − i) of a head for every row i and key j, [rows, keys]: row i is a window of the head's biases.
fn toeplitz<T: Real>(e: &Extents, t: Task, bias: &[T]) -> Vec<T> {
    let bias = &bias[t.head * e.r..][..e.r];
    (0..t.rows).flat_map(|i| &bias[e.r / 2 - i..][..t.keys]).copied().collect()
}

/// softmax(q·kᵀ + bias), [rows, keys].
fn probabilities<T: Real>(e: &Extents, t: Task, q: &[T], k: &[T], bias: &[T]) -> Vec<T> {
    let mut p = toeplitz(e, t, bias);
    product(&mut p, t.keys, true, head(e, t, q, e.k, t.rows), head(e, t, k, e.k, t.keys).t());
    softmax(&mut p, t.keys);
    p
}

/// out (+)= p·V.
fn weigh<T: Real>(e: &Extents, t: Task, p: &[T], v: &[T], add: bool, out: &mut [T]) {
    product(out, e.v, add, Mat::new(p, t.rows, t.keys, t.keys), head(e, t, v, e.v, t.keys));
}

/// Writes the blocks [rows, width] of all tasks to their places in [T, N·width].
fn place<T: Real>(e: &Extents, tasks: &[Task], blocks: &[Vec<T>], width: usize) -> Tensor {
    Tensor::cpu_with(&[e.t, e.n * width], |out: &mut [T]| {
        out.fill(T::ZERO);
        for (t, block) in tasks.iter().zip(blocks) {
            for (i, row) in block.chunks_exact(width.max(1)).enumerate() {
                out[((t.first + i) * e.n + t.head) * width..][..width].copy_from_slice(row);
            }
        }
    })
}

/// o = P·V and, where there is a tangent, ȯ = Ṗ·V + P·V̇ with Ṗ from Ṡ = q̇·kᵀ + q·k̇ᵀ + biaṡ.
pub(super) fn jvp<T: Real>(e: &Extents, spans: &[Span], x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
    let [q, k, v, bias] = [x[0].as_slice::<T>()?, x[1].as_slice::<T>()?, x[2].as_slice::<T>()?, x[3].as_slice::<T>()?];
    let slice = |i: usize| x_dot[i].map(|t| t.as_slice::<T>()).transpose();
    let [q_dot, k_dot, v_dot] = [slice(0)?, slice(1)?, slice(2)?];
    let (bias, bias_dot) = (by_head(e, bias), slice(3)?.map(|b| by_head(e, b)));
    let moves = q_dot.is_some() || k_dot.is_some() || bias_dot.is_some();
    let tasks = tasks(e, spans);
    let one = |&t: &Task| {
        let p = probabilities(e, t, q, k, &bias);
        let (mut o, mut o_dot) = (vec![T::ZERO; t.rows * e.v], vec![T::ZERO; t.rows * e.v]);
        weigh(e, t, &p, v, false, &mut o);
        if moves {
            let mut s_dot = bias_dot.as_ref().map_or_else(|| vec![T::ZERO; t.rows * t.keys], |b| toeplitz(e, t, b));
            for (q, k) in [(q_dot, Some(k)), (Some(q), k_dot)] {
                if let (Some(q), Some(k)) = (q, k) {
                    product(&mut s_dot, t.keys, true, head(e, t, q, e.k, t.rows), head(e, t, k, e.k, t.keys).t());
                }
            }
            derivative(&p, &mut s_dot, t.keys);
            weigh(e, t, &s_dot, v, true, &mut o_dot);
        }
        if let Some(v_dot) = v_dot {
            weigh(e, t, &p, v_dot, true, &mut o_dot);
        }
        (o, o_dot)
    };
    let (o, o_dot): (Vec<_>, Vec<_>) = tasks.par_iter().map(one).unzip();
    let tangent = (moves || v_dot.is_some()).then(|| place(e, &tasks, &o_dot, e.v));
    Ok(Dual { primal: place(e, &tasks, &o, e.v), tangent })
}

/// With S̄ from P̄ = ō·Vᵀ: q̄ = S̄·K, k̄ = S̄ᵀ·Q, v̄ = Pᵀ·ō, and bias̄ sums S̄ along its diagonals.
pub(super) fn vjp<T: Real>(
    e: &Extents,
    spans: &[Span],
    x: [&Tensor; 4],
    y_bar: &Tensor,
    wanted: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    let [q, k, v, bias] = [x[0].as_slice::<T>()?, x[1].as_slice::<T>()?, x[2].as_slice::<T>()?, x[3].as_slice::<T>()?];
    let (bias, o_bar) = (by_head(e, bias), y_bar.as_slice::<T>()?);
    let tasks = tasks(e, spans);
    let one = |&t: &Task| {
        let p = probabilities(e, t, q, k, &bias);
        let o_bar = head(e, t, o_bar, e.v, t.rows);
        let mut s_bar = vec![T::ZERO; t.rows * t.keys];
        product(&mut s_bar, t.keys, false, o_bar, head(e, t, v, e.v, t.keys).t());
        derivative(&p, &mut s_bar, t.keys);
        let square = |m| Mat::new(m, t.rows, t.keys, t.keys);
        let [mut q_bar, mut k_bar] = [t.rows, t.keys].map(|rows| vec![T::ZERO; rows * e.k]);
        let mut v_bar = vec![T::ZERO; t.keys * e.v];
        product(&mut q_bar, e.k, false, square(&s_bar), head(e, t, k, e.k, t.keys));
        product(&mut k_bar, e.k, false, square(&s_bar).t(), head(e, t, q, e.k, t.rows));
        product(&mut v_bar, e.v, false, square(&p).t(), o_bar);
        (q_bar, k_bar, v_bar, diagonals(e, t, &s_bar))
    };
    let mut parts = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (q, k, v, b) in tasks.par_iter().map(one).collect::<Vec<_>>() {
        parts.0.push(q);
        parts.1.push(k);
        parts.2.push(v);
        parts.3.push(b);
    }
    Ok(vec![
        wanted[0].then(|| place(e, &tasks, &parts.0, e.k)),
        wanted[1].then(|| place(e, &tasks, &parts.1, e.k)),
        wanted[2].then(|| place(e, &tasks, &parts.2, e.v)),
        wanted[3].then(|| bias_bar(e, &tasks, &parts.3)),
    ])
}

/// Σ of S̄ [rows, keys] along every diagonal: [R] of one head.
fn diagonals<T: Real>(e: &Extents, t: Task, s_bar: &[T]) -> Vec<T> {
    let mut sums = vec![T::ZERO; e.r];
    for (i, row) in s_bar.chunks_exact(t.keys).enumerate() {
        sums[e.r / 2 - i..][..t.keys].iter_mut().zip(row).for_each(|(s, &x)| *s += x);
    }
    sums
}

/// Adds the tasks' diagonals, in order, into [R, N].
fn bias_bar<T: Real>(e: &Extents, tasks: &[Task], sums: &[Vec<T>]) -> Tensor {
    Tensor::cpu_with(&[e.r, e.n], |bias: &mut [T]| {
        bias.fill(T::ZERO);
        for (t, sums) in tasks.iter().zip(sums) {
            for (row, &s) in bias.chunks_exact_mut(e.n).zip(sums) {
                row[t.head] += s;
            }
        }
    })
}
