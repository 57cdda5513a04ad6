//! Attention as its parts: what a computation in bf16 that keeps scores and probabilities is off.

use std::sync::Arc;

use fewstep_ops::{Attention, Cost, Dual, Mask, Memory, Meta, Op, Output, Result, Rule, Saved};
use fewstep_tensor::Tensor;
use fewstep_tensor::gemm::{Mat, MatMut, Threads, gemm};

use crate::rounding::rounded;

/// Attention of f64 inputs on the host, with scores, probabilities, their tangents and cotangents, and the outputs rounded to
/// bf16 as the matrices that an unfused computation keeps. Sums are exact, as in f32 they nearly are.
#[derive(Clone, Debug)]
pub(crate) struct Unfused {
    pub attention: Attention,
    pub mask: Option<Arc<Mask>>,
}

/// A matrix, row by row.
struct Matrix {
    rows: usize,
    columns: usize,
    at: Vec<f64>,
}

/// A head of one sample: rows of `width` elements, `pitch` apart.
#[derive(Clone, Copy)]
struct Part<'a> {
    of: &'a [f64],
    rows: usize,
    width: usize,
    pitch: usize,
}

impl<'a> Part<'a> {
    fn mat(self) -> Mat<'a, f64> {
        Mat::new(self.of, self.rows, self.width, self.pitch.max(self.width))
    }
}

impl Matrix {
    fn mat(&self) -> Mat<'_, f64> {
        Mat::new(&self.at, self.rows, self.columns, self.columns)
    }

    /// Σ of products, times a factor.
    fn products([rows, columns]: [usize; 2], factor: f64, pairs: &[[Mat<'_, f64>; 2]]) -> Self {
        let mut at = vec![0.0; rows * columns];
        for (i, &[a, b]) in pairs.iter().enumerate() {
            gemm(MatMut::new(&mut at, rows, columns, columns), i > 0, factor, a, b, Threads::Pool);
        }
        Matrix { rows, columns, at }.rounded()
    }

    fn rounded(self) -> Self {
        let at = self.at.iter().map(|&x| round(x)).collect();
        Matrix { at, ..self }
    }

    fn each_row(mut self, mut f: impl FnMut(usize, &mut [f64])) -> Self {
        let columns = self.columns.max(1);
        self.at.chunks_mut(columns).enumerate().for_each(|(i, row)| f(i, row));
        self.rounded()
    }

    /// Of the sum of scores and what a mask adds to those of each query; zero where no key is allowed.
    fn softmax(self, added: impl Fn(usize) -> Option<Vec<f64>>) -> Self {
        self.each_row(|i, row| {
            if let Some(added) = added(i) {
                row.iter_mut().zip(added).for_each(|(x, a)| *x += a);
            }
            let largest = row.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
            row.iter_mut().for_each(|x| *x = if largest.is_finite() { (*x - largest).exp() } else { 0.0 });
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|x| *x = if sum > 0.0 { *x / sum } else { 0.0 });
        })
    }

    /// p∘(d − ⟨p, d⟩) row by row.
    fn through_softmax(self, p: &Matrix) -> Self {
        self.each_row(|i, row| {
            let p = &p.at[i * p.columns..][..p.columns];
            let mean: f64 = p.iter().zip(&*row).map(|(p, d)| p * d).sum();
            row.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - mean));
        })
    }
}

fn round(x: f64) -> f64 {
    fewstep_tensor::Element::to_f64(<fewstep_tensor::bf16 as fewstep_tensor::Element>::from_f64(x))
}

/// Extents: samples, queries, keys, heads, widths of keys and of values.
struct Extents {
    b: usize,
    l: usize,
    s: usize,
    n: usize,
    k: usize,
    v: usize,
    scale: f64,
}

impl Unfused {
    fn extents(&self, q: &[usize], v: &[usize]) -> Extents {
        let (n, k) = (self.attention.heads, q[2] / self.attention.heads);
        let scale = self.attention.scale.unwrap_or(1.0 / (k as f64).sqrt());
        Extents { b: q[0], l: q[1], s: v[1], n, k, v: v[2] / n, scale }
    }

    /// What the mask adds to the scores of a query: −∞ for the keys of other packed samples.
    fn added(&self, [sample, head, query]: [usize; 3], keys: usize) -> Option<Vec<f64>> {
        let mask = self.mask.as_deref()?;
        let Some(packed) = &mask.packed else { return Some(mask.added([sample, head, query], 0..keys).collect()) };
        let mut added = vec![f64::NEG_INFINITY; keys];
        let (mut first, mut first_key) = (0, 0);
        for (sample, &[queries, keys]) in packed.iter().enumerate() {
            if (first..first + queries).contains(&query) {
                let own = mask.added([sample, head, query - first], 0..keys);
                added[first_key..][..keys].iter_mut().zip(own).for_each(|(to, a)| *to = a);
            }
            (first, first_key) = (first + queries, first_key + keys);
        }
        Some(added)
    }

    /// Fills outputs [B, rows, N·width] head by head.
    fn heads<const N: usize>(
        e: &Extents,
        shapes: [[usize; 2]; N],
        f: impl Fn(usize, usize) -> [Matrix; N],
    ) -> Result<[Tensor; N]> {
        let mut all = shapes.map(|[rows, width]| vec![0.0; e.b * rows * e.n * width]);
        for (b, h) in (0..e.b).flat_map(|b| (0..e.n).map(move |h| (b, h))) {
            for ((all, [rows, width]), m) in all.iter_mut().zip(shapes).zip(f(b, h)) {
                for i in 0..rows {
                    let to = ((b * rows + i) * e.n + h) * width;
                    all[to..to + width].copy_from_slice(&m.at[i * width..][..width]);
                }
            }
        }
        let tensors =
            all.into_iter().zip(shapes).map(|(v, [rows, width])| Tensor::from_vec(v, &[e.b, rows, e.n * width]));
        let tensors = tensors.collect::<fewstep_tensor::Result<Vec<_>>>()?;
        tensors.try_into().map_err(|_| fewstep_ops::Error::input("unfused", "an output each", N))
    }
}

/// Rows of head `h` of sample `b`.
fn part(t: &[f64], [b, h]: [usize; 2], rows: usize, heads: usize, width: usize) -> Part<'_> {
    let start = (b * rows * heads + h) * width;
    Part { of: t.get(start..).unwrap_or(&[]), rows, width, pitch: heads * width }
}

impl Op for Unfused {
    fn name(&self) -> &'static str {
        self.attention.name()
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let none = [None; 3];
        Ok(Output { y: self.jvp(x, &none)?.primal, kept: Vec::new() })
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let e = self.extents(x[0].shape(), x[2].shape());
        let values = x.iter().map(|t| t.as_slice::<f64>()).collect::<fewstep_tensor::Result<Vec<_>>>()?;
        let dots = x_dot.iter().map(|t| t.map(|t| t.as_slice::<f64>()).transpose());
        let dots = dots.collect::<fewstep_tensor::Result<Vec<_>>>()?;
        let [y, y_dot] = Self::heads(&e, [[e.l, e.v]; 2], |b, h| {
            let extents = [[e.l, e.k], [e.s, e.k], [e.s, e.v]];
            let head = |i: usize, t| part(t, [b, h], extents[i][0], e.n, extents[i][1]).mat();
            let [q, k, v] = [0, 1, 2].map(|i| head(i, values[i]));
            let [q_dot, k_dot, v_dot] = [0, 1, 2].map(|i| dots[i].map(|t| head(i, t)));
            let p = Matrix::products([e.l, e.s], e.scale, &[[q, k.t()]]).softmax(|i| self.added([b, h, i], e.s));
            let pairs: Vec<_> = [q_dot.map(|d| [d, k.t()]), k_dot.map(|d| [q, d.t()])].into_iter().flatten().collect();
            let p_dot = Matrix::products([e.l, e.s], e.scale, &pairs).through_softmax(&p);
            let pairs: Vec<_> = [Some([p_dot.mat(), v]), v_dot.map(|d| [p.mat(), d])].into_iter().flatten().collect();
            [Matrix::products([e.l, e.v], 1.0, &[[p.mat(), v]]), Matrix::products([e.l, e.v], 1.0, &pairs)]
        })?;
        Ok(Dual { primal: y, tangent: Some(y_dot) })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, _wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let e = self.extents(saved.shape(0), saved.shape(2));
        let values = (0..3).map(|i| Ok(saved.input(i)?.as_slice::<f64>()?)).collect::<Result<Vec<_>>>()?;
        let y_bar = rounded(y_bar);
        let o_bar = y_bar.as_slice::<f64>()?;
        let bars = Self::heads(&e, [[e.l, e.k], [e.s, e.k], [e.s, e.v]], |b, h| {
            let extents = [[e.l, e.k], [e.s, e.k], [e.s, e.v]];
            let [q, k, v] = [0, 1, 2].map(|i| part(values[i], [b, h], extents[i][0], e.n, extents[i][1]).mat());
            let o_bar = part(o_bar, [b, h], e.l, e.n, e.v).mat();
            let p = Matrix::products([e.l, e.s], e.scale, &[[q, k.t()]]).softmax(|i| self.added([b, h, i], e.s));
            let s_bar = Matrix::products([e.l, e.s], 1.0, &[[o_bar, v.t()]]).through_softmax(&p);
            [
                Matrix::products([e.l, e.k], e.scale, &[[s_bar.mat(), k]]),
                Matrix::products([e.s, e.k], e.scale, &[[s_bar.mat().t(), q]]),
                Matrix::products([e.s, e.v], 1.0, &[[p.mat().t(), o_bar]]),
            ]
        })?;
        Ok(bars.into_iter().map(Some).collect())
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        self.attention.cost(x, rule)
    }

    fn memory(&self) -> Memory {
        Memory::INPUTS
    }
}
