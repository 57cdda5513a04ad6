//! A few numbers per sample: plain f64 loops.

use fewstep_tensor::{DType, Tensor};

use crate::Result;

const MAX_PERIOD: f64 = 10_000.0;

fn frequency(i: usize, half: usize) -> f64 {
    MAX_PERIOD.powf(-(i as f64) / half as f64)
}

fn fill(t: &[f64], dim: usize, f: impl Fn(usize, f64) -> (f64, f64)) -> Tensor {
    let half = dim / 2;
    Tensor::cpu_with(&[t.len(), dim], |y: &mut [f64]| {
        for (b, row) in y.chunks_mut(dim.max(1)).enumerate() {
            for i in 0..half {
                (row[i], row[half + i]) = f(b, frequency(i, half));
            }
        }
    })
}

pub(super) fn forward(t: &Tensor, dim: usize) -> Result<Tensor> {
    let t = t.to_vec_f64();
    Ok(fill(&t, dim, |b, w| ((t[b] * w).cos(), (t[b] * w).sin())))
}

pub(super) fn jvp(t: &Tensor, t_dot: &Tensor, dim: usize) -> Result<Tensor> {
    let (t, t_dot) = (t.to_vec_f64(), t_dot.to_vec_f64());
    Ok(fill(&t, dim, |b, w| (-(t[b] * w).sin() * w * t_dot[b], (t[b] * w).cos() * w * t_dot[b])))
}

pub(super) fn vjp(t: &Tensor, y_bar: &Tensor, dim: usize) -> Result<Tensor> {
    let (t, half) = (t.to_vec_f64(), dim / 2);
    let y_bar = y_bar.to_dtype(DType::F64);
    let y_bar = y_bar.as_slice::<f64>()?;
    let bar = |b: usize| -> f64 {
        let row = &y_bar[b * dim..(b + 1) * dim];
        let term = |i: usize| {
            let w = frequency(i, half);
            ((t[b] * w).cos() * row[half + i] - (t[b] * w).sin() * row[i]) * w
        };
        (0..half).map(term).sum()
    };
    Ok(Tensor::from_vec((0..t.len()).map(bar).collect::<Vec<f64>>(), &[t.len()])?)
}
