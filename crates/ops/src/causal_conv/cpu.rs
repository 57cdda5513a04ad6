//! Implicit products by panels: a kernel row and a panel of padded rows make one matrix product.

use fewstep_tensor::gemm::{Mat, MatMut, Threads, gemm};
use fewstep_tensor::math::Real;
use fewstep_tensor::{Buffer, Tensor};
use rayon::prelude::*;

use super::geometry::{Extents, Panel};
use crate::Result;

/// W [O, I, KT, KH, KW] as [KT, KH, KW, I, O]: each kernel row is a right operand.
pub(super) fn pack<T: Real>(e: &Extents, w: &[T]) -> Buffer<T> {
    let mut packed = Buffer::scratch(w.len());
    let (frame, io, taps) = (e.kh * e.kw, e.i * e.o, e.kt * e.kh * e.kw);
    if w.is_empty() {
        return packed;
    }
    packed.as_mut_slice().par_chunks_mut(frame * io).enumerate().for_each(|(t, packed)| {
        for i in 0..e.i {
            for o in 0..e.o {
                let w = &w[(o * e.i + i) * taps + t * frame..][..frame];
                for (tap, &w) in w.iter().enumerate() {
                    packed[tap * io + i * e.o + o] = w;
                }
            }
        }
    });
    packed
}

/// Copies what a panel reads of a frame [H, W, I].
pub(super) fn gather<T: Real>(e: &Extents, panel: &Panel, frame: &[T], padded: &mut [T]) {
    let (row, inside) = (e.w * e.i, panel.inside(e));
    panel.each_row(e, |at, y| {
        let padded = &mut padded[at];
        let Some(y) = y else { return padded.fill(T::ZERO) };
        padded[..inside.start].fill(T::ZERO);
        padded[inside.clone()].copy_from_slice(&frame[y * row..][..inside.len()]);
        padded[inside.end..].fill(T::ZERO);
    });
}

/// y += Σ frames∗W, y [B, H', W', O]; `fill` starts each row of y.
fn convolve<T: Real>(e: &Extents, w: &[T], frames: &[Option<&[T]>], y: &mut [T], start: Start<T>) {
    let packed = pack(e, w);
    let (rows, row) = (e.panel_rows(), e.ow * e.o);
    if y.is_empty() {
        return;
    }
    let images = y.chunks_mut(e.oh * row).enumerate();
    let tasks: Vec<(usize, Panel, &mut [T])> = images
        .flat_map(|(b, image)| {
            let panels = image.chunks_mut(rows * row).enumerate();
            panels.map(move |(i, y)| (b, e.panel(i * rows, y.len() / row), y))
        })
        .collect();
    let largest = e.panel(0, rows);
    let scratch = || (Buffer::scratch(largest.len(e)), Buffer::scratch(rows * e.row() * e.o));
    tasks.into_par_iter().for_each_init(scratch, |(padded, sums), (b, panel, y)| {
        let sums = sums.as_mut_slice();
        let sums = &mut sums[..panel.positions(e) * e.o];
        let any = accumulate(e, packed.as_slice(), frames, b, &panel, padded.as_mut_slice(), sums);
        for (r, y) in y.chunks_mut(row).enumerate() {
            start.row(e, y);
            if any {
                y.iter_mut().zip(&sums[r * e.row() * e.o..]).for_each(|(y, &s)| *y += s);
            }
        }
    });
}

/// sums ← Σ over frames and kernel rows; false if there is no frame.
fn accumulate<T: Real>(
    e: &Extents,
    packed: &[T],
    frames: &[Option<&[T]>],
    b: usize,
    panel: &Panel,
    padded: &mut [T],
    sums: &mut [T],
) -> bool {
    let (m, image) = (panel.positions(e), e.h * e.w * e.i);
    let mut any = false;
    for (j, frame) in frames.iter().enumerate() {
        let Some(frame) = frame else { continue };
        gather(e, panel, &frame[b * image..][..image], padded);
        for u in 0..e.kh {
            let x = Mat::overlapping(&padded[panel.start(e, u, 0)..], m, e.kw * e.i, e.stride * e.i);
            let w = &packed[(e.tap(j) * e.kh + u) * e.kernel_row()..][..e.kernel_row()];
            let w = Mat::new(w, e.kw * e.i, e.o, e.o);
            gemm(MatMut::new(sums, m, e.o, e.o), any, T::ONE, x, w, Threads::Single);
            any = true;
        }
    }
    any
}

/// What an output row begins with.
#[derive(Clone, Copy)]
enum Start<'a, T> {
    /// The bias, or zeros.
    Bias(Option<&'a [T]>),
    /// What it holds.
    Kept,
}

impl<T: Real> Start<'_, T> {
    fn row(&self, e: &Extents, y: &mut [T]) {
        match self {
            Start::Bias(Some(bias)) => y.chunks_mut(e.o).for_each(|y| y.copy_from_slice(bias)),
            Start::Bias(None) => y.fill(T::ZERO),
            Start::Kept => {}
        }
    }
}

fn slices<'a, T: Real>(frames: &[Option<&'a Tensor>]) -> Result<Vec<Option<&'a [T]>>> {
    Ok(frames.iter().map(|f| f.map(|f| f.as_slice::<T>()).transpose()).collect::<std::result::Result<_, _>>()?)
}

pub(super) fn forward<T: Real>(e: &Extents, x: &[&Tensor]) -> Result<Tensor> {
    let (w, bias) = (x[0].as_slice::<T>()?, x[1].as_slice::<T>()?);
    let frames = slices::<T>(&x[2..].iter().map(|&f| Some(f)).collect::<Vec<_>>())?;
    Ok(Tensor::cpu_with(&e.output(), |y: &mut [T]| convolve(e, w, &frames, y, Start::Bias(Some(bias)))))
}

/// ẏ = biaṡ + W∗ẋ + Ẇ∗x
pub(super) fn tangent<T: Real>(e: &Extents, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Tensor> {
    let w = x[0].as_slice::<T>()?;
    let bias_dot = x_dot[1].map(|t| t.as_slice::<T>()).transpose()?;
    let w_dot = x_dot[0].map(|t| t.as_slice::<T>()).transpose()?;
    let frames = slices::<T>(&x[2..].iter().map(|&f| Some(f)).collect::<Vec<_>>())?;
    let frames_dot = slices::<T>(&x_dot[2..])?;
    Ok(Tensor::cpu_with(&e.output(), |y: &mut [T]| {
        convolve(e, w, &frames_dot, y, Start::Bias(bias_dot));
        if let Some(w_dot) = w_dot {
            convolve(e, w_dot, &frames, y, Start::Kept);
        }
    }))
}
